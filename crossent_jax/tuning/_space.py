"""What may be searched: a name's distribution, or the list of its values."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Space = Mapping[str, BaseDistribution | Sequence[Any]]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A list of values becomes Optuna's ``CategoricalDistribution``."""
    if not space:
        raise ValueError('space is empty: give at least one name, such as {"learning_rate": [1e-3, 1e-2]}.')
    return {name: _distribution(name, given) for name, given in space.items()}


def _distribution(name: str, given: Any) -> BaseDistribution:
    if isinstance(given, BaseDistribution):
        return given
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(
            f"space[{name!r}] must be an optuna.distributions object or a list of at least one value; got {given!r}."
        )
    return CategoricalDistribution(tuple(given))


def grid_points(chosen: Mapping[str, BaseDistribution], most: int) -> list[dict[str, Any]]:
    """Every combination of values, the last name's changing fastest."""
    values = {name: _values(name, distribution) for name, distribution in chosen.items()}
    count = int(np.prod([len(each) for each in values.values()], dtype=object))
    if count > most:
        sizes = " x ".join(f"{len(each)} ({name})" for name, each in values.items())
        raise ValueError(
            f"the grid has {count} points, {sizes}, more than max_grid_points={most}: give fewer values, "
            'sampler="random" or "bayesian", or a larger max_grid_points.'
        )
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


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


def check_static(chosen: Mapping[str, BaseDistribution], static: Sequence[str]) -> None:
    """Static names exist; what is not a number is static."""
    unknown = [name for name in static if name not in chosen]
    if unknown:
        raise ValueError(f"static names {unknown}, but the space has only {list(chosen)}.")
    for name, distribution in chosen.items():
        if name in static or not isinstance(distribution, CategoricalDistribution):
            continue
        strange = [value for value in distribution.choices if not isinstance(value, int | float)]
        if strange:
            raise ValueError(
                f"space[{name!r}] holds {strange[0]!r}, which cannot be an array: add {name!r} to static, and the trials "
                "of each of its values get a program of their own."
            )


def as_array(distribution: BaseDistribution, values: Sequence[Any]) -> np.ndarray:
    """The values of several trials: int32 where all that the distribution holds are integers, else float32."""
    if isinstance(distribution, CategoricalDistribution):
        whole = all(isinstance(value, int) for value in distribution.choices)
    else:
        whole = isinstance(distribution, IntDistribution)
    return np.asarray(values, np.int32 if whole else np.float32)
