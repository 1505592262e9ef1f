"""Static arguments of ``search`` and ``training``: each check returns the value, or says what was expected and what came."""

import numbers
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

LARGEST_SEED = 2**31 - 1  # of NumPy's generators 2**32 - 1, and the number of trials is added


def integer(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A Python or NumPy integer in [least, most]; True is not one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is static and must be an integer of at least {least}; got {_described(value)}.")
    value = int(value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}; got {value}.")
    return value


def function(name: str, value: Any) -> Callable:
    if not callable(value):
        raise TypeError(f"{name} must be a function; got {_described(value)}.")
    return value


def names(name: str, value: Any) -> tuple[str, ...]:
    """A collection of strings: a string alone would be taken for its letters."""
    if isinstance(value, str) or not isinstance(value, Collection) or not all(isinstance(each, str) for each in value):
        raise TypeError(f'{name} must be a tuple of names, such as ("hidden",); got {_described(value)}.')
    return tuple(value)


def arrays(name: str, value: Any) -> tuple:
    """A tuple of pytrees of arrays: an array alone would be taken for its rows."""
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name} must be a tuple of arrays, such as {name}=(x,); got {_described(value)}.")
    for leaf in jax.tree.leaves(tuple(value)):
        if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind in "OUSMm":
            raise TypeError(f"{name} must hold arrays of numbers; got {_described(leaf)}. Put anything else into the trial.")
    return tuple(value)


def study_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"name must be a string that is not empty; got {_described(value)}.")
    return value


def address(value: Any) -> str | None:
    """Of a storage: a path or a database's address as text, or None."""
    if value is None:
        return None
    if not isinstance(value, str | Path | os.PathLike):
        raise TypeError(f"storage must be a path, a database's address or None; got {_described(value)}.")
    return os.fspath(value)


def _described(value: Any) -> str:
    """The type and, where it is short, the value."""
    if isinstance(value, Tracer):
        return f"a traced array, {value.aval.str_short()}: a hyper-parameter that is needed here belongs to static="
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 80 else f"an object of type {type(value).__name__}"
