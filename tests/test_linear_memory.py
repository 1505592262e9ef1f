"""Value and gradient of a linear loss hold the head's float32 gradient, one chunk of logits, and little else.

Compiled, not run: ``temporary_bytes`` are the compiler's. ``test_aot.py`` has the same for TPUs and an H100."""

import math

import jax
import jax.numpy as jnp
import pytest

import crossent_jax
from crossent_jax._linear.cuts import Limits, Sizes, cut_rows

pytestmark = pytest.mark.optimized

SHAPES = ((2048, 64, 16384), (4096, 256, 65536), (1021, 96, 32771), (16384, 1024, 131072))
OPTIONS = {"plain": {}, "options": {"label_smoothing": 0.1, "z_loss": 1e-4, "ignore_index": 0, "softcap": 30.0}}


def shapes_and_dtypes(n, d, v, dtype):
    return ((n, d), dtype), ((d, v), dtype), ((n,), jnp.int32)


def temporary_bytes(function, arguments):
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arguments]
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def value_and_gradient(**options):
    return jax.value_and_grad(lambda x, w, y: crossent_jax.linear_cross_entropy(x, w, y, **options), (0, 1))


def naive(hidden, head, labels):
    logits = jnp.dot(hidden, head, preferred_element_type=jnp.float32)
    return -jnp.log(jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], 1)).mean()


def cut_on_cpu(batch, d, v, chunk_rows=None):
    return cut_rows(batch, Sizes(math.prod(batch), d, v), Limits(chunk_rows), True)


def allowed_bytes(n, d, v):
    """The head's float32 gradient, 1.2 chunks of float32 logits, and 64 bytes a row."""
    return 4 * d * v + 1.2 * 4 * cut_on_cpu((n,), d, v).rows * v + 64 * n


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_chunk_of_logits_beside_the_gradient(shape, dtype, options):
    if jax.__version_info__ < (0, 8) and dtype == "bfloat16":
        pytest.skip("XLA's CPU backend of jax 0.7 multiplies and reduces float32 copies of bfloat16 arrays")
    program = value_and_gradient(**OPTIONS[options])
    assert temporary_bytes(program, shapes_and_dtypes(*shape, dtype)) <= allowed_bytes(*shape)


@pytest.mark.parametrize("batch", [(4096,), (7, 585), (64, 64), (4096, 1), (1, 4096), (2, 3, 683)], ids=str)
def test_at_most_half_of_the_rows_at_once(batch):
    rows = 1
    for size in batch:
        rows *= size
    assert 1 < cut_on_cpu(batch, 16384, 1000).rows <= rows / 2


@pytest.mark.parametrize("chunk_rows", [1, 3, 64, 100, 5000])
def test_chunk_rows_is_the_most(chunk_rows):
    for batch in [(4096,), (7, 585), (4096, 1), (1,), ()]:
        assert cut_on_cpu(batch, 16, 1000, chunk_rows).rows <= chunk_rows


def test_a_tenth_of_the_naive_formula():
    shape = shapes_and_dtypes(16384, 1024, 131072, "bfloat16")
    ours, theirs = temporary_bytes(value_and_gradient(), shape), temporary_bytes(jax.value_and_grad(naive, (0, 1)), shape)
    assert ours <= theirs / 10


def test_per_token_losses_hold_one_chunk_of_logits_too():
    def total(x, w, y):
        return crossent_jax.linear_cross_entropy(x, w, y, reduction="none").sum()

    shape = (4096, 256, 65536)
    assert temporary_bytes(jax.value_and_grad(total, (0, 1)), shapes_and_dtypes(*shape, "float32")) <= allowed_bytes(*shape)


def test_evaluation_holds_less_than_two_chunks_of_logits():
    n, d, v = 4096, 256, 65536
    bytes_ = temporary_bytes(crossent_jax.linear_cross_entropy, shapes_and_dtypes(n, d, v, "float32"))
    assert bytes_ <= 1.2 * 4 * cut_on_cpu((n,), d, v).rows * v + 64 * n
