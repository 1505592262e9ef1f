"""Measuring for real, small: every case in a process of its own, whose end is a cell of the table and never of the run."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

import crossent_jax
from benchmarks import __main__ as command_line
from benchmarks import pages, records, run
from benchmarks.cases import TOO_LARGE
from benchmarks.processes import Died, answers
from benchmarks.shapes import Case, Shape
from crossent_jax._jax import kept_memory

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).parent.parent
FAST = ["--seconds", "0.01", "--device", "cpu"]
CASE = Case("cross_entropy", Shape(33, 17), "float32", "value_and_grad")
SMALL = ["run", "--op", "cross_entropy", "--shape", "n=33,v=17", "--dtype", "float32", "--mode", "value_and_grad", *FAST]


def measured(names, **more):
    options = Namespace(device="cpu", timeout=more.pop("timeout", 120))
    return {row["impl"]: row for row in run.measured(more.pop("case", CASE), names, options, 0.01, more.pop("limit", None))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The command of a run, its file, and what it printed."""
    path = tmp_path_factory.mktemp("run") / "a.jsonl"
    command = [*SMALL, "--impl", "ours", "naive", "liger", "--out", str(path)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert command_line.main(command) == 0
    return command, path, printed.getvalue()


def test_a_run_is_kept_resumed_and_compared_with_itself(finished):
    command, path, printed = finished
    rows = {row["impl"]: row for row in records.read(path).rows}
    assert set(rows) == {"ours", "naive", "liger"} and rows["liger"]["reason"] in printed
    for name in ("ours", "naive"):
        assert rows[name]["wall_ms"]["p10"] <= rows[name]["wall_ms"]["median"] <= rows[name]["wall_ms"]["p90"]
        assert rows[name]["loss_error"] < 1e-5 and rows[name]["gradient_error"] < 1e-5
        assert rows[name]["compile_ms"] > 0 and 0 < rows[name]["share_of_ceiling"]
    assert rows["ours"]["to_ours"] == 1.0 and rows["ours"]["least_bytes"] == 2 * 4 * 33 * 17 + 4 * 33
    before = path.read_bytes()
    assert command_line.main(command) == 2 and path.read_bytes() == before  # it exists
    assert command_line.main([*command, "--resume"]) == 0 and path.read_bytes() == before  # nothing is left to do
    assert command_line.main(["compare", str(path), str(path)]) == 0


def test_a_contender_that_needs_more_than_allowed_is_a_cell(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # so large a case is slow unless XLA optimises it
    case = Case("linear_cross_entropy", Shape(1024, 131072, 2), "float32", "value_and_grad")
    rows = measured(["ours", "naive"], case=case, limit=2**30)
    assert rows["ours"]["status"] == "ok" and rows["ours"]["loss_error"] < 1e-5
    assert rows["naive"]["status"] == "failed" and rows["naive"]["reason"].startswith("out of memory")


def test_a_case_that_takes_too_long_is_a_cell():
    rows = measured(["ours", "naive"], timeout=0.5)
    assert {row["status"] for row in rows.values()} == {"failed"}
    assert all("no answer within 0.5 s" in row["reason"] for row in rows.values())


def test_a_contender_that_kills_its_process_is_a_cell_and_the_others_are_measured(monkeypatch):
    """The first process dies in the naive formula; the second is told to leave it out."""
    asked = []

    def scripted(request, variables, timeout):
        asked.append(dict(request["failed"]))
        yield {"begin": "ours"}
        if "naive" not in request["failed"]:
            yield {"begin": "naive"}
            raise Died("naive", "killed by signal 9 (out of memory?)")
        yield {"row": {"impl": "ours", "status": "ok"}}
        yield {"row": {"impl": "naive", "status": "failed", "reason": request["failed"]["naive"]}}

    monkeypatch.setattr(run, "answers", scripted)
    rows = measured(["ours", "naive"])
    assert asked == [{}, {"naive": "killed by signal 9 (out of memory?)"}]
    assert rows["ours"]["status"] == "ok" and "signal 9" in rows["naive"]["reason"]


def test_what_was_measured_before_a_death_is_kept(monkeypatch):
    def scripted(request, variables, timeout):
        yield {"row": {"impl": "ours", "status": "ok"}}
        yield {"begin": "timing torch"}
        raise Died("timing torch", "signal 11: ?")

    monkeypatch.setattr(run, "answers", scripted)
    rows = measured(["ours", "torch"])
    assert rows["ours"]["status"] == "ok" and rows["torch"]["reason"] == "signal 11: ?, at timing torch"


def test_a_death_in_the_float64_check_repeats_the_case_without_it(monkeypatch):
    def scripted(request, variables, timeout):
        if request["checked"]:
            raise Died("float64", "killed by signal 9 (out of memory?)")
        yield {"row": {"impl": "ours", "status": "ok"}}

    monkeypatch.setattr(run, "answers", scripted)
    assert measured(["ours"])["ours"]["status"] == "ok"


def test_failures_are_tried_again_on_resume_and_what_is_absent_is_not(tmp_path):
    def row(impl, status, reason):
        return records.fields_of(CASE) | {"impl": impl, "platform": "cpu", "status": status, "reason": reason}

    rows = [row("ours", "absent", "not installed: x"), row("naive", "failed", "no answer within 5 s")]
    results = records.Results(tmp_path, {}, {}, rows)
    assert run.open_cases(Namespace(impl=["ours"], shape=None), results, [CASE]) == []
    assert run.open_cases(Namespace(impl=["ours", "naive"], shape=None), results, [CASE]) == [CASE]
    too_large = records.Results(tmp_path, {}, {}, [row("ours", "absent", TOO_LARGE)])
    assert run.open_cases(Namespace(impl=["ours"], shape=None), too_large, [CASE]) == []
    assert run.open_cases(Namespace(impl=["ours"], shape=["n=33,v=17"]), too_large, [CASE]) == [CASE]


def test_pages_are_chosen_by_the_environment_of_a_process(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=7:glibc.malloc.check=0")
    monkeypatch.setattr(kept_memory, "can_be_set", lambda: True)
    large = CASE._replace(shape=Shape(4096, 4099))
    kept, fresh = pages.with_pages([large], None, "cpu", smoke=True)
    assert (kept.pages, fresh.pages) == ("kept", "fresh")
    variables = {case.pages: run.worker_environment("cpu", case.pages, case)["GLIBC_TUNABLES"] for case in (kept, fresh)}
    assert kept_memory.settings(variables["kept"]) == kept_memory.KEEPS | {"glibc.malloc.check": "0"}
    assert variables["fresh"] == "glibc.malloc.check=0"
    assert [case.pages for case in pages.with_pages([large], None, "cpu", smoke=False)] == ["kept"]
    assert [case.pages for case in pages.with_pages([CASE], None, "cpu", smoke=True)] == ["kept"]  # too small to differ
    assert [case.pages for case in pages.with_pages([CASE], "both", "cpu", smoke=False)] == ["kept", "fresh"]
    assert [case.pages for case in pages.with_pages([CASE], "fresh", "cpu", smoke=False)] == ["fresh"]


def test_pages_that_nobody_can_choose_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(kept_memory, "can_be_set", lambda: False)  # musl, macOS
    assert pages.with_pages([CASE], None, "cpu", smoke=True) == [CASE]
    with pytest.raises(records.Bad, match="--pages kept: .* under glibc .*, this is cpu: leave it out"):
        pages.with_pages([CASE], "kept", "cpu", smoke=True)
    monkeypatch.undo()
    assert pages.with_pages([CASE], None, "tpu", smoke=True) == [CASE]
    assert "GLIBC_TUNABLES" not in pages.variables(None)


@pytest.mark.skipif(not kept_memory.can_be_set(), reason="only glibc keeps memory on demand")
def test_memory_kept_has_no_page_faults_and_fresh_pages_have_them():
    """The gradient of 2048 x 8192 float32 logits is 16384 pages."""
    found = {}
    for kind in ("kept", "fresh"):
        case = Case("cross_entropy", Shape(2048, 8192), "float32", "value_and_grad", kind)
        found[kind] = measured(["logsumexp"], case=case)["logsumexp"]
    assert found["kept"]["page_faults"] < 1000 and found["fresh"]["page_faults"] > 16000
    assert found["kept"]["system_ms"] < found["fresh"]["system_ms"]


def test_show_versions_says_whether_memory_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(kept_memory, "can_be_set", lambda: True)
    for tunables, said in ((kept_memory.with_memory("", True), "kept between calls"), ("", "given back at each call")):
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
        crossent_jax.show_versions()
        assert f"a CPU's memory is {said}" in capsys.readouterr().out


def test_a_worker_is_told_nothing_of_a_pretended_tpu():
    """Compiling for a chip that is not here pretends one to libtpu; a real one would believe it."""
    code = "import benchmarks.aot, benchmarks.run; print(benchmarks.run.worker_environment(None, None))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "JAX_ENABLE_COMPILATION_CACHE" in done.stdout and "TPU_WORKER_HOSTNAMES" not in done.stdout


def test_what_a_library_prints_does_not_mix_with_the_answers():
    code = "import os, benchmarks.worker as w; os.dup2(2, 1); os.write(1, b'noise'); print('more'); w.say(begin='x')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == '{"begin": "x"}\n' and "noise" in done.stderr


def test_a_process_that_dies_says_how():
    with pytest.raises(Died, match="KeyError") as death:
        list(answers({}, dict(os.environ), 60))
    assert death.value.begun == "start"


def test_a_device_that_is_not_there_is_named(capsys):
    assert command_line.main([*SMALL, "--device", "tpu"]) == 2
    error = capsys.readouterr().err
    assert "--device tpu cannot be used: JAX found none that works" in error and error.count("\n") == 1


def test_a_file_of_another_device_is_not_resumed(finished, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(finished[1].read_text().replace('"device": "cpu"', '"device": "other"'))
    before = path.read_bytes()
    assert command_line.main([*SMALL, "--out", str(path), "--resume"]) == 2
    assert "measured with device other" in capsys.readouterr().err and path.read_bytes() == before


@pytest.fixture
def interrupts_heeded():
    """A shell starts what it runs in the background deaf to them, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_what_is_done(finished, tmp_path, interrupts_heeded):
    """Of a run that goes on with a file of three rows."""
    path = Path(shutil.copy(finished[1], tmp_path))
    cases = ["--shape", *(f"n=33,v={v}" for v in range(17, 25)), "--mode", "forward", "value_and_grad"]
    words = [sys.executable, "-m", "benchmarks", *SMALL, *cases, "--impl", "ours"]
    process = subprocess.Popen([*words, "--out", str(path), "--resume"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and path.read_text().count('"row"') <= 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "go on with --resume" in output
    rows = records.read(path).rows[3:]
    assert 1 <= len(rows) < 15 and {row["impl"] for row in rows} == {"ours"}


def test_importing_the_command_touches_no_device():
    """The process that starts the others must leave a TPU to them."""
    code = "import benchmarks.run, benchmarks.aot, benchmarks.plots, benchmarks.targets, benchmarks.listing"
    environment = os.environ | {"JAX_PLATFORMS": "none such"}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment).returncode == 0
