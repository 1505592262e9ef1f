"""Pictures of results: each is drawn if the files hold what it needs, and says so if not."""

import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .records import Bad, Results, case_of, read
from .table import time_of

OURS = "#c1272d"
PALETTE = ("#1f5fa8", "#5b9f3b", "#8d5bb5", "#b98521", "#2a9d9d", "#7f7f7f", "#d16ba5", "#4d4d9a", "#9b6a4a", "#444444")
LEAST_POINTS = 3  # of a line


def color(name: str, names: list[str]) -> str:
    return OURS if name == "ours" else PALETTE[[n for n in names if n != "ours"].index(name) % len(PALETTE)]


def figures_of(results: Results) -> list[dict]:
    """Rows that were timed."""
    return [row for row in results.rows if row["status"] == "ok" and row.get("wall_ms")]


def legend(figure: Figure, panels) -> None:
    """One entry for each name in any of the panels."""
    found = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="outside right upper", fontsize=8, frameon=False)


def family(rows: list[dict], axis: str) -> list[dict]:
    """The rows in which only ``axis`` varies: of all such families, the one with the most values of it."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        fixed = tuple(row[key] for key in ("op", "dtype", "mode", "n", "d", "v") if key != axis)
        groups.setdefault(fixed, []).append(row)
    return max(groups.values(), key=lambda group: (len({row[axis] for row in group}), len(group)), default=[])


def plain(axis) -> None:
    """Numbers a person reads, at 1, 2 and 5 of each decade of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_lines(axes, rows: list[dict], axis: str, value: Callable[[dict], float | None], names: list[str]) -> None:
    for name in names:
        points = sorted((row[axis], y) for row in rows if row["impl"] == name and (y := value(row)))
        if len(points) >= LEAST_POINTS:
            xs, ys = zip(*points, strict=True)
            axes.plot(
                xs, ys, "o-", color=color(name, names), linewidth=2.5 if name == "ours" else 1.2, markersize=4, label=name
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain(axes.yaxis)
    axes.grid(alpha=0.3, which="major")


def over(axis: str, label: str):
    """Time and temporary memory against one size."""

    def draw(files: list[Results]) -> Figure | str:
        rows = family([row for row in figures_of(files[0]) if row.get("ranked")], axis)
        if len({row[axis] for row in rows}) < LEAST_POINTS:
            return f"fewer than {LEAST_POINTS} cases in which only {axis} varies"
        names = list(dict.fromkeys(row["impl"] for row in rows))
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
        draw_lines(left, rows, axis, time_of, names)
        draw_lines(right, rows, axis, lambda row: row["temp_bytes"] and row["temp_bytes"] / 2**20, names)
        left.set(xlabel=label, ylabel="milliseconds", title="time")
        right.set(xlabel=label, ylabel="MiB", title="temporary memory, as compiled")
        case = case_of(rows[0])
        fixed = ", ".join(f"{key}={rows[0][key]}" for key in ("n", "d", "v") if key != axis and rows[0][key])
        figure.suptitle(f"{case.operation}, {fixed}, {case.dtype}, {case.mode} on {files[0].device}", fontsize=11)
        legend(figure, [left, right])
        return figure

    return draw


def roofline(files: list[Results]) -> Figure | str:
    """Operations a second against operations a byte, under the ceilings of the same run."""
    rows = [row for row in figures_of(files[0]) if row["operations"] and row.get("ranked")]
    ceilings = {dtype: ceiling for dtype, ceiling in files[0].ceilings.items() if any(row["dtype"] == dtype for row in rows)}
    if not ceilings:
        return "no case with matrix products, or no ceilings"
    names = list(dict.fromkeys(row["impl"] for row in rows))
    figure, panels = plt.subplots(
        1, len(ceilings), figsize=(5.4 * len(ceilings) + 1, 4.6), squeeze=False, layout="constrained"
    )
    for axes, (dtype, ceiling) in zip(panels[0], ceilings.items(), strict=True):
        mine = [row for row in rows if row["dtype"] == dtype]
        intensities = [row["operations"] / row["least_bytes"] for row in mine]
        line = [min(intensities) / 2, max(intensities) * 2]
        knee = ceiling["operations_per_second"] / ceiling["bytes_per_second"]
        xs = sorted({*line, *([knee] if line[0] < knee < line[1] else [])})
        roof = [min(x * ceiling["bytes_per_second"], ceiling["operations_per_second"]) / 1e9 for x in xs]
        axes.plot(xs, roof, color="black", linewidth=1.2)
        axes.text(xs[-1], roof[-1] * 0.97, "measured ceiling ", ha="right", va="top", fontsize=8)
        for name in [n for n in names if n != "ours"] + ["ours"]:
            points = [
                (r["operations"] / r["least_bytes"], r["operations_per_second"] / 1e9) for r in mine if r["impl"] == name
            ]
            if points:
                axes.scatter(
                    *zip(*points, strict=True), s=26 if name == "ours" else 13, color=color(name, names), label=name
                )
        axes.set(xscale="log", yscale="log", xlabel="operations a byte, both at the least", ylabel="GFLOP/s", title=dtype)
        plain(axes.xaxis), plain(axes.yaxis)
        axes.grid(alpha=0.3)
    figure.suptitle(f"products of the losses on\n{files[0].device}", fontsize=11)
    legend(figure, panels.flat)
    return figure


def errors(files: list[Results]) -> Figure | str:
    """Error of the loss against the number of classes, by dtype."""
    rows = [row for row in figures_of(files[0]) if row["op"] == "cross_entropy" and row.get("loss_error") is not None]
    rows = [row for row in rows if row["mode"] == "forward"]
    dtypes = [
        d for d in ("float32", "bfloat16", "float16") if len({r["v"] for r in rows if r["dtype"] == d}) >= LEAST_POINTS
    ]
    names = [n for n in ("ours", "naive", "logsumexp", "optax-integer", "t5x", "torch") if any(r["impl"] == n for r in rows)]
    if not dtypes:
        return f"fewer than {LEAST_POINTS} vocabularies of cross_entropy, forward"
    figure, panels = plt.subplots(
        1, len(dtypes), figsize=(4 * len(dtypes) + 1, 4.2), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, dtype in zip(panels[0], dtypes, strict=True):
        for name in names:
            points = {}
            for row in rows:
                if (row["dtype"], row["impl"]) == (dtype, name):
                    points[row["v"]] = np.maximum(points.get(row["v"], 1e-9), row["loss_error"])
            if points:
                xs, ys = zip(*sorted(points.items()), strict=True)
                axes.plot(
                    xs,
                    ys,
                    "o-",
                    color=color(name, names),
                    linewidth=2.5 if name == "ours" else 1.2,
                    markersize=4,
                    label=name,
                )
        axes.set(xscale="log", yscale="log", xlabel="classes", title=dtype)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("error of the mean loss against float64, nats")
    figure.suptitle(f"cross_entropy on {files[0].device} (1e-9 stands for less)", fontsize=11)
    legend(figure, panels.flat)
    return figure


def devices(files: list[Results]) -> Figure | str:
    """Ours, case by case, on every device."""
    if len(files) < 2:
        return "needs two files"
    by_file = [{case_of(row): time_of(row) for row in figures_of(file) if row["impl"] == "ours"} for file in files]
    cases = [case for case in by_file[0] if all(case in times for times in by_file)]
    if not cases:
        return "the files share no case"
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.32 * len(cases) * (len(files) + 1) / 2), layout="constrained")
    height = 0.8 / len(files)
    for i, (file, times) in enumerate(zip(files, by_file, strict=True)):
        positions = [y + (i - (len(files) - 1) / 2) * height for y in range(len(cases))]
        about = f"{file.device}, jax {file.environment['versions'].get('jax')} ({file.path.stem})"
        axes.barh(positions, [times[case] for case in cases], height, color=PALETTE[i % len(PALETTE)], label=about)
    axes.set(xscale="log", xlabel="milliseconds of ours", yticks=range(len(cases)))
    axes.set_yticklabels([str(case) for case in cases], fontsize=8)
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside upper center", fontsize=8, frameon=False)
    return figure


def pareto(files: list[Results]) -> Figure | str:
    """Time against temporary memory, of the linear cases with the most logits."""
    rows = [r for r in figures_of(files[0]) if r["op"] == "linear_cross_entropy" and r.get("ranked") and r["temp_bytes"]]
    cases = sorted({case_of(row) for row in rows}, key=lambda case: -case.shape.n * case.shape.v)[:4]
    if not cases:
        return "no case of linear_cross_entropy"
    names = list(dict.fromkeys(row["impl"] for row in rows))
    columns = min(2, len(cases))
    lines = math.ceil(len(cases) / columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(5 * columns + 1.5, 3.6 * lines), squeeze=False, layout="constrained"
    )
    for axes, case in zip(panels.flat, cases, strict=False):
        for row in (row for row in rows if case_of(row) == case):
            size = 70 if row["impl"] == "ours" else 30
            axes.scatter(row["temp_bytes"] / 2**20, time_of(row), s=size, color=color(row["impl"], names), label=row["impl"])
        axes.set(xscale="log", xlabel="temporary MiB", ylabel="milliseconds", ylim=(0, None))
        axes.set_title(f"{case.shape} {case.dtype}", fontsize=9)
        plain(axes.xaxis)
        axes.grid(alpha=0.3)
    for axes in list(panels.flat)[len(cases) :]:
        axes.set_visible(False)
    figure.suptitle(f"linear_cross_entropy on {files[0].device}: lower left is better", fontsize=11)
    legend(figure, panels.flat)
    return figure


PLOTS = {
    "over-classes": over("v", "classes"),
    "over-rows": over("n", "rows"),
    "roofline": roofline,
    "errors": errors,
    "devices": devices,
    "pareto": pareto,
}


def main(options: Namespace) -> int:
    plt.switch_backend("Agg")  # files, never windows
    files = [read(path) for path in options.files]
    if len(files) > 1:
        print(f"all but devices are of {files[0].path}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Bad(f"cannot make the folder {options.out}: {error.strerror}") from None
    drawn = 0
    for name, draw in PLOTS.items():
        figure = draw(files)
        if isinstance(figure, str):
            print(f"{name}: not drawn, {figure}")
            continue
        save(figure, options.out / f"{files[0].path.stem}-{name}.png")
        drawn += 1
    if not drawn:
        raise Bad("nothing to draw in these files")
    return 0


def save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise Bad(f"cannot write {path}: {error.strerror}") from None
    finally:
        plt.close(figure)
    print(path)
