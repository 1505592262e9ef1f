"""guards.values(): values are checked in the block, eagerly and under jit, and cost nothing outside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from crossent_jax import binary_cross_entropy, cross_entropy, guards, soft_cross_entropy

LOGITS = jnp.linspace(-1, 1, 35).reshape(5, 7)
LABELS = jnp.arange(5)
TARGETS = jnp.full((5, 7), 1 / 7)
INF = jnp.inf

# (words of the message, function, array arguments)
REFUSED = {
    "label": ("labels[2] 9 [0, 7)", cross_entropy, (LOGITS, LABELS.at[2].set(9))),
    "negative label": ("labels[0] -1 [0, 7)", cross_entropy, (LOGITS, LABELS.at[0].set(-1))),
    "NaN logit": ("logits[1, 3] nan finite", cross_entropy, (LOGITS.at[1, 3].set(jnp.nan), LABELS)),
    "+inf logit": ("logits[4, 6] inf finite", cross_entropy, (LOGITS.at[4, 6].set(INF), LABELS)),
    "target sum": ("the sum of targets[3] 1.2 sum of 1", soft_cross_entropy, (LOGITS, TARGETS.at[3, 0].add(0.2))),
    "negative target": ("targets[0, 0] -0.5 [0, 1]", soft_cross_entropy, (LOGITS, TARGETS.at[0, 0].set(-0.5))),
    "binary label": ("labels[1, 1] 2.0 [0, 1]", binary_cross_entropy, (LOGITS, TARGETS.at[1, 1].set(2.0))),
    "traced smoothing": (
        "label_smoothing 1.5 at least 0 and at most 1",
        lambda z, y, eps: cross_entropy(z, y, label_smoothing=eps),
        (LOGITS, LABELS, jnp.float32(1.5)),
    ),
    "traced temperature": (
        "temperature -1.0 above 0",
        lambda z, y, t: cross_entropy(z, y, temperature=t),
        (LOGITS, LABELS, jnp.float32(-1)),
    ),
    "class weight": (
        "class_weights[2] -1.0 finite at least 0",
        lambda z, y, w: cross_entropy(z, y, class_weights=w),
        (LOGITS, LABELS, jnp.ones(7).at[2].set(-1)),
    ),
    "row weight": (
        "row_weights[2] nan finite",
        lambda z, y, w: cross_entropy(z, y, row_weights=w),
        (LOGITS, LABELS, jnp.ones(5).at[2].set(jnp.nan)),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(jax.grad(f))], ids=["eager", "jit", "jit of grad"])
def test_a_bad_value_is_named_with_its_place(case, wrap):
    words, function, arguments = REFUSED[case]
    with pytest.raises(ValueError) as raised:
        with guards.values():
            wrap(function)(*arguments)
    for word in words.split(" "):
        assert word in str(raised.value)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_good_values_pass(wrap):
    logits = LOGITS.at[0, 3].set(-INF)  # a masked class
    ignored = LABELS.at[1].set(-100)
    with guards.values():
        loss = wrap(lambda z, y: cross_entropy(z, y, ignore_index=-100))(logits.at[1].set(jnp.nan), ignored)
        soft = wrap(soft_cross_entropy)(logits, TARGETS.astype("bfloat16"))
    assert np.isfinite(loss)
    assert soft == jnp.inf  # a documented outcome, not a bad value


def test_a_function_compiled_before_the_block_is_checked_in_it_and_not_after_it():
    step = jax.jit(cross_entropy)
    bad = LABELS.at[2].set(9)
    assert np.isnan(step(LOGITS, bad))
    with pytest.raises(ValueError, match=r"labels\[2\] is 9"):
        with guards.values():
            step(LOGITS, bad)
    assert np.isnan(step(LOGITS, bad))
    with guards.values():
        step(LOGITS, LABELS)


def test_off_nothing_is_added_to_a_program():
    def text():
        return jax.jit(cross_entropy).lower(LOGITS, LABELS).as_text()

    before = text()
    with guards.values():
        assert "callback" in text()
    assert "callback" not in before
    assert text() == before


def test_an_error_inside_the_block_is_not_replaced():
    with pytest.raises(KeyError):
        with guards.values():
            jax.jit(cross_entropy)(LOGITS, LABELS.at[2].set(9))
            raise KeyError("mine")
    with guards.values():
        cross_entropy(LOGITS, LABELS)


OPTIONS_OF_BINARY = {"pos_weight": -1.0, "label_smoothing": 1.5, "focal_gamma": -2.0, "focal_alpha": 1.5, "temperature": 0.0}
Z2, Y2 = jnp.zeros(2), jnp.ones(2)


@pytest.mark.parametrize("jitted", (False, True))
@pytest.mark.parametrize("name", OPTIONS_OF_BINARY)
def test_traced_options_of_binary_cross_entropy(name, jitted):
    def loss(value):
        return crossent_jax.binary_cross_entropy(Z2, Y2, **{name: value})

    with pytest.raises(ValueError, match=f"^{name} is .*: expected a finite number"):
        with crossent_jax.guards.values():
            (jax.jit(loss) if jitted else loss)(jnp.float32(OPTIONS_OF_BINARY[name]))


@pytest.mark.parametrize(
    "name, call",
    [
        ("row_weights", lambda bad: crossent_jax.binary_cross_entropy(Z2, Y2, row_weights=jnp.stack([bad, bad]))),
        ("bias", lambda bad: crossent_jax.sigmoid_contrastive(jnp.eye(2), jnp.eye(2), temperature=1.0, bias=bad)),
        ("temperature", lambda bad: crossent_jax.info_nce(jnp.eye(2), jnp.eye(2), temperature=bad)),
        ("temperature", lambda bad: crossent_jax.kl_divergence(jnp.eye(2), jnp.eye(2), temperature=bad)),
        ("z_loss", lambda bad: crossent_jax.cross_entropy(jnp.eye(2), jnp.array([0, 1]), z_loss=bad)),
    ],
)
def test_nan_is_no_number(name, call):
    with pytest.raises(ValueError, match=f"^{name}.* is nan: expected"):
        with crossent_jax.guards.values():
            call(jnp.float32(jnp.nan))
