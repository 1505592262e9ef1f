"""The state of a block of classes, and its gradient: the mathematics that every backend shares.

With the cotangents g of the fields of ``_row.state.State``:

    dL/du_j = e_j (g_exp_sum + g_exp_dot (1 + d_j) + g_target_exp t_j) + g_target_dot t_j + g_prior_dot pi_j
    dL/dz_j = dL/du_j du_j/dz_j        dL/dT = -sum_j d_j dL/du_j / T

A finite logit is never a masked class, and never NaN: a difference that the temperature takes beyond the dtype's numbers is
its lowest one, at which e is 0, and so is what e multiplies.

The division by the sum of exponentials is already inside the cotangents (one division per row, not per class). A class is
masked when its raw logit is -inf or ``class_mask`` is false at it, decided before the logit map (a soft cap would revive
it); it gets no gradient, and neither does a row whose cotangents are all zero, whatever its logits hold.
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._jax.dtypes import statistics_dtype
from .._jax.halves import narrowed
from .._jax.readings import on_a_gpu, read_again, sums_together
from .._jax.versions import lookup
from .labels import is_label, label_value
from .logit_map import capped, logit_map_slope, over
from .state import NO_CLASS, NOTHING, Maybe, State, as_shift, at_least, distance


class Operands(NamedTuple):
    """The arrays a backend reads. ``target``: int32 class indices, -1 for "not in this block", or probabilities. ``logits``:
    floating; None until a chunk of a projection has them."""

    logits: Any
    target: Any
    prior: Maybe = None
    class_mask: Maybe = None
    temperature: Maybe = None


class Wanted(NamedTuple):
    """What is static about a state: the class axis (negative), the soft cap, which optional fields, whether a row's
    cotangents can be zero while others' are not (then its gradient must be 0 even if its logits are NaN: one more select
    per class, 10 % of the time at 10 classes on a CPU), whether the gradient will be asked for too, and whether JAX itself
    differentiates the state, so that no derivative of an unused value may be infinite."""

    axis: int
    softcap: float | None = None
    entropy: bool = False
    target_exp: bool = False
    argmax: bool = False
    prior_count: bool = False
    rows_may_drop: bool = True
    gradient_follows: bool = False
    differentiated_by_jax: bool = False


def is_soft(target: Array) -> bool:
    """Whether the target is a distribution over the classes instead of labels."""
    return jnp.issubdtype(target.dtype, jnp.floating)


def is_plain(wanted: Wanted, operands: Operands) -> bool:
    """Whether a state reads nothing but logits and labels, and is no more than a cross-entropy needs: XLA's CPU backend
    holds arrays of a block's size for anything else."""
    return _is_plain(wanted, operands) and not (wanted.argmax or is_soft(operands.target))


def along_axis(vector: Array, ndim: int, axis: int) -> Array:
    """A ``(v,)`` vector as an array of rank ``ndim`` that broadcasts along every axis but ``axis``."""
    shape = [1] * ndim
    shape[axis] = vector.shape[0]
    return vector.reshape(shape)


def block_state(wanted: Wanted, operands: Operands, shift: Maybe = None) -> State:
    """The state of a block of classes: a whole row, a vocabulary block, or a shard. ``shift``: a number of each row in the
    place of its maximum."""
    axis = wanted.axis
    maximum = row_maximum(wanted, operands) if shift is None else shift
    classes = _classes(wanted, operands, maximum)
    of_entropy = [classes.e * at_least(classes.d, NOTHING)] if wanted.entropy else []
    exp_sum, *exp_dot = sums_together(axis, classes.e, *of_entropy)
    prior_count = jnp.sum(classes.allowed, axis, dtype=maximum.dtype) if wanted.prior_count else None
    is_long, target_exp, prior_dot, prior_mass = wanted.softcap is not None, None, None, None
    if is_soft(operands.target):
        operands, classes = _next_reading(wanted, operands, maximum, classes, is_long)
        target_dot, target_mass = _soft_fields(wanted, operands, classes)
    else:
        target_dot, target_mass = label_fields(wanted, operands, maximum)
    if wanted.target_exp and is_soft(operands.target):
        operands, classes = _next_reading(wanted, operands, maximum, classes, is_long)
        target_exp = _target_exp(wanted, operands, classes)
    if operands.prior is not None:
        operands, classes = _next_reading(wanted, operands, maximum, classes, is_long or wanted.entropy)
        prior_dot, prior_mass = _prior_fields(wanted, operands, classes)
    return State(
        maximum=maximum,
        exp_sum=exp_sum,
        exp_dot=exp_dot[0] if exp_dot else None,
        target_dot=target_dot,
        target_mass=target_mass,
        target_exp=target_exp,
        prior_dot=prior_dot,
        prior_mass=prior_mass,
        prior_count=prior_count,
        argmax=_block_argmax(wanted, operands, maximum) if wanted.argmax else None,
    )


def block_gradient(wanted: Wanted, operands: Operands, state: State, g: State) -> Operands:
    """Cotangents of the operands (None: not differentiable) from the cotangents ``g`` of the state."""
    operands, state = _apart_from_forward(operands, state)
    classes, dropped, du = _backward(wanted, operands, state, g)
    return Operands(
        logits=narrowed(_through_map(wanted, operands, dropped, du), operands.logits.dtype),
        target=_gradient_of_target(wanted, operands, classes, dropped, g) if is_soft(operands.target) else None,
        prior=None if g.prior_dot is None else _gradient_of_prior(wanted, operands, classes, dropped, g),
        temperature=_gradient_of_temperature(wanted, operands, state, g),
    )


def gradient_of_logits(wanted: Wanted, operands: Operands, state: State, g: State) -> Array:
    """The first of :func:`block_gradient`, in the dtype of the statistics."""
    _, dropped, du = _backward(wanted, operands, state, g)
    return _through_map(wanted, operands, dropped, du)


def marked_exponentials(wanted: Wanted, operands: Operands, state: State) -> Array:
    """All that :func:`gradient_of_exponentials` reads of a class: e_j, 0 where masked, and -1 at the label. (A TPU v6e forms
    the gradient inside a product: with the sign in 1.39 M model cycles, with a comparison of indices in 1.74.)"""
    e = _classes(wanted, operands, state.maximum).e
    return jnp.where(is_label(operands.target, e.shape, wanted.axis), -1, e)


def are_exponentials_enough(wanted: Wanted, operands: Operands) -> bool:
    """Whether the gradient of the logits is ``g_exp_sum e_j`` everywhere but at the label."""
    absent = (wanted.softcap, operands.prior)
    return all(x is None for x in absent) and not (wanted.entropy or wanted.target_exp or is_soft(operands.target))


def gradient_of_exponentials(wanted: Wanted, operands: Operands, state: State, g: State, marked: bool) -> Array:
    """The gradient of the logits where ``operands.logits`` are their exponentials, which may be rounded (``marked``: the
    :func:`marked_exponentials`); at the label e is that of ``target_dot``."""
    of_label = _of_label(state, jnp.exp(state.target_dot) * g.exp_sum + g.target_dot)
    of_others, of_label = (jnp.expand_dims(over(x, operands.temperature), wanted.axis) for x in (g.exp_sum, of_label))
    e = operands.logits.astype(of_others.dtype)
    at_label = e < 0 if marked else is_label(operands.target, e.shape, wanted.axis)
    dz = jnp.where(at_label, of_label, e * of_others)
    return _zero(jnp.expand_dims(without_cotangent(g), wanted.axis), dz) if wanted.rows_may_drop else dz


def _apart_from_forward(operands: Operands, state: State) -> tuple[Operands, State]:
    """Keep XLA from sharing the forward pass's exponentials with the gradient where that costs memory.

    For 16-bit logits the shared array would be float32, twice the size of the gradient itself (measured on a CPU: 64 MiB at
    2048 x 8192, and 1.5 times the time). The temperature too: broadcast once for both, it would be an array of the logits'
    size. For float32 the shared array becomes the gradient in place, which is faster, but on a GPU, which reads again (H100,
    float32 with a soft cap: 2.2 GB are moved instead of 3.2).
    """
    barrier = jax.lax.optimization_barrier
    apart = barrier if operands.logits.dtype.itemsize <= 2 else partial(on_a_gpu, barrier)
    logits, temperature, maximum = apart((operands.logits, operands.temperature, state.maximum))
    return operands._replace(logits=logits, temperature=temperature), state._replace(maximum=maximum)


def _again(operands: Operands, tpu: bool = False) -> Operands:
    """The same, whose logits a GPU (``tpu``: or a TPU) reads again. With every option together at (4096, 32768) in bfloat16
    it held 522 MiB for value and gradients before, and holds 6 MiB, which are partial sums (as compiled for an H100)."""
    logits, _ = read_again(lambda logits: logits, operands.logits, operands.logits, tpu)
    return operands._replace(logits=logits)


def without_cotangent(g: State) -> Array:
    """The rows of whose state every cotangent is 0."""
    fields = [g.exp_sum, g.exp_dot, g.target_dot, g.target_exp, g.prior_dot]
    return reduce(jnp.logical_and, [field == 0 for field in fields if field is not None])


def _of_label(state: State, gradient: Array) -> Array:
    """The gradient at the label, 0 where it is masked."""
    return jnp.where(state.target_dot == -jnp.inf, 0, gradient)


def _dropped(wanted: Wanted, operands: Operands, classes: "_Classes", g: State) -> Array | None:
    """Classes whose gradient is 0 whatever the formula says: masked ones, and all of a row without cotangents."""
    masked = None if classes.allowed is None else ~classes.allowed
    if masked is None and is_soft(operands.target):
        masked = operands.logits == -jnp.inf  # where e is 0 but a target need not be
    if not wanted.rows_may_drop:
        return masked
    dead = jnp.expand_dims(without_cotangent(g), wanted.axis)
    return dead if masked is None else dead | masked


def _zero(dropped: Maybe, gradient: Array) -> Array:
    return gradient if dropped is None else jnp.where(dropped, 0, gradient)


class _Classes(NamedTuple):
    """Per class: d and e, both 0 where masked, and which are allowed. Where nothing but e and products with it are made of d
    it is -inf there, and ``allowed`` is None where a -inf logit needs no care: only a label on it notices."""

    d: Array
    e: Array
    allowed: Maybe


def _classes(wanted: Wanted, operands: Operands, maximum: Array) -> _Classes:
    dtype, z = maximum.dtype, operands.logits
    shift = jnp.expand_dims(as_shift(maximum), wanted.axis)
    alone = _needs_exponentials_alone(wanted, operands)
    if _is_plain(wanted, operands) or (alone and wanted.softcap is None and operands.class_mask is None):
        d = _over_temperature(operands, z.astype(dtype) - shift)
        return _Classes(d, jnp.exp(d), None)
    allowed = _allowed(wanted, operands)
    c = capped(jnp.where(allowed, z, 0).astype(dtype), wanted.softcap)
    if alone:
        d = jnp.where(allowed, _over_temperature(operands, c - shift), -jnp.inf)
        return _Classes(d, jnp.exp(d), allowed)
    d = jnp.where(allowed, distance(c, shift, operands.temperature), 0)
    return _Classes(d, jnp.where(allowed, jnp.exp(at_least(d, NOTHING)), 0), allowed)


def _is_plain(wanted: Wanted, operands: Operands) -> bool:
    absent = (wanted.softcap, operands.prior, operands.class_mask, operands.temperature)
    careful = wanted.entropy or wanted.target_exp or (is_soft(operands.target) and wanted.differentiated_by_jax)
    return all(option is None for option in absent) and not careful


def _needs_exponentials_alone(wanted: Wanted, operands: Operands) -> bool:
    """Whether d may be -inf where e is 0, since nothing but e and products with it are made of d, which take it as
    ``at_least(d, NOTHING)``: no product with a target, no derivative by JAX."""
    products = wanted.target_exp or is_soft(operands.target) or operands.prior is not None
    return not products and not wanted.differentiated_by_jax


def _over_temperature(operands: Operands, apart: Array) -> Array:
    return apart if operands.temperature is None else apart / operands.temperature


def _allowed(wanted: Wanted, operands: Operands) -> Bool[Array, "..."]:
    z, mask = operands.logits, operands.class_mask
    allowed = z != -jnp.inf
    if mask is None:
        return allowed
    return allowed & (mask if mask.ndim == z.ndim else along_axis(mask, z.ndim, wanted.axis))


def _allowed_logits(wanted: Wanted, operands: Operands) -> Array:
    """-inf where masked; some dtypes of 8 bits have no infinity."""
    z = jax.lax.stop_gradient(operands.logits)
    if operands.class_mask is None:
        return z
    wide = z if z.dtype.itemsize > 1 else z.astype(statistics_dtype(z.dtype))
    return jnp.where(_allowed(wanted, operands), wide, -jnp.inf)


def row_maximum(wanted: Wanted, operands: Operands) -> Array:
    """max_j c_j, taken over the raw logits in their own dtype: the soft cap is monotone. NaN where it is +inf."""
    top = jnp.max(_allowed_logits(wanted, operands), wanted.axis).astype(statistics_dtype(operands.logits.dtype))
    if wanted.softcap is None:
        return top
    mapped = jnp.where(top == jnp.inf, jnp.nan, capped(as_shift(top), wanted.softcap))
    return jnp.where(top == -jnp.inf, -jnp.inf, mapped)


def _block_argmax(wanted: Wanted, operands: Operands, maximum: Array) -> Array:
    index = jnp.argmax(_allowed_logits(wanted, operands), wanted.axis).astype(jnp.int32)
    return jnp.where(maximum == -jnp.inf, NO_CLASS, index)


def _next_reading(wanted: Wanted, operands: Operands, maximum: Array, classes: "_Classes", is_long: bool):
    """The logits and their classes for the next sums: those of the last ones, or, where these are long expressions, made
    again from logits that a GPU reads again (H100, bfloat16 with a soft cap and label smoothing: 2 MiB instead of 514 for a
    gradient). On a TPU beside the entropy's sum in float32, which would hold the mask of allowed classes, a byte for each
    logit (and move 1.6 GB for 1.5)."""
    if not is_long:
        return operands, classes
    operands = _again(operands, tpu=wanted.entropy and operands.logits.dtype.itemsize > 2)
    return operands, _classes(wanted, operands, maximum)


def _prior_fields(wanted: Wanted, operands: Operands, classes: "_Classes") -> tuple[Array, ...]:
    """``(sum pi d, sum pi)`` of the allowed classes."""
    prior = jnp.where(classes.allowed, along_axis(operands.prior, classes.d.ndim, wanted.axis), 0)
    return sums_together(wanted.axis, prior * classes.d, prior)


def _soft_fields(wanted: Wanted, operands: Operands, classes: "_Classes") -> tuple[Array, ...]:
    """``(sum t d, sum t)``; the first is -inf where the target reaches a masked class, with the derivative of the others."""
    axis, target = wanted.axis, operands.target.astype(classes.d.dtype)
    if classes.allowed is None:  # a masked class has d = -inf
        return sums_together(axis, jnp.where(target == 0, 0, target * classes.d), target)
    reaches_masked = jnp.any((target != 0) & ~classes.allowed, axis)
    target = jnp.where(classes.allowed, target, 0)
    dot, mass = sums_together(axis, target * classes.d, target)
    return dot + jnp.where(reaches_masked, -jnp.inf, 0), mass


def _target_exp(wanted: Wanted, operands: Operands, classes: "_Classes") -> Array:
    """``sum t e``, of the allowed classes."""
    target = jnp.where(classes.allowed, operands.target.astype(classes.d.dtype), 0)
    return jnp.sum(target * classes.e, wanted.axis)


def label_fields(wanted: Wanted, operands: Operands, maximum: Array) -> tuple[Array, ...]:
    """``(d_y, 1)``, ``(-inf, 1)`` for a masked label, ``(0, 0)`` for one that is not in this block.

    The -inf is -1 / 0: XLA computes a division once per row, where it repeats a select for every class of the gradient
    (5 % of the time at 32 classes on a CPU).
    """
    here = operands.target >= 0
    z, allowed = _logit_of_label(wanted, operands)
    c = capped(jnp.where(allowed, z, 0).astype(maximum.dtype), wanted.softcap)
    dot = jnp.where(allowed, distance(c, as_shift(maximum), operands.temperature), -1) / allowed.astype(maximum.dtype)
    return jnp.where(here, dot, 0), here.astype(maximum.dtype)


def _logit_of_label(wanted: Wanted, operands: Operands) -> tuple[Array, Array]:
    z = label_value(operands.logits, operands.target, wanted.axis)
    allowed, mask = z != -jnp.inf, operands.class_mask
    if mask is None:
        return z, allowed
    if mask.ndim == operands.logits.ndim:
        return z, allowed & label_value(mask, operands.target, wanted.axis)
    return z, allowed & lookup(mask, jnp.maximum(operands.target, 0))


def _backward(wanted: Wanted, operands: Operands, state: State, g: State) -> tuple[_Classes, Maybe, Array]:
    """``(classes, dropped, dL/du)``."""
    classes = _classes(wanted, operands, state.maximum)
    dropped = _dropped(wanted, operands, classes, g)
    return classes, dropped, _zero(dropped, _gradient_of_mapped(wanted, operands, state, classes, g))


def _gradient_of_mapped(wanted: Wanted, operands: Operands, state: State, classes: _Classes, g: State) -> Array:
    """dL/du_j of the module docstring. The one-hot is subtracted in float32, before any cast."""
    axis, d, e = wanted.axis, classes.d, classes.e
    factor = jnp.expand_dims(g.exp_sum, axis)
    if g.exp_dot is not None:
        factor = factor + jnp.expand_dims(g.exp_dot, axis) * (1 + at_least(d, NOTHING))
    if g.target_exp is not None:
        factor = factor + jnp.expand_dims(g.target_exp, axis) * operands.target.astype(d.dtype)
    du = e * factor
    if is_soft(operands.target):
        du = du + jnp.expand_dims(g.target_dot, axis) * operands.target.astype(d.dtype)
    else:
        g_label = jnp.expand_dims(_of_label(state, g.target_dot), axis)
        du = du + jnp.where(is_label(operands.target, d.shape, axis), g_label, 0)
    if g.prior_dot is not None:
        du = du + jnp.expand_dims(g.prior_dot, axis) * along_axis(operands.prior, d.ndim, axis)
    return du


def _through_map(wanted: Wanted, operands: Operands, dropped: Maybe, du: Array) -> Array:
    if wanted.softcap is None and operands.temperature is None:
        return du
    z = _zero(dropped, operands.logits).astype(du.dtype)
    return du * logit_map_slope(z, wanted.softcap, operands.temperature)


def _gradient_of_target(wanted: Wanted, operands: Operands, classes: _Classes, dropped: Maybe, g: State) -> Array:
    """d state / d t_j: d_j for the dot, 1 for the mass, e_j for the exp; nothing at a masked class."""
    axis = wanted.axis
    dt = jnp.expand_dims(g.target_dot, axis) * classes.d + jnp.expand_dims(g.target_mass, axis)
    if g.target_exp is not None:
        dt = dt + jnp.expand_dims(g.target_exp, axis) * classes.e
    return narrowed(_zero(dropped, dt), operands.target.dtype)


def _gradient_of_prior(wanted: Wanted, operands: Operands, classes: _Classes, dropped: Maybe, g: State) -> Array:
    """d state / d pi_j: d_j for the dot and 1 for the mass, summed over the rows."""
    axis = wanted.axis
    dprior = jnp.expand_dims(g.prior_dot, axis) * classes.d + jnp.expand_dims(g.prior_mass, axis)
    rows = tuple(i for i in range(dprior.ndim) if i != axis % dprior.ndim)
    return jnp.sum(_zero(dropped, dprior), rows).astype(operands.prior.dtype)


def _gradient_of_temperature(wanted: Wanted, operands: Operands, state: State, g: State) -> Array | None:
    """d = (c - maximum) / T, so dd/dT = -d / T; a difference whose cotangent is 0 may be the lowest number. Of classes made
    again on a GPU: the gradient of the logits is not held for it."""
    if operands.temperature is None:
        return None
    classes, dropped, du = _backward(wanted, _again(operands), state, g)
    return -jnp.sum(_zero(dropped, du * jnp.where(du == 0, 0, classes.d))) / operands.temperature
