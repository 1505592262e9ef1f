"""The trials of a batch, and the seeds of each, as one compiled program."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optuna.distributions import BaseDistribution

from ._space import as_array, frozen


class Read(Mapping):
    """The hyper-parameters of one trial, which remembers the names that were read."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise KeyError(f"the trial reads {name!r}; the space has {list(self._values)}")
        self.read.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Programs(NamedTuple):
    """``programs(hypers)`` scores trials: one program for each choice of static values and each (rounded) number of trials.

    ``trial(hyper, key, *data)`` returns what ``score`` turns into nats per example.
    """

    trial: Callable
    score: Callable
    distributions: Mapping[str, BaseDistribution]
    static: Sequence[str]
    keys: jax.Array
    data: tuple
    at_once: int | None
    compiled: dict

    def groups(self, hypers: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Positions of the trials that share their static values."""
        found = defaultdict(list)
        for position, hyper in enumerate(hypers):
            found[self._fixed(hyper)].append(position)
        return list(found.values())

    def __call__(self, hypers: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Scores, (trials, seeds), of trials that share their static values.

        The number of trials is rounded up to a power of two, the last one repeated, so that few programs are compiled.
        """
        program, arguments = self._call(hypers)
        return np.asarray(program(*arguments))[: len(hypers)]

    def trace(self, hypers: Sequence[Mapping[str, Any]]) -> None:
        """Raises what the trial or the score raises of themselves; the call that follows does not trace again."""
        program, arguments = self._call(hypers)
        program.eval_shape(*arguments)

    def _call(self, hypers: Sequence[Mapping[str, Any]]) -> tuple[Any, tuple]:
        count = len(hypers)
        padded = [*hypers, *[hypers[-1]] * (2 ** (count - 1).bit_length() - count)]
        traced = {
            name: as_array(distribution, [hyper[name] for hyper in padded])
            for name, distribution in self.distributions.items()
            if name not in self.static
        }
        fixed = self._fixed(hypers[0])
        if fixed not in self.compiled:
            self.compiled[fixed] = self._program(dict(zip(self.static, fixed, strict=True)))
        return self.compiled[fixed], (traced, len(padded), self.keys, self.data)

    def _fixed(self, hyper: Mapping[str, Any]) -> tuple:
        return tuple(frozen(hyper[name]) for name in self.static)

    def _program(self, fixed: Mapping[str, Any]) -> Callable:
        def one(traced, key, data):
            hyper = Read(fixed | traced)
            value = jnp.asarray(self.score(self.trial(hyper, key, *data)))
            if value.shape:
                raise ValueError(f"score must return one number for a trial; got shape {value.shape}.")
            if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
                raise TypeError(f"score must return a real number for a trial; got dtype {value.dtype}.")
            unread = set(hyper) - hyper.read
            if unread:
                raise ValueError(
                    f"the trial never reads {sorted(unread)}, which the space has: a misspelt name? One that only some "
                    "static values need is read for all of them."
                )
            return value

        def all_of_them(traced, count, keys, data):
            seeds = len(keys)
            runs = jax.tree.map(lambda x: jnp.repeat(x, seeds, axis=0), traced), keys[jnp.arange(count * seeds) % seeds]
            scores = jax.lax.map(lambda run: one(run[0], run[1], data), runs, batch_size=self._side_by_side(count * seeds))
            return jnp.reshape(scores, (count, seeds))

        return jax.jit(all_of_them, static_argnums=1)

    def _side_by_side(self, runs: int) -> int | None:
        """Matrix products of many small models at once are slower on a CPU than one after another (None)."""
        wanted = min(runs, self.at_once or (1 if jax.default_backend() == "cpu" else runs))
        return wanted if wanted > 1 else None
