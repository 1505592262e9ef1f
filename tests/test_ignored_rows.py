"""Ignored rows of hidden states cost no product: the rows that count go through first, and no chunk is made of others. The
numbers are those of the losses of logits with the same mask."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import crossent_jax
from crossent_jax import linear_cross_entropy
from crossent_jax._linear import chunk, counted, fused

from . import grid
from .test_linear_values import assert_case, library_function, make_case, structure_of

PLATFORMS = ["cpu", "tpu"]  # a GPU walks as a CPU does
ROWS, FEATURES, CLASSES = 13, 5, 17
GEN = grid.rng("ignored rows")
HIDDEN = GEN.standard_normal((ROWS, FEATURES)).astype(np.float32)
HEAD = GEN.standard_normal((FEATURES, CLASSES)).astype(np.float32)
LABELS = grid.labels(GEN, ROWS, CLASSES)
MASKS = {
    "none": np.zeros(ROWS, bool),
    "all": np.ones(ROWS, bool),
    "one": np.arange(ROWS) == 8,
    "last": np.arange(ROWS) == ROWS - 1,
    "a third": np.arange(ROWS) % 3 == 1,
    "a stretch": (np.arange(ROWS) >= 3) & (np.arange(ROWS) < 9),
    "all but one": np.arange(ROWS) != 4,
}


@pytest.fixture
def one_device(monkeypatch):
    """The suite runs with eight devices of the CPU, where rows stay where they are, and with small arrays."""
    monkeypatch.setattr(counted, "several_devices", lambda: False)
    monkeypatch.setattr(counted, "LEAST_WORK", 0)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture(params=PLATFORMS)
def platform(request, one_device, monkeypatch):
    """Every linear loss takes the plan of this platform, on which memory that nobody wrote holds anything."""

    def by_platform(plans, function, *arrays):
        return function(plans.cpu if request.param == "cpu" else plans.tpu, *arrays)

    monkeypatch.setattr(fused, "by_platform", by_platform)
    monkeypatch.setattr(jax.lax, "empty", lambda shape, dtype: jnp.full(shape, jnp.nan, dtype))
    return request.param


# --- values and gradients --------------------------------------------------------------------------

CASES = {
    "mean": ({}, ["where"]),
    "mean of sequences": ({"batch": (2, 7), "chunk_rows": 4}, ["where", "row_weights", "z_loss", "focal_gamma"]),
    "chunks of one row": ({"chunk_rows": 1, "reduction": "loss_sum"}, ["where", "class_weights"]),
    "a label that is ignored": ({"ignore_index": -100, "chunk_rows": 5, "head_vocab_axis": 0}, ["where", "temperature"]),
    "every option": ({"softcap": 4.0, "chunk_rows": 4}, [*grid.SCALARS, *grid.ARRAYS]),
    "none": ({"reduction": "none", "chunk_rows": 4}, ["where", "row_weights", "temperature"]),
    "none, every option": ({"reduction": "none", "softcap": 4.0}, [*grid.SCALARS, *grid.ARRAYS]),
    "soft": ({"kind": "soft", "chunk_rows": 4}, ["where", "row_weights", "label_smoothing"]),
    "soft, none": ({"kind": "soft", "reduction": "none"}, ["where", "entropy_weight"]),
    "bfloat16": ({"dtype": "bfloat16", "kept": True}, ["where", "z_loss"]),
    "float16": ({"dtype": "float16", "reduction": "sum"}, ["where"]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, platform):
    given, on = CASES[name]
    static, gen = structure_of(**given), grid.rng("ignored rows", name)
    function = library_function(static)
    for case in range(3):
        assert_case(function, static, make_case(gen, static, on), f"{platform} {name} {case}")


def total(function, *arrays, reduction="mean", **options):
    return jnp.sum(function(*arrays, reduction=reduction, **options))


def ours(x, w, where, reduction="mean", **options):
    return total(linear_cross_entropy, x, w, LABELS, where=where, reduction=reduction, **({"chunk_rows": 4} | options))


def dense(x, w, where, reduction="mean", **options):
    return total(crossent_jax.cross_entropy, x @ w, LABELS, where=where, reduction=reduction, **options)


def close(found, right, tolerance=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), found, right)


gradients = grid.quick(jax.value_and_grad(dense, (0, 1)), static_argnames="reduction")


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_rows_may_be_nan(reduction, platform):
    run = grid.quick(jax.value_and_grad(ours, (0, 1)), static_argnames="reduction")
    for mask, where in MASKS.items():
        hidden = np.where(where[:, None], HIDDEN, np.nan)
        value, (dx, dw) = run(hidden, HEAD, where, reduction=reduction)
        close((value, (dx, dw)), gradients(HIDDEN, HEAD, where, reduction=reduction))
        assert not np.any(dx[~where]), mask
        if not where.any():
            assert value == 0 and not np.any(dw)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_where_all_rows_count_nothing_changes(reduction, one_device):
    run = jax.jit(jax.value_and_grad(partial(ours, reduction=reduction), (0, 1)))
    (value, found), (right_value, right) = (run(HIDDEN, HEAD, where) for where in (MASKS["all"], None))
    close(value, right_value, 2e-7)  # the sum of the same losses
    for gradient, right_gradient in zip(found, right, strict=True):
        np.testing.assert_array_equal(gradient, right_gradient)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_weight_of_zero_has_a_gradient(reduction, platform):
    """And where it is not asked for its row is not seen."""
    weights = np.where(MASKS["a third"], 0.7, 0).astype(np.float32)

    def of(function, arrays):
        def value(weights, x, w):
            options = {"row_weights": weights, "reduction": reduction, "where": MASKS["all but one"]}
            return total(function, *arrays(x, w), LABELS, **options)

        return grid.quick(jax.grad(value, (0, 1, 2)))(weights, HIDDEN, HEAD)

    found = of(partial(linear_cross_entropy, chunk_rows=4), lambda x, w: (x, w))
    close(found, of(crossent_jax.cross_entropy, lambda x, w: (x @ w,)))


def test_a_label_of_no_class_is_nan_whatever_its_class_weighs(platform):
    labels, weights = np.where(np.arange(ROWS) == 7, CLASSES, LABELS), (np.arange(CLASSES) % 2).astype(np.float32)

    def loss(x):
        return linear_cross_entropy(x, HEAD, labels, class_weights=weights, reduction="sum", chunk_rows=4)

    value, dx = grid.quick(jax.value_and_grad(loss))(HIDDEN)
    assert np.isnan(value) and np.all(np.isfinite(dx)) and not np.any(dx[7])


def test_statistics_of_rows(platform):
    for name, where in MASKS.items():
        found = crossent_jax.linear_row_stats(HIDDEN, HEAD, LABELS, where=where, chunk_rows=4)
        close(found, crossent_jax.row_stats(HIDDEN @ HEAD, LABELS, where=where))
        log_probs = crossent_jax.linear_token_log_probs(HIDDEN, HEAD, LABELS, where=where, chunk_rows=4)
        close(log_probs, crossent_jax.token_log_probs(HIDDEN @ HEAD, LABELS, where=where))
        assert np.all(found.argmax[~where] == -1) and not np.any(log_probs[~where]), name


def test_a_loss_of_ones_own_and_a_mask_of_classes_for_each_row(platform):
    mask = GEN.uniform(size=(ROWS, CLASSES)) < 0.7
    mask[np.arange(ROWS), LABELS] = True
    advantages, where = GEN.standard_normal(ROWS).astype(np.float32), MASKS["a third"]

    def own(x, w, b, advantages, c):
        def loss(stats, advantage):
            return c * advantage * stats.nll - 0.1 * stats.entropy

        options = {"bias": b, "class_mask": mask, "chunk_rows": 4}
        return crossent_jax.linear_loss(loss, x, w, LABELS, advantages, where=where, **options)

    def plain(x, w, b, advantages, c):
        stats = crossent_jax.row_stats(x @ w + b[None], LABELS, class_mask=mask, where=where)
        return jnp.sum(jnp.where(where, c * advantages * stats.nll - 0.1 * stats.entropy, 0)) / np.float32(where.sum())

    arguments = HIDDEN, HEAD, np.ones(CLASSES, np.float32), advantages, np.float32(1.3)
    found, right = (grid.quick(jax.value_and_grad(f, (0, 1, 2, 3, 4)))(*arguments) for f in (own, plain))
    close(found, right)
    assert not np.any(found[1][3][~where])


# --- how many chunks are made ----------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch):
    """Counts the chunks whose logits are made, when they are."""
    seen = []

    def chunk_at(*arguments):
        jax.debug.callback(lambda: seen.append(1))
        return chunk.chunk_at(*arguments)

    monkeypatch.setattr(fused, "chunk_at", chunk_at)
    return seen


def chunks_of(made, function, *arguments):
    made.clear()
    jax.block_until_ready(function(*arguments))
    jax.effects_barrier()
    return len(made)


SIZE = 3  # rows in a chunk: five chunks, the last of which overlaps
NEEDED = {mask: -(-int(where.sum()) // SIZE) for mask, where in MASKS.items()}


@pytest.mark.parametrize("how", ["value", "sum", "weights", "none", "none of weights"])
def test_chunks_of_ignored_rows_are_not_made(how, platform, made):
    def loss(x, w, where):
        weights = {"row_weights": where.astype(np.float32)}
        mask = weights if "weights" in how else {"where": where}
        reduction = "none" if "none" in how else "mean"
        softcap = 9.0 if how == "sum" else None  # with which a TPU's last chunk is a program of its own
        return total(linear_cross_entropy, x, w, LABELS, reduction=reduction, chunk_rows=SIZE, softcap=softcap, **mask)

    run = jax.jit(loss if how == "value" else jax.grad(loss, (0, 1)))
    passes = {"none": 2}.get(how, 1)
    for mask, needed in NEEDED.items():
        at_least = int(platform == "tpu" and how == "sum")
        right = passes * needed
        if at_least and not needed:
            right = 1
        if how == "none of weights":  # the forward pass has no cotangents yet
            right = -(-ROWS // SIZE) + max(needed, at_least)
        assert chunks_of(made, run, HIDDEN, HEAD, MASKS[mask]) == right, mask


def test_a_mapped_loop_makes_as_many_chunks_as_any_row_of_the_map_needs(one_device, made):
    """And no more: its length is one number, so nothing chooses between states of the loop."""
    several = np.stack([MASKS["one"], MASKS["none"], MASKS["a stretch"]])
    mapped = jax.jit(jax.vmap(jax.grad(partial(ours, chunk_rows=SIZE), (0, 1)), (None, None, 0)))
    assert chunks_of(made, mapped, HIDDEN, HEAD, several) == NEEDED["a stretch"]
    loops = [e for e in equations(jax.make_jaxpr(mapped)(HIDDEN, HEAD, several).jaxpr) if e.primitive.name == "while"]
    assert loops and all(e.params["cond_jaxpr"].out_avals[0].shape == () for e in loops)


def equations(jaxpr):
    """Of a program and of all that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def orders(function, *arguments):
    """Whether a program puts rows in another order."""
    return any(e.primitive.name == "cumsum" for e in equations(jax.make_jaxpr(function)(*arguments).jaxpr))


def test_rows_stay_where_that_spares_nothing(one_device, monkeypatch):
    """One chunk, no mask, little work."""
    both = jax.grad(ours, (0, 1))
    assert orders(both, HIDDEN, HEAD, MASKS["one"])
    assert not orders(partial(both, chunk_rows=ROWS), HIDDEN, HEAD, MASKS["one"])
    assert not orders(partial(both, where=None), HIDDEN, HEAD)
    monkeypatch.setattr(counted, "LEAST_WORK", ROWS * FEATURES * CLASSES + 1)
    jax.clear_caches()
    assert not orders(both, HIDDEN, HEAD, MASKS["one"])


# --- transforms ------------------------------------------------------------------------------------

SEVERAL = np.stack([MASKS["one"], MASKS["none"], MASKS["a third"]])
HIDDENS = np.stack([HIDDEN, -HIDDEN, 2 * HIDDEN])
MAPPED = {"mask": (None, None, 0), "hidden and mask": (0, None, 0), "hidden": (0, None, None)}
reductions = pytest.mark.parametrize("reduction", ("mean", "none"))


@reductions
@pytest.mark.parametrize("mapped", MAPPED)
def test_vmap_of_grad_and_grad_of_vmap(mapped, reduction, platform):
    axes = MAPPED[mapped]
    x, where = HIDDENS if axes[0] == 0 else HIDDEN, SEVERAL if axes[2] == 0 else SEVERAL[2]

    def both(function):
        def run(x, w):
            function_of = jax.vmap(partial(function, reduction=reduction), axes)
            each = jax.vmap(jax.value_and_grad(partial(function, reduction=reduction), (0, 1)), axes)(x, w, where)
            return each, jax.grad(lambda x, w: function_of(x, w, where).sum(), (0, 1))(x, w)

        return grid.quick(run)(x, HEAD)

    close(both(ours), both(dense), 1e-5)


def second(function, x, w, where):
    def slope(x, w):
        return sum(jnp.vdot(g, jnp.cos(g)) for g in jax.grad(function, (0, 1))(x, w, where))

    return jax.grad(slope, (0, 1))(x, w)


def in_a_scan(function, x, w, where):
    def summed(x, w):
        step = jax.checkpoint(lambda x, where: function(x, w, where))
        return jax.lax.scan(lambda sum_, each: (sum_ + step(*each), None), jnp.float32(0), (x, where))[0]

    return jax.value_and_grad(summed, (0, 1))(jnp.stack([x, -x, 2 * x]), w)


@reductions
def test_gradients_of_gradients(reduction, platform):
    found, right = (
        grid.quick(partial(second, partial(f, reduction=reduction)))(HIDDEN, HEAD, MASKS["a third"]) for f in (ours, dense)
    )
    close(found, right, 1e-5)


@reductions
def test_checkpoints_in_a_scan(reduction, platform):
    found, right = (
        grid.quick(partial(in_a_scan, partial(f, reduction=reduction)))(HIDDEN, HEAD, SEVERAL) for f in (ours, dense)
    )
    close(found, right, 1e-5)


def test_without_jit(one_device):
    with jax.disable_jit():
        found = jax.value_and_grad(ours, (0, 1))(HIDDEN, HEAD, MASKS["a third"])
    close(found, gradients(HIDDEN, HEAD, MASKS["a third"], reduction="mean"))


# --- devices ---------------------------------------------------------------------------------------

N, V = 56, 24
X = GEN.standard_normal((N, FEATURES)).astype(np.float32)
W = GEN.standard_normal((FEATURES, V)).astype(np.float32)
Y = grid.labels(GEN, N, V)
UNEQUAL = np.arange(N) % 7 < np.arange(N) // 7  # of the rows of eight devices 0, 1, ... 7 count
MESHES = {"rows": ((8,), ("data",)), "rows and classes": ((2, 4), ("data", "model")), "classes": ((8,), ("model",))}


def split_loss(x, w, y, where, *, axes, reduction):
    axis_name = "model" if "model" in axes else None
    options = {"where": where, "chunk_rows": 3, "axis_name": axis_name, "z_loss": 0.1}
    if reduction == "none":
        return linear_cross_entropy(x, w, y, reduction=reduction, **options)
    out = linear_cross_entropy(x, w, y, reduction="loss_sum", **options)
    return (out.psum("data") if "data" in axes else out).mean()


@cache
def whole_gradients(reduction):
    def loss(x, w):
        return total(crossent_jax.cross_entropy, x @ w, Y, where=UNEQUAL, z_loss=0.1, reduction=reduction)

    return grid.quick(jax.value_and_grad(loss, (0, 1)))(X, W)


@pytest.fixture
def little_work(monkeypatch):
    monkeypatch.setattr(counted, "LEAST_WORK", 0)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("check_vma", [True, False])
@reductions
@pytest.mark.parametrize("mesh", MESHES)
def test_every_device_goes_through_its_own_rows(mesh, reduction, check_vma, little_work):
    """Those that share rows, each with some of the classes, go through together."""
    shape, axes = MESHES[mesh]
    data, model = ("data" if "data" in axes else None), ("model" if "model" in axes else None)
    split = jax.shard_map(
        partial(split_loss, axes=axes, reduction=reduction),
        mesh=jax.make_mesh(shape, axes, axis_types=(jax.sharding.AxisType.Auto,) * len(shape)),
        in_specs=(P(data), P(None, model), P(data), P(data)),
        out_specs=P(data) if reduction == "none" else P(),
        check_vma=check_vma,
    )

    def loss(x, w):
        return jnp.sum(split(x, w, Y, UNEQUAL))

    assert orders(loss, X, W)
    close(grid.quick(jax.value_and_grad(loss, (0, 1)))(X, W), whole_gradients(reduction), 2e-6)


def test_rows_stay_where_they_may_be_split_over_devices(little_work):
    assert jax.device_count() > 1 and not orders(jax.grad(ours, (0, 1)), HIDDEN, HEAD, MASKS["one"])


def test_devices_may_weigh_the_same_rows_differently(little_work):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    weights = np.tril(np.ones((8, ROWS), np.float32), -1)  # device i counts its first i rows

    def shard(x, w, weights):
        out = linear_cross_entropy(x, w, LABELS, row_weights=weights[0], chunk_rows=4, reduction="sum")
        return jax.lax.psum(out, "data")

    split = jax.shard_map(shard, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=False)

    def right(x, w):
        return crossent_jax.cross_entropy(x @ w, LABELS, row_weights=weights.sum(0), reduction="sum")

    functions = (lambda x, w: split(x, w, weights)), right
    found, expected = (grid.quick(jax.value_and_grad(f, (0, 1)))(HIDDEN, HEAD) for f in functions)
    close(found, expected, 1e-5)
