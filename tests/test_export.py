"""``jax.export`` of losses for any number of rows: the exported program gives what the function itself gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import crossent_jax

from . import grid

FEATURES, LONG = 16, 50257
ROWS = {"one": 1, "less than a chunk": 63, "a chunk": 64, "no whole number of them": 197}


def linear(**options):
    return lambda hidden, head, labels: crossent_jax.linear_cross_entropy(hidden, head, labels, chunk_rows=64, **options)


def linear_divergence(hidden, head, teacher):
    return crossent_jax.linear_divergence(hidden, head, teacher_logits=teacher, chunk_rows=64)


def info_nce(queries, keys, ids):
    return crossent_jax.info_nce(queries, keys, temperature=0.5, query_ids=ids, key_ids=ids, chunk_rows=64)


def sigmoid_contrastive(queries, keys):
    return crossent_jax.sigmoid_contrastive(queries, keys, temperature=0.5)


LOSSES = {  # with the shapes of the arguments, of which n is any number
    "cross_entropy": (crossent_jax.cross_entropy, f"n,{LONG}", "n"),
    "soft_cross_entropy": (crossent_jax.soft_cross_entropy, f"n,{LONG}", f"n,{LONG}"),
    "row_stats": (lambda z, y: crossent_jax.row_stats(z, y).entropy, f"n,{LONG}", "n"),
    "binary_cross_entropy": (crossent_jax.binary_cross_entropy, "n,7", "n,7"),
    "kl_divergence": (crossent_jax.kl_divergence, f"n,{LONG}", f"n,{LONG}"),
    "js_divergence": (crossent_jax.js_divergence, "n,10", "n,10"),
    "kl": (lambda p, q: crossent_jax.kl(p=jax.nn.softmax(p), q=jax.nn.softmax(q)), "n,7", "n,7"),
    "linear": (linear(), f"n,{FEATURES}", f"{FEATURES},{LONG}", "n"),
    "linear of small vocabulary": (linear(label_smoothing=0.1), f"n,{FEATURES}", f"{FEATURES},7", "n"),
    "linear of rows": (linear(reduction="none"), f"n,{FEATURES}", f"{FEATURES},70", "n"),
    "linear of sequences": (linear(shift=1), f"n,3,{FEATURES}", f"{FEATURES},70", "n,3"),
    "linear, default chunks": (crossent_jax.linear_cross_entropy, f"n,m,{FEATURES}", f"{FEATURES},70", "n,m"),
    "linear_divergence": (linear_divergence, f"n,{FEATURES}", f"{FEATURES},70", "n,70"),
    "info_nce": (info_nce, f"n,{FEATURES}", f"n,{FEATURES}", "n"),
    "sigmoid_contrastive": (sigmoid_contrastive, f"n,{FEATURES}", f"n,{FEATURES}"),
}
COMPUTED = ["linear of rows", "linear of sequences", "linear_divergence", "info_nce"]


def with_gradients(name):
    function = LOSSES[name][0]

    def value(*arguments):
        return jnp.sum(function(*arguments)).astype(jnp.float32)

    floating = [i for i, shape in enumerate(LOSSES[name][1:]) if is_floating(shape)]
    return jax.jit(jax.value_and_grad(value, floating), compiler_options=grid.QUICK_COMPILE)


def is_floating(shape):
    return shape not in ("n", "n,3", "n,m")


def exported(name):
    scope = export.SymbolicScope()
    shapes = [export.symbolic_shape(shape, scope=scope) for shape in LOSSES[name][1:]]
    dtypes = [jnp.float32 if is_floating(shape) else jnp.int32 for shape in LOSSES[name][1:]]
    return export.export(with_gradients(name))(*map(jax.ShapeDtypeStruct, shapes, dtypes))


@pytest.mark.parametrize("name", LOSSES)
def test_any_number_of_rows_is_exported(name):
    value, *gradients = jax.tree.leaves(exported(name).out_avals)
    floating = [shape for shape in LOSSES[name][1:] if is_floating(shape)]
    assert value.shape == () and [",".join(map(str, g.shape)) for g in gradients] == floating


@pytest.mark.parametrize("name", COMPUTED)
def test_exported_programs_give_the_same(name):
    program, rng = exported(name), np.random.default_rng(0)
    for rows in ROWS.values():
        arguments = []
        for shape in LOSSES[name][1:]:
            numbers = [int(part.replace("n", str(rows))) for part in shape.split(",")]
            given = rng.normal(size=numbers) if is_floating(shape) else rng.integers(0, 7, numbers)
            arguments.append(given.astype(np.float32 if is_floating(shape) else np.int32))
        ours, right = program.call(*arguments), with_gradients(name)(*arguments)
        for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * max(1, np.abs(expected).max()))
