"""Distributions of other libraries as the families here, recognised by name, so that none of them is imported.

What is not in the table keeps its own ``log_prob`` and ``sample``: quadrature and Monte Carlo need no more.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._jax.dtypes import statistics_dtype
from ._continuous import Beta, Exponential, Gamma, Laplace, LogNormal, Normal, Uniform
from ._discrete import Bernoulli, Categorical, Poisson
from ._family import Family
from ._vectors import Dirichlet, MultivariateNormal

LIBRARIES = ("distrax", "numpyro", "tensorflow_probability")


def _fields(family, *names: str) -> Callable[[Any], Family]:
    return lambda given: family(*(getattr(given, name) for name in names))


def _logits(given) -> Array:
    """Logits of a categorical distribution that holds them or probabilities."""
    logits = getattr(given, "logits", None)
    return jnp.log(given.probs) if logits is None else logits


def _binary_logits(given) -> Array:
    logits = getattr(given, "logits", None)
    return jnp.log(given.probs) - jnp.log1p(-given.probs) if logits is None else logits


def _rate(given) -> Array:
    """A rate, or the exponential of the logarithm that was given in its place."""
    rate = getattr(given, "rate", None)
    return jnp.exp(given.log_rate) if rate is None else rate


def _multivariate(given) -> Family:
    """At 0 where no mean was given."""
    scale = _lower_factor(given)
    return MultivariateNormal(jnp.zeros(scale.shape[-1], scale.dtype) if given.loc is None else given.loc, scale)


def _lower_factor(given) -> Array:
    """The lower triangular factor of the covariance, of positive diagonal, by whatever holds a factor: an attribute
    (numpyro, distrax), or the operator of TensorFlow Probability. ``U U^T`` of an upper one is ``R^T R`` for ``U^T = Q R``.
    The sign of a column does not change the product."""
    factor = next((x for name in ("scale_tril", "scale_tri") if (x := getattr(given, name, None)) is not None), None)
    diagonal = getattr(given, "scale_diag", None)
    if factor is None:
        factor = given.scale.to_dense() if diagonal is None else diagonal[..., None] * jnp.eye(diagonal.shape[-1])
    if not getattr(given, "is_lower", True):
        factor = jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(factor, -1, -2))[1], -1, -2)
    return factor * jnp.where(jnp.diagonal(factor, axis1=-2, axis2=-1) < 0, -1, 1)[..., None, :].astype(factor.dtype)


def _expanded(given) -> Any:
    base = recognised(given.base_dist)
    return base.in_batch(tuple(given.batch_shape), base.dtype) if isinstance(base, Family) else given


def _independent(given) -> Any:
    """Independent normal variables as a vector."""
    base = recognised(base_of(given))
    if not isinstance(base, Normal) or len(given.event_shape) != 1:
        return given
    return MultivariateNormal(base.loc, base.scale[..., None] * jnp.eye(base.scale.shape[-1], dtype=base.dtype))


_location_scale = ("loc", "scale")
CONVERSIONS: dict[str, Callable[[Any], Family]] = {
    "Normal": _fields(Normal, *_location_scale),
    "LogNormal": _fields(LogNormal, *_location_scale),
    "Laplace": _fields(Laplace, *_location_scale),
    "Exponential": _fields(Exponential, "rate"),
    "Gamma": lambda given: Gamma(given.concentration, _rate(given)),
    "BetaProportion": lambda given: Beta(*_concentrations(given)),
    "Beta": lambda given: Beta(*((given.alpha, given.beta) if hasattr(given, "alpha") else _concentrations(given))),
    "Uniform": _fields(Uniform, "low", "high"),
    "Dirichlet": _fields(Dirichlet, "concentration"),
    "Poisson": lambda given: Poisson(_rate(given)),
    "Categorical": lambda given: Categorical(_logits(given)),
    "CategoricalProbs": lambda given: Categorical(jnp.log(given.probs)),
    "CategoricalLogits": lambda given: Categorical(given.logits),
    "Bernoulli": lambda given: Bernoulli(_binary_logits(given)),
    "BernoulliProbs": lambda given: Bernoulli(jnp.log(given.probs) - jnp.log1p(-given.probs)),
    "BernoulliLogits": lambda given: Bernoulli(given.logits),
    "MultivariateNormal": _multivariate,
    "MultivariateNormalTri": _multivariate,
    "MultivariateNormalTriL": _multivariate,
    "MultivariateNormalDiag": _multivariate,
    "MultivariateNormalFullCovariance": _multivariate,
    "ExpandedDistribution": _expanded,
    "Independent": _independent,
}


def _concentrations(given) -> tuple[Array, Array]:
    return given.concentration1, given.concentration0


def recognised(distribution) -> Any:
    """The family here that a distribution of another library is, or the distribution itself."""
    conversion = CONVERSIONS.get(type(distribution).__name__) if _library(distribution) in LIBRARIES else None
    return conversion(distribution) if conversion else distribution


def _library(distribution) -> str:
    return type(distribution).__module__.partition(".")[0]


# --- distributions made of others -------------------------------------------------------------------


def base_of(distribution) -> Any:
    """What an object of another library is made of: ``base_dist`` in numpyro, ``distribution`` in the others."""
    return distribution.base_dist if hasattr(distribution, "base_dist") else distribution.distribution


def is_independent(distribution) -> bool:
    """Whether it is a batch of distributions whose last axes are taken as one event."""
    return _library(distribution) in LIBRARIES and type(distribution).__name__ == "Independent"


def mask_of(distribution) -> Any:
    """The mask under which log-densities and measures are 0 where it is False; None of an unmasked distribution."""
    if _library(distribution) not in LIBRARIES:
        return None
    return {"MaskedDistribution": lambda: distribution._mask, "Masked": lambda: distribution.validity_mask}.get(
        type(distribution).__name__, lambda: None
    )()


# --- what a distribution says of itself --------------------------------------------------------------

COUNTS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "Binomial": lambda given: (0.0, given.total_count),
    "BetaBinomial": lambda given: (0.0, given.total_count),
    "Geometric": lambda given: (0.0, math.inf),
    "NegativeBinomial": lambda given: (0.0, math.inf),
    "Skellam": lambda given: (-math.inf, math.inf),
    "Zipf": lambda given: (1.0, math.inf),
}


def counts(distribution) -> tuple[Any, Any] | None:
    """The ends of the support of the discrete distributions of TensorFlow Probability, which say neither the ends nor, their
    dtype being that of the parameters, that they are discrete."""
    if _library(distribution) != "tensorflow_probability":
        return None
    ends = COUNTS.get(type(distribution).__name__)
    return None if ends is None else ends(distribution)


def at_counts(distribution, x: Array) -> Array:
    """Points in the dtype that an object expects: integers for a discrete one, whose own dtype may be floating."""
    if isinstance(distribution, Family) or not is_discrete(distribution):
        return x
    dtype = getattr(distribution, "dtype", None)
    return x.astype(jnp.int32 if dtype is None else dtype)


def is_distribution(x) -> bool:
    return isinstance(x, Family) or callable(getattr(x, "log_prob", None)) or is_pair(x)


def is_pair(x) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and callable(x[0])


def log_prob_of(distribution) -> Callable[[Array], Array]:
    return distribution[0] if is_pair(distribution) else distribution.log_prob


def draw(distribution, key: Array, count: int) -> Array:
    """``count`` samples along the first axis, by whichever of the three conventions the object has."""
    sample = distribution[1] if is_pair(distribution) else getattr(distribution, "sample", None)
    if sample is None:
        raise ValueError(f"{describe(distribution)} has no sample, which Monte Carlo needs of p: give (log_prob, sample).")
    names = _parameters(sample)
    if "seed" in names:  # distrax, TensorFlow Probability
        return sample(seed=key, sample_shape=(count,))
    if "sample_shape" in names:  # numpyro
        return sample(key, sample_shape=(count,))
    return sample(key, (count,))


def _parameters(function) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


def describe(distribution) -> str:
    return "a pair of callables" if is_pair(distribution) else type(distribution).__name__


def event_shape(distribution) -> tuple[int, ...]:
    if isinstance(distribution, Family):
        dimensions = distribution.event_dimensions
        return jax.tree_util.tree_leaves(distribution)[0].shape[-dimensions:] if dimensions else ()
    return tuple(getattr(distribution, "event_shape", ()))


def event_dimensions(distribution) -> int:
    return len(event_shape(distribution))


def batch_shape(distribution) -> tuple[int, ...]:
    return tuple(getattr(distribution, "batch_shape", ()))


def can_sample(distribution) -> bool:
    return (distribution[1] if is_pair(distribution) else getattr(distribution, "sample", None)) is not None


def sampled_location(distribution) -> tuple[Array, Array]:
    """Where most of a distribution lies: median, and half of the range of the middle 70 % (of a normal about one standard
    deviation), of 1024 samples."""
    drawn = draw(distribution, jax.random.key(0), 1024)
    drawn = drawn.astype(statistics_dtype(drawn.dtype))
    low, middle, high = jnp.quantile(drawn, jnp.array([0.15, 0.5, 0.85], drawn.dtype), axis=0)
    return middle, 0.5 * (high - low)


def kinks(distribution) -> tuple[Array, ...]:
    """Points where a log-density may not be smooth: of an object of another library its ``loc`` and ``peak``, for where a
    density has a kink it is there. The kink of a family, that of Laplace's, is its centre."""
    if isinstance(distribution, Family):
        return ()
    shape = batch_shape(distribution)
    marked = [jnp.asarray(x) for name in ("loc", "peak") if (x := getattr(distribution, name, None)) is not None]
    return tuple(x for x in marked if x.ndim <= len(shape) and jnp.broadcast_shapes(x.shape, shape) == shape)


def is_discrete(distribution) -> bool:
    """By what the library says, or else by the type of a sample."""
    if isinstance(distribution, Family):
        return distribution.discrete
    if counts(distribution) is not None:
        return True
    support = getattr(distribution, "support", None)
    said = getattr(support, "is_discrete", None)
    if said is not None:
        return bool(said)
    dtype = getattr(distribution, "dtype", None)
    if dtype is None and is_pair(distribution) and distribution[1] is not None:
        dtype = jax.eval_shape(lambda key: draw(distribution, key, 1), jax.random.key(0)).dtype
    return dtype is not None and jnp.issubdtype(dtype, jnp.integer)
