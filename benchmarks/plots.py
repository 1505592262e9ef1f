"""Pictures of results: each is drawn if the files hold what it needs, and says so if not.

All are as wide as a README shows them, with the title above the panels and one legend below, so that text meets no text.
"""

import math
import textwrap
from argparse import Namespace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .records import Bad, Results, case_of, read
from .table import time_of

OURS = "#c1272d"
PALETTE = ("#1f5fa8", "#5b9f3b", "#8d5bb5", "#b98521", "#2a9d9d", "#7f7f7f", "#d16ba5", "#4d4d9a", "#9b6a4a", "#444444")
MARKERS = "s^dv<>P"  # of the others; as many as have no divisor in common with the number of colors
MOST_RATIO = {"x": 1e3, "y": 1e6}  # of an axis that has room for three numbers a decade
LEAST_POINTS = 3  # of a line
LEAST_ERROR = 1e-9  # drawn: an axis of logarithms has no place for 0
WIDTH = 8.4  # inches
LINE = 0.19  # inches, of a legend
LETTERS = 105  # that fit it at 9 points


def style(name: str, names: list[str]) -> tuple[str, str]:
    """Color and marker of a contender: no two of its figure have both in common."""
    if name == "ours":
        return OURS, "o"
    number = [n for n in names if n != "ours"].index(name)
    return PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]


def names_in(rows: list[dict]) -> list[str]:
    """Contenders, ours first."""
    return sorted(dict.fromkeys(row["impl"] for row in rows), key=lambda name: name != "ours")


def filled(text: str, letters: int) -> str:
    """The lines of ``text``, broken where they are longer."""
    return "\n".join(textwrap.fill(line, letters) for line in text.splitlines())


def sheet(title: str, lines: int = 1, columns: int = 1, height: float = 3.6, sharey: bool = False):
    """A figure under ``title``, and its panels (lines, columns), each ``height`` inches high with its labels."""
    size = (WIDTH, 0.5 + height * lines)
    figure, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=sharey, layout="constrained")
    figure.suptitle(filled(title, LETTERS - 15), fontsize=10)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
    return figure, panels


def figures_of(results: Results) -> list[dict]:
    """Rows that were timed."""
    return [row for row in results.rows if row["status"] == "ok" and row.get("wall_ms")]


def legend(figure: Figure, panels) -> None:
    """One entry for each name in any of the panels, below them."""
    found = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= {filled(label, LETTERS - 10): handle for label, handle in zip(labels, handles, strict=True)}
    columns = min(len(found), max(1, LETTERS // (max(map(len, found)) + 10)))
    lines = math.ceil(sum(name.count("\n") + 1 for name in found) / columns)
    figure.set_figheight(figure.get_figheight() + LINE * lines)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def family(rows: list[dict], axis: str) -> list[dict]:
    """The rows in which only ``axis`` varies: of all such families, the one with the most values of it."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        fixed = tuple(row[key] for key in ("op", "dtype", "mode", "n", "d", "v") if key != axis)
        groups.setdefault(fixed, []).append(row)
    return max(groups.values(), key=lambda group: (len({row[axis] for row in group}), len(group)), default=[])


def plain(axis) -> None:
    """Numbers a person reads on a logarithmic axis with its data: at 1, 2 and 5 of a decade, at 1 where they lack room."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MOST_RATIO[axis.axis_name] * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_lines(axes, lines: dict[str, dict[float, float]]) -> None:
    """A line for each name. Each is thinner than the one before and lies on it, so that those that coincide are all seen."""
    names = list(lines)
    for name, share in zip(names, np.geomspace(1, 0.25, len(names)), strict=True):
        if len(lines[name]) >= LEAST_POINTS:
            xs, ys = zip(*sorted(lines[name].items()), strict=True)
            color, marker = style(name, names)
            axes.plot(xs, ys, marker=marker, color=color, linewidth=5 * share, markersize=11 * share, label=name)


def over(axis: str, label: str):
    """Time and temporary memory against one size."""
    measures = {
        "median time (ms)": time_of,
        "temporary memory as compiled (MiB)": lambda row: row["temp_bytes"] and row["temp_bytes"] / 2**20,
    }

    def draw(files: list[Results]) -> Figure | str:
        rows = family([row for row in figures_of(files[0]) if row.get("ranked")], axis)
        if len({row[axis] for row in rows}) < LEAST_POINTS:
            return f"fewer than {LEAST_POINTS} cases in which only {axis} varies"
        case = case_of(rows[0])
        fixed = ", ".join(f"{key}={rows[0][key]}" for key in ("n", "d", "v") if key != axis and rows[0][key])
        figure, panels = sheet(f"{case.operation}, {fixed}, {case.dtype}, {case.mode} on {files[0].device}", columns=2)
        for axes, (ylabel, measure) in zip(panels.flat, measures.items(), strict=True):
            lines = {name: {} for name in names_in(rows)}
            for row in rows:
                if value := measure(row):
                    lines[row["impl"]][row[axis]] = value
            draw_lines(axes, lines)
            axes.set_xscale("log", base=2)
            axes.set(yscale="log", xlabel=label, ylabel=ylabel)
            plain(axes.yaxis)
        legend(figure, panels.flat)
        return figure

    return draw


def roofline(files: list[Results]) -> Figure | str:
    """Operations a second against operations a byte, under the ceilings of the same run."""
    rows = [row for row in figures_of(files[0]) if row["operations"] and row.get("ranked")]
    measured = {row["dtype"] for row in rows}
    ceilings = {dtype: ceiling for (dtype, _), ceiling in files[0].ceilings.items() if dtype in measured}
    if not ceilings:
        return "no case with matrix products, or no ceilings"
    names = names_in(rows)
    title = (
        f"losses with matrix products on {files[0].device}\npoint: a contender in a case; line: ceiling measured in that run"
    )
    figure, panels = sheet(title, columns=len(ceilings))
    for axes, (dtype, ceiling) in zip(panels[0], ceilings.items(), strict=True):
        points = {name: [place(r) for r in rows if (r["dtype"], r["impl"]) == (dtype, name)] for name in names}
        every = np.array([point for some in points.values() for point in some])
        product, copy = ceiling["operations_per_second"] / 1e9, ceiling["bytes_per_second"] / 1e9
        ends, knee = (every[:, 0].min() / 2, every[:, 0].max() * 2), product / copy
        line = np.unique(np.clip([ends[0], knee, ends[1]], *ends))
        axes.plot(line, np.minimum(line * copy, product), color="black", linewidth=1.2)
        for name in filter(points.get, names):
            color, marker = style(name, names)
            size, front = (36, 3) if name == "ours" else (20, 2)
            axes.scatter(*zip(*points[name], strict=True), s=size, color=color, marker=marker, zorder=front, label=name)
        axes.set(xscale="log", yscale="log", xlabel="operations per byte, both the least possible", ylabel="GFLOP/s")
        about = f"{dtype}\nceiling: product {product:.3g} GFLOP/s, copy {copy:.3g} GB/s" + above(every, product, copy)
        axes.set_title(filled(about, LETTERS // len(ceilings) - 8), fontsize=9)
        plain(axes.xaxis), plain(axes.yaxis)
    legend(figure, panels.flat)
    return figure


def place(row: dict) -> tuple[float, float]:
    """Of a row in the roofline: operations per byte, GFLOP/s."""
    return row["operations"] / row["least_bytes"], row["operations_per_second"] / 1e9


def above(points: np.ndarray, product: float, copy: float) -> str:
    """How many points (k, 2) lie above the ceiling, and why they can: a cache helps only where the copy is the limit."""
    intensity, speed = points.T
    copied = intensity * copy < product
    counts = np.sum(copied & (speed > intensity * copy)), np.sum(~copied & (speed > product))
    reasons = "their data can stay in a cache", "the ceiling came out too low"
    return "".join(f"\n{count} above: {reason}" for count, reason in zip(counts, reasons, strict=True) if count)


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
    about = f"error of the mean loss against float64\n({LEAST_ERROR:g} stands for less)"
    title = f"cross_entropy, forward, on {files[0].device}: {about}"
    figure, panels = sheet(title, columns=len(dtypes), sharey=True)
    for axes, dtype in zip(panels[0], dtypes, strict=True):
        lines = {name: {} for name in names}
        for row in rows:
            if row["dtype"] == dtype and row["impl"] in names:
                points = lines[row["impl"]]
                points[row["v"]] = np.maximum(points.get(row["v"], LEAST_ERROR), row["loss_error"])
        draw_lines(axes, lines)
        axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="error (nats)")
        axes.set_title(dtype, fontsize=9)
        axes.label_outer()
    legend(figure, panels.flat)
    return figure


def devices(files: list[Results]) -> Figure | str:
    """Ours, case by case, on every device."""
    if len(files) < 2:
        return "needs two files"
    ours = [[row for row in figures_of(file) if row["impl"] == "ours"] for file in files]
    by_file = [{case_of(row)._replace(pages=None): row["wall_ms"] for row in rows} for rows in ours]
    cases = [case for case in by_file[0] if all(case in times for times in by_file)]
    if not cases:
        return "the files share no case"
    height = 0.5 + 0.16 * len(cases) * (len(files) + 1)
    figure, panels = sheet("time of ours: median, and tenth to ninetieth percentile", height=height)
    axes = panels[0, 0]
    for i, (file, times) in enumerate(zip(files, by_file, strict=True)):
        positions = np.arange(len(cases)) + (i - (len(files) - 1) / 2) * 0.8 / len(files)
        low, middle, high = (np.array([times[case][part] for case in cases]) for part in ("p10", "median", "p90"))
        about = f"{file.device}, jax {file.environment['versions'].get('jax')} ({file.path})"
        color = PALETTE[i % len(PALETTE)]
        axes.errorbar(
            middle, positions, xerr=np.array((middle - low, high - middle)), fmt="o", markersize=5, color=color, label=about
        )
    axes.set(xscale="log", xlabel="time (ms)", ylabel="case", yticks=range(len(cases)))
    axes.set_yticklabels([str(case) for case in cases])
    axes.invert_yaxis()
    plain(axes.xaxis)
    legend(figure, [axes])
    return figure


def pareto(files: list[Results]) -> Figure | str:
    """Time against temporary memory, of the linear cases with the most logits."""
    rows = [r for r in figures_of(files[0]) if r["op"] == "linear_cross_entropy" and r.get("ranked") and r["temp_bytes"]]
    cases = sorted({case_of(row) for row in rows}, key=lambda case: (-case.shape.n * case.shape.v, case))[:4]
    if not cases:
        return "no case of linear_cross_entropy"
    names = names_in(rows)
    columns = min(2, len(cases))
    title = f"linear_cross_entropy on {files[0].device}\nlower left is better"
    figure, panels = sheet(title, math.ceil(len(cases) / columns), columns, height=2.8)
    for axes, case in zip(panels.flat, cases, strict=False):
        for row in (row for row in rows if case_of(row) == case):
            color, marker = style(row["impl"], names)
            size = 70 if row["impl"] == "ours" else 30
            axes.scatter(row["temp_bytes"] / 2**20, time_of(row), s=size, color=color, marker=marker, label=row["impl"])
        axes.set(xscale="log", xlabel="temporary memory as compiled (MiB)", ylabel="median time (ms)")
        axes.margins(0.08)
        axes.set_ylim(0)
        axes.set_title(f"{case.shape} {case.dtype} {case.mode}", fontsize=9)
        plain(axes.xaxis)
    for axes in list(panels.flat)[len(cases) :]:
        axes.remove()
    legend(figure, figure.axes)
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
    for number, pages in enumerate(files[0].by_pages()):
        parts = [part for file in files if (part := measured_like(file, pages))]
        suffix = f"-{pages}" if number else ""
        for name, draw in PLOTS.items():
            figure = draw(parts)
            if isinstance(figure, str):
                print(f"{name}{suffix}: not drawn, {figure}")
                continue
            save(figure, options.out / f"{files[0].path.stem}-{name}{suffix}.png")
            drawn += 1
    if not drawn:
        raise Bad("nothing to draw in these files")
    return 0


def measured_like(file: Results, pages: str | None) -> Results | None:
    """The rows with these pages, or those of a file that does not say; where the first file does not, memory kept if there
    is."""
    found = file.by_pages()
    return next(iter(found.values()), None) if pages is None else found.get(pages) or found.get(None)


def save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise Bad(f"cannot write {path}: {error.strerror}") from None
    finally:
        plt.close(figure)
    print(path)
