"""Values and gradients of hidden states and a head, whose logits are never whole, against the exact formula of
their product.

The exact gradients are those of the logits, multiplied out: dx = dz W^T, dW = x^T dz, db = sum dz, in float64. The slack has
only terms with a name: what the naive float32 formula loses, 4 ulp, the roundings of the products' own sums, and in 16 bits
dz as it enters the products and the gradient as it is stored.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax

from . import grid, oracle

pytestmark = pytest.mark.usefixtures("small_blocks")
FAMILIES = {"hard": crossent_jax.linear_cross_entropy, "soft": crossent_jax.linear_soft_cross_entropy}
IGNORED = grid.STATIC["ignore_index"][1]
CONSTANTS = ("class_mask", "where", "labels", "cotangent")
FEATURES, CLASSES = 5, 13
EPS = float(np.finfo(np.float32).eps)
STRUCTURE = {
    "kind": "hard",
    "backend": "xla",
    "batch": (14,),
    "chunk_rows": 3,
    "head_vocab_axis": 1,
    "bias": True,
    "dtype": "float32",
    "reduction": "mean",
    "softcap": None,
    "ignore_index": None,
}


def structure_of(**static):
    return STRUCTURE | static


def inputs(gen, static, scale=1.0):
    """Hidden (..., d), head as it is laid out, and bias, rounded to the dtype."""
    dtype, batch = grid.numpy_dtype(static["dtype"]), static["batch"]
    hidden = (scale * gen.standard_normal((*batch, FEATURES))).astype(dtype)
    head = gen.standard_normal((FEATURES, CLASSES)).astype(dtype)
    bias = gen.standard_normal(CLASSES).astype(dtype)
    given = {"hidden": hidden, "head": head if static["head_vocab_axis"] else np.ascontiguousarray(head.T)}
    return given | ({"bias": bias} if static["bias"] else {})


def make_case(gen, static, on, *, give_all=False, scalars=None):
    """The arguments of one call; labels are never masked."""
    rows = int(np.prod(static["batch"]))
    label = grid.labels(gen, rows, CLASSES)
    arrays, neutral = grid.random_arrays(gen, rows, CLASSES, label), grid.neutral_arrays(rows, CLASSES)
    values = {name: arrays[name] if name in on else neutral[name] for name in grid.ARRAYS}
    for name, (off, value) in grid.SCALARS.items():
        values[name] = np.float32((scalars or {}).get(name, value) if name in on else off)
    values = {name: value for name, value in values.items() if give_all or name in on}
    if static["ignore_index"] is not None:
        label[rows // 3] = static["ignore_index"]
    allowed = values.get("class_mask", neutral["class_mask"])
    target = {"labels": label} if static["kind"] == "hard" else {"targets": grid.targets(gen, rows, CLASSES, allowed)}
    return values | target | inputs(gen, static) | {"cotangent": gen.standard_normal(rows).astype(np.float32)}


def library_function(static):
    """Jitted ``(differentiable, constant) -> ((scalar, output), gradients)``."""
    batch = static["batch"]
    names = ["reduction", "softcap", "chunk_rows", "head_vocab_axis"] + ["ignore_index"] * (static["kind"] == "hard")
    options_given = {name: static[name] for name in names}

    def in_batch(name, value):
        own = (CLASSES,) if name == "targets" else ()
        return value.reshape(*batch, *own) if name in ("labels", "targets", "where", "row_weights") else value

    def scalar(differentiable, constant):
        options = {name: in_batch(name, value) for name, value in (differentiable | constant).items()}
        cotangent = options.pop("cotangent")
        target = options.pop("labels" if static["kind"] == "hard" else "targets")
        hidden, head = options.pop("hidden"), options.pop("head")
        out = FAMILIES[static["kind"]](hidden, head, target, implementation=static["backend"], **options_given, **options)
        flat = jax.tree.map(lambda x: x.reshape(-1), out) if static["reduction"] == "none" else out
        return oracle.contract(flat, cotangent), flat

    quick = grid.QUICK_COMPILE if static["dtype"] != "bfloat16" else None  # which does not multiply bfloat16
    return jax.jit(jax.value_and_grad(scalar, has_aux=True), compiler_options=quick)


def wide_product(static, arguments):
    """``(x, W, b)`` in float64 with rows flat and classes last."""
    x, w = (np.asarray(arguments[name], np.float64) for name in ("hidden", "head"))
    return (
        x.reshape(-1, x.shape[-1]),
        w if static["head_vocab_axis"] else w.T,
        np.asarray(arguments.get("bias", 0), np.float64),
    )


def call_of(static, arguments):
    """The arguments of the oracle, but for the logits."""
    names = ("labels", "targets", "cotangent", "hidden", "head", "bias")
    call = {name: value for name, value in arguments.items() if name not in names}
    call |= {name: static[name] for name in ("reduction", "softcap", "ignore_index")}
    return call | {"target": arguments.get("labels", arguments.get("targets"))}


def multiplied_out(static, arguments, dz, absolute=False):
    """Gradients of hidden, head and bias from that of the logits; of magnitudes: what bounds a rounding of dz."""
    x, w, _ = wide_product(static, arguments)
    x, w, dz = (np.abs(x), np.abs(w), np.abs(dz)) if absolute else (x, w, dz)
    head = x.T @ dz
    out = {"hidden": dz @ w.T, "head": head if static["head_vocab_axis"] else head.T, "bias": dz.sum(0)}
    return {name: g for name, g in out.items() if name in arguments}


def assert_case(function, static, arguments, label):
    constant = {name: value for name, value in arguments.items() if name in CONSTANTS}
    differentiable = {name: value for name, value in arguments.items() if name not in CONSTANTS}
    with oracle.x64() if static["dtype"] == "float64" else oracle.x32():
        (_, out), ours = jax.tree.map(np.asarray, function(differentiable, constant))
    x, w, b = wide_product(static, arguments)
    z, call = x @ w + b, call_of(static, arguments)
    eps = oracle.statistics_eps(static["dtype"])
    magnitude = np.max(np.abs(x) @ np.abs(w) + np.abs(b))
    products = x.shape[1] * eps / 2 * magnitude * largest_weight(static, arguments)
    products = products * (len(x) if static["reduction"] in ("sum", "loss_sum") else 1)
    for ours_leaf, exact_leaf in zip(jax.tree.leaves(out), jax.tree.leaves(oracle.exact_loss(z, **call)), strict=True):
        error = np.abs(ours_leaf - exact_leaf).astype(float)
        slack = oracle.loss_slack(exact_leaf.astype(float), static["dtype"]) + products
        assert np.all(error <= slack), f"{label}: value off by {np.max(error / slack)} times the slack"
    call["cotangent"] = arguments["cotangent"]
    exact = oracle.gradients(z, **call)
    z32 = (x.astype(np.float32) @ w.astype(np.float32) + b.astype(np.float32)).astype(np.float32)
    naive = oracle.gradients(z32, dtype="float32", **call) if eps == EPS else exact
    flat = {name: g for name, g in exact.items() if name != "z"} | multiplied_out(static, arguments, exact["z"])
    naive_flat = {name: g for name, g in naive.items() if name != "z"} | multiplied_out(static, arguments, naive["z"])
    rounded = multiplied_out(static, arguments, exact["z"], absolute=True)
    assert ours.keys() == flat.keys()
    for name, gradient in ours.items():
        assert gradient.dtype == differentiable[name].dtype
        gradient = gradient.reshape(flat[name].shape).astype(np.float64)
        error, naive_error = gradient - flat[name], np.max(np.abs(naive_flat[name] - flat[name]), initial=0)
        if name in rounded:
            slack = naive_error + product_slack(static, flat[name], rounded[name], eps, name)
            slack = slack + term_slack(static, arguments, name, eps)
        else:  # the gradient of an option or a target is a statistic of rows, like the loss, or the sum of one over rows
            slack = len(x) * (oracle.loss_slack(flat[name], static["dtype"]) + products) + naive_error
        if name == "targets":
            error = along_the_simplex(error, arguments)
        error = np.abs(error)
        assert np.all(error <= slack), f"{label}: gradient of {name} off by {np.max(error / slack)} times the slack"


def product_slack(static, exact, magnitudes, eps, name):
    """4 ulp, the roundings of a sum of ``length`` products, and in 16 bits half an ulp of dz (which the bias is not rounded
    to) and of the stored gradient."""
    length = {"hidden": CLASSES, "head": int(np.prod(static["batch"])), "bias": int(np.prod(static["batch"]))}[name]
    slack = 4 * eps * np.max(np.abs(exact)) + length * eps / 2 * magnitudes
    if static["dtype"] in ("bfloat16", "float16") and name != "bias":
        import ml_dtypes

        slack = slack + float(ml_dtypes.finfo(grid.numpy_dtype(static["dtype"])).eps) / 2 * magnitudes
        if static["dtype"] == "float16":  # dz below the smallest normal number
            slack = slack + 2.0**-25 * length * 4
        if static.get("kept"):  # exponentials, before dz
            slack = slack + float(ml_dtypes.finfo(grid.numpy_dtype(static["dtype"])).eps) / 2 * magnitudes
        if name == "hidden" and static["reduction"] != "none":  # kept in its own dtype until the cotangent comes
            slack = slack + float(ml_dtypes.finfo(grid.numpy_dtype(static["dtype"])).eps) / 2 * np.abs(exact)
    return slack + oracle.stored_half_ulp(np.abs(exact) + slack, static["dtype"])


def largest_weight(static, arguments):
    cotangent = arguments["cotangent"] if static["reduction"] == "none" else np.ones(1)
    weights = (arguments.get(name, np.ones(1)) for name in ("row_weights", "class_weights"))
    return max(1.0, float(np.prod([np.max(np.abs(factor)) for factor in (cotangent, *weights)])))


def term_slack(static, arguments, name, eps):
    """Terms of dz that cancel each other are as large as the product of the weights: half an ulp of it for each of four
    roundings, times the magnitudes that it is multiplied with and added over."""
    x, w, _ = wide_product(static, arguments)
    over = {"hidden": np.max(np.sum(np.abs(w), 1)), "head": np.max(np.sum(np.abs(x), 0)), "bias": len(x)}[name]
    return 4 * eps / 2 * largest_weight(static, arguments) * over


def along_the_simplex(error, arguments):
    """A masked class has no gradient by definition, and with class weights only the directions that keep the sum of a
    target are defined."""
    allowed = np.broadcast_to(arguments.get("class_mask", True), error.shape)
    mean = np.sum(error, -1, where=allowed, keepdims=True) / np.sum(allowed, -1, keepdims=True)
    return np.where(allowed, error - mean if "class_weights" in arguments else error, 0)


# --- every option alone -----------------------------------------------------------------------------

ALONE = {
    "hard none": {"reduction": "none"},
    "hard mean": {"batch": (2, 7), "chunk_rows": 4, "head_vocab_axis": 0},
    "hard loss_sum": {"reduction": "loss_sum", "batch": (7, 2), "bias": False, "ignore_index": IGNORED, "softcap": 4.0},
    "soft none": {"kind": "soft", "reduction": "none", "batch": (2, 7), "chunk_rows": 4},
    "soft mean": {"kind": "soft", "head_vocab_axis": 0},
    "hard mean bfloat16": {"dtype": "bfloat16", "batch": (2, 7), "chunk_rows": 4},
    "soft none bfloat16": {"dtype": "bfloat16", "kind": "soft", "reduction": "none"},
    "hard mean reference": {"backend": "reference", "batch": (2, 7), "chunk_rows": 4},
}


@pytest.mark.parametrize("name", ALONE)
def test_every_option_alone(name):
    """One compilation: every array and scalar option is given, the ones not in play with neutral values."""
    static, gen = structure_of(**ALONE[name]), grid.rng("linear alone", name)
    function = library_function(static)
    for on in ([], *([option] for option in (*grid.SCALARS, *grid.ARRAYS))):
        assert_case(function, static, make_case(gen, static, on, give_all=True), f"{name} {on}")


PLAIN = {
    "one row": {"batch": (), "chunk_rows": None},
    "default chunks": {"chunk_rows": None, "batch": (2, 7)},
    "one chunk": {"chunk_rows": 50},
    "chunks of one row": {"chunk_rows": 1, "batch": (7, 2), "reduction": "loss_sum"},
    "three batch axes": {"batch": (2, 1, 7), "chunk_rows": 5},
    "float64": {"dtype": "float64", "reduction": "sum"},
    "float64, none": {"dtype": "float64", "reduction": "none"},
    "float16": {"dtype": "float16", "reduction": "sum"},
    "reference bfloat16": {"dtype": "bfloat16", "backend": "reference", "head_vocab_axis": 0},
}


@pytest.mark.parametrize("name", PLAIN)
def test_shapes_chunks_and_dtypes(name):
    static, gen = structure_of(**PLAIN[name]), grid.rng("linear plain", name)
    function = library_function(static)
    for case in range(3):
        arguments = make_case(gen, static, ["label_smoothing"])
        if static["dtype"] == "float64":
            arguments = {
                n: a.astype(np.float64) if n in ("label_smoothing", "targets", "cotangent") else a
                for n, a in arguments.items()
            }
        assert_case(function, static, arguments, f"{name} {case}")


# --- random combinations ----------------------------------------------------------------------------

SEED = grid.session_seed()
CASES, REPEATS = 8, 3
SHAPES = {(): (None, 2), (14,): (1, 3, None), (2, 7): (4, 13, None), (7, 2): (3, 8, None)}  # batch: chunk_rows


def random_structure(gen, case):
    pick = lambda values: values[gen.integers(len(values))]  # noqa: E731
    kind = grid.TARGETS[case % 2]
    batch = pick(list(SHAPES))
    return structure_of(
        kind=kind,
        backend="reference" if case % 7 == 5 else "xla",
        batch=batch,
        chunk_rows=pick(SHAPES[batch]),
        head_vocab_axis=pick((0, 1)),
        bias=pick((True, False)),
        dtype=pick(("float32", "float32", "bfloat16")),
        reduction=pick(grid.REDUCTIONS),
        softcap=pick((None, 4.0)),
        ignore_index=pick((None, IGNORED)) if kind == "hard" and batch else None,
    )


@pytest.mark.parametrize("case", range(CASES))
def test_random_combinations(case):
    """What is not in play is not given: fewer statistics, other programs."""
    gen = np.random.default_rng([SEED, 77, case])
    static = random_structure(gen, case)
    on = [name for name in (*grid.SCALARS, *grid.ARRAYS) if gen.uniform() < 0.4]
    function = library_function(static)
    for repeat in range(REPEATS):
        scalars = {n: off + (value - off) * gen.uniform(0.2, 1.8) for n, (off, value) in grid.SCALARS.items()}
        label = f"seed {SEED} case {case}.{repeat}: {static} {on}"
        assert_case(function, static, make_case(gen, static, on, scalars=scalars), label)


# --- sizes, large logits, accumulation --------------------------------------------------------------


def logits_gradients(z, label, reduction="mean"):
    return oracle.gradients(z, label, reduction=reduction)["z"]


@pytest.mark.optimized
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_a_large_vocabulary(reduction):
    """262139 classes, a prime that no block divides: losses to 1e-6, gradients to a few roundings of their products."""
    gen, rows, features, classes = grid.rng("wide head"), 3, 3, 262139
    hidden = gen.standard_normal((rows, features)).astype(np.float32)
    head = gen.standard_normal((features, classes)).astype(np.float32)
    label = grid.labels(gen, rows, classes)
    z = hidden.astype(float) @ head.astype(float)

    def total(hidden, head):
        out = crossent_jax.linear_cross_entropy(hidden, head, label, reduction=reduction, chunk_rows=2)
        return jnp.sum(out), out

    (_, out), (dx, dw) = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, head)
    each = oracle.exact_loss(z, label, reduction=reduction).astype(float)
    assert np.all(np.abs(out - each) <= 1e-6 * np.maximum(1, each))
    z = z - z.max(-1, keepdims=True)
    dz = np.exp(z) / np.exp(z).sum(-1, keepdims=True) - (label[:, None] == np.arange(classes)[None])
    dz = dz / (rows if reduction == "mean" else 1)
    for ours, exact, bound in (
        (dx, dz @ head.T, np.abs(dz) @ np.abs(head.T)),
        (dw, hidden.T @ dz, np.abs(hidden.T) @ np.abs(dz)),
    ):
        assert np.all(np.abs(ours - exact) <= 16 * EPS * bound)  # exp of a rounded logit, the products, the sums by blocks


@pytest.mark.parametrize(
    "reduction, dtype, backend",
    [(reduction, dtype, "xla") for reduction in ("sum", "none") for dtype in ("float32", "bfloat16")]
    + [("none", "float32", "reference"), ("sum", "bfloat16", "reference")],
)
def test_logits_of_thousands(reduction, dtype, backend):
    """Logits of +-4000: the probabilities are 0 and 1, and the same ones in the forward and in the backward pass."""
    gen, rows, features, classes = grid.rng("thousands"), 5, 4, 11
    hidden = np.zeros((rows, features))
    hidden[np.arange(rows), [0, 1, 2, 3, 0]] = [4000, -4000, 4000, -4000, 4000]
    head = gen.permuted(np.broadcast_to(np.linspace(-1, 1, classes), (features, classes)), axis=1)
    hidden, head = hidden.astype(grid.numpy_dtype(dtype)), head.astype(grid.numpy_dtype(dtype))
    label = grid.labels(gen, rows, classes)
    z = hidden.astype(float) @ head.astype(float)
    top = np.argmax(z, -1)
    label[0] = top[0]  # one row is right

    def total(hidden, head):
        out = crossent_jax.linear_cross_entropy(
            hidden, head, label, reduction=reduction, chunk_rows=2, implementation=backend
        )
        return jnp.sum(out), out

    (value, _), (dx, dw) = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, head)
    exact = np.sum(z[np.arange(rows), top] - z[np.arange(rows), label])
    np.testing.assert_allclose(value, exact, rtol=features * EPS)
    dz = np.eye(classes)[top] - np.eye(classes)[label]
    assert np.abs(z).max() == pytest.approx(4000, rel=1e-2)
    for ours, right in ((dx, dz @ head.astype(float).T), (dw, hidden.astype(float).T @ dz)):
        exactly = np.abs(right) * (2.0**-8 if dtype == "bfloat16" else 0) + 2 * EPS * np.abs(right).max()
        assert np.all(np.abs(np.asarray(ours, np.float64) - right) <= exactly)


@pytest.mark.parametrize("backend", grid.BACKENDS)
@pytest.mark.parametrize("reduction", ("sum", "none"))
def test_gradients_add_up_in_float32_over_many_chunks(reduction, backend):
    """One direction of the head gets the same sign from each of 96 chunks. A bfloat16 sum stops growing (a peer is
    4.3 % off); here only dz and the result are rounded."""
    gen, rows, classes = grid.rng("accumulate"), 96 * 2 + 1, 7
    hidden = (1 + 0.1 * gen.standard_normal((rows, 3))).astype(grid.numpy_dtype("bfloat16"))
    head, bias = np.zeros((3, classes), hidden.dtype), np.zeros(classes, hidden.dtype)
    label = np.zeros(rows, np.int32)

    def total(head, bias):
        options = {"bias": bias, "chunk_rows": 2, "reduction": reduction, "implementation": backend}
        return jnp.sum(crossent_jax.linear_cross_entropy(hidden, head, label, **options))

    dw, db = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.jit(jax.grad(total, (0, 1)))(head, bias))
    dz = np.full((rows, classes), 1 / classes) - np.eye(classes)[label]
    exact, half_ulp = hidden.astype(float).T @ dz, 2.0**-8
    assert np.all(np.abs(dw - exact) <= (2 * half_ulp + rows * EPS) * np.abs(exact))
    assert np.all(np.abs(db - dz.sum(0)) <= (half_ulp + rows * EPS) * np.abs(dz.sum(0)))


@pytest.mark.parametrize("dtype, kind", [("float32", "soft"), ("bfloat16", "hard")])
def test_is_the_loss_of_the_product(dtype, kind):
    """With ``logits_dtype`` None, the loss of float32-accumulated logits; with a dtype, that of rounded
    logits."""
    static = structure_of(kind=kind, dtype=dtype)
    arguments = make_case(grid.rng("dense", kind, dtype), static, ["label_smoothing", "row_weights"])
    target = arguments.pop("labels", arguments.pop("targets", None))
    hidden, head, bias = (arguments.pop(name) for name in ("hidden", "head", "bias"))
    arguments.pop("cotangent")
    dense = {"hard": crossent_jax.cross_entropy, "soft": crossent_jax.soft_cross_entropy}[kind]
    exact = hidden.astype(np.float32) @ head.astype(np.float32) + bias.astype(np.float32)
    for logits_dtype in (None, "float32", "bfloat16"):
        z = exact.astype(grid.numpy_dtype(logits_dtype or "float32"))
        options = {"reduction": "none"} | arguments
        ours = FAMILIES[kind](hidden, head, target, bias=bias, chunk_rows=3, logits_dtype=logits_dtype, **options)
        bound, expected = np.abs(exact).max(), np.asarray(dense(z.astype(np.float32), target, **options))
        slack = oracle.loss_slack(expected) + FEATURES * EPS * bound
        if logits_dtype == "bfloat16":  # a logit a bit away may fall on the other side of a rounding
            assert np.max(np.abs(ours - expected)) <= 2.0**-8 * bound
            assert np.max(np.abs(ours - np.asarray(dense(exact, target, **options)))) > 1e-4
        else:
            assert np.all(np.abs(ours - expected) <= slack)
