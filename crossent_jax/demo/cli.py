"""The command line: options, checks with a clear fix, and the choice of the task."""

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

DEMO_PACKAGES = {"matplotlib": "matplotlib", "tqdm": "tqdm", "scikit-learn": "sklearn"}
TASK_MODULES = {"text": "crossent_jax.demo.language", "digits": "crossent_jax.demo.digits"}
STEPS = {"text": 1400, "digits": 600}
BATCH = {"text": 8, "digits": 128}
WRONG_USAGE, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo. Exit status: 0 beat the baseline, 1 did not, 2 wrong usage, 130 Ctrl-C."""
    options = parse(arguments)
    if missing := missing_packages():
        print(f"the demo needs {', '.join(missing)}: pip install crossent-jax[demo]", file=sys.stderr)
        return WRONG_USAGE
    try:
        return run_task(options)
    except KeyboardInterrupt:
        print("\ninterrupted by Ctrl-C outside training: no report was finished", file=sys.stderr)
        return INTERRUPTED


def missing_packages() -> list[str]:
    """What the demo needs and this Python lacks, by the names that pip knows."""
    return [name for name, module in DEMO_PACKAGES.items() if importlib.util.find_spec(module) is None]


def run_task(options: argparse.Namespace) -> int:
    """Imports the task only now, so that a missing package gets its message first."""
    from .experiment import Options, WrongUsage

    task = importlib.import_module(TASK_MODULES[options.task])
    try:
        return task.main(Options(**{name: getattr(options, name) for name in Options._fields}))
    except WrongUsage as error:
        print(f"python -m crossent_jax.demo: error: {error}", file=sys.stderr)
        return WRONG_USAGE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked and complete, with the deadline; the folder for the picture exists."""
    parser, start = make_parser(), time.perf_counter()
    options = parser.parse_args(arguments)
    options.steps = options.steps or STEPS[options.task]
    options.deadline = start + options.seconds
    options.batch = options.batch or BATCH[options.task]
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot make the folder {options.out} ({error.strerror}): name another one")
    return options


def make_parser() -> argparse.ArgumentParser:
    """The parser of every option, with its help and its range."""
    parser = argparse.ArgumentParser(
        prog="python -m crossent_jax.demo",
        description="Trains a small model with crossent_jax and, beside it, with the naive formula. "
        "Exit status: 0 if it beats the baseline on held-out data, 1 if not, 130 after Ctrl-C.",
    )
    count = number(int, 1, 10**9, "give a whole number of at least 1")
    vocab = number(int, 257, 8192, "give 257 (every byte and a file boundary) to 8192; 1024 to 4096 works well")
    length = number(int, 2, 4096, "give 2 to 4096 tokens")
    seed = number(int, 0, 2**32 - 1, "give a whole number from 0 to 4294967295")
    seconds = number(float, 0.001, 1e9, "give a number of seconds above 0")
    add = parser.add_argument
    add("--task", choices=TASK_MODULES, default="text", help="text: language model (default); digits: classifier")
    add("--steps", type=count, help="training steps of each model (default: text 1400, digits 600)")
    add("--seconds", type=seconds, default=140.0, help="stop training this long after the start (default: %(default)s)")
    add("--batch", type=count, help="examples in a batch (default: text 8 sequences, digits 128 images)")
    add("--vocab", type=vocab, default=2048, help="text: size of the BPE vocabulary (default: %(default)s)")
    add("--seq-len", type=length, default=64, help="text: tokens in a sequence (default: %(default)s)")
    add("--seed", type=seed, default=0, help="of the parameters and the order of batches (default: %(default)s)")
    add("--out", type=Path, default=Path("demo_output"), help="folder for the picture (default: %(default)s)")
    add("--no-naive", dest="naive", action="store_false", help="do not train the naive formula beside it")
    return parser


def number(kind: type, lowest: int | float, highest: int | float, advice: str) -> Callable[[str], float]:
    """An argparse type that accepts `lowest` to `highest`, and says what to do about anything else."""

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"got {text!r}: {advice}")
        return value

    return convert
