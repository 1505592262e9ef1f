"""Every loss with every option on meshes of eight CPU devices, beside the same call on one device.

"manual": inside ``jax.shard_map`` with ``axis_name``; "Auto" and "Explicit": of meshes whose axes are so, losses of given
logits under plain ``jax.jit``, others through ``crossent_jax.sharded``. Rows are split over ``data``, classes over
``model``, pairs over ``data``. Errors are the largest differences over the largest number: of the value, and of each
gradient.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.table import Table

import crossent_jax

from . import memory, records, table
from .environment import machine
from .records import Bad
from .run import bar
from .shapes import Shape

DEVICES = 8
MESHES = [(1, 8), (2, 4), (4, 2), (8, 1)]
WAYS = ("manual", "Auto", "Explicit")
SHAPE = Shape(64, 136, 24)
SIZES = {"n": SHAPE.n, "v": SHAPE.v, "d": SHAPE.d, "k": 2 * SHAPE.n}
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SPLIT = {"n": "data", "v": "model", "d": None, "k": "data"}


class Loss(NamedTuple):
    """A loss with options. ``arrays``: arguments by name, each its axes: rows "n", classes "v", features "d", keys "k".
    ``sides``: those whose gradients are compared."""

    function: Callable
    arrays: dict[str, str]
    sides: tuple[str, ...]
    options: dict[str, Any]

    @property
    def is_linear(self) -> bool:
        return "head" in self.arrays

    @property
    def of_pairs(self) -> bool:
        return "queries" in self.arrays


LOGITS, LINEAR = {"logits": "nv"}, {"hidden": "nd", "head": "dv"}
TEACHER = {"logits": {"teacher_logits": "nv"}, "linear": {"teacher_hidden": "nd", "teacher_head": "dv"}}
ARRAYS = {name: axes for name, (axes, _) in memory.ARRAYS.items()}
KINDS = {name: {"kind": name} | ({"order": 0.5} if name == "renyi" else {}) for name in memory.KINDS}
OF_PAIRS = {
    "both directions": ({}, {}),
    "one direction": ({}, {"symmetric": False}),
    "some left out": ({"where": "n"}, {}),
    "equal ids": ({"query_ids": "n", "key_ids": "n"}, {}),
}


def of_labels(name: str, function: Callable, given: dict[str, str]) -> dict[str, Loss]:
    """With nothing, with each option, and with all together."""

    def loss(static, arrays):
        arrays = {option.split()[0]: axes for option, axes in arrays.items()}
        sides = (*given, *(option for option in ("temperature", "class_weights") if option in arrays))
        return Loss(function, given | {"labels": "n"} | arrays, sides, static)

    static = memory.STATIC
    together = {option: value for option, value in static.items() if option != "temperature"}
    found = {name: loss({}, {})}
    found |= {f"{name}, {option}": loss({option: value}, {}) for option, value in static.items()}
    found |= {f"{name}, {option} as an array": loss({}, {option: axes}) for option, axes in ARRAYS.items()}
    return found | {f"{name}, all options": loss(together, {o: a for o, a in ARRAYS.items() if o != "class_mask of rows"})}


def of_two(name: str, function: Callable, given: dict[str, str]) -> dict[str, Loss]:
    """Every kind, and the first with every option."""
    arrays = {"labels": "n", "where": "n", "row_weights": "n", "class_mask": "v", "temperature": ""}
    options = {"label_weight": 0.3, "softcap": 30.0, "scale_by_temperature_squared": True}
    found = {f"{name}, {kind}": Loss(function, given, tuple(given), options) for kind, options in KINDS.items()}
    return found | {f"{name}, all options": Loss(function, given | arrays, (*given, "temperature"), options)}


def of_pairs() -> dict[str, Loss]:
    given = {"queries": "nd", "keys": "nd", "temperature": ""}
    return {
        f"info_nce, {name}": Loss(crossent_jax.info_nce, given | arrays, tuple(given), options)
        for name, (arrays, options) in OF_PAIRS.items()
    }


LOSSES = (
    of_labels("cross_entropy", crossent_jax.cross_entropy, LOGITS)
    | of_labels("linear_cross_entropy", crossent_jax.linear_cross_entropy, LINEAR)
    | of_two("divergence", crossent_jax.divergence, LOGITS | TEACHER["logits"])
    | of_two("linear_divergence", crossent_jax.linear_divergence, LINEAR | TEACHER["linear"])
    | of_pairs()
)


def arrays_of(loss: Loss) -> dict[str, jax.Array]:
    """Random; no label is of a masked class, whose loss would be infinite."""
    random = np.random.default_rng(0)

    def made(name: str, axes: str):
        shape = tuple(SIZES[axis] for axis in axes)
        if name in ("labels", "query_ids", "key_ids"):
            return 2 * random.integers(0, SHAPE.v // 2 if name == "labels" else SHAPE.n // 4, shape)
        if name in ("where", "class_mask"):
            return (random.random(shape) < 0.5) | (np.arange(shape[-1]) % 2 == 0)
        if name in ("temperature", "class_weights", "row_weights"):
            return (0.5 + random.random(shape)).astype(np.float32)
        return random.standard_normal(shape).astype(np.float32)

    return {name: jnp.asarray(made(name, axes)) for name, axes in loss.arrays.items()}


def spec_of(loss: Loss, axes: str) -> P:
    return P(*(SPLIT[axis] for axis in axes))


def on_one_device(loss: Loss) -> Callable:
    return lambda arrays: loss.function(**arrays, **loss.options)


def inside_shard_map(loss: Loss, mesh: jax.sharding.Mesh) -> Callable:
    """Sums of the rows of each device, added up and divided once; contrastive losses are of the whole batch already."""

    def of_shard(arrays):
        if loss.of_pairs:
            return loss.function(**arrays, axis_name="data", **loss.options)
        own = loss.function(**arrays, axis_name="model", reduction="loss_sum", **loss.options)
        return own.psum("data").mean()

    specs = {name: spec_of(loss, axes) for name, axes in loss.arrays.items()}
    return jax.shard_map(of_shard, mesh=mesh, in_specs=(specs,), out_specs=P())


def by_types(loss: Loss) -> Callable:
    """On the ambient mesh."""
    function = loss.function
    if loss.is_linear:
        function = crossent_jax.sharded(function, hidden=P("data"), head=P(None, "model"))
    if loss.of_pairs:
        function = crossent_jax.sharded(function, hidden=P("data"), head=P("data"))
    return on_one_device(loss._replace(function=function))


def value_and_gradients(loss: Loss, function: Callable, arrays: dict[str, jax.Array]) -> tuple[Any, list[Any]]:
    def of_sides(sides, rest):
        return function(rest | sides)

    sides = {name: arrays[name] for name in loss.sides}
    rest = {name: x for name, x in arrays.items() if name not in sides}
    step = jax.jit(jax.value_and_grad(of_sides), compiler_options=QUICK)
    value, gradients = step(sides, rest)
    return np.asarray(value), [np.asarray(gradients[name]) for name in loss.sides]


def on_a_mesh(loss: Loss, way: str, shape: tuple[int, int], arrays: dict[str, jax.Array]):
    kind = AxisType.Explicit if way == "Explicit" else AxisType.Auto
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind, kind))
    where = {name: NamedSharding(mesh, spec_of(loss, axes)) for name, axes in loss.arrays.items()}
    placed = {name: jax.device_put(x, where[name]) for name, x in arrays.items()}
    if way == "manual":
        return value_and_gradients(loss, inside_shard_map(loss, mesh), placed)
    with jax.set_mesh(mesh):
        return value_and_gradients(loss, by_types(loss), placed)


def error(found: np.ndarray, right: np.ndarray) -> float:
    """NaN where either has one."""
    return float(np.max(np.abs(found - right)) / max(np.max(np.abs(right)), np.finfo(np.float32).tiny))


def row_of(name: str, loss: Loss, way: str, shape: tuple[int, int], right, arrays) -> dict:
    value, gradients = on_a_mesh(loss, way, shape, arrays)
    row = {"op": f"meshes: {name}", **SHAPE._asdict(), "dtype": "float32", "mode": "value_and_grad", "way": way}
    row |= {"impl": f"ours, {way}, {'x'.join(map(str, shape))}", "platform": f"{DEVICES} devices of a CPU", "status": "ok"}
    errors = [error(*both) for both in zip(gradients, right[1], strict=True)]
    return row | {"loss_error": error(value, right[0]), "gradient_error": max(errors)}


def rows_of(name: str, loss: Loss) -> list[dict]:
    arrays = arrays_of(loss)
    right = value_and_gradients(loss, on_one_device(loss), arrays)
    made = partial(row_of, name, loss, right=right, arrays=arrays)
    return [made(way, shape) for way in WAYS for shape in MESHES]


def show(console, name: str, rows: list[dict]) -> None:
    drawn = Table(title=name, title_justify="left", show_edge=False, pad_edge=False)
    for title in ("value, gradients", *("x".join(map(str, shape)) for shape in MESHES)):
        drawn.add_column(title, justify="right")
    for way in WAYS:
        errors = [f"{row['loss_error']:.1e}, {row['gradient_error']:.1e}" for row in rows if row["way"] == way]
        drawn.add_row(way, *errors)
    console.print(drawn)


def main(options: Namespace) -> int:
    unknown = [word for word in options.loss or () if not any(word in name for name in LOSSES)]
    if unknown:
        raise Bad(f"no loss has {unknown[0]!r} in its name; the first words are {', '.join(first_words())}")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    if jax.default_backend() != "cpu" or jax.device_count() < DEVICES:
        raise Bad(f"this needs {DEVICES} devices of a CPU; JAX has {jax.devices()}: set JAX_PLATFORMS=cpu")
    chosen = {n: loss for n, loss in LOSSES.items() if not options.loss or any(word in n for word in options.loss)}
    console = table.console()
    if options.out:
        environment = machine() | {"platform": "meshes", "device": f"{DEVICES} devices of a CPU"}
        records.create(options.out, [records.line_of("environment", **environment)])
    with bar(console) as progress:
        task = progress.add_task("", total=len(chosen))
        for name, loss in chosen.items():
            progress.update(task, description=name)
            rows = rows_of(name, loss)
            if options.out:
                records.append(options.out, [records.line_of("row", **row) for row in rows])
            show(progress.console, name, rows)
            progress.advance(task)
    return 0


def first_words() -> list[str]:
    return list(dict.fromkeys(name.split(",")[0] for name in LOSSES))
