"""The programs that losses of given logits are on a GPU, run here: tests of ``test_divergences.py``, ``test_values.py`` and
``test_option_pairs.py`` with the branch of a GPU. ``test_aot.py`` compiles them for the chip itself."""

import jax
import jax.numpy as jnp
import pytest

import crossent_jax
from crossent_jax._jax import readings

from . import grid, test_values
from .test_divergences import (  # noqa: F401
    test_a_users_divergence_with_a_closure_over_an_array,
    test_beta_is_differentiable,
    test_class_mask_is_a_smaller_vocabulary,
    test_float64_and_mixed_dtypes,
    test_hard_and_soft_targets_in_one_pass,
    test_identical_logits_have_exactly_no_divergence_and_no_gradient,
    test_nan_and_inf_show_in_their_row_alone,
    test_renyi_at_every_distance,
    test_rows_weights_and_reductions,
    test_rows_without_any_class,
    test_second_derivatives,
    test_small_kl_keeps_its_digits,
    test_student_without_a_class_of_the_teacher,
    test_teacher_without_a_class,
    test_temperature_is_differentiable,
    test_transforms_agree,
    test_value_and_gradients,
)
from .test_option_pairs import test_random_combinations  # noqa: F401

BY_PLATFORM = readings._by_platform


@pytest.fixture(scope="module", autouse=True)
def on_a_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readings, "_by_platform", lambda of_gpu, of_others, *arguments, **_: of_gpu(*arguments))
        jax.clear_caches()
        yield
    jax.clear_caches()


@pytest.mark.parametrize("classes, dtype", [(10, dtype) for dtype in grid.DTYPES] + [(1000, "float32")])
def test_every_option_alone(classes, dtype):
    test_values.test_every_option_alone(classes, dtype)


def barriers():
    """In the program of a value and a gradient."""
    jax.clear_caches()
    logits = jax.ShapeDtypeStruct((4, 7), jnp.bfloat16)
    return jax.jit(jax.value_and_grad(crossent_jax.kl_divergence)).lower(logits, logits).as_text().count("barrier")


def test_a_gpu_alone_reads_again(monkeypatch):
    assert barriers() == 6  # two arrays, three times: sums of exponentials, of terms, the gradient
    monkeypatch.setattr(readings, "_by_platform", BY_PLATFORM)
    assert barriers() == 0
