"""One test per trap of the design (section 5), and per defect of a peer, that concerns logits.

Traps of sharded vocabularies are in ``test_sharding.py``, of memory in ``test_memory.py``, of transforms in
``test_transforms.py``.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from crossent_jax import cross_entropy, row_stats, soft_cross_entropy, token_log_probs
from crossent_jax._row.labels import class_index, local_index

from . import grid, oracle

backends = pytest.mark.parametrize("backend", grid.BACKENDS)
UNCAPPED = {name: on for name, (_, on) in grid.SCALARS.items()}
EVERYTHING = UNCAPPED | {"softcap": 4.0}
ROWS, CLASSES = grid.SHAPES[0]


def batch(key, rows=ROWS, classes=CLASSES, dtype="float32", **kwargs):
    gen = grid.rng(key)
    return grid.logits(gen, rows, classes, dtype, **kwargs), grid.labels(gen, rows, classes)


@partial(jax.jit, static_argnums=3, compiler_options=grid.QUICK_COMPILE)
def _rows_and_gradient(z, labels, traced, static):
    def total(z):
        rows = cross_entropy(z, labels, reduction="none", **traced, **dict(static))
        return jnp.sum(rows), rows

    (_, rows), gradient = jax.value_and_grad(total, has_aux=True)(z)
    return rows, gradient


def value_and_gradient(backend, z, labels, **options):
    """Row losses and the gradient of their sum. Scalars and arrays are traced: one compilation for a set of options."""
    static = {name: options.pop(name) for name in ("softcap", "ignore_index") if name in options}
    static = tuple((static | {"implementation": backend}).items())
    traced = {name: np.float32(value) if isinstance(value, float) else value for name, value in options.items()}
    return jax.tree.map(np.asarray, _rows_and_gradient(z, labels, traced, static))


def assert_close(ours, exact):
    exact = np.asarray(exact, float)
    assert np.all(np.abs(np.asarray(ours, float) - exact) <= oracle.loss_slack(exact)), (ours, exact)


# --- trap 1: padding a vocabulary block must not reach the lse (tokamax; levanter counts a ragged tail twice)


@backends
@pytest.mark.parametrize("classes", (2047, 2049, 4099))
def test_padding_never_reaches_the_lse(classes, backend):
    """Equal logits, all negative: any padding by 0 or by a class seen twice shows."""
    z = np.full((3, classes), -5.0, np.float32)
    stats = row_stats(z, np.array([0, classes // 2, classes - 1]), implementation=backend)
    assert_close(stats.lse, np.full(3, np.log(classes) - 5))
    for field in (stats.nll, stats.ce_prior, stats.entropy):
        assert_close(field, np.full(3, np.log(classes)))


# --- trap 2: mask statistics, not losses (optax: a NaN row masked by where has NaN gradients) -----


def ignoring(how, labels, row):
    keep = np.arange(len(labels)) != row
    return {
        "where": (labels, {"where": keep}),
        "ignore_index": (np.where(keep, labels, -100), {"ignore_index": -100}),
        "row_weights": (labels, {"row_weights": keep.astype(np.float32)}),
    }[how]


@backends
@pytest.mark.parametrize("how", ("where", "ignore_index", "row_weights"))
@pytest.mark.parametrize("options", ({}, EVERYTHING), ids=("plain", "everything"))
def test_ignored_rows_have_zero_gradient_even_from_nan(options, how, backend):
    z, labels = batch("ignored")
    labels, mask = ignoring(how, labels, 2)
    clean_rows, clean_gradient = value_and_gradient(backend, z, labels, **options, **mask)
    for poison in ([np.nan] * CLASSES, [np.inf] + [0.0] * (CLASSES - 1), [-np.inf] * CLASSES):
        z[2] = poison
        rows, gradient = value_and_gradient(backend, z, labels, **options, **mask)
        np.testing.assert_array_equal(rows, clean_rows)
        np.testing.assert_array_equal(gradient, clean_gradient)
    assert rows[2] == 0 and not gradient[2].any()


@partial(grid.quick, static_argnames="backend")
def mean_of_some_rows(arguments, where, backend):
    def mean(arguments):
        return soft_cross_entropy(**arguments, where=where, softcap=4.0, implementation=backend)

    return jax.value_and_grad(mean)(arguments)


@backends
@pytest.mark.parametrize("poisoned", ("logits", "targets", "row_weights"))
def test_ignored_rows_poison_no_other_argument(poisoned, backend):
    """NaN logits, targets or row weights of an ignored row leave every gradient finite, and its own zero."""
    gen, keep = grid.rng("poison"), np.arange(ROWS) != 1
    arguments = {
        "logits": grid.logits(gen, ROWS, CLASSES),
        "targets": grid.targets(gen, ROWS, CLASSES),
        "row_weights": np.ones(ROWS, np.float32),
        "class_weights": np.full(CLASSES, 1.5, np.float32),
    }
    arguments |= {name: np.float32(on) for name, (_, on) in grid.SCALARS.items()}
    arguments[poisoned][1] = np.nan
    value, gradients = jax.tree.map(np.asarray, mean_of_some_rows(arguments, keep, backend))
    assert np.isfinite(value)
    assert [name for name, gradient in gradients.items() if not np.all(np.isfinite(gradient))] == []
    assert not any(gradients[name][1].any() for name in ("logits", "targets", "row_weights"))


@backends
@pytest.mark.parametrize("poison", (np.nan, np.inf))
def test_a_row_of_class_weight_zero_does_not_count(poison, backend):
    """Its loss is 0, so its gradient is 0 too, whatever its logits hold."""
    z, labels = batch("weightless")
    weights = np.ones(CLASSES, np.float32)
    weights[labels[2]] = 0
    z[2, labels[2]] = poison

    def total(z):
        return cross_entropy(z, labels, class_weights=weights, reduction="sum", implementation=backend)

    value, gradient = jax.value_and_grad(total)(z)
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient[2], 0)


@backends
@pytest.mark.parametrize("poison", (np.nan, np.inf))
def test_a_bad_valid_row_is_nan_alone(poison, backend):
    z, labels = batch("bad row")
    clean_rows, clean_gradient = value_and_gradient(backend, z, labels, **UNCAPPED)
    z[2, 3] = poison
    rows, gradient = value_and_gradient(backend, z, labels, **UNCAPPED)
    others = np.arange(ROWS) != 2
    np.testing.assert_array_equal(rows[others], clean_rows[others])
    np.testing.assert_array_equal(gradient[others], clean_gradient[others])
    assert np.isnan(rows[2])


# --- trap 3: a label that another shard owns is -1, never an index into this one ------------------


def test_labels_elsewhere_map_to_minus_one():
    index = np.arange(-2, 12)
    local = local_index(class_index(jnp.asarray(index, jnp.int32), 10), jnp.int32(4), 3)
    np.testing.assert_array_equal(local, np.where((index >= 4) & (index < 7), index - 4, -1))


# --- trap 4: masked classes -----------------------------------------------------------------------


def masked_problem(key):
    z, labels = batch(key)
    mask = np.ones(CLASSES, bool)
    mask[[1, 4]] = False
    return z, np.array([0, 2, 3, 5, 6]), mask


@backends
@pytest.mark.parametrize("options", ({}, EVERYTHING), ids=("plain", "everything"))
def test_masked_classes_are_as_if_they_were_not_there(options, backend):
    """By class_mask or by a -inf logit: the loss over the classes left, under smoothing and a soft cap too."""
    z, labels, mask = masked_problem("masked")
    place = np.cumsum(mask) - 1
    problem = {"z": z[:, mask], "target": place[labels]} | options
    rows = oracle.exact_loss(reduction="none", **problem)
    gradient = oracle.gradients(reduction="sum", **problem)["z"]
    by_mask = value_and_gradient(backend, z, labels, class_mask=mask, **options)
    by_row_mask = value_and_gradient(backend, z, labels, class_mask=np.tile(mask, (ROWS, 1)), **options)
    by_inf = value_and_gradient(backend, np.where(mask, z, -np.inf).astype(np.float32), labels, **options)
    for masked_rows, masked_gradient in (by_mask, by_row_mask, by_inf):
        assert_close(masked_rows, rows)
        np.testing.assert_allclose(masked_gradient[:, mask], gradient, atol=4 * 1.2e-7)
        np.testing.assert_array_equal(masked_gradient[:, ~mask], 0)


@backends
def test_smoothing_prior_is_renormalised_over_the_classes_left(backend):
    z, labels, mask = masked_problem("prior")
    weights = grid.rng("prior").uniform(0.5, 2, CLASSES).astype(np.float32)
    options = {"class_mask": mask, "class_weights": weights, "label_smoothing": 0.3}
    ours = cross_entropy(z, labels, reduction="none", implementation=backend, **options)
    assert_close(ours, oracle.exact_loss(z, labels, reduction="none", **options))


@backends
@pytest.mark.parametrize("how", ("class_mask", "inf"))
def test_masked_label_has_infinite_loss_and_finite_gradient(how, backend):
    """optax's class mask gives a negative loss here. The gradient is p - onehot off the mask and 0 on it."""
    z, labels, mask = masked_problem("masked label")
    labels[2] = 1
    p = np.where(mask, np.exp(z.astype(float)), 0)
    z = z if how == "class_mask" else np.where(mask, z, -np.inf).astype(np.float32)
    options = {"class_mask": mask} if how == "class_mask" else {}
    rows, gradient = value_and_gradient(backend, z, labels, **options)
    assert rows[2] == np.inf and np.all(np.isfinite(np.delete(rows, 2)))
    np.testing.assert_allclose(gradient[2], (p / p.sum(-1, keepdims=True))[2], rtol=1e-6)
    assert token_log_probs(z, labels, implementation=backend, **options)[2] == -np.inf
    assert row_stats(z, labels, implementation=backend, **options).target_probability[2] == 0


@backends
@pytest.mark.parametrize("options", ({}, EVERYTHING), ids=("plain", "everything"))
def test_row_with_every_class_masked(options, backend):
    z, labels = batch("all masked")
    clean_rows, clean_gradient = value_and_gradient(backend, z, labels, **options)
    z[1] = -np.inf
    stats = row_stats(z, labels, implementation=backend)
    assert (stats.lse[1], stats.nll[1], stats.entropy[1], stats.argmax[1]) == (-np.inf, np.inf, 0, -1)
    rows, gradient = value_and_gradient(backend, z, labels, **options)
    others = np.arange(ROWS) != 1
    np.testing.assert_array_equal(rows[others], clean_rows[others])
    np.testing.assert_array_equal(gradient[others], clean_gradient[others])
    np.testing.assert_array_equal(gradient[1], 0)


@backends
def test_target_zero_on_a_masked_class_adds_nothing(backend):
    """0 log 0 = 0 (optax: NaN in forward mode, and for KL); any other target there makes the loss infinite."""
    z, _, mask = masked_problem("masked target")
    targets = grid.targets(grid.rng("masked target"), ROWS, CLASSES, mask)
    loss = partial(soft_cross_entropy, class_mask=mask, reduction="none", implementation=backend)
    rows, pull = jax.vjp(lambda z: loss(z, targets), jnp.asarray(z))
    assert_close(rows, oracle.exact_loss(z, targets, class_mask=mask, reduction="none"))
    assert np.all(np.isfinite(pull(jnp.ones(ROWS))[0]))
    targets[0, 1] = 0.1
    assert loss(z, targets)[0] == np.inf


# --- trap 5: labels out of range (optax: -1 trains the last class; tokamax: -100 has loss 0 and a gradient)


@backends
@pytest.mark.parametrize("label", (-1, -7, -100, 7, 8, 14, 2**31 - 1, -(2**31)))
@pytest.mark.parametrize("options", ({}, EVERYTHING), ids=("plain", "everything"))
def test_label_out_of_range_is_nan_and_trains_nothing(options, label, backend):
    z, labels = batch("range")
    clean_rows, clean_gradient = value_and_gradient(backend, z, labels, **options)
    labels[1] = label
    rows, gradient = value_and_gradient(backend, z, labels, **options)
    others = np.arange(ROWS) != 1
    assert np.isnan(rows[1])
    np.testing.assert_array_equal(gradient[1], 0)
    np.testing.assert_array_equal(rows[others], clean_rows[others])
    np.testing.assert_array_equal(gradient[others], clean_gradient[others])


@pytest.mark.parametrize("dtype", grid.LABEL_DTYPES)
def test_label_ids_never_wrap(dtype):
    """Ids at the ends of every integer type, against class counts below, at and above its range."""
    info = np.iinfo(dtype)
    ids = np.array([0, 1, info.max, info.max - 1, info.min], dtype)
    with oracle.x64():
        for classes in (2, 127, 128, 129, 255, 256, 257, 300, 65536, 65537):
            expected = [int(i) if 0 <= int(i) < classes else -1 for i in ids]
            np.testing.assert_array_equal(class_index(jnp.asarray(ids), classes), expected)


@pytest.mark.parametrize("label", (2**32, 2**32 + 1, 2**63 - 1, -(2**32)))
def test_numpy_labels_beyond_32_bits_do_not_become_a_class(label):
    """Without x64 JAX would keep the low 32 bits: 0 and 1 here."""
    rows = cross_entropy(np.zeros((1, 3), np.float32), np.array([label]), reduction="none")
    assert np.isnan(rows[0])


# --- trap 6: forward and backward see the same logits ---------------------------------------------


@backends
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_gradient_is_bounded_at_large_logits(dtype, backend):
    z, labels = batch("large", dtype=dtype, scale=1e4)
    rows, gradient = value_and_gradient(backend, z, labels)
    assert np.all(np.isfinite(rows)) and np.all(np.abs(gradient.astype(float)) <= 1)
    np.testing.assert_array_equal(gradient.astype(float).sum(-1), 0)


@backends
def test_logits_near_the_largest_float(backend):
    z = np.array([[3e38, -3e38, 3e38], [-3e38, -3e38, -3e38]], np.float32)
    rows, gradient = value_and_gradient(backend, z, np.array([0, 1]))
    assert_close(rows, [np.log(2), np.log(3)])
    np.testing.assert_allclose(gradient, [[-0.5, 0, 0.5], [1 / 3, -2 / 3, 1 / 3]], rtol=1e-6)


# --- trap 7: a gather is fast on a CPU and a GPU; on a TPU it keeps a float32 copy of bfloat16 logits


@pytest.mark.parametrize("platform, gathers", {"cpu": True, "cuda": True, "tpu": False}.items(), ids=["cpu", "cuda", "tpu"])
def test_label_logit_is_gathered_or_compared_by_platform(platform, gathers):
    z, labels = batch("platform", dtype="bfloat16")
    lowered = jax.jit(jax.value_and_grad(lambda z: cross_entropy(z, labels))).trace(z).lower(lowering_platforms=(platform,))
    assert ("stablehlo.gather" in lowered.as_text()) == gathers


# --- trap 8: the one-hot is subtracted in float32 before the cast ---------------------------------


@pytest.mark.optimized
@backends
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
@pytest.mark.parametrize("options", ({}, {"softcap": 30.0}, {"temperature": 1.5}, {"label_smoothing": 1e-4}), ids=str)
def test_one_hot_is_subtracted_before_the_cast(options, dtype, backend):
    """p_y = 0.999 rounds to 1 in bfloat16: cast first, and the label's gradient is 0 instead of -0.001."""
    z = np.zeros((1, CLASSES), np.float32)
    z[0, 2] = 10.0
    z, labels = z.astype(grid.numpy_dtype(dtype)), np.array([2])
    _, gradient = value_and_gradient(backend, z, labels, **options)
    exact = oracle.gradients(z, labels, reduction="sum", **options)["z"]
    error = np.abs(gradient.astype(float) - exact)
    assert np.all(error <= 0.5 * 2.0**-7 * np.abs(exact) + 1.2e-7), (gradient, exact)


# --- trap 10: nothing is accumulated in 16 bits (ejkernel: 4.3 % after 64 chunks) -----------------


@backends
def test_sums_of_losses_are_float32(backend):
    z, labels = batch("chunks", 64 * 3, 129, "bfloat16")

    def add(total, chunk):
        return total + cross_entropy(*chunk, reduction="loss_sum", implementation=backend), None

    zero = crossent_jax.LossSum(jnp.float32(0), jnp.float32(0))
    chunks = (jnp.asarray(z).reshape(64, 3, 129), jnp.asarray(labels).reshape(64, 3))
    total, _ = jax.lax.scan(add, zero, chunks)
    assert_close(total.mean(), oracle.exact_loss(z, labels))


# --- trap 13: class weights with label smoothing are PyTorch's ------------------------------------

TORCH = {  # torch 2.13: F.cross_entropy(z, y or t, weight=w, label_smoothing=s, reduction=...) of the problem below
    ("hard", 0.0): {"none": [1.61972198, 1.1161431, 1.49637967, 8.24232094], "sum": 12.47456569, "mean": 3.32655085},
    ("hard", 0.1): {"none": [1.84496807, 1.36223343, 1.61126565, 7.82631856], "sum": 12.6447857, "mean": 3.37194285},
    ("hard", 1.0): {"none": [3.87218281, 3.57704638, 2.64523941, 4.08229721], "sum": 14.17676581, "mean": 3.78047088},
    ("soft", 0.0): {"none": [3.33127299, 5.44916067, 2.9277371, 6.16171042], "sum": 17.86988118, "mean": 4.4674703},
    ("soft", 0.1): {"none": [3.38536397, 5.26194924, 2.89948733, 5.9537691], "sum": 17.50056964, "mean": 4.37514241},
    ("soft", 1.0): {"none": [3.87218281, 3.57704638, 2.64523941, 4.08229721], "sum": 14.17676581, "mean": 3.54419145},
}


def torch_problem():
    z = np.sin(np.arange(20, dtype=np.float64) * 1.7).reshape(4, 5) * 3
    t = np.abs(np.cos(np.arange(20, dtype=np.float64) * 0.9)).reshape(4, 5)
    return z, np.array([0, 3, 4, 3]), t / t.sum(-1, keepdims=True), np.array([0.5, 1.0, 2.0, 1.5, 0.25])


@partial(grid.quick, static_argnums=(0, 5))
def of_every_reduction(function, z, target, weights, smoothing, backend):
    options = {"class_weights": weights, "label_smoothing": smoothing, "implementation": backend}
    return {reduction: function(z, target, reduction=reduction, **options) for reduction in ("none", "sum", "mean")}


@backends
@pytest.mark.parametrize("kind, smoothing", TORCH)
def test_class_weights_with_smoothing_are_those_of_pytorch(kind, smoothing, backend):
    z, labels, targets, weights = (x.astype(np.float32) if x.dtype.kind == "f" else x for x in torch_problem())
    function, target = (cross_entropy, labels) if kind == "hard" else (soft_cross_entropy, targets)
    ours = of_every_reduction(function, z, target, weights, np.float32(smoothing), backend)
    for reduction, expected in TORCH[kind, smoothing].items():
        assert_close(ours[reduction], expected)


@backends
@pytest.mark.parametrize("options", ({}, EVERYTHING), ids=("plain", "everything"))
def test_one_hot_target_is_a_label(options, backend):
    """With class weights and every option, except that the soft mean divides by the row weights alone."""
    z, labels = batch("one hot")
    weights = grid.rng("one hot").uniform(0.5, 2, CLASSES).astype(np.float32)
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    call = {"class_weights": weights, "reduction": "none", "implementation": backend} | options
    assert_close(soft_cross_entropy(z, one_hot, **call), cross_entropy(z, labels, **call))


# --- trap 14: vmap folds the mapped axis into rows ------------------------------------------------


@backends
def test_vmap_makes_no_loop(backend):
    z, labels = jnp.zeros((4, 3, 7)), jnp.zeros((4, 3), jnp.int32)
    step = jax.vmap(jax.value_and_grad(lambda z, y: cross_entropy(z, y, implementation=backend, **EVERYTHING)))
    text = str(jax.make_jaxpr(step)(z, labels))
    assert "while" not in text and "scan" not in text


# --- peers ----------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_gradients_have_the_dtype_of_the_primal(dtype, backend):
    """tokamax: float32 gradients for bfloat16 inputs; Liger: the loss in the input's dtype."""
    z, labels = batch("dtypes", dtype=dtype)
    targets = grid.targets(grid.rng("dtypes"), ROWS, CLASSES, dtype=dtype)
    weights = np.ones(CLASSES, z.dtype)

    def loss(z, targets, weights):
        hard = cross_entropy(z, labels, class_weights=weights, label_smoothing=0.1, implementation=backend)
        return hard + soft_cross_entropy(z, targets, implementation=backend)

    value, gradients = grid.quick(jax.value_and_grad(loss, (0, 1, 2)))(z, targets, weights)
    assert value.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [jnp.dtype(dtype)] * 3


@pytest.mark.parametrize("function, target", ((soft_cross_entropy, [1, 2]), (cross_entropy, [[0.5, 0.5]] * 2)))
def test_the_two_kinds_of_target_are_never_mistaken(function, target):
    """optax broadcasts integer labels into ``softmax_cross_entropy``."""
    with pytest.raises(TypeError, match="cross_entropy"):
        function(np.zeros((2, 2), np.float32), np.asarray(target))


@backends
def test_soft_cap_has_its_derivative(backend):
    """levanter's backward misses it: at z = cap the slope is 0.42."""
    z, labels = batch("cap", scale=4.0)
    _, gradient = value_and_gradient(backend, z, labels, softcap=4.0)
    exact = oracle.gradients(z, labels, softcap=4.0, reduction="sum")["z"]
    assert np.all(np.abs(gradient - exact) <= oracle.gradient_slack(exact, "float32", exact))


@backends
def test_soft_cap_far_beyond_the_cap_keeps_its_slope(backend):
    """sech^2 at 5 to 8 caps: 1 - tanh^2 (what JAX's own derivative of tanh computes) cancels there."""
    z = np.array([[60.0, 50.0, -70.0], [12.0, 80.0, 20.0]], np.float32)
    _, gradient = value_and_gradient(backend, z, np.array([1, 0]), softcap=10.0)
    exact = oracle.gradients(z, np.array([1, 0]), softcap=10.0, reduction="sum")["z"]
    np.testing.assert_allclose(gradient, exact, rtol=2e-5)


@backends
@pytest.mark.parametrize("gamma", (0.0, 0.5, 1.0, 2.0))
@pytest.mark.parametrize("options", ({}, {"softcap": 20.0}, {"temperature": 0.7}), ids=str)
def test_focal_loss_of_confident_rows_has_no_nan(options, gamma, backend):
    """-log p_y rounds to 0 or an ulp beside it: the plain formula takes a power of it, and its slope, there."""
    z, labels = batch("confident", 400)
    z[np.arange(400), labels] += 30
    rows, gradient = value_and_gradient(backend, z, labels, focal_gamma=jnp.float32(gamma), **options)
    exact = oracle.exact_loss(z, labels, focal_gamma=gamma, reduction="none", **options).astype(float)
    assert np.all(np.abs(rows - exact) <= 4e-6)  # 2 ulp of a capped logit
    assert np.all(rows >= 0) and np.all(np.abs(gradient) <= 1e-3)


@backends
def test_focal_loss_of_confident_soft_targets_has_no_nan(backend):
    z, labels = batch("confident", 400)
    z[np.arange(400), labels] += 30
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]

    def total(z):
        return soft_cross_entropy(z, one_hot, softcap=20.0, focal_gamma=0.5, reduction="sum", implementation=backend)

    value, gradient = jax.value_and_grad(total)(jnp.asarray(z))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@backends
@pytest.mark.parametrize("options", ({}, {"softcap": 20.0}, {"temperature": 0.7}), ids=str)
def test_log_probabilities_are_at_most_zero(options, backend):
    z, labels = batch("at most zero", 400)
    z[np.arange(400), labels] += 30
    assert np.all(token_log_probs(z, labels, implementation=backend, **options) <= 0)


@backends
def test_small_gradients_are_not_dropped(backend):
    """CCE drops tiles of small gradients by default."""
    z, labels = batch("small", 2, 4099, scale=0.1)
    z[:, 7] += 18.0
    _, gradient = value_and_gradient(backend, z, np.array([7, 7]))
    exact = oracle.gradients(z, np.array([7, 7]), reduction="sum")["z"]
    others = np.arange(4099) != 7
    np.testing.assert_allclose(gradient[:, others], exact[:, others], rtol=1e-5)
    assert np.all(gradient[:, others] > 0)


@backends
def test_results_are_deterministic(backend):
    """CCE's order of locks is not."""
    z, labels = batch("again", 5, 129)
    first, second = (value_and_gradient(backend, z, labels, **EVERYTHING) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@backends
def test_inputs_are_not_overwritten(backend):
    """Liger writes the gradient over the caller's logits."""
    z, labels = batch("inputs")
    z, before = jnp.asarray(z), z.copy()
    value_and_gradient(backend, z, labels, **EVERYTHING)
    np.testing.assert_array_equal(z, before)


@backends
def test_z_loss_is_differentiable_as_an_output(backend):
    """Liger returns it without a gradient: d lse^2 / dz = 2 lse p."""
    z, labels = batch("z loss")
    gradient = jax.grad(lambda z: jnp.sum(row_stats(z, labels, implementation=backend).lse ** 2))(jnp.asarray(z))
    wide = z.astype(float)
    e = np.exp(wide)
    exact = 2 * np.log(e.sum(-1, keepdims=True)) * e / e.sum(-1, keepdims=True)
    assert np.all(np.abs(gradient - exact) <= oracle.gradient_slack(exact, "float32", exact))


STATISTICS = ("lse", "nll", "ce_prior", "entropy", "target_probability")


@partial(grid.quick, static_argnames="backend")
def gradients_of_statistics(z, labels, backend):
    def total(name, z):
        return jnp.sum(getattr(row_stats(z, labels, implementation=backend), name))

    return {name: jax.grad(partial(total, name))(z) for name in STATISTICS}


@backends
def test_every_statistic_is_differentiable(backend):
    """The formula of each, by complex step."""
    z, labels = batch("statistic", 3, 7)
    for name, ours in gradients_of_statistics(z, labels, backend).items():
        exact = oracle.complex_step_gradient(lambda z, name=name: oracle.statistics(np, z, labels)[name].sum(), z)
        assert np.all(np.abs(ours - exact.astype(float)) <= oracle.gradient_slack(exact, "float32", exact)), name
