"""``crossent_jax.sharded``: values and gradients of whole arrays, and hardly more bytes on the wire than naively."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import crossent_jax
from benchmarks.collectives import result_bytes

from . import grid

BATCH, SEQUENCE, FEATURES, CLASSES = 16, 8, 24, 40
GEN = grid.rng("sharded")
HIDDEN = jnp.asarray(GEN.standard_normal((BATCH, SEQUENCE, FEATURES)), jnp.float32)
HEAD = jnp.asarray(GEN.standard_normal((FEATURES, CLASSES)) / 4, jnp.float32)
LABELS = jnp.asarray(GEN.integers(0, CLASSES, (BATCH, SEQUENCE)), jnp.int32)
OPTIONS = {
    "where": jnp.asarray(GEN.random((BATCH, SEQUENCE)) < 0.8),
    "row_weights": jnp.asarray(GEN.random((BATCH, SEQUENCE)), jnp.float32),
    "segment_ids": jnp.asarray(np.sort(GEN.integers(0, 3, (BATCH, SEQUENCE))), jnp.int32),
    "bias": jnp.asarray(GEN.standard_normal(CLASSES), jnp.float32),
    "class_weights": jnp.asarray(GEN.random(CLASSES), jnp.float32),
    "class_mask": jnp.asarray(GEN.random((BATCH, SEQUENCE, CLASSES)) < 0.9),
    "temperature": jnp.float32(1.5),
    "label_smoothing": 0.1,
    "z_loss": 1e-3,
    "shift": 1,
    "chunk_rows": 8,
}

LAYOUTS = {  # a mesh, and the specs of hidden states and head
    "batch": ({"data": 8}, P("data"), P()),
    "vocabulary": ({"model": 8}, P(), P(None, "model")),
    "batch and vocabulary": ({"data": 2, "model": 4}, P("data"), P(None, "model")),
    "features": ({"data": 8}, P("data"), P("data", None)),
    "features and vocabulary": ({"data": 2, "model": 4}, P("data"), P("data", "model")),
    "sequence": ({"sequence": 4}, P(None, "sequence"), P()),
    "sequence by the vocabulary's axis": ({"data": 2, "model": 4}, P("data", "model"), P(None, "model")),
}


def placed(layout, kind=AxisType.Auto):
    """``(mesh, arguments as the specs say, specs)``."""
    axes, hidden, head = LAYOUTS[layout]
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes), devices=devices)
    specs = (hidden, head, P(*hidden[:2]))
    arrays = (HIDDEN, HEAD, LABELS)
    return mesh, [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, specs, strict=True)], specs


def sharded_loss(layout, function=crossent_jax.linear_cross_entropy):
    _, hidden, head = LAYOUTS[layout]
    return crossent_jax.sharded(function, hidden=hidden, head=head)


def gradients_of(loss, **options):
    return jax.value_and_grad(lambda *arrays: loss(*arrays, **options), (0, 1))


@cache
def whole():
    return grid.quick(gradients_of(crossent_jax.linear_cross_entropy, **OPTIONS))(HIDDEN, HEAD, LABELS)


@pytest.mark.parametrize(
    ("layout", "kind"),
    [*((layout, "Auto") for layout in LAYOUTS), ("features and vocabulary", "Explicit"), ("sequence", "Explicit")],
)
def test_values_and_gradients_are_those_of_whole_arrays(layout, kind):
    mesh, arrays, _ = placed(layout, AxisType[kind])
    with jax.set_mesh(mesh):
        got = grid.quick(gradients_of(sharded_loss(layout), **OPTIONS))(*arrays)
    for ours, right in zip(jax.tree.leaves(got), jax.tree.leaves(whole()), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-6)


def naive(hidden, head, labels):
    logits = jnp.dot(hidden, head, preferred_element_type=jnp.float32)
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, labels[..., None], -1)[..., 0])


@cache
def moved(layout, loss, **options):
    mesh, arrays, specs = placed(layout)
    results = (None, tuple(NamedSharding(mesh, spec) for spec in specs[:2]))
    step = jax.value_and_grad(partial(loss or sharded_loss(layout), **options), (0, 1))
    with jax.set_mesh(mesh):
        return result_bytes(jax.jit(step, out_shardings=results).lower(*arrays).compile().as_text())


@pytest.mark.parametrize("layout", list(LAYOUTS)[:6])
def test_bytes_on_the_wire(layout):
    """Not more with more chunks, and at most 1.1 times those of the naive formula on whole logits."""
    assert moved(layout, None, chunk_rows=4) == moved(layout, None, chunk_rows=32)
    assert moved(layout, None, chunk_rows=32) <= 1.1 * moved(layout, naive) + 64  # the weight of the mean is four bytes more


@pytest.mark.parametrize("layout", LAYOUTS)
def test_explain_says_what_moves(layout):
    mesh, arrays, _ = placed(layout)
    with jax.set_mesh(mesh):
        (decision,) = crossent_jax.explain(sharded_loss(layout), *arrays)
    assert sum(each.value + each.gradient for each in decision.sharded.moved) == moved(layout, None, chunk_rows=32)
    assert all(str(each) in str(decision) for each in decision.sharded.moved)


OWN = {  # losses of a row, by the numbers of a row that are exchanged for them
    2: lambda stats: stats.lse**2,
    3: lambda stats: stats.nll * jnp.exp(-stats.target_probability),
    4: lambda stats: stats.nll - 0.01 * stats.entropy,
    6: lambda stats: stats.nll + 0.1 * (stats.ce_prior - stats.entropy),
    7: lambda stats: jnp.where(stats.argmax == 3, stats.nll, stats.entropy * stats.ce_prior),
}


@pytest.mark.parametrize("numbers", OWN)
def test_explain_counts_what_a_loss_of_ones_own_reads(numbers):
    mesh, arrays, _ = placed("batch and vocabulary")

    def loss(*arrays, **options):
        own = sharded_loss("batch and vocabulary", crossent_jax.linear_loss)
        return own(OWN[numbers], *arrays, **options)

    with jax.set_mesh(mesh):
        (decision,) = crossent_jax.explain(loss, *arrays)
    assert sum(each.value + each.gradient for each in decision.sharded.moved) == moved(
        "batch and vocabulary", loss, chunk_rows=32
    )
    assert f"{numbers} numbers over 'model'" in str(decision)


OF_TOKENS = {
    "losses of rows": (crossent_jax.linear_cross_entropy, {"reduction": "none"}),
    "log-probabilities": (crossent_jax.linear_token_log_probs, {}),
    "statistics": (crossent_jax.linear_row_stats, {}),
    "a sum": (crossent_jax.linear_cross_entropy, {"reduction": "sum"}),
    "a loss and its weight": (crossent_jax.linear_cross_entropy, {"reduction": "loss_sum"}),
}


@pytest.mark.parametrize("case", OF_TOKENS)
def test_other_functions_and_reductions(case):
    function, options = OF_TOKENS[case]
    options = options | {"shift": 1, "where": OPTIONS["where"]}
    mesh, arrays, _ = placed("features and vocabulary")
    with jax.set_mesh(mesh):
        got = grid.quick(partial(sharded_loss("features and vocabulary", function), **options))(*arrays)
    right = function(HIDDEN, HEAD, LABELS, **options)
    for ours, other in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)


def test_targets_and_a_loss_of_ones_own():
    targets = jax.nn.softmax(jnp.sin(HIDDEN @ HEAD * 3))
    mesh, arrays, _ = placed("batch and vocabulary")
    own = lambda stats, weight: weight * stats.nll  # noqa: E731
    weights = OPTIONS["row_weights"]
    with jax.set_mesh(mesh):
        soft = grid.quick(sharded_loss("batch and vocabulary", crossent_jax.linear_soft_cross_entropy))(*arrays[:2], targets)
        of_user = sharded_loss("batch and vocabulary", crossent_jax.linear_loss)
        mine = grid.quick(lambda *a: of_user(own, *a, reduction="sum"))(*arrays, weights)
    np.testing.assert_allclose(soft, crossent_jax.linear_soft_cross_entropy(HIDDEN, HEAD, targets), rtol=1e-5)
    right = crossent_jax.linear_loss(own, HIDDEN, HEAD, LABELS, weights, reduction="sum")
    np.testing.assert_allclose(mine, right, rtol=1e-5)


CLOSING = {  # losses of a row that close over an array
    "a product": lambda scale: lambda stats, advantage: scale[0] * advantage * stats.nll + 2.0 * stats.entropy,
    "a choice": lambda scale: lambda stats, advantage: jnp.where(stats.nll > 3, jnp.sum(scale) * stats.nll, advantage),
}


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "concrete"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("case", CLOSING)
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_loss_of_ones_own_that_closes_over_an_array(kind, case, reduction, traced):
    """Which has the gradient that it has on one device."""
    given, advantages = jnp.asarray([0.7, -1.3]), OPTIONS["row_weights"]

    def total(loss, hidden, head, scale, labels):
        own = CLOSING[case](scale if traced else given)
        return jnp.sum(
            loss(own, hidden, head, labels, advantages, reduction=reduction, where=OPTIONS["where"], chunk_rows=8)
        )

    def differentiated(loss):
        return grid.quick(jax.value_and_grad(partial(total, loss), (0, 1, 2)))

    mesh, (hidden, head, labels), _ = placed("features and vocabulary", AxisType[kind])
    with jax.set_mesh(mesh):
        got = differentiated(sharded_loss("features and vocabulary", crossent_jax.linear_loss))(hidden, head, given, labels)
    right = differentiated(crossent_jax.linear_loss)(HIDDEN, HEAD, given, LABELS)
    for ours, other in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)


def test_a_loss_of_ones_own_that_closes_over_an_array_outside_jit():
    mesh, arrays, _ = placed("batch and vocabulary")
    own = CLOSING["a product"](jnp.asarray([0.7, -1.3]))
    loss = sharded_loss("batch and vocabulary", crossent_jax.linear_loss)
    with jax.set_mesh(mesh):
        got = loss(own, *arrays, OPTIONS["row_weights"])
    right = crossent_jax.linear_loss(own, HIDDEN, HEAD, LABELS, OPTIONS["row_weights"])
    np.testing.assert_allclose(got, right, rtol=1e-5)


def test_closed_over_arrays_that_lie_on_explicit_axes():
    """JAX takes them into no ``jax.shard_map``; the error says what to do, which has the right gradients."""
    mesh, arrays, _ = placed("batch and vocabulary", AxisType.Explicit)
    scale = jax.device_put(jnp.asarray([0.7, -1.3]), NamedSharding(mesh, P()))

    def closing(loss, hidden, head, scale, labels):
        return loss(lambda stats: jnp.sum(scale) * stats.nll, hidden, head, labels)

    def of_row_args(loss, hidden, head, scale, labels):
        each = jnp.broadcast_to(scale, labels.shape + scale.shape)
        return loss(lambda stats, scale: jnp.sum(scale) * stats.nll, hidden, head, labels, each)

    def differentiated(way, loss):
        return grid.quick(jax.value_and_grad(partial(way, loss), (0, 1, 2)))

    loss = sharded_loss("batch and vocabulary", crossent_jax.linear_loss)
    with jax.set_mesh(mesh):
        given = *arrays[:2], scale, arrays[2]
        with pytest.raises(ValueError, match=r"loss_fn must be .* pass it as one of row_args: jnp.broadcast_to\(x, "):
            differentiated(closing, loss)(*given)
        got = differentiated(of_row_args, loss)(*given)
    right = differentiated(closing, crossent_jax.linear_loss)(HIDDEN, HEAD, jnp.asarray([0.7, -1.3]), LABELS)
    for ours, other in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)


TEACHER_HIDDEN = jnp.asarray(GEN.standard_normal((BATCH, SEQUENCE, 16)), jnp.float32)
TEACHER_HEAD = jnp.asarray(GEN.standard_normal((CLASSES, 16)), jnp.float32)
TEACHERS = {
    "logits": {"teacher_logits": TEACHER_HIDDEN @ TEACHER_HEAD.T},
    "a head": {"teacher_hidden": TEACHER_HIDDEN, "teacher_head": TEACHER_HEAD, "teacher_head_vocab_axis": 0},
    "its likeliest classes": {
        "teacher_top_k": tuple(jax.lax.top_k(jax.nn.log_softmax(TEACHER_HIDDEN @ TEACHER_HEAD.T), 3))[::-1]
    },
}


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("layout", ["features and vocabulary", "sequence by the vocabulary's axis"])
def test_distillation(layout, teacher):
    given = TEACHERS[teacher] | {"labels": LABELS, "label_weight": 0.3, "temperature": 2.0, "where": OPTIONS["where"]}
    mesh, (hidden, head, _), _ = placed(layout)
    loss = sharded_loss(layout, crossent_jax.linear_divergence)
    with jax.set_mesh(mesh):
        got = grid.quick(gradients_of(loss, **given))(hidden, head)
    right = gradients_of(crossent_jax.linear_divergence, **given)(HIDDEN, HEAD)
    for ours, other in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


def test_a_tied_embedding():
    mesh, (hidden, _, labels), _ = placed("features and vocabulary")
    loss = crossent_jax.sharded(crossent_jax.linear_cross_entropy, hidden=P("data"), head=P("model", "data"))
    with jax.set_mesh(mesh):
        got = grid.quick(gradients_of(loss, head_vocab_axis=0))(hidden, HEAD.T, labels)
    right = gradients_of(crossent_jax.linear_cross_entropy, head_vocab_axis=0)(HIDDEN, HEAD.T, LABELS)
    for ours, other in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


def test_inside_a_shard_map_over_another_axis():
    mesh, arrays, _ = placed("batch and vocabulary")
    inner = crossent_jax.sharded(crossent_jax.linear_cross_entropy, hidden=P(), head=P(None, "model"))

    def mean(hidden, head, labels):
        return inner(hidden, head, labels, reduction="loss_sum").psum("data").mean()

    def outer(*arrays):
        in_specs = (P("data"), P(), P("data"))
        return jax.shard_map(mean, in_specs=in_specs, out_specs=P(), axis_names={"data"})(*arrays)

    with jax.set_mesh(mesh):
        got = grid.quick(gradients_of(outer))(*arrays)
    right = gradients_of(crossent_jax.linear_cross_entropy)(HIDDEN, HEAD, LABELS)
    for ours, other in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


TWO = {"data": 2, "model": 4}
TWO_NAMES = tuple(TWO)
REFUSED = {
    "an unknown axis": (P("rows"), P(), {}, "'rows', which must be an axis of the ambient mesh, which has data, model"),
    "features of hidden states": (P("data", None, "model"), P(), {}, "features of hidden states"),
    "features over idle devices": (
        P("data"),
        P("model", None),
        {},
        r"If the vocabulary is meant, .* head=\w+\(None, 'model'\)",
    ),
    "two axes of classes": (P(), P(None, ("data", "model")), {}, "one mesh axis at most"),
    "the vocabulary's axis first": (P(("model", "data")), P(None, "model"), {}, "must be the last of"),
    "labels unlike hidden": (P("data"), P(), {"labels": P(None, "data")}, "must be split as the batch axes"),
    "too many axes": (P("data", None, None, None), P(), {}, "has more axes than hidden, which has 3"),
    "an axis twice": (P("data", "data"), P(), {}, "names 'data' twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    hidden, head, given, words = REFUSED[case]
    loss = crossent_jax.sharded(crossent_jax.linear_cross_entropy, hidden=hidden, head=head, **given)
    mesh = jax.make_mesh(tuple(TWO.values()), tuple(TWO), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=words):
        loss(HIDDEN, HEAD, LABELS)


BAD_ARRAYS = {  # arguments in the place of HIDDEN, HEAD and LABELS; specs of hidden states and head; words
    "a batch of 15": (
        (HIDDEN[:15], HEAD, LABELS[:15]),
        P("data"),
        P(),
        r"hidden of shape \(15, 8, 24\) .* 2 devices .* got 15",
    ),
    "by both": (
        (HIDDEN[:12], HEAD, LABELS[:12]),
        P(TWO_NAMES),
        P(),
        r"8 devices of 'data' and 'model' .* got 12. Pad this axis",
    ),
    "few classes": (
        (HIDDEN, HEAD[:, :3], LABELS),
        P(),
        P(None, "model"),
        r"head of shape \(24, 3\) .* 4 devices .* Pad the head",
    ),
    "features": (
        (HIDDEN[..., :21], HEAD[:21], LABELS),
        P("data"),
        P("data"),
        r"axis 0; got 21. Split its features over fewer",
    ),
    "labels": ((HIDDEN, HEAD, LABELS[:, :7]), P("data"), P(), r"labels must have the shape .* \(16, 8\); got \(16, 7\)"),
    "few labels": ((HIDDEN, HEAD, LABELS[:15]), P("data"), P(), r"labels must have the shape .* \(16, 8\); got \(15, 8\)"),
    "other features": (
        (HIDDEN, HEAD[:20], LABELS),
        P("data"),
        P(None, "model"),
        r"hidden 24 \(last axis of shape \(16, 8, 24\)",
    ),
    "one state": ((HIDDEN[0, 0], HEAD, LABELS[0, 0]), P("data"), P(), r"give None for it; got hidden of shape \(24,\)"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_refused_in_the_shapes_of_whole_arrays(case):
    arrays, hidden, head, words = BAD_ARRAYS[case]
    loss = crossent_jax.sharded(crossent_jax.linear_cross_entropy, hidden=hidden, head=head)
    mesh = jax.make_mesh(tuple(TWO.values()), tuple(TWO), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=words):
        jax.eval_shape(loss, *arrays)


def test_axes_of_two_types():
    """Arrays are put where the spec says along the Explicit ones alone, as JAX wants it."""
    mesh = jax.make_mesh(tuple(TWO.values()), tuple(TWO), axis_types=(AxisType.Auto, AxisType.Explicit))
    loss = crossent_jax.sharded(crossent_jax.linear_cross_entropy, hidden=P("data"), head=P(None, "model"))
    with jax.set_mesh(mesh):
        got = grid.quick(loss)(HIDDEN, HEAD, LABELS)
    np.testing.assert_allclose(got, crossent_jax.linear_cross_entropy(HIDDEN, HEAD, LABELS), rtol=1e-6)


def test_labels_that_are_placed_elsewhere_and_axes_of_one_device():
    mesh = jax.make_mesh((1, 4), ("data", "sequence"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])
    loss = crossent_jax.sharded(crossent_jax.linear_cross_entropy, hidden=P(("sequence", "data")), head=P(None, "data"))
    with jax.set_mesh(mesh):
        got = grid.quick(loss)(HIDDEN, HEAD, jax.device_put(LABELS, NamedSharding(mesh, P(None, "sequence"))))
    np.testing.assert_allclose(got, crossent_jax.linear_cross_entropy(HIDDEN, HEAD, LABELS), rtol=1e-6)


def test_other_bad_calls():
    linear = crossent_jax.linear_cross_entropy
    with pytest.raises(TypeError, match="sharded takes linear_cross_entropy, .*got"):
        crossent_jax.sharded(crossent_jax.cross_entropy, hidden=P(), head=P())
    with pytest.raises(TypeError, match=r"head must be a jax\.P"):
        crossent_jax.sharded(linear, hidden=P(), head="model")
    with pytest.raises(ValueError, match=r"there is none: `with jax.set_mesh\(mesh\):`"):
        crossent_jax.sharded(linear, hidden=P("data"), head=P())(HIDDEN, HEAD, LABELS)
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    loss = crossent_jax.sharded(linear, hidden=P(), head=P(None, "model"))
    with jax.set_mesh(mesh):
        with pytest.raises(
            ValueError, match=r"head of shape \(24, 39\) .* the 8 devices of 'model' must divide its axis 1; got 39"
        ):
            loss(HIDDEN, HEAD[:, :39], LABELS)
        with pytest.raises(ValueError, match="axis_name follows from the specs"):
            loss(HIDDEN, HEAD, LABELS, axis_name="model")
        with pytest.raises(TypeError, match="Did you mean 'shift'"):
            loss(HIDDEN, HEAD, LABELS, shfit=1)
        with pytest.raises(TypeError, match="missing a required argument: 'labels'"):
            loss(HIDDEN, HEAD)
        with pytest.raises(ValueError, match="reduction must be one of"):
            loss(HIDDEN, HEAD, LABELS, reduction="average")
        right = linear(HIDDEN, HEAD, LABELS, where=OPTIONS["where"])
        np.testing.assert_allclose(loss(HIDDEN, HEAD, labels=LABELS, where=OPTIONS["where"].tolist()), right, rtol=1e-6)
    two = crossent_jax.sharded(linear, hidden=P(None, ("data", "model")), head=P())
    with jax.set_mesh(jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)):
        with pytest.raises(ValueError, match="one mesh axis at most may split the sequence"):
            two(HIDDEN, HEAD, LABELS, shift=1)
        np.testing.assert_allclose(two(HIDDEN, HEAD, LABELS), linear(HIDDEN, HEAD, LABELS), rtol=1e-6)
