"""Planted bugs: every entry of ``bugs.py`` changes one line of the library, and the test it names must fail.

    python tests/mutations/run.py [--jobs 2] [words of names ...]

Each bug goes into a copy of the library in a folder of its own. A snippet must occur exactly once (white space aside). The
named tests are run on an unchanged copy too: a test that fails there would catch anything. Exit status 1 if a bug survives.
"""

import argparse
import multiprocessing
import os
import re
import runpy
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("bugs.py")
COPIED = ("crossent_jax", "benchmarks", "tests", "pyproject.toml")
PROGRAMS = ROOT / ".pytest_cache" / "mutations"
FAILED_TESTS, USAGE_ERROR = 1, 4  # pytest's exit statuses; no test at all has another


def mutate(text: str, old: str, new: str) -> str:
    """``text`` with its only occurrence of ``old`` replaced, whatever the line breaks and blanks between its tokens."""
    pattern = r"\s*".join(re.escape(token) for token in re.findall(r"\w+|[^\w\s]", old))
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise ValueError(f"found {len(found)} times instead of once: {old!r}")
    return text.replace(found[0], new)


def copy_project(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis", "fixtures")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


QUICK, OPTIMIZED = {"CROSSENT_JAX_COMPILE": "quick"}, {"CROSSENT_JAX_COMPILE": "optimized"}  # the two parts of ``make test``
SERVER = multiprocessing.get_context("forkserver")  # its processes begin with JAX imported: half of the time of a short run


def start_server() -> None:
    """What JAX reads when it is imported is set before. Copies share compiled programs."""
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(PROGRAMS), "JAX_PLATFORMS": "cpu"}
    SERVER.set_forkserver_preload(["jax", "optax", "chex", "scipy.special"])


def main_of_pytest(folder: Path, part: dict[str, str], arguments: list[str], output: str) -> None:
    """The whole of a process of the server."""
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ |= part
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    import pytest

    sys.exit(pytest.main(arguments))


def pytest(folder: Path, part: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit status and output of pytest on the copy in ``folder``."""
    marked = ["-m", "optimized"] if part is OPTIMIZED else []
    command = ["-q", "-x", "-p", "no:cacheprovider", "--tb=line", *marked, *arguments]
    with tempfile.NamedTemporaryFile("r") as output:
        process = SERVER.Process(target=main_of_pytest, args=(folder, part, command, output.name))
        process.start()
        process.join()
        return process.exitcode, output.read()


def optimized_among(tests: list[str]) -> list[str]:
    """The tests of the second part. Every one must exist: pytest lists none of them beside a name that it does not know."""
    status, output = pytest(ROOT, OPTIMIZED, "--collect-only", *tests)
    if status == USAGE_ERROR:
        sys.exit(f"bugs.py names a test that is not there:\n{output}")
    marked = output.splitlines()
    return [test for test in tests if any(name == test or name.startswith(f"{test}[") for name in marked)]


def attempt(bug, part: dict[str, str]) -> str | None:
    """None if the named test catches the bug, else what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_project(folder)
        target = folder / "crossent_jax" / bug.file
        try:
            target.write_text(mutate(target.read_text(), bug.old, bug.new))
        except ValueError as error:
            return f"snippet {error}"
        status, output = pytest(folder, part, bug.test)
    if status == FAILED_TESTS:
        return None
    return f"SURVIVED {bug.test}" if status == 0 else f"pytest exit status {status}\n{output[-2000:]}"


def baseline(tests: list[str], part: dict[str, str]) -> str | None:
    with tempfile.TemporaryDirectory() as name:
        copy_project(Path(name))
        status, output = pytest(Path(name), part, *tests)
    return None if status == 0 else f"the named tests do not all pass without a bug\n{output[-2000:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("names", nargs="*", help="only the bugs whose names contain one of these")
    options = parser.parse_args()
    bugs = runpy.run_path(str(TABLE))["BUGS"]
    chosen = [bug for bug in bugs if not options.names or any(word in bug.name for word in options.names)]
    start = time.monotonic()
    start_server()
    tests = sorted({bug.test for bug in chosen})
    optimized = optimized_among(tests)
    parts = {test: OPTIMIZED if test in optimized else QUICK for test in tests}
    with ThreadPoolExecutor(options.jobs) as pool:
        unchanged = [
            pool.submit(baseline, named, part)
            for part in (QUICK, OPTIMIZED)
            if (named := [test for test in tests if parts[test] is part])
        ]
        outcomes = list(pool.map(lambda bug: attempt(bug, parts[bug.test]), chosen))
    names = [bug.name for bug in chosen] + ["(unchanged library)"] * len(unchanged)
    outcomes += [run.result() for run in unchanged]
    for name, outcome in zip(names, outcomes, strict=True):
        print("ok      " if outcome is None else "FAILED  ", name, "" if outcome is None else f": {outcome}")
    failures = sum(outcome is not None for outcome in outcomes)
    print(f"{len(chosen)} planted bugs, {failures} failures, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
