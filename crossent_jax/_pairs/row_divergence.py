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

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._dense.shards import sum_over
from .._jax.readings import read_again, sums_together
from .._row.state import Maybe, as_shift, log_of_sum
from .kinds import SMALLEST_SHIFT, Elements, Kind, weighted, with_constants
from .logits import Given, wide_logits

SLOPES = ("chi", "tau")


class Static(NamedTuple):
    """The kind, the mesh axis over which the classes are split (None: they are not), and the soft cap of what is given."""

    kind: Kind
    axis_name: str | None
    softcap: float | None = None


class Pair(NamedTuple):
    """Logits of both sides, float32 or float64, the classes last, -inf where masked. ``temperature`` and ``parameter`` (of
    the kind) have the rows' shape and a last axis of 1; None: 1, and none. A user's kind has a tuple of any arrays.
    ``given``: what the logits are made of, where a GPU shall make them again. The rule counts the tangents of the logits
    alone, which have those of ``given`` in them; a derivative of the rule itself goes through whichever was read."""

    logits: Float[Array, "*rows v"]
    teacher: Float[Array, "*rows v"]
    temperature: Maybe
    parameter: Any
    given: Given | None = None


def row_divergence(static: Static, pair: Pair) -> Float[Array, "*rows"]:
    """The divergence of each row, at least 0 but for a user's kind. A row without classes on either side has 0."""
    if static.kind.integrand is not None:
        kind, constants = with_constants(static.kind, pair.logits, pair.teacher)
        static, pair = static._replace(kind=kind), pair._replace(parameter=constants)
    return _row_divergence(static, pair)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _row_divergence(static: Static, pair: Pair) -> Float[Array, "*rows"]:
    value, _ = _value(static, *_sums(static, pair), moves=(False, False))
    return value


@partial(_row_divergence.defjvp, symbolic_zeros=True)
def _row_divergence_jvp(static: Static, primals, tangents):
    (pair,), (tangent,) = primals, tangents
    pair, sums = _sums(static, pair)
    value, (pair, shift, phi, slopes) = _value(static, pair, sums, [_moves(z, tangent.temperature) for z in tangent[:2]])
    pair = _made_anew(static, pair, tpu=_of_16_bits(pair))
    sides = _sides(pair, sums)
    terms = static.kind.terms(sides.elements, pair.parameter, shift)
    masked = _masked(pair, sides.alone)
    of_student = _coefficients(value, terms.chi, sides.elements.p, masked[0], slopes[0])
    of_teacher = _coefficients(value, terms.tau, sides.elements.t, masked[1], slopes[1])
    change = jnp.zeros_like(phi)
    if _moves(tangent.logits):
        change += jnp.sum(_over_temperature(pair, of_student) * tangent.logits, -1)
    if _moves(tangent.teacher):
        change += jnp.sum(_over_temperature(pair, of_teacher) * tangent.teacher, -1)
    if _moves(tangent.temperature):
        along = weighted(of_student, sides.student.d) + weighted(of_teacher, sides.teacher.d)
        change -= jnp.sum(along, -1) * (tangent.temperature / pair.temperature)[..., 0]
    if _moves(*jax.tree.leaves(tangent.parameter, is_leaf=_is_zero)):
        phi_of = partial(_phi, static.kind, sides.elements, shift)
        moving = jax.tree.map(_instantiated, pair.parameter, tangent.parameter)
        change += jnp.sum(jax.jvp(phi_of, (pair.parameter,), (moving,))[1], -1)
    return value, _slope(static.kind, phi, shift) * sum_over(change, static.axis_name)


def _slope(kind: Kind, total: Array, shift: Maybe) -> Any:
    """finish'; 0 where it has no finite limit."""
    slope = jax.jvp(lambda total: kind.finish(total, shift), (total,), (jnp.ones_like(total),))[1]
    return jnp.where(jnp.isinf(slope), 0, slope)


def _coefficients(value: Array, chi: Array, p: Array, masked: Array, total: Maybe) -> Array:
    """``chi - p sum(chi)``, with the sum as ``total`` (None: 0); 0 where masked, and in a row whose divergence is infinite
    and whose derivative has no finite limit."""
    if total is None:
        return jnp.where(masked, 0, chi)
    total = total[..., None]
    lost = (value == jnp.inf)[..., None] & ~jnp.isfinite(total)
    return jnp.where(lost | masked, 0, chi - p * total)


def _phi(kind: Kind, elements: Elements, shift: Maybe, parameter: Array) -> Array:
    return kind.terms(elements, parameter, shift).phi


def _moves(*tangents) -> bool:
    """Whether any of them is one."""
    return any(tangent is not None and not _is_zero(tangent) for tangent in tangents)


def _is_zero(tangent) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _instantiated(primal: Array, tangent) -> Array:
    return jnp.zeros_like(primal) if _is_zero(tangent) else tangent


class _Totals(NamedTuple):
    """Of each row: the shift, the sum of phi, and those of chi and tau (None: 0, or not asked for). ``pair``: what is to be
    read again next."""

    pair: Pair
    shift: Maybe
    phi: Array
    slopes: list[Maybe]


def _made_anew(static: Static, pair: Pair, tpu: bool = False) -> Pair:
    """The same pair, whose logits a GPU (``tpu``: or a TPU) makes again from what is given: ``_jax/readings.py`` says why.

    TPUs do so in two places, for each of which a v6e held a float32 array, 512 MiB at (4096, 32768): the gradient of 16-bit
    logits (the two KL divergences move 1.9 GB for 3.5; model cycles over those without: v6e 0.97 to 1.08, v5e 0.97 to 1.12),
    and the shift of powers (the value of Renyi's in float32, 1.15 and 1.00; all else is as it was).
    """
    if pair.given is None:
        return pair
    wide = partial(wide_logits, static.softcap, pair.logits.dtype)
    (logits, teacher), given = read_again(wide, (pair.logits, pair.teacher), pair.given, tpu)
    return pair._replace(logits=logits, teacher=teacher, given=given)


def _of_16_bits(pair: Pair) -> bool:
    return pair.given is not None and min(z.dtype.itemsize for z in pair.given[:2]) <= 2


class _Sum(NamedTuple):
    """``max u``, with a last axis of 1, and the sum of ``exp(u - max u)`` (0: no class), which has the rows' shape: XLA's
    CPU loops over ``(n, 1)`` one number at a time, which made the logarithms of 32768 rows take 0.3 ms instead of 0.04."""

    top: Array
    total: Array


class _Side(NamedTuple):
    """``d = u - max u``, and e = exp(d)."""

    d: Array
    e: Array


class _Sides(NamedTuple):
    """``alone``: the rows of which one side has no class, with a last axis of 1."""

    student: _Side
    teacher: _Side
    elements: Elements
    alone: Array


def _sums(static: Static, pair: Pair) -> tuple[Pair, list[_Sum]]:
    tops = [_maximum(z, static.axis_name) for z in pair[:2]]
    pair = _made_anew(static, pair)
    sides = [_side(z, top, pair) for z, top in zip(pair[:2], tops, strict=True)]
    return pair, [_Sum(top, _total(static.axis_name, side.e)) for top, side in zip(tops, sides, strict=True)]


def _side(z: Array, maximum: Array, pair: Pair) -> _Side:
    d = _over_temperature(pair, z - maximum)
    return _Side(d, jnp.exp(d))


def _sides(pair: Pair, sums: list[_Sum]) -> _Sides:
    student, teacher = (_side(z, of.top, pair) for z, of in zip(pair[:2], sums, strict=True))
    tops, totals = zip(*sums, strict=True)
    offsets = _offsets(*tops)
    log_sums = [log_of_sum(total)[..., None] for total in totals]
    apart = _over_temperature(pair, (tops[0] - offsets[0]) - (tops[1] - offsets[1])) + (log_sums[0] - log_sums[1])
    x = _over_temperature(pair, (pair.logits - offsets[0]) - (pair.teacher - offsets[1])) - apart
    nowhere = (pair.logits == -jnp.inf) & (pair.teacher == -jnp.inf)
    elements = Elements(
        _shares(student.e, totals[0]),
        _shares(teacher.e, totals[1]),
        jnp.where(nowhere, 0, x),
        student.d - log_sums[0],
        teacher.d - log_sums[1],
    )
    alone = ((totals[0] == 0) ^ (totals[1] == 0))[..., None]
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


def _shares(e: Array, total: Array) -> Array:
    """The probabilities; 0 where there is no class."""
    empty = total == 0
    return e * jnp.where(empty, 0, 1 / jnp.where(empty, 1, total))[..., None]


def _maximum(z: Array, axis_name: str | None) -> Array:
    """Over the classes, the last axis, which stays, and over all shards; 0 for none. A shift: it has no derivative."""
    top = jax.lax.stop_gradient(jnp.max(z, -1, keepdims=True))
    return as_shift(top if axis_name is None else jax.lax.pmax(top, axis_name))


def _over_temperature(pair: Pair, z: Array) -> Array:
    return z if pair.temperature is None else z / pair.temperature


def _value(static: Static, pair: Pair, sums: list[_Sum], moves: Sequence[bool]) -> tuple[Array, _Totals]:
    """``(divergence, sums)``. ``moves``: whether the student's, and the teacher's derivatives will be asked for."""
    kind = static.kind
    pair, shift = (pair, None) if kind.exponent is None else _shift(static, pair, sums)
    asked = kind.balanced if any(kind.balanced) else moves
    names = ["phi", *(name for name, is_asked in zip(SLOPES, asked, strict=True) if is_asked)]
    pair, totals = _sums_of_terms(static, pair, sums, shift, names)
    phi, slopes = totals["phi"], [totals.get(name) for name in SLOPES]
    value = kind.finish(phi, shift)
    if any(kind.balanced):
        excess = totals[names[1]]
        value = jnp.maximum(value - _minus_log1p(excess), 0)
        slopes = [None if balanced else phi - excess for balanced in kind.balanced]
    no_student, no_teacher = (of.total == 0 for of in sums)
    value = jnp.where(no_student ^ no_teacher, jnp.inf, jnp.where(no_student & no_teacher, 0, value))
    return value, _Totals(pair, shift, phi, slopes)


def _sums_of_terms(static: Static, pair: Pair, sums: list[_Sum], shift: Maybe, names: list[str]):
    """``(pair, {name: sum})`` of the terms of these names; a GPU reads given logits once for two of them. It would hold one
    more array for a sum of pairs of a chunk's logits (:func:`sums_together`)."""
    totals = {}
    for two in filter(None, (names[:2], names[2:])):
        pair = _made_anew(static, pair)
        sides = _sides(pair, sums)
        terms = static.kind.terms(sides.elements, pair.parameter, shift)
        masks = _masked(pair, _unlike_the_gradient(sides.alone))
        chi, tau = (
            jnp.where(masked, 0, slope) if balanced else slope
            for balanced, slope, masked in zip(static.kind.balanced, terms[1:], masks, strict=True)
        )
        of_classes = [getattr(terms._replace(chi=chi, tau=tau), name) for name in two]
        of_rows = [jnp.sum(x, -1) for x in of_classes] if pair.given is None else sums_together(-1, *of_classes)
        totals |= {name: sum_over(x, static.axis_name) for name, x in zip(two, of_rows, strict=True)}
    return pair, totals


def _total(axis_name: str | None, terms: Array) -> Array:
    return sum_over(jnp.sum(terms, -1), axis_name)


def _minus_log1p(r: Array) -> Array:
    """``r - log(1 + r)``, by its series where it cancels."""
    small = jnp.abs(r) < 1e-3
    return jnp.where(small, r * r * (1 / 2 - r * (1 / 3 - r * (1 / 4 - r / 5))), r - jnp.log1p(jnp.where(small, 0, r)))


def _shift(static: Static, pair: Pair, sums: list[_Sum]) -> tuple[Pair, Array]:
    """The logarithm of each row's sum of powers, so that the sum relative to it neither over- nor underflows nor cancels; 0
    where it is small; the lowest number for an empty sum, whose powers are then 0."""
    exponent = static.kind.exponent
    assert exponent is not None
    first = _made_anew(static, pair, tpu=True)
    top = _maximum(exponent(_sides(first, sums).elements), static.axis_name)
    pair = _made_anew(static, first, tpu=True)
    log = jax.lax.stop_gradient(_log_sum_exp_from(exponent(_sides(pair, sums).elements), top, static.axis_name))
    log = jnp.where(log == -jnp.inf, jnp.finfo(log.dtype).min, log)
    return pair, jnp.where(jnp.isfinite(log) & (jnp.abs(log) > SMALLEST_SHIFT), log, 0)


def log_sum_exp(u: Array, axis_name: str | None) -> Array:
    """Over the classes, the last axis, which stays, and over all shards; -inf for none."""
    return _log_sum_exp_from(u, _maximum(u, axis_name), axis_name)


def _log_sum_exp_from(u: Array, top: Array, axis_name: str | None) -> Array:
    total = sum_over(jnp.sum(jnp.exp(u - top), -1, keepdims=True), axis_name)
    return jnp.where(total == 0, -jnp.inf, top + log_of_sum(total))
