"""Values and gradients of every option alone, at every dtype and class count, against the exact formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax

from . import grid, oracle

pytestmark = pytest.mark.optimized

ROWS = 3
IGNORED = grid.STATIC["ignore_index"][1]
CAP = grid.STATIC["softcap"][1]


def row_losses_and_gradients(backend, dtype, z, label, table):
    """``{setting: (row losses, gradients)}`` from one compilation: the neutral table under vmap, the plain loss, the cap."""

    def rows(z, labels, **options):
        out = crossent_jax.cross_entropy(z, labels, reduction="none", implementation=backend, **options)
        return jnp.sum(out), out

    def everything(z, label, stacked):
        grad = jax.value_and_grad(rows, has_aux=True)
        alone = jax.vmap(lambda s: grad(z, s.pop("labels"), ignore_index=IGNORED, **s))(stacked)
        return alone, grad(z, label), grad(z, label, softcap=CAP)

    cast = jax.tree.map(lambda x: x.astype(np.float64) if dtype == "float64" and x.dtype.kind == "f" else x, table)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *cast.values())
    shipped = backend == "xla" and dtype in ("float32", "bfloat16") and z.shape[1] > 10
    compiled = jax.jit(everything, compiler_options=None if shipped else grid.QUICK_COMPILE)
    alone, plain, capped = jax.tree.map(np.asarray, compiled(z, label, stacked))
    out = {name: jax.tree.map(lambda x, i=i: x[i], alone) for i, name in enumerate(cast)} | {
        "plain": plain,
        "softcap": capped,
    }
    return {name: (rows, gradient) for name, ((_, rows), gradient) in out.items()}


def exact_rows_and_gradients(dtype, z, name, setting):
    """``(row losses, exact gradient, naive gradient)``; with many classes no row is so confident that the naive formula's
    own error matters, and the slack goes without it."""
    options = {k: v for k, v in setting.items() if k != "labels"}
    options |= {"ignore_index": IGNORED, "softcap": CAP if name == "softcap" else None, "reduction": "none"}
    labels = setting["labels"]
    rows = oracle.exact_loss(z, labels, wide_dtype=oracle.value_dtype(dtype), **options)
    gradient, naive = oracle.gradients(z, labels, **options)["z"], None
    if z.shape[1] <= 10 and dtype == "float64":
        naive = gradient
        gradient = oracle.complex_step_gradient(lambda x: oracle.exact_loss_of_complex(x, labels, **options).sum(), z)
    elif z.shape[1] <= 10:
        naive = oracle.gradients(z, labels, dtype="float32", **options)["z"]
    return rows.astype(np.float64), gradient, naive


def assert_rows_and_gradients(dtype, ours, exact, name):
    (rows, gradient), (exact_rows, exact_gradient, naive_gradient) = ours, exact
    assert gradient.dtype == grid.numpy_dtype(dtype)
    assert rows.dtype == (np.float64 if dtype == "float64" else np.float32)
    error, slack = np.abs(rows - exact_rows), oracle.loss_slack(exact_rows, dtype)
    assert np.all(error <= slack), f"{name}: loss off by {error}, allowed {slack}"
    if name.endswith("plain"):
        assert np.all(error <= 1e-6 * np.maximum(1, exact_rows)), f"{name}: relative error {error / exact_rows}"
    error = np.abs(gradient - exact_gradient).astype(np.float64)
    slack = oracle.gradient_slack(exact_gradient, dtype, naive_gradient)
    assert np.all(error <= slack), f"{name}: gradient off by {np.max(error / slack)} times the slack"


@pytest.mark.parametrize("classes, dtype", grid.SIZES)
def test_every_option_alone(classes, dtype):
    """On every backend where every dtype is tried, on the default one elsewhere."""
    gen = grid.rng("values", classes, dtype)
    z, label = grid.logits(gen, ROWS, classes, dtype), grid.labels(gen, ROWS, classes)
    table = grid.alone_table(gen, ROWS, classes, label)
    everything = table | {"plain": table["none"], "softcap": table["none"]}
    exact = {name: exact_rows_and_gradients(dtype, z, name, s) for name, s in everything.items()}
    with oracle.x64() if dtype == "float64" else oracle.x32():
        backends = grid.BACKENDS if classes in grid.CLASSES_OF_EVERY_DTYPE else grid.BACKENDS[:1]
        results = {b: row_losses_and_gradients(b, dtype, z, label, table) for b in backends}
    for backend, ours in results.items():
        for name in everything:
            assert_rows_and_gradients(dtype, ours[name], exact[name], f"{backend} {name}")


OFFSET = 1000.0


@pytest.mark.parametrize("backend", grid.BACKENDS)
def test_confident_rows_at_a_large_offset(backend):
    """The label leads by 2 to 60 at an offset of 1000: the nll, down to 1e-26, is right to 1e-6."""
    gen, classes = grid.rng("confident"), 129
    z, label = grid.logits(gen, 30, classes, scale=1.0), grid.labels(gen, 30, classes)
    z[np.arange(30), label] += np.linspace(2, 60, 30)
    z = (z + OFFSET).astype(np.float32)
    ours = crossent_jax.cross_entropy(z, label, reduction="none", implementation=backend)
    exact = oracle.exact_loss(z, label, reduction="none").astype(float)
    np.testing.assert_array_less(np.abs(np.asarray(ours) - exact), 1e-6)


@pytest.mark.parametrize("backend", grid.BACKENDS)
@pytest.mark.parametrize("classes", (7, 50257))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_statistics_do_not_feel_an_offset(dtype, classes, backend):
    """1e-6 relative (below 1: absolute; the probability: of its logarithm) for all but lse, which loses the last bit of
    the offset."""
    gen = grid.rng("offset", classes)
    z, label = grid.logits(gen, ROWS, classes, dtype, offset=OFFSET), grid.labels(gen, ROWS, classes)
    ours = crossent_jax.row_stats(z, label, implementation=backend)
    exact = {name: value.astype(float) for name, value in oracle.exact_statistics(z, label).items()}
    for name in ("nll", "ce_prior", "entropy"):
        error = np.abs(np.asarray(getattr(ours, name)) - exact[name])
        assert np.all(error <= 1e-6 * np.maximum(1, exact[name])), f"{name}: error {error} of {exact[name]}"
    error = np.abs(np.asarray(ours.target_probability) / exact["target_probability"] - 1)
    assert np.all(error <= 1e-6 * np.maximum(1, exact["nll"])), f"target_probability: relative error {error}"
    np.testing.assert_allclose(ours.lse, exact["lse"], rtol=1.2e-7)
    np.testing.assert_array_equal(ours.argmax, np.argmax(z.astype(float), -1))
    np.testing.assert_array_equal(ours.target_mass, 1)
