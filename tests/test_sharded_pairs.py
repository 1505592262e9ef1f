"""``crossent_jax.sharded`` of contrastive losses: those of whole arrays, and fewer bytes than a naive formula moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import crossent_jax
from benchmarks.collectives import result_bytes

from . import grid

N, D, DEVICES = 32, 12, 8
GEN = grid.rng("sharded pairs")
QUERIES, KEYS = (jnp.asarray(GEN.standard_normal((N, D)), jnp.float32) for _ in range(2))
SOME = {"where": np.arange(N) % 6 != 2, "chunk_rows": 3}
NCE, SIGMOID = crossent_jax.info_nce, crossent_jax.sigmoid_contrastive
CASES = {
    "pairs": (NCE, N, SOME, "Auto"),
    "ids": (NCE, N, {"query_ids": np.arange(N) % 5, "key_ids": jnp.arange(N) % 7}, "Explicit"),
    "more keys than queries": (NCE, N // 2, {"symmetric": False}, "Auto"),
    "yes or no": (SIGMOID, N, {"bias": jnp.float32(-2.0)}, "Auto"),
}


def mesh_of(kind="Auto"):
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType[kind],))


def split_over(mesh, *arrays):
    return [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in arrays]


def both_split(function):
    return crossent_jax.sharded(function, hidden=P("data"), head=P("data"))


def gradients_of(loss, **options):
    return grid.quick(jax.value_and_grad(lambda q, k, t: loss(q, k, temperature=t, **options), (0, 1, 2)))


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_whole_arrays(case):
    function, queries, options, kind = CASES[case]
    arrays, mesh, temperature = (QUERIES[:queries], KEYS), mesh_of(kind), jnp.float32(0.3)
    with jax.set_mesh(mesh):
        found = gradients_of(both_split(function), **options)(*split_over(mesh, *arrays), temperature)
    right = gradients_of(function, **options)(*arrays, temperature)
    for ours, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


def naive(queries, keys):
    z = queries @ keys.T / 0.3
    return (jnp.mean(jax.nn.logsumexp(z, 1)) + jnp.mean(jax.nn.logsumexp(z, 0))) / 2 - jnp.mean(jnp.diagonal(z))


def test_bytes_on_the_wire():
    """The keys, and their gradient, once, and five numbers a key, however many chunks; little more than half the bytes of
    the naive formula, for which every device of ``jax.jit`` has the whole keys' gradient."""
    mesh, (n, d) = mesh_of(), (256, 64)
    place = NamedSharding(mesh, P("data"))
    arrays = [jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=place)] * 2

    def moved(loss):
        with jax.set_mesh(mesh):
            program = (
                grid.quick(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, (place, place))).lower(*arrays).compile()
            )
        return result_bytes(program.as_text())

    ours = both_split(NCE)
    few, many = (moved(lambda q, k, rows=rows: ours(q, k, temperature=0.3, chunk_rows=rows)) for rows in (32, 5))
    assert few == many <= 4 * n * d * (1 + 1 / DEVICES) + 20 * n + 64
    assert few <= 0.6 * moved(naive)


PAIRS = QUERIES, KEYS
REFUSED = {  # arguments, options, specs of queries and keys, words
    "a batch of 15": (
        (QUERIES[:15], KEYS[:15]),
        {},
        {},
        r"queries of shape \(15, 12\) .* 8 devices of 'data' .* got 15. Pad queries",
    ),
    "keys that are not split": (PAIRS, {}, {"head": P()}, "one mesh axis must split the batch of both queries"),
    "features": (PAIRS, {}, {"hidden": P(None, "data"), "head": P(None, "data")}, "and none their features"),
    "an unknown axis": (PAIRS, {}, {"hidden": P("rows")}, "names 'rows', which must be an axis of the ambient mesh"),
    "labels": (PAIRS, {}, {"labels": P("data")}, "info_nce has no labels"),
    "fewer keys": ((QUERIES, KEYS[:16]), {}, {}, "as many keys as queries, pair by pair; got 16 keys for 32 queries"),
    "other features": ((QUERIES, KEYS[:, :5]), {}, {}, r"same features; got shapes \(32, 12\) and \(32, 5\)"),
    "ids of one side": (PAIRS, {"query_ids": jnp.arange(N)}, {}, "come together"),
    "an axis_name": (PAIRS, {"axis_name": "data"}, {}, "axis_name follows from the specs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    arrays, options, specs, words = REFUSED[case]
    with jax.set_mesh(mesh_of()), pytest.raises(ValueError, match=words):
        loss = crossent_jax.sharded(NCE, **{"hidden": P("data"), "head": P("data")} | specs)
        jax.eval_shape(lambda *pairs: loss(*pairs, temperature=0.3, **options), *arrays)
