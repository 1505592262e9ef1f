"""Notebooks from their scripts.

    python notebooks/build.py [NAME ...]            runs them in full and writes NAME.ipynb with its results
    python notebooks/build.py --check [NAME ...]    runs them in FAST mode, writes nothing, and fails if a cell fails

The script (jupytext's percent format) is the source: edit ``NAME.py``, then build. The badge and the cell that installs
are the same in all of them, ``opening`` and ``setup``; ``tests/test_notebooks.py`` compares these and the paired files.
"""

import argparse
import os
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCE = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]["urls"]["Source"]
FAST = "CROSSENT_JAX_FAST"
METADATA = {
    "accelerator": "TPU",
    "colab": {"gpuType": "V5E1", "provenance": [], "toc_visible": True},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "jupytext": {"formats": "ipynb,py:percent"},
}
SECONDS_PER_CELL = 900


def opening(name: str) -> str:
    """The first line of the first cell: the badge that opens the notebook on Colab."""
    repository = SOURCE.removeprefix("https://github.com/")
    address = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"


def setup(extra: str = "notebooks") -> str:
    """The first cell of code: installs the library beside the jax that is there, which stays, and prints versions."""
    return f'''import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version

if importlib.util.find_spec("crossent_jax") is None:  # the versions that are here stay as they are
    here = [f"{{name}}=={{version(name)}}" for name in ("jax", "jaxlib", "numpy")]
    library = "crossent-jax[{extra}] @ git+{SOURCE}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", library, *here], check=True)

import crossent_jax

FAST = os.environ.get("{FAST}") == "1"  # small sizes, for a quick check
crossent_jax.show_versions()'''


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))


def read(name: str):
    import jupytext

    notebook = jupytext.read(FOLDER / f"{name}.py")
    notebook.metadata = METADATA
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def executed(name: str):
    """The notebook with its results, without the times at which its cells ran."""
    from nbclient import NotebookClient

    notebook, start = read(name), time.monotonic()
    where = {"metadata": {"path": FOLDER}}
    NotebookClient(notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources=where).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = METADATA
    print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return notebook


def build(name: str) -> None:
    import nbformat

    nbformat.write(executed(name), FOLDER / f"{name}.ipynb")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    parser.add_argument("--check", action="store_true", help="run in FAST mode and write nothing")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(names()))
    if unknown:
        parser.error(f"there is no notebook {', '.join(unknown)}; there are {', '.join(names())}")
    if options.check:
        os.environ[FAST] = "1"
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {name: pool.submit(executed if options.check else build, name) for name in options.names or names()}
    failed = {name: run.exception() for name, run in runs.items() if run.exception()}
    for name, error in failed.items():
        print(f"{name} failed:\n{error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
