"""Contrastive losses of a batch whose matrix is never whole, against the definition in float64."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import crossent_jax

from . import grid
from .oracle import x64

N, D = 13, 8
CHUNK = 5  # 13 rows in chunks of 5: the last one overlaps
TEMPERATURE = 0.2


def drawn(n=N, m=N, dtype="float32", seed=0):
    gen = np.random.default_rng(seed)
    queries, keys = gen.standard_normal((n, D)), gen.standard_normal((m, D))
    queries, keys = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, keys))
    return queries.astype(grid.numpy_dtype(dtype)), keys.astype(grid.numpy_dtype(dtype))


def positives_of(n, m, query_ids=None, key_ids=None, where=None):
    positive = np.eye(n, m, dtype=bool) if query_ids is None else np.asarray(query_ids)[:, None] == np.asarray(key_ids)[None]
    return positive if where is None else positive & where[:, None] & where[None]


def true_info_nce(queries, keys, temperature=TEMPERATURE, symmetric=True, where=None, **ids):
    positive = positives_of(len(queries), len(keys), where=where, **ids)
    z = queries @ keys.T / temperature
    if where is not None:
        z = jnp.where(where[:, None] & where[None], z, -1e30)

    def one_way(z, positive):
        some = positive.any(1)
        log_p = z - jax.nn.logsumexp(z, 1, keepdims=True)
        rows = -jnp.sum(jnp.where(positive, log_p, 0), 1) / np.maximum(positive.sum(1), 1.0)
        return jnp.sum(jnp.where(some, rows, 0)) / max(1.0, float(some.sum()))

    there = one_way(z, positive)
    return (there + one_way(z.T, positive.T)) / 2 if symmetric else there


def true_sigmoid(queries, keys, temperature=TEMPERATURE, bias=0.0, where=None, **ids):
    positive = positives_of(len(queries), len(keys), where=where, **ids)
    z = queries @ keys.T / temperature + bias
    each = jax.nn.softplus(jnp.where(positive, -z, z))
    if where is None:
        return jnp.sum(each) / float(len(queries))
    return jnp.sum(jnp.where(where[:, None] & where[None], each, 0)) / float(where.sum())


IDS = {"query_ids": np.arange(N) % 4, "key_ids": (np.arange(N) * 5) % 7}  # ids 4, 5, 6 are on one side alone
WHERE = np.arange(N) % 6 != 2
NCE, SIGMOID = (crossent_jax.info_nce, true_info_nce), (crossent_jax.sigmoid_contrastive, true_sigmoid)
CASES = {
    "nce": (*NCE, N, {}),
    "nce one way": (*NCE, N, {"symmetric": False}),
    "nce with more keys": (*NCE, 17, {"symmetric": False}),
    "nce of ids": (*NCE, N, IDS),
    "nce of ids one way": (*NCE, N, IDS | {"symmetric": False}),
    "nce of some pairs": (*NCE, N, {"where": WHERE}),
    "sigmoid": (*SIGMOID, N, {"bias": -3.0}),
    "sigmoid of ids": (*SIGMOID, N, IDS),
    "sigmoid of some pairs": (*SIGMOID, N, {"where": WHERE, "bias": -1.0}),
}


def ours_of(function, options, **more):
    def loss(queries, keys, temperature):
        return function(queries, keys, temperature=temperature, **options, **more)

    return loss


def wide(function, *arrays):
    with x64():
        return function(*(np.float64(x) for x in arrays))


def gradients_of(loss):
    return grid.quick(jax.value_and_grad(loss, (0, 1, 2)))


@cache
def exact(case):
    _, true, _, options = CASES[case]
    return gradients_of(lambda q, k, t: true(q, k, temperature=t, **options))


HALF = [(case, "bfloat16") for case in ("nce", "nce of some pairs", "sigmoid")]


@pytest.mark.parametrize("case, dtype", [(case, "float32") for case in CASES] + HALF)
def test_value_and_gradients(case, dtype):
    function, _, m, options = CASES[case]
    queries, keys = drawn(m=m, dtype=dtype)
    temperature = np.float32(TEMPERATURE)
    loss = ours_of(function, options, chunk_rows=CHUNK)
    both = grid.quick(lambda *given: (jax.value_and_grad(loss, (0, 1, 2))(*given), loss(*given)))
    (value, gradients), undifferentiated = both(queries, keys, temperature)
    expected, expected_gradients = wide(exact(case), queries, keys, temperature)
    assert value.dtype == jnp.float32 and [g.dtype for g in gradients] == [dtype, dtype, jnp.float32]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for found, right in zip(gradients, expected_gradients, strict=True):
        eps = 1e-5 if dtype == "float32" else 2.0**-7
        np.testing.assert_allclose(np.float64(found), right, atol=eps * np.abs(right).max())
    np.testing.assert_allclose(undifferentiated, value, rtol=1e-6)


def test_bias_is_differentiable():
    queries, keys = drawn()
    found = jax.grad(lambda b: crossent_jax.sigmoid_contrastive(queries, keys, temperature=0.2, bias=b, chunk_rows=CHUNK))
    right = wide(grid.quick(jax.grad(lambda b: true_sigmoid(np.float64(queries), np.float64(keys), bias=b))), -2.0)
    np.testing.assert_allclose(grid.quick(found)(np.float32(-2.0)), right, rtol=1e-5)


@pytest.mark.parametrize("case", ["nce of ids", "nce of some pairs", "nce with more keys", "sigmoid"])
def test_any_chunk_gives_the_same(case):
    """All rows too, which make InfoNCE in one pass; without ids the positives are read from the diagonal there."""
    function, _, m, options = CASES[case]
    queries, keys = drawn(m=m)
    both = [
        gradients_of(ours_of(function, options, chunk_rows=rows))(queries, keys, np.float32(0.3)) for rows in (1, 13, None)
    ]
    for other in both[1:]:
        for a, b in zip(jax.tree.leaves(both[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ["nce of some pairs", "sigmoid of some pairs"])
def test_pairs_that_do_not_count_may_hold_nan(case):
    function, _, _, options = CASES[case]
    queries, keys = drawn()
    poisoned = [np.where(WHERE[:, None], x, np.float32(np.nan)) for x in (queries, keys)]
    both = gradients_of(ours_of(function, options, chunk_rows=CHUNK))
    clean = both(queries, keys, np.float32(0.3))
    found = both(*poisoned, np.float32(0.3))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert all(np.all(np.asarray(g)[~WHERE] == 0) for g in found[1][:2])


def test_nothing_counts():
    queries, keys = drawn()
    nobody, apart = {"where": np.zeros(N, bool)}, {"query_ids": np.arange(N), "key_ids": np.arange(N) + 100}
    for options in (nobody, apart):
        loss = partial(crossent_jax.info_nce, temperature=0.1, **options)
        value, gradients = grid.quick(jax.value_and_grad(loss, (0, 1)))(queries, keys)
        assert value == 0 and not any(np.any(g) for g in gradients)
    empty = jnp.zeros((0, D))
    assert crossent_jax.info_nce(empty, empty, temperature=0.1) == 0


def test_frozen_keys_take_no_product():
    queries, keys = drawn()
    loss = partial(crossent_jax.info_nce, temperature=0.1, chunk_rows=CHUNK)

    def dots(function):
        return jax.jit(function).lower(queries, keys).as_text().count("stablehlo.dot_general")

    assert dots(jax.grad(loss, (0, 1))) == 4 and dots(jax.grad(loss)) == 3 and dots(loss) == 1
    assert dots(jax.grad(partial(loss, symmetric=False), (0, 1))) == 3


@pytest.mark.optimized
def test_no_matrix_of_the_batch():
    """The largest array of the program has chunk x batch entries."""
    n = 1024
    x = jax.ShapeDtypeStruct((n, 16), jnp.float32)
    for function in (crossent_jax.info_nce, crossent_jax.sigmoid_contrastive):
        both = jax.jit(jax.value_and_grad(partial(function, temperature=0.1, chunk_rows=32), (0, 1)))
        memory = both.lower(x, x).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 4 * n * n / 4


def test_cold_temperature_does_not_overflow():
    queries, keys = drawn()
    both = grid.quick(jax.value_and_grad(partial(crossent_jax.info_nce, temperature=1e-3), (0, 1)))
    value, gradients = both(100 * queries, keys)
    expected = wide(grid.quick(lambda q, k: true_info_nce(q, k, 1e-3)), 100 * queries, keys)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize(
    "case, check_vma",
    [
        ("nce", True),
        ("nce", False),
        ("nce one way", True),
        ("nce of ids", False),
        ("nce of some pairs", True),
        ("sigmoid", False),
    ],
)
def test_across_devices(case, check_vma):
    """Four devices with four pairs each give the loss and the gradients of the sixteen."""
    function, _, _, options = CASES[case]
    queries, keys = drawn(16, 16)
    split = {"query_ids": np.arange(16) % 5, "key_ids": np.arange(16) % 7} if "query_ids" in options else {}
    split |= {"where": np.arange(16) % 6 != 2} if "where" in options else {}
    rest = {name: value for name, value in options.items() if name in ("symmetric", "bias")}
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])

    def loss(queries, keys, temperature, split, axis_name=None):
        return function(queries, keys, temperature=temperature, chunk_rows=3, axis_name=axis_name, **split, **rest)

    def sharded(queries, keys, temperature):
        specs = (P("data"), P("data"), P(), {name: P("data") for name in split})
        run = jax.shard_map(partial(loss, axis_name="data"), mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
        return run(queries, keys, temperature, split)

    arguments = queries, keys, np.float32(0.3)
    found = gradients_of(sharded)(*arguments)
    expected = gradients_of(partial(loss, split=split))(*arguments)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


BAD = [
    ({"keys": jnp.ones((3, 5))}, ValueError, "same features"),
    ({"keys": jnp.ones((4, 2))}, ValueError, "as many keys as queries"),
    ({"keys": jnp.ones((2, 2)), "symmetric": False}, ValueError, "at least as many keys"),
    ({"queries": jnp.ones(3)}, ValueError, r"queries must have shape \(batch, features\)"),
    ({"queries": jnp.ones((3, 2), int)}, TypeError, "queries must have a floating dtype"),
    ({"temperature": 0.0}, ValueError, "temperature must be a finite number, above 0"),
    ({"query_ids": jnp.arange(3)}, ValueError, "come together"),
    ({"query_ids": jnp.arange(4), "key_ids": jnp.arange(3)}, ValueError, "query_ids must have one id per row"),
    ({"query_ids": jnp.ones(3), "key_ids": jnp.arange(3)}, TypeError, "integer dtype"),
    ({"where": jnp.ones(3)}, TypeError, "where must be boolean"),
    ({"where": jnp.ones(4, bool)}, ValueError, "where must have"),
    ({"symmetric": 1}, TypeError, "symmetric must be True or False"),
    ({"chunk_rows": 0}, ValueError, "chunk_rows must be at least 1"),
]


@pytest.mark.parametrize("change, error, message", BAD)
def test_bad_input(change, error, message):
    arguments = {"queries": jnp.ones((3, 2)), "keys": jnp.ones((3, 2)), "temperature": 0.1} | change
    with pytest.raises(error, match=message):
        crossent_jax.info_nce(arguments.pop("queries"), arguments.pop("keys"), **arguments)


def test_value_guards():
    queries, keys = drawn()
    bad = queries.copy()
    bad[1, 2] = np.nan
    for change, message in (
        ((bad, keys, jnp.float32(0.1)), r"queries\[1, 2\] is nan"),
        ((queries, keys, jnp.float32(-1.0)), "temperature is -1.0"),
    ):
        with pytest.raises(ValueError, match=message), crossent_jax.guards.values():
            crossent_jax.info_nce(change[0], change[1], temperature=change[2])
