"""A small causal transformer in plain JAX; parameters are a dictionary.

Pre-norm blocks (RMSNorm), rotary positions (Su et al. 2021), squared ReLU (So et al. 2021), output weights tied to
the embedding. Each block also mixes the previous token into its attention input (token shift, Peng et al. 2023):
on few training tokens that is worth more than another layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

WIDTH = 128
HEADS = 4
LAYERS = 2
HEAD_WIDTH = WIDTH // HEADS
HIDDEN_WIDTH = 4 * WIDTH

Parameters = dict


def init(seed: int, vocab_size: int) -> Parameters:
    """Weights of variance 1 / fan-in; the matrices that write into the residual stream are smaller."""
    generator = np.random.default_rng(seed)
    return {
        "embedding": normal(generator, 0.02, vocab_size, WIDTH),
        "bias": np.zeros((1, 1, vocab_size), np.float32),
        "norm": feature_vector(1.0),
        "layers": [init_layer(generator) for _ in range(LAYERS)],
    }


def init_layer(generator: np.random.Generator) -> Parameters:
    """The parameters of one block."""
    residual = 0.5 * LAYERS**-0.5
    return {
        "qkv": normal(generator, WIDTH**-0.5, WIDTH, 3 * WIDTH),
        "out": normal(generator, residual * WIDTH**-0.5, WIDTH, WIDTH),
        "up": normal(generator, WIDTH**-0.5, WIDTH, HIDDEN_WIDTH),
        "down": normal(generator, residual * HIDDEN_WIDTH**-0.5, HIDDEN_WIDTH, WIDTH),
        "attention_norm": feature_vector(1.0),
        "mlp_norm": feature_vector(1.0),
        "shift": feature_vector(0.5),
    }


def feature_vector(value: float) -> Float[np.ndarray, "1 1 width"]:
    """One value for every feature, broadcast over batch and positions."""
    return np.full((1, 1, WIDTH), value, np.float32)


def normal(generator: np.random.Generator, deviation: float, *shape: int) -> Float[np.ndarray, "rows columns"]:
    """float32 draws of mean 0 and the given standard deviation."""
    return deviation * generator.standard_normal(shape, np.float32)


def apply(parameters: Parameters, tokens: Int[Array, "batch seq"]) -> Float[Array, "batch seq v"]:
    """Logits of the next token at each position."""
    return features(parameters, tokens) @ parameters["embedding"].T + parameters["bias"]


def features(parameters: Parameters, tokens: Int[Array, "batch seq"]) -> Float[Array, "batch seq width"]:
    """What the output weights are multiplied with."""
    stream = WIDTH**0.5 * parameters["embedding"][tokens]
    for layer in parameters["layers"]:
        stream = stream + attention(layer, shift(rms_norm(stream, layer["attention_norm"]), layer["shift"]))
        stream = stream + mlp(layer, rms_norm(stream, layer["mlp_norm"]))
    return rms_norm(stream, parameters["norm"])


def rms_norm(x: Float[Array, "batch seq width"], scale: Float[Array, "1 1 width"]) -> Float[Array, "batch seq width"]:
    """x over its root mean square, times a scale for each feature."""
    return scale * x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def shift(x: Float[Array, "batch seq width"], share: Float[Array, "1 1 width"]) -> Float[Array, "batch seq width"]:
    """(1 - share) · this position + share · the one before it, feature by feature."""
    previous = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return x + share * (previous - x)


def attention(layer: Parameters, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq width"]:
    """Multi-head attention of each position to itself and those before it."""
    seq_len = x.shape[1]
    heads = (x @ layer["qkv"]).reshape(*x.shape[:2], HEADS, 3 * HEAD_WIDTH)
    query, key, value = jnp.split(heads, 3, axis=-1)
    scores = HEAD_WIDTH**-0.5 * jnp.einsum("bqhd,bkhd->bhqk", rotate(query), rotate(key))
    is_past = np.tril(np.ones((1, 1, seq_len, seq_len), dtype=bool))
    weights = jax.nn.softmax(jnp.where(is_past, scores, -1e30), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape) @ layer["out"]


def rotate(x: Float[Array, "batch seq heads d"]) -> Float[Array, "batch seq heads d"]:
    """Turns feature pair i of position t by the angle t · 10000^(-2i/d)."""
    seq_len, half = x.shape[1], x.shape[-1] // 2
    angles = np.arange(seq_len)[None, :, None, None] * 10000.0 ** (-np.arange(half) / half)
    cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cosine - right * sine, left * sine + right * cosine], axis=-1)


def mlp(layer: Parameters, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq width"]:
    """relu(x · up)² · down"""
    return jnp.square(jax.nn.relu(x @ layer["up"])) @ layer["down"]
