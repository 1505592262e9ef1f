"""Results on a terminal: one table per case, the best of the ranked contenders in bold, wrong losses in red."""

from rich.console import Console
from rich.table import Table

from .records import Results
from .shapes import Case

WIDTH = 150  # where the output is not a terminal
WRONG, WRONG_GRADIENT = 1e-3, 0.1  # nats of the mean loss, and of the largest entry: shown in red, never in bold


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH)


def number(value: float | None, form: str = ".3g", scale: float = 1.0) -> str:
    return "-" if value is None else format(value * scale, form)


def time_of(row: dict, which: str = "wall_ms", part: str = "median") -> float | None:
    return (row.get(which) or {}).get(part)


# heading, the cell's text, and what the best has least of (None: no best)
COLUMNS = (
    ("ms", lambda r: number(time_of(r)), time_of),
    ("p10", lambda r: number(time_of(r, part="p10")), None),
    ("p90", lambda r: number(time_of(r, part="p90")), None),
    ("/ ours", lambda r: number(r.get("to_ours"), ".2f"), None),
    ("device ms", lambda r: number(time_of(r, "device_ms")), lambda r: time_of(r, "device_ms")),
    ("compile", lambda r: number(r["compile_ms"], ".0f"), None),
    ("Mtok/s", lambda r: number(r["tokens_per_second"], ".3g", 1e-6), None),
    ("TFLOP/s", lambda r: number(r["operations_per_second"] or None, ".3g", 1e-12), None),
    ("GB/s", lambda r: number(r["bytes_per_second"], ".3g", 1e-9), None),
    ("ceiling", lambda r: number(r["share_of_ceiling"], ".0%"), None),
    ("temp MiB", lambda r: number(r["temp_bytes"], ",.1f", 2**-20), lambda r: r["temp_bytes"]),
    ("faults", lambda r: number(r.get("page_faults"), ",.0f"), None),
    ("system ms", lambda r: number(r.get("system_ms")), None),
    ("peak MiB", lambda r: number(r["peak_bytes"], ",.1f", 2**-20), None),
    ("loss err", lambda r: number(r.get("loss_error"), ".0e"), lambda r: r.get("loss_error")),
    ("grad err", lambda r: number(r.get("gradient_error"), ".0e"), lambda r: r.get("gradient_error")),
)


def is_wrong(row: dict) -> bool:
    """Too far from float64 to be compared by its speed; a NaN is."""
    errors = ((row.get("loss_error"), WRONG), (row.get("gradient_error"), WRONG_GRADIENT))
    return any(error is not None and not error <= bound for error, bound in errors)


def best(rows: list[dict], measure) -> float | None:
    right = [row for row in rows if row.get("ranked") and not is_wrong(row)]
    return min((value for row in right if measure and (value := measure(row)) is not None), default=None)


def heading(console: Console, results: Results) -> None:
    about = results.environment
    versions = " ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(f"{about['device']} ({about['platform']}, {about['processor']}, {about['cores']} cores), {versions}")
    for (dtype, pages), ceiling in results.ceilings.items():
        kind = f"{dtype}, {pages} pages" if pages else dtype
        console.print(
            f"ceilings in {kind}: copy {number(ceiling['bytes_per_second'], '.3g', 1e-9)} GB/s, "
            f"matrix product {number(ceiling['operations_per_second'], '.3g', 1e-12)} TFLOP/s"
        )


def show(console: Console, case: Case, rows: list[dict]) -> None:
    measured = sorted((row for row in rows if row["status"] == "ok"), key=time_of)
    columns = [column for column in COLUMNS if any(column[1](row) != "-" for row in measured)]
    drawn = Table(title=str(case), title_justify="left", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column("", no_wrap=True)
    for title, _, _ in columns:
        drawn.add_column(title, justify="right", no_wrap=True)
    leaders = [best(measured, measure) for _, _, measure in columns]
    for row in measured:
        cells = []
        for (_, cell, measure), leader in zip(columns, leaders, strict=True):
            leads = measure and leader is not None and row.get("ranked") and not is_wrong(row) and measure(row) == leader
            cells.append(f"[bold]{cell(row)}[/bold]" if leads else cell(row))
        drawn.add_row(row["impl"], *cells, style="red" if is_wrong(row) else None)
    console.print(drawn if measured else str(case))
    for why in dict.fromkeys(row["no_device_time"] for row in measured if row.get("no_device_time")):
        console.print(f"  no device time: {why}", style="dim", markup=False)
    for why in dict.fromkeys(row["reason"] for row in rows if row["status"] != "ok"):
        names = ", ".join(row["impl"] for row in rows if row.get("reason") == why)
        console.print(f"  {names}: {why}", style="dim", markup=False)
    console.print()
