"""compat.optax against optax: the same numbers where optax is right, and every row of the table where it is not."""

import inspect
import subprocess
import sys
import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax.losses as theirs
import pytest

from crossent_jax.compat import optax as ours

from . import grid
from .oracle import x64

INF = np.inf
NAMES = (
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "safe_softmax_cross_entropy",
    "poly_loss_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "generalized_kl_divergence",
    "convex_kl_divergence",
    "smooth_labels",
)
SOFTMAX = NAMES[:4]
BACKENDS = grid.BACKENDS


def of_optax(name, *args, **kwargs):
    """optax's answer, under JAX's default promotion; its deprecations are not ours."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(theirs, name)(*args, **kwargs)


def options_of(kwargs):
    """The arrays, which are arguments of a program, and the rest, which belong to its key."""
    arrays = {name: x for name, x in kwargs.items() if np.ndim(x) and not isinstance(x, tuple)}
    return arrays, tuple((name, x) for name, x in kwargs.items() if name not in arrays)


@cache
def answers(name, of, options):
    """``((weighted total, value), gradients)`` of optax and of us, in one program for all values."""

    def total(function, *args, **arrays):
        value = function(*args, **arrays, **dict(options))
        return jnp.sum(value * (1 + jnp.arange(value.size) % 3).reshape(value.shape).astype(value.dtype)), value

    functions = [partial(total, partial(of_optax, name)), partial(total, getattr(ours, name))]
    return grid.quick(lambda args, arrays: [jax.value_and_grad(f, of, has_aux=True)(*args, **arrays) for f in functions])


def both(name, *args, of=(0, 1), **kwargs):
    """``(value, gradients of the floating arguments among ``of``)`` of optax and of us."""
    of, (arrays, options) = tuple(i for i in of if jnp.issubdtype(args[i].dtype, jnp.floating)), options_of(kwargs)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = jax.tree.map(np.asarray, answers(name, of, options)(args, arrays))
    return [(value, list(gradients)) for (_, value), gradients in found]


@cache
def our_loss(name, options):
    return grid.quick(lambda args, arrays: getattr(ours, name)(*args, **arrays, **dict(options)))


def agree(name, *args, of=(0, 1), **kwargs):
    """The same values and gradients: to 1e-12 in float64, and ours in float32 close to optax's float64 (where the classes
    are last: they are brought there alike in every dtype)."""
    with x64():
        (value, gradients), (our_value, our_gradients) = both(name, *args, of=of, **kwargs)
    np.testing.assert_allclose(our_value, value, rtol=1e-12, atol=1e-13)
    for g, our_g in zip(gradients, our_gradients, strict=True):
        np.testing.assert_allclose(our_g, g, rtol=1e-10, atol=1e-12)
    if kwargs.get("axis", -1) == -1:
        arrays, options = options_of(kwargs)
        narrow = [x.astype(np.float32 if x.dtype == np.float64 else np.int32) for x in args]
        loss = our_loss(name, options)(narrow, arrays)
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, value, rtol=2e-6, atol=2e-6)
    return our_value


def logits(*shape, seed=0):
    return np.float32(2 * np.random.default_rng([seed, *shape]).normal(size=shape)).astype(float)


def targets(*shape, seed=1, total=1.0):
    t = np.random.default_rng([seed, *shape]).dirichlet(np.ones(shape[-1]), shape[:-1])
    return np.float32(total * t).astype(float)


def labels(*shape, classes, seed=2):
    return np.random.default_rng([seed, *shape]).integers(0, classes, shape)


def mask(*shape, seed=3):
    return np.random.default_rng([seed, *shape]).random(shape) < 0.7


# --- the interface ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_optaxs_with_implementation_added(name):
    parameters = [p for p in inspect.signature(getattr(ours, name)).parameters.values() if p.name != "implementation"]
    function = theirs.generalized_kl_divergence if name == "convex_kl_divergence" else getattr(theirs, name)
    original = inspect.signature(function).parameters.values()
    assert [(p.name, p.kind, p.default) for p in parameters] == [(p.name, p.kind, p.default) for p in original]


@pytest.mark.subprocess
def test_optax_is_not_imported():
    code = "import sys; sys.modules['optax'] = None; import crossent_jax.compat.optax, crossent_jax.compat.torch"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [-1, 0, 1, (1, 2), (2, 0), None])
def test_soft_targets(axis):
    agree("softmax_cross_entropy", logits(3, 7, 5), targets(3, 7, 5, total=1.3), axis=axis)


@pytest.mark.parametrize("axis, epsilon", [(-1, 2.0), (1, -1.0), ((2, 0), 0.0)])
def test_poly_loss(axis, epsilon):
    agree("poly_loss_cross_entropy", logits(3, 7, 5), targets(3, 7, 5, total=1.3), axis=axis, epsilon=epsilon)


@pytest.mark.parametrize("name", SOFTMAX)
def test_every_implementation(name):
    z, y = jnp.asarray(logits(4, 7), jnp.float32), labels(4, classes=7)
    target = jnp.asarray(y, jnp.int32) if "integer" in name else jnp.asarray(targets(4, 7), jnp.float32)
    one, other = (getattr(ours, name)(z, target, implementation=implementation) for implementation in BACKENDS)
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("axis, shape", [(-1, (3, 7)), (0, (7, 5)), (1, (3, 5)), ((1, 2), (3,)), ((2, 0), (7,))])
def test_integer_labels(axis, shape):
    z = logits(3, 7, 5)
    classes = np.prod([z.shape[a] for a in np.atleast_1d(axis)])
    agree("softmax_cross_entropy_with_integer_labels", z, labels(*shape, classes=classes), axis=axis)


def test_an_axis_is_a_tuple_of_one():
    z, y = logits(3, 7, 5), labels(3, 5, classes=7)
    agree("softmax_cross_entropy_with_integer_labels", z, y, axis=(1,))
    agree("softmax_cross_entropy", z[0, 0], targets(5), axis=0)


@pytest.mark.parametrize("z, t", [((4, 7), (7,)), ((4, 7), (1, 7)), ((7,), (4, 7)), ((2, 1, 7), (4, 7))])
def test_labels_and_logits_broadcast(z, t):
    agree("softmax_cross_entropy", logits(*z), targets(*t))


def test_labels_and_logits_of_safe_softmax_broadcast():
    agree("safe_softmax_cross_entropy", logits(2, 1, 7), targets(4, 7))


def test_one_hot_integers():
    z, y = logits(4, 7), labels(4, classes=7)
    one_hot = np.eye(7, dtype=int)[y]
    for dtype in (np.int32, bool):
        value = ours.softmax_cross_entropy(jnp.asarray(z, jnp.float32), jnp.asarray(one_hot, dtype))
        np.testing.assert_allclose(value, of_optax("softmax_cross_entropy", z, one_hot), rtol=2e-6)


MASKS = [
    (-1, (4, 7), (4, 7)),
    (-1, (4, 7), (1, 7)),
    (-1, (4, 7), (4,)),
    (0, (7, 4), (7, 4)),
    (0, (7, 4), (4,)),
    (1, (3, 7, 5), (3, 5)),
    ((0, 2), (3, 7, 5), (7,)),
    ((0, 2), (3, 7, 5), (3, 7, 5)),
]


SOFT_MASKS = [
    *(("softmax_cross_entropy", *case) for case in MASKS),
    *(("poly_loss_cross_entropy", *case) for case in (MASKS[0], MASKS[-1])),  # it has no mask over examples
]


@pytest.mark.parametrize("name, axis, shape, where", SOFT_MASKS)
def test_where_with_soft_targets(name, axis, shape, where):
    agree(name, logits(*shape), targets(*shape), of=(0,), axis=axis, where=mask(*where))


@pytest.mark.parametrize("axis, shape, where", [MASKS[0], *MASKS[2:4], MASKS[5]])
def test_where_with_integer_labels(axis, shape, where):
    name, keep = "softmax_cross_entropy_with_integer_labels", mask(*where)
    batch = np.delete(np.array(shape), axis)
    if len(where) == len(shape):
        present = np.moveaxis(np.broadcast_to(keep, shape), axis, -1)
        y = np.argmax(present * np.random.default_rng(0).random(present.shape), -1)  # of a class that is left
    else:
        y = labels(*batch, classes=shape[axis])
    agree(name, logits(*shape), y, axis=axis, where=keep)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"])
def test_an_example_with_no_class_left_gives_zero(name):
    where = mask(4, 7)
    where[1] = False
    y = np.argmax(where, -1)
    args = (logits(4, 7), y) if "integer" in name else (logits(4, 7), targets(4, 7))
    assert agree(name, *args, of=(0,), where=where)[1] == 0


def test_safe_softmax_with_masked_logits():
    z, t = logits(4, 7), targets(4, 7)
    z[0, 2], t[0, 2] = -INF, 0.0
    value = ours.safe_softmax_cross_entropy(jnp.asarray(z, jnp.float32), jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(value, of_optax("safe_softmax_cross_entropy", z, t), rtol=2e-6)
    t[0, 2] = 0.5
    assert ours.safe_softmax_cross_entropy(z, t)[0] == INF == of_optax("safe_softmax_cross_entropy", z, t)[0]


@pytest.mark.parametrize(
    "y", [labels(4, 7, classes=2), np.float64(labels(4, 7, classes=2)), targets(4, 7), 3 * targets(4, 7)]
)
def test_sigmoid_binary_cross_entropy(y):
    agree("sigmoid_binary_cross_entropy", 5 * logits(4, 7), y)


ALPHAS = np.float64([0.1, 0.5, 0.9, 1.0, 0.0, 0.3, 0.7])
GAMMAS = np.float64([[0.0], [1.0], [2.5], [0.2]])


@pytest.mark.parametrize(
    "alpha, gamma", [(None, 2.0), (None, 0.5), (None, GAMMAS), (0.25, 2.0), (0.25, GAMMAS), (ALPHAS, 2.0), (ALPHAS, GAMMAS)]
)
def test_sigmoid_focal_loss(alpha, gamma):
    z, y = logits(4, 7), np.where(mask(4, 7), labels(4, 7, classes=2), targets(4, 7))
    with x64():
        (value, gradients), (our_value, our_gradients) = both("sigmoid_focal_loss", z, y, alpha=alpha, gamma=gamma)
    np.testing.assert_allclose(our_value, value, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(our_gradients[0], gradients[0], rtol=1e-9, atol=1e-12)


def test_sigmoid_broadcasts():
    agree("sigmoid_binary_cross_entropy", logits(4, 7), labels(7, classes=2))
    agree("sigmoid_binary_cross_entropy", logits(7), labels(4, 7, classes=2))
    (value, _), (our_value, _) = both("sigmoid_focal_loss", np.float32(logits(4, 7)), labels(7, classes=2))
    np.testing.assert_allclose(our_value, value, rtol=1e-5)


KL = [(-1, None), ((0, 2), None), (-1, (7, 5)), (0, None), (None, None), (1, (3, 7, 1))]
KL_OF_NAMES = (
    [("kl_divergence", *case) for case in KL]
    + [  # the sum over axes and the mask are the same for every one
        (name, *case) for name in ("kl_divergence_with_log_targets", "generalized_kl_divergence") for case in KL[:3]
    ]
)


@pytest.mark.parametrize("name, axis, where", KL_OF_NAMES)
def test_kl(name, axis, where):
    log_p, t = np.minimum(logits(3, 7, 5), 0.5), targets(3, 7, 5, total=1.7)  # of any sum
    where = None if where is None else mask(*where)
    with jax.numpy_rank_promotion("allow"):
        agree(name, log_p, np.log(t) if "log_t" in name else t, axis=axis, where=where)


def test_kl_broadcasts():
    agree("kl_divergence", logits(3, 1, 5), targets(7, 5))


def test_convex_is_generalized():
    (value, _), (our_value, _) = both("convex_kl_divergence", logits(4, 7), targets(4, 7))
    np.testing.assert_allclose(our_value, value, rtol=1e-5)


@pytest.mark.parametrize("where", [None, (4, 7), (4, 1), (7,)])
def test_smooth_labels(where):
    where = None if where is None else mask(*where)
    full = where if where is None else np.broadcast_to(where, (4, 7))  # optax counts a broadcast mask once
    t = np.float32(targets(4, 7))

    @grid.quick
    def along_every_axis(t, where, full):
        return [
            (ours.smooth_labels(t, 0.1, axis=axis, where=where), of_optax("smooth_labels", t, 0.1, axis=axis, where=full))
            for axis in (-1, 0, (0, 1), None)
        ]

    for value, expected in along_every_axis(t, where, full):
        np.testing.assert_allclose(value, np.where(np.isinf(expected), 0.9 * t, expected), rtol=1e-6)


def test_composes_like_optax():
    z, y = logits(4, 7), np.eye(7)[labels(4, classes=7)]
    smoothed = of_optax("softmax_cross_entropy", z, of_optax("smooth_labels", y, 0.1))
    np.testing.assert_allclose(ours.softmax_cross_entropy(z, ours.smooth_labels(y, 0.1)), smoothed, rtol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_jit_and_vmap(name):
    z = jnp.asarray(logits(3, 4, 7), jnp.float32)
    t = jnp.asarray(labels(3, 4, classes=7)) if "integer" in name else jnp.asarray(targets(3, 4, 7), jnp.float32)
    function = getattr(ours, name) if name != "smooth_labels" else lambda z, t: ours.smooth_labels(t, 0.1)
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(z, t), function(z, t), rtol=1e-6, atol=1e-6)


# --- the table of differences, row by row: what optax does, what we do -----------------------------------------------

LABELS = "softmax_cross_entropy_with_integer_labels"


def case_of_labels(first):
    return np.float32(logits(2, 7)), np.int32([first, 2])


def masked_case():
    """A logit of -inf, and labels that are 0 there."""
    z, y = case_of_labels(0)
    z[0, 3] = -INF
    return z, np.eye(7, dtype=np.float32)[y]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("smooth_labels", "convex_kl_divergence")])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_row_half_precision(name, dtype):
    z = -np.abs(logits(64, 70).astype(dtype)) - dtype(5)
    t = np.int32(labels(64, classes=70)) if "integer" in name else targets(64, 70).astype(dtype)
    wide = [x.astype(np.float32) if x.dtype == dtype else x for x in (z, t)]
    functions = getattr(ours, name), partial(of_optax, name), getattr(ours, name)
    values = grid.quick(lambda *pairs: [f(*pair) for f, pair in zip(functions, pairs, strict=True)])((z, t), (z, t), wide)
    our_value, their_value, exact = map(np.asarray, values)
    assert their_value.dtype == dtype and our_value.dtype == np.float32
    assert np.array_equal(our_value, exact)
    assert np.max(np.abs(their_value.astype(np.float32) - exact)) > 1e-4 * np.max(np.abs(exact))


def test_row_half_precision_of_smoothed_labels():
    smoothed = ours.smooth_labels(jnp.eye(7, dtype=jnp.bfloat16), 0.1)
    assert smoothed.dtype == jnp.float32
    np.testing.assert_allclose(smoothed.sum(-1), 1, rtol=1e-6)


def test_row_forward_mode():
    z, t = np.float32(logits(4, 7)), np.float32(targets(4, 7))

    def assert_equal_to_optaxs(name, target, **options):
        functions = partial(getattr(ours, name), **options), partial(of_optax, name)
        np.testing.assert_allclose(
            *grid.quick(lambda *x: [jax.jacfwd(f)(*x) for f in functions])(z, target), rtol=1e-5, atol=1e-6
        )

    for name, target in (("softmax_cross_entropy", t), ("poly_loss_cross_entropy", t), (LABELS, np.int32([1, 2, 0, 6]))):
        with pytest.raises(TypeError):
            jax.jacfwd(getattr(ours, name))(z, target)
        assert_equal_to_optaxs(name, target, implementation="reference")
    for name in ("kl_divergence", "generalized_kl_divergence", "sigmoid_binary_cross_entropy", "sigmoid_focal_loss"):
        assert_equal_to_optaxs(name, t)


@pytest.mark.parametrize("label, trained", [(-1, 6), (-7, 0)])
def test_row_negative_label(label, trained):
    (value, (gradient,)), (our_value, (our_gradient,)) = both(LABELS, *case_of_labels(label))
    assert np.argmin(gradient[0]) == trained and gradient[0, trained] < 0 and np.isfinite(value[0])
    assert np.isnan(our_value[0]) and not np.any(our_gradient[0])
    np.testing.assert_allclose(our_value[1], value[1], rtol=1e-6)
    np.testing.assert_allclose(our_gradient[1], gradient[1], atol=1e-6)


@pytest.mark.parametrize("label", [-100, 7, 1000])
def test_row_label_out_of_range(label):
    (value, (gradient,)), (our_value, (our_gradient,)) = both(LABELS, *case_of_labels(label))
    assert np.isnan(value[0]) and np.all(gradient[0] > 0)
    assert np.isnan(our_value[0]) and not np.any(our_gradient[0])


def test_row_where_removes_the_labels_class():
    z, y = case_of_labels(0)
    z[0, 0] = 9.0
    where = np.arange(14).reshape(2, 7) > 0
    (value, _), (our_value, (our_gradient,)) = both(LABELS, z, y, where=where)
    assert value[0] < 0 and our_value[0] == INF and np.all(np.isfinite(our_gradient))
    np.testing.assert_allclose(our_value[1], value[1], rtol=1e-6)


def test_row_labels_of_one_example():
    z, _ = case_of_labels(0)
    assert jax.eval_shape(partial(of_optax, LABELS), z, jnp.array([1])).shape == (2,)
    with pytest.raises(ValueError, match="shape"):
        ours.softmax_cross_entropy_with_integer_labels(z, jnp.array([1]))


def test_row_class_ids_as_soft_labels():
    z, ids = jnp.zeros((3, 3)), jnp.array([0, 1, 2])
    assert jax.eval_shape(partial(of_optax, "softmax_cross_entropy"), z, ids).shape == (3,)
    with pytest.raises(TypeError, match="softmax_cross_entropy_with_integer_labels"):
        ours.softmax_cross_entropy(z, ids)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "poly_loss_cross_entropy"])
def test_row_masked_logit_with_label_zero(name):
    z, t = masked_case()
    (value, _), (our_value, (our_gradient, _)) = both(name, z, t)
    kept = [0, 1, 2, 4, 5, 6]
    assert np.isnan(value[0]) and our_gradient[0, 3] == 0
    np.testing.assert_allclose(our_value[:1], both(name, z[:1, kept], t[:1, kept])[0][0], rtol=1e-6)
    np.testing.assert_allclose(our_value[1], value[1], rtol=1e-6)


def test_row_safe_softmax_in_forward_mode():
    name = "safe_softmax_cross_entropy"
    z, t = masked_case()
    direction = np.float32(logits(2, 7, seed=8))
    direction[0, 3] = 0.0

    @grid.quick
    def derivatives(z):
        _, tangent = jax.jvp(lambda z: of_optax(name, z, t), (z,), (direction,))
        _, ours_ = jax.jvp(lambda z: getattr(ours, name)(z, t, implementation="reference"), (z,), (direction,))
        return tangent, ours_, jax.grad(lambda z: getattr(ours, name)(z, t).sum())(z)

    tangent, ours_, gradient = derivatives(z)
    assert np.isnan(tangent[0])
    np.testing.assert_allclose(ours_, np.sum(gradient * direction, -1), rtol=1e-5)


def test_row_gradient_of_the_labels_at_a_masked_logit():
    z, t = masked_case()
    (_, (_, gradient)), (_, (_, our_gradient)) = both("safe_softmax_cross_entropy", z, t)
    assert gradient[0, 3] == INF and our_gradient[0, 3] == 0
    np.testing.assert_allclose(np.delete(our_gradient, 3, 1), np.delete(gradient, 3, 1), rtol=1e-5)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "poly_loss_cross_entropy"])
def test_row_gradient_of_the_labels_under_a_mask(name):
    z, t, where = np.float32(logits(3, 7)), np.float32(targets(3, 7)), np.ones((3, 7), bool)
    z[0, 3], where[0], where[1, 4] = np.nan, False, False
    (value, gradients), (our_value, our_gradients) = both(name, z, t, where=where)
    masked = ~where
    assert np.all(np.isnan(gradients[1][masked])) and not any(np.any(g[masked]) for g in our_gradients)
    assert our_value[0] == value[0] == 0
    np.testing.assert_allclose(our_value, value, rtol=1e-6)
    for ours_, theirs_ in zip(our_gradients, gradients, strict=True):
        np.testing.assert_allclose(ours_[1:][~masked[1:]], theirs_[1:][~masked[1:]], rtol=1e-5, atol=1e-6)


def test_row_poly_loss_of_some_examples():
    z, t, where = logits(2, 7), targets(2, 7), jnp.array([False, True])
    with pytest.raises(ValueError, match="broadcast"):
        of_optax("poly_loss_cross_entropy", z, t, where=where)
    value, everywhere = ours.poly_loss_cross_entropy(z, t, where=where), ours.poly_loss_cross_entropy(z, t)
    assert value[0] == 0
    np.testing.assert_allclose(value[1], everywhere[1], rtol=2e-7)  # another program: sums may be fused in another order


@pytest.mark.parametrize("name", ["sigmoid_binary_cross_entropy", "sigmoid_focal_loss"])
def test_row_infinite_logit(name):
    (value, _), (our_value, (our_gradient, _)) = both(name, np.float32([INF, -INF, 1]), np.float32([1, 0, 1]))
    assert np.all(np.isnan(value[:2])) and not np.any(our_value[:2]) and not np.any(our_gradient[:2])
    np.testing.assert_allclose(our_value[2], value[2], rtol=1e-6)


def test_row_kl_of_zero_target():
    log_p, t = np.float32([-INF, -1, -0.5]), np.float32([0, 0.4, 0.6])
    (value, (_, gradient)), (our_value, (our_p, our_t)) = both("kl_divergence", log_p, t)
    expected = np.sum(np.float64(t[1:]) * (np.log(np.float64(t[1:])) - np.float64(log_p[1:])))
    assert np.isnan(value) and np.isnan(gradient[0])
    np.testing.assert_allclose(our_value, expected, rtol=1e-6)
    np.testing.assert_allclose(our_p, -t)
    assert our_t[0] == 0
    np.testing.assert_allclose(our_t[1:], gradient[1:], rtol=1e-6)
    _, (our_value, _) = both("kl_divergence", log_p, np.float32([0.1, 0.4, 0.5]))
    assert our_value == INF


def test_row_kl_of_masked_nan():
    log_p, t, where = np.float32([np.nan, -1, -0.5]), np.float32([0.3, 0.4, 0.3]), np.array([False, True, True])
    (value, (_, gradient)), (our_value, our_gradients) = both("kl_divergence", log_p, t, where=where)
    assert np.isnan(gradient[0]) and not any(g[0] for g in our_gradients)
    np.testing.assert_allclose(our_value, value, rtol=1e-6)


def test_row_kl_of_log_target_minus_infinity():
    log_p, t = np.float32([-2, -1, -0.5]), np.float32([0, 0.4, 0.6])
    with np.errstate(divide="ignore"):
        log_t = np.log(t)
    (value, _), (our_value, our_gradients) = both("kl_divergence_with_log_targets", log_p, log_t)
    assert np.isnan(value) and not np.any([g[0] for g in our_gradients])
    np.testing.assert_allclose(our_value, both("kl_divergence", log_p, t)[0][0], rtol=1e-6)


def test_row_generalized_kl_near_the_targets():
    log_t = np.float32(logits(500, 7))
    log_t -= np.log(np.sum(np.exp(log_t), -1, keepdims=True))
    near = log_t + np.float32(1e-4 * logits(500, 7, seed=9))
    t = np.exp(log_t)
    (noise, _), (nothing, _) = both("generalized_kl_divergence", np.asarray(jnp.log(t)), t)
    assert np.min(noise) < 0 and not np.any(nothing)
    (theirs_, _), (value, _) = both("generalized_kl_divergence", near, t)
    x = np.float64(near) - np.log(np.float64(t))
    exact = np.sum(np.float64(t) * (x**2 / 2 + x**3 / 6 + x**4 / 24), -1)
    assert np.all(value > 0) and np.max(np.abs(value / exact - 1)) < 1e-2  # what the rounding of the logs leaves
    assert np.max(np.abs(theirs_ / exact - 1)) > 1


def test_row_convex_kl_warns_in_optax_only():
    log_p, t = np.float32([-0.7, -0.7]), np.float32([0.3, 0.7])
    with pytest.warns(DeprecationWarning):
        jax.eval_shape(theirs.convex_kl_divergence, log_p, t)
    jax.eval_shape(ours.convex_kl_divergence, log_p, t)


def test_row_smoothing_with_no_class_left():
    t, where = np.eye(2, 7, dtype=np.float32), np.ones((2, 7), bool)
    where[0] = False
    functions = partial(of_optax, "smooth_labels"), ours.smooth_labels
    value, our_value = grid.quick(lambda t, where: [f(t, 0.1, where=where) for f in functions])(t, where)
    assert np.all(np.isinf(value[0]))
    np.testing.assert_allclose(our_value[0], 0.9 * t[0], rtol=1e-6)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda z: ours.softmax_cross_entropy(z, jnp.ones((5, 7)) / 7), ValueError),
        (lambda z: ours.softmax_cross_entropy(z, z, where=jnp.ones(7, bool)), ValueError),
        (lambda z: ours.softmax_cross_entropy(z, z, where=jnp.ones(4)), TypeError),
        (lambda z: ours.softmax_cross_entropy(z.astype(int), z), TypeError),
        (lambda z: ours.softmax_cross_entropy_with_integer_labels(z, jnp.zeros(4)), TypeError),
        (lambda z: ours.softmax_cross_entropy_with_integer_labels(z, jnp.zeros((4, 1), int)), ValueError),
        (lambda z: ours.softmax_cross_entropy(z, z, implementation="magic"), ValueError),
        (lambda z: ours.kl_divergence(z, z.astype(int)), TypeError),
        (lambda z: ours.kl_divergence(z, jnp.ones((5, 7))), ValueError),
        (lambda z: ours.sigmoid_binary_cross_entropy(z, jnp.ones((5, 7))), ValueError),
        (lambda z: ours.smooth_labels(z.astype(int), 0.1), TypeError),
    ],
)
def test_errors(call, error):
    with pytest.raises(error):
        call(jnp.zeros((4, 7)))
