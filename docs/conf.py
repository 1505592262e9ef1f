"""Sphinx: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import os
import re
import shutil
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # for the {doctest} blocks of the pages; meshes.md has eight devices
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

DOCS = Path(__file__).resolve().parent
SOURCE = metadata.metadata("crossent-jax")["Project-URL"].removeprefix("Source, ")

project = "crossent_jax"
author = "the crossent_jax contributors"
copyright = author
version = release = metadata.version("crossent-jax")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest"]
extensions += ["sphinx.ext.mathjax", "sphinx-mathjax-offline"]  # MathJax comes with the site: formulas need no network
exclude_patterns = ["_build"]

html_theme = "sphinx_book_theme"
html_title = f"crossent_jax {release}"
html_theme_options = {
    "repository_url": SOURCE,
    "use_repository_button": True,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the side bar has the search
    "footer_content_items": ["copyright.html"],
}
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
mathjax3_config = {"loader": {"load": ["[tex]/textmacros"]}, "tex": {"packages": {"[+]": ["textmacros"]}}}  # \\_ in \\texttt
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_typehints = "none"  # the docstrings say shapes and dtypes
autodoc_member_order = "bysource"
doctest_test_doctest_blocks = ""  # docstrings are run by pytest; here the {doctest} blocks of the pages are


def copy_notebooks() -> None:
    """Sphinx reads only what lies below this folder; the notebooks, if there are any, come with a page that lists them."""
    folder = DOCS / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    notebooks = sorted((DOCS.parent / "notebooks").glob("[0-9]*.ipynb"))
    for notebook in notebooks:
        text = re.sub(r"!\[([^]]*)\]\(https://[^)]*\)", r"\1", notebook.read_text())  # no badge from another host: its words
        (folder / notebook.name).write_text(text)
    names = "\n".join(notebook.stem for notebook in notebooks)
    page = f"# Notebooks\n\nWorked examples, with their results.\n\n```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n"
    (folder / "index.md").write_text(page)


def as_restructured_text(app, what, name, obj, options, lines) -> None:
    """Tables and indented formulas of docstrings, which are Markdown, as reStructuredText. What it returns and raises
    is prose, of which napoleon would take the words before the first colon for a type."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    opening = True
    for i, block in enumerate(blocks):
        opening = opening and re.match(r"(Args|Returns|Raises|Example)\b.*:\n", block) is None
        if block.lstrip().startswith("|"):
            blocks[i] = _table(block)
        elif opening and block.startswith("    "):
            blocks[i] = "::\n\n" + block
        else:
            block = re.sub(r"^((?:Args, )?(?:Returns|Raises)(?:, Raises)?):\n\s*", r":\1: ", block, flags=re.MULTILINE)
            blocks[i] = block.replace(", ...: ", ", others: ")
    lines[:] = "\n\n".join(blocks).split("\n")


def _table(block: str) -> str:
    rows = [re.split(r"\s+\|\s+|\s*\|$|^\|\s*", line.strip())[1:-1] for line in block.strip().split("\n")]
    rows = [row for row in rows if not set("".join(row)) <= set("-| ")]
    items = [f"   {'* -' if j == 0 else '  -'} {cell}" for row in rows for j, cell in enumerate(row)]
    return "\n".join([".. list-table::", "   :header-rows: 1", "", *items])


def setup(app) -> None:
    copy_notebooks()
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
