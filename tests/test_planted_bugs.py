"""The table of planted bugs keeps up with what it names, which the run of it would say minutes later."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MUTATIONS = ROOT / "tests" / "mutations"
BUGS = runpy.run_path(str(MUTATIONS / "bugs.py"))["BUGS"]


def test_every_bug_changes_one_place():
    mutate = runpy.run_path(str(MUTATIONS / "run.py"))["mutate"]
    for bug in BUGS:
        text = (ROOT / "crossent_jax" / bug.file).read_text()
        assert mutate(text, bug.old, bug.new) != text, bug.name  # raises where the snippet is not there once


def test_every_bug_names_a_test():
    for bug in BUGS:
        path, _, name = bug.test.partition("::")
        function = re.sub(r"\[.*", "", name)
        assert f"def {function}(" in (ROOT / path).read_text(), bug.name


def test_a_snippet_that_is_not_there_once_is_refused():
    mutate = runpy.run_path(str(MUTATIONS / "run.py"))["mutate"]
    with pytest.raises(ValueError, match="found 2 times"):
        mutate("a = b\na  =  b", "a = b", "a = c")
