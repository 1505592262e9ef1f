"""The printed report: measured figures in a table, one sentence of verdict, and the exit status."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from .experiment import Outcome
from .train import Trainee

BEATEN, NOT_BEATEN, INTERRUPTED = 0, 1, 130


def print_table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float | None]]]) -> None:
    """A title, a line of column names, and one named line of figures for each row."""
    width = max(len(name) for name, _ in rows)
    print(f"\n{title}")
    print(f"  {'':{width}}" + "".join(f"  {column:>12}" for column in columns))
    for name, values in rows:
        print(f"  {name:{width}}" + "".join(f"  {cell(value):>12}" for value in values))


def cell(value: float | None) -> str:
    """Four significant digits from 100 on, four decimals below it; a dash for None."""
    return "-" if value is None else f"{value:.4g}" if value >= 100 else f"{value:.4f}"


def median_milliseconds(trainee: Trainee) -> float:
    """Median wall time of a training step."""
    return 1000 * statistics.median(trainee.step_seconds)


def mebibytes(trainee: Trainee) -> float:
    """Temporary memory of the compiled training step."""
    return trainee.temp_bytes / 2**20


def print_cost(outcome: Outcome) -> None:
    """Of the whole compiled training step: model, loss, gradients and optimiser."""
    rows: list[tuple[str, tuple[float | None, float]]] = [
        (trainee.name, (median_milliseconds(trainee), mebibytes(trainee))) for trainee in outcome.trainees
    ]
    if outcome.whole:
        rows.insert(1, (outcome.whole.name, (None, mebibytes(outcome.whole))))
    print_table("measured cost of one training step", ("median ms", "temp MiB"), rows)


def conclude(outcome: Outcome, baseline_name: str, baseline_nll: float, picture: Path) -> int:
    """Prints the verdict and returns the exit status: 0 beaten, 1 not beaten, 130 interrupted."""
    nll = outcome.scores[0].nll
    is_beaten = nll < baseline_nll
    verb = "beats" if is_beaten else "does NOT beat"
    print(f"\ncrossent_jax {verb} {baseline_name}: held-out {nll:.4f} against {baseline_nll:.4f} nats")
    print(f"curves: {picture}")
    if outcome.interrupted:
        print("interrupted by Ctrl-C: this is what was reached until then")
        return INTERRUPTED
    return BEATEN if is_beaten else NOT_BEATEN
