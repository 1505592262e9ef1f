"""One picture: the loss curves, their difference, and what a training step costs."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from .experiment import NAIVE, OURS, WHOLE, Outcome
from .report import mebibytes, median_milliseconds
from .train import Trainee

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter  # noqa: E402

SMALLEST_SHOWN = 1e-7  # below it the axis of differences is linear, so that 0 has a place
STYLES = {OURS: ("tab:blue", "-", 2.5), NAIVE: ("tab:orange", "--", 1.2), WHOLE: ("tab:cyan", ":", 1.2)}


def save_picture(path: Path, title: str, outcome: Outcome, unit: str) -> Path:
    """Saves the picture and returns its path; the losses are in nats per `unit`."""
    trainees = outcome.trainees
    compiled = [*trainees[:1], *([outcome.whole] if outcome.whole else []), *trainees[1:]]
    lower_left = "difference" if len(trainees) == 2 else "curves"
    figure, axes = plt.subplot_mosaic(
        [["curves", "time"], [lower_left, "memory"]],
        width_ratios=(2.4, 1),
        height_ratios=(1.7, 1),
        figsize=(11, 6.5),
        layout="constrained",
    )
    figure.suptitle(title)
    draw_curves(axes["curves"], trainees, unit)
    if "difference" in axes:
        axes["difference"].sharex(axes["curves"])
        draw_difference(axes["difference"], trainees, unit)
    draw_bars(axes["time"], trainees, [median_milliseconds(t) for t in trainees], "median step time (ms)")
    draw_bars(axes["memory"], compiled, [mebibytes(t) for t in compiled], "compiled temp memory (MiB)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def running_mean(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (from 1) and the mean over the latest 2 % of all steps."""
    window = max(1, len(values) // 50)
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    return np.arange(window, len(values) + 1), means


def draw_curves(axes: Axes, trainees: Sequence[Trainee], unit: str) -> None:
    """The smoothed training losses."""
    for trainee in trainees:
        colour, line, width = STYLES[trainee.name]
        axes.plot(*running_mean(trainee.losses), line, color=colour, linewidth=width, label=trainee.name)
    axes.set(xlabel="step", ylabel=f"training loss (nats per {unit})")
    axes.set_title("training loss with label smoothing and z-loss (running mean)", fontsize="medium")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend()


def draw_difference(axes: Axes, trainees: Sequence[Trainee], unit: str) -> None:
    """How far apart the losses of the two models are at each step."""
    axes.set(xlabel="step", ylabel=f"nats per {unit}")
    axes.set_title("|crossent_jax − naive|, same batches, each step", fontsize="medium")
    axes.grid(alpha=0.3)
    ours, naive = (np.array(trainee.losses) for trainee in trainees)
    difference = np.abs(ours - naive)
    axes.plot(np.arange(1, len(difference) + 1), difference, ".", markersize=2, color="0.3")
    axes.set_yscale("symlog", linthresh=SMALLEST_SHOWN)
    axes.set_ylim(-0.3 * SMALLEST_SHOWN, 3 * max(SMALLEST_SHOWN, difference.max()))


def draw_bars(axes: Axes, trainees: Sequence[Trainee], values: Sequence[float], title: str) -> None:
    """One labelled bar for each model."""
    names = [trainee.name for trainee in trainees]
    bars = axes.bar(
        [name.replace(" ", "\n", 1) for name in names], values, width=0.6, color=[STYLES[name][0] for name in names]
    )
    axes.bar_label(bars, fmt="%.3g", padding=2)
    axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 1.18 * max(values)))
    axes.set_title(title, fontsize="medium")
