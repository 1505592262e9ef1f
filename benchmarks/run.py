"""Measures cases, each in a process of its own with bounded time and memory, and keeps every result at once."""

import os
from argparse import Namespace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import records, table
from .cases import TOO_LARGE, chosen_cases, is_smoke, known, names_of, skipped
from .contenders import CONTENDERS
from .device import available_bytes
from .operations import SHARDED
from .pages import variables as page_variables
from .pages import with_pages
from .processes import Died, answers
from .records import Bad
from .shapes import Case

PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}  # as JAX_PLATFORMS has them
SMOKE_SECONDS, SECONDS = 0.4, 1.5  # of timing for each contender and case
SHARE_OF_MEMORY = 0.8


def worker_environment(device: str | None, pages: str | None, case: Case | None = None) -> dict[str, str]:
    """torch shares an accelerator's memory; a cache of compilations would make the first time of one a lie."""
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    variables |= page_variables(pages)
    if device:
        variables["JAX_PLATFORMS"] = PLATFORMS.get(device, device)
    if case and case.operation in SHARDED:  # a CPU stands for two devices; no other platform reads this
        flag = "--xla_force_host_platform_device_count=2"
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {flag}".strip()
    return variables


def measured(case: Case, names: list[str], options: Namespace, seconds: float, limit: int | None) -> list[dict]:
    """Rows of all contenders. One that kills the process is a row too, and the others are measured again without it; a death
    in the float64 check repeats the case without the check."""
    failed: dict[str, str] = {}
    request = {"case": case, "names": names, "failed": failed, "seconds": seconds, "limit": limit, "checked": True}
    while True:
        rows: dict[str, dict] = {}
        try:
            for message in answers(request, worker_environment(options.device, case.pages, case), options.timeout):
                if "row" in message:
                    rows[message["row"]["impl"]] = message["row"]
            return [rows[name] for name in names]
        except Died as death:
            if death.begun in names and death.begun not in failed:
                failed[death.begun] = death.why
            elif death.begun == "float64" and request["checked"]:
                request["checked"] = False
            else:
                why = f"{death.why}, at {death.begun}"
                return [rows.get(name) or without_figures(name, "failed", failed.get(name, why)) for name in names]


def without_figures(name: str, status: str, why: str) -> dict:
    return {"impl": name, "status": status, "reason": why}


def describe(options: Namespace, dtypes: list[str], pages: str | None = None) -> tuple[dict, list[dict]]:
    """The environment and the ceilings, from a worker; :class:`Bad` where the device is not there."""
    try:
        messages = list(answers({"describe": dtypes}, worker_environment(options.device, pages), options.timeout))
    except Died as death:
        asked = f"--device {options.device}" if options.device else "JAX's default device"
        fix = "Leave --device out, or install JAX for it" if options.device else "JAX_PLATFORMS says which it is"
        raise Bad(f"{asked} cannot be used: JAX found none that works ({death.why}). {fix}.") from None
    kind = {"pages": pages} if pages else {}
    return messages[0]["environment"], [message["ceiling"] | kind for message in messages if "ceiling" in message]


def environment_of(options: Namespace) -> dict:
    """What ``env`` prints."""
    options.timeout = 120
    return describe(options, [])[0]


def ceilings_of(options: Namespace, wanted: list[tuple[str, str | None]]) -> list[dict]:
    """Of each dtype with each kind of pages."""
    by_pages: dict[str | None, list[str]] = {}
    for dtype, pages in wanted:
        by_pages.setdefault(pages, []).append(dtype)
    return [ceiling for pages, dtypes in by_pages.items() for ceiling in describe(options, dtypes, pages)[1]]


def memory_limit(options: Namespace) -> int | None:
    """Bytes that one case may take of a CPU's memory."""
    if options.memory is not None:
        return int(options.memory * 2**30)
    available = available_bytes()
    return int(SHARE_OF_MEMORY * available) if available else None


def share_of_ceiling(row: dict, ceiling: dict | None) -> float | None:
    """The least time that the ceilings allow, over the time taken."""
    if row["status"] != "ok" or not ceiling:
        return None
    rates = ("operations_per_second", "bytes_per_second")
    return max(row[rate] / ceiling[rate] for rate in rates) / row["devices"]


def check_same(path: Path, before: dict, now: dict) -> None:
    """:class:`Bad` unless the results so far are from the same device, versions and commit."""
    for field in ("platform", "device", "devices", "runtime", "versions", "commit", "processor", "cores"):
        if before.get(field) != now[field]:
            raise Bad(
                f"{path} was measured with {field} {before.get(field)}, this is {now[field]}: ratios would mix the two; "
                "choose another --out"
            )


def check_writable(options: Namespace) -> None:
    """Before anything is measured."""
    path = options.out
    if not path:
        if options.resume:
            raise Bad("--resume needs the file to go on with: give --out")
        return
    if os.path.lexists(path) and not options.resume:
        raise Bad(f"{path} exists and is left as it is: choose another --out, or go on with it by --resume")
    if not os.access(path if os.path.lexists(path) else path.parent, os.W_OK):
        raise Bad(f"cannot write {path}: no permission, or no such folder")


def opened(options: Namespace, environment: dict, wanted: list[tuple[str, str | None]]) -> records.Results:
    """The results so far: none, or those of the file to resume. ``wanted``: dtypes and pages of the ceilings."""
    if not options.out:
        found = {(c["dtype"], c.get("pages")): c for c in ceilings_of(options, wanted)}
        return records.Results(Path(), environment, found, [])
    before = records.read(options.out) if os.path.lexists(options.out) else None
    if before:
        check_same(options.out, before.environment, environment)
    missing = [key for key in wanted if not before or key not in before.ceilings]
    lines = [records.line_of("ceiling", **ceiling) for ceiling in ceilings_of(options, missing)]
    if before:
        records.append(options.out, lines)
    else:
        records.create(options.out, [records.line_of("environment", **environment), *lines])
    return records.read(options.out)


def rows_of(case: Case, options: Namespace, results: records.Results, limit: int | None) -> list[dict]:
    names, platform = names_of(case, options.impl), results.environment["platform"]
    why = skipped(case, options, platform)
    if why:
        rows = [without_figures(name, "absent", why) for name in names]
    else:
        rows = measured(case, names, options, options.seconds or (SMOKE_SECONDS if is_smoke(options) else SECONDS), limit)
    ceiling, fields = results.ceilings.get((case.dtype, case.pages)), records.fields_of(case) | {"platform": platform}
    return [fields | row | {"share_of_ceiling": share_of_ceiling(row, ceiling)} for row in rows]


def bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def open_cases(options: Namespace, results: records.Results, cases: list[Case]) -> list[Case]:
    """Those of which a wanted contender has no row yet, or failed, or was too large for a suite and is now asked for."""
    retried = ("failed", TOO_LARGE) if options.shape else ("failed",)
    done = {records.key_of(row) for row in results.rows if not {row["status"], row.get("reason")} & set(retried)}
    return [case for case in cases if any((case, name) not in done for name in names_of(case, options.impl))]


def main(options: Namespace) -> int:
    console = table.console()
    cases = chosen_cases(options)
    known("implementation", options.impl, sorted({name for case in cases for name in CONTENDERS[case.operation]}))
    cases = [case for case in cases if names_of(case, options.impl)]
    check_writable(options)
    environment = describe(options, [])[0]
    options.device = options.device or environment["platform"]  # no later process may fall back to another
    cases = with_pages(cases, options.pages, environment["platform"], is_smoke(options))
    results = opened(options, environment, list(dict.fromkeys((case.dtype, case.pages) for case in cases)))
    todo, broken = open_cases(options, results, cases), 0
    limit = memory_limit(options) if results.environment["platform"] == "cpu" else None
    table.heading(console, results)
    try:
        with bar(console) as progress:
            task = progress.add_task("", total=len(cases), completed=len(cases) - len(todo))
            for case in todo:
                progress.update(task, description=str(case))
                rows = rows_of(case, options, results, limit)
                if options.out:
                    records.append(options.out, [records.line_of("row", **row) for row in rows])
                table.show(progress.console, case, rows)
                broken += any(row["status"] == "failed" or table.is_wrong(row) for row in rows if row["impl"] == "ours")
                progress.advance(task)
    except KeyboardInterrupt:
        kept = f"{options.out} has every finished case: go on with --resume" if options.out else "nothing kept without --out"
        console.print(f"stopped; {kept}", markup=False)
        return 130
    if broken:
        console.print(f"ours failed or was wrong in {broken} cases")
    return 1 if broken else 0
