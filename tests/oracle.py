"""The truth: every statistic and loss from its definition, softmax first and logarithm after, with no code of the library.

One formula, any array module: ``numpy.longdouble`` for values, complex ``longdouble`` for derivatives by complex step, and
``jax.numpy`` in float64 (or naive, in float32) for gradients by ``jax.grad``. ``test_oracle.py`` plays them off.
"""

import contextlib
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from . import grid


def x32() -> contextlib.AbstractContextManager:
    """The session's default, as a context that pairs with :func:`x64`."""
    return contextlib.nullcontext()


def x64() -> contextlib.AbstractContextManager:
    """64-bit types inside the block, on every supported JAX."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64(True)


def statistics(xp, z, target, *, softcap=None, temperature=1.0, class_weights=None, class_mask=None) -> dict:
    """Row statistics of ``(n, v)`` logits. ``target``: ``(n,)`` labels or ``(n, v)`` probabilities, on allowed classes."""
    allowed = xp.real(z) > -np.inf
    if class_mask is not None:
        allowed = allowed & xp.broadcast_to(class_mask, z.shape)
    u = xp.where(allowed, z, 0)
    if softcap is not None:
        cap = xp.where(softcap < np.inf, softcap, 1)  # an infinite cap is none
        u = xp.where(softcap < np.inf, cap * xp.tanh(u / cap), u)
    u = u / temperature
    top = _constant(xp, xp.max(xp.where(allowed, xp.real(u), -np.inf), -1, keepdims=True))
    e = xp.where(allowed, xp.exp(u - top), 0)
    total = xp.sum(e, -1, keepdims=True)
    p, log_p = e / total, xp.where(allowed, u - top - xp.log(total), 0)
    q, weight = _target_distribution(xp, z, target, class_weights)
    prior, prior_total = _prior(xp, allowed, z, class_weights)
    return {
        "lse": (top + xp.log(total))[:, 0],
        "nll": -xp.sum(q * log_p, -1),
        "ce_prior": -prior_total * xp.sum(prior * log_p, -1),
        "entropy": -xp.sum(p * log_p, -1),
        "target_probability": xp.sum(q * p, -1),
        "target_mass": xp.sum(q, -1),
        "weight": weight,
    }


def row_losses(
    xp, z, target, *, label_smoothing=0.0, z_loss=0.0, focal_gamma=0.0, poly_epsilon=0.0, entropy_weight=0.0, **o
):
    """``(loss of each row, class weight of each row)``: the docstring formula of ``cross_entropy``."""
    s = statistics(xp, z, target, **o)
    miss = 1 - xp.exp(-s["nll"])
    hard = xp.where(miss == 0, 1, miss) ** focal_gamma * s["nll"]  # a single class misses nothing, and its nll is 0
    poly = poly_epsilon * (s["target_mass"] - s["target_probability"])
    extra = z_loss * s["lse"] ** 2 - entropy_weight * s["entropy"] + poly
    return s["weight"] * ((1 - label_smoothing) * hard + extra) + label_smoothing * s["ce_prior"], s["weight"]


def loss(xp, z, target, *, reduction="mean", row_weights=None, where=None, ignore_index=None, **options):
    """The reduced loss; "loss_sum" gives ``(total, weight)``. Row i of the logits belongs to label i."""
    soft, rows = target.ndim == 2, z.shape[0]
    valid = np.ones(rows, bool) if where is None else where
    if ignore_index is not None:
        valid = valid & (target != ignore_index)
        target = xp.where(valid, target, 0)
    row, class_weight = row_losses(xp, z, target, **options)
    weight = xp.ones_like(row) if row_weights is None else row_weights
    row = xp.where(valid, weight * row, 0)
    counted = xp.sum(xp.where(valid, weight if soft else weight * class_weight, 0))
    return {
        "none": lambda: row,
        "sum": lambda: xp.sum(row),
        "mean": lambda: xp.sum(row) / xp.where(counted == 0, 1, counted),
        "loss_sum": lambda: (xp.sum(row), counted),
    }[reduction]()


def _constant(xp, value):
    return jax.lax.stop_gradient(value) if xp is jnp else value


def _target_distribution(xp, z, target, class_weights):
    """The distribution that the loss is taken to, and the weight of the row: class weights act on a target's entries,
    ``W = sum_j w_j t_j`` is the row's weight and ``w_j t_j / W`` its target, so that a one-hot target is a label."""
    ones = xp.ones(z.shape[-1], xp.real(z).dtype) if class_weights is None else class_weights
    if target.ndim == 1:
        one_hot = target[:, None] == np.arange(z.shape[-1], dtype=target.dtype)[None]
        return xp.where(one_hot, xp.ones_like(xp.real(z)), 0), xp.sum(xp.where(one_hot, ones[None], 0), -1)
    if class_weights is None:
        return target, xp.ones(z.shape[0], xp.real(z).dtype)
    weighted = target * ones[None]
    weight = xp.sum(weighted, -1)
    return weighted / weight[:, None], weight


def _prior(xp, allowed, z, class_weights):
    """The smoothing prior over the allowed classes, normalised, and the total it stands for: a masked class is not there."""
    ones = xp.ones(z.shape[-1], xp.real(z).dtype) if class_weights is None else class_weights
    prior = xp.where(allowed, xp.broadcast_to(ones[None], z.shape), 0)
    total = xp.sum(prior, -1)
    return prior / total[:, None], total / xp.sum(xp.where(allowed, ones[None] * 0 + 1, 0), -1)


# --- exact values ---------------------------------------------------------------------------------


def wide(value, dtype=np.longdouble):
    """A tree of arrays and numbers with every floating leaf in ``dtype``."""

    def convert(x):
        x = np.asarray(x)
        return x.astype(dtype) if x.dtype.kind not in "iub" else x

    return jax.tree.map(convert, value)


def exact_statistics(z, target, **options) -> dict:
    return statistics(np, wide(z), wide(target), **wide(options))


def value_dtype(dtype):
    """Wide enough to judge a loss whose logits have ``dtype``."""
    return np.longdouble if dtype == "float64" else np.float64


def exact_loss(z, target, *, reduction="mean", softcap=None, ignore_index=None, wide_dtype=np.longdouble, **options):
    static = {"reduction": reduction, "softcap": softcap, "ignore_index": ignore_index}
    return loss(np, wide(z, wide_dtype), wide(target, wide_dtype), **static, **wide(options, wide_dtype))


def exact_loss_of_complex(z, target, **options):
    """The formula at complex logits."""
    static = {name: options.pop(name, None) for name in ("softcap", "ignore_index")}
    return loss(np, z, wide(target), reduction=options.pop("reduction", "mean"), **static, **wide(options))


def complex_step_gradient(function, z) -> np.ndarray:
    """d function / d z in longdouble: exact to rounding, and shares nothing with automatic differentiation."""
    z, step = wide(z), np.longdouble(1e-200)
    gradient = np.zeros(z.shape, np.longdouble)
    for index in np.ndindex(z.shape):
        moved = z.astype(np.clongdouble)
        moved[index] += 1j * step
        gradient[index] = function(moved).imag / step
    return gradient


# --- gradients by jax.grad of the formula ---------------------------------------------------------


NEUTRAL = {name: off for name, (off, _) in grid.SCALARS.items()} | {"softcap": np.inf}
COEFFICIENTS = {"mean": (1, 0, 0), "sum": (0, 1, 0), "loss_sum": (0, 1, 1 / 3), "none": (0, 0, 0)}


@cache
def _gradient_function(soft, weighted):
    """One compilation for every option and reduction: what is not in play is neutral, ``coefficients`` pick the scalar."""
    del weighted  # soft targets with class weights, even of 1, are another function of their sum

    def scalar(differentiable, constant):
        options = differentiable | constant
        z, target = options.pop("z"), options.pop("targets" if soft else "labels")
        of_mean, of_sum, of_weight = options.pop("coefficients")
        of_rows = options.pop("cotangent")
        row = loss(jnp, z, target, reduction="none", **options)
        total, weight = loss(jnp, z, target, reduction="loss_sum", **options)
        mean = total / jnp.where(weight == 0, 1, weight)
        return of_mean * mean + of_sum * total + of_weight * weight + jnp.vdot(of_rows, row)

    return jax.jit(jax.grad(scalar))


def contract(out, cotangent):
    """One number from any reduction: row losses with the cotangent, a LossSum as total + weight / 3."""
    if isinstance(out, tuple):
        return out[0] + out[1] / 3
    return jnp.vdot(cotangent.astype(out.dtype), out) if out.ndim else out


def gradients(z, target, *, dtype="float64", reduction="mean", softcap=None, ignore_index=None, cotangent=None, **options):
    """Gradients of the reduced loss (of :func:`contract` for arrays) with respect to the logits ("z"), soft "targets", and
    every floating option given."""
    rows, classes = np.shape(z)
    target, weighted = np.asarray(target), "class_weights" in options or np.ndim(target) == 1
    given = NEUTRAL | grid.neutral_arrays(rows, classes) | options | {"z": z}
    given |= {} if softcap is None else {"softcap": softcap}
    constant = {name: given.pop(name) for name in ("class_mask", "where")}
    given = {name: value for name, value in given.items() if name != "class_weights" or weighted}
    valid = np.broadcast_to(constant["where"], (rows,)) & (target != ignore_index if target.ndim == 1 else True)
    cotangent = np.ones(rows) if cotangent is None else cotangent
    floats = {"coefficients": np.array(COEFFICIENTS[reduction]), "cotangent": (reduction == "none") * np.asarray(cotangent)}
    (given if target.ndim == 2 else constant).update(
        {"targets": target} if target.ndim == 2 else {"labels": np.where(valid, target, 0)}
    )
    with x64():
        given, floats = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), dtype), (given, floats))
        constant = {name: jnp.asarray(value) for name, value in (constant | {"where": valid}).items()} | floats
        out = _gradient_function(target.ndim == 2, weighted)(given, constant)
        return {name: np.asarray(out[name]) for name in given if name in options or name in ("z", "targets")}


# --- tolerance (design, section 6) ----------------------------------------------------------------


def statistics_eps(dtype) -> float:
    return float(np.finfo(np.float64 if dtype == "float64" else np.float32).eps)


def loss_slack(value, dtype="float32"):
    """``2e-6 max(1, |value|)`` (the same multiple of eps in float64), and nothing for what the naive formula loses."""
    small = 2e-6 * statistics_eps(dtype) / float(np.finfo(np.float32).eps)
    return small * np.maximum(1, np.abs(value))


def gradient_slack(exact, dtype, naive=None):
    """What the naive formula loses in the dtype of the computation (float32 for 16-bit logits, which is stricter than the
    design's "same dtype"; at least half an ulp of the one-hot it subtracts), 4 ulp of the row's largest gradient, and half
    an ulp of a 16-bit gradient as it is stored."""
    exact, eps = np.asarray(exact, np.float64), statistics_eps(dtype)
    row_largest = np.max(np.abs(exact), -1, keepdims=True) if exact.ndim else np.abs(exact)
    naive_error = 0.0 if naive is None else np.max(np.abs(naive - exact), initial=eps / 2)
    slack = naive_error + 4 * eps * row_largest
    return slack + stored_half_ulp(np.abs(exact) + slack, dtype)


def stored_half_ulp(magnitude, dtype):
    """Half a unit in the last place of a 16-bit float; 0 where the gradient is stored as it was computed."""
    if dtype not in ("bfloat16", "float16"):
        return 0.0
    import ml_dtypes

    info = ml_dtypes.finfo(grid.numpy_dtype(dtype))
    exponent = np.floor(np.log2(np.maximum(magnitude, float(info.smallest_normal))))
    return 0.5 * float(info.eps) * 2.0**exponent
