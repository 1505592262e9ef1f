"""What the compilers of chips that are not here say: cycles, bytes and memory, nothing runs.

Needs jax[tpu]; for h100 JAX's CUDA plugin. Cycles are estimates that were never held against a chip: they rank programs.
"model": the cost that the compiler leaves in the program; "profile" (``--profile``): of its static profiler, which takes
minutes and gives up on some programs; "memory": the bytes of all operations over the chip's documented bandwidth, in cycles.
"by operation": of each operation the profile (the model where there is none) or its memory, whichever is more, summed.
"""

import os
import tempfile
from argparse import Namespace
from pathlib import Path

from rich.table import Table

from . import records, table
from .cases import changed, known, names_of, shapes_of
from .chips import CHIPS, GPUS, RATES, TPU_TOPOLOGIES, missing_compiler
from .contenders import CONTENDERS
from .contenders.logits import IMPLEMENTATIONS
from .environment import machine
from .hlo import operations_of, profile_of
from .memory import CROSS_ENTROPY, NUMBERS
from .operations import OPERATIONS, SHARDED
from .processes import Died, answers
from .records import Bad
from .run import bar, without_figures
from .shapes import AOT, AOT_IMPLEMENTATIONS, SUITES, Case

KEPT_OPERATIONS = 12
DEFAULT = (*TPU_TOPOLOGIES, "h100")
PROFILED = ("v5e", "v5p", "v6e")  # whose compilers have a static profiler


def chosen_cases(options: Namespace) -> list[Case]:
    """The committed ones, or those of the operations and shapes asked for."""
    operations, shapes = known("operation", options.op, OPERATIONS), shapes_of(options.shape)
    pool = AOT if not operations and not shapes else [*AOT, *(group for groups in SUITES.values() for group in groups)]
    default = ["linear_cross_entropy"] if shapes and not operations else operations
    refused = [name for name in operations or () if name in SHARDED]
    if refused or "eager" in (options.mode or ()):
        raise Bad(f"aot compiles for one chip, whole programs: not {', '.join([*refused, *(options.mode or ())])}")
    groups = [changed(group, shapes, options) for group in pool if not default or group.operation in default]
    cases = dict.fromkeys(case for group in groups for case in group.cases() if case.operation not in SHARDED)
    found = [case for case in cases if case.mode != "eager"]
    if not found:
        raise Bad("no case: see `list` for operations")
    if options.options and {case.operation for case in found} != {"cross_entropy"}:
        raise Bad("options are those of cross_entropy: give --op cross_entropy")
    return found


def chosen_options(options: Namespace) -> str | None:
    """A line of the table of ``memory``, by its name behind "cross_entropy, "."""
    names = [name.partition(", ")[2] for name in CROSS_ENTROPY | NUMBERS]
    known("options", [options.options] if options.options else None, names)
    return options.options


def names_to_compile(case: Case, options: Namespace) -> list[str]:
    """Of contenders of JAX; with options, of the library's own."""
    if options.options:
        return [name for name in options.impl or IMPLEMENTATIONS if name in IMPLEMENTATIONS]
    names = names_of(case, options.impl or list(AOT_IMPLEMENTATIONS))
    return [name for name in names if CONTENDERS[case.operation][name].library == "jax"]


def compiled(case: Case, name: str, chip: str, folder: Path, flags: str, options: Namespace) -> dict:
    """What the worker says; :class:`Died` if the compiler kills it."""
    variables = os.environ | {"LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"}
    text = str(folder / "program.txt")
    request = {"case": case, "name": name, "chip": chip, "options": options.options, "text": text}
    (message,) = answers(request, variables, options.timeout, module="benchmarks.aot_worker")
    return message


def row_of(case: Case, name: str, chip: str, options: Namespace) -> dict:
    """Of one program: compiled once more for the profiler, which takes minutes and may abort the process."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            message = compiled(case, name, chip, folder, "", options)
        except Died as death:
            return without_figures(name, "failed", death.why)
        if "refused" in message:
            return without_figures(name, "failed", message["refused"])
        row = {"impl": name, "status": "ok", "ranked": CONTENDERS[case.operation][name].ranked, **message}
        if chip in RATES or chip in GPUS:
            try:
                row |= cycles(case, name, chip, folder, options)
            except (ValueError, LookupError, TypeError) as error:  # a program that is not written as the reader knows it
                row |= {"profiler": f"cycles unknown: {error}"}
    return row


def cycles(case: Case, name: str, chip: str, folder: Path, options: Namespace) -> dict:
    text, profiler = (folder / "program.txt").read_text(), None
    if options.profile and chip in PROFILED:
        try:
            compiled(case, name, chip, folder, f"--xla_jf_dump_static_llo_profile_to={folder}", options)
            profiler = "complete"
        except Died as death:
            profiler = death.why
    operations = operations_of(text, profile_of(folder))
    traffic = {"traffic_bytes": sum(o["bytes"] for o in operations), "dearest_operations": operations[:KEPT_OPERATIONS]}
    if chip in GPUS:  # whose compiler leaves no cycles in the program
        return traffic
    bandwidth, clock = RATES[chip]
    a_byte = clock / bandwidth

    def dearest(operation: dict) -> float:
        own = operation["model"] if operation["profile"] is None else operation["profile"]
        return max(own, operation["bytes"] * a_byte)

    by_profile_alone = 'custom_call_target="tpu_custom_call"' in text  # the program's text has no cycles of such a kernel
    known = profiler == "complete" or not by_profile_alone
    return {
        "model_cycles": None if by_profile_alone else sum(o["model"] for o in operations),
        "profile_cycles": sum(o["profile"] or 0 for o in operations) if profiler == "complete" else None,
        "memory_cycles": int(sum(o["bytes"] for o in operations) * a_byte),
        "cycles_by_operation": int(sum(map(dearest, operations))) if known else None,
        "profiler": profiler,
        **traffic,
    }


COLUMNS = (
    ("model Mcycles", "model_cycles", 1e-6),
    ("profile", "profile_cycles", 1e-6),
    ("memory", "memory_cycles", 1e-6),
    ("by operation", "cycles_by_operation", 1e-6),
    ("traffic MiB", "traffic_bytes", 2**-20),
    ("temp MiB", "temp_bytes", 2**-20),
    ("products", "dots", 1),
)
FORMATS = {1e-6: ".4g", 2**-20: ",.1f", 1: "d"}


def show(console, title: str, rows: list[dict]) -> None:
    drawn = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for title in ("", *(title for title, _, _ in COLUMNS)):
        drawn.add_column(title, justify="right" if title else "left")
    for row in rows:
        if row["status"] == "ok":
            drawn.add_row(row["impl"], *(table.number(row.get(key), FORMATS[scale], scale) for _, key, scale in COLUMNS))
    console.print(drawn)
    for row in rows:
        why = row.get("reason") or (row["profiler"] if row.get("profiler") not in (None, "complete") else None)
        if why:
            console.print(f"  {row['impl']}: {why}", style="dim", markup=False)
    console.print()


def chosen_chips(options: Namespace) -> list[str]:
    """Those asked for, or all whose compilers are installed."""
    chips = known("chip", options.chip, CHIPS) or [chip for chip in DEFAULT if not missing_compiler(chip)]
    advice = "pip install '.[tpu]' for TPUs, JAX's CUDA plugin for GPUs"
    for chip in chips:
        if package := missing_compiler(chip):
            raise Bad(f"compiling for {chip} needs the package {package}: {advice}")
    if not chips:
        raise Bad(f"no compiler of another chip is installed: {advice}")
    return chips


def main(options: Namespace) -> int:
    console, cases, with_options = table.console(), chosen_cases(options), chosen_options(options)
    known("implementation", options.impl, sorted({name for case in cases for name in CONTENDERS[case.operation]}))
    chips = chosen_chips(options)
    if options.out:
        environment = machine() | {"platform": "aot", "device": ", ".join(chips)}
        records.create(options.out, [records.line_of("environment", **environment)])
    with bar(console) as progress:
        task = progress.add_task("", total=len(cases) * len(chips))
        for chip in chips:
            for case in cases:
                progress.update(task, description=f"{chip}: {case}")
                rows = [row_of(case, name, chip, options) for name in names_to_compile(case, options)]
                operation = f"{case.operation}, {with_options}" if with_options else case.operation
                called = case._replace(operation=operation)
                fields = records.fields_of(called) | {"platform": f"aot {chip}"}
                if options.out:
                    records.append(options.out, [records.line_of("row", **fields, **row) for row in rows])
                show(progress.console, f"{chip}: {called}", rows)
                progress.advance(task)
    return 0
