"""``python -m benchmarks pod``: what its formulas say a device sends, beside compiled programs; what is read of these.
``test_aot.py`` compares slices of a TPU."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import crossent_jax
from benchmarks import __main__, pod
from benchmarks.collectives import sent_bytes
from benchmarks.shapes import Shape

PAGE = Path(__file__).resolve().parent.parent / "docs" / "meshes.md"
BATCH, SEQUENCE, FEATURES, CLASSES = 16, 32, 24, 136
SHAPE = Shape(BATCH * SEQUENCE, CLASSES, FEATURES)


def program(devices, sizes: pod.Mesh, shape: Shape, batch: int, dtype):
    """Value and gradients on a mesh of these devices, split as ``sizes`` say, compiled; no array is made."""
    mesh = jax.sharding.Mesh(np.array(devices).reshape(sizes), sizes._fields, axis_types=(AxisType.Auto,) * 3)
    hidden, head = P(("data", "fsdp")), P("fsdp", "model")
    lengths = (
        ((batch, shape.n // batch, shape.d), dtype),
        ((shape.d, shape.v), dtype),
        ((batch, shape.n // batch), jnp.int32),
    )
    placed = [NamedSharding(mesh, spec) for spec in (hidden, head, hidden)]
    arrays = [jax.ShapeDtypeStruct(*each, sharding=where) for each, where in zip(lengths, placed, strict=True)]
    loss = crossent_jax.sharded(crossent_jax.linear_cross_entropy, hidden=hidden, head=head)
    step = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, tuple(placed[:2])))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return step.lower(*arrays).compile()


@pytest.mark.parametrize("mesh", [pod.Mesh(8), pod.Mesh(1, 2, 4), pod.Mesh(2, 2, 2)], ids=str)
def test_the_formula_is_what_a_program_sends(mesh):
    """But for the loss and its weight, eight bytes."""
    text = program(jax.devices(), mesh, SHAPE, BATCH, jnp.float32).as_text()
    assert 0 <= sent_bytes(text) - pod.formula_of_sent_bytes(SHAPE, mesh, item=4) <= 16


# As in compiled programs: of a v5e, where S(1) is its fast memory, and of an H100 (-start); groups as a list, a count, axes.
LINES = """
HloModule program, num_partitions=8

%all-reduce-scatter.1 (input: f32[64,32]) -> f32[16,32] {
  %input = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.7 = f32[64,32]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %dynamic-slice.1 = f32[16,32]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.7, %i), dynamic_slice_sizes={16,32}
}

ENTRY %main (p: bf16[128,8192], q: f32[64,32]) -> f32[] {
  %p = bf16[128,8192]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %q = f32[64,32]{1,0} parameter(1)
  LINE
}
"""
READ = {
    "%g = bf16[1024,8192]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}": 14680064,
    "%s = bf16[16,8192]{1,0:T(8,128)(2,1)} reduce-scatter(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}": 1835008,
    "%r = bf16[64,32]{1,0:T(8,128)(2,1)} all-reduce(%q), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add": 9216,
    "%r = (f32[64,32]{1,0}, f32[64,32]{1,0}) all-reduce(%q, %q), replica_groups={}, to_apply=%add": 28672,
    "%r = f32[64,32]{1,0} all-reduce-start(%q), replica_groups=[4,2]<=[8], use_global_device_ids=true": 8192,
    "%g = (f32[64,32]{1,0}, f32[256,32]{1,0}) all-gather-start(%q), replica_groups=[2,4]<=[4,2]T(1,0)": 24576,
    "%g = f32[256,32]{1,0} all-gather(%q), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}": 24576,
    "%c = (f32[64,32]{1,0}, f32[64,32]{1,0}) collective-permute-start(%q), source_target_pairs={{0,1},{1,0}}": 8192,
    "%f = f32[16,32]{1,0:T(8,128)S(1)} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1": 6144,
    "%d = f32[256,32]{1,0} all-gather-done(%q)": 0,
}


@pytest.mark.parametrize("line", READ)
def test_what_is_read_of_a_program(line):
    assert sent_bytes(LINES.replace("LINE", line)) == READ[line]


def test_the_page_has_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    assert __main__.main(["pod"]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "\n".join(printed).strip() in PAGE.read_text()


def test_a_mesh_divides_everything(capsys):
    assert __main__.main(["pod", "--rows", "7", "--features", "7", "--vocabulary", "7"]) == 2
    assert "no mesh of several chips divides n=7,d=7,v=7: change --rows" in capsys.readouterr().err
    assert __main__.main(["pod", "--vocabulary", "50257"]) == 0
    assert "64x1x1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        __main__.main(["pod", "--rows", "0"])


@pytest.mark.parametrize("layout", pod.meshes(1, 8))
def test_products_have_many_rows_on_every_number_of_chips(layout):
    """As the library cuts them: 1024 at least, of 512 x 8192 rows and 131072 classes."""
    shape = Shape(512 * 8192, 131072, 8192)
    assert all(pod.part(shape, pod.meshes(count, 8)[layout]).cut.rows >= 1024 for count in pod.COUNTS)
