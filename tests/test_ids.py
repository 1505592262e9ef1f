"""64-bit ids without x64: NumPy's keep their identity where they are only compared, and no id becomes a class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax

from . import grid

FAR = 2**40


@pytest.mark.parametrize("dtype", (np.int64, np.uint64))
def test_ids_of_pairs_keep_their_identity(dtype):
    """Of 64-bit hashes, those that agree are positives, and no others: as the same pattern in small numbers."""
    gen = grid.rng("ids")
    queries, keys = (gen.standard_normal((4, 3)).astype(np.float32) for _ in range(2))
    small = np.array([0, 1, 0, 2]), np.array([2, 0, 1, 1])
    for sign in (1, -1) if dtype == np.int64 else (1,):
        large = (sign * np.array([FAR, 2 * FAR, 3 * FAR]))[small[0]], (sign * np.array([FAR, 2 * FAR, 3 * FAR]))[small[1]]
        for loss in (crossent_jax.info_nce, crossent_jax.sigmoid_contrastive):
            found, expected = (
                loss(queries, keys, temperature=0.5, query_ids=ids[0].astype(dtype), key_ids=ids[1].astype(dtype))
                for ids in (large, small)
            )
            assert found == expected
    mixed = crossent_jax.info_nce(
        queries, keys, temperature=0.5, query_ids=np.array([FAR, 1, FAR, 2]), key_ids=np.array([2, 5, 1, 1], np.int32)
    )
    assert mixed == crossent_jax.info_nce(queries, keys, temperature=0.5, query_ids=small[0], key_ids=np.array([2, 5, 1, 1]))


def test_segments_keep_their_identity():
    hidden, head, tokens = np.ones((1, 4, 2), np.float32), np.eye(2, 5, dtype=np.float32), np.array([[0, 1, 2, 3]])
    for ids in ([[FAR, FAR, 2 * FAR, 2 * FAR]], [[-FAR, -FAR, FAR, FAR]]):
        losses = crossent_jax.linear_cross_entropy(
            hidden, head, tokens, shift=1, segment_ids=np.array(ids), reduction="none"
        )
        np.testing.assert_array_equal(np.asarray(losses) != 0, [[False, True, False, True]])


def test_labels_beyond_32_bits_are_no_class():
    losses = crossent_jax.cross_entropy(np.zeros((3, 4), np.float32), np.array([FAR, -FAR, 2]), reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), [True, True, False])


@pytest.mark.parametrize("ignore_index", (FAR, -FAR, 2**31 - 1, -(2**31)))
def test_an_ignore_index_that_32_bits_cannot_tell_apart_is_refused(ignore_index):
    z, labels = np.zeros((2, 4), np.float32), np.array([ignore_index, 3 * FAR])
    calls = (
        lambda: crossent_jax.cross_entropy(z, labels, ignore_index=ignore_index),
        lambda: crossent_jax.linear_cross_entropy(z, np.eye(4, dtype=np.float32), labels, ignore_index=ignore_index),
        lambda: crossent_jax.divergence(z, z, labels=labels, label_weight=0.5, ignore_index=ignore_index),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"ignore_index={ignore_index}.*x64"):
            call()


def test_an_ignore_index_of_32_bits_beside_farther_labels():
    losses = crossent_jax.cross_entropy(
        np.zeros((3, 4), np.float32), np.array([FAR, -100, 1]), ignore_index=-100, reduction="none"
    )
    np.testing.assert_array_equal(np.isnan(losses), [True, False, False])
    assert losses[1] == 0


@pytest.mark.parametrize("dtype", (jnp.int32, jnp.int8, jnp.uint8))
def test_integer_masks_are_accepted(dtype):
    """Masks of 0 and 1 are what data pipelines give."""
    gen = grid.rng("integer masks")
    z, labels = grid.logits(gen, 3, 5), np.array([0, 1, 2])
    where, class_mask = np.array([1, 0, 1]), np.array([1, 1, 1, 0, 1])
    head = np.eye(5, dtype=np.float32)
    for call in (
        lambda **masks: crossent_jax.cross_entropy(z, labels, **masks),
        lambda **masks: crossent_jax.linear_cross_entropy(z, head, labels, **masks),
        lambda **masks: crossent_jax.kl_divergence(z, z[::-1], **masks),
    ):
        found = call(where=jnp.asarray(where, dtype), class_mask=jnp.asarray(class_mask, dtype))
        assert found == call(where=where.astype(bool), class_mask=class_mask.astype(bool))
    binary = [crossent_jax.binary_cross_entropy(z[:, 0], labels % 2, where=w) for w in (where, where.astype(bool))]
    assert binary[0] == binary[1]


def test_a_floating_mask_is_refused_with_what_to_write():
    z, labels = np.zeros((2, 3), np.float32), np.array([0, 1])
    with pytest.raises(TypeError, match=r"where must be boolean or integer; .*float32.*where != 0, or row_weights"):
        crossent_jax.cross_entropy(z, labels, where=np.ones(2, np.float32))
    with pytest.raises(TypeError, match=r"class_mask must be boolean or integer; .*float32.*class_mask != 0\."):
        crossent_jax.cross_entropy(z, labels, class_mask=np.ones(3, np.float32))


@pytest.mark.parametrize("jitted", (False, True))
@pytest.mark.parametrize("dtype", (jnp.int32, jnp.uint8))
def test_integer_scalar_arrays_are_numbers(dtype, jitted):
    z, labels = grid.logits(grid.rng("integer scalars"), 3, 5), np.array([0, 1, 2])
    options = {"focal_gamma": 2, "z_loss": 1, "temperature": 3, "label_smoothing": 1}
    run = jax.jit(crossent_jax.cross_entropy) if jitted else crossent_jax.cross_entropy
    for name, value in options.items():
        assert run(z, labels, **{name: jnp.asarray(value, dtype)}) == run(z, labels, **{name: jnp.float32(value)}), name


@pytest.mark.parametrize("value, words", [(jnp.array(True), "bool"), (jnp.array(1j), "real")])
def test_scalar_arrays_that_are_no_numbers(value, words):
    with pytest.raises(TypeError, match=f"focal_gamma.*{words}"):
        crossent_jax.cross_entropy(np.zeros((2, 3), np.float32), np.array([0, 1]), focal_gamma=value)
