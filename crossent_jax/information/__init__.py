"""The three formulas of information: entropies and divergences of arrays and of distributions.

| formula | here |
|---|---|
| ``H(p, q) = -E_p[log q]``, over distributions | ``cross_entropy(Normal(35.0, 5.0), Normal(40.0, 5.0))`` |
| ``H(p, q) = -sum_i p_i log q_i``, over the outcomes of an array | ``cross_entropy([1.0, 0.0], [0.8, 0.2])`` |
| ``-(1/N) sum_n log y_n``, the loss of a model | :func:`crossent_jax.cross_entropy`, from logits |

A distribution is one of the families here, one of distrax, numpyro or TensorFlow Probability on JAX, any object with
``log_prob`` and ``sample``, or a pair of callables ``(log_prob, sample)`` with ``sample(key, shape)``. Its expectation is
taken by a method: a closed form where one is known, else quadrature, or on request another one.
Everything is in nats unless ``base`` is given, and works under ``jit``, ``vmap`` and ``grad``.
"""

from ._arrays import mutual_information as mutual_information
from ._continuous import Beta as Beta
from ._continuous import Exponential as Exponential
from ._continuous import Gamma as Gamma
from ._continuous import Laplace as Laplace
from ._continuous import LogNormal as LogNormal
from ._continuous import Normal as Normal
from ._continuous import Uniform as Uniform
from ._discrete import Bernoulli as Bernoulli
from ._discrete import Categorical as Categorical
from ._discrete import Poisson as Poisson
from ._measures import cross_entropy as cross_entropy
from ._measures import entropy as entropy
from ._measures import js_divergence as js_divergence
from ._measures import kl_divergence as kl_divergence
from ._measures import perplexity as perplexity
from ._methods import ClosedForm as ClosedForm
from ._methods import Estimate as Estimate
from ._methods import Grid as Grid
from ._methods import MonteCarlo as MonteCarlo
from ._methods import Quadrature as Quadrature
from ._text import bits_per_byte as bits_per_byte
from ._vectors import Dirichlet as Dirichlet
from ._vectors import MultivariateNormal as MultivariateNormal
