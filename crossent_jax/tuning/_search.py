"""The search itself: asks Optuna for a batch of trials, trains them at once, tells it their scores."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna
from jaxtyping import Array
from optuna.trial import TrialState

from .. import cross_entropy
from . import _arguments as arguments
from ._program import Programs
from ._quiet import quiet
from ._space import Space, check_kept, check_static, distributions, first, grid_points, number_of_points
from ._storage import (
    POINT,
    alive,
    ask,
    count,
    enqueue_again,
    fail_lost_trials,
    is_queued,
    open_storage,
    open_study,
    put_back,
    stops,
)

SAMPLERS = ("grid", "random", "bayesian")
POLL_SECONDS = 0.5


@quiet()
def search(
    trial: Callable,
    space: Space,
    *,
    data: tuple = (),
    labels: Array | None = None,
    where: Array | None = None,
    score: Callable | None = None,
    sampler: str | optuna.samplers.BaseSampler = "bayesian",
    trials: int | None = None,
    batch: int = 16,
    seeds: int = 1,
    at_once: int | None = None,
    static: Sequence[str] = (),
    name: str = "search",
    storage: str | Path | None = "tuning.sqlite3",
    random_seed: int = 0,
    max_grid_points: int = 1000,
) -> optuna.Study:
    """Searches hyper-parameters by the negative log-likelihood of held-out labels.

    The score of a trial is ``cross_entropy(logits, labels)`` without any option, -1/N sum_i log p_i(y_i) in nats, averaged
    over ``seeds`` runs that differ in their key alone. ``training`` makes a ``trial`` of an optax optimizer and a loss.

    Args:
        trial: ``trial(hyper, key, *data) -> logits (n, v)`` of the held-out examples, after training; traced by JAX. One
            function of one trial is all that is asked for, so that a model of Flax, Equinox or plain arrays fits as it
            is. ``hyper[name]`` is a scalar array (float32, or int32 where all values are integers), or for a ``static``
            name the value itself.
        space: for each name an ``optuna.distributions`` object, or a list of values. NumPy and JAX scalars are Python's
            numbers in the study. A tuple among the values (of a ``static`` name) is a list there, which is what a file can
            keep; ``trial`` gets a tuple.
        data: a tuple of arrays that ``trial`` is given as well: shared by all trials, never copied for each.
        labels: (n,) the held-out labels. Or give ``score``.
        where: (n,) bool, which of them count.
        score: ``score(result of trial) -> nats`` in place of ``labels``, for results other than logits, such as
            ``linear_cross_entropy`` of hidden states. The plain loss: with smoothing, weights, a temperature or a z-loss
            it would favour the trials whose hyper-parameters make that loss small.
        sampler: "grid" (every point once; all of them), "random", "bayesian" (Optuna's TPE), or a sampler of Optuna; its
            ``GridSampler`` and ``BruteForceSampler`` end with their last point.
        trials: how many the study shall have in the end, the ones of earlier calls included. Not for a grid.
        batch: how many trials one program trains, each with all its seeds.
        seeds: runs of each trial, with the same keys for every trial.
        at_once: how many of the program's runs are vmapped, side by side; the next ones follow in the same program. None:
            all of them on an accelerator; on a CPU one, because products of many small matrices at once are slower there
            (64 perceptrons on two cores: 1.6 to 1.8 times, ``python -m benchmarks.tuning``).
        static: names whose values shape the program (hidden units, a batch size, strings): the trials of a batch that
            share them train together, and each choice is compiled once.
        name: the study's name in the storage. The same name goes on where the study stopped, in the same space: the same
            names, ranges, steps and choices.
        storage: the path of a SQLite file, a database's address for Optuna (``postgresql://...``), or None for memory.
            Several processes may search in one study at the same time.
        random_seed: of the sampler and of the keys.
        max_grid_points: the largest grid that is accepted.

    Returns:
        Optuna's study: ``study.best_params``, ``study.best_value`` (nats), ``study.trials``. Every trial that ended has the
        user attributes ``nll_of_seeds`` and, with two seeds or more, ``standard_error`` (sample standard deviation over the
        square root of ``seeds``).

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; an empty space, a grid that is too large or not
            finite, numbers beyond int32 or float32, a choice that is NaN; a name that the trial never reads; a file that is
            locked or not Optuna's; a study that was begun with another space, or that maximises.
        What ``trial`` or ``score`` raises while JAX traces it, as it is: no trial fails by it, and what was drawn waits in
            the study's queue. It is traced once before a study is opened.
        RuntimeError: the program raised as it ran; names the trials and their hyper-parameters. They are marked failed,
            what ended before is kept, and the next call tries them again.

    A score that is NaN or infinite for any seed makes the trial pruned; the others of its batch are not touched. Trials of a
    process that was killed are marked failed ten seconds later and tried again: at most the batch that ran is lost.

    Sources: random search, Bergstra and Bengio 2012, JMLR 13; TPE, Bergstra et al. 2011, NeurIPS 24, section 4; the storage
    and samplers, Akiba et al. 2019, KDD, arXiv:1907.10902.

    Example:
        >>> import jax, jax.numpy as jnp, optuna
        >>> from crossent_jax import tuning
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> def trial(hyper, key):  # "trains" by scaling fixed scores
        ...     return hyper["scale"] * jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> study = tuning.search(
        ...     trial, {"scale": [0.0, 1.0, 2.0]}, labels=jnp.array([0, 1, 1]), sampler="grid", storage=None
        ... )
        >>> study.best_params, round(study.best_value, 4)
        ({'scale': 1.0}, 0.6466)
    """
    chosen, static = distributions(space), arguments.names("static", static)
    check_static(chosen, static)
    arguments.function("trial", trial)
    name, address = arguments.study_name(name), arguments.address(storage)
    if address is not None:
        check_kept(chosen)
    batch, seeds = arguments.integer("batch", batch), arguments.integer("seeds", seeds)
    at_once = None if at_once is None else arguments.integer("at_once", at_once)
    random_seed = arguments.integer("random_seed", random_seed, 0, arguments.LARGEST_SEED)
    most = arguments.integer("max_grid_points", max_grid_points)
    points = grid_points(chosen, most) if isinstance(sampler, str) and sampler == "grid" else None
    first_sampler = _sampler(sampler, random_seed)
    total = _total(points, trials, first_sampler, chosen)
    keys = jax.random.split(jax.random.key(random_seed), seeds)
    programs = Programs(
        trial, _score(labels, where, score), chosen, static, keys, arguments.arrays("data", data), at_once, {}
    )
    programs.trace([{name: first(each) for name, each in chosen.items()}] * min(batch, total))  # before anything is written
    kept = open_storage(address)
    study = open_study(kept, name, first_sampler, points, chosen)
    study.sampler = _sampler(sampler, random_seed + len(study.get_trials(deepcopy=False)))  # not the same draws again
    with stops(study) as stopped:
        while not stopped.is_set() and (wanted := _wanted(study, total, batch, points is not None)):
            asked: list[optuna.Trial] = []
            for _ in range(wanted):
                asked.append(ask(kept, study, chosen, asked))
            with alive(kept, asked):
                _run(study, programs, _of_the_grid(study, asked, points))
    return study


def _total(points: list | None, trials: Any, sampler: optuna.samplers.BaseSampler, chosen: dict) -> int:
    """A grid has all its points; a sampler of Optuna that tries every point once has no more than there are."""
    if (points is None) == (trials is None):
        raise ValueError(
            f"trials must be a number of at least 1 (and None for a grid, which has all its points); got {trials}."
        )
    if points is not None:
        return len(points)
    trials = arguments.integer("trials", trials)
    if isinstance(sampler, optuna.samplers.GridSampler):
        return min(trials, len(sampler._all_grids))
    return min(trials, number_of_points(chosen)) if isinstance(sampler, optuna.samplers.BruteForceSampler) else trials


def _score(labels: Array | None, where: Array | None, score: Callable | None) -> Callable:
    if (labels is None) == (score is None):
        raise ValueError("give labels, the held-out ones, or score, a function of what the trial returns: one of the two.")
    if score is not None and where is not None:
        raise ValueError("where belongs to labels; score is a function of its own.")
    if labels is None:
        return arguments.function("score", score)
    return partial(cross_entropy, labels=labels, where=where)


def _sampler(given: str | optuna.samplers.BaseSampler, seed: int) -> optuna.samplers.BaseSampler:
    """A grid's points are queued in the study, from which each is handed out once; ``GridSampler`` may give one to two
    processes."""
    if isinstance(given, optuna.samplers.BaseSampler):
        return given
    if not isinstance(given, str) or given not in SAMPLERS:
        raise ValueError(f"sampler must be one of {SAMPLERS} or a sampler of Optuna; got {given!r}.")
    return optuna.samplers.TPESampler(seed=seed) if given == "bayesian" else optuna.samplers.RandomSampler(seed)


def _wanted(study: optuna.Study, total: int, batch: int, of_grid: bool) -> int:
    """How many trials to begin now. Where all are begun, waits for those of other processes: they end or are lost."""
    while True:
        fail_lost_trials(study)
        running = count(study, TrialState.RUNNING)
        begun = count(study, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, of_grid=of_grid)
        missing = total - begun
        if missing > 0 or not running:
            return max(0, min(batch, missing))
        time.sleep(POLL_SECONDS)


def _of_the_grid(study: optuna.Study, asked: list[optuna.Trial], points: list | None) -> list[optuna.Trial]:
    """Where two processes asked for the last point of a grid, the one that came too late got none. What a user has queued
    in the study runs as well."""
    if points is None:
        return asked
    ours = [trial for trial in asked if POINT in trial.user_attrs or is_queued(study, trial)]
    for trial in asked:
        if trial not in ours:
            study.tell(trial, state=TrialState.FAIL)
    return ours


def _run(study: optuna.Study, programs: Programs, asked: list[optuna.Trial]) -> None:
    """Trains trials and tells their scores. What raises while it runs leaves all that has no score yet failed, and queued
    again; what raises while it is traced is no trial's fault: nothing has begun, and all go back into the queue."""
    groups = programs.groups([trial.params for trial in asked])
    running: list[optuna.Trial] = []
    try:
        for group in groups:
            running = [asked[position] for position in group]
            programs.trace([trial.params for trial in running])
    except BaseException as error:
        for trial in asked:
            put_back(study, trial)
        error.add_note(f"Raised as JAX traced trial {_described(running)}; the trials wait in the queue of the study.")
        raise
    untold = dict(enumerate(asked))
    try:
        for group in groups:
            running = [asked[position] for position in group]
            for position, scores in zip(group, programs([trial.params for trial in running]), strict=True):
                _tell(study, asked[position], scores)
                untold.pop(position)
    except BaseException as error:
        for trial in untold.values():
            _fail_and_queue(study, trial)
        if isinstance(error, Exception):
            raise RuntimeError(
                f"trial {_described(running)} raised {type(error).__name__}: {error}. Marked failed and queued again; what "
                "ended before is kept."
            ) from error
        raise


def _fail_and_queue(study: optuna.Study, trial: optuna.Trial) -> None:
    told = study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    if told.state == TrialState.FAIL:
        enqueue_again(study, told)


def _tell(study: optuna.Study, trial: optuna.Trial, scores: np.ndarray) -> None:
    """Unless another process took the trial for lost, as after a computer slept: it has queued it again."""
    values = [float(score) for score in scores]
    finite = bool(np.all(np.isfinite(values)))
    with suppress(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("nll_of_seeds", [value if np.isfinite(value) else str(value) for value in values])
        if finite and len(values) > 1:
            trial.set_user_attr("standard_error", float(np.std(values, ddof=1) / len(values) ** 0.5))
    if finite:
        study.tell(trial, float(np.mean(values)), skip_if_finished=True)
    else:
        study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)


def _described(running: list[optuna.Trial]) -> str:
    described: list[Any] = [f"{trial.number}: {trial.params}" for trial in running[:4]]
    more = f" and {len(running) - 4} more" if len(running) > 4 else ""
    return f"{'; '.join(described)}{more}"
