"""The programs that linear losses are on accelerators, and of large chunks on a CPU, run here: values and gradients against
the exact formula, sizes of chunks, and what a memory budget allows. ``test_aot.py`` compiles for the chips themselves."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from crossent_jax._linear import chunk, cuts, fused
from crossent_jax._linear import rows as cut_into_chunks
from crossent_jax._linear.cuts import Limits, Sizes, cost, cut_rows

from . import grid, test_sharded
from .test_linear_values import assert_case, library_function, make_case, structure_of


@pytest.fixture(scope="module", params=["tpu", "cuda", "cpu"])
def platform(request):
    """Every linear loss takes the plan of this platform; that of a CPU as for a large chunk, its gradient in blocks."""

    def by_platform(plans, function, arrays, *arguments):
        on_gpu = plans.gpu._replace(padded=chunk.may_be_padded(arrays))
        plan = {"tpu": plans.tpu, "cuda": on_gpu, "cpu": plans.cpu}[request.param]
        return function(plan, arrays, *arguments)

    def blocks(row_count, classes, itemsize, plain):
        return cuts.Blocks(None if plain else 5, 4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "by_platform", by_platform)
        patch.setattr(cut_into_chunks, "cpu_blocks", blocks)
        patch.setattr(chunk, "GUESSED_FROM", 3)
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


CASES = {
    "plain": ({}, []),
    "mean, chunks that overlap": (
        {"batch": (2, 7), "chunk_rows": 6},
        ["z_loss", "focal_gamma", "poly_epsilon", "class_weights"],
    ),
    "bias": ({"bias": True}, ["class_mask"]),
    "masked, dropped rows": (
        {"ignore_index": -100, "reduction": "loss_sum"},
        ["class_mask", "where", "row_weights", "class_weights"],
    ),
    "one chunk": ({"chunk_rows": None, "head_vocab_axis": 0}, ["z_loss"]),
    "a temperature": ({}, ["temperature", "row_weights"]),
    "options that read more than exponentials": ({"softcap": 4.0}, ["label_smoothing", "entropy_weight", "temperature"]),
    "none": ({"reduction": "none", "chunk_rows": 4}, ["z_loss", "class_mask"]),
    "soft": ({"kind": "soft"}, ["label_smoothing"]),
    "bfloat16": ({"dtype": "bfloat16"}, ["z_loss", "where"]),
    "bfloat16, all": ({"dtype": "bfloat16", "softcap": 4.0}, [*grid.SCALARS, *grid.ARRAYS]),
    "float16": ({"dtype": "float16", "reduction": "sum"}, []),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, platform):
    given, on = CASES[name]
    static, gen = structure_of(**{"bias": False, "kept": True} | given), grid.rng("accelerators", name)
    function = library_function(static)
    for case in range(3):
        assert_case(function, static, make_case(gen, static, on), f"{platform} {name} {case}")


def test_a_confident_row_keeps_its_gradient(platform):
    """p - 1 at the label, where p is near 1, and all that is left are the other classes."""
    hidden, head = jnp.eye(3, 8, dtype=jnp.bfloat16), 7 * jnp.eye(8, 11, dtype=jnp.bfloat16)
    labels = jnp.arange(3)

    def loss(hidden, head):
        return crossent_jax.linear_cross_entropy(hidden, head, labels, reduction="sum", chunk_rows=2)

    dx, dw = jax.grad(loss, (0, 1))(hidden, head)
    others = 10 / (10 + np.exp(7.0))  # the mass of the other classes
    assert np.allclose(np.diag(dw)[:3], -others, rtol=2**-8)
    assert np.allclose(np.diag(dx)[:3], -7 * others, rtol=2**-8)


@pytest.mark.parametrize("mask", [None, np.arange(13) > 3], ids=["unmasked", "first_four_masked"])
def test_logits_far_from_those_of_the_first_classes(mask, platform):
    """Where they are guessed from, and in chunks where the guess does not do for one row."""
    gen = grid.rng("accelerators guess")
    hidden, head = gen.integers(-4, 5, (8, 5)).astype(np.float32), gen.integers(-4, 5, (5, 13)).astype(np.float32)
    hidden[:, 0], head[0], labels = [0, 3, 5, 12, 0, 40, 1, 300], np.repeat([0, 4], [4, 9]), gen.integers(4, 13, 8)
    z = hidden.astype(float) @ head
    z = z if mask is None else np.where(mask, z, -np.inf)
    nll, dz = np.logaddexp.reduce(z, 1) - z[np.arange(8), labels], np.exp(z - np.logaddexp.reduce(z, 1)[:, None])
    dz[np.arange(8), labels] -= 1

    def loss(hidden, head):
        return crossent_jax.linear_cross_entropy(hidden, head, labels, reduction="sum", chunk_rows=2, class_mask=mask)

    value, (dx, dw) = jax.value_and_grad(loss, (0, 1))(hidden, head)
    assert np.allclose([value, loss(hidden, head)], nll.sum(), rtol=1e-6)
    assert np.allclose(dx, dz @ head.T, rtol=1e-5, atol=1e-5)
    assert np.allclose(dw, hidden.T @ dz, rtol=1e-5, atol=1e-5 * 300)


@pytest.mark.parametrize("layout", ["features and vocabulary", "sequence by the vocabulary's axis"])
def test_a_guess_that_does_for_some_devices_of_a_mesh(layout, platform):
    """Each makes its own chunks again, or not; a label far above every other class of another device."""
    mesh, (hidden, head, labels), _ = test_sharded.placed(layout)
    hidden, head = hidden.at[3, 2].multiply(40), head.at[:, 5].multiply(9)

    def loss(function, hidden, head):
        return function(hidden, head, labels, reduction="sum", chunk_rows=8)

    whole = jax.value_and_grad(partial(loss, crossent_jax.linear_cross_entropy), (0, 1))
    split = jax.value_and_grad(partial(loss, test_sharded.sharded_loss(layout)), (0, 1))
    with jax.set_mesh(mesh):
        found = jax.jit(split)(hidden, head)
    right = whole(*(jnp.asarray(np.asarray(x)) for x in (hidden, head)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), found, right)


def test_a_loss_far_below_the_guess_is_exact(platform):
    """Of rows whose label lies 10 to 30 nats above the classes that the guess is taken from, at offsets of 0 and 1000."""
    gen = grid.rng("accelerators confident")
    for offset in (0, 1000):
        head = np.concatenate([gen.integers(-8, 9, (4, 67)) / 4, np.eye(7, 67, 60), np.full((1, 67), offset)])
        hidden = np.concatenate([gen.integers(-4, 5, (7, 4)) / 4, np.diag(np.arange(10.0, 31, 3)), np.ones((7, 1))], 1)
        z, labels = hidden @ head, np.arange(60, 67)
        nll = np.log1p(np.sum(np.exp(z - z[np.arange(7), labels, None]), 1) - 1)
        x, w = np.asarray(hidden, np.float32), np.asarray(head, np.float32)
        each = crossent_jax.linear_cross_entropy(x, w, labels, reduction="none", chunk_rows=3)
        total, _ = jax.value_and_grad(partial(crossent_jax.linear_cross_entropy, reduction="sum"))(x, w, labels)
        assert np.max(np.abs(each - nll)) <= 4e-7 and abs(total - nll.sum()) <= 1e-6


def test_a_row_of_nan_is_nan_and_an_ignored_one_adds_nothing(platform):
    gen = grid.rng("accelerators nan")
    hidden, head = gen.standard_normal((7, 5)).astype(np.float32), gen.standard_normal((5, 13)).astype(np.float32)
    hidden[3], labels = np.nan, grid.labels(gen, 7, 13)

    def gradients(where):
        loss = lambda h, w: crossent_jax.linear_cross_entropy(h, w, labels, where=where, chunk_rows=3)  # noqa: E731
        return jax.grad(loss, (0, 1))(hidden, head)

    dx, dw = gradients(np.arange(7) != 3)
    assert np.all(np.isfinite(dw)) and np.all(dx[3] == 0) and np.all(np.isfinite(dx))
    dx, dw = gradients(None)
    assert np.all(np.isnan(dx[3])) and np.all(np.isfinite(np.delete(dx, 3, 0))) and np.all(np.isnan(dw))


@pytest.mark.parametrize(
    "dtype, options, kept",
    [
        ("bfloat16", {"z_loss": 0.1, "focal_gamma": 2.0, "temperature": 1.5, "class_mask": np.arange(7) != 3}, ["tpu"]),
        ("bfloat16", {"z_loss": 0.1, "focal_gamma": 2.0, "where": np.arange(8) != 3}, ["tpu", "cpu"]),
        ("float32", {}, ["tpu", "cpu"]),
        ("float32", {"logits_dtype": "bfloat16"}, ["tpu"]),
        ("float16", {}, ["cpu"]),
        ("bfloat16", {"softcap": 3.0}, []),
        ("bfloat16", {"label_smoothing": 0.1}, []),
        ("bfloat16", {"entropy_weight": 0.1}, []),
    ],
    ids=str,
)
def test_where_exponentials_are_kept(dtype, options, kept, platform, monkeypatch):
    seen = []
    monkeypatch.setattr(fused, "with_exponentials", lambda *args: seen.append(args) or chunk.with_exponentials(*args))

    def loss(hidden, head):
        return crossent_jax.linear_cross_entropy(hidden, head, jnp.zeros(8, int), **options)

    jax.clear_caches()
    jax.eval_shape(jax.grad(loss, (0, 1)), jnp.ones((8, 3), dtype), jnp.ones((3, 7), dtype))
    assert bool(seen) == (platform in kept)


# --- the size of a chunk ---------------------------------------------------------------------------


def rows(n, d, v, on_cpu=False):
    return cut_rows((n,), Sizes(n, d, v), Limits(), on_cpu).rows


def test_a_chunk_by_bytes():
    """Half of the head's float32 gradient, or 512 MiB of logits, in whole tiles."""
    assert rows(8192, 2048, 131072) == 1024
    assert rows(4096, 4096, 128256) == 2048
    assert rows(16384, 768, 50257) == 2048  # of 2670 that fit: 8 chunks without a rest
    assert rows(10000, 768, 50257) == 2560  # 4 chunks, the last of which overlaps
    assert rows(1797, 64, 10) == 1797  # one
    assert rows(8192, 2048, 131072, on_cpu=True) == 1024
    assert rows(16384, 768, 50257, on_cpu=True) == 384  # 43 chunks, the last of which overlaps
    assert rows(4096, 256, 8192, on_cpu=True) == 256  # of a narrow head as many as features
    assert rows(1023, 64, 50257, on_cpu=True) == 128  # 8 chunks, a row twice
    assert rows(1, 64, 50257, on_cpu=True) == rows(0, 64, 50257, on_cpu=True) == 1


@pytest.mark.parametrize("n, d, v", [(8192, 2048, 131072), (1021, 96, 32771), (5, 3, 7)])
@pytest.mark.parametrize("options", [{}, {"logit_bytes": 2}, {"unwritten": True}], ids=str)
def test_a_budget_is_kept(n, d, v, options):
    sizes = Sizes(n, d, v, **options)
    least, whole = sizes.head_gradient + sizes._replace(unwritten=False).row, cuts.held(sizes, n, 1)
    for budget in (least, least + 1, 2 * least, whole - 1, whole, 2**40):
        if budget >= least:
            cut = cut_rows((n,), sizes, Limits(memory_budget=budget), False)
            assert 1 <= cut.rows <= n and cost(sizes, cut).memory <= budget
    assert cut_rows((n,), sizes, Limits(memory_budget=max(whole, least)), False).rows == n


def test_a_budget_that_cannot_be_kept_says_by_how_much():
    sizes = Sizes(8192, 2048, 131072)
    least = sizes.head_gradient + sizes.row
    with pytest.raises(ValueError, match=rf"memory_budget={least - 7} bytes is too small by 7: .* pass at least {least}"):
        cut_rows((8192,), sizes, Limits(memory_budget=least - 7), True)


@pytest.mark.parametrize("batch", [(4096,), (7, 585), (64, 64), (4096, 1), (1, 4096), (2, 3, 683)], ids=str)
def test_rows_have_one_shape_on_every_platform(batch):
    """Since it is the caller's program that gives them this shape, for whatever it is compiled for."""
    sizes = Sizes(int(np.prod(batch)), 512, 1000)
    assert cut_rows(batch, sizes, Limits(), True).shape == cut_rows(batch, sizes, Limits(), False).shape


def test_a_chunk_counts_the_rows_of_one_device():
    sizes = Sizes(8192, 2048, 131072)
    cut = cut_rows((256 * 8192,), sizes, Limits(), False, devices=256)
    assert (cut.outer, cut.inner, cut.chunk) == (256, 8192, 1024)


def test_tiles():
    for length in (1, 5, 127, 128, 129, 1000, 4096, 7000, 12345):
        for size in (1, 100, 128, 300, 2048, 10**6):
            taken = cuts.aligned_size(length, size)
            assert 1 <= taken <= min(length, size)
            assert taken % cuts.TILE == 0 or taken == length or size < cuts.TILE


# --- what explain says -----------------------------------------------------------------------------


def explained(dtype="bfloat16", n=8192, d=2048, v=131072, **options):
    hidden, head = jax.ShapeDtypeStruct((n, d), dtype), jax.ShapeDtypeStruct((d, v), dtype)
    loss = lambda *arrays: crossent_jax.linear_cross_entropy(*arrays, **options)  # noqa: E731
    return str(crossent_jax.explain(loss, hidden, head, jax.ShapeDtypeStruct((n,), jnp.int32))[0])


def test_explain_says_what_chunks_hold_and_move():
    text = explained()
    assert "on a GPU: 8 chunks of at most 1024 rows, 1,792 MiB beside inputs and gradients, 45.8 GB read and written" in text
    assert "on a TPU: 4 chunks of at most 2048 rows, 1,024 MiB beside inputs and gradients, 20 GB read and written" in text
    assert "least possible" in text
    assert "on a GPU or TPU: 8 chunks of at most 1024 rows, 1,792 MiB" in explained(label_smoothing=0.1)
    whole = explained(memory_budget=4 * 2**30, logits_dtype="bfloat16")
    assert "on a GPU or TPU: 1 chunk of at most 8192 rows, 4,096 MiB" in whole


TAKEN = [{}, {"z_loss": 1e-4, "focal_gamma": 2.0, "class_weights": np.ones(4000)}, {"logits_dtype": "float32"}]
TAKEN += [{name: value} for name, value in (("softcap", 30.0), ("temperature", 2.0), ("entropy_weight", 0.1))]
TAKEN += [{"bias": np.zeros(4000)}, {"logits_dtype": "bfloat16"}, {"label_smoothing": 0.1}, {"memory_budget": 2**26}]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("options", TAKEN, ids=lambda options: " ".join(options) or "none")
def test_explain_says_which_chunks_an_accelerator_takes(options, dtype, monkeypatch):
    taken = {}

    def by_platform(plans, function, arrays, *arguments):
        taken.update(plans._asdict())
        return function(plans.tpu, arrays, *arguments)

    monkeypatch.setattr(fused, "by_platform", by_platform)
    jax.clear_caches()
    text = explained(dtype, 70000, 256, 4000, **options)
    jax.clear_caches()
    for device, plan in ((" a GPU", taken["gpu"]), (" TPU" if "or TPU" in text else " a TPU", taken["tpu"])):
        assert re.search(rf"{device}[^:]*: \d+ chunks of at most {plan.chunk} rows", text)
    assert taken["tpu"].by_guess == ("on a TPU" in text)


def test_explain_says_what_a_gpu_without_bfloat16_wants(monkeypatch):
    class Gpu:
        compute_capability = "7.5"

    assert "float16" not in explained().replace("bfloat16", "")
    monkeypatch.setattr(jax, "devices", lambda: [Gpu()])
    assert "compute capability 7.5" in explained() and "cast hidden and head to float16" in explained()
    assert "compute capability" not in explained("float16") and "compute capability" not in explained("float32")
