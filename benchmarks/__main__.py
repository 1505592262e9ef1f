"""``python -m benchmarks``: run, compare, plot, targets, aot, memory, meshes, pod, list or env; see ``--help`` of each."""

import argparse
import json
import sys
from pathlib import Path

from .shapes import DTYPES, MODES, PAGES, PRESETS, SUITES


def threshold(text: str) -> float:
    """``5%`` or ``0.05``."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}: give a percentage such as 5%") from None
    if not 0 <= value < (10 if text.endswith("%") else 1):
        raise argparse.ArgumentTypeError(f"got {text!r}: give a percentage from 0% up, such as 5%")
    return value


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}: give a positive number")
    return value


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}: give a whole number from 1 up")
    return int(text)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Which cases: the same for ``run`` and ``aot``. Names are checked against the tables, which need JAX, later."""
    parser.add_argument("--op", nargs="+", help="operations (see `list`)")
    parser.add_argument("--impl", nargs="+", help="implementations (see `list`)")
    parser.add_argument("--shape", nargs="+", help=f"n=,v= or n=,d=,v= or {', '.join(PRESETS)}; replaces the suite's shapes")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    parser.add_argument("--mode", nargs="+", choices=MODES)
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="keep the results; never overwrites")


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, compare and draw losses.")
    commands = whole.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure on this device")
    run.add_argument("--suite", nargs="+", help=f"{', '.join(SUITES)} (default: smoke)")
    add_choice(run)
    run.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: JAX's choice")
    run.add_argument(
        "--pages",
        choices=(*PAGES, "both"),
        help="of a CPU's memory: kept between calls, or fresh from the kernel (default: kept; of the smoke suite's large "
        "cases both)",
    )
    run.add_argument("--seconds", type=positive, help="timing of each contender and case (default 1.5; smoke 0.4)")
    run.add_argument("--memory", type=positive, metavar="GIB", help="most that a case may take of a CPU's memory")
    run.add_argument("--timeout", type=positive, default=900, help="seconds for one case (default 900)")
    run.add_argument("--resume", action="store_true", help="go on with the file of --out")
    compare = commands.add_parser("compare", help="two files of results; exit status 1 if the second is slower")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument("--threshold", type=threshold, default=0.05, help="how much slower is a regression (default 5%%)")
    compare.add_argument("--ratios", action="store_true", help="ratios to the naive formula, and exact figures: for CI")
    compare.add_argument("--common", action="store_true", help="compare the cases that both files have")
    plot = commands.add_parser("plot", help="draw files of results")
    plot.add_argument("files", type=Path, nargs="+")
    plot.add_argument("--out", type=Path, default=Path("plots"), metavar="FOLDER", help="default: plots")
    targets = commands.add_parser("targets", help="what the library promises, beside what the files say")
    targets.add_argument("files", type=Path, nargs="*", help="default: the committed results")
    aot = commands.add_parser("aot", help="what the compiler of a chip that is not here says")
    aot.add_argument("--chip", nargs="+", help="default: all that can be compiled for")
    add_choice(aot)
    aot.add_argument(
        "--profile", action="store_true", help="cycles of the static profiler of v5e, v5p and v6e too: minutes each"
    )
    aot.add_argument("--options", metavar="NAME", help="of cross_entropy, by a name of `memory`; or all numbers")
    aot.add_argument("--timeout", type=positive, default=900, help="seconds for one compilation (default 900)")
    memory = commands.add_parser("memory", help="what every option holds beside the gradient, as compiled")
    memory.add_argument(
        "--chip", nargs="+", help="cpu or a chip; default: cpu, v5e, v6e and h100, where there are compilers"
    )
    memory.add_argument("--dtype", nargs="+", choices=DTYPES)
    memory.add_argument("--pairs", action="store_true", help="every two options of cross_entropy together, instead")
    memory.add_argument("--out", type=Path, metavar="FILE.jsonl", help="keep the results; never overwrites")
    meshes = commands.add_parser("meshes", help="every loss and option on meshes of eight CPU devices, beside one device")
    meshes.add_argument("--loss", nargs="+", metavar="WORDS", help="those with these words in their names")
    meshes.add_argument("--out", type=Path, metavar="FILE.jsonl", help="keep the results; never overwrites")
    pod = commands.add_parser("pod", help="predicted time, wire and memory of a linear loss from one chip to a pod")
    pod.add_argument("--chip", choices=("v5e", "v5p", "v6e"), default="v5p", help="default: v5p")
    pod.add_argument("--rows", type=count, default=512 * 8192, help="of a step, all chips together (default 512 x 8192)")
    pod.add_argument("--features", type=count, default=8192, help="default 8192")
    pod.add_argument("--vocabulary", type=count, default=131072, help="default 131072")
    pod.add_argument(
        "--model", type=count, default=8, help="chips that split the vocabulary where rows are split too (default 8)"
    )
    commands.add_parser("list", help="suites, operations, implementations and shapes")
    env = commands.add_parser("env", help="what a result would be measured on")
    env.add_argument("--device", choices=("cpu", "gpu", "tpu"))
    return whole


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        from . import aot, compare, listing, memory, meshes, plots, pod, records, run, targets
    except ModuleNotFoundError as error:
        print(f"benchmarks: the package {error.name} is missing: pip install '.[bench]'", file=sys.stderr)
        return 2
    commands = {
        "run": run.main,
        "compare": compare.main,
        "plot": plots.main,
        "targets": targets.main,
        "aot": aot.main,
        "memory": memory.main,
        "meshes": meshes.main,
        "pod": pod.main,
        "list": listing.main,
        "env": lambda options: print(json.dumps(run.environment_of(options), indent=1)) or 0,
    }
    try:
        return commands[options.command](options)
    except records.Bad as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
