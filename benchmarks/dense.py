"""Cross-entropy of logits against every formula, and torch if installed: ``python -m benchmarks.dense``.

Prints, per shape, milliseconds and how many times the best formula's time ours takes less (above 1: ours is faster), the
temporary bytes beyond the gradient, and the error of ours and of the fastest formula against float64. The worst ratio comes
before the mean.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from .contenders import FORMULAS, ours, torch_mean_losses
from .environment import write
from .shapes import DENSE
from .timing import geometric_mean, median_ratio, medians, rounds_of

MODES = ("value", "value_and_grad")


def inputs(n: int, v: int, dtype: str):
    logits = (3 * jax.random.normal(jax.random.key(0), (n, v))).astype(dtype)
    return logits, jax.random.randint(jax.random.key(1), (n,), 0, v)


def exact_loss(logits, labels) -> float:
    z = np.asarray(logits.astype(jnp.float32), np.float64)
    top = z.max(1)
    chosen = z[np.arange(len(z)), np.asarray(labels)]
    return float(np.mean(np.log(np.exp(z - top[:, None]).sum(1)) - (chosen - top)))


def compiled(function, mode: str, *arguments):
    wrapped = jax.value_and_grad(function) if mode == "value_and_grad" else function
    return jax.jit(wrapped).lower(*arguments).compile()


def measure(n: int, v: int, dtype: str, mode: str, seconds: float) -> dict:
    """One row of the table."""
    arguments = inputs(n, v, dtype)
    programs = {name: compiled(f, mode, *arguments) for name, f in {"ours": ours, **FORMULAS}.items()}
    runs = {name: partial(program, *arguments) for name, program in programs.items()}
    torch_runs = torch_mean_losses(*arguments, gradient=mode == "value_and_grad")
    rounds = rounds_of(runs, seconds)
    times = {name: float(np.median(rounds[name])) for name in runs}
    ratios = {name: median_ratio(rounds[name], rounds["ours"]) for name in FORMULAS}
    times |= medians(torch_runs, seconds)  # on its own: its threads go on spinning after a call, on everybody's cores
    best = min(ratios, key=ratios.__getitem__)
    exact = exact_loss(*arguments)

    def error(name):
        return abs(float(jax.tree.leaves((runs | torch_runs)[name]())[0]) - exact)

    return {
        "shape": [n, v],
        "dtype": dtype,
        "mode": mode,
        "milliseconds": times,
        "best": best,
        "ratio_to_best": ratios[best],
        "ratios_to_torch": {name: times[name] / times["ours"] for name in torch_runs},
        "temporary_bytes": programs["ours"].memory_analysis().temp_size_in_bytes,
        "temporary_bytes_allowed": 64 * n + 4 * 2**20,
        "error": error("ours"),
        "error_of_best": error(best),
        "errors_of_torch": {name: error(name) for name in torch_runs},
    }


def show(row: dict) -> None:
    times = "  ".join(f"{name} {value:.2f}" for name, value in row["milliseconds"].items())
    torch_ratios = "".join(f", {ratio:.2f}x {name}" for name, ratio in row["ratios_to_torch"].items())
    errors = {"ours": row["error"], row["best"]: row["error_of_best"]} | row["errors_of_torch"]
    print(
        f"{row['dtype']:>8} {row['mode']:<14} {row['shape'][0]:>6} x {row['shape'][1]:<6} "
        f"{row['ratio_to_best']:.2f}x best ({row['best']}){torch_ratios}  | ms: {times}  | "
        f"temp {row['temporary_bytes']:,} B  | error: {'  '.join(f'{name} {error:.1e}' for name, error in errors.items())}",
        flush=True,
    )


def summarize(rows: list[dict]) -> list[dict]:
    """Worst first, then the geometric mean, per dtype and mode."""
    summaries = []
    for dtype, mode in dict.fromkeys((row["dtype"], row["mode"]) for row in rows):
        group = [row for row in rows if (row["dtype"], row["mode"]) == (dtype, mode)]
        ratios = [row["ratio_to_best"] for row in group]
        against = group[0]["ratios_to_torch"]
        summaries.append(
            {
                "dtype": dtype,
                "mode": mode,
                "shapes": len(group),
                "worst_ratio_to_best": min(ratios),
                "geometric_mean_to_best": geometric_mean(ratios),
                "geometric_means_to_torch": {
                    name: geometric_mean(row["ratios_to_torch"][name] for row in group) for name in against
                },
                "memory_within_bound": all(row["temporary_bytes"] <= row["temporary_bytes_allowed"] for row in group),
            }
        )
    return summaries


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--mode", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--seconds", type=float, default=2.6, help="time per function and shape (default 2.6)")
    parser.add_argument("--out", type=Path, help="write the rows and the summary as JSON")
    options = parser.parse_args()
    rows = []
    for dtype in options.dtype:
        for mode in options.mode:
            for n, v in DENSE:
                rows.append(measure(n, v, dtype, mode, options.seconds))
                show(rows[-1])
    summaries = summarize(rows)
    for summary in summaries:
        print(summary)
    if options.out:
        write(options.out, summary=summaries, rows=rows)


if __name__ == "__main__":
    main()
