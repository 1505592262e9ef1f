"""What may be searched: a name's distribution, or the list of its values."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ._quiet import quiet

Space = Mapping[str, BaseDistribution | Sequence[Any]]
INT32 = np.iinfo(np.int32)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A list of values becomes Optuna's ``CategoricalDistribution``."""
    if not isinstance(space, Mapping):
        raise TypeError(f"space must be a dictionary of names; got {type(space).__name__} {space!r}.")
    if not space:
        raise ValueError('space is empty: give at least one name, such as {"learning_rate": [1e-3, 1e-2]}.')
    strange = [name for name in space if not isinstance(name, str)]
    if strange:
        raise TypeError(f"space must have strings as names; got {strange[0]!r}.")
    return {name: _distribution(name, given) for name, given in space.items()}


def _distribution(name: str, given: Any) -> BaseDistribution:
    if isinstance(given, CategoricalDistribution):
        given = given.choices
    if isinstance(given, BaseDistribution):
        return given
    if isinstance(given, np.ndarray | jax.Array) and given.ndim == 1:
        given = list(given)
    if not isinstance(given, list | tuple | range) or not given:
        raise ValueError(
            f"space[{name!r}] must be an optuna.distributions object or a list of at least one value; got {given!r}."
        )
    choices = tuple(_plain(value) for value in given)
    if any(isinstance(value, float) and math.isnan(value) for value in _flat(choices)):
        raise ValueError(
            f"space[{name!r}] holds nan, which is not equal to itself and so is no choice: leave it out, or take None and "
            f"add {name!r} to static."
        )
    with quiet():
        return CategoricalDistribution(choices)


def _plain(value: Any) -> Any:
    """As a study's file gives it back: a NumPy or JAX scalar as Python's, a tuple as a list."""
    if isinstance(value, np.generic | np.ndarray | jax.Array) and value.ndim == 0:
        return np.asarray(value).item()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def frozen(value: Any) -> Any:
    """As a trial gets it: lists as tuples, by which programs are told apart."""
    return tuple(frozen(each) for each in value) if isinstance(value, list | tuple) else value


def _flat(values: Iterable[Any]) -> list:
    return [each for value in values for each in (_flat(value) if isinstance(value, list | tuple) else [value])]


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value is one of a distribution's."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False


def grid_points(chosen: Mapping[str, BaseDistribution], most: int) -> list[dict[str, Any]]:
    """Every combination of values, the last name's changing fastest."""
    values = {name: _values(name, distribution) for name, distribution in chosen.items()}
    count = math.prod(len(each) for each in values.values())
    if count > most:
        sizes = " x ".join(f"{len(each)} ({name})" for name, each in values.items())
        raise ValueError(
            f"the grid has {count} points, {sizes}, more than max_grid_points={most}: give fewer values, "
            'sampler="random" or "bayesian", or a larger max_grid_points.'
        )
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def number_of_points(chosen: Mapping[str, BaseDistribution]) -> int:
    """Of a space whose values can be listed."""
    return math.prod(len(_values(name, distribution)) for name, distribution in chosen.items())


def _values(name: str, distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return [min(distribution.low + i * distribution.step, distribution.high) for i in range(count)]
    raise ValueError(
        f"space[{name!r}] is {distribution}, which has no grid: give a list of values, or a step to FloatDistribution."
    )


def first(distribution: BaseDistribution) -> Any:
    """One value, whichever."""
    return distribution.choices[0] if isinstance(distribution, CategoricalDistribution) else distribution.low  # pyright: ignore


def check_static(chosen: Mapping[str, BaseDistribution], static: Sequence[str]) -> None:
    """Static names exist and their values tell programs apart; the other values are numbers that an array holds."""
    unknown = [name for name in static if name not in chosen]
    if unknown:
        raise ValueError(f"static names {unknown}, but the space has only {list(chosen)}.")
    for name, distribution in chosen.items():
        if name not in static:
            _check_traced(name, distribution)
        elif isinstance(distribution, CategoricalDistribution):
            _check_programs(name, distribution.choices)


def _check_programs(name: str, choices: Sequence[Any]) -> None:
    found: dict[Any, Any] = {}
    for value in choices:
        try:
            same = found.setdefault(frozen(value), value)
        except TypeError:
            raise TypeError(
                f"space[{name!r}] holds {value!r}, which is not hashable, and static values tell programs apart: give its "
                "name, and look it up in the trial."
            ) from None
        if repr(same) != repr(value):
            raise ValueError(
                f"space[{name!r}] holds {same!r} and {value!r}, which are equal: one of them would stand for both. Leave "
                "one out, or give strings."
            )


def _check_traced(name: str, distribution: BaseDistribution) -> None:
    values = _ends(distribution)
    strange = [value for value in values if not isinstance(value, int | float)]
    if strange:
        raise ValueError(
            f"space[{name!r}] holds {strange[0]!r}, which cannot be an array: add {name!r} to static, and the trials "
            "of each of its values get a program of their own."
        )
    dtype = np.int32 if _whole(distribution) else np.float32
    lost = [value for value in values if not _fits(value, dtype)]
    if lost:
        raise ValueError(
            f"space[{name!r}] holds {lost[0]!r}, which {np.dtype(dtype)} cannot: the values of a name that is not static "
            f"are an array of the program. Give another unit or its logarithm, or add {name!r} to static."
        )


def _fits(value: float, dtype: type) -> bool:
    """Whether the array has the value: an integer itself, another number within rounding, not as infinity or as 0."""
    if dtype is np.int32:
        return INT32.min <= value <= INT32.max
    if isinstance(value, int):
        return abs(value) < 2**127 and int(np.float32(value)) == value
    if value == 0 or math.isinf(value):
        return True
    with np.errstate(over="ignore", under="ignore"):
        return 0 < abs(float(np.float32(value))) < math.inf


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    """All choices, or the ends of a range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return [distribution.low, distribution.high]  # pyright: ignore[reportAttributeAccessIssue]


def check_kept(chosen: Mapping[str, BaseDistribution]) -> None:
    """Choices come back from a file as they were."""
    for name, distribution in chosen.items():
        for value in distribution.choices if isinstance(distribution, CategoricalDistribution) else ():
            if not _kept(value):
                raise ValueError(
                    f"space[{name!r}] holds {value!r}, which a storage cannot keep: give numbers, strings, None or tuples "
                    "of them and look the object up in the trial, or storage=None."
                )


def _kept(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False


def _whole(distribution: BaseDistribution) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return all(isinstance(value, int) for value in distribution.choices)
    return isinstance(distribution, IntDistribution)


def as_array(distribution: BaseDistribution, values: Sequence[Any]) -> np.ndarray:
    """The values of several trials: int32 where all that the distribution holds are integers, else float32."""
    return np.asarray(values, np.int32 if _whole(distribution) else np.float32)
