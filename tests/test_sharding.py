"""Classes split over a mesh axis in jax.shard_map equal the whole; LossSums join shards and microbatches exactly."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import crossent_jax

from . import grid

ROWS, CLASSES, SHARDS = 9, 24, 8
LABELS = jnp.array([0, 2, 3, 7, 11, 14, 17, 20, 23])  # every shard of three classes owns one, shard 0 two
LOGITS = 3 * jax.random.normal(jax.random.key(0), (ROWS, CLASSES))
CLASS_WEIGHTS = jnp.linspace(0.5, 2, CLASSES)
MASK = jnp.arange(CLASSES) % 5 != 4  # masks classes 4, 9, 14, 19: one label among them
TARGETS = jnp.where(MASK, jax.nn.softmax(jnp.sin(LOGITS)), 0)
EVERYTHING = {
    "label_smoothing": 0.1,
    "z_loss": 0.01,
    "focal_gamma": 2.0,
    "poly_epsilon": 0.5,
    "entropy_weight": 0.1,
    "softcap": 5.0,
    "where": LABELS != 14,
    "row_weights": jnp.linspace(0.2, 1, ROWS),
}
CASES = {"plain": {}, "everything": EVERYTHING}
TEMPERATURE = jnp.float32(1.5)
ARGUMENTS = (LOGITS, CLASS_WEIGHTS, MASK, TARGETS)
WANTED = {"hard": (0, 1), "soft": (0, 1, 3)}  # of the arguments, those with a gradient


def mesh():
    return jax.make_mesh((SHARDS,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))


@cache
def whole(kind, case):
    def loss(logits, weights, mask, targets):
        return of(kind, logits, weights, mask, targets, None, CASES[case], TEMPERATURE, None)

    return grid.quick(jax.value_and_grad(loss, WANTED[kind]))(*ARGUMENTS)


def of(kind, logits, weights, mask, targets, axis_name, options, temperature, implementation):
    options = options | {"axis_name": axis_name, "implementation": implementation, "temperature": temperature}
    if options.get("softcap"):
        options |= {"class_weights": weights, "class_mask": mask}
    if kind == "hard":
        return crossent_jax.cross_entropy(logits, LABELS, **options)
    return crossent_jax.soft_cross_entropy(logits, targets, **options)


@pytest.mark.parametrize("check_vma", [True, False], ids=["vma", "no vma"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", grid.BACKENDS)
def test_value_and_gradients_outside_shard_map(implementation, case, kind, check_vma):
    specs = (P(None, "model"), P("model"), P("model"), P(None, "model"))

    def sharded(logits, weights, mask, targets):
        def loss(*shards):
            return of(kind, *shards, "model", CASES[case], TEMPERATURE, implementation)

        return jax.shard_map(loss, mesh=mesh(), in_specs=specs, out_specs=P(), check_vma=check_vma)(
            logits, weights, mask, targets
        )

    value, gradients = jax.jit(jax.value_and_grad(sharded, WANTED[kind]))(*ARGUMENTS)
    expected = whole(kind, case)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    for got, right in zip(gradients, expected[1], strict=True):
        np.testing.assert_allclose(got, right, rtol=0, atol=4e-7 * max(1, np.abs(right).max()))


@pytest.mark.parametrize("implementation", grid.BACKENDS)
def test_gradient_inside_shard_map_and_of_a_replicated_temperature(implementation):
    def gradient(logits, temperature):
        def loss(z, t):
            return of("hard", z, None, None, None, "model", {"z_loss": 0.01}, t, implementation)

        return jax.grad(loss, (0, 1))(logits, temperature)

    inside = jax.shard_map(gradient, mesh=mesh(), in_specs=(P(None, "model"), P()), out_specs=(P(None, "model"), P()))
    got = jax.jit(inside)(LOGITS, jnp.float32(1.5))

    def loss(z, t):
        return crossent_jax.cross_entropy(z, LABELS, z_loss=0.01, temperature=t)

    for a, b in zip(got, jax.grad(loss, (0, 1))(LOGITS, jnp.float32(1.5)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


OF_WHOLE = {
    "logits of labels": ("logits", lambda z, x: crossent_jax.cross_entropy(z, LABELS, axis_name="model")),
    "logits of targets": ("logits", lambda z, x: crossent_jax.soft_cross_entropy(z, TARGETS, axis_name="model")),
    "statistics": ("logits", lambda z, x: crossent_jax.row_stats(z, LABELS, axis_name="model").nll.sum()),
    "a divergence": ("logits", lambda z, x: crossent_jax.kl_divergence(z, z, axis_name="model")),
    "a head": ("head", lambda z, x: crossent_jax.linear_cross_entropy(x, x.T, LABELS, axis_name="model")),
    "heads": (
        "head",
        lambda z, x: crossent_jax.linear_divergence(x, x.T, teacher_hidden=x, teacher_head=x.T, axis_name="model"),
    ),
    "pairs": ("queries", lambda z, x: crossent_jax.info_nce(x, x, temperature=1.0, axis_name="model")),
}


@pytest.mark.parametrize("case", OF_WHOLE)
def test_the_same_on_every_device_is_refused(case):
    """Each class would count eight times. On one device of the axis it is right."""
    name, loss = OF_WHOLE[case]
    everything = (LOGITS, LOGITS[:, :5])
    split = jax.shard_map(loss, mesh=mesh(), in_specs=P(), out_specs=P())
    with pytest.raises(ValueError, match=f"{name} must be split over axis_name='model'"):
        jax.eval_shape(split, *everything)
    one = jax.make_mesh((1, SHARDS), ("model", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    jax.eval_shape(jax.shard_map(loss, mesh=one, in_specs=P(), out_specs=P()), *everything)


def test_statistics_and_bad_labels_across_shards():
    """Trap 3: a label of another shard is no label here, and one of no shard at all is NaN."""
    labels = LABELS.at[0].set(CLASSES).at[1].set(-1)

    def stats(logits):
        return crossent_jax.row_stats(logits, labels, axis_name="model")

    sharded = jax.shard_map(stats, mesh=mesh(), in_specs=P(None, "model"), out_specs=P())
    found = grid.quick(sharded)(LOGITS)
    for name, got, expected in zip(found._fields, found, crossent_jax.row_stats(LOGITS, labels), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6, err_msg=name)
    assert np.isnan(found.nll[:2]).all() and np.isfinite(found.nll[2:]).all()
    np.testing.assert_array_equal(found.argmax, LOGITS.argmax(-1))


def test_a_shard_with_every_class_masked():
    logits = LOGITS.at[:, :6].set(-jnp.inf)

    def loss(z):
        return crossent_jax.cross_entropy(z, LABELS, axis_name="model", label_smoothing=0.1, where=LABELS > 5)

    sharded = jax.shard_map(loss, mesh=mesh(), in_specs=P(None, "model"), out_specs=P())
    value, gradient = grid.quick(jax.value_and_grad(sharded))(logits)
    expected = jax.value_and_grad(lambda z: crossent_jax.cross_entropy(z, LABELS, label_smoothing=0.1, where=LABELS > 5))(
        logits
    )
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-7)


@pytest.mark.parametrize("linear", [False, True], ids=["logits", "products"])
@pytest.mark.parametrize("case", ["plain", "everything", "soft"])
@pytest.mark.parametrize("implementation", grid.BACKENDS)
def test_gradients_of_a_masked_label_do_not_depend_on_where_classes_are_cut(implementation, case, linear):
    """The loss is +inf, its gradients are those of its other terms, relative to the row's maximum: the temperature's too."""
    options = {"reduction": "sum", "implementation": implementation} | CASES.get(case, {})
    options.pop("where", None)  # row 14 has the masked label
    targets = TARGETS.at[5, 14].set(0.25)
    head = jnp.eye(CLASSES)

    def loss(logits, temperature, weights, mask, targets, head, axis_name=None):
        given = options | {"class_mask": mask, "temperature": temperature, "axis_name": axis_name}
        given |= {"class_weights": weights} if case == "everything" else {}
        name = "soft_cross_entropy" if case == "soft" else "cross_entropy"
        target = targets if case == "soft" else LABELS
        if linear:
            return getattr(crossent_jax, f"linear_{name}")(logits, head, target, chunk_rows=2, **given)
        return getattr(crossent_jax, name)(logits, target, **given)

    rows, classes = P(), P("model")
    specs = (rows if linear else P(None, "model"), rows, classes, classes, P(None, "model"), P(None, "model"))
    split = jax.shard_map(lambda *a: loss(*a, axis_name="model"), mesh=mesh(), in_specs=specs, out_specs=P())
    arguments = LOGITS, TEMPERATURE, CLASS_WEIGHTS, MASK, targets, head
    got, right = (grid.quick(jax.value_and_grad(f, (0, 1)))(*arguments) for f in (split, loss))
    assert right[0] == jnp.inf
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_loss_sum_over_a_mesh_axis_is_the_mean_of_uneven_shards():
    logits = 3 * jax.random.normal(jax.random.key(1), (SHARDS * 3, CLASSES))
    labels = jnp.arange(SHARDS * 3) % CLASSES
    labels = jnp.where(jnp.arange(SHARDS * 3) ** 2 % 7 < 4, labels, -100)  # shards keep 0 to 3 rows

    def shard(z, y):
        return crossent_jax.cross_entropy(z, y, ignore_index=-100, reduction="loss_sum").psum("model").mean()

    joined = jax.shard_map(shard, mesh=mesh(), in_specs=(P("model"), P("model")), out_specs=P())
    value, gradient = grid.quick(jax.value_and_grad(joined))(logits, labels)
    expected = jax.value_and_grad(lambda z: crossent_jax.cross_entropy(z, labels, ignore_index=-100))(logits)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-7)


def test_uneven_microbatches_under_optax_multi_steps_equal_one_big_batch():
    """Gradients of totals accumulate; the weight of all microbatches divides once. Means of microbatches would be wrong."""
    features = jax.random.normal(jax.random.key(2), (12, 5))
    labels = jnp.array([0, 1, -100, -100, -100, 2, 3, 4, 5, 6, 0, -100])
    start = jnp.ones((5, 7)) * 0.1
    steps = 3

    def total(w, x, y):
        return crossent_jax.cross_entropy(x @ w, y, ignore_index=-100, reduction="loss_sum")

    parts = [(features[i : i + 4], labels[i : i + 4]) for i in (0, 4, 8)]
    weight = sum(total(start, x, y) for x, y in parts).weight
    gradient_of_total = grid.quick(jax.grad(lambda w, x, y: total(w, x, y).total))
    optimizer = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=steps)
    with jax.numpy_dtype_promotion("standard"):  # optax's counters mix types
        state, w = optimizer.init(start), start
        for x, y in parts:
            gradient = gradient_of_total(w, x, y) * steps / weight  # MultiSteps averages
            updates, state = optimizer.update(gradient, state, w)
            w = optax.apply_updates(w, updates)
    whole_batch = jax.grad(lambda w: crossent_jax.cross_entropy(features @ w, labels, ignore_index=-100))(start)
    np.testing.assert_allclose(w, start - whole_batch, atol=1e-7)
