"""What both tasks do: train with our loss and, beside it, with the naive formula; score both on held-out data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .batches import Examples, shuffled
from .evaluate import Score, score
from .losses import exact_loss, naive_loss
from .train import Trainee, make_trainee, train

LOSSES = {"crossent_jax": exact_loss, "naive": naive_loss}


class Options(NamedTuple):
    """The command line, checked. `deadline`: when training stops, on the clock of `time.perf_counter`."""

    steps: int
    deadline: float
    vocab: int
    batch: int
    seq_len: int
    seed: int
    out: Path
    naive: bool


class Task(NamedTuple):
    """A model `apply(parameters, inputs) -> logits` and its data."""

    apply: Callable
    parameters: Any
    train: Examples
    validation: Examples
    peak_learning_rate: float


class Outcome(NamedTuple):
    """What was reached, in the order of `LOSSES`."""

    trainees: list[Trainee]
    scores: list[Score]
    interrupted: bool


def run(task: Task, options: Options) -> Outcome:
    """Both models start from the same parameters and see the same batches in the same order."""
    batches = shuffled(task.train, options.batch, options.seed)
    first = next(batches)
    trainees = [
        make_trainee(name, loss, task.apply, task.parameters, first)
        for name, loss in LOSSES.items()
        if options.naive or loss is exact_loss
    ]
    interrupted = train(trainees, batches, task.peak_learning_rate, options.steps, options.deadline)
    print(f"trained {len(trainees[0].losses)} of {options.steps} steps; scoring the held-out examples ...")
    scores = [score(task.apply, trainee.parameters, task.validation, options.batch) for trainee in trainees]
    return Outcome(trainees, scores, interrupted)
