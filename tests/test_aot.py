"""What the compilers of TPU v5e, TPU v6e and H100 make of the losses: no copy of given logits, the label's logit by a
compare on TPU and by a gather on GPU, one chunk of logits where they are a product, and no matrix of the batch. The leg
``aot`` of environments.py has the compilers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from benchmarks import memory, pod
from benchmarks.chips import TESTED as CHIPS
from benchmarks.chips import compile_for, devices, missing_compiler
from benchmarks.collectives import result_bytes, sent_bytes
from benchmarks.hlo import operations_of
from benchmarks.shapes import Shape
from crossent_jax._linear.cuts import Limits, Sizes, cost, cut_rows

from . import test_pod
from .test_linear_memory import shapes_and_dtypes, value_and_gradient
from .test_sharded import LAYOUTS, naive

N, V = 4096, 50257


def compiled(chip, function, dtype):
    return compiled_for(chip, function, ((N, V), dtype), ((N,), jnp.int32))


def compiled_for(chip, function, *arguments):
    needs_compiler(chip)
    return compile_for(chip, function, *arguments)


def needs_compiler(chip):
    package = missing_compiler(chip)
    if package:
        pytest.skip(f"compiling for {chip} needs the package {package}: `python -m tests.environments aot` installs it")


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


GRID = Shape(4096, 32768)
ALONE = [cell for cell in memory.cells(memory.CROSS_ENTROPY, ["bfloat16"]) if cell.side and cell.loss != "cross_entropy"]


ALL = memory.Cell("cross_entropy, all options", ("logits", "temperature"), "float32")
CAPPED = [f"{loss} softcap" for loss in ("cross_entropy, label_smoothing and", "soft_cross_entropy,")]
CELLS = [(chip, cell) for chip in CHIPS for cell in ALONE] + [("v5e", ALL), ("v6e", ALL), ("v6e", ALL._replace(side=()))]
CELLS += [("h100", memory.Cell(loss, ("logits",), "bfloat16")) for loss in CAPPED]


@pytest.mark.parametrize("chip, cell", CELLS, ids=str)
def test_an_option_holds_no_array_of_the_logits(chip, cell):
    """`python -m benchmarks memory` has float32, float16 and values too. A GPU adds up 256 classes at a time: three of
    these partial sums are held at once for every option together."""
    needs_compiler(chip)
    partial_sums = 3 * 4 * GRID.n * GRID.v // 256 if chip == "h100" and cell.loss.endswith("all options") else 0
    assert memory.temporary_bytes(chip, cell, GRID) <= max(memory.allowed_bytes(GRID), 64 * GRID.n + partial_sums)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_binary_decisions_hold_nothing(chip, dtype):
    needs_compiler(chip)
    cell = memory.Cell("binary_cross_entropy", ("logits",), dtype)
    assert memory.temporary_bytes(chip, cell, GRID) <= memory.allowed_bytes(GRID)


LINEAR = [(8192, 2048, 131072), (16384, 1024, 131072), (4096, 4096, 128256), (4096, 2304, 256000), (16384, 768, 50257)]


def allowed_bytes(n, d, v):
    """The head's float32 gradient, a chunk of logits and exponentials with the gaps that compilers of TPUs leave between
    buffers (0.67 of it at (16384, 1024, 131072)), 64 bytes a row; a padded copy of the head."""
    sizes, padded_head = Sizes(n, d, v), 2 * d * v if v % 8 else 0
    chunk = cut_rows((n,), sizes, Limits(), False).rows * sizes.row
    return sizes.head_gradient + padded_head + 1.7 * chunk + 64 * n


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("shape", LINEAR, ids=str)
def test_a_linear_loss_holds_one_chunk_of_logits(chip, shape):
    program = compiled_for(chip, value_and_gradient(), *shapes_and_dtypes(*shape, "bfloat16"))
    assert program.memory_analysis().temp_size_in_bytes <= allowed_bytes(*shape)
    if shape == LINEAR[0]:
        beside_gradient = program.memory_analysis().temp_size_in_bytes - 4 * 2048 * 131072
        assert beside_gradient <= (600 if chip == "h100" else 32) * 2**20


@pytest.mark.parametrize("chip", CHIPS)
def test_a_linear_loss_takes_a_tenth_of_the_naive_formula(chip):
    """In chunks of 512 rows; the formula holds the logits in float32 at the least (8 GiB here; TPU v5e cannot even compile
    it)."""
    n, d, v = 16384, 1024, 131072
    program = compiled_for(chip, value_and_gradient(chunk_rows=512), *shapes_and_dtypes(n, d, v, "bfloat16"))
    assert program.memory_analysis().temp_size_in_bytes <= 4 * n * v / 10


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("logits_dtype", [None, "bfloat16"])
def test_a_memory_budget_is_kept(chip, logits_dtype):
    budget = 4 * 2**30
    function = value_and_gradient(memory_budget=budget, logits_dtype=logits_dtype)
    program = compiled_for(chip, function, *shapes_and_dtypes(8192, 2048, 131072, "bfloat16"))
    assert program.memory_analysis().temp_size_in_bytes <= budget + 64 * 8192 + 4 * 2**20


def operations(chip, function, *shape):
    return operations_of(compiled_for(chip, function, *shapes_and_dtypes(*shape, "bfloat16")).as_text(), {})


@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_cycles_of_a_linear_loss_on_a_tpu(chip):
    """By the compiler's model, over those of three products of all rows at once; the formula takes 1.31 (v5e) and 1.53 (v6e)
    of them, and holds 4 GiB."""
    three = {"v5e": 103.5e6, "v6e": 34.2e6}[chip]
    shape = (8192, 2048, 131072)
    cycles = sum(o["model"] for o in operations(chip, value_and_gradient(), *shape))
    assert cycles <= three * {"v5e": 1.10, "v6e": 1.42}[chip]
    budget = value_and_gradient(memory_budget=4 * 2**30, logits_dtype="bfloat16")
    cycles = sum(o["model"] for o in operations(chip, budget, *shape))
    assert cycles <= three * {"v5e": 1.20, "v6e": 1.43}[chip]


@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_explain_predicts_the_traffic(chip):
    """A TPU writes no logits of a plain loss."""
    shape = (8192, 2048, 131072)
    sizes = Sizes(*shape, unwritten=chip != "h100")
    predicted = cost(sizes, cut_rows(shape[:1], sizes, Limits(), False)).traffic
    moved = sum(o["bytes"] for o in operations(chip, value_and_gradient(), *shape))
    assert 0.8 <= predicted / moved <= 1.25


def test_traffic_of_a_linear_loss_on_a_gpu():
    """Milliseconds of an H100 whose memory gives 3.35 TB/s; an odd vocabulary is padded once, outside the loop."""
    odd, even = (
        sum(o["bytes"] for o in operations("h100", value_and_gradient(), 16384, 768, v)) / 3.35e9 for v in (50257, 50304)
    )
    assert even <= 7.5 and odd <= 1.05 * even


SIDES = ("logits", "teacher_logits")
PAIRS = [(chip, memory.Cell("divergence, forward_kl", SIDES, dtype)) for chip in CHIPS for dtype in ("float32", "bfloat16")]
PAIRS += [
    ("v6e", memory.Cell("divergence, forward_kl", ("logits",), "bfloat16")),
    ("v6e", memory.Cell("divergence, reverse_kl", SIDES, "bfloat16")),
    ("v6e", memory.Cell("divergence, renyi", (), "float32")),
    ("h100", memory.Cell("divergence, forward_kl", ("logits",), "bfloat16")),
    ("h100", memory.Cell("divergence, reverse_kl", (), "float16")),
    ("h100", memory.Cell("divergence, js", ("logits",), "float32")),
    ("h100", memory.Cell("divergence, js", SIDES, "bfloat16")),
    ("h100", memory.Cell("divergence, renyi", ("teacher_logits",), "bfloat16")),
]


@pytest.mark.parametrize("chip, cell", PAIRS, ids=str)
def test_a_divergence_holds_no_array_of_the_logits(chip, cell):
    """`python -m benchmarks memory` has every kind, side and dtype."""
    needs_compiler(chip)
    assert memory.temporary_bytes(chip, cell, GRID) <= memory.allowed_bytes(GRID)


@pytest.mark.parametrize("chip", CHIPS)
def test_distillation_holds_a_chunk_of_both_logits(chip):
    """In chunks of 256 rows a tenth of the formula's two float32 arrays of logits."""
    n, d, v = 8192, 1024, 131072
    vectors, heads = ((n, d), "bfloat16"), ((d, v), "bfloat16")

    def held(**options):
        def loss(hidden, head, teacher, teacher_head):
            teachers = {"teacher_hidden": teacher, "teacher_head": teacher_head, "stop_teacher_gradient": True}
            return crossent_jax.linear_divergence(hidden, head, **teachers, **options)

        program = compiled_for(chip, jax.value_and_grad(loss, (0, 1)), vectors, heads, vectors, heads)
        return program.memory_analysis().temp_size_in_bytes

    sizes = Sizes(n, d, v, distributions=2)
    chunk = cut_rows((n,), sizes, Limits(), False).rows * sizes.row
    assert held() <= 4 * d * v + 1.01 * chunk + 64 * n
    assert held(chunk_rows=256) <= 2 * 4 * n * v / 10


@pytest.mark.parametrize("chip", CHIPS)
def test_info_nce_takes_a_twentieth_of_one_matrix_of_the_batch(chip):
    vectors = ((16384, 512), "float32")
    loss = jax.value_and_grad(lambda q, k, t: crossent_jax.info_nce(q, k, temperature=t), (0, 1, 2))
    program = compiled_for(chip, loss, vectors, vectors, ((), "float32"))
    assert program.memory_analysis().temp_size_in_bytes <= 4 * 16384**2 / 20


@pytest.mark.parametrize("layout", ["batch and vocabulary", "features", "features and vocabulary", "sequence"])
def test_eight_gpus_move_each_array_once(layout):
    """Those that ``explain`` predicts, of bfloat16 arrays: at most 1.1 times the naive formula's on whole float32 logits."""
    needs_compiler("h100")
    axes, of_hidden, of_head = LAYOUTS[layout]
    count = int(np.prod(list(axes.values())))
    mesh = jax.sharding.Mesh(np.array(devices("h100", count)).reshape(tuple(axes.values())), tuple(axes))
    specs = (of_hidden, of_head, jax.P(*of_hidden[:2]))
    placed = [jax.sharding.NamedSharding(mesh, spec) for spec in specs]
    sizes = ((16, 256, 128), jnp.bfloat16), ((128, 8192), jnp.bfloat16), ((16, 256), jnp.int32)
    arrays = [jax.ShapeDtypeStruct(*size, sharding=where) for size, where in zip(sizes, placed, strict=True)]

    def moved(loss):
        step = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, tuple(placed[:2])))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return result_bytes(step.lower(*arrays).compile().as_text())

    ours = crossent_jax.sharded(crossent_jax.linear_cross_entropy, hidden=of_hidden, head=of_head)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        (decision,) = crossent_jax.explain(ours, *arrays)
    found = moved(partial(ours, chunk_rows=32))
    assert found == sum(each.value + each.gradient for each in decision.sharded.moved)
    assert found <= 1.1 * moved(naive) + 64


SLICES = [("v5e:2x4", pod.Mesh(fsdp=2, model=4)), ("v5e:4x4", pod.Mesh(data=2, fsdp=2, model=4))]


@pytest.mark.parametrize("slice_, mesh", SLICES)
def test_a_slice_of_a_tpu_sends_what_the_formula_says(slice_, mesh):
    """But for the loss and its weight; and it holds between 0.7 and 1.1 of what the formula says."""
    needs_compiler("v5e")
    shape, chips = Shape(16 * 1024, 32768, 1024), devices(slice_)
    program = test_pod.program(chips, mesh, shape, 16, jnp.bfloat16)
    assert 0 <= sent_bytes(program.as_text()) - pod.formula_of_sent_bytes(shape, mesh) <= 16
    sizes = program.memory_analysis()
    held = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    assert 0.7 <= held / pod.held_bytes(shape, mesh) <= 1.1
