"""Warnings of Optuna about what is done here on purpose."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna calls heartbeats experimental and expects them of its own loop alone; lists as choices do survive a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        warnings.filterwarnings("ignore", message="Choices for a categorical distribution")
        yield
