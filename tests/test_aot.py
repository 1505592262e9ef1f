"""What the compilers of TPU v5e, TPU v6e and H100 make of the losses of logits: no copy of the logits, and the label's logit
by a compare on TPU and by a gather on GPU. The leg ``aot`` of environments.py has the compilers."""

import jax
import jax.numpy as jnp
import pytest

import crossent_jax

from .chips import CHIPS, compile_for, missing_compiler

N, V = 4096, 50257


def compiled(chip, function, dtype):
    package = missing_compiler(chip)
    if package:
        pytest.skip(f"compiling for {chip} needs the package {package}: `tests/environments.py aot` installs it")
    return compile_for(chip, function, ((N, V), dtype), ((N,), jnp.int32))


def with_options(logits, labels):
    return crossent_jax.cross_entropy(logits, labels, label_smoothing=0.1, z_loss=1e-4)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient_need_little_beyond_the_gradient(chip, dtype):
    program = compiled(chip, jax.value_and_grad(crossent_jax.cross_entropy), dtype)
    assert program.memory_analysis().temp_size_in_bytes <= 64 * N + 4 * 2**20


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_options_hold_no_copy_of_the_logits(chip, dtype):
    program = compiled(chip, jax.value_and_grad(with_options), dtype)
    assert program.memory_analysis().temp_size_in_bytes <= N * V * jnp.dtype(dtype).itemsize // 50


@pytest.mark.parametrize("chip", CHIPS)
def test_trap_7_the_label_logit_is_gathered_on_gpu_and_compared_on_tpu(chip):
    program = compiled(chip, crossent_jax.cross_entropy, "bfloat16")
    assert (" gather(" in program.as_text()) == (chip == "h100")
    assert program.memory_analysis().temp_size_in_bytes <= 64 * N + 4 * 2**20
