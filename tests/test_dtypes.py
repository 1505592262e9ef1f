"""Every floating dtype that JAX has is either right or refused by name."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import crossent_jax

LOGITS = np.float64([[1, 2, 3, 0.5], [0, 1, 0, 4]])  # exact in every dtype
LABELS, MASK = np.array([0, 3]), np.array([True, True, False, True])
HIDDEN, HEAD = np.eye(2), LOGITS
RIGHT = (
    *("float16", "bfloat16", "float32", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
)
REFUSED = ("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e8m0fnu")
CALLS = {
    "cross_entropy": lambda z, x, w: crossent_jax.cross_entropy(z, LABELS, class_mask=MASK, label_smoothing=0.1),
    "linear_cross_entropy": lambda z, x, w: crossent_jax.linear_cross_entropy(x, w, LABELS, class_mask=MASK),
    "kl_divergence": lambda z, x, w: crossent_jax.kl_divergence(z, z[::-1], class_mask=MASK),
    "info_nce": lambda z, x, w: crossent_jax.info_nce(z, z, temperature=2.0),
    "argmax": lambda z, x, w: jnp.sum(crossent_jax.row_stats(z, LABELS, class_mask=MASK).argmax.astype(jnp.float32)),
}


def as_dtype(name, *arrays):
    dtype = getattr(ml_dtypes, name, None) or np.dtype(name)
    return tuple(x.astype(np.float32).astype(dtype) for x in arrays)


def test_every_floating_dtype_of_jax_is_in_one_of_the_tables():
    names = {name for name in dir(jnp) if name.startswith(("float", "bfloat"))} - {"float_", "floating", "float_power"}
    assert names - {"float64"} <= {*RIGHT, *REFUSED}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", [name for name in RIGHT if hasattr(jnp, name)])
def test_value_is_that_of_float32_and_gradients_have_the_dtype(name, call):
    """The numbers are exact in every dtype, so is the loss; a masked class is -inf even where a dtype has no infinity."""
    wide, narrow = (as_dtype(dtype, LOGITS, HIDDEN, HEAD) for dtype in ("float32", name))
    run = jax.jit(jax.value_and_grad(CALLS[call], (0, 1, 2)))
    value, gradients = run(*narrow)
    np.testing.assert_allclose(value, run(*wide)[0], rtol=1e-6)
    assert value.dtype == jnp.float32 and all(gradient.dtype == narrow[0].dtype for gradient in gradients)
    assert all(np.all(np.isfinite(np.asarray(gradient, np.float32))) for gradient in gradients)


@pytest.mark.parametrize("name", [name for name in REFUSED if hasattr(ml_dtypes, name)])
def test_scales_and_packed_numbers_are_refused_by_name(name):
    (z,) = as_dtype(name, LOGITS + 1)
    for argument, call in (
        ("logits", lambda: crossent_jax.cross_entropy(z, LABELS)),
        ("head", lambda: crossent_jax.linear_cross_entropy(np.float32(HIDDEN), z, LABELS)),
    ):
        with pytest.raises(TypeError, match=f"{argument} must have a floating dtype of 8 bits .*{name}.* Dequantise"):
            call()


@pytest.mark.parametrize("name", ("float8_e4m3fn", "int8"))
def test_a_quantised_head_is_refused_with_what_to_do(name):
    dtype = getattr(ml_dtypes, name, None) or np.dtype(name)
    with pytest.raises(TypeError, match=rf"head.*{name}.*equantise it first: head.astype\(hidden.dtype\), times its scale"):
        crossent_jax.linear_cross_entropy(np.float32(HIDDEN), HEAD.astype(np.float32).astype(dtype), LABELS)


def test_without_jit_numbers_are_options():
    """``jax.disable_jit()`` leaves Python numbers as they are."""
    z, options = jnp.float32(LOGITS), {"label_smoothing": 0.1, "z_loss": 0.01, "focal_gamma": 2.0, "entropy_weight": 0.1}
    options |= {"poly_epsilon": 0.5, "temperature": 1.5}

    def losses(z):
        hard = crossent_jax.cross_entropy(z, LABELS, **options)
        return hard + crossent_jax.linear_cross_entropy(jnp.float32(HIDDEN), z, LABELS, **options)

    expected = jax.value_and_grad(losses)(z)
    with jax.disable_jit():
        found = jax.value_and_grad(losses)(z)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)
