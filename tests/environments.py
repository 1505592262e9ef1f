"""Legs of the test run beyond ``make test``, in environments built from the project's files.

    python -m tests.environments cases lint mutations peers frameworks notebooks docs benchmarks aot colab floor newest

| leg | what |
|---|---|
| cases | the parameter cases of each test that ``make test`` leaves out |
| lint | ruff (rules and format) and pyright |
| mutations | the planted bugs of tests/mutations, each of which a named test must catch |
| peers | torch 2.13 answers the committed fixtures again |
| frameworks | models of Flax and Equinox train with the linear loss; distributions of distrax, numpyro and TFP |
| notebooks | every notebook runs in FAST mode, on this Python and, with jax 0.7.2, on Python 3.13 |
| docs | the documentation builds without a warning and loads nothing from another host; its examples run |
| benchmarks | the smoke suite: ratios to the naive formula, and the compiler's figures, beside the committed ones |
| aot | test_aot.py and test_pallas_tpu.py with the compilers of TPUs and an H100; cycles on TPUs beside the committed ones |
| colab | test_pallas_tpu.py with Colab's TPU compiler, for a v5e |
| floor | the suite on Python 3.13 with the oldest supported packages, those of Colab's TPU runtime |
| newest | the suite on Python 3.13 with the newest packages |

The last two run one parameter case of every test, always the same one; ``CASES=1000`` makes it all of them. What differs
between versions is how a program is traced and compiled, which every case of a test shows.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import compiling

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venvs"
FLOOR = ("jax==0.7.2", "jaxlib==0.7.2", "numpy==2.1.3", "chex==0.1.90", "optax==0.2.8")
AVX2 = "--xla_cpu_max_isa=AVX2"
JOBS = os.environ.get("JOBS") or str(min(4, os.cpu_count() or 1))
SUITE = ("-m", "pytest", "-q", "-n", JOBS, "--dist", "loadfile")  # a file's programs in one process
FEW = ("--cases", os.environ.get("CASES", "1"))


def run(*command, **variables: str) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env=os.environ | variables)


def python_3_13() -> str:
    """A working Python 3.13: the one on the path, or the newest that pyenv holds."""
    found = shutil.which("python3.13")
    if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return found
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout.strip()
        versions = sorted(Path(root, "versions").glob("3.13.*/bin/python"))
        if versions:
            return str(versions[-1])
    raise SystemExit("the legs floor and newest need Python 3.13: put python3.13 on the path, or install it with pyenv")


def environment(name: str, python: str, *requirements: str) -> Path:
    """A fresh virtual environment; prints how long the installation took."""
    start, folder = time.monotonic(), ENVIRONMENTS / name
    run(python, "-m", "venv", "--clear", folder)
    interpreter = folder / "bin" / "python"
    install(interpreter, *requirements)
    print(f"{name}: installation took {time.monotonic() - start:.0f} s", flush=True)
    return interpreter


def install(interpreter: Path, *requirements: str) -> None:
    run(interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", *requirements)


@functools.cache
def tools() -> Path:
    """One environment for everything that runs on this Python alone."""
    return environment("tools", sys.executable, "--editable", ".[demo,docs,frameworks,lint,notebooks,peers,test,tune]")


@functools.cache
def oldest() -> Path:
    """Python 3.13 with the oldest supported packages, of which installing the project replaces none."""
    python = environment("oldest", python_3_13(), *FLOOR)
    check_that_nothing_moves(python)
    install(python, *FLOOR, "--editable", ".[frameworks,notebooks,test]")
    return python


def suite(python: Path, *options: str, flags: str = "") -> None:
    """Both parts of the suite."""
    run(python, *SUITE, *options, XLA_FLAGS=flags, CROSSENT_JAX_COMPILE="quick")
    run(python, *SUITE, *options, "-m", "optimized", XLA_FLAGS=flags)


def cases() -> None:
    suite(Path(sys.executable), "--part", "rest")


def lint() -> None:
    run(tools(), "-m", "ruff", "check", ".")
    run(tools(), "-m", "ruff", "format", "--check", ".")
    run(tools(), "-m", "pyright", "--pythonpath", tools())


def mutations() -> None:
    run(sys.executable, "tests/mutations/run.py", "--jobs", JOBS)


def peers() -> None:
    run(tools(), "tests/make_torch_fixtures.py", "--check")


def frameworks() -> None:
    run(tools(), *SUITE, "tests/test_frameworks.py", "tests/test_other_distributions.py", CROSSENT_JAX_COMPILE="quick")


def notebooks() -> None:
    """With jax 0.7.2 beside the newest of the other packages that leave it as it is. Those that compute little are compiled
    quickly, in half the time."""
    computing = {"06_fused_linear_on_tpu", "07_benchmarks_roofline"}
    others = sorted({path.stem for path in (ROOT / "notebooks").glob("[0-9]*.py")} - computing)
    for python in (tools(), oldest()):
        check = (python, "notebooks/build.py", "--check", "--jobs", JOBS)
        run(*check, *sorted(computing), XLA_FLAGS=AVX2)
        run(*check, *others, XLA_FLAGS=f"{AVX2} {compiling.as_flags()}")


def docs() -> None:
    for builder in ("html", "doctest"):
        run(tools(), "-m", "sphinx", "-W", "--keep-going", "-q", "-b", builder, "docs", f"docs/_build/{builder}")
    check_that_nothing_is_remote(ROOT / "docs/_build/html")


def benchmarks() -> None:
    """Ratios of another machine may be twice as high or low; this catches a loss of ours that became several times slower,
    fails, or is wrong, and memory that grew."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "smoke.jsonl")
        run(sys.executable, "-m", "benchmarks", "run", "--suite", "smoke", "--device", "cpu", "--out", path)
        committed = ROOT / "benchmarks/results/cpu-smoke.jsonl"
        run(sys.executable, "-m", "benchmarks", "compare", committed, path, "--ratios", "--threshold", "200%")


def aot() -> None:
    python = environment("aot", sys.executable, "--editable", ".[test,tpu]", "absl-py", "flatbuffers")
    command = [str(python), "-c", "import jax; print(jax.__version__)"]
    version = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    install(
        python, "--no-deps", f"jax-cuda13-plugin=={version}", f"jax-cuda13-pjrt=={version}"
    )  # without NVIDIA's libraries
    without_cache = ("-p", "no:cacheprovider")  # a compiler without its device cannot read a program back
    run(python, *SUITE, *without_cache, "tests/test_aot.py", "tests/test_pallas_tpu.py")
    for operation, features, committed in (
        ("linear_cross_entropy", 2048, "aot.jsonl"),
        ("linear_kl_divergence", 1024, "aot-divergence.jsonl"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, committed)
            case = ("--op", operation, "--shape", f"n=8192,d={features},v=131072", "--dtype", "bfloat16", "--impl", "ours")
            run(python, "-m", "benchmarks", "aot", *case, "--chip", "v5e", "v6e", "--out", path)
            run(python, "-m", "benchmarks", "compare", ROOT / "benchmarks/results" / committed, path, "--ratios", "--common")


def colab() -> None:
    """jax 0.7.2 with the libtpu of Colab's TPU runtime. ``tests/test_aot.py -k v5e`` passes so too, in 2 minutes."""
    python = environment("colab", python_3_13(), *FLOOR, "libtpu==0.0.21.1")
    install(python, *FLOOR, "--editable", ".[test]")
    chosen = ("tests/test_pallas_tpu.py", "-k", "v5e or four_chips or kernel_each")
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.colab", *chosen)


def floor() -> None:
    """Without AVX-512: on some CPUs that have it, jaxlib 0.7.2 computes a wrong loss for a compiled training step of the
    demo, with the naive formula too (seen: 2.76 nats where jax 0.12, and 0.7.2 with AVX2, give 2.31)."""
    suite(oldest(), *FEW, flags=AVX2)


def newest() -> None:
    """Without the tests that start processes: those of ``floor`` and of this Python show the commands."""
    few = (*FEW, "-m", "not subprocess")  # of the first part: the second has a mark of its own
    suite(environment("newest", python_3_13(), "--editable", ".[test]"), *few)


def check_that_nothing_moves(python: Path) -> None:
    """Installing the project beside Colab's packages must leave every one of them as it is."""
    command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", "."]
    report = json.loads(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout)
    planned = {item["metadata"]["name"].lower() for item in report["install"]}
    moved = planned & {pin.split("==")[0] for pin in FLOOR}
    if moved:
        raise SystemExit(f"installing crossent-jax beside jax 0.7.2 would replace {sorted(moved)}")
    print("installing beside jax 0.7.2 adds only", ", ".join(sorted(planned)), flush=True)


def check_that_nothing_is_remote(site: Path) -> None:
    """No page or style sheet may load a script, style sheet, font or picture from another host; links are not loaded."""
    loads = re.compile(
        r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\s(?:src|srcset)\s*=\s*["']?(?:https?:)?//[^"'\s>]+"""
        r"""|<link\b[^>]*?\shref\s*=\s*["']?(?:https?:)?//[^"'\s>]+"""
        r"""|(?:url\(|@import)\s*["']?(?:https?:)?//[^"'\s)]+"""
    )
    pages = [path for path in sorted(site.rglob("*")) if path.suffix in (".html", ".css")]
    found = [f"{path.relative_to(site)}: {load}" for path in pages for load in loads.findall(path.read_text())]
    if not pages or found:
        raise SystemExit("\n".join(["the documentation loads from other hosts:", *found]))
    print(f"{len(pages)} pages and style sheets load nothing from another host", flush=True)


LEGS = {
    leg.__name__: leg
    for leg in (cases, lint, mutations, peers, frameworks, notebooks, docs, benchmarks, aot, colab, floor, newest)
}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in LEGS]
    if unknown or not names:
        raise SystemExit(f"usage: python -m tests.environments {' '.join(LEGS)} (any of them); got {names}")
    for name in names:
        start = time.monotonic()
        LEGS[name]()
        print(f"{name}: passed in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
