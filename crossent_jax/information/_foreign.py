"""Distributions of other libraries as the families here, recognised by name, so that none of them is imported.

What is not in the table keeps its own ``log_prob`` and ``sample``: quadrature and Monte Carlo need no more.
"""

import inspect
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


def _multivariate(given) -> Family:
    """By whatever holds the lower triangle: numpyro's and distrax's attribute, or the operator of TensorFlow Probability."""
    for name in ("scale_tril", "scale_tri"):
        if hasattr(given, name):
            return MultivariateNormal(given.loc, getattr(given, name))
    if hasattr(given, "scale_diag"):
        return MultivariateNormal(given.loc, given.scale_diag[..., None] * jnp.eye(given.scale_diag.shape[-1]))
    return MultivariateNormal(given.loc, given.scale.to_dense())


_location_scale = ("loc", "scale")
CONVERSIONS: dict[str, Callable[[Any], Family]] = {
    "Normal": _fields(Normal, *_location_scale),
    "LogNormal": _fields(LogNormal, *_location_scale),
    "Laplace": _fields(Laplace, *_location_scale),
    "Exponential": _fields(Exponential, "rate"),
    "Gamma": _fields(Gamma, "concentration", "rate"),
    "Beta": lambda given: Beta(*((given.alpha, given.beta) if hasattr(given, "alpha") else _concentrations(given))),
    "Uniform": _fields(Uniform, "low", "high"),
    "Dirichlet": _fields(Dirichlet, "concentration"),
    "Poisson": _fields(Poisson, "rate"),
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
}


def _concentrations(given) -> tuple[Array, Array]:
    return given.concentration1, given.concentration0


def recognised(distribution) -> Any:
    """The family here that a distribution of another library is, or the distribution itself."""
    if type(distribution).__module__.partition(".")[0] not in LIBRARIES:
        return distribution
    conversion = CONVERSIONS.get(type(distribution).__name__)
    return conversion(distribution) if conversion else distribution


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


def event_dimensions(distribution) -> int:
    if isinstance(distribution, Family):
        return distribution.event_dimensions
    return len(tuple(getattr(distribution, "event_shape", ())))


def sampled_location(distribution) -> tuple[Array, Array]:
    """Where most of a distribution lies: median, and half of the range of the middle 70 % (of a normal about one standard
    deviation), of 1024 samples. Only a hint of where to put nodes: no gradient."""
    drawn = draw(distribution, jax.random.key(0), 1024)
    drawn = drawn.astype(statistics_dtype(drawn.dtype))
    low, middle, high = jnp.quantile(drawn, jnp.array([0.15, 0.5, 0.85], drawn.dtype), axis=0)
    spread = 0.5 * (high - low)
    return jax.lax.stop_gradient(middle), jax.lax.stop_gradient(jnp.where(spread > 0, spread, 1))


def is_discrete(distribution) -> bool:
    """By what the library says, or else by the type of a sample."""
    if isinstance(distribution, Family):
        return distribution.discrete
    support = getattr(distribution, "support", None)
    said = getattr(support, "is_discrete", None)
    if said is not None:
        return bool(said)
    dtype = getattr(distribution, "dtype", None)
    if dtype is None and is_pair(distribution) and distribution[1] is not None:
        dtype = jax.eval_shape(lambda key: draw(distribution, key, 1), jax.random.key(0)).dtype
    return dtype is not None and jnp.issubdtype(dtype, jnp.integer)
