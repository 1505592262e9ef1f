"""What the compilers of TPU v5e, TPU v6e and H100 make of the losses: no copy of given logits, the label's logit by a
compare on TPU and by a gather on GPU, one chunk of logits where they are a product, one array of them for a pair, and no
matrix of the batch. The leg ``aot`` of environments.py has the compilers."""

import jax
import jax.numpy as jnp
import pytest

import crossent_jax
from benchmarks.chips import TESTED as CHIPS
from benchmarks.chips import compile_for, missing_compiler

from .test_linear_memory import allowed_bytes, shapes_and_dtypes, value_and_gradient

N, V = 4096, 50257


def compiled(chip, function, dtype):
    return compiled_for(chip, function, ((N, V), dtype), ((N,), jnp.int32))


def compiled_for(chip, function, *arguments):
    package = missing_compiler(chip)
    if package:
        pytest.skip(f"compiling for {chip} needs the package {package}: `python -m tests.environments aot` installs it")
    return compile_for(chip, function, *arguments)


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


LINEAR = [(8192, 2048, 131072), (16384, 1024, 131072), (4096, 4096, 128256), (4096, 2304, 256000)]
ODD = (2048, 1024, 50257)  # on a GPU XLA pads copies of operands for cuBLAS, whatever the loss: 1.6 chunks instead of 1.2


@pytest.mark.parametrize("chip, shape", [(chip, s) for chip in CHIPS for s in LINEAR + [ODD] * (chip != "h100")], ids=str)
def test_a_linear_loss_holds_one_chunk_of_logits(chip, shape):
    program = compiled_for(chip, value_and_gradient(), *shapes_and_dtypes(*shape, "bfloat16"))
    assert program.memory_analysis().temp_size_in_bytes <= allowed_bytes(*shape)


@pytest.mark.parametrize("chip", CHIPS)
def test_a_linear_loss_takes_a_tenth_of_the_naive_formula(chip):
    """Which holds the logits in float32 at the least (8 GiB here; TPU v5e cannot even compile it)."""
    n, d, v = 16384, 1024, 131072
    program = compiled_for(chip, value_and_gradient(), *shapes_and_dtypes(n, d, v, "bfloat16"))
    assert program.memory_analysis().temp_size_in_bytes <= 4 * n * v / 10


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_divergence_holds_one_array_of_logits_on_gpu_and_none_on_tpu(chip, dtype):
    pair = ((N // 2, V), dtype)
    program = compiled_for(chip, jax.value_and_grad(crossent_jax.kl_divergence, (0, 1)), pair, pair)
    one = 4 * (N // 2) * V if chip == "h100" else 0
    assert program.memory_analysis().temp_size_in_bytes <= one + 64 * N + 4 * 2**20


@pytest.mark.parametrize("chip", CHIPS)
def test_distillation_holds_little_beside_the_gradient(chip):
    """A tenth of the formula's two float32 arrays of logits."""
    n, d, v = 8192, 1024, 131072
    vectors, heads = ((n, d), "bfloat16"), ((d, v), "bfloat16")

    def loss(hidden, head, teacher, teacher_head):
        return crossent_jax.linear_divergence(
            hidden, head, teacher_hidden=teacher, teacher_head=teacher_head, stop_teacher_gradient=True
        )

    program = compiled_for(chip, jax.value_and_grad(loss, (0, 1)), vectors, heads, vectors, heads)
    assert program.memory_analysis().temp_size_in_bytes <= 2 * 4 * n * v / 10


@pytest.mark.parametrize("chip", CHIPS)
def test_info_nce_takes_a_twentieth_of_one_matrix_of_the_batch(chip):
    vectors = ((16384, 512), "float32")
    loss = jax.value_and_grad(lambda q, k, t: crossent_jax.info_nce(q, k, temperature=t), (0, 1, 2))
    program = compiled_for(chip, loss, vectors, vectors, ((), "float32"))
    assert program.memory_analysis().temp_size_in_bytes <= 4 * 16384**2 / 20
