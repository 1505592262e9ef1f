"""What a call of ``sharded`` moves between devices: the bytes of the results of its collectives on one device.

A device sees r rows, all those that its devices of the vocabulary share, and has v of the classes, c such parts; f devices
split the features d of the head. Items of h bytes (hidden states), w (the head) and s (sums and statistics: 4, or 8):

| | value | gradient |
|---|---|---|
| hidden states, rows split by the vocabulary's axis too | gathered, r d h | scattered, r d h / c |
| hidden states, vocabulary split | | added up, r d s |
| head, features split | gathered, d v w | scattered, d v w / f; before that added up over other axes of rows, d v s |
| head, rows split | | added up over the axes of rows, d v s |
| rows, vocabulary split | k numbers each, r k s (k: ``_dense.shards``) | |
| labels and the like, placed as such hidden states | gathered; of targets, the own classes' | |
| loss, rows split | its sum and its weight, 2 s | |

Gradients count whether or not they are taken. Not in it: numbers of each row of ``linear_divergence``, rows that the last
chunk sees again, the borders of a sequence with ``shift``, the gradients of other arguments.
Eight H100s move just that, of float32 sums and bfloat16 arrays; of these a CPU gathers and scatters float32, and a v5e adds
up gradients in bfloat16 (as compiled, jax 0.10.2).
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from .._jax.dtypes import statistics_dtype
from .._row.user_loss import trace
from .mesh_specs import HEADS, HIDDEN, OF_LOGITS, OF_ROWS, devices_of

if TYPE_CHECKING:
    from .sharded import Layout  # which imports this


class Moved(NamedTuple):
    """Of one argument: how it is moved, with bytes, and how its gradient is."""

    what: str
    how: str
    value: int
    how_gradient: str = ""
    gradient: int = 0

    def __str__(self) -> str:
        parts = [f"{self.how}, {_size(self.value)}"] if self.value else []
        parts += [f"its gradient {self.how_gradient}, {_size(self.gradient)}"] if self.gradient else []
        return f"{self.what}: {'; '.join(parts)}"


def _size(count: int) -> str:
    unit, name = next((unit, name) for unit, name in ((1e6, "MB"), (1e3, "kB"), (1, "bytes")) if count >= 0.9995 * unit)
    return f"{count / unit:,.3g} {name}" if count < 999.5 * unit else f"{count / unit:,.0f} {name}"


class Movement(NamedTuple):
    """Which mesh axes split what, in words, what that moves, and what of it is not counted."""

    split: str
    moved: list[Moved]
    left_out: list[str]

    def __str__(self) -> str:
        return "\n  ".join([f"sharded: {self.split}", *map(str, self.moved), *self.left_out])


def movement(layout: "Layout", function: str, first: list, arrays: dict[str, Any], options: dict[str, Any]) -> Movement:
    """Of a call of the function of this name. ``first``: the arguments that stand before its arrays."""
    names = {"rows": layout.axes, "vocabulary": layout.classes, "features of the head": layout.features}
    split = ", ".join(f"{what} over {_over(axes)}" for what, axes in names.items() if axes)
    left_out = layout.classes is not None and function == "linear_divergence"
    words = [f"each row: numbers over {layout.classes!r}, which are not counted for {function}"] if left_out else []
    numbers = _numbers_of_a_row(function, first, arrays, options) if layout.classes else 0
    return Movement(split or "nothing is split", _moved(layout, numbers, arrays, options), words)


def _over(names: tuple[str, ...] | str) -> str:
    return " and ".join(map(repr, (names,) if isinstance(names, str) else names))


def _moved(layout: "Layout", numbers: int, arrays: dict[str, Any], options: dict[str, Any]) -> list[Moved]:
    """The module's table. ``numbers``: of each row."""
    wide = statistics_dtype(jnp.result_type(arrays["hidden"])).itemsize
    rows = math.prod(arrays["hidden"].shape[:-1]) // devices_of(layout.axes)
    found = [_hidden(layout, name, arrays[name], rows, wide) for name in HIDDEN if name in arrays]
    found += [_head(layout, name, arrays[name], wide) for name in HEADS if name in arrays]
    if layout.gathered is not None and layout.classes is not None:
        of_rows, of_logits = (
            sum(x.size * x.dtype.itemsize for x in jax.tree.leaves([arrays[name] for name in names if name in arrays]))
            for names in (OF_ROWS, OF_LOGITS)
        )
        size = (of_rows + of_logits // devices_of((layout.classes,))) // devices_of(layout.axes)
        found += [Moved("labels and the like", f"moved over {layout.classes!r} if placed as hidden", size)]
    found += [Moved("each row", f"{numbers} numbers over {layout.classes!r}", rows * numbers * wide)] if numbers else []
    sums = {"mean": 2, "loss_sum": 2, "sum": 1}.get(options.get("reduction", "none"), 0) if layout.axes else 0
    found += [Moved("loss", f"summed over {_over(layout.axes)}", sums * wide)] if sums else []
    return [each for each in found if each.value or each.gradient]


def _hidden(layout: "Layout", name: str, x, rows: int, wide: int) -> Moved:
    numbers, item = rows * x.shape[-1], x.dtype.itemsize
    if layout.classes is None:
        return Moved(name, "", 0)
    over = f"over {layout.classes!r}"
    if layout.gathered is None:
        return Moved(name, "", 0, f"summed {over}", numbers * wide)
    parts = devices_of((layout.classes,))
    return Moved(name, f"gathered {over}", numbers * item, "scattered", numbers * item // parts)


def _head(layout: "Layout", name: str, x, wide: int) -> Moved:
    numbers = x.size // (devices_of((layout.classes,)) if layout.classes else 1)
    summed = tuple(axis for axis in layout.axes if axis not in layout.features)
    total, how = (numbers * wide, f"summed over {_over(summed)}") if summed else (0, "")
    if not layout.features:
        return Moved(name, "", 0, how, total)
    size = numbers * x.dtype.itemsize
    how = f"{how} and scattered" if summed else "scattered"
    return Moved(name, f"gathered over {_over(layout.features)}", size, how, total + size // devices_of(layout.features))


def _numbers_of_a_row(function: str, first: list, arrays: dict[str, Any], options: dict[str, Any]) -> int:
    """k, of losses and statistics of labels and targets; of others 0, which is not known here."""
    is_weighted = "class_weights" in arrays
    if function == "linear_loss":
        return _numbers_read(first[0], arrays)
    if function == "linear_token_log_probs":
        return 3
    if function == "linear_row_stats":
        return 7 + is_weighted
    if function not in ("linear_cross_entropy", "linear_soft_cross_entropy"):
        return 0
    given = options | arrays
    smoothed, soft = _is_on(given["label_smoothing"]), function == "linear_soft_cross_entropy"
    numbers = 3 + is_weighted + _is_on(given["entropy_weight"]) + (2 + is_weighted if smoothed else 0)
    return numbers + soft + (soft and _is_on(given["poly_epsilon"]))


def _numbers_read(loss_fn: Any, arrays: dict[str, Any]) -> int:
    """k of a loss of one's own: the maximum and its sum, and what else belongs to the statistics that it reads."""
    hidden = arrays["hidden"]
    reads = trace(loss_fn, arrays.get("row_args", ()), hidden.ndim - 1, statistics_dtype(hidden.dtype)).reads
    of_label = not reads.isdisjoint(("nll", "target_probability"))
    return 2 + of_label + ("entropy" in reads) + 2 * ("ce_prior" in reads) + ("argmax" in reads)


def _is_on(option: Any) -> bool:
    """Of a scalar option: a Python 0 is off."""
    return not (isinstance(option, int | float) and option == 0)
