"""A tiny language model in Flax NNX, Flax Linen and Equinox, trained with optax and ``linear_cross_entropy`` as their users
would write it.

The next token is a fixed permutation of the last one, so tokens taken alone are uniform: only a model that has learned the
permutation gets below log v = 3.47 nats."""

import jax
import numpy as np
import optax
import pytest

import crossent_jax

VOCAB, WIDTH, STEPS, REACHED = 32, 32, 150, 0.1
REASON = "an optional framework is not installed: pip install crossent-jax[frameworks]"


def chains(count: int, length: int) -> np.ndarray:
    """Random starts, each followed by the permutation's images."""
    random = np.random.default_rng(0)
    permutation = random.permutation(VOCAB)
    tokens = [random.integers(VOCAB, size=count)]
    for _ in range(length - 1):
        tokens.append(permutation[tokens[-1]])
    return np.stack(tokens, axis=1).astype(np.int32)


TOKENS = chains(16, 24)
OPTIMIZER = optax.adam(1e-2)


@pytest.fixture(autouse=True)
def promotion_as_in_a_program_of_a_user():
    """The frameworks and optax add arrays of different ranks and dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def whole(logits, tokens):
    """The same loss from whole logits, by optax."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()


def assert_close(ours, expected):
    """Values and gradients to float32 rounding; every gradient is there and some of it is not 0."""
    ours, expected = jax.tree.leaves(ours), jax.tree.leaves(expected)
    assert len(ours) == len(expected) == 6, "loss, embedding, two kernels, two biases"
    for mine, right in zip(ours, expected, strict=True):
        assert np.abs(right).max() > 0
        assert np.allclose(mine, right, rtol=0, atol=1e-5 * np.abs(right).max())


def assert_learned(losses):
    assert abs(losses[0] - np.log(VOCAB)) < 1.5
    assert losses[-1] < REACHED


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx", reason=REASON)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embedding = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
            self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
            self.head = nnx.Linear(WIDTH, VOCAB, rngs=rngs)

        def features(self, tokens):
            return jax.nn.gelu(self.dense(self.embedding(tokens)))

    def loss(model, tokens):
        head = model.head
        return crossent_jax.linear_cross_entropy(
            model.features(tokens), head.kernel[...], tokens, bias=head.bias[...], shift=1
        )

    @nnx.jit
    def step(model, optimizer, tokens):
        value, gradient = nnx.value_and_grad(loss)(model, tokens)
        optimizer.update(model, gradient)
        return value

    model = Model(nnx.Rngs(0))
    dense = nnx.value_and_grad(lambda model, tokens: whole(model.head(model.features(tokens)), tokens))
    assert_close(nnx.value_and_grad(loss)(model, TOKENS), dense(model, TOKENS))
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)
    assert_learned([float(step(model, optimizer, TOKENS)) for _ in range(STEPS)])


def test_flax_linen():
    nn = pytest.importorskip("flax.linen", reason=REASON)

    class Model(nn.Module):
        def setup(self):
            self.embedding, self.dense, self.head = nn.Embed(VOCAB, WIDTH), nn.Dense(WIDTH), nn.Dense(VOCAB)

        def features(self, tokens):
            return jax.nn.gelu(self.dense(self.embedding(tokens)))

        def __call__(self, tokens):
            return self.head(self.features(tokens))

    model = Model()

    def loss(variables, tokens):
        hidden, head = model.apply(variables, tokens, method=Model.features), variables["params"]["head"]
        return crossent_jax.linear_cross_entropy(hidden, head["kernel"], tokens, bias=head["bias"], shift=1)

    @jax.jit
    def step(variables, state, tokens):
        value, gradient = jax.value_and_grad(loss)(variables, tokens)
        updates, state = OPTIMIZER.update(gradient, state)
        return optax.apply_updates(variables, updates), state, value

    variables = model.init(jax.random.key(0), TOKENS)
    dense = jax.value_and_grad(lambda variables, tokens: whole(model.apply(variables, tokens), tokens))
    assert_close(jax.value_and_grad(loss)(variables, TOKENS), dense(variables, TOKENS))
    state, losses = OPTIMIZER.init(variables), []
    for _ in range(STEPS):
        variables, state, value = step(variables, state, TOKENS)
        losses.append(float(value))
    assert_learned(losses)


def test_equinox():
    """Its linear layers hold (classes, features): ``head_vocab_axis=0``."""
    eqx = pytest.importorskip("equinox", reason=REASON)

    class Model(eqx.Module):
        embedding: eqx.nn.Embedding
        dense: eqx.nn.Linear
        head: eqx.nn.Linear

        def __init__(self, key):
            embedding, dense, head = jax.random.split(key, 3)
            self.embedding = eqx.nn.Embedding(VOCAB, WIDTH, key=embedding)
            self.dense = eqx.nn.Linear(WIDTH, WIDTH, key=dense)
            self.head = eqx.nn.Linear(WIDTH, VOCAB, key=head)

        def feature(self, token):
            return jax.nn.gelu(self.dense(self.embedding(token)))

    def loss(model, tokens):
        hidden, head = jax.vmap(jax.vmap(model.feature))(tokens), model.head
        return crossent_jax.linear_cross_entropy(hidden, head.weight, tokens, bias=head.bias, head_vocab_axis=0, shift=1)

    @eqx.filter_value_and_grad
    def dense(model, tokens):
        return whole(jax.vmap(jax.vmap(lambda token: model.head(model.feature(token))))(tokens), tokens)

    @eqx.filter_jit
    def step(model, state, tokens):
        value, gradient = eqx.filter_value_and_grad(loss)(model, tokens)
        updates, state = OPTIMIZER.update(gradient, state)
        return eqx.apply_updates(model, updates), state, value

    model = Model(jax.random.key(0))
    assert_close(eqx.filter_value_and_grad(loss)(model, TOKENS), dense(model, TOKENS))
    state, losses = OPTIMIZER.init(eqx.filter(model, eqx.is_array)), []
    for _ in range(STEPS):
        model, state, value = step(model, state, TOKENS)
        losses.append(float(value))
    assert_learned(losses)
