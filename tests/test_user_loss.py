"""``linear_loss`` never uses a stale function: what a function refers to may change between two calls of one object."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax

ARRAY, NUMBER = jnp.float32(1), 1.0
LIST, DICTIONARY = [1.0], {"scale": 1.0}
HIDDEN, HEAD, LABELS = np.ones((3, 2), np.float32), np.eye(2, 5, dtype=np.float32), np.array([0, 3, 1])


class Held:
    scale = 1.0

    def __init__(self):
        self.own = 1.0
        self.array = jnp.float32(1)

    def __call__(self, stats):
        return self.own * self.array * stats.nll

    def method(self, stats):
        return self.own * stats.nll


HELD, INNER, GET = Held(), Held(), DICTIONARY.get


def helper(nll):
    return LIST[0] * nll


def scaled(by, stats):
    return by["scale"] * stats.nll


def set_global(name, value):
    globals()[name] = value


CASES = {
    "an array": (lambda stats: ARRAY * stats.nll, lambda: set_global("ARRAY", jnp.float32(5))),
    "a number": (lambda stats: NUMBER * stats.nll, lambda: set_global("NUMBER", 5.0)),
    "a list": (lambda stats: LIST[0] * stats.nll, lambda: LIST.__setitem__(0, 5.0)),
    "a list behind a function": (lambda stats: helper(stats.nll), lambda: LIST.__setitem__(0, 5.0)),
    "a dictionary": (lambda stats: DICTIONARY["scale"] * stats.nll, lambda: DICTIONARY.update(scale=5.0)),
    "a class attribute": (lambda stats: Held.scale * stats.nll, lambda: setattr(Held, "scale", 5.0)),
    "a callable object's field": (HELD, lambda: setattr(HELD, "own", 5.0)),
    "a callable object's array": (INNER, lambda: setattr(INNER, "array", jnp.float32(5))),
    "a method's object": (INNER.method, lambda: setattr(INNER, "own", 5.0)),
    "a method of a dictionary": (lambda stats: GET("scale") * stats.nll, lambda: DICTIONARY.update(scale=5.0)),
    "a partial function's argument": (partial(scaled, DICTIONARY), lambda: DICTIONARY.update(scale=5.0)),
}


@pytest.fixture(autouse=True)
def as_at_first():
    set_global("ARRAY", jnp.float32(1))
    set_global("NUMBER", 1.0)
    LIST[0] = DICTIONARY["scale"] = Held.scale = 1.0
    for held in (HELD, INNER):
        held.own, held.array = 1.0, jnp.float32(1)


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("name", CASES)
def test_what_changed_is_seen(name, reduction):
    loss_fn, change = CASES[name]

    def value_and_gradient():
        def total(hidden):
            return jnp.sum(crossent_jax.linear_loss(loss_fn, hidden, HEAD, LABELS, reduction=reduction))

        return jax.value_and_grad(total)(HIDDEN)

    before = value_and_gradient()
    change()
    after = value_and_gradient()
    np.testing.assert_allclose(after[0], 5 * before[0], rtol=1e-6)
    np.testing.assert_allclose(after[1], 5 * before[1], rtol=1e-6)
