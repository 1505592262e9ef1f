"""compat.t5x: its formula in float64, and every row of its table of differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossent_jax.compat.t5x import cross_entropy_with_logits

from . import grid
from .oracle import x64


def inputs(*shape, total=1.0, seed=0):
    gen = np.random.default_rng([seed, *shape])
    z, t = 2 * gen.normal(size=shape), total * gen.dirichlet(np.ones(shape[-1]), shape[:-1])
    return np.float32(z).astype(float), np.float32(t).astype(float)


def written_out(z, t, z_loss):
    """The definition, for autodiff in float64."""
    lse = jax.nn.logsumexp(z, axis=-1)
    return jnp.sum(t * (lse[..., None] - z), axis=-1) + z_loss * lse**2, z_loss * lse**2


TRUTH = grid.quick(written_out)
TRUE_GRADIENTS = grid.quick(jax.grad(lambda z, t, z_loss: written_out(z, t, z_loss)[0].sum(), (0, 1)))


@pytest.mark.parametrize("total", [1.0, 0.6])
@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.5])
@pytest.mark.parametrize("shape", [(3, 5, 17), (4, 7), (5,)])
def test_value_and_gradients(shape, z_loss, total):
    z, t = inputs(*shape, total=total)
    with x64(), jax.numpy_rank_promotion("allow"):
        z64, t64 = jnp.asarray(z), jnp.asarray(t)
        truth, truth_z = TRUTH(z64, t64, z_loss)
        gradients = TRUE_GRADIENTS(z64, t64, z_loss)
        loss64, total64 = cross_entropy_with_logits(z64, t64, z_loss)
    np.testing.assert_allclose(loss64, truth, rtol=1e-13)
    np.testing.assert_allclose(total64, truth_z, rtol=1e-13)
    z, t = jnp.asarray(z, jnp.float32), jnp.asarray(t, jnp.float32)
    loss, total_z = cross_entropy_with_logits(z, t, z_loss)
    assert loss.dtype == total_z.dtype == jnp.float32 and loss.shape == total_z.shape == shape[:-1]
    np.testing.assert_allclose(loss, truth, rtol=2e-6)
    np.testing.assert_allclose(total_z, truth_z, rtol=2e-6)
    ours = grid.quick(jax.grad(lambda z, t: cross_entropy_with_logits(z, t, z_loss)[0].sum(), (0, 1)))(z, t)
    for g, g64 in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(g, g64, rtol=0, atol=8 * 2**-23 * np.max(np.abs(g64)))


def test_z_loss_is_for_logging():
    z, t = (jnp.asarray(x, jnp.float32) for x in inputs(4, 7))
    assert not np.any(jax.grad(lambda z: cross_entropy_with_logits(z, t, 0.5)[1].sum())(z))


@pytest.mark.parametrize("implementation", [None, "reference"])
def test_a_schedule_compiles_once(implementation):
    z, t = (jnp.asarray(x, jnp.float32) for x in inputs(4, 7))
    step = jax.jit(lambda c: cross_entropy_with_logits(z, t, c, implementation=implementation))
    for c in (0.0, 0.1, 0.5):
        for traced, static in zip(step(jnp.float32(c)), cross_entropy_with_logits(z, t, c), strict=True):
            np.testing.assert_allclose(traced, static, rtol=1e-6)
    assert step._cache_size() == 1


def test_vmap_and_forward_mode():
    z, t = (jnp.asarray(x, jnp.float32) for x in inputs(3, 4, 7))
    mapped = jax.vmap(lambda z, t: cross_entropy_with_logits(z, t, 0.1))(z, t)
    for one, other in zip(mapped, cross_entropy_with_logits(z, t, 0.1), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)

    def total(z):
        return cross_entropy_with_logits(z, t, 0.1, implementation="reference")[0].sum()

    np.testing.assert_allclose(jax.jacfwd(total)(z), jax.grad(total)(z), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError):
        jax.jacfwd(lambda z: cross_entropy_with_logits(z, t, 0.1)[0].sum())(z)


# Each row of the module's table


def test_bfloat16_logits():
    z, t = (jnp.asarray(x, jnp.bfloat16) for x in inputs(4, 33))
    for half, wide in zip(
        cross_entropy_with_logits(z, t, 0.1),
        cross_entropy_with_logits(z.astype(jnp.float32), t.astype(jnp.float32), 0.1),
        strict=True,
    ):
        assert half.dtype == jnp.float32 and np.array_equal(half, wide)
    gradient = jax.grad(lambda z: cross_entropy_with_logits(z, t, 0.1)[0].sum())(z)
    assert gradient.dtype == jnp.bfloat16


def test_gradient_where_targets_do_not_sum_to_one():
    z, t = (jnp.asarray(x, jnp.float32) for x in inputs(4, 7, total=0.6))
    ours = jax.grad(lambda z: cross_entropy_with_logits(z, t, 0.5)[0].sum())(z)
    p, lse = jax.nn.softmax(z), jax.nn.logsumexp(z, axis=-1, keepdims=True)
    t5x = (1 + 2 * 0.5 * lse) * p - t  # its backward rule takes the targets' sum for 1
    np.testing.assert_allclose(ours, (t.sum(-1, keepdims=True) + 2 * 0.5 * lse) * p - t, rtol=1e-4, atol=1e-6)
    assert np.max(np.abs(ours - t5x)) > 0.1


def test_masked_logit_with_target_zero():
    z, t = (jnp.asarray(x, jnp.float32) for x in inputs(4, 7))
    t = t.at[0, 2].set(0.0)
    kept = jnp.array([0, 1, 3, 4, 5, 6])
    masked = z.at[0, 2].set(-jnp.inf)
    with jax.numpy_rank_promotion("allow"):
        assert np.isnan(written_out(masked, t, 0.1)[0][0])
    for ours, alone in zip(
        cross_entropy_with_logits(masked, t, 0.1), cross_entropy_with_logits(z[0, kept], t[0, kept], 0.1), strict=True
    ):
        np.testing.assert_allclose(ours[0], alone, rtol=1e-6)
    gradient = jax.grad(lambda z: cross_entropy_with_logits(z, t, 0.1)[0].sum())(masked)
    assert np.all(np.isfinite(gradient)) and gradient[0, 2] == 0


def test_gradient_of_the_coefficient():
    z, t = (jnp.asarray(x, jnp.float32) for x in inputs(4, 7))
    slope = jax.grad(lambda c: cross_entropy_with_logits(z, t, c)[0].sum())(0.3)
    np.testing.assert_allclose(slope, np.sum(jax.nn.logsumexp(z, axis=-1) ** 2), rtol=1e-6)


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda z: cross_entropy_with_logits(z, jnp.zeros(4, int)), TypeError),
        (lambda z: cross_entropy_with_logits(z, jnp.zeros((4, 1))), ValueError),
        (lambda z: cross_entropy_with_logits(z.astype(int), z), TypeError),
        (lambda z: cross_entropy_with_logits(z, z, -1.0), ValueError),
    ],
)
def test_errors(call, error):
    with pytest.raises(error):
        call(jnp.zeros((4, 7)))
