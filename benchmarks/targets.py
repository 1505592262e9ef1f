"""What the library promises in numbers, beside what files of results say: the worst case of each, with its name.

Ratios are our time over the other's unless the text says "times longer". Without files: the committed results.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from . import table
from .records import Results, case_of, read
from .shapes import BATCHES, DISTILLED, DISTILLED_LARGE, LARGE_BATCH, LINEAR, LOGITS, PAIRS, PRESETS, Shape
from .timing import geometric_mean

COMMITTED = Path(__file__).parent / "results"
FORMULAS = ("optax-integer", "optax-one-hot", "naive", "logsumexp")
Rows = list[dict]


class Target(NamedTuple):
    """``figures(rows)``: name and value of each case. ``at_most`` is False where more is better."""

    text: str
    bound: float
    figures: Callable[[Rows], Iterable[tuple[str, float]]]
    at_most: bool = True
    mean: bool = False  # the geometric mean is held against the bound, not the worst


def by_case(rows: Rows, operation: str, dtype: str, mode: str, shapes: Iterable[Shape], platform: str = "cpu"):
    """Shape and the measured rows of its contenders, by name; those that were timed without ours say nothing."""
    found: dict[Shape, dict[str, dict]] = {}
    for row in rows:
        case = case_of(row)
        wanted = (case.operation, case.dtype, case.mode) == (operation, dtype, mode) and case.shape in tuple(shapes)
        compared = row.get("to_ours") or platform.startswith("aot")
        if wanted and row["platform"] == platform and row["status"] == "ok" and compared:
            found.setdefault(case.shape, {})[row["impl"]] = row
    return [(shape, row) for shape, row in found.items() if "ours" in row]


def against_best_formula(dtype: str, mode: str):
    """How many times longer the best formula takes."""

    def figures(rows):
        for shape, found in by_case(rows, "cross_entropy", dtype, mode, LOGITS):
            ratios = {name: found[name]["to_ours"] for name in FORMULAS if name in found}
            if ratios:
                best = min(ratios, key=ratios.__getitem__)
                yield f"{shape} {best}", ratios[best]

    return figures


def times_longer(name: str, dtype: str, mode: str):
    def figures(rows):
        for shape, found in by_case(rows, "cross_entropy", dtype, mode, LOGITS):
            if name in found:
                yield str(shape), found[name]["to_ours"]

    return figures


def memory_of_logits(rows):
    """Temporary bytes over 64 a row and 4 MiB."""
    for dtype in ("float32", "bfloat16"):
        for shape, found in by_case(rows, "cross_entropy", dtype, "value_and_grad", LOGITS):
            yield f"{shape} {dtype}", found["ours"]["temp_bytes"] / (64 * shape.n + 4 * 2**20)


def small_call(mode: str, figure: Callable[[dict, dict], float]):
    def figures(rows):
        for shape, found in by_case(rows, "cross_entropy", "float32", mode, [Shape(32, 10)]):
            if "optax-integer" in found:
                yield str(shape), figure(found["ours"], found["optax-integer"])

    return figures


def linear(dtype: str, figure: Callable[[dict], float | None], keep=lambda shape: True, shapes=LINEAR, platform="cpu"):
    """``figure`` of the rows of each shape that has one."""

    def figures(rows):
        for shape, found in by_case(rows, "linear_cross_entropy", dtype, "value_and_grad", shapes, platform):
            value = figure(found) if keep(shape) else None
            if value is not None:
                yield str(shape), value

    return figures


def to(name: str):
    return lambda found: 1 / found[name]["to_ours"] if name in found else None


def to_best_checkpoint(found):
    ratios = [1 / found[name]["to_ours"] for name in found if name.startswith("checkpoint")]
    return max(ratios, default=None)


def seven_of_eight_ignored(found):
    return found["ours-ignored"]["to_ours"] if "ours-ignored" in found else None


def frozen_head(found):
    return found["ours-frozen-head"]["to_ours"] if "ours-frozen-head" in found else None


def bare_products(found):
    both = [found[name]["wall_ms"]["median"] for name in ("products", "torch-products") if name in found]
    return both[0] / both[1] if len(both) == 2 else None


def allowed_bytes(shape: Shape) -> float:
    """The head's float32 gradient, 1.2 chunks of float32 logits, 64 bytes a row."""
    from .contenders.linear import chunk_rows

    n, v, d = shape
    return 4 * d * v + 1.2 * 4 * chunk_rows(shape) * v + 64 * n


def memory_of_linear(dtype: str, shapes=LINEAR, platform="cpu"):
    def figures(rows):
        for shape, found in by_case(rows, "linear_cross_entropy", dtype, "value_and_grad", shapes, platform):
            yield str(shape), found["ours"]["temp_bytes"] / allowed_bytes(shape)

    return figures


def of_cycles(impl: str, over: str):
    """The model's cycles of one over those of another."""
    return lambda found: found[impl]["model_cycles"] / found[over]["model_cycles"] if {impl, over} <= set(found) else None


def prediction(found):
    """The larger of cycles and memory, of both."""
    mine, bare = found["ours"], found.get("products")
    return bare and max(mine["model_cycles"], mine["memory_cycles"]) / max(bare["model_cycles"], bare["memory_cycles"])


def beside_head_gradient(found):
    """Temporary MiB but those of the head's float32 gradient."""
    mine = found["ours"]
    return (mine["temp_bytes"] - 4 * mine["d"] * mine["v"]) / 2**20


def milliseconds(found, rate: float = 3.35e12):
    """Of all bytes that are read and written, at an H100's documented bytes a second."""
    return 1e3 * found["ours"]["traffic_bytes"] / rate


def over_three_products(found, rate: float = 800e12):
    """Bytes beside three products, whichever takes an H100 longer, over the products at so many operations a second."""
    mine = found["ours"]
    return max(1.0, milliseconds(found) / (1e3 * 6 * mine["n"] * mine["d"] * mine["v"] / rate))


def memory_to_naive(found):
    return found["ours"]["temp_bytes"] / found["naive"]["temp_bytes"] if "naive" in found else None


def narrow(shape: Shape) -> bool:
    return shape.d <= 128


def wide(shape: Shape) -> bool:
    return shape.d >= 256


CYCLES, MEMORY = [Shape(8192, 131072, 2048)], [Shape(16384, 131072, 1024)]
SEQUENCES = [Shape(8192, 16384, 256)]  # sixteen of 512 rows
HEADS = [PRESETS["llama3"], PRESETS["qwen3"]]
PADDED = [Shape(16384, 50304, 768), Shape(16384, 50257, 768)]  # the second is odd


def targets_of_logits() -> list[Target]:
    found = []
    means = {("float32", "forward"): 1.2, ("float32", "value_and_grad"): 1.05}
    for dtype in ("float32", "bfloat16"):
        for mode in ("forward", "value_and_grad"):
            what, figures = f"cross_entropy {dtype} {mode}: best formula, times longer", against_best_formula(dtype, mode)
            found.append(Target(what, 0.97, figures, at_most=False))
            found.append(Target(what + ", mean", means.get((dtype, mode), 1.8), figures, at_most=False, mean=True))
    for mode in ("forward", "value_and_grad"):
        figures = times_longer("torch", "float32", mode)
        found.append(
            Target(f"cross_entropy float32 {mode}: torch, times longer, mean", 2.0, figures, at_most=False, mean=True)
        )
    return found + [
        Target("cross_entropy: temporary bytes over 64 n + 4 MiB", 1.0, memory_of_logits),
        Target("eager call over optax's", 2.0, small_call("eager", lambda mine, theirs: 1 / theirs["to_ours"])),
        Target(
            "trace and compile over optax's",
            1.5,
            small_call("value_and_grad", lambda mine, theirs: mine["compile_ms"] / theirs["compile_ms"]),
        ),
    ]


def targets_of_linear() -> list[Target]:
    found = []
    for dtype, mean in (("float32", 0.95), ("bfloat16", 0.75)):
        what = f"linear_cross_entropy {dtype}: "
        found += [
            Target(what + "over naive", 1.0, linear(dtype, to("naive"))),
            Target(what + "over naive, d <= 128", 0.85, linear(dtype, to("naive"), narrow)),
            Target(what + "over naive, mean", mean, linear(dtype, to("naive")), mean=True),
            Target(what + "over the best jax.checkpoint", 0.85, linear(dtype, to_best_checkpoint)),
            Target(what + "over its bare products, d >= 256", 1.2, linear(dtype, to("products"), wide)),
            Target(what + "over its bare products, d <= 128", 1.45, linear(dtype, to("products"), narrow)),
            Target(what + "frozen head over both, d >= 1024", 0.75, linear(dtype, frozen_head)),
            Target(what + "7 of 8 rows ignored over none", 0.25, linear(dtype, seven_of_eight_ignored, shapes=SEQUENCES)),
            Target(what + "temporary bytes over the bound", 1.0, memory_of_linear(dtype)),
        ]
    return found + [
        Target("linear_cross_entropy float32: over torch, d <= 128", 0.6, linear("float32", to("torch"), narrow)),
        Target("  its bare products over torch's", float("inf"), linear("float32", bare_products, narrow)),
    ]


def of_pairs(operation: str, dtype: str, figure: Callable[[Shape, dict], float | None], shapes=PAIRS, platform="cpu"):
    """``figure(shape, rows)`` of each shape of an operation on two distributions."""

    def figures(rows):
        for shape, found in by_case(rows, operation, dtype, "value_and_grad", shapes, platform):
            value = figure(shape, found)
            if value is not None:
                yield str(shape), value

    return figures


def over(name: str):
    return lambda shape, found: 1 / found[name]["to_ours"] if name in found else None


def memory_over(name: str):
    return lambda shape, found: found["ours"]["temp_bytes"] / found[name]["temp_bytes"] if name in found else None


def one_array(shape: Shape, found) -> float:
    """Temporary bytes over one float32 array of the logits' shape, and 8 MiB of blocks."""
    return found["ours"]["temp_bytes"] / (4 * shape.n * shape.v + 8 * 2**20)


def targets_of_pairs() -> list[Target]:
    found = []
    for operation in ("kl_divergence", "js_divergence", "soft_cross_entropy"):
        for dtype in ("float32", "bfloat16"):
            what, figures = f"{operation} {dtype}: over log_softmax", of_pairs(operation, dtype, over("log-softmax"))
            short = of_pairs(operation, dtype, over("log-softmax"), PAIRS[:2])
            found += [Target(what, 1.0, figures), Target(what + ", mean", 0.85, figures, mean=True)]
            found.append(Target(what + ", at most 257 classes", 0.95, short))
            memory = of_pairs(operation, dtype, one_array)
            found.append(Target(f"{operation} {dtype}: temporary bytes over one array", 1.0, memory))
    for dtype in ("float32", "bfloat16"):
        figures = of_pairs("linear_kl_divergence", dtype, over("naive"), DISTILLED)
        found.append(Target(f"linear_kl_divergence {dtype}: over naive", 1.0, figures))
    for chip in ("v5e", "v6e", "h100"):
        figures = of_pairs("linear_kl_divergence", "bfloat16", memory_over("naive"), DISTILLED_LARGE, f"aot {chip}")
        found.append(Target(f"{chip}: distillation, temporary bytes over naive's", 0.1, figures))
    large, small = [LARGE_BATCH], BATCHES[:1]
    for dtype in ("float32", "bfloat16"):
        figures = of_pairs("info_nce", dtype, over("naive"), small)
        found.append(Target(f"info_nce {dtype} of {small[0].n}: over naive", 0.9, figures))
    return found + [
        Target("info_nce of 16384: over naive", 1.1, of_pairs("info_nce", "float32", over("naive"), large)),
        Target("  temporary bytes over naive's", 0.05, of_pairs("info_nce", "float32", memory_over("naive"), large)),
    ]


def targets_of_chips() -> list[Target]:
    found = []

    def as_compiled(text: str, bound: float, figure, chip: str, shapes=CYCLES):
        figures = linear("bfloat16", figure, shapes=shapes, platform=f"aot {chip}")
        found.append(Target(f"{chip}: {text}", bound, figures))

    for chip, whole, in_4_gib, bare in (("v5e", 1.1, 1.15, 0.9), ("v6e", 1.4, 1.25, 0.9)):
        as_compiled("cycles over three whole products", whole, of_cycles("ours", "products-whole"), chip)
        as_compiled("cycles in 4 GiB over three whole products", in_4_gib, of_cycles("ours-4GiB", "products-whole"), chip)
        as_compiled("cycles over the products of our chunks", bare, of_cycles("ours", "products"), chip)
        as_compiled("the larger of cycles and memory, over the same", bare, prediction, chip)
    for chip in ("v5e", "v6e", "h100"):
        as_compiled("temporary MiB beside the head's gradient", 600, beside_head_gradient, chip)
        as_compiled("temporary bytes over naive's", 0.1, memory_to_naive, chip, MEMORY)
    as_compiled("milliseconds of its bytes", 7.5, milliseconds, "h100", PADDED)
    as_compiled("bytes beside products over three products", 1.15, over_three_products, "h100", HEADS)
    per_token = linear("bfloat16", per_token_to_products, shapes=HEADS, platform="gpu")
    return found + [
        Target("GPU: over three bare products", 1.15, linear("bfloat16", to("products"), shapes=HEADS, platform="gpu")),
        Target("GPU: per token over four bare products", 1.15, per_token),
    ]


def targets_of_meshes() -> list[Target]:
    def largest(kind: str):
        def figures(rows):
            for row in rows:
                if row["op"].startswith("meshes: "):
                    yield f"{row['op'].removeprefix('meshes: ')}; {row['impl']}", 1e6 * row[kind]

        return figures

    return [
        Target("meshes: error of a value, millionths", 1, largest("loss_error")),
        Target("meshes: error of a gradient, millionths of its largest", 10, largest("gradient_error")),
    ]


def per_token_to_products(found):
    both = [found[name]["to_ours"] for name in ("ours-per-token", "products-4") if name in found]
    return both[0] / both[1] if len(both) == 2 else None


def targets() -> list[Target]:
    return targets_of_logits() + targets_of_linear() + targets_of_pairs() + targets_of_chips() + targets_of_meshes()


def verdict(target: Target, figures: list[tuple[str, float]]) -> tuple[str, float, bool]:
    """``(which case, figure, whether it holds)``."""
    if target.mean:
        name, figure = f"{len(figures)} shapes", geometric_mean(value for _, value in figures)
    else:
        name, figure = (max if target.at_most else min)(figures, key=lambda pair: pair[1])
    return name, figure, figure <= target.bound if target.at_most else figure >= target.bound


def bound_of(target: Target) -> str:
    if target.bound == float("inf"):
        return "shown beside"
    return f"{'at most' if target.at_most else 'at least'} {target.bound:g}"


def committed() -> list[Path]:
    return sorted(COMMITTED.glob("*.jsonl"))


def main(options: Namespace) -> int:
    """Prints every target, by file; exit status 0 whether or not it holds: a figure is not a verdict on the run."""
    found: list[Results] = [read(path) for path in options.files or committed()]
    parts = [part for results in found for part in results.by_pages().values()]
    parts.sort(key=lambda part: part.pages == "fresh")  # after those with memory kept
    drawn = Table(show_edge=False, pad_edge=False)
    for heading in ("target", "bound", "figure", "holds", "pages", "where"):
        narrow_column = heading not in ("target", "where")  # which wrap where the terminal has no room
        drawn.add_column(heading, justify="right" if heading in ("bound", "figure") else "left", no_wrap=narrow_column)
    for target in targets():
        measured = [(results, figures) for results in parts if (figures := list(target.figures(results.rows)))]
        if not measured:
            drawn.add_row(target.text, bound_of(target), "-", "not measured", "", "", style="dim")
        for results, figures in measured:
            name, figure, holds = verdict(target, figures)
            where = f"{name} ({results.path.stem})" if len(found) > 1 else name
            says = "yes" if holds else "NO"
            cells = (target.text, bound_of(target), f"{figure:.3f}", says, results.pages or "", where)
            drawn.add_row(*cells, style=None if holds else "bold")
    table.console().print(drawn)
    return 0
