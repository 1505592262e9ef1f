"""One process for one case: every contender compiled, run once, checked against float64, then all timed in turns.

Speaks JSON lines on standard output: ``{"begin": name}`` before anything that may kill the process, ``{"row": ...}`` for
every result. :mod:`benchmarks.run` starts it, and knows what was begun if it dies.
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

from .shapes import Case, Shape

EXACT_OPERATIONS = 4e11  # float64 products that a case may spend; more are done on fewer rows
INPUT_BYTES = 2**26  # copies of the inputs fill this much, so that a call does not find its own in a cache
MOST_COPIES = 16
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "can't allocate memory", "bad_alloc")
OUTPUT = sys.stdout


def say(**message: Any) -> None:
    OUTPUT.write(json.dumps(message) + "\n")
    OUTPUT.flush()


def reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    out = isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY)
    return (("out of memory: " if out else f"{type(error).__name__}: ") + text)[:300]


class Program:
    """A contender ready to run on any arguments of a case."""

    def __init__(
        self, run: Callable, compile_ms: float | None = None, temp_bytes: int | None = None, dots: int | None = None
    ):
        self.run, self.compile_ms, self.temp_bytes, self.dots = run, compile_ms, temp_bytes, dots


def differentiated(contender, case: Case) -> tuple[int, ...]:
    from .operations import OPERATIONS

    return tuple(range(contender.differentiated or OPERATIONS[case.operation].differentiated))


def jax_function(contender, case: Case) -> Callable:
    import jax

    function = contender.make(case)
    if case.mode == "value_and_grad" and contender.is_loss:
        return jax.value_and_grad(function, differentiated(contender, case))
    return function


def jax_program(contender, case: Case, arguments: tuple) -> Program:
    """Compiled; the time is the median of a few compilations where they are short."""
    import jax
    import numpy as np

    if case.mode == "eager":
        return Program(jax_function(contender, case))
    times = []
    while not times or (len(times) < 5 and sum(times) < 0.25):
        jax.clear_caches()
        start = time.perf_counter()
        program = jax.jit(jax_function(contender, case)).lower(*arguments).compile()
        times.append(time.perf_counter() - start)
    temporary = program.memory_analysis().temp_size_in_bytes
    return Program(program, 1e3 * float(np.median(times)), temporary, program.as_text().count(" dot("))


def torch_program(contender, case: Case, arguments: tuple) -> Program:
    """Takes tensors; gives detached ones, after the device is done."""
    import torch

    function, which = contender.make(case), differentiated(contender, case)
    with_gradient = case.mode == "value_and_grad" and contender.is_loss

    def run(*tensors):
        with torch.set_grad_enabled(with_gradient):
            loss = function(*tensors)
        results = (loss.detach(), torch.autograd.grad(loss, [tensors[i] for i in which])) if with_gradient else loss
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return results

    return Program(run)


def torch_tensors(arguments: tuple, count: int) -> tuple:
    """Copies on torch's own device; the first ``count`` may be differentiated."""
    import jax.numpy as jnp
    import numpy as np
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = []
    for i, array in enumerate(arguments):
        if jnp.issubdtype(array.dtype, jnp.integer):
            tensors.append(torch.from_numpy(np.array(array)).long().to(device))
        else:
            tensor = torch.from_numpy(np.array(array, np.float32)).to(device, getattr(torch, str(array.dtype)))
            tensors.append(tensor.requires_grad_(i < count))
    return tuple(tensors)


def as_numpy(result: Any) -> list:
    """Leaves as float64 numpy, from JAX or torch, nested or not."""
    import numpy as np

    if isinstance(result, tuple | list):
        return [leaf for part in result for leaf in as_numpy(part)]
    return [result.double().cpu().numpy() if hasattr(result, "cpu") else np.asarray(result.astype("float32"), np.float64)]


class Truth:
    """The float64 loss and gradients of a case, on as many rows as the budget of operations allows."""

    def __init__(self, case: Case, arguments: tuple):
        import numpy as np

        from .operations import OPERATIONS, product_operations

        operation = OPERATIONS[case.operation]
        cost = 4 / 3 * product_operations(case._replace(mode="value_and_grad"))
        # A contrastive loss has as many classes as rows: its cost falls with their square.
        share = min(1.0, EXACT_OPERATIONS / cost if cost else 1.0)
        rows = (
            case.shape.n
            if share == 1
            else max(64, int(case.shape.n * share ** (0.5 if case.operation == "info_nce" else 1)))
        )
        self.rows, self.whole = rows, rows == case.shape.n
        self.arguments = tuple(
            a[:rows] if axes[0] == "n" and not self.whole else a
            for a, (axes, _) in zip(arguments, operation.layout, strict=True)
        )
        classes = rows if case.operation == "info_nce" else case.shape.v
        self.case = case._replace(shape=case.shape._replace(n=rows, v=classes))
        exact = [np.asarray(a, None if np.issubdtype(a.dtype, np.integer) else np.float64) for a in self.arguments]
        self.loss, self.gradients = operation.exact(*exact)

    def errors(self, result: Any) -> dict[str, float]:
        """Nats of the loss; of the gradients the largest error over the largest entry."""
        import numpy as np

        loss, *gradients = as_numpy(result)
        worst = [float(np.max(np.abs(g - t)) / np.max(np.abs(t))) for g, t in zip(gradients, self.gradients, strict=False)]
        return {"loss_error": abs(float(loss) - self.loss), "gradient_error": max(worst) if worst else None}


class Measurement:
    """A case in progress. Contenders that fail are rows with the reason, and take no further part."""

    def __init__(self, case: Case, names: list[str], failed: dict[str, str], seconds: float, limit: int | None):
        import jax

        from .contenders import CONTENDERS
        from .operations import OPERATIONS, SHARDED

        self.case, self.seconds, self.limit = case, seconds, limit
        self.operation = OPERATIONS[case.operation]
        self.platform = jax.default_backend()
        self.contenders = {name: CONTENDERS[case.operation][name] for name in names}
        self.failed, self.absent = dict(failed), {}
        for name, contender in self.contenders.items():
            if why := contender.absence(case, self.platform):
                self.absent[name] = why
        self.sharded = case.operation in SHARDED
        say(begin="inputs")
        copies = [self.inputs(0)]
        self.input_bytes = sum(a.nbytes for a in copies[0])
        count = 1 if case.mode == "eager" else min(MOST_COPIES, -(-INPUT_BYTES // self.input_bytes))
        self.copies = copies + [self.inputs(seed) for seed in range(1, count)]
        self.programs: dict[str, Program] = {}
        self.results: dict[str, dict] = {}

    def inputs(self, seed: int) -> tuple:
        import jax

        from .contenders.sharded import place
        from .operations import arguments

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
        from .device import peak_bytes

        names = self.running()
        for name in names:
            arguments, run = self.arguments_of(name, self.copies[0]), self.programs[name].run
            self.results[name] = {"peak_bytes": self.attempt(name, partial(peak_bytes, partial(run, *arguments)))}
        say(begin="float64")
        with unbounded_memory():  # of the check, not of a contender
            truth = Truth(self.case, self.copies[0])
        for name in self.running():
            if self.contenders[name].is_loss:
                errors = self.attempt(name, partial(self.errors, name, truth))
                self.results[name] |= (errors or {}) | {"error_rows": truth.rows}

    def errors(self, name: str, truth: Truth) -> dict[str, float]:
        program = self.programs[name] if truth.whole else self.make(name, truth.case, truth.arguments)
        return truth.errors(program.run(*self.arguments_of(name, truth.arguments)))

    def time(self) -> None:
        """JAX's contenders in turns, then torch's: its threads go on spinning after a call, on everybody's cores."""
        from .device import device_milliseconds
        from .timing import median_ratio, rounds_of, summary

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
                traced = self.attempt(name, partial(device_milliseconds, runs[name]))
                self.results[name]["device_ms"] = None if traced is None else summary(traced)
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
        from .operations import least_bytes, product_operations

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
    import jax

    on_cpu = jax.default_backend() == "cpu"
    bound_memory(limit if on_cpu else None)
    measurement = Measurement(case, names, failed, seconds, limit if on_cpu else None)
    measurement.compile()
    measurement.check()
    measurement.time()
    for name in names:
        say(row=measurement.row(name))


def describe(dtypes: list[str]) -> None:
    from .device import ceilings
    from .environment import environment

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
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the device
    main(json.loads(sys.argv[1]))
