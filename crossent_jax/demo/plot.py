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
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter  # noqa: E402

SMALLEST_SHOWN = 1e-7  # below it the axis of differences is linear, so that 0 has a place
STYLES = {OURS: ("tab:blue", "-", 2.5), NAIVE: ("tab:orange", "--", 1.2), WHOLE: ("tab:cyan", ":", 1.2)}


def save_picture(path: Path, title: str, outcome: Outcome, unit: str) -> Path:
    """Saves the picture and returns its path; the losses are in nats per `unit`."""
    trainees = outcome.trainees
    compiled = [*trainees[:1], *([outcome.whole] if outcome.whole else []), *trainees[1:]]
    lower_left = "difference" if len(trainees) == 2 else "curves"
    figure, axes = plt.subplot_mosaic(
        [["curves", "time"], [lower_left, "memory"]],
        width_ratios=(2, 1),
        height_ratios=(1.5, 1),
        figsize=(9, 6),
        layout="constrained",
    )
    figure.suptitle(title, fontsize="large")
    draw_curves(axes["curves"], trainees, unit)
    if "difference" in axes:
        axes["difference"].sharex(axes["curves"])
        draw_difference(axes["difference"], trainees, unit)
    draw_bars(axes["time"], trainees, [median_milliseconds(t) for t in trainees], "median step time (ms)")
    draw_bars(axes["memory"], compiled, [mebibytes(t) for t in compiled], "temp memory (MiB)")
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
        steps, means = running_mean(trainee.losses)
        marker = "" if len(steps) > 2 else "o"  # one step makes no line
        axes.plot(steps, means, line, color=colour, linewidth=width, marker=marker, label=trainee.name)
    axes.set(xlabel="step", ylabel=f"training loss (nats per {unit})")
    axes.set_title("training loss with label smoothing and z-loss (running mean)", fontsize="medium")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.05, high * 1.05)  # differences of rounding do not fill the axis
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8) if high < 10 * low else (1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend()


def draw_difference(axes: Axes, trainees: Sequence[Trainee], unit: str) -> None:
    """How far apart the losses of the two models are at each step."""
    axes.set(xlabel="step", ylabel=f"nats per {unit}")
    axes.set_title("|crossent_jax − naive|, same batches, each step", fontsize="medium")
    axes.grid(alpha=0.3)
    ours, naive = (np.array(trainee.losses) for trainee in trainees)
    difference = np.abs(ours - naive)
    axes.plot(np.arange(1, len(difference) + 1), difference, ".", markersize=3, color="0.3")
    axes.set_yscale("symlog", linthresh=SMALLEST_SHOWN)
    axes.set_ylim(-0.3 * SMALLEST_SHOWN, 3 * difference[np.isfinite(difference)].max(initial=SMALLEST_SHOWN))


def draw_bars(axes: Axes, trainees: Sequence[Trainee], values: Sequence[float], label: str) -> None:
    """One bar for each model, with its value on it."""
    names = [trainee.name for trainee in trainees]
    bars = axes.bar(
        [name.replace(" ", "\n", 1) for name in names], values, width=0.6, color=[STYLES[name][0] for name in names]
    )
    axes.bar_label(bars, fmt="%.3g", padding=2)
    axes.tick_params(axis="x", labelsize="small")
    axes.set(xlabel="loss", ylabel=label, xlim=(-0.6, len(names) - 0.4), ylim=(0, 1.18 * max(values) or 1))
