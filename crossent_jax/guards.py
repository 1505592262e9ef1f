"""Opt-in checks of values: label range, finite logits, targets that sum to 1, traced options in their range.

Shapes and dtypes are always checked, at trace time. Values cost a pass over the data, so they are checked only inside

    with crossent_jax.guards.values():
        loss = train_step(...)            # jitted or not

Concrete values raise at the call. Under ``jit`` the check travels with the program and is reported when the block ends,
after everything in flight has finished. Entering the block makes JAX trace jitted functions anew (the switch is part of
its cache key), so that a function compiled before is checked too, and one compiled inside carries no check outside.
Off, nothing is added to a program.
"""

from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ._dense.shards import sum_over
from ._jax.versions import is_concrete
from ._row.losses import OPTION_RANGES, LossOptions

_enabled = jax.make_user_context(default_value=False)
_failures: list[str] = []


@contextmanager
def values():
    """Check values of every loss called or run in the block.

    Raises:
        ValueError: naming the argument, the first offending position and value, and what was expected; at the call for
            concrete values, at the end of the block for values inside ``jit``.

    Example:
        >>> import jax, jax.numpy as jnp, crossent_jax
        >>> with crossent_jax.guards.values():
        ...     loss = crossent_jax.cross_entropy(jnp.zeros((2, 3)), jnp.array([0, 2]))
        >>> try:
        ...     with crossent_jax.guards.values():
        ...         crossent_jax.cross_entropy(jnp.zeros((2, 3)), jnp.array([0, 3]))
        ... except ValueError as error:
        ...     print(error)
        labels[1] is 3: expected a class id in [0, 3).
    """
    _failures.clear()
    with _enabled(True):
        yield
    jax.effects_barrier()
    if _failures:
        found, rest = _failures[0], len(_failures) - 1
        _failures.clear()
        raise ValueError(found + (f" ({rest} more failed checks in this block.)" if rest else ""))


def enabled() -> bool:
    """Whether the calling code is inside :func:`values`."""
    return _enabled.value


def require(name: str, value: Array, accepted: Bool[Array, "..."], expectation: str) -> None:
    """Demand ``accepted`` everywhere (same shape as ``value``). Traced values are looked at where guards are enabled."""
    bad = ~accepted
    if not (is_concrete(bad) or enabled()):
        return
    first = jnp.argmax(bad.reshape(-1)) if bad.size else 0
    offender = value.reshape(-1)[first] if bad.size else jnp.zeros((), value.dtype)
    report = partial(_describe, name, tuple(value.shape), expectation)
    if not is_concrete(bad):
        jax.debug.callback(lambda *facts: _failures.extend(report(*facts)), bad.any(), first, offender)
    else:
        for failure in report(bad.any(), first, offender):
            raise ValueError(failure)


def require_distribution(name: str, value: Array, axis: int, valid: Array | None, axis_name: str | None) -> None:
    """Demand entries in [0, 1] and sums of 1 along ``axis`` (over all shards), within the rounding of the dtype."""
    ignored = jnp.zeros(value.shape, bool) if valid is None else ~jnp.expand_dims(valid, axis)
    require(name, value, ((value >= 0) & (value <= 1)) | ignored, "probabilities in [0, 1]")
    total = sum_over(jnp.sum(value.astype(jnp.float32), axis), axis_name)
    slack = 8 * float(jnp.finfo(value.dtype).eps)
    close = jnp.abs(total - 1) <= max(slack, 1e-5)
    require(f"the sum of {name}", total, close if valid is None else close | ~valid, "a sum of 1 along the class axis")


def require_binary(logits: Array, labels: Array, valid: Array | None) -> None:
    """Demand finite logits and labels in [0, 1] wherever ``valid``."""
    ignored = jnp.zeros(logits.shape, bool) if valid is None else ~valid
    require("logits", logits, jnp.isfinite(logits) | ignored, "finite numbers")
    require("labels", labels, ((labels >= 0) & (labels <= 1)) | ignored, "numbers in [0, 1]")


def require_options(options: LossOptions) -> None:
    """Demand of traced options what Python numbers are checked for."""
    for name, value in options._asdict().items():
        require_between(name, value, *OPTION_RANGES[name])


def require_between(name: str, value, low: float, high: float, above: bool = False) -> None:
    """Demand of an array, not of a Python number, which is checked before, finite numbers from ``low`` (``above``: above it)
    to ``high``."""
    if isinstance(value, jax.Array):
        inside = jnp.isfinite(value) & (value > low if above else value >= low) & (value <= high)
        lower = "" if low == -jnp.inf else f", {'above' if above else 'at least'} {low:g}"
        require(name, value, inside, f"a finite number{lower}" + ("" if high == jnp.inf else f" and at most {high:g}"))


def require_finite(name: str, value) -> None:
    """Demand finite numbers of an array, if there is one."""
    if isinstance(value, jax.Array):
        require(name, value, jnp.isfinite(value), "finite numbers")


def _describe(name, shape, expectation, failed, first, offender) -> list[str]:
    if not failed:
        return []
    index = ", ".join(str(i) for i in np.unravel_index(int(first), shape)) if shape else ""
    return [f"{name}{f'[{index}]' if shape else ''} is {np.asarray(offender)}: expected {expectation}."]
