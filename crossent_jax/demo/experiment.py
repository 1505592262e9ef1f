"""What both tasks do: train with our loss and, beside it, with the naive formula; score both on held-out data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .batches import Examples, shuffled
from .evaluate import Score, score
from .losses import exact_loss, naive_loss
from .train import Trainee, make_trainee, train

OURS, NAIVE, WHOLE = "crossent_jax", "naive", "with whole logits"


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
    """A model `apply(parameters, inputs) -> logits` and its data. `fused`: the same model's loss of a batch that never holds
    the logits, or None to train on the logits."""

    apply: Callable
    parameters: Any
    train: Examples
    validation: Examples
    peak_learning_rate: float
    fused: Callable | None = None


class Outcome(NamedTuple):
    """What was reached: ours, then the naive formula's if it was trained. `whole`: our loss compiled on whole logits, for
    the memory it would take; None where it is what was trained."""

    trainees: list[Trainee]
    scores: list[Score]
    interrupted: bool
    whole: Trainee | None = None


class WrongUsage(Exception):
    """An option that only the task's data could show to be wrong."""


def run(task: Task, options: Options) -> Outcome:
    """Both models start from the same parameters and see the same batches in the same order."""
    if options.batch > len(task.train.labels):
        raise WrongUsage(
            f"argument --batch: got {options.batch}: give at most {len(task.train.labels)}, the training examples"
        )
    batches = shuffled(task.train, options.batch, options.seed)
    first = next(batches)
    on_logits, naive = of_logits(task, exact_loss), of_logits(task, naive_loss)
    objectives = {OURS: task.fused or on_logits} | ({NAIVE: naive} if options.naive else {})
    trainees = [make_trainee(name, objective, task.parameters, first) for name, objective in objectives.items()]
    whole = make_trainee(WHOLE, on_logits, task.parameters, first) if task.fused else None
    interrupted = train(trainees, batches, task.peak_learning_rate, options.steps, options.deadline)
    print(f"trained {len(trainees[0].losses)} of {options.steps} steps; scoring the held-out examples ...")
    scores = [score(task.apply, trainee.parameters, task.validation, options.batch) for trainee in trainees]
    return Outcome(trainees, scores, interrupted, whole)


def of_logits(task: Task, loss: Callable) -> Callable:
    """The loss of a batch through the model's logits."""
    return lambda parameters, batch: loss(task.apply(parameters, batch.inputs), batch.labels)
