"""A contender made ready to run: compiled by JAX, or on torch tensors."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .contenders import Contender
from .operations import OPERATIONS
from .shapes import Case

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "can't allocate memory", "bad_alloc")


class Program(NamedTuple):
    """Runs on any arguments of its case. ``dots``: matrix products in the compiled text."""

    run: Callable
    compile_ms: float | None = None
    temp_bytes: int | None = None
    dots: int | None = None


def reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    out = isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY)
    return (("out of memory: " if out else f"{type(error).__name__}: ") + text)[:300]


def differentiated(contender: Contender, case: Case) -> tuple[int, ...]:
    return tuple(range(contender.differentiated or OPERATIONS[case.operation].differentiated))


def jax_function(contender: Contender, case: Case) -> Callable:
    function = contender.make(case)
    if case.mode == "value_and_grad" and contender.is_loss:
        return jax.value_and_grad(function, differentiated(contender, case))
    return function


def products_in(text: str) -> int:
    """Matrix products of a compiled program: a TPU's are convolutions, a GPU's may be calls of a library."""
    return len(re.findall(r" dot\(| convolution\(|__cublas[\w$]*(?:gemm|matmul)", text))


def jax_program(contender: Contender, case: Case, arguments: tuple) -> Program:
    """Compiled; the time is the median of a few compilations where they are short."""
    if case.mode == "eager":
        return Program(jax_function(contender, case))
    times = []
    while not times or (len(times) < 5 and sum(times) < 0.25):
        jax.clear_caches()
        start = time.perf_counter()
        program = jax.jit(jax_function(contender, case)).lower(*arguments).compile()
        times.append(time.perf_counter() - start)
    temporary = program.memory_analysis().temp_size_in_bytes
    return Program(program, 1e3 * float(np.median(times)), temporary, products_in(program.as_text() or ""))


def torch_program(contender: Contender, case: Case, arguments: tuple) -> Program:
    """Takes tensors; gives detached ones, after the device is done."""
    import torch

    function, which = contender.make(case), differentiated(contender, case)
    with_gradient = case.mode == "value_and_grad" and contender.is_loss

    def run(*tensors):
        with torch.set_grad_enabled(with_gradient):
            loss = function(*tensors)
        results = (loss.detach(), torch.autograd.grad(loss, [tensors[i] for i in which])) if with_gradient else loss
        if torch_device() == "cuda":
            torch.cuda.synchronize()
        return results

    return Program(run)


def torch_device() -> str:
    """Where JAX runs, in torch's words."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def torch_absence() -> str | None:
    """Why torch cannot be measured beside JAX here, or None."""
    import torch

    if torch_device() == "cuda" and not torch.cuda.is_available():
        return "torch without CUDA beside JAX on a GPU"
    torch.set_float32_matmul_precision("high")  # on a GPU as XLA's default; on a CPU it changes nothing
    return None


def torch_tensors(arguments: tuple, count: int, head_by_class: bool = False) -> tuple:
    """Copies; the first ``count`` may be differentiated."""
    import torch

    tensors = []
    for i, array in enumerate(arguments):
        if jnp.issubdtype(array.dtype, jnp.integer):
            tensors.append(torch.from_numpy(np.array(array)).long().to(torch_device()))
            continue
        flip = head_by_class and i == 1
        values = np.array(array.T if flip else array, np.float32, order="C")
        tensor = torch.from_numpy(values).to(torch_device(), getattr(torch, str(array.dtype)))
        tensors.append((tensor.T if flip else tensor).requires_grad_(i < count))
    return tuple(tensors)


def as_numpy(result: Any) -> list:
    """Leaves as float64 numpy, from JAX or torch, nested or not."""
    if isinstance(result, tuple | list):
        return [leaf for part in result for leaf in as_numpy(part)]
    return [result.double().cpu().numpy() if hasattr(result, "cpu") else np.asarray(result.astype("float32"), np.float64)]
