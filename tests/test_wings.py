"""Where things may be: the order of the wings (``crossent_jax/README.md``), and names of modules that exist."""

import ast
import importlib.util
from pathlib import Path

import pytest

from .conftest import TYPED

PACKAGE = Path(__file__).resolve().parents[1] / "crossent_jax"
WINGS = (
    "_jax",
    "_row",
    "backends",
    "_dense",
    "_linear",
    "_pairs",
    "guards",
    "_api",
    "information",
    "compat",
    "tuning",
    "demo",
)
FORBIDDEN = {  # not even from a wing below
    "backends": ("_row.losses", "_row.reduce", "_row.user_loss"),
    "_row/block.py": ("_row.losses", "_row.reduce", "_row.user_loss"),
}
PUBLIC = "crossent_jax"  # the top of the package, where every name of the wings up to `information` is


def modules():
    return [
        path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or _wing(path.name)
    ]


def _wing(name):
    return Path(name).stem in WINGS


def imported(path):
    """Dotted names below the package that the module at ``path`` imports, those of functions' bodies too; a module is named
    as deep as a file or folder of that name exists."""
    here = ("crossent_jax", *path.parent.parts)
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = here[: len(here) - node.level + 1] if node.level else ()
        full = [*base, *(node.module.split(".") if node.module else [])]
        if full[:1] != ["crossent_jax"]:
            continue
        for alias in node.names:
            inner = [*full[1:], alias.name]
            yield ".".join(inner if (PACKAGE.joinpath(*inner).with_suffix(".py")).exists() else full[1:]) or PUBLIC


def wing_of(name):
    return "information" if name == PUBLIC else name.split(".")[0]


@pytest.mark.parametrize("path", modules(), ids=str)
def test_a_module_imports_only_from_its_own_wing_and_those_below(path):
    own = WINGS.index(path.parts[0].removesuffix(".py"))
    climbing = [name for name in imported(path) if WINGS.index(wing_of(name)) > own]
    assert not climbing, f"{path} imports {climbing} from above: {' < '.join(WINGS)}"


@pytest.mark.parametrize("where", FORBIDDEN)
def test_a_backend_and_its_mathematics_never_import_a_loss_or_a_reduction(where):
    folder = PACKAGE / where
    paths = sorted(folder.glob("*.py")) if folder.is_dir() else [folder]
    assert paths and all(path.exists() for path in paths)
    for path in paths:
        names = set(imported(path.relative_to(PACKAGE)))
        assert not names & set(FORBIDDEN[where]), path


@pytest.mark.parametrize("name", [*TYPED, *(f"crossent_jax.{name}" for names in FORBIDDEN.values() for name in names)])
def test_a_module_that_a_test_names_exists(name):
    assert importlib.util.find_spec(name) is not None


def test_every_wing_says_what_it_is_for():
    for wing in WINGS[: WINGS.index("_api") + 1]:
        if (PACKAGE / wing).is_dir():
            text = (PACKAGE / wing / "README.md").read_text()
            assert "Never sees" in text or "never sees" in text, wing
            missing = [
                path.name for path in (PACKAGE / wing).glob("*.py") if path.stem != "__init__" and path.name not in text
            ]
            assert not missing, f"{wing}/README.md does not name {missing}"


def test_nothing_lies_beside_the_wings():
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found == {*WINGS, "__init__"}
