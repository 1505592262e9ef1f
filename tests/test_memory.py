"""Value and gradient hold little beyond the gradient itself, and nothing the size of the logits: every option, pairs of
distributions, and binary decisions, in every floating dtype."""

import jax
import jax.numpy as jnp
import pytest

import crossent_jax
from benchmarks import memory
from benchmarks.shapes import Shape
from crossent_jax._jax import row_blocks

pytestmark = pytest.mark.optimized

LARGE = Shape(1021, 16381)  # 64 MiB in float32: above the size from which rows go through in blocks


# Of `python -m benchmarks memory`, which has them all, those in which most is held beside the gradient.
CELLS = [cell for cell in memory.cells(memory.CROSS_ENTROPY, ["float32"]) if cell.side]
CELLS += [cell for cell in memory.cells(memory.CROSS_ENTROPY, ["bfloat16"]) if not cell.side]
CELLS += [cell for cell in memory.cells(memory.DIVERGENCES, ["bfloat16"]) if len(cell.side) != 1]
CELLS += [cell for cell in memory.cells(memory.CROSS_ENTROPY, ["bfloat16"]) if cell.loss.endswith("all options")]
CELLS += [*memory.cells(memory.SOFT, ["bfloat16"]), memory.Cell("cross_entropy", ("logits",), "float16")]


@pytest.fixture(scope="module")
def one_device():
    """The suite runs with eight devices of the CPU, where the rows are never taken in blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "several_devices", lambda: False)
        jax.clear_caches()
        yield
    jax.clear_caches()


def held(cell: memory.Cell, shape: Shape) -> int:
    return memory.temporary_bytes("cpu", cell, shape)


@pytest.mark.parametrize("cell", dict.fromkeys(CELLS), ids=str)
def test_no_cell_holds_an_array_of_the_logits(cell, one_device):
    assert held(cell, LARGE) <= memory.allowed_bytes(LARGE)


@pytest.mark.parametrize("shape", [(4096, 1000), (1021, 16381)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_binary_decisions_hold_at_most_what_optax_holds(shape, dtype, one_device):
    for ours, theirs in zip(*(memory.cells({n: memory.LOSSES[n]}, [dtype]) for n in memory.DECIDED), strict=True):
        assert held(ours, Shape(*shape)) <= held(theirs, Shape(*shape))


OPTIONS = {
    "plain": {},
    "regularized": {"z_loss": 1e-4, "focal_gamma": 2.0, "poly_epsilon": 0.5},
    "ignoring": {"ignore_index": 0},
}


def temporary_bytes(n, v, dtype, **options):
    arguments = jax.ShapeDtypeStruct((n, v), dtype), jax.ShapeDtypeStruct((n,), jnp.int32)
    function = jax.value_and_grad(lambda z, y: crossent_jax.cross_entropy(z, y, **options))
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(131072, 10), (4096, 4099), (512, 32768), (64, 131072)], ids=str)
def test_temporaries_are_a_few_numbers_per_row(shape, dtype, options):
    """With several devices too."""
    n, v = shape
    if dtype == "bfloat16" and n < 131072 and jax.__version_info__ < (0, 8):
        pytest.skip("XLA's CPU backend of jax 0.7 makes a float32 copy of a bfloat16 array before every reduction of it")
    assert temporary_bytes(n, v, dtype, **OPTIONS[options]) <= 64 * n + 4 * 2**20
