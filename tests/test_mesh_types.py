"""Logits that a mesh splits while the whole array is in view (no shard_map): Auto and Explicit axes, rows and classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import crossent_jax

from . import grid

ROWS, CLASSES = 8, 12
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0, "entropy_weight": 0.1}


def everything(logits, labels, class_weights, row_weights, class_mask):
    weights = {"class_weights": class_weights, "row_weights": row_weights, "class_mask": class_mask}
    return crossent_jax.cross_entropy(logits, labels, **weights, **OPTIONS)


def plain(logits, labels, class_weights, row_weights, class_mask):
    del class_weights, row_weights, class_mask
    return crossent_jax.cross_entropy(logits, labels)


def arguments():
    random = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 4, 5, 9, 10, 11], np.int32)
    mask = np.arange(CLASSES) != 3
    logits, class_weights, row_weights = (random.random(shape, np.float32) for shape in [(ROWS, CLASSES), CLASSES, ROWS])
    return logits, labels, class_weights, row_weights, mask


@pytest.mark.parametrize("loss", [plain, everything])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("split", [("data", None), (None, "model"), ("data", "model")], ids=str)
def test_split_logits_give_the_loss_and_the_gradients_of_whole_ones(loss, axis_type, split):
    """optax's integer-label loss raises for classes split over an Explicit axis."""
    given = arguments()
    differentiated = jax.value_and_grad(loss, argnums=(0, 2, 3))
    value, gradients = differentiated(*map(jnp.asarray, given))
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type, axis_type))
    rows, classes = split
    specs = [P(rows, classes), *map(P, (rows, None, rows, None))]
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(given, specs, strict=True)]
        split_value, split_gradients = jax.jit(differentiated)(*placed)
    np.testing.assert_allclose(split_value, value, rtol=3e-7)
    for got, expected in zip(split_gradients, gradients, strict=True):
        sums_in_another_order = 8 * np.finfo(np.float32).eps * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=sums_in_another_order)
    assert split_gradients[0].sharding.spec == P(rows, classes)


N, D, V = 16, 6, 10
PLACES = {  # of hidden states (n, d) and a head (d, v); of both, the mesh has two devices along each axis
    "rows": (P("data", None), P(None, None)),
    "classes": (P(None, None), P(None, "model")),
    "both": (P("data", None), P(None, "model")),
    "parameters": (P("data", None), P("data", None)),
}


def explicit_mesh():
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit, AxisType.Explicit))


def placed(x, spec):
    return jax.device_put(x, NamedSharding(explicit_mesh(), spec))


def linear_arguments():
    gen = grid.rng("explicit linear")
    hidden, head = gen.standard_normal((N, D)).astype(np.float32), gen.standard_normal((D, V)).astype(np.float32)
    return hidden, head, grid.labels(gen, N, V), grid.targets(gen, N, V)


LINEAR = {
    "mean": lambda x, w, y, t: crossent_jax.linear_cross_entropy(x, w, y, where=y != 3, chunk_rows=6, label_smoothing=0.1),
    "rows": lambda x, w, y, t: jnp.sum(crossent_jax.linear_token_log_probs(x, w, y, chunk_rows=6) ** 2),
    "own": lambda x, w, y, t: crossent_jax.linear_loss(lambda s, y: s.nll * y, x, w, y, y.astype(jnp.float32), chunk_rows=6),
    "soft": lambda x, w, y, t: crossent_jax.linear_soft_cross_entropy(x, w, t, row_weights=1.0 + y.astype(jnp.float32)),
    "divergence": lambda x, w, y, t: crossent_jax.linear_divergence(x, w, teacher_logits=t, kind="js", chunk_rows=6),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("place", PLACES)
def test_rows_of_hidden_states_on_an_explicit_mesh(place, name):
    """Rows (n, d), split as the type says: the value and the gradients of one device, each split like its primal."""
    arguments, loss = linear_arguments(), jax.value_and_grad(LINEAR[name], (0, 1))
    expected = grid.quick(loss)(*arguments)
    with jax.set_mesh(explicit_mesh()):
        of_hidden, of_head = PLACES[place]
        specs = of_hidden, of_head, P(of_hidden[0]), P(of_hidden[0], of_head[1])
        split = [placed(x, spec) for x, spec in zip(arguments, specs, strict=True)]
        value, gradients = grid.quick(loss)(*split)
    np.testing.assert_allclose(value, expected[0], rtol=2e-6)
    for gradient, theirs, primal in zip(gradients, expected[1], split, strict=False):
        np.testing.assert_allclose(gradient, theirs, rtol=1e-5, atol=1e-6)
        assert gradient.sharding.is_equivalent_to(primal.sharding, 2)


@pytest.mark.parametrize("by_ids", (False, True))
@pytest.mark.parametrize("loss", (crossent_jax.info_nce, crossent_jax.sigmoid_contrastive), ids=lambda f: f.__name__)
def test_pairs_on_an_explicit_mesh(loss, by_ids):
    """Keys are gathered where the product of split queries and split keys has no sharding."""
    gen = grid.rng("explicit pairs")
    queries, keys = (gen.standard_normal((N, D)).astype(np.float32) for _ in range(2))
    given = (
        {"query_ids": gen.integers(0, 5, N), "key_ids": gen.integers(0, 5, N)} if by_ids else {"where": np.arange(N) != 3}
    )

    def run(queries, keys, temperature, given):
        return loss(queries, keys, temperature=temperature, chunk_rows=3, **given)

    run = grid.quick(jax.value_and_grad(run, (0, 1, 2)))
    expected = run(queries, keys, np.float32(0.5), given)
    with jax.set_mesh(explicit_mesh()):
        queries, keys = placed(queries, P("data")), placed(keys, P("data"))
        value, gradients = run(queries, keys, np.float32(0.5), jax.tree.map(lambda x: placed(x, P("data")), given))
    np.testing.assert_allclose(value, expected[0], rtol=2e-6)
    for gradient, theirs in zip(gradients, expected[1], strict=True):
        np.testing.assert_allclose(gradient, theirs, rtol=1e-5, atol=1e-6)
    assert gradients[0].sharding.spec[0] == gradients[1].sharding.spec[0] == "data"


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("split", [(None, "model"), ("data", "model")], ids=str)
def test_a_split_sequence_is_made_whole(split, reduction):
    """On an Explicit mesh, where the naive product works too; labels stand a place later."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, head = jax.random.normal(keys[0], (2, 8, 6)), jax.random.normal(keys[1], (6, 12))
    tokens = jax.random.randint(keys[2], (2, 8), 0, 12)

    def loss(hidden, head, tokens):
        return jnp.mean(crossent_jax.linear_cross_entropy(hidden, head, tokens, shift=1, chunk_rows=3, reduction=reduction))

    differentiated = jax.value_and_grad(loss, (0, 1))
    right = grid.quick(differentiated)(hidden, head, tokens)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        specs = P(*split, None), P(None, None), P(*split)
        placed = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip((hidden, head, tokens), specs, strict=True)]
        ours = grid.quick(differentiated)(*placed)
    for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert ours[1][0].sharding.spec == specs[0]


B, S, K = 4, 6, 3
ROWS_OF_TWO_AXES = {  # what splits the batch axes of hidden states, of all other arrays, and what splits classes
    "hidden states alone whole": ((None, None), ("data", None), None),
    "hidden states alone split": (("data", None), (None, None), None),
    "by both axes": (("data", "model"), ("data", "model"), None),
    "sequences and classes": ((None, "data"), (None, "data"), "model"),
}


def divergence_arguments():
    gen = grid.rng("explicit divergence")
    hidden, of_teacher = gen.standard_normal((2, B, S, D)).astype(np.float32)
    head, teacher_head = gen.standard_normal((2, D, V)).astype(np.float32)
    log_probs = jax.nn.log_softmax(gen.standard_normal((B, S, K + 2)).astype(np.float32))[..., :K]
    indices = gen.permuted(np.broadcast_to(np.arange(V, dtype=np.int32), (B, S, V)), axis=-1)[..., :K]
    logits = gen.standard_normal((B, S, V)).astype(np.float32)
    of_rows = {"where": gen.random((B, S)) < 0.7, "labels": grid.labels(gen, B * S, V).reshape(B, S)}
    return (
        (hidden, head),
        {
            "teacher_logits": (logits,),
            "teacher_hidden": (of_teacher, teacher_head),
            "teacher_top_k": (indices, np.asarray(log_probs)),
        },
        of_rows | {"class_mask": gen.random((B, S, V)) < 0.9},
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("teacher", ["teacher_logits", "teacher_hidden", "teacher_top_k"])
@pytest.mark.parametrize("place", ROWS_OF_TWO_AXES)
def test_a_divergence_of_two_batch_axes_on_an_explicit_mesh(place, teacher, reduction):
    """Rows follow the hidden states, wherever masks, labels and teachers lie; the chunks divide nothing."""
    student, teachers, options = divergence_arguments()

    def loss(student, given, options):
        names = {"teacher_hidden": given, "teacher_top_k": (given,), "teacher_logits": given}[teacher]
        named = dict(zip((teacher, "teacher_head"), names, strict=False))
        options = options if teacher != "teacher_top_k" else {"where": options["where"], "labels": options["labels"]}
        how = {"reduction": reduction, "chunk_rows": 3, "kind": "js", "label_weight": 0.3}
        return jnp.sum(crossent_jax.linear_divergence(*student, **named, **options, **how))

    differentiated = jax.value_and_grad(loss, (0, 1), allow_int=True)
    right = grid.quick(differentiated)(student, teachers[teacher], options)
    of_hidden, of_rows, classes = ROWS_OF_TWO_AXES[place]

    def spec(name, x):
        if x.shape == (D, V):
            return P(None, classes)
        split = of_hidden if name == "hidden" else of_rows
        return P(*split, classes) if x.shape == (B, S, V) else P(*split)

    with jax.set_mesh(explicit_mesh()):
        hidden, head = (placed(x, spec(name, x)) for name, x in zip(("hidden", "head"), student, strict=True))
        theirs = tuple(placed(x, spec(teacher, x)) for x in teachers[teacher])
        given = {name: placed(x, spec(name, x)) for name, x in options.items()}
        got = grid.quick(differentiated)((hidden, head), theirs, given)
    for ours, other in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        if other.dtype == jnp.float32:
            np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("on_mesh", [True, False])
@pytest.mark.parametrize("name", ["mean", "own"])
def test_rows_follow_the_hidden_states(name, on_mesh):
    """Labels that are split where hidden states are whole, or on no mesh."""
    if not on_mesh and jax.__version_info__ < (0, 10):
        pytest.skip("of the versions that were tried 0.7.2 writes no part that is on a mesh into an array that is on none")
    hidden, head, labels, targets = linear_arguments()
    loss = jax.value_and_grad(LINEAR[name], (0, 1))
    expected = grid.quick(loss)(hidden, head, labels, targets)
    with jax.set_mesh(explicit_mesh()):
        hidden, head = (placed(x, P()) for x in (hidden, head)) if on_mesh else (hidden, head)
        got = grid.quick(loss)(hidden, head, placed(labels, P("data")), targets)
    for ours, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


OF_LOGITS = {  # losses of given logits, of labels and of an array of their shape
    "labels": lambda z, labels, other: crossent_jax.cross_entropy(z, labels, temperature=2.0, z_loss=1e-3, poly_epsilon=0.5),
    "targets": lambda z, labels, other: crossent_jax.soft_cross_entropy(z, other),
    "a teacher": lambda z, labels, other: crossent_jax.divergence(z, other, kind="js"),
    "decisions": lambda z, labels, other: crossent_jax.binary_cross_entropy(z, other),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", OF_LOGITS)
def test_other_arrays_may_lie_otherwise_than_the_logits(name, reverse):
    logits, labels, *_ = arguments()
    targets = grid.targets(grid.rng("lies otherwise"), ROWS, CLASSES)
    differentiated = grid.quick(jax.value_and_grad(OF_LOGITS[name]))
    expected = differentiated(logits, labels, targets)
    of_logits, of_others = (P(), P("data")) if reverse else (P("data"), P())
    with jax.set_mesh(explicit_mesh()):
        got = differentiated(placed(logits, of_logits), placed(labels, of_others), placed(targets, of_others))
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
