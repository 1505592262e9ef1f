"""What every option holds beside the gradient, as compiled: temporary bytes of each loss of given logits, nothing runs.

The promise is O(rows): 64 bytes a row and 4 MiB, and for binary decisions what optax's formula holds.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

import crossent_jax

from . import records, table
from .cases import known
from .chips import CHIPS, TESTED, compile_for, missing_compiler
from .environment import machine
from .records import Bad
from .run import bar
from .shapes import DTYPES, Shape

SHAPE = Shape(4096, 32768)


class Loss(NamedTuple):
    """A loss with options. ``arrays``: the arguments by name, each its axes ("n", "v", "nv", "" a scalar) and its dtype
    (None: the logits'); ``sides``: what is differentiated, one gradient after another."""

    function: Callable
    arrays: dict[str, tuple[str, str | None]]
    options: dict[str, Any]
    sides: tuple[tuple[str, ...], ...] = (("logits",),)


class Cell(NamedTuple):
    """One number of the table. ``side``: the arguments whose gradient is asked for; none: the value alone."""

    loss: str
    side: tuple[str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.loss} {self.dtype} {mode_of(self.side)}"


def mode_of(side: tuple[str, ...]) -> str:
    return f"gradient of {' and '.join(side)}" if side else "value"


LOGITS = {"logits": ("nv", None)}
LABELS = LOGITS | {"labels": ("n", "int32")}
PAIR = LOGITS | {"teacher_logits": ("nv", None)}
# of cross_entropy: static ones, and arrays
STATIC = {
    "label_smoothing": 0.1,
    "z_loss": 1e-4,
    "focal_gamma": 2.0,
    "poly_epsilon": 0.5,
    "entropy_weight": 0.01,
    "softcap": 30.0,
    "temperature": 2.0,
    "ignore_index": 0,
}
ARRAYS = {
    "temperature": ("", "float32"),
    "class_weights": ("v", "float32"),
    "class_mask": ("v", "bool"),
    "class_mask of rows": ("nv", "bool"),
    "row_weights": ("n", "float32"),
    "where": ("n", "bool"),
}


def _labelled(static: dict, arrays: dict) -> Loss:
    given = {name.split()[0]: array for name, array in arrays.items()}
    side = ("logits", "temperature") if "temperature" in given else ("logits",)
    return Loss(crossent_jax.cross_entropy, LABELS | given, static, (side,))


def _together() -> Loss:
    static = {name: value for name, value in STATIC.items() if name != "temperature"}
    return _labelled(static, {name: array for name, array in ARRAYS.items() if name != "class_mask"})


CROSS_ENTROPY = {
    "cross_entropy": _labelled({}, {}),
    **{f"cross_entropy, {name}": _labelled({name: value}, {}) for name, value in STATIC.items()},
    **{f"cross_entropy, {name} as an array": _labelled({}, {name: array}) for name, array in ARRAYS.items()},
    "cross_entropy, all options": _together(),
}


def _pairs() -> dict[str, Loss]:
    """Every two options that are not the same argument; an array's name is followed by "as an array"."""
    options = [(name, {name: value}, {}) for name, value in STATIC.items()]
    options += [(f"{name} as an array", {}, {name: array}) for name, array in ARRAYS.items()]
    return {
        f"cross_entropy, {first[0]} and {second[0]}": _labelled(first[1] | second[1], first[2] | second[2])
        for first, second in combinations(options, 2)
        if first[0].split()[0] != second[0].split()[0]
    }


PAIRS = _pairs()
NUMBERS = {"cross_entropy, all numbers": _labelled(STATIC, {})}  # no class weights: the profiler of a v5e takes no gather


def _both_sides(first: str, second: str) -> tuple[tuple[str, ...], ...]:
    return (first,), (second,), (first, second)


SOFT_TARGETS = LOGITS | {"targets": ("nv", None)}
SOFT = {
    "soft_cross_entropy": Loss(crossent_jax.soft_cross_entropy, SOFT_TARGETS, {}, _both_sides("logits", "targets")),
    "soft_cross_entropy, softcap": Loss(crossent_jax.soft_cross_entropy, SOFT_TARGETS, {"softcap": 30.0}),
}
KINDS = ("forward_kl", "reverse_kl", "js", "jeffreys", "total_variation", "renyi")
DIVERGENCES = {
    f"divergence, {kind}": Loss(
        crossent_jax.divergence,
        PAIR,
        {"kind": kind} | ({"order": 0.5} if kind == "renyi" else {}),
        _both_sides("logits", "teacher_logits"),
    )
    for kind in KINDS
}


def _optax(logits, labels):
    import optax

    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))


DECISIONS = LOGITS | {"labels": ("nv", None)}
DECIDED = {
    "binary_cross_entropy": Loss(crossent_jax.binary_cross_entropy, DECISIONS, {}),
    "optax.sigmoid_binary_cross_entropy": Loss(_optax, DECISIONS, {}),
}
LOSSES = CROSS_ENTROPY | SOFT | DIVERGENCES | DECIDED


def cells(losses: dict[str, Loss] = LOSSES, dtypes=DTYPES) -> Iterator[Cell]:
    for name, loss in losses.items():
        for dtype in dtypes:
            for side in ((), *loss.sides):
                yield Cell(name, side, dtype)


def allowed_bytes(shape: Shape) -> int:
    return 64 * shape.n + 4 * 2**20


def program_of(cell: Cell, shape: Shape, **more: Any) -> tuple[Callable, list[tuple[tuple[int, ...], str]]]:
    """The function of the cell's arrays, and their shapes and dtypes. ``more``: arguments of the loss beside its options."""
    loss = (LOSSES | NUMBERS | PAIRS)[cell.loss]
    names, sizes = list(loss.arrays), {"n": shape.n, "v": shape.v}

    def value(*given):
        return loss.function(**dict(zip(names, given, strict=True)), **loss.options, **more)

    sides = tuple(names.index(name) for name in cell.side)
    function = jax.value_and_grad(value, sides) if sides else value
    return function, [(tuple(sizes[axis] for axis in axes), dtype or cell.dtype) for axes, dtype in loss.arrays.values()]


def temporary_bytes(chip: str, cell: Cell, shape: Shape) -> int:
    """Of the cell's program, compiled for a chip or "cpu"."""
    function, given = program_of(cell, shape)
    return compile_for(chip, function, *given).memory_analysis().temp_size_in_bytes


def row_of(chip: str, cell: Cell) -> dict:
    """As in files of results; the option is part of the operation's name."""
    fields = {"op": f"memory of {cell.loss}", **SHAPE._asdict(), "dtype": cell.dtype, "mode": mode_of(cell.side)}
    row = fields | {"impl": "optax" if cell.loss.startswith("optax") else "ours", "platform": f"as compiled for {chip}"}
    return row | {"status": "ok", "temp_bytes": temporary_bytes(chip, cell, SHAPE), "allowed_bytes": allowed_bytes(SHAPE)}


def show(console, chip: str, loss: str, rows: list[dict]) -> None:
    """A line of MiB for each dtype, in red where more is held than is promised."""
    drawn = Table(title=f"{chip}: {loss}, MiB beside the gradient", title_justify="left", show_edge=False, pad_edge=False)
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    for title in ("", *modes):
        drawn.add_column(title, justify="right" if title else "left")
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        held = [row for row in rows if row["dtype"] == dtype]
        cells = [table.number(row["temp_bytes"], ",.1f", 2**-20) for row in held]
        marked = [f"[red]{c}[/red]" if r["temp_bytes"] > r["allowed_bytes"] else c for c, r in zip(cells, held, strict=True)]
        drawn.add_row(dtype, *marked)
    console.print(drawn)


def chosen_chips(options: Namespace) -> list[str]:
    chips = known("chip", options.chip, ("cpu", *CHIPS))
    if chips is None:
        return ["cpu", *(chip for chip in TESTED if not missing_compiler(chip))]
    for chip in chips:
        if package := missing_compiler(chip):
            raise Bad(f"compiling for {chip} needs the package {package}")
    return chips


def main(options: Namespace) -> int:
    console, chips = table.console(), chosen_chips(options)
    losses = PAIRS if options.pairs else LOSSES
    if options.out:
        environment = machine() | {"platform": "memory", "device": ", ".join(chips)}
        records.create(options.out, [records.line_of("environment", **environment)])
    with bar(console) as progress:
        task = progress.add_task("", total=len(losses) * len(chips))
        for chip in chips:
            for name, loss in losses.items():
                progress.update(task, description=f"{chip}: {name}")
                rows = [row_of(chip, cell) for cell in cells({name: loss}, options.dtype or DTYPES)]
                if options.out:
                    records.append(options.out, [records.line_of("row", **row) for row in rows])
                show(progress.console, chip, name, rows)
                progress.advance(task)
    return 0
