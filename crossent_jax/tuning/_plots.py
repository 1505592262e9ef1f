"""Two figures: how a search went on, and how far confidence is from accuracy."""

import textwrap
from collections.abc import Mapping
from datetime import datetime
from typing import Literal, overload

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from ._calibration import Reliability

LETTERS = 36  # of a line of the legend
COLORS, DASHES = 10, ("-", "--", ":", "-.")  # matplotlib's colors, then the same again in the next kind of line


def best_so_far(study: optuna.Study) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trials ended (from 1), the best score until then, and the standard error of that best trial (NaN: one seed)."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.datetime_complete]
    ended.sort(key=lambda trial: trial.datetime_complete or datetime.min)
    values = np.array([trial.value if trial.value is not None else np.inf for trial in ended])
    errors = np.array([trial.user_attrs.get("standard_error", np.nan) for trial in ended])
    best = np.array([np.argmin(values[: i + 1]) for i in range(len(values))], int)
    known = np.isfinite(values[best])
    return np.arange(1, len(values) + 1)[known], values[best][known], errors[best][known]


def begin(ax: Axes | None, height: float) -> tuple[Axes, Figure | None]:
    """``ax`` and None, or the axes of a new figure and that figure, with room for a legend beside them."""
    if ax is not None:
        return ax, None
    figure = Figure(figsize=(8, height), layout="constrained")
    return figure.subplots(), figure


def finish(axes: Axes, figure: Figure | None, loc: Literal["best", "upper left"]) -> Figure | Axes:
    """Adds the legend and returns what the caller shall. It is inside given axes at ``loc``, for their neighbours are not
    known, and beside the axes of a figure of ours, which grows until it has room."""
    if figure is None:
        axes.legend(loc=loc, fontsize="small")
        return axes
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, fontsize="small", frameon=False)
    lines = sum(text.get_text().count("\n") + 1 for text in legend.get_texts())
    width, height = figure.get_size_inches()
    missing = max(0.0, 1 + 0.18 * lines - height)
    figure.set_size_inches(width + missing, height + missing)  # width too: axes of equal scales fill it
    return figure


def dash(number: int) -> str:
    """Of series ``number``."""
    return DASHES[number // COLORS % len(DASHES)]


@overload
def plot_best_so_far(studies: optuna.Study | Mapping[str, optuna.Study], ax: None = None) -> Figure: ...
@overload
def plot_best_so_far(studies: optuna.Study | Mapping[str, optuna.Study], ax: Axes) -> Axes: ...
def plot_best_so_far(studies, ax=None):
    """The best held-out score (nats) against the trials ended, with a band of its standard error over seeds.

    Args:
        studies: one study, or several by the name that the legend shall give them.
        ax: the matplotlib axes to draw into, with the legend inside them; None for a figure of its own, with the legend
            beside the axes.

    Returns:
        ``ax``, or without it a matplotlib figure (``figure.savefig(...)``; a notebook shows it).

    Raises:
        ValueError: no study, or one without a trial that has a score.

    Example:
        >>> import jax.numpy as jnp, optuna
        >>> from crossent_jax import tuning
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = tuning.search(
        ...     lambda hyper, key: hyper["scale"] * jnp.eye(2), {"scale": [0.0, 1.0]}, labels=jnp.array([0, 1]),
        ...     sampler="grid", storage=None,
        ... )
        >>> tuning.plot_best_so_far(study).axes[0].get_xlabel()
        'trials'
    """
    named = studies if isinstance(studies, Mapping) else {studies.study_name: studies}
    drawn = {name: best_so_far(study) for name, study in named.items()}
    if not drawn:
        raise ValueError("studies must have a study to draw; got none.")
    for name, (trials, _, _) in drawn.items():
        if not len(trials):
            raise ValueError(f"the study {name!r} has no trial with a score to draw.")
    axes, figure = begin(ax, 4)
    for number, (name, (trials, best, error)) in enumerate(drawn.items()):
        label = textwrap.fill(name, LETTERS)
        (line,) = axes.step(trials, best, dash(number), marker="o", markersize=3, where="post", label=label)
        color = line.get_color()
        axes.fill_between(trials, best - error, best + error, step="post", color=color, alpha=0.2, linewidth=0)
        axes.errorbar(trials[-1], best[-1], error[-1], fmt="none", color=color, elinewidth=1)  # there the band has no width
    axes.set(xlabel="trials", ylabel="best held-out loss so far (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(alpha=0.3)
    return finish(axes, figure, "best")


@overload
def plot_reliability(reliabilities: Reliability | Mapping[str, Reliability], ax: None = None) -> Figure: ...
@overload
def plot_reliability(reliabilities: Reliability | Mapping[str, Reliability], ax: Axes) -> Axes: ...
def plot_reliability(reliabilities, ax=None):
    """Accuracy against confidence, one point a bin, above a strip of bars: how many examples it has.

    A point's area is the bin's share of the examples. On the diagonal a model is calibrated, below it overconfident. Points
    of neighbouring bins are joined; an empty bin has neither point nor bar. The axis of the counts is logarithmic.

    Args:
        reliabilities: one result of :func:`reliability`, or several by name.
        ax: the matplotlib axes to draw into, with the legend inside them; None for a figure of its own, with the legend
            beside the axes.

    Returns:
        ``ax``, or without it a matplotlib figure.

    Raises:
        ValueError: nothing to draw.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax import tuning
        >>> sure = tuning.reliability(jnp.array([[2.0, 0.0]] * 4), jnp.array([0, 0, 0, 1]))
        >>> axes = tuning.plot_reliability(sure).axes[0]
        >>> print(axes.get_ylabel(), sum(bar.get_height() for bar in axes.child_axes[0].patches))
        accuracy 4
    """
    named = {"": reliabilities} if isinstance(reliabilities, Reliability) else reliabilities
    if not named:
        raise ValueError("reliabilities must have a result to draw; got none.")
    axes, figure = begin(ax, 5.2)
    margin, depth = 0.03, 0.24  # of the scale of accuracy: around it, and below it for the strip
    strip = axes.inset_axes((0, 0, 1, depth / (1 + 2 * margin + depth)), sharex=axes, facecolor="none")
    axes.plot([0, 1], [0, 1], "--", color="gray", linewidth=1, label="calibrated")
    for number, (name, found) in enumerate(named.items()):
        error = f"calibration error {found.expected_calibration_error:.3f}"
        label = textwrap.fill(f"{name} ({error})" if name else error, LETTERS)
        (line,) = axes.plot(found.confidence, found.accuracy, dash(number), alpha=0.6, label=label)
        color, area = line.get_color(), 20 + 300 * found.count / found.count.sum()
        axes.scatter(found.confidence, found.accuracy, area, color=color, alpha=0.6, clip_on=False)
        width = np.diff(found.edges) / len(named)
        strip.bar(found.edges[:-1] + number * width, found.count, width, align="edge", color=color, alpha=0.6)
    axes.set(xlabel="confidence", xlim=(-margin, 1 + margin), ylim=(-margin - depth, 1 + margin), aspect="equal")
    axes.set_ylabel("accuracy", y=0.6)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.grid(alpha=0.3)
    most = max(found.count.max() for found in named.values())
    decades = int(np.log10(most))
    strip.set(ylabel="count", yscale="log", ylim=(0.5, 3 * most))
    strip.set_yticks(10.0 ** np.arange(0, decades + 1, 1 + decades // 4))
    strip.tick_params(axis="x", bottom=False, labelbottom=False)
    strip.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    strip.yaxis.set_minor_locator(NullLocator())
    return finish(axes, figure, "upper left")
