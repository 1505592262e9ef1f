"""The state is a monoid, and the statistics have the symmetries of their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossent_jax
from crossent_jax._row import state
from crossent_jax._row.block import Operands, Wanted, block_state

from . import grid

ROWS, CLASSES = 4, 11
WANTED = Wanted(-1, entropy=True, argmax=True)
PRIOR = jnp.arange(1.0, CLASSES + 1) / CLASSES
seeds = st.integers(0, 2**31 - 1)
examples = settings(max_examples=25, deadline=None)
merge = grid.quick(partial(state.merge, temperature=None))


def draw(seed, scale=5.0):
    """Logits with ties and masked classes, and labels."""
    random = np.random.default_rng(seed)
    logits = np.round(scale * random.normal(size=(ROWS, CLASSES))).astype(np.float32)
    logits[random.random(logits.shape) < 0.2] = -np.inf
    return jnp.asarray(logits), jnp.asarray(random.integers(0, CLASSES, ROWS), jnp.int32)


@partial(grid.quick, static_argnums=(2, 3))
def block(logits, labels, start, stop):
    inside = (labels >= start) & (labels < stop)
    operands = Operands(logits[:, start:stop], jnp.where(inside, labels - start, -1), PRIOR[start:stop])
    found = block_state(WANTED, operands)
    shifted = jnp.where(found.argmax == jnp.iinfo(jnp.int32).max, found.argmax, found.argmax + start)
    return found._replace(argmax=shifted)


def assert_same(a, b, tolerance=2e-6):
    for name, x, y in zip(a._fields, a, b, strict=True):
        if x is not None:
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=name)


@examples
@given(seeds, st.lists(st.integers(0, CLASSES), min_size=2, max_size=2).map(sorted))
def test_merge_is_associative_and_any_split_gives_the_whole_row(seed, cuts):
    logits, labels = draw(seed)
    bounds = [0, *cuts, CLASSES]
    parts = [block(logits, labels, a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if a < b]
    while len(parts) < 3:
        parts.append(identity(logits, labels))
    left = merge(merge(parts[0], parts[1]), parts[2])
    right = merge(parts[0], merge(parts[1], parts[2]))
    assert_same(left, right)
    assert_same(left, block(logits, labels, 0, CLASSES))
    np.testing.assert_array_equal(left.argmax, block(logits, labels, 0, CLASSES).argmax)


def identity(logits, labels):
    """A block in which every class is masked and no label lies."""
    return block(jnp.full_like(logits, -jnp.inf), jnp.full_like(labels, -1), 0, CLASSES)


@examples
@given(seeds, st.integers(1, CLASSES - 1))
def test_merge_is_commutative_with_the_masked_block_as_identity(seed, cut):
    logits, labels = draw(seed)
    a, b = block(logits, labels, 0, cut), block(logits, labels, cut, CLASSES)
    assert_same(merge(a, b), merge(b, a), 0)
    assert_same(merge(a, identity(logits, labels)), a, 0)
    assert_same(merge(identity(logits, labels), a), a, 0)


def test_ties_of_the_argmax_go_to_the_lowest_index_across_blocks():
    logits, labels = jnp.array([[1.0, 3.0, 3.0, 3.0] + [0.0] * 7] * ROWS), jnp.zeros(ROWS, int)
    for cut in (1, 2, 3):
        joined = merge(block(logits, labels, cut, CLASSES), block(logits, labels, 0, cut))
        assert np.all(state.finalize(joined, temperature=None, soft=False).argmax == 1)


@examples
@given(seeds, st.floats(-500, 500, width=32))
def test_a_common_shift_of_the_logits_changes_only_the_lse(seed, shift):
    logits, labels = draw(seed)
    moved = crossent_jax.row_stats(logits + np.float32(shift), labels)
    still = crossent_jax.row_stats(logits, labels)
    rounding = 4 * np.spacing(np.float32(abs(shift) + 50))
    for name in ("nll", "ce_prior", "entropy", "target_probability"):
        np.testing.assert_allclose(getattr(moved, name), getattr(still, name), rtol=1e-5, atol=rounding, err_msg=name)
    np.testing.assert_allclose(moved.lse, still.lse + np.float32(shift), rtol=1e-6, atol=rounding)


smoothed = grid.quick(jax.value_and_grad(lambda z, y: crossent_jax.cross_entropy(z, y, label_smoothing=0.1, z_loss=0.01)))
gradient_of_sum = grid.quick(jax.grad(lambda z, y: crossent_jax.cross_entropy(z, y, reduction="sum")))


@examples
@given(seeds)
def test_permuting_the_classes_permutes_the_gradient_and_keeps_the_loss(seed):
    logits, labels = draw(seed)
    labels = jnp.argmax(logits, -1)  # an unmasked class
    order = jnp.asarray(np.random.default_rng(seed).permutation(CLASSES))
    value, gradient = smoothed(logits, labels)
    value_of_permuted, gradient_of_permuted = smoothed(logits[:, order], jnp.argsort(order)[labels])
    np.testing.assert_allclose(value_of_permuted, value, rtol=1e-6)
    np.testing.assert_allclose(gradient_of_permuted, gradient[:, order], atol=1e-7)


@examples
@given(seeds)
def test_gradient_rows_of_hard_labels_sum_to_zero(seed):
    logits, _ = draw(seed)
    labels = jnp.argmin(jnp.where(logits == -jnp.inf, jnp.inf, logits), -1)  # an unmasked class
    gradient = np.asarray(gradient_of_sum(logits, labels))
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-6)
    assert (gradient[logits == -jnp.inf] == 0).all()


@examples
@given(seeds)
def test_cross_entropy_is_entropy_plus_kl(seed):
    random = np.random.default_rng(seed)
    t, z = random.dirichlet(np.ones(CLASSES), ROWS), random.normal(size=(ROWS, CLASSES)) * 3
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    entropy, kl = -np.sum(t * np.log(t), -1), np.sum(t * (np.log(t) - log_p), -1)
    loss = crossent_jax.soft_cross_entropy(z.astype(np.float32), t.astype(np.float32), reduction="none")
    np.testing.assert_allclose(loss, entropy + kl, rtol=2e-6)


@examples
@given(seeds, st.integers(1, ROWS - 1))
def test_the_mean_of_the_parts_is_the_mean_of_the_whole(seed, cut):
    logits, _ = draw(seed)
    labels = jnp.argmax(logits, -1).at[0].set(-100)
    weights = jnp.asarray(np.random.default_rng(seed).random(ROWS), jnp.float32)
    options = {"ignore_index": -100, "z_loss": 0.1}

    def of(rows, reduction):
        return crossent_jax.cross_entropy(
            logits[rows], labels[rows], row_weights=weights[rows], reduction=reduction, **options
        )

    joined = of(slice(0, cut), "loss_sum") + of(slice(cut, ROWS), "loss_sum")
    np.testing.assert_allclose(joined.mean(), of(slice(0, ROWS), "mean"), rtol=2e-6)
    assert sum([joined]) == joined


def test_a_loss_sum_of_nothing_has_mean_zero_and_refuses_a_number():
    nothing = crossent_jax.LossSum(jnp.float32(0), jnp.float32(0))
    assert nothing.mean() == 0
    with pytest.raises(TypeError):
        nothing + 1.0
