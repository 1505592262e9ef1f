"""Two files of results side by side: runs of one device, or two devices.

A contender of ours is slower if its median is beyond the threshold and the spreads (p10 to p90) do not overlap. Times are
the device's where both files have them, else wall. ``--ratios`` is for CI, where machines differ: how many times longer the
naive formula takes than ours in the same run, and figures that are the compiler's (memory, products, cycles), which must be
equal where the versions are. A loss of ours that was measured before, and now fails or is wrong, is worse in any case.
"""

from argparse import Namespace
from typing import NamedTuple

from rich.table import Table

from . import table
from .records import Bad, Results, case_of, key_of, read
from .table import is_wrong
from .timing import geometric_mean

EXACT = ("temp_bytes", "dots", "model_cycles", "profile_cycles", "memory_cycles")
BASELINES = ("naive", "optax-integer")  # the first that a case has


class Line(NamedTuple):
    """One figure in both files; ``change`` above 1 is worse."""

    name: str
    before: float
    after: float
    change: float
    worse: bool


def is_ours(implementation: str) -> bool:
    return implementation.split("-")[0] == "ours"


def pairs(before: Results, after: Results, common: bool = False) -> list[tuple[dict, dict]]:
    """Rows with figures in both; :class:`Bad` if the files are not of the same cases. ``common``: some are enough."""
    first, second = ({case_of(row) for row in results.rows} for results in (before, after))
    if not first & second:
        raise Bad(f"{before.path} and {after.path} share no case: measure the same suite twice")
    if first != second and not common:
        path, only = (before.path, first - second) if first - second else (after.path, second - first)
        shown = "; ".join(sorted(map(str, only))[:3])
        raise Bad(
            f"the files are not of the same cases: {len(only)} only in {path} ({shown}): measure the same suite twice, or "
            "compare what they share with --common"
        )
    found = {keyed(row): row for row in after.rows if row["status"] == "ok"}
    return [(row, found[keyed(row)]) for row in before.rows if row["status"] == "ok" and keyed(row) in found]


def in_one_way(before: Results, after: Results) -> tuple[Results, Results]:
    """Where only one file says which pages it was measured with (the other is of another device or C library, or older), its
    first kind, memory kept if there is, is held against the other file."""
    if set(before.by_pages()) & set(after.by_pages()):
        return before, after
    return without_pages(before), without_pages(after)


def without_pages(results: Results) -> Results:
    first = next(iter(results.by_pages().values()), results)
    return first._replace(rows=[{key: value for key, value in row.items() if key != "pages"} for row in first.rows])


def broken_lines(before: Results, after: Results) -> list[str]:
    """Ours that were right before, and now fail or are wrong; what is absent for another device is not broken."""
    now = {keyed(row): row for row in after.rows}
    were_right = [row for row in before.rows if is_ours(row["impl"]) and row["status"] == "ok" and not is_wrong(row)]
    found = []
    for row in (now[keyed(row)] for row in were_right if keyed(row) in now):
        if row["status"] == "failed" or is_wrong(row):
            found.append(f"{label(row)}: {row.get('reason') or 'wrong, loss error ' + str(row.get('loss_error'))}")
    return found


def keyed(row: dict) -> tuple:
    """Ahead of time, a file holds several chips."""
    return (*key_of(row), row["platform"] if row["platform"].startswith("aot") else "")


def label(row: dict) -> str:
    chip = f" {row['platform']}" if row["platform"].startswith("aot") else ""
    return f"{case_of(row)} {row['impl']}{chip}"


def time_line(before: dict, after: dict, threshold: float) -> Line | None:
    which = "device_ms" if before.get("device_ms") and after.get("device_ms") else "wall_ms"
    a, b = before.get(which), after.get(which)
    if not a or not b:
        return None
    change = b["median"] / a["median"]
    worse = is_ours(before["impl"]) and change > 1 + threshold and b["p10"] > a["p90"]
    return Line(label(before), a["median"], b["median"], change, worse)


def ratio_lines(rows: list[tuple[dict, dict]], threshold: float) -> list[Line]:
    """How many times longer the baseline of each case takes than ours."""
    found = {}
    for before, after in rows:
        rank = BASELINES.index(before["impl"]) if before["impl"] in BASELINES else None
        if rank is not None and before.get("to_ours") and after.get("to_ours"):
            found.setdefault(case_of(before), {})[rank] = (before, after)
    lines = []
    for choices in found.values():
        before, after = choices[min(choices)]
        change = before["to_ours"] / after["to_ours"]
        name = f"{case_of(before)}: {before['impl']} / ours"
        lines.append(Line(name, before["to_ours"], after["to_ours"], change, change > 1 + threshold))
    return lines


def exact_lines(rows: list[tuple[dict, dict]]) -> list[Line]:
    """Figures of the compiler that changed; growth of ours is worse."""
    lines = []
    for before, after in rows:
        for figure in EXACT if is_ours(before["impl"]) else ():
            a, b = before.get(figure), after.get(figure)
            if a is not None and b is not None and a != b:
                lines.append(Line(f"{label(before)} {figure}", a, b, b / a if a else float("inf"), b > a))
    return lines


def compiler(results: Results) -> list:
    """What its figures depend on: versions, and what it compiles for."""
    about = results.environment
    target = [about["processor"], about["cores"]] if about["platform"] == "cpu" else [about["device"]]
    target = [] if about["platform"] == "aot" else target  # each row names its chip
    return [about["platform"], *(about["versions"].get(package) for package in ("jax", "jaxlib", "libtpu")), *target]


def show(title: str, lines: list[Line]) -> None:
    drawn = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("", "before", "after", "change"):
        drawn.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for line in sorted(lines, key=lambda line: -line.change):
        style = "bold red" if line.worse else None
        drawn.add_row(line.name, f"{line.before:.4g}", f"{line.after:.4g}", f"{line.change:.3f}", style=style)
    console = table.console()
    console.print(drawn)
    changes = [line.change for line in lines]
    if changes and min(changes) > 0 and max(changes) < float("inf"):
        console.print(f"worst {max(changes):.3f}, best {min(changes):.3f}, geometric mean {geometric_mean(changes):.3f}\n")


def compared(before: Results, after: Results, options: Namespace) -> list[Line]:
    """Shown, and returned."""
    rows = pairs(before, after, options.common)
    if options.ratios:
        lines = ratio_lines(rows, options.threshold)
        title = "how many times longer the formula takes, change above 1: worse"
    else:
        lines = [line for row in rows if (line := time_line(*row, options.threshold))]
        title = "milliseconds"
    if lines:
        show(title, lines)
    if not options.ratios and lines:
        return lines
    if compiler(before) != compiler(after):
        print("figures of the compiler not compared: other versions, or another target")
        return lines
    exact = exact_lines(rows)
    if exact:
        show("figures of the compiler that differ", exact)
    else:
        print(f"figures of the compiler: equal in {len(rows)} rows")
    return lines + exact


def main(options: Namespace) -> int:
    before, after = in_one_way(read(options.before), read(options.after))
    for when, results in (("before", before), ("after", after)):
        print(f"{when}: {results.device}, jax {results.environment['versions'].get('jax')}, {results.environment['commit']}")
    lines, broken = compared(before, after, options), broken_lines(before, after)
    for line in broken:
        print(f"broken: {line}")
    if not lines and not broken and (compiler(before) != compiler(after) or not pairs(before, after, options.common)):
        raise Bad("nothing was compared: no row of one file has a figure that can be held against one of the other")
    worse = [line for line in lines if line.worse]
    print(f"{len(worse)} worse of {len(lines)} compared, {len(broken)} broken, threshold {options.threshold:.0%}")
    return 1 if worse or broken else 0
