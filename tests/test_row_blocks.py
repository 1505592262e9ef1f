"""Rows too long for XLA's CPU reductions are taken a few at a time: the same numbers, and no array of the logits' size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from crossent_jax._jax import row_blocks
from crossent_jax._jax.versions import sums_exponentials_at_once

from . import grid, oracle

ROWS, CLASSES = 23, 50257  # blocks of five rows, the last of which overlaps
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "temperature": 1.5}


@pytest.fixture
def in_blocks(one_device, monkeypatch):
    """Small arrays too."""
    monkeypatch.setattr(row_blocks, "WHOLE_BYTES", 0)


def batch(dtype):
    gen = grid.rng("row blocks", dtype)
    z, labels = grid.logits(gen, ROWS, CLASSES, dtype), grid.labels(gen, ROWS, CLASSES)
    mask = gen.uniform(size=(ROWS, CLASSES)) < 0.7
    mask[np.arange(ROWS), labels] = True
    return z, labels, mask


def test_the_sizes_divide_no_block():
    size = row_blocks.BLOCK_BYTES // (4 * CLASSES)
    assert ROWS > 2 * size and ROWS % size


def loops(lowered) -> int:
    return lowered.as_text().count("stablehlo.while")


@pytest.mark.parametrize(
    "dtype, kind, mask_shape",
    [
        ("float32", "hard", "no mask"),
        ("bfloat16", "hard", "one for all rows"),
        ("bfloat16", "hard", "one per row"),
        ("bfloat16", "soft", "no mask"),
        ("float32", "soft", "one for all rows"),
        ("float32", "soft", "one per row"),
    ],
)
def test_values_of_blocks_are_those_of_rows(dtype, kind, mask_shape, in_blocks):
    z, labels, mask = batch(dtype)
    options = dict(OPTIONS)
    if mask_shape != "no mask":
        mask = mask if mask_shape == "one per row" else mask.any(0)
        options["class_mask"] = mask
    target = labels if kind == "hard" else np.where(mask, np.full(z.shape, 1 / CLASSES, np.float32), 0)
    function = crossent_jax.cross_entropy if kind == "hard" else crossent_jax.soft_cross_entropy
    loss = function(z, target, reduction="none", **options)
    options |= {"reduction": "none", "wide_dtype": oracle.value_dtype(dtype)}
    exact = oracle.exact_loss(np.asarray(z, np.float32), target, **options)
    assert np.all(np.abs(np.asarray(loss) - exact) <= oracle.loss_slack(exact))


def test_statistics_of_any_batch_shape(in_blocks):
    z, labels, _ = batch("float32")
    flat = crossent_jax.row_stats(z[:22], labels[:22], implementation="reference")
    shaped = crossent_jax.row_stats(z[:22].reshape(2, 11, CLASSES), labels[:22].reshape(2, 11))
    for name, got, expected in zip(flat._fields, shaped, flat, strict=True):
        np.testing.assert_allclose(got.reshape(22), expected, rtol=2e-6, err_msg=name)


def test_bfloat16_gradient_is_that_of_the_reference(in_blocks):
    z, labels, mask = batch("bfloat16")

    def gradient(implementation):
        options = OPTIONS | {"class_mask": mask, "implementation": implementation}
        return np.float32(grid.quick(jax.grad(lambda z: crossent_jax.cross_entropy(z, labels, **options)))(z))

    ours, reference = gradient("xla"), gradient("reference")
    np.testing.assert_allclose(ours, reference, rtol=2**-7, atol=1e-9)  # an ulp of bfloat16


PRIME = 50261  # classes


@pytest.mark.optimized
@pytest.mark.parametrize("classes", [CLASSES, PRIME])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_holds_one_block(dtype, classes, in_blocks):
    """On the CPU alone: another platform's program has no loop, and none of the parts of a row. One loop of the CPU's is for
    rows far from their labels, another for blocks."""
    arguments = jax.ShapeDtypeStruct((4 * ROWS, classes), dtype), jax.ShapeDtypeStruct((4 * ROWS,), jnp.int32)
    traced = jax.jit(crossent_jax.cross_entropy).trace(*arguments)
    temporary = traced.lower().compile().memory_analysis().temp_size_in_bytes
    assert temporary <= 64 * 4 * ROWS + 4 * 2**20
    for platform in ("cpu", "tpu", "cuda"):
        lowered = traced.lower(lowering_platforms=(platform,))
        in_parts = platform == "cpu" and classes == CLASSES and sums_exponentials_at_once()
        assert loops(lowered) == (0 if platform != "cpu" else 1 if in_parts else 2)
        assert (f"{4 * ROWS * 29}x1733x" in lowered.as_text()) == in_parts


def test_values_of_parts_are_those_of_rows(in_blocks):
    """29 parts: a label in the first and in the last, parts without a class, a row without any, NaN, and an ignored row."""
    z, labels, _ = batch("float32")
    z, labels = np.array(z), np.array(labels)
    labels[:2] = 0, CLASSES - 1
    z[2, : 3 * 1733] = -np.inf
    z[2, 1733 * 5] = 1000
    labels[2] = 1733 * 5 + 1
    z[3], z[4, 20000], labels[5] = -np.inf, np.nan, -100
    loss = crossent_jax.cross_entropy(z, labels, reduction="none", ignore_index=-100)
    lse = crossent_jax.row_stats(z, labels).lse
    finite = np.setdiff1d(np.arange(ROWS), (3, 4, 5))
    exact = oracle.exact_loss(z[finite], labels[finite], reduction="none", wide_dtype=oracle.value_dtype("float32"))
    assert np.all(np.abs(np.asarray(loss)[finite] - exact) <= oracle.loss_slack(exact))
    assert loss[3] == np.inf and np.isnan(loss[4]) and loss[5] == 0
    assert lse[3] == -np.inf and np.isnan(lse[4]) and np.isfinite(np.delete(lse, (3, 4))).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_derivatives_of_both_orders_are_those_of_whole_rows(dtype, one_device, monkeypatch):
    """Blocks of 3 rows, the first of which overlaps: sums over rows (temperature, class weights, losses) count each row
    once, and 16-bit arrays that are read and written by their bits have their derivatives."""
    gen = grid.rng("derivatives in blocks", dtype)
    z, labels = grid.logits(gen, 11, 7, dtype), grid.labels(gen, 11, 7)
    weights = jnp.arange(1, 8, dtype=jnp.float32)

    def losses(z, temperature, weights):
        options = {"temperature": temperature, "class_weights": weights, "label_smoothing": 0.1, "entropy_weight": 0.2}
        yield crossent_jax.cross_entropy(z, labels, softcap=3.0, **options)
        yield crossent_jax.kl_divergence(z, z[::-1], temperature=temperature)
        yield crossent_jax.binary_cross_entropy(z, z > 0, temperature=temperature, pos_weight=weights)

    def both_orders(*given):
        def gradients(*given):
            return jax.grad(lambda *given: sum(losses(*given)), (0, 1, 2))(*given)

        def square(*given):
            return sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in gradients(*given))

        return gradients(*given), jax.grad(square, (0, 1, 2))(*given)

    given = z, jnp.float32(1.3), weights
    whole = jax.jit(both_orders)(*given)
    monkeypatch.setattr(row_blocks, "WHOLE_BYTES", 0)
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 4 * 7 * 3)
    jax.clear_caches()
    lowered = jax.jit(both_orders).lower(*given)
    assert loops(lowered)
    for ours, expected in zip(jax.tree.leaves(lowered.compile()(*given)), jax.tree.leaves(whole), strict=True):
        scale = float(jnp.max(jnp.abs(expected.astype(jnp.float32))))
        np.testing.assert_allclose(np.float32(ours), np.float32(expected), atol=8 * float(jnp.finfo(dtype).eps) * scale)


def test_a_float32_gradient_takes_the_rows_at_once(in_blocks):
    """There the exponentials become the gradient in place; the only loop is for rows far from their labels."""
    arguments = jax.ShapeDtypeStruct((ROWS, CLASSES), jnp.float32), jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    assert 1 == loops(jax.jit(jax.value_and_grad(crossent_jax.cross_entropy)).lower(*arguments))


def test_rows_that_the_compiler_splits_over_devices_are_not_gathered():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    logits = jax.ShapeDtypeStruct((96, CLASSES), jnp.bfloat16, sharding=rows)
    labels = jax.ShapeDtypeStruct((96,), jnp.int32, sharding=rows)
    compiled = jax.jit(crossent_jax.cross_entropy).lower(logits, labels).compile().as_text()
    assert "all-reduce" in compiled and "all-gather" not in compiled


@pytest.mark.parametrize(
    ("kind", "sides", "n", "parts", "v", "dtype"),
    [("js", (0, 1), 1501, 19, 1023, "float32"), ("forward_kl", (0,), 1001, 7, 4099, "bfloat16")],
)
def test_pairs_in_blocks(kind, sides, n, parts, v, dtype, one_device):
    """The rows do not fill the blocks; in the last one 3 rows have no cotangent, one of them NaN logits."""
    gen = np.random.default_rng(7)
    z, w = ((3 * gen.standard_normal((n, v), np.float32)).astype(grid.numpy_dtype(dtype)) for _ in range(2))
    where = np.ones(n, bool)
    where[[n - 4, n - 3, n - 1]] = False
    z[n - 3, 5] = np.nan

    def loss(z, w, where):
        return crossent_jax.divergence(z, w, kind=kind, where=where, reduction="sum", temperature=1.5)

    def rows(start, stop):
        return z[start:stop], w[start:stop], where[start:stop]

    size, both = n // parts, jax.jit(jax.value_and_grad(loss, sides))
    whole, part = both.lower(*rows(0, n)), both.lower(*rows(0, size))
    assert loops(whole) and not loops(part)
    value, gradients = whole.compile()(*rows(0, n))
    of_part = part.compile()
    found = [of_part(*rows(start, start + size)) for start in range(0, n, size)]
    np.testing.assert_allclose(value, sum(float(part[0]) for part in found), rtol=1e-6)
    for side in sides:
        joined = np.concatenate([np.float32(part[1][side]) for part in found])
        ulp = float(jnp.finfo(dtype).eps)  # of different programs: the last digit of the dtype may differ
        np.testing.assert_allclose(np.float32(gradients[side]), joined, rtol=max(1e-5, ulp), atol=1e-7)
        assert np.all(joined[~where] == 0)
