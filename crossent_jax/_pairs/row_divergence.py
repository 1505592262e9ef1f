"""The divergence of each row of two arrays of logits: two log-sum-exps, then one sum of phi over the classes.

With ``u`` and ``w`` the logits over the temperature T, ``p = softmax(u)`` and ``t = softmax(w)``,

    D = finish(sum_j phi_j)     dD/du_j = chi_j - p_j sum(chi)     dD/dw_j = tau_j - t_j sum(tau)     (times finish')
    dD/dT = -sum_j (u_j dD/du_j + w_j dD/dw_j) / T

Nothing divides by a probability. ``x = log p - log t`` is taken from the difference of the logits, which is exact where they
are close: of logs of probabilities, each rounded, a divergence of 1e-10 would be lost (their difference is off by 1e-7, as
large as x itself). Rounding a common offset to a whole number keeps that exact for logits that differ by one.

The rule is a ``custom_jvp``, linear in the tangents, so every mode of differentiation and every order works; sums over the
shards of a vocabulary stand inside it.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._dense.shards import sum_over
from .._row.state import Maybe, as_shift, log_of_sum
from .kinds import SMALLEST_SHIFT, Elements, Kind, Terms, weighted, with_constants


class Static(NamedTuple):
    """The kind, and the mesh axis over which the classes are split (None: they are not)."""

    kind: Kind
    axis_name: str | None


class Pair(NamedTuple):
    """Logits of both sides, float32 or float64, the classes last, -inf where masked. ``temperature`` and ``parameter`` (of
    the kind) have the rows' shape and a last axis of 1; None: 1, and none. A user's kind has a tuple of any arrays."""

    logits: Float[Array, "*rows v"]
    teacher: Float[Array, "*rows v"]
    temperature: Maybe
    parameter: Any


def row_divergence(static: Static, pair: Pair) -> Float[Array, "*rows"]:
    """The divergence of each row, at least 0 but for a user's kind. A row without classes on either side has 0."""
    if static.kind.integrand is not None:
        kind, constants = with_constants(static.kind, pair.logits, pair.teacher)
        static, pair = static._replace(kind=kind), pair._replace(parameter=constants)
    return _row_divergence(static, pair)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _row_divergence(static: Static, pair: Pair) -> Float[Array, "*rows"]:
    value, _ = _value(static, pair, _sides(static, pair))
    return value


@partial(_row_divergence.defjvp, symbolic_zeros=True)
def _row_divergence_jvp(static: Static, primals, tangents):
    (pair,), (tangent,) = primals, tangents
    sides = _sides(static, pair)
    value, (terms, shift, total) = _value(static, pair, sides)
    masked = _masked(pair, sides.alone)
    of_student = _coefficients(static, value, terms.chi, sides.elements.p, masked[0], static.kind.balanced[0])
    of_teacher = _coefficients(static, value, terms.tau, sides.elements.t, masked[1], static.kind.balanced[1])
    change = jnp.zeros_like(total)
    if _moves(tangent.logits):
        change += jnp.sum(_over_temperature(pair, of_student) * tangent.logits, -1)
    if _moves(tangent.teacher):
        change += jnp.sum(_over_temperature(pair, of_teacher) * tangent.teacher, -1)
    if _moves(tangent.temperature):
        along = weighted(of_student, sides.student.d) + weighted(of_teacher, sides.teacher.d)
        change -= jnp.sum(along, -1) * (tangent.temperature / pair.temperature)[..., 0]
    if any(map(_moves, jax.tree.leaves(tangent.parameter, is_leaf=_is_zero))):
        phi_of = partial(_phi, static.kind, sides.elements, shift)
        moving = jax.tree.map(_instantiated, pair.parameter, tangent.parameter)
        change += jnp.sum(jax.jvp(phi_of, (pair.parameter,), (moving,))[1], -1)
    return value, _slope(static.kind, total, shift) * sum_over(change, static.axis_name)


def _slope(kind: Kind, total: Array, shift: Maybe) -> Any:
    """finish'; 0 where it has no finite limit."""
    slope = jax.jvp(lambda total: kind.finish(total, shift), (total,), (jnp.ones_like(total),))[1]
    return jnp.where(jnp.isinf(slope), 0, slope)


def _coefficients(static: Static, value: Array, chi: Array, p: Array, masked: Array, balanced: bool) -> Array:
    """``chi - p sum(chi)``; 0 where masked, and in a row whose divergence is infinite and whose derivative has no finite
    limit."""
    if balanced:
        return jnp.where(masked, 0, chi)
    total = _total(static.axis_name, chi)[..., None]
    lost = (value == jnp.inf)[..., None] & ~jnp.isfinite(total)
    return jnp.where(lost | masked, 0, chi - p * total)


def _phi(kind: Kind, elements: Elements, shift: Maybe, parameter: Array) -> Array:
    return kind.terms(elements, parameter, shift).phi


def _moves(tangent) -> bool:
    return tangent is not None and not _is_zero(tangent)


def _is_zero(tangent) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _instantiated(primal: Array, tangent) -> Array:
    return jnp.zeros_like(primal) if _is_zero(tangent) else tangent


class _Side(NamedTuple):
    """``d = u - max u``, e = exp(d), and their sum (0: no class), which has the rows' shape: XLA's CPU loops over ``(n, 1)``
    one number at a time, which made the logarithms of 32768 rows take 0.3 ms instead of 0.04."""

    d: Array
    e: Array
    total: Array


class _Sides(NamedTuple):
    """``alone``: the rows of which one side has no class, with a last axis of 1."""

    student: _Side
    teacher: _Side
    elements: Elements
    alone: Array


def _side(z: Array, maximum: Array, pair: Pair, axis_name: str | None) -> _Side:
    d = _over_temperature(pair, z - maximum)
    e = jnp.exp(d)
    return _Side(d, e, _total(axis_name, e))


def _sides(static: Static, pair: Pair) -> _Sides:
    tops = [_maximum(z, static.axis_name) for z in pair[:2]]
    student, teacher = (_side(z, top, pair, static.axis_name) for z, top in zip(pair[:2], tops, strict=True))
    offsets = _offsets(*tops)
    log_sums = [log_of_sum(side.total)[..., None] for side in (student, teacher)]
    apart = _over_temperature(pair, (tops[0] - offsets[0]) - (tops[1] - offsets[1])) + (log_sums[0] - log_sums[1])
    x = _over_temperature(pair, (pair.logits - offsets[0]) - (pair.teacher - offsets[1])) - apart
    nowhere = (pair.logits == -jnp.inf) & (pair.teacher == -jnp.inf)
    elements = Elements(
        _shares(student), _shares(teacher), jnp.where(nowhere, 0, x), student.d - log_sums[0], teacher.d - log_sums[1]
    )
    alone = ((student.total == 0) ^ (teacher.total == 0))[..., None]
    return _Sides(student, teacher, elements, alone)


def _masked(pair: Pair, alone: Array) -> list[Array]:
    """Of each side, the classes that get no gradient; all of a row of which one side has no class."""
    return [(z == -jnp.inf) | alone for z in pair[:2]]


def _unlike_the_gradient(alone: Array) -> Array:
    """The same rows. On a TPU XLA must not see that the value's mask is the gradient's: it would make the masked derivatives
    once, hold them in float32, and read them twice (v6e, KL of bfloat16: 1.3 times the cycles by its model)."""
    return jax.lax.platform_dependent(alone, tpu=jax.lax.optimization_barrier, default=lambda alone: alone)


def _offsets(top: Array, teacher_top: Array) -> tuple[Array, Array]:
    """Whole numbers that take away what the rows differ by, from the side that has it: the other one's digits stay. Rows
    that differ by more than the dtype holds are each taken relative to their own maximum, a whole number too."""
    offset = jnp.round(top - teacher_top)
    far, own = jnp.isinf(offset), jnp.abs(top) >= jnp.abs(teacher_top)
    return jnp.where(far, top, jnp.where(own, offset, 0)), jnp.where(far, teacher_top, jnp.where(own, 0, -offset))


def _shares(side: _Side) -> Array:
    """The probabilities; 0 where there is no class."""
    empty = side.total == 0
    return side.e * jnp.where(empty, 0, 1 / jnp.where(empty, 1, side.total))[..., None]


def _maximum(z: Array, axis_name: str | None) -> Array:
    """Over the classes, the last axis, which stays, and over all shards; 0 for none. A shift: it has no derivative."""
    top = jax.lax.stop_gradient(jnp.max(z, -1, keepdims=True))
    return as_shift(top if axis_name is None else jax.lax.pmax(top, axis_name))


def _over_temperature(pair: Pair, z: Array) -> Array:
    return z if pair.temperature is None else z / pair.temperature


def _value(static: Static, pair: Pair, sides: _Sides) -> tuple[Array, tuple[Terms, Maybe, Array]]:
    """``(divergence, (terms, shift, sum of phi))``."""
    kind = static.kind
    shift = None if kind.exponent is None else _shift(kind.exponent(sides.elements), static.axis_name)
    terms = kind.terms(sides.elements, pair.parameter, shift)
    total = _total(static.axis_name, terms.phi)
    value = kind.finish(total, shift)
    masks = _masked(pair, _unlike_the_gradient(sides.alone))
    for balanced, slope, masked in zip(kind.balanced, (terms.chi, terms.tau), masks, strict=True):
        if balanced:
            excess = _total(static.axis_name, jnp.where(masked, 0, slope))
            value = jnp.maximum(value - _minus_log1p(excess), 0)
    no_student, no_teacher = (side.total == 0 for side in (sides.student, sides.teacher))
    value = jnp.where(no_student ^ no_teacher, jnp.inf, jnp.where(no_student & no_teacher, 0, value))
    return value, (terms, shift, total)


def _total(axis_name: str | None, terms: Array) -> Array:
    return sum_over(jnp.sum(terms, -1), axis_name)


def _minus_log1p(r: Array) -> Array:
    """``r - log(1 + r)``, by its series where it cancels."""
    small = jnp.abs(r) < 1e-3
    return jnp.where(small, r * r * (1 / 2 - r * (1 / 3 - r * (1 / 4 - r / 5))), r - jnp.log1p(jnp.where(small, 0, r)))


def _shift(exponents: Array, axis_name: str | None) -> Array:
    """The logarithm of each row's sum of powers, so that the sum relative to it neither over- nor underflows nor cancels; 0
    where it is small; the lowest number for an empty sum, whose powers are then 0."""
    log = jax.lax.stop_gradient(log_sum_exp(exponents, axis_name))
    log = jnp.where(log == -jnp.inf, jnp.finfo(log.dtype).min, log)
    return jnp.where(jnp.isfinite(log) & (jnp.abs(log) > SMALLEST_SHIFT), log, 0)


def log_sum_exp(u: Array, axis_name: str | None) -> Array:
    """Over the classes, the last axis, which stays, and over all shards; -inf for none."""
    top = _maximum(u, axis_name)
    total = sum_over(jnp.sum(jnp.exp(u - top), -1, keepdims=True), axis_name)
    return jnp.where(total == 0, -jnp.inf, top + log_of_sum(total))
