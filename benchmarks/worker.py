"""One process for one case: every contender compiled, run once, checked against float64, then all timed in turns.

Speaks JSON lines on standard output: ``{"begin": name}`` before anything that may kill the process, ``{"row": ...}`` for
every result. :mod:`benchmarks.run` starts it, and knows what was begun if it dies.
"""

import contextlib
import json
import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from .contenders import CONTENDERS
from .contenders.sharded import place
from .device import ceilings, device_milliseconds, peak_bytes
from .environment import environment
from .operations import OPERATIONS, SHARDED, arguments, least_bytes, product_operations
from .programs import Program, jax_program, reason, torch_program, torch_tensors
from .shapes import Case, Shape
from .timing import median_ratio, rounds_of, summary
from .truth import Truth

INPUT_BYTES = 2**26  # copies of the inputs fill this much, so that a call does not find its own in a cache
MOST_COPIES = 16
OUTPUT = sys.stdout


def say(**message: Any) -> None:
    OUTPUT.write(json.dumps(message) + "\n")
    OUTPUT.flush()


class Measurement:
    """A case in progress. Contenders that fail are rows with the reason, and take no further part."""

    def __init__(self, case: Case, names: list[str], failed: dict[str, str], seconds: float, limit: int | None):
        self.case, self.seconds, self.limit = case, seconds, limit
        self.operation = OPERATIONS[case.operation]
        self.platform = jax.default_backend()
        self.contenders = {name: CONTENDERS[case.operation][name] for name in names}
        self.sharded = case.operation in SHARDED
        alone = "one device: classes are split over two or more" if self.sharded and jax.device_count() < 2 else None
        reasons = {name: alone or contender.absence(case, self.platform) for name, contender in self.contenders.items()}
        self.failed, self.absent = dict(failed), {name: why for name, why in reasons.items() if why}
        say(begin="inputs")
        copies = [self.inputs(0)]
        self.input_bytes = sum(a.nbytes for a in copies[0])
        count = 1 if case.mode == "eager" else min(MOST_COPIES, -(-INPUT_BYTES // self.input_bytes))
        self.copies = copies + [self.inputs(seed) for seed in range(1, count)]
        self.programs: dict[str, Program] = {}
        self.results: dict[str, dict] = {}

    def inputs(self, seed: int) -> tuple:
        drawn = arguments(self.case, seed)
        return jax.block_until_ready(place(drawn) if self.sharded else jax.device_put(drawn))

    def attempt(self, name: str, function: Callable[[], Any]) -> Any:
        """The function's result, or None after its failure is noted."""
        say(begin=name)
        try:
            return function()
        except Exception as error:  # whatever a contender raises is a cell of the table
            self.failed[name] = reason(error)
            self.programs.pop(name, None)
            return None

    def running(self, library: str | None = None) -> list[str]:
        """Names that take part, those that need least memory first."""
        names = [n for n in self.contenders if n not in self.absent | self.failed]
        names = [n for n in names if library in (None, self.contenders[n].library)]
        return sorted(names, key=lambda n: (self.programs[n].temp_bytes or 0) if n in self.programs else 0)

    def make(self, name: str, case: Case, arguments: tuple) -> Program:
        contender = self.contenders[name]
        program = (jax_program if contender.library == "jax" else torch_program)(contender, case, arguments)
        needed = (program.temp_bytes or 0) + 2 * self.input_bytes
        if self.limit and needed > self.limit:
            raise MemoryError(f"needs {needed / 2**30:.1f} GiB of the {self.limit / 2**30:.1f} allowed")
        return program

    def compile(self) -> None:
        for name in self.running():
            program = self.attempt(name, partial(self.make, name, self.case, self.copies[0]))
            if program:
                self.programs[name] = program

    def arguments_of(self, name: str, arguments: tuple) -> tuple:
        if self.contenders[name].library == "jax":
            return arguments
        return torch_tensors(arguments, self.operation.differentiated)

    def check(self) -> None:
        """Peak memory of a first run, and errors against float64."""
        names = self.running()
        for name in names:
            arguments, run = self.arguments_of(name, self.copies[0]), self.programs[name].run
            self.results[name] = {"peak_bytes": self.attempt(name, partial(peak_bytes, partial(run, *arguments)))}
        truth = self.truth()
        for name in self.running() if truth else ():
            if self.contenders[name].is_loss:
                errors = self.attempt(name, partial(self.errors, name, truth))
                self.results[name] |= (errors or {}) | {"error_rows": truth.rows}

    def truth(self) -> Truth | None:
        """None where the host has no memory for it: errors are then unknown, times are not."""
        say(begin="float64")
        with unbounded_memory(), contextlib.suppress(MemoryError):  # the bound is a contender's
            return Truth(self.case, self.copies[0])

    def errors(self, name: str, truth: Truth) -> dict[str, float | None]:
        program = self.programs[name] if truth.whole else self.make(name, truth.case, truth.arguments)
        return truth.errors(program.run(*self.arguments_of(name, truth.arguments)))

    def time(self) -> None:
        """JAX's contenders in turns, then torch's: its threads go on spinning after a call, on everybody's cores."""
        for library in ("jax", "torch"):
            names = self.running(library)
            inputs = [self.arguments_of(names[0], copy) for copy in self.copies] if names else []
            runs = {name: partial(rotated, self.programs[name].run, inputs) for name in names}
            if not runs:
                continue
            say(begin=f"timing {', '.join(names)}")
            rounds = rounds_of(runs, self.seconds)
            base = rounds.get("ours")
            for name in names:
                self.results[name] |= {"wall_ms": summary(rounds[name])}
                if base is not None:
                    self.results[name]["to_ours"] = median_ratio(rounds[name], base)
            for name in names if library == "jax" else ():
                self.results[name] |= traced(runs[name])
        self.compare_across_libraries()

    def compare_across_libraries(self) -> None:
        """torch's ratio to ours is one of medians: they were not timed in the same rounds."""
        ours = self.results.get("ours", {}).get("wall_ms")
        for result in self.results.values():
            if ours and "wall_ms" in result and "to_ours" not in result:
                result["to_ours"] = result["wall_ms"]["median"] / ours["median"]

    def row(self, name: str) -> dict:
        row: dict[str, Any] = {
            "impl": name,
            "ranked": self.contenders[name].ranked,
            "platform": self.platform,
            "input_copies": len(self.copies),
        }
        if name in self.absent:
            return row | {"status": "absent", "reason": self.absent[name]}
        if name in self.failed:
            return row | {"status": "failed", "reason": self.failed[name]}
        program = self.programs[name]
        compiled = {"compile_ms": program.compile_ms, "temp_bytes": program.temp_bytes, "dots": program.dots}
        return row | {"status": "ok"} | compiled | self.work(name) | self.results[name]

    def work(self, name: str) -> dict:
        """Written formulas over the device's time, or the wall's where nobody knows it."""
        result = self.results[name]
        milliseconds = (result.get("device_ms") or result["wall_ms"])["median"]
        operations = product_operations(self.case, self.contenders[name].products)
        return {
            "operations": operations,
            "least_bytes": least_bytes(self.case),
            "tokens_per_second": 1e3 * self.case.shape.n / milliseconds,
            "operations_per_second": 1e3 * operations / milliseconds,
            "bytes_per_second": 1e3 * least_bytes(self.case) / milliseconds,
        }


def traced(run: Callable[[int], Any]) -> dict[str, Any]:
    """The device's time; where the profiler fails, why: the wall's time stands without it."""
    try:
        times = device_milliseconds(run)
    except Exception as error:
        return {"device_ms": None, "no_device_time": reason(error)}
    return {"device_ms": None if times is None else summary(times)}


def rotated(run: Callable, inputs: list[tuple], i: int) -> Any:
    return run(*inputs[i % len(inputs)])


@contextlib.contextmanager
def unbounded_memory():
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def bound_memory(limit: int | None) -> None:
    """This process may not take more of the machine's memory; what needs more fails by itself. A CPU's limit only:
    drivers of accelerators reserve addresses as they like."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def measure(case: Case, names: list[str], failed: dict[str, str], seconds: float, limit: int | None) -> None:
    on_cpu = jax.default_backend() == "cpu"
    bound_memory(limit if on_cpu else None)
    measurement = Measurement(case, names, failed, seconds, limit if on_cpu else None)
    measurement.compile()
    measurement.check()
    measurement.time()
    for name in names:
        say(row=measurement.row(name))


def describe(dtypes: list[str]) -> None:
    say(environment=environment())
    for dtype in dtypes:
        say(ceiling={"dtype": dtype, **ceilings(dtype)})


def main(request: dict) -> None:
    if "describe" in request:
        return describe(request["describe"])
    operation, shape, dtype, mode = request["case"]
    case = Case(operation, Shape(*shape), dtype, mode)
    measure(case, request["names"], request["failed"], request["seconds"], request["limit"])


if __name__ == "__main__":
    sys.stdout = sys.stderr  # what libraries print must not mix with the messages
    main(json.loads(sys.argv[1]))
