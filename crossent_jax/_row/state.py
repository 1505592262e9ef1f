"""The heart of the library: the state of a row, its monoid, and the statistics made from it.

Alphabet of every file: raw logits ``z``, capped logits ``c``, mapped logits ``u = c / T``, ``p = softmax(u)``, label ``y``
or target distribution ``t_j``, prior ``pi_j`` (class weights, or 1); ``d_j = (c_j - maximum) / T`` and ``e_j = exp(d_j)``.
Sums run over the unmasked classes. (``_row.plain`` has another number in the maximum's place.)

| field of State  | meaning                      | d field / d u_j, ``maximum`` held fixed |
|-----------------|------------------------------|------------------------------------------|
| ``maximum``     | max_j c_j                    | none                                     |
| ``exp_sum``     | sum_j e_j                    | e_j                                      |
| ``exp_dot``     | sum_j e_j d_j                | e_j (1 + d_j)                            |
| ``target_dot``  | sum_j t_j d_j (labels: d_y)  | t_j (labels: [j = y])                    |
| ``target_mass`` | sum_j t_j (labels: y found)  | 0                                        |
| ``target_exp``  | sum_j t_j e_j                | t_j e_j                                  |
| ``prior_dot``   | sum_j pi_j d_j               | pi_j                                     |
| ``prior_mass``  | sum_j pi_j                   | 0                                        |
| ``prior_count`` | sum_j 1 (None: pi_j is 1)    | 0                                        |
| ``argmax``      | lowest index of max_j c_j    | none                                     |

Why ``maximum`` may be held fixed: each statistic is the same number for every choice of it, provided all fields use the
same choice. It is a shift, not a variable, so its total derivative is zero. The cotangents that JAX sends to the other
fields are then all that a gradient kernel needs (``_row.block.block_gradient``), and the loss, the merge over a mesh and the
statistics stay plain ``jax.numpy`` that JAX differentiates itself.

Why everything is relative to ``maximum``: ``nll = log exp_sum - (u_y - maximum)`` loses nothing to a common offset of the
logits, where ``lse - u_y`` loses the offset's last bits (3e-5 against 3e-7 at an offset of 1000 in float32). Differences are
divided by the temperature, not logits, for the same reason.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .logit_map import over

Maybe = Any  # an array, or None where nobody asked for it

NO_CLASS = jnp.iinfo(jnp.int32).max  # the argmax of a block with no unmasked class, so that min() joins two blocks


class State(NamedTuple):
    """What has been seen of each row; the module docstring has the fields. A field nobody asked for is None."""

    maximum: Float[Array, "..."]
    exp_sum: Float[Array, "..."]
    exp_dot: Maybe
    target_dot: Float[Array, "..."]
    target_mass: Float[Array, "..."]
    target_exp: Maybe
    prior_dot: Maybe
    prior_mass: Maybe
    prior_count: Maybe
    argmax: Maybe


class RowStats(NamedTuple):
    """Statistics of each row, in nats: float32 (float64 for float64 logits), differentiable except ``argmax``.

    | field | meaning |
    |---|---|
    | ``lse`` | log-sum-exp of the logits; -inf where every class is masked |
    | ``nll`` | negative log-likelihood of the label, ``-log p_y`` (soft targets: ``-sum_j t_j log p_j``) |
    | ``ce_prior`` | mean of ``-w_j log p_j`` over the unmasked classes, w the class weights or 1; None where not in use |
    | ``entropy`` | ``-sum_j p_j log p_j``; None where not asked for |
    | ``target_probability`` | ``p_y`` (soft targets: ``sum_j t_j p_j``) |
    | ``target_mass`` | 1 (soft targets: ``sum_j t_j``) |
    | ``argmax`` | lowest index of the largest logit, -1 where every class is masked; None where not asked for |
    """

    lse: Float[Array, "..."]
    nll: Float[Array, "..."]
    ce_prior: Maybe
    entropy: Maybe
    target_probability: Maybe
    target_mass: Float[Array, "..."]
    argmax: Maybe


def as_shift(maximum: Float[Array, "..."]) -> Float[Array, "..."]:
    """The number that logits are taken relative to: the maximum, or 0 where every class is masked."""
    return jnp.where(maximum == -jnp.inf, 0, maximum)


NOTHING = -1024.0  # exp of it, and of anything lower, is 0 in float64 too


def at_least(d: Array, least: float) -> Array:
    """The larger one, or NaN; without a derivative where that is ``least``."""
    return jnp.where(d < least, least, d)


def distance(c: Array, shift: Array, temperature: Maybe) -> Array:
    """``(c - shift) / T``, finite where c and shift are: the lowest number where it would leave the dtype's range."""
    return over(at_least(c - shift, float(jnp.finfo(c.dtype).min)), temperature)


def rebase(state: State, maximum: Float[Array, "..."], temperature: Maybe) -> State:
    """The same rows relative to another, not smaller, maximum M: with move = (m - M) / T, sums of e scale by exp(move),
    dots of d move by that times their mass, and ``exp_dot`` does both."""
    empty, shift = state.maximum == -jnp.inf, as_shift(maximum)
    move = distance(jnp.where(empty | jnp.isnan(shift), shift, state.maximum), shift, temperature)
    near = at_least(move, NOTHING)
    scale = jnp.exp(near)
    return State(
        maximum=maximum,
        exp_sum=scale * state.exp_sum,
        exp_dot=_map(lambda q: scale * (q + near * state.exp_sum), state.exp_dot),
        target_dot=state.target_dot + move * state.target_mass,
        target_mass=state.target_mass,
        target_exp=_map(lambda h: scale * h, state.target_exp),
        prior_dot=_map(lambda r: r + move * state.prior_mass, state.prior_dot),
        prior_mass=state.prior_mass,
        prior_count=state.prior_count,
        argmax=_map(lambda index: jnp.where(empty | (state.maximum < maximum), NO_CLASS, index), state.argmax),
    )


def merge(a: State, b: State, temperature: Maybe) -> State:
    """Join two disjoint blocks of classes: associative, commutative, with the all-masked block as identity."""
    maximum = jnp.maximum(a.maximum, b.maximum)
    a, b = rebase(a, maximum, temperature), rebase(b, maximum, temperature)
    joined = jax.tree.map(jnp.add, a._replace(argmax=None), b._replace(argmax=None))
    argmax = None if a.argmax is None else jnp.minimum(a.argmax, b.argmax)
    return joined._replace(maximum=maximum, argmax=argmax)


def finalize(state: State, *, temperature: Maybe, soft: bool) -> RowStats:
    """Statistics of complete rows.

    A row whose sum is not a positive number (all masked: 0; NaN or +inf in the row: NaN) takes its statistics from
    constants, so that a zero cotangent arriving here leaves as zero and never as 0 * NaN.

    A masked class is as if it were not there: ``ce_prior = (prior_mass log exp_sum - prior_dot) / prior_count``.
    """
    masked, usable = state.maximum == -jnp.inf, state.exp_sum > 0
    exp_sum, log_sum = jnp.where(usable, state.exp_sum, 1), log_of_sum(state.exp_sum)
    nll = state.target_mass * log_sum - state.target_dot
    if not soft:
        below = jax.lax.stop_gradient(jnp.minimum(nll, 0))  # a soft cap of one number and of a row may round differently
        nll = jnp.where(state.target_mass > 0, nll - jnp.where(below < 0, below, 0), jnp.nan)
    return RowStats(
        lse=jnp.where(masked, -jnp.inf, over(jnp.where(usable, state.maximum, 0), temperature) + log_sum),
        nll=nll,
        ce_prior=_finalize_prior(state, log_sum),
        entropy=_map(lambda q: log_sum - jnp.where(usable, q, 0) / exp_sum, state.exp_dot),
        target_probability=_finalize_probability(state, exp_sum, nll, soft),
        target_mass=state.target_mass,
        argmax=_map(lambda index: jnp.where(index == NO_CLASS, -1, index), state.argmax),
    )


@jax.custom_jvp
def log_of_sum(exp_sum: Float[Array, "..."]) -> Float[Array, "..."]:
    """The logarithm, 0 for an empty sum, NaN for NaN; its derivative is ``1 / exp_sum``, or 1 where that is no number."""
    return jnp.where(exp_sum == 0, 0, jnp.log(exp_sum))


log_of_sum.defjvps(lambda tangent, _, exp_sum: tangent / jnp.where(exp_sum > 0, exp_sum, 1))


def _finalize_prior(state, log_sum):
    if state.prior_dot is None:
        return None
    known = ~jnp.isnan(log_sum)
    count = state.prior_mass if state.prior_count is None else state.prior_count
    inner = state.prior_mass * jnp.where(known, log_sum, 0) - jnp.where(known, state.prior_dot, 0)
    return jnp.where(known, inner / jnp.where(count > 0, count, 1), jnp.nan)


def _finalize_probability(state, exp_sum, nll, soft):
    """p_y = exp(-nll), or sum_j t_j e_j / exp_sum; NaN with nll, taken from a constant for the reason given above."""
    known = ~jnp.isnan(nll)
    if soft:
        return _map(lambda h: jnp.where(known, jnp.where(known, h, 0) / exp_sum, jnp.nan), state.target_exp)
    return jnp.where(known, jnp.exp(-jnp.where(known, nll, 0)), jnp.nan)


def _map(function, field):
    return None if field is None else function(field)
