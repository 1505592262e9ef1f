"""The kernels of a TPU: against the mathematics that they trace, in Pallas's interpreter; what they refuse; and, in the leg
``aot``, compiled for every generation."""

import dataclasses
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.experimental.pallas import tpu as pltpu

import crossent_jax
from benchmarks.chips import TPU_TOPOLOGIES, devices
from crossent_jax._row.block import Operands, Wanted, block_gradient, block_state
from crossent_jax._row.state import NO_CLASS, State, finalize
from crossent_jax.backends.block_sizes import Blocks, block_sizes
from crossent_jax.backends.tpu_kernels import gradient, state
from crossent_jax.backends.tpu_rows import Call

from . import grid, oracle
from .test_aot import needs_compiler

ROWS, CLASSES = 197, 333  # two blocks of rows and three of classes, none of them full
OF_LABELS = Wanted(-1, softcap=5.0, entropy=True, argmax=True, prior_count=True)
CASES = {
    "plain": (Wanted(-1), ()),
    "every option": (OF_LABELS, ("prior", "mask of classes", "temperature")),
    "a mask of each row": (OF_LABELS, ("prior", "mask of rows")),
    "soft targets": (Wanted(-1, target_exp=True), ("soft", "temperature", "mask of rows")),
}


def problem(case, dtype):
    """What is wanted, and operands with NaN in a row, -inf in another and a row without label."""
    wanted, given = CASES[case]
    gen = grid.rng("pallas", case, dtype)
    z = np.array(grid.logits(gen, ROWS, CLASSES, dtype))
    z[3, 5], z[130], z[140, 7] = -np.inf, -np.inf, np.nan
    labels = grid.labels(gen, ROWS, CLASSES)
    labels[7] = -1
    masks = {"mask of classes": CLASSES, "mask of rows": (ROWS, CLASSES)}
    mask = next((gen.random(shape) < 0.9 for name, shape in masks.items() if name in given), None)
    if mask is not None:
        mask[..., 7] = True  # the class of the NaN
    return wanted, Operands(
        logits=jnp.asarray(z),
        target=jnp.asarray(grid.targets(gen, ROWS, CLASSES) if "soft" in given else labels),
        prior=jnp.asarray(gen.random(CLASSES, np.float32)) if "prior" in given else None,
        class_mask=None if mask is None else jnp.asarray(mask),
        temperature=jnp.float32(1.3) if "temperature" in given else None,
    )


def cotangents(of: State) -> State:
    """Random, but that of the maximum, which has none; zero for row 140, whose logits are no numbers."""
    gen = grid.rng("cotangents of kernels")
    g = jax.tree.map(lambda field: jnp.asarray(gen.standard_normal(ROWS).astype(np.float32)).at[140].set(0), of)
    return g._replace(maximum=jnp.zeros(ROWS), argmax=None)


@pytest.mark.parametrize(("case", "dtype"), [*((case, "float32") for case in CASES), ("plain", "bfloat16")])
def test_kernels_compute_what_they_trace(case, dtype):
    wanted, operands = problem(case, dtype)
    call = Call(Blocks(128, 128), 2**20, pltpu.InterpretParams(random_seed=1))
    ours, expected = state(call, wanted, operands), block_state(wanted, operands)
    numbers = ~np.isnan(expected.exp_sum)  # else nothing but that sum is NaN for sure
    np.testing.assert_array_equal(np.isnan(ours.exp_sum), ~numbers)
    assert not numbers[140] and numbers.sum() == ROWS - 1
    for name, field, other in zip(State._fields, ours, expected, strict=True):
        assert (field is None) == (other is None)
        if field is not None:
            np.testing.assert_allclose(field[numbers], other[numbers], rtol=3e-6, atol=3e-6, err_msg=name)
    g = cotangents(expected)
    dz, exact = gradient(call, wanted, operands, expected, g), block_gradient(wanted, operands, expected, g).logits
    assert dz.dtype == exact.dtype
    of_numbers = np.isfinite(np.float32(exact))
    np.testing.assert_array_equal(np.isfinite(np.float32(dz)), of_numbers)
    np.testing.assert_array_equal(np.float32(dz)[140], 0)
    atol = 1e-5 if dtype == "float32" else 2**-7
    np.testing.assert_allclose(np.float32(dz)[of_numbers], np.float32(exact)[of_numbers], rtol=atol, atol=atol)


def test_an_offset_of_the_logits_costs_nothing():
    gen = grid.rng("offset of kernels")
    z, labels = np.float32(grid.logits(gen, ROWS, CLASSES) + 1000), grid.labels(gen, ROWS, CLASSES)
    call = Call(Blocks(128, 128), 2**20, pltpu.InterpretParams())
    nll = finalize(state(call, Wanted(-1), Operands(jnp.asarray(z), jnp.asarray(labels))), temperature=None, soft=False).nll
    exact = oracle.exact_loss(z, labels, reduction="none", wide_dtype=np.float64)
    np.testing.assert_allclose(nll, exact, rtol=1e-6, atol=1e-6)


def test_no_race():
    """Two cores share what the grid says is parallel, in random order, and every access is watched. There is one block of
    rows: a grid that says so of the classes too gives each core a part of a row."""
    fields = {field.name for field in dataclasses.fields(pltpu.InterpretParams)}
    cores = next(name for name in ("num_cores_or_threads", "num_cores_per_device") if name in fields)
    watched = pltpu.InterpretParams(detect_races=True, random_seed=3, **{cores: 2})
    wanted, operands = problem("plain", "float32")
    operands = jax.tree.map(lambda x: x[:128], operands)
    ours = state(Call(Blocks(128, 128), 2**20, watched), wanted, operands)
    np.testing.assert_allclose(ours.exp_sum, block_state(wanted, operands).exp_sum, rtol=3e-6)


def test_blocks_fill_the_memory_and_no_more():
    for v in (128, 1000, 32768, 50257, 262144):
        for of_a_class in (2, 4, 8, 13):
            for is_plain in (True, False):
                rows, classes = block_sizes(v, of_a_class, is_plain, memory := 15 * 2**20)
                assert rows == 128 and classes % 128 == 0
                assert rows * classes * (2 * of_a_class + (4 if is_plain else 20)) <= memory + 2**20
                assert -(-v // classes) * classes - v < 128 * -(-v // classes)  # less than a lane of each is empty


def test_asked_for_on_a_cpu_xla_computes(one_device):
    gen = grid.rng("kernels on a cpu")
    z, labels = grid.logits(gen, ROWS, CLASSES), grid.labels(gen, ROWS, CLASSES)

    def run(implementation):
        loss = lambda z: crossent_jax.cross_entropy(z, labels, label_smoothing=0.1, implementation=implementation)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(jnp.asarray(z))

    jax.tree.map(np.testing.assert_array_equal, run("pallas_tpu"), run("xla"))


REFUSED = {
    "float16": (jnp.zeros((256, 10), jnp.float16), {}, "not float16"),
    "another axis": (jnp.zeros((10, 256)), {"axis": 0}, "last axis"),
    "few rows": (jnp.zeros((100, 10)), {}, "128 rows at a time, got 100"),
    "batch axes": (jnp.zeros((64, 5, 10)), {}, "copy the logits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_kernels_refuse(case, one_device):
    z, options, words = REFUSED[case]
    labels = jnp.zeros(np.delete(z.shape, options.get("axis", -1)), jnp.int32)
    with pytest.raises(ValueError, match=words):
        crossent_jax.cross_entropy(z, labels, implementation="pallas_tpu", **options)
    reasons = dict(crossent_jax.explain(crossent_jax.cross_entropy, z, labels, **options)[0].reasons)
    assert words in reasons["pallas_tpu"]


def test_64_bit_types_are_refused(one_device):
    with oracle.x64(), pytest.raises(ValueError, match="jax_enable_x64"):
        crossent_jax.cross_entropy(jnp.zeros((256, 10), jnp.float32), jnp.zeros(256, jnp.int32), implementation="pallas_tpu")


def test_several_devices_and_products_are_refused():
    z, labels = jnp.zeros((256, 10)), jnp.zeros(256, jnp.int32)
    with pytest.raises(ValueError, match=r"inside jax\.shard_map"):
        crossent_jax.cross_entropy(z, labels, implementation="pallas_tpu")
    with pytest.raises(ValueError, match="given logits"):
        crossent_jax.linear_cross_entropy(z, jnp.zeros((10, 7)), labels, implementation="pallas_tpu")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_soft_targets_reach_a_kernel_in_a_dtype_that_it_reads(dtype, one_device):
    """bfloat16 as they are, others in float32."""
    z, targets = jax.ShapeDtypeStruct((ROWS, CLASSES), jnp.float32), jax.ShapeDtypeStruct((ROWS, CLASSES), dtype)
    loss = partial(crossent_jax.soft_cross_entropy, implementation="pallas_tpu")
    text = jax.export.export(jax.jit(jax.value_and_grad(loss)), platforms=["tpu"])(z, targets).mlir_module()
    kernels = [line for line in text.splitlines() if "@tpu_custom_call" in line]
    types = [line.rsplit(" : (", 1)[1] for line in kernels]
    assert len(types) == 2 and not any("xf16" in line for line in types)
    assert all(("xbf16" in line) == (dtype == "bfloat16") for line in types)


@pytest.mark.parametrize(("platform", "kernels"), [("tpu", 2), ("cpu", 0)])
def test_exported_for_a_platform(platform, kernels, one_device):
    z, labels = jax.ShapeDtypeStruct((ROWS, CLASSES), jnp.bfloat16), jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    loss = partial(crossent_jax.cross_entropy, implementation="pallas_tpu")
    exported = jax.export.export(jax.jit(jax.value_and_grad(loss)), platforms=[platform])(z, labels)
    assert exported.mlir_module().count("@tpu_custom_call") == kernels


def test_the_state_of_no_class_has_no_argmax():
    wanted, operands = problem("every option", "float32")
    call = Call(Blocks(128, 128), 2**20, pltpu.InterpretParams())
    assert state(call, wanted, operands).argmax[130] == NO_CLASS


OPTIONS = {
    "plain": {},
    "every option": {"label_smoothing": 0.1, "z_loss": 1e-4, "entropy_weight": 0.1, "softcap": 30.0, "temperature": 1.5},
}


@pytest.mark.parametrize("chip", TPU_TOPOLOGIES)
@pytest.mark.parametrize(("options", "dtype"), [("plain", "float32"), ("plain", "bfloat16"), ("every option", "bfloat16")])
def test_every_generation_compiles_them(chip, options, dtype, one_device):
    """Value and gradient read the logits twice and write once; a kernel each. Rows lie one after another in memory, as the
    product before them leaves them: alone, a TPU's compiler would take them with the classes one after another, and copy."""
    needs_compiler(chip)
    n, v = 1021, 50257
    mesh = jax.sharding.Mesh(np.array(devices(chip)[:1]), ("chip",))
    sharding = jax.sharding.NamedSharding(mesh, jax.P())
    by_rows = Format(Layout((0, 1)), sharding)
    loss = lambda z, y: crossent_jax.cross_entropy(z, y, implementation="pallas_tpu", **OPTIONS[options])  # noqa: E731
    given = jax.ShapeDtypeStruct((n, v), dtype, sharding=by_rows), jax.ShapeDtypeStruct((n,), jnp.int32, sharding=sharding)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(jax.value_and_grad(loss), out_shardings=(sharding, by_rows)).lower(*given)
        program = lowered.compile()
    assert "crossent_state" in lowered.as_text() and "crossent_gradient" in lowered.as_text()
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 2
    assert program.memory_analysis().temp_size_in_bytes <= 64 * n + 4 * 2**20


@pytest.mark.parametrize("check_vma", [True, False])
def test_classes_split_over_four_chips(check_vma):
    """Each computes the state of its own classes by a kernel."""
    needs_compiler("v5e")
    mesh = jax.sharding.Mesh(np.array(devices("v5e")), ("model",))
    loss = partial(crossent_jax.cross_entropy, axis_name="model", label_smoothing=0.1, implementation="pallas_tpu")
    split = jax.shard_map(loss, mesh=mesh, in_specs=(jax.P(None, "model"), jax.P()), out_specs=jax.P(), check_vma=check_vma)
    given = ((1021, 4096), jnp.bfloat16, jax.P(None, "model")), ((1021,), jnp.int32, jax.P())
    shapes = [jax.ShapeDtypeStruct(*x, sharding=jax.sharding.NamedSharding(mesh, spec)) for *x, spec in given]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        text = jax.jit(jax.value_and_grad(split)).lower(*shapes).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2


def loss_of_rows(z, labels):
    return crossent_jax.cross_entropy(z, labels, implementation="pallas_tpu")


TRANSFORMED = {
    "vmap of grad": jax.vmap(jax.grad(loss_of_rows)),
    "grad of vmap": jax.grad(lambda z, labels: jnp.sum(jax.vmap(loss_of_rows)(z, labels))),
    "remat": jax.grad(jax.checkpoint(lambda z, labels: loss_of_rows(jnp.tanh(z), labels))),
}


@pytest.mark.parametrize("transform", TRANSFORMED)
def test_a_kernel_each_under_transforms(transform, one_device):
    needs_compiler("v5e")
    mesh = jax.sharding.Mesh(np.array(devices("v5e")[:1]), ("chip",))
    given = ((4, 256, 4096), jnp.float32), ((4, 256), jnp.int32)
    shapes = [jax.ShapeDtypeStruct(*x, sharding=jax.sharding.NamedSharding(mesh, jax.P())) for x in given]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        text = jax.jit(TRANSFORMED[transform]).lower(*shapes).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
