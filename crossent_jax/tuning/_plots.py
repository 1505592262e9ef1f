"""Two figures: how a search went on, and how far confidence is from accuracy."""

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import optuna
from matplotlib.figure import Figure

from ._calibration import Reliability


def best_so_far(study: optuna.Study) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trials ended (from 1), the best score until then, and the standard error of that best trial (NaN: one seed)."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.datetime_complete]
    ended.sort(key=lambda trial: trial.datetime_complete or datetime.min)
    values = np.array([trial.value if trial.value is not None else np.inf for trial in ended])
    errors = np.array([trial.user_attrs.get("standard_error", np.nan) for trial in ended])
    best = np.array([np.argmin(values[: i + 1]) for i in range(len(values))], int)
    known = np.isfinite(values[best])
    return np.arange(1, len(values) + 1)[known], values[best][known], errors[best][known]


def plot_best_so_far(studies: optuna.Study | Mapping[str, optuna.Study]) -> Figure:
    """The best held-out score (nats) against the trials ended, with a band of its standard error over seeds.

    Args:
        studies: one study, or several by the name that the legend shall give them.

    Returns:
        A matplotlib figure of its own (``figure.savefig(...)``; a notebook shows it).

    Raises:
        ValueError: a study without a trial that has a score.

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
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for name, study in named.items():
        trials, best, error = best_so_far(study)
        if not len(trials):
            raise ValueError(f"the study {name!r} has no trial with a score to draw.")
        (line,) = axes.step(trials, best, where="post", label=name)
        axes.fill_between(trials, best - error, best + error, step="post", color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="trials", ylabel="best held-out loss so far (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_reliability(reliabilities: Reliability | Mapping[str, Reliability]) -> Figure:
    """Accuracy against confidence, one point a bin, its area the bin's share of the examples; the diagonal is calibrated.

    Args:
        reliabilities: one result of :func:`reliability`, or several by name.

    Returns:
        A matplotlib figure of its own.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax import tuning
        >>> sure = tuning.reliability(jnp.array([[2.0, 0.0]] * 4), jnp.array([0, 0, 0, 1]))
        >>> tuning.plot_reliability(sure).axes[0].get_ylabel()
        'accuracy'
    """
    named = {"": reliabilities} if isinstance(reliabilities, Reliability) else reliabilities
    figure = Figure(figsize=(5, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="gray", linewidth=1, label="calibrated")
    for name, found in named.items():
        used = found.count > 0
        label = f"{name} (calibration error {found.expected_calibration_error:.3f})".strip()
        (line,) = axes.plot(found.confidence[used], found.accuracy[used], alpha=0.6, label=label)
        share = found.count[used] / found.count.sum()
        axes.scatter(found.confidence[used], found.accuracy[used], 20 + 300 * share, color=line.get_color(), alpha=0.6)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return figure
