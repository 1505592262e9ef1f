"""Plain rows on a CPU, relative to their label's logit: no maximum is taken, unless a row is far from its label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from crossent_jax._row import plain

from . import grid, oracle

ROWS, CLASSES = 64, 8 * 513  # eight parts of a row


def batch(dtype, case):
    gen = grid.rng("plain rows", dtype)
    z, labels = np.array(grid.logits(gen, ROWS, CLASSES, dtype)), grid.labels(gen, ROWS, CLASSES)
    z, labels = CASES[case](z, labels)
    return jnp.asarray(z), jnp.asarray(labels)


def of_row_3(values):
    """The logits of row 3 replaced by ``values(row, its label)``."""

    def change(z, labels):
        z[3] = values(z[3], labels[3])
        return z, labels

    return change


def at(row, index, value):
    row[index] = value
    return row


def without_label(z, labels):
    return z, np.where(np.arange(ROWS) % 5 == 0, -100, labels)


CASES = {
    "ordinary": lambda z, labels: (z, labels),
    "offset": lambda z, labels: (z + np.asarray(512, z.dtype), labels),
    "a loss of 60": of_row_3(lambda row, label: at(row, label, -60)),
    "a loss of 1e30": of_row_3(lambda row, label: at(row, label, -1e30)),
    "almost no loss": of_row_3(lambda row, label: at(row, label, 24)),
    "masked label": of_row_3(lambda row, label: at(row, label, -np.inf)),
    "masked label, all others at -300": of_row_3(lambda row, label: at(row - np.asarray(300, row.dtype), label, -np.inf)),
    "masked row": of_row_3(lambda row, label: np.full_like(row, -np.inf)),
    "not a number": of_row_3(lambda row, label: at(row, 7, np.nan)),
    "infinite": of_row_3(lambda row, label: at(row, 7, np.inf)),
    "no label": without_label,
    "no label, class 0 masked": lambda z, labels: without_label(np.where(np.arange(CLASSES) == 0, -np.inf, z), labels),
    "no label, class 0 far above": lambda z, labels: without_label(np.where(np.arange(CLASSES) == 0, 300, z), labels),
}


def losses(z, labels, implementation):
    return crossent_jax.cross_entropy(
        z, labels, ignore_index=-100, z_loss=1e-3, reduction="none", implementation=implementation
    )


def value(z, labels, implementation="xla"):
    return losses(z, labels, implementation)


def value_and_gradient(z, labels, implementation="xla"):
    loss, pull = jax.vjp(lambda z: losses(z, labels, implementation), z)
    return loss, *pull(jnp.linspace(0.5, 1.5, len(loss), dtype=loss.dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_of_row(dtype, one_device):
    """Values against 64 bits, what is no number and gradients against JAX's own of the definition."""
    programs = [jax.jit(function) for function in (value, value_and_gradient)]
    definition = jax.jit(lambda z, labels: value_and_gradient(z, labels, "reference"))
    for case in CASES:
        z, labels = batch(dtype, case)
        expected, expected_gradient = definition(z, labels)
        alone, (loss, gradient) = (program(z, labels) for program in programs)
        options = {"ignore_index": -100, "z_loss": 1e-3, "reduction": "none", "wide_dtype": np.float64}
        with np.errstate(all="ignore"):
            exact = oracle.exact_loss(np.asarray(z, np.float32), labels, **options)
        finite = np.isfinite(exact) & np.isfinite(np.asarray(expected))
        for ours in (alone, loss):
            np.testing.assert_array_equal(np.asarray(ours)[~finite], np.asarray(expected)[~finite], err_msg=case)
            slack = oracle.loss_slack(exact)[finite]
            assert np.all(np.abs(np.asarray(ours) - exact)[finite] <= slack), case
        rtol = 4e-6 if dtype == "float32" else 2**-7
        np.testing.assert_allclose(np.float32(gradient), np.float32(expected_gradient), rtol=rtol, atol=1e-9, err_msg=case)


@pytest.mark.parametrize("function", [value, value_and_gradient])
def test_the_maximum_is_taken_in_the_loop_alone(function, one_device):
    z, labels = batch("float32", "ordinary")
    text = jax.jit(function).lower(z, labels).as_text()
    of_parts_and_of_the_row = 1 + (plain.parts_of_a_row(z) > 1)  # jax 0.7.2 takes rows whole
    assert text.count("applies stablehlo.maximum across dimensions") == of_parts_and_of_the_row
    assert text.index("stablehlo.while") < text.index("applies stablehlo.maximum across dimensions")
    assert text.count("stablehlo.while") == 1


def test_a_batch_of_batches_of_which_one_is_far(one_device):
    batches = [batch("float32", case) for case in ("ordinary", "a loss of 60", "no label")]
    together = jax.jit(jax.vmap(value_and_gradient))(*map(jnp.stack, zip(*batches, strict=True)))
    one = jax.jit(value_and_gradient)
    for i, given in enumerate(batches):
        for ours, expected in zip(together, one(*given), strict=True):
            np.testing.assert_allclose(ours[i], expected, rtol=4e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["ordinary", "a loss of 60"])
def test_gradient_of_a_gradient(dtype, case, one_device):
    z, labels = batch(dtype, case)

    def squares(z, implementation):
        gradient = jax.grad(lambda z: jnp.sum(losses(z, labels, implementation)))(z).astype(jnp.float32)
        return jnp.sum(jnp.linspace(1, 2, CLASSES)[None] * gradient**2)

    ours, expected = (np.float32(jax.jit(jax.grad(squares), static_argnums=1)(z, name)) for name in ("xla", "reference"))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours, expected, atol=8 * float(jnp.finfo(dtype).eps) * scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear(dtype, one_device):
    """Three chunks; hidden states so large that a row of the second is far from its label."""
    gen = grid.rng("plain linear", dtype)
    hidden = gen.standard_normal((150, 24)).astype(np.float32)
    hidden[70] *= 100
    hidden, head = jnp.asarray(hidden, dtype), jnp.asarray(gen.standard_normal((24, 4104)), dtype)
    labels = jnp.asarray(grid.labels(gen, 150, 4104))

    def loss(hidden, head, implementation="xla"):
        return crossent_jax.linear_cross_entropy(
            hidden, head, labels, chunk_rows=64, reduction="sum", implementation=implementation
        )

    expected, gradients = jax.jit(jax.value_and_grad(lambda *given: loss(*given, "reference"), (0, 1)))(hidden, head)
    assert float(jax.jit(loss)(hidden, head)) == pytest.approx(float(expected), rel=1e-5)
    ours, ours_gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head)
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)
    for got, wanted in zip(ours_gradients, gradients, strict=True):
        wanted = np.float32(wanted)
        scale = np.abs(wanted).max(-1, keepdims=True)
        tolerance = (1e-5 if dtype == "float32" else 2**-6) * scale
        assert np.all(np.abs(np.float32(got) - wanted) <= tolerance)


def far_rows(case):
    """Rows of one loss: 0 but at the label, so that the sum of exponentials is known."""
    nll = {"within": 41.5, "beyond": 43.9}[case]
    z = jnp.zeros((64, 1024)).at[:, 0].set(np.log(1023.0) - nll)
    return z, jnp.zeros(64, int)


@pytest.mark.parametrize("case", ["within", "beyond"])
def test_second_derivatives_of_far_rows(case, one_device):
    """The inverse of a sum is squared there, and 2**-128 is 0 to XLA's CPU backend."""
    z, labels = far_rows(case)
    t = jnp.broadcast_to(jnp.arange(1024.0), (64, 1024))

    def product(z, implementation):
        def loss(z):
            return crossent_jax.cross_entropy(z, labels, reduction="sum", implementation=implementation)

        return jax.grad(lambda z: jnp.vdot(jax.grad(loss)(z), t))(z)[0]

    ours, expected = (jax.jit(product, static_argnums=1)(z, name) for name in ("xla", "reference"))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("classes", [16, 70001])
def test_linear_without_rows(classes, one_device):
    hidden, head, labels = jnp.ones((0, 4)), jnp.ones((4, classes)), jnp.zeros(0, int)
    value, gradient = jax.value_and_grad(crossent_jax.linear_cross_entropy, 1)(hidden, head, labels)
    assert value == 0 and gradient.shape == head.shape and not np.any(gradient)
    assert crossent_jax.linear_token_log_probs(hidden, head, labels).shape == (0,)


@pytest.mark.parametrize("split", ["head", "labels", "hidden"])
def test_linear_in_a_mesh_of_one_device(split, one_device):
    """What varies over the mesh is any of the arrays, and all of the chunk then does."""
    gen = grid.rng("mesh of one", split)
    hidden, head = jnp.asarray(gen.standard_normal((24, 4)), jnp.float32), jnp.ones((4, 16))
    labels = jnp.asarray(grid.labels(gen, 24, 16))
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.P("x") if split != "head" else jax.P()
    specs = jax.P("x") if split == "hidden" else jax.P(), jax.P(None, "x") if split == "head" else jax.P(), rows
    axis_name = "x" if split == "head" else None

    def local(hidden, head, labels):
        total = crossent_jax.linear_cross_entropy(hidden, head, labels, reduction="sum", axis_name=axis_name)
        return total if split == "head" else jax.lax.psum(total, "x")

    mapped = jax.jit(jax.value_and_grad(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=jax.P())))
    value, gradient = mapped(hidden, head, labels)
    whole = jax.value_and_grad(lambda hidden: crossent_jax.linear_cross_entropy(hidden, head, labels, reduction="sum"))
    expected, expected_gradient = whole(hidden)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
