"""The notebooks as they are committed: paired with their scripts, run to the end, ready for Colab. The leg `notebooks` of
tests/environments.py runs them."""

import importlib.util
import json
import re
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
_spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
NAMES = build.names()


def committed(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def text(cell) -> str:
    return "".join(cell["source"])


def code(name):
    return [cell for cell in committed(name)["cells"] if cell["cell_type"] == "code"]


def test_there_are_nine_in_order():
    assert [name[:2] for name in NAMES] == [f"0{i}" for i in range(1, 10)]
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_pair_is_one_notebook(name):
    script = jupytext.read(FOLDER / f"{name}.py")
    expected = [(cell.cell_type, cell.source) for cell in script.cells]
    assert [(cell["cell_type"], text(cell)) for cell in committed(name)["cells"]] == expected


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_on_colab_and_installs_beside_its_jax(name):
    notebook = committed(name)
    assert notebook["metadata"] == build.METADATA and notebook["metadata"]["accelerator"] == "TPU"
    assert text(notebook["cells"][0]).startswith(build.opening(name) + "\n")
    assert text(code(name)[0]) in {build.setup(), build.setup("notebooks,frameworks")}


@pytest.mark.parametrize("name", NAMES)
def test_it_ran_to_the_end(name):
    """Every cell in order, without an error, a warning or a path of the machine, and with pictures."""
    assert [cell["execution_count"] for cell in code(name)] == list(range(1, len(code(name)) + 1))
    outputs = [output for cell in code(name) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    printed = json.dumps([output.get("text", "") for output in outputs])
    assert "Warning" not in printed and not re.search(r"/(home|tmp|root|work)/", printed)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000


def test_a_name_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        build.main(["99_none"])
    assert "there is no notebook 99_none; there are 01_" in capsys.readouterr().err
