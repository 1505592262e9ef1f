"""One process for one case: every contender compiled, run once, checked against float64, then all timed in turns.

Speaks JSON lines on standard output: ``{"begin": name}`` before anything that may kill the process, ``{"row": ...}`` as soon
as a result is complete. :mod:`benchmarks.run` starts it, and knows what was begun if it dies.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from .contenders import CONTENDERS, Contender
from .contenders.sharded import place
from .device import ceilings, device_milliseconds, peak_bytes
from .environment import environment
from .operations import OPERATIONS, SHARDED, arguments, least_bytes, product_operations
from .programs import Program, jax_program, reason, torch_absence, torch_program, torch_tensors
from .shapes import Case, case_from
from .timing import median_ratio, milliseconds, rounds_of, summary
from .truth import Truth

INPUT_BYTES = 2**27  # copies of the inputs fill this much, so that a call does not find its own in a cache
MOST_COPIES = 32
SLOW = 3e3  # milliseconds: a call that takes longer is not repeated
OUTPUT = os.fdopen(os.dup(1), "w")


def say(**message: Any) -> None:
    OUTPUT.write(json.dumps(message) + "\n")
    OUTPUT.flush()


class Measurement:
    """A case in progress. Contenders that fail are rows with the reason, and take no further part."""

    def __init__(self, case: Case, request: dict, limit: int | None):
        self.case, self.limit = case, limit
        self.seconds, self.checked = request["seconds"], request["checked"]
        self.operation = OPERATIONS[case.operation]
        self.platform = jax.default_backend()
        self.contenders = {name: CONTENDERS[case.operation][name] for name in request["names"]}
        self.sharded = case.operation in SHARDED
        alone = "one device: classes are split over two or more" if self.sharded and jax.device_count() < 2 else None
        reasons = {name: alone or self.absence(contender) for name, contender in self.contenders.items()}
        self.failed, self.absent = dict(request["failed"]), {name: why for name, why in reasons.items() if why}
        say(begin="inputs")
        copies = [self.inputs(0)]
        self.input_bytes = sum(a.nbytes for a in copies[0])
        count = 1 if case.mode == "eager" else min(MOST_COPIES, -(-INPUT_BYTES // self.input_bytes))
        self.copies = copies + [self.inputs(seed) for seed in range(1, count)]
        self.programs: dict[str, Program] = {}
        self.results: dict[str, dict] = {}
        self.once_ms: dict[str, float] = {}

    def absence(self, contender: Contender) -> str | None:
        why = contender.absence(self.case, self.platform)
        return why or (torch_absence() if contender.library == "torch" else None)

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
        """Names that take part: JAX's, those that need least memory first, then torch's, which may upset the device."""
        names = [n for n in self.contenders if n not in self.absent | self.failed]
        names = [n for n in names if library in (None, self.contenders[n].library)]
        temporary = {name: program.temp_bytes or 0 for name, program in self.programs.items()}
        return sorted(names, key=lambda name: (self.contenders[name].library, temporary.get(name, 0)))

    def make(self, name: str, case: Case, arguments: tuple) -> Program:
        contender = self.contenders[name]
        program = (jax_program if contender.library == "jax" else torch_program)(contender, case, arguments)
        needed = (program.temp_bytes or 0) + 2 * self.input_bytes
        if self.limit and needed > self.limit:
            raise MemoryError(f"needs {needed / 2**30:.1f} GiB of the {self.limit / 2**30:.1f} allowed")
        return program

    def compile(self) -> None:
        jax.jit(lambda x: x + 1).lower(1.0).compile()  # the first compilation of a process is not anybody's
        for name in self.running():
            program = self.attempt(name, partial(self.make, name, self.case, self.copies[0]))
            if program:
                self.programs[name] = program

    def arguments_of(self, name: str, arguments: tuple) -> tuple:
        if self.contenders[name].library == "jax":
            return arguments
        return torch_tensors(arguments, self.operation.differentiated, self.contenders[name].head_by_class)

    def check(self) -> None:
        """Peak memory of a first run, and errors against float64."""
        names = self.running()
        for name in names:
            run = partial(self.programs[name].run, *self.arguments_of(name, self.copies[0]))
            start = time.perf_counter()
            self.results[name] = {"peak_bytes": self.attempt(name, partial(peak_bytes, run, self.contenders[name].library))}
            self.once_ms[name] = 1e3 * (time.perf_counter() - start)
            if self.once_ms[name] > SLOW and name not in self.failed:  # again: the first may have compiled
                self.once_ms[name] = self.attempt(name, lambda run=run: milliseconds(lambda i: run(), 0, 1))
        truth = self.truth()
        for name in self.running() if truth else ():
            if self.contenders[name].is_loss:
                errors = self.attempt(name, partial(self.errors, name, truth))
                self.results[name] |= (errors or {}) | {"error_rows": truth.rows}

    def truth(self) -> Truth | None:
        """None where the host has no memory for it: errors are then unknown, times are not."""
        if not self.checked:
            return None
        say(begin="float64")
        with unbounded_memory(), contextlib.suppress(MemoryError):  # the bound is a contender's
            return Truth(self.case, self.copies[0])

    def errors(self, name: str, truth: Truth) -> dict[str, float | None]:
        program = self.programs[name] if truth.whole else self.make(name, truth.case, truth.arguments)
        return truth.errors(program.run(*self.arguments_of(name, truth.arguments)))

    def time(self) -> None:
        """JAX's contenders in turns, then torch's: its threads go on spinning after a call, on everybody's cores."""
        for name in self.absent | self.failed:
            say(row=self.row(name))
        for library in ("jax", "torch"):
            names = self.running(library)
            quick = [name for name in names if self.once_ms[name] <= SLOW]
            for name in names:
                self.results[name]["wall_ms"] = summary(np.array([self.once_ms[name]]))
            try:
                self.time_in_turns(quick)
            except Exception as error:  # of one of them: none has a time
                self.failed |= dict.fromkeys(quick, f"while timed in turns: {reason(error)}")
            self.compare_to_ours(names)
            for name in names:
                say(row=self.row(name))

    def time_in_turns(self, names: list[str]) -> None:
        say(begin=f"timing {', '.join(names)}")
        inputs = {name: [self.arguments_of(name, copy) for copy in self.copies] for name in names[:1]}
        if any(self.contenders[name].head_by_class for name in names):  # those want tensors of their own
            inputs = {name: [self.arguments_of(name, copy) for copy in self.copies] for name in names}
        runs = {name: partial(rotated, self.programs[name].run, inputs.get(name, inputs[names[0]])) for name in names}
        rounds = rounds_of(runs, self.seconds)
        for name, (times, kernel) in rounds.items():
            self.results[name] |= {"wall_ms": summary(times), **kernel._asdict()}
            if "ours" in rounds:
                self.results[name]["to_ours"] = median_ratio(times, rounds["ours"].milliseconds)
            if self.contenders[name].library == "jax":
                self.results[name] |= traced(runs[name])

    def compare_to_ours(self, names: list[str]) -> None:
        """The ratio of one that was not timed in the rounds of ours, such as torch, is of medians."""
        ours = self.results.get("ours", {}).get("wall_ms") if "ours" not in self.failed else None
        for result in (self.results[name] for name in names if ours):
            result.setdefault("to_ours", result["wall_ms"]["median"] / ours["median"])

    def row(self, name: str) -> dict:
        row: dict[str, Any] = {
            "impl": name,
            "ranked": self.contenders[name].ranked,
            "platform": self.platform,
            "input_copies": len(self.copies),
            "devices": jax.device_count() if self.sharded and self.platform != "cpu" else 1,
        }
        if name in self.absent:
            return row | {"status": "absent", "reason": self.absent[name]}
        if name in self.failed:
            return row | {"status": "failed", "reason": self.failed[name]}
        program = self.programs[name]
        compiled = {"compile_ms": program.compile_ms, "temp_bytes": program.temp_bytes, "dots": program.dots}
        return row | {"status": "ok"} | compiled | self.work(name) | self.results[name]

    def work(self, name: str) -> dict:
        """Written formulas over the wall's time, which every contender has."""
        seconds = self.results[name]["wall_ms"]["median"] / 1e3
        operations = product_operations(self.case, self.contenders[name].products)
        least = least_bytes(self.case, self.contenders[name].differentiated)
        return {
            "operations": operations,
            "least_bytes": least,
            "tokens_per_second": self.case.shape.n / seconds,
            "operations_per_second": operations / seconds,
            "bytes_per_second": least / seconds,
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


def measure(request: dict) -> None:
    limit = request["limit"] if jax.default_backend() == "cpu" else None
    bound_memory(limit)
    measurement = Measurement(case_from(request["case"]), request, limit)
    measurement.compile()
    measurement.check()
    measurement.time()


def describe(dtypes: list[str]) -> None:
    say(environment=environment())
    for dtype in dtypes:
        say(ceiling={"dtype": dtype, **ceilings(dtype)})


def main(request: dict) -> None:
    if "describe" in request:
        return describe(request["describe"])
    measure(request)


if __name__ == "__main__":
    os.dup2(2, 1)  # what libraries print must not mix with the messages
    main(json.loads(sys.argv[1]))
