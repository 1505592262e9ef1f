"""Measures cases, each in a process of its own with bounded time and memory, and keeps every result at once."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import records, table
from .contenders import CONTENDERS
from .operations import OPERATIONS, SHARDED
from .records import Bad
from .shapes import DTYPES, LARGE, SUITES, Case, Group, named

PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}  # as JAX_PLATFORMS has them
SMOKE_SECONDS, SECONDS = 0.4, 1.5  # of timing for each contender and case
SHARE_OF_MEMORY = 0.8


# --- which cases -----------------------------------------------------------------------------------


def known(what: str, given: list[str] | None, names) -> list[str] | None:
    unknown = [name for name in given or () if name not in names]
    if unknown:
        raise Bad(f"unknown {what} {', '.join(unknown)}: expected one of {', '.join(names)}")
    return given


def shapes_of(texts: list[str] | None) -> list | None:
    try:
        return [named(text) for text in texts] if texts else None
    except ValueError as error:
        raise Bad(str(error)) from None


def fitting(operation: str, shape):
    """The shape as the operation takes it."""
    if not OPERATIONS[operation].has_features:
        return shape._replace(d=0)
    if not shape.d:
        raise Bad(f"{operation} needs features: got {shape}, give n=,d=,v=")
    if operation == "info_nce" and shape.n != shape.v:
        raise Bad(f"info_nce has as many classes as rows: got {shape}, give v={shape.n}")
    return shape


def reshaped(group: Group, shapes: list | None) -> Group:
    return group._replace(shapes=tuple(fitting(group.operation, shape) for shape in shapes)) if shapes else group


def chosen_cases(options: Namespace) -> list[Case]:
    """Those of the suites, filtered; without a suite, of any that has the operation; shapes replace a suite's."""
    suites, operations = known("suite", options.suite, SUITES), known("operation", options.op, OPERATIONS)
    shapes = shapes_of(options.shape)
    if shapes and not suites and not operations:
        operations = list(dict.fromkeys("linear_cross_entropy" if shape.d else "cross_entropy" for shape in shapes))
    suites = ["smoke"] if is_smoke(options) else suites or list(SUITES)
    groups = [group for suite in suites for group in SUITES[suite] if not operations or group.operation in operations]
    cases = list(dict.fromkeys(case for group in groups for case in reshaped(group, shapes).cases()))
    cases = [c for c in cases if c.dtype in (options.dtype or DTYPES) and c.mode in (options.mode or (c.mode,))]
    if not cases:
        raise Bad(f"no case: the suites {', '.join(suites)} have nothing with these --op, --dtype and --mode (see `list`)")
    return cases


def names_of(case: Case, wanted: list[str] | None) -> list[str]:
    return [name for name in CONTENDERS[case.operation] if not wanted or name in wanted]


# --- one process -----------------------------------------------------------------------------------


def worker_environment(device: str | None, case: Case | None) -> dict[str, str]:
    variables = dict(os.environ)
    if device:
        variables["JAX_PLATFORMS"] = PLATFORMS[device]
    if case and case.operation in SHARDED:  # a CPU stands for two devices; no other platform reads this
        flag = "--xla_force_host_platform_device_count=2"
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {flag}".strip()
    return variables


class Died(Exception):
    """A worker ended without an answer. ``begun``: what it last said it would do."""

    def __init__(self, begun: str, why: str):
        super().__init__(why)
        self.begun, self.why = begun, why


def last_words(process: subprocess.Popen, errors: IO[str], timed_out: bool, timeout: float) -> str:
    if timed_out:
        return f"no answer within {timeout:.0f} s"
    if process.returncode == -9:
        return "killed by signal 9 (out of memory?)"
    errors.seek(0)
    return telling([line.strip() for line in errors.read().splitlines() if line.strip()], process.returncode)


def telling(lines: list[str], status: int) -> str:
    """The line of a process's errors that says what went wrong."""
    said = [line for line in lines if re.search(r"profiling of|Check failed|RESOURCE_EXHAUSTED|Error\b|bad_alloc", line)]
    return (said[0] if status < 0 and said else lines[-1] if lines else f"exit status {status}")[:300]


def answers(
    request: dict, variables: dict[str, str], timeout: float, module: str = "benchmarks.worker"
) -> Iterator[dict[str, Any]]:
    """What a worker says, line by line; raises :class:`Died` if it does not end well."""
    command = [sys.executable, "-m", module, json.dumps(request)]
    folder, begun, expired = Path(__file__).parent.parent, "start", threading.Event()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables, cwd=folder, start_new_session=True
        )
        timer = threading.Timer(timeout, lambda: (expired.set(), process.kill()))
        timer.start()
        try:
            for line in process.stdout or ():
                message = json.loads(line)
                begun = message.get("begin", begun)
                yield message
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        if process.returncode:
            raise Died(begun, last_words(process, errors, expired.is_set(), timeout))


def measured(case: Case, names: list[str], options: Namespace, seconds: float, limit: int | None) -> list[dict]:
    """Rows of all contenders. One that kills the process is a row too, and the others are measured again without it."""
    failed: dict[str, str] = {}
    while True:
        request = {"case": case, "names": names, "failed": failed, "seconds": seconds, "limit": limit}
        try:
            messages = list(answers(request, worker_environment(options.device, case), options.timeout))
            return [message["row"] for message in messages if "row" in message]
        except Died as death:
            if death.begun in names and death.begun not in failed:
                failed[death.begun] = death.why
                continue
            why = f"{death.why}, at {death.begun}"
            return [without_figures(name, "failed", failed.get(name, why)) for name in names]


def without_figures(name: str, status: str, why: str, platform: str = "") -> dict:
    return {"impl": name, "platform": platform, "status": status, "reason": why}


# --- the run ---------------------------------------------------------------------------------------


def describe(options: Namespace, dtypes: list[str]) -> tuple[dict, list[dict]]:
    """The environment and the ceilings, from a worker; :class:`Bad` where the device is not there."""
    try:
        messages = list(answers({"describe": dtypes}, worker_environment(options.device, None), options.timeout))
    except Died as death:
        asked = f"--device {options.device}" if options.device else "JAX's default device"
        raise Bad(f"{asked} cannot be used: {death.why}") from None
    return messages[0]["environment"], [message["ceiling"] for message in messages if "ceiling" in message]


def environment_of(options: Namespace) -> dict:
    """What ``env`` prints."""
    options.timeout = 120
    return describe(options, [])[0]


def memory_limit(options: Namespace) -> int | None:
    """Bytes that one case may take of a CPU's memory."""
    from .device import available_bytes

    if options.memory is not None:
        return int(options.memory * 2**30)
    available = available_bytes()
    return int(SHARE_OF_MEMORY * available) if available else None


def share_of_ceiling(row: dict, ceiling: dict | None) -> float | None:
    """The least time that the ceilings allow, over the time taken."""
    if row["status"] != "ok" or not ceiling:
        return None
    rates = ("operations_per_second", "bytes_per_second")
    return max(row[rate] / ceiling[rate] for rate in rates)


def resumed(path: Path, environment: dict) -> records.Results:
    """The results so far, if they are from the same device, versions and commit."""
    found = records.read(path)
    for field in ("platform", "device", "devices", "versions", "commit", "cores"):
        if found.environment.get(field) != environment[field]:
            raise Bad(
                f"{path} was measured with {field} {found.environment.get(field)}, this is {environment[field]}: "
                "ratios would mix the two; choose another --out"
            )
    return found


def opened(options: Namespace, dtypes: list[str]) -> records.Results:
    """The file to go on with: new, or resumed."""
    if options.out and options.out.exists() and not options.resume:
        raise Bad(f"{options.out} exists and is left as it is: choose another --out, or go on with it by --resume")
    if options.out and not os.access(options.out.parent if not options.out.exists() else options.out, os.W_OK):
        raise Bad(f"cannot write {options.out}: no permission, or no such folder")
    environment, ceilings = describe(options, dtypes)
    if options.out and options.out.exists():
        return resumed(options.out, environment)
    lines = [records.line_of("environment", **environment), *(records.line_of("ceiling", **c) for c in ceilings)]
    if options.out:
        records.create(options.out, lines)
    return records.Results(options.out, environment, {c["dtype"]: c for c in ceilings}, [])


def skipped(case: Case, options: Namespace, platform: str) -> str | None:
    """Why a suite's case is not for this platform."""
    if platform == "cpu" and case.shape in LARGE and not options.shape:
        return "minutes a call on a CPU: ask for it with --shape"
    return None


def is_smoke(options: Namespace) -> bool:
    return options.suite == ["smoke"] or not (options.suite or options.op or options.shape)


def rows_of(case: Case, options: Namespace, results: records.Results, limit: int | None) -> list[dict]:
    names, platform = names_of(case, options.impl), results.environment["platform"]
    why = skipped(case, options, platform)
    if why:
        rows = [without_figures(name, "absent", why, platform) for name in names]
    else:
        rows = measured(case, names, options, options.seconds or (SMOKE_SECONDS if is_smoke(options) else SECONDS), limit)
    ceiling = results.ceilings.get(case.dtype)
    return [records.fields_of(case) | row | {"share_of_ceiling": share_of_ceiling(row, ceiling)} for row in rows]


def bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def main(options: Namespace) -> int:
    console = table.console()
    cases = chosen_cases(options)
    implementations = {name for case in cases for name in CONTENDERS[case.operation]}
    known("implementation", options.impl, sorted(implementations))
    cases = [case for case in cases if names_of(case, options.impl)]
    results = opened(options, list(dict.fromkeys(case.dtype for case in cases)))
    done = {records.case_of(row) for row in results.rows}
    limit = memory_limit(options) if results.environment["platform"] == "cpu" else None
    table.heading(console, results)
    with bar(console) as progress:
        task = progress.add_task("", total=len(cases), completed=len(done & set(cases)))
        for case in cases:
            if case in done:
                continue
            progress.update(task, description=str(case))
            try:
                rows = rows_of(case, options, results, limit)
            except KeyboardInterrupt:
                return stopped(console, options.out)
            if options.out:
                records.append(options.out, [records.line_of("row", **row) for row in rows])
            table.show(progress.console, case, rows)
            progress.advance(task)
    return 0


def stopped(console: Console, path: Path | None) -> int:
    kept = f"every finished case is in {path}: go on with --resume" if path else "nothing was kept: give --out to keep cases"
    console.print(f"stopped; {kept}")
    return 130
