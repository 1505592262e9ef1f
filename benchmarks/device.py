"""What only the device can tell: how long it was busy, how much memory it held, how fast it copies and multiplies."""

import contextlib
import ctypes
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from .timing import milliseconds

TRACED_CALLS = 5


# --- time ------------------------------------------------------------------------------------------


def device_milliseconds(function: Callable[[int], object]) -> np.ndarray | None:
    """From start to end on the device in each of a few calls, from the profiler; None on a CPU, whose trace has no device.
    Raises ValueError where an accelerator's trace cannot be read so."""
    if jax.default_backend() == "cpu":
        return None
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for i in range(TRACED_CALLS):
                jax.block_until_ready(function(i))
        (path,) = Path(folder).rglob("*.xplane.pb")
        return elapsed(intervals(jax.profiler.ProfileData.from_file(str(path))), TRACED_CALLS)


def intervals(profile) -> list[tuple[float, float]]:
    """(start, end) in nanoseconds of what ran on the first device: whole programs where the trace names them, as a TPU's
    does, else every operation of every stream, as a GPU's."""
    planes = {plane.name: plane for plane in profile.planes if re.fullmatch(r"/device:(GPU|TPU):\d+", plane.name)}
    lines = list(planes[min(planes)].lines) if planes else []
    chosen = [line for line in lines if line.name == "XLA Modules"] or [line for line in lines if "Stream" in line.name]
    return sorted((event.start_ns, event.start_ns + event.duration_ns) for line in chosen for event in line.events)


def elapsed(spans: list[tuple[float, float]], calls: int) -> np.ndarray:
    """Milliseconds from the first start to the last end of each call. Calls follow each other and do the same, so each has
    an equal share of the spans in order of time."""
    share, rest = divmod(len(spans), calls)
    if rest or not share:
        raise ValueError(f"the profiler's trace has {len(spans)} spans of {calls} equal calls")
    parts = [spans[i : i + share] for i in range(0, len(spans), share)]
    return np.array([(max(end for _, end in part) - part[0][0]) / 1e6 for part in parts])


# --- memory ----------------------------------------------------------------------------------------


def status_kib(field: str) -> int:
    """A line of this process's /proc status."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(field + ":")[1].split()[0])


def give_back_freed_memory() -> None:
    """What the allocator keeps for later would hide the next rise; other C libraries than glibc have no such call."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_bytes(run: Callable[[], object], library: str = "jax") -> int | None:
    """How far memory rose during one run, results included; None where nothing counts."""
    if library == "torch" and jax.default_backend() == "gpu":
        return peak_of_cuda(run)
    return peak_of_process(run) if jax.default_backend() == "cpu" else peak_of_device(run)


def peak_of_process(run: Callable[[], object]) -> int | None:
    """Of its resident memory, where Linux lets the peak be reset."""
    try:
        give_back_freed_memory()
        Path("/proc/self/clear_refs").write_text("5")
        before = status_kib("VmRSS")
    except OSError:
        before = None
    jax.block_until_ready(run())
    return None if before is None else 1024 * max(0, status_kib("VmHWM") - before)


def peak_of_device(run: Callable[[], object]) -> int | None:
    """JAX's peak cannot be reset: contenders are run in the order of what they need, and one that does not raise it has no
    figure."""
    before = jax.devices()[0].memory_stats() or {}
    jax.block_until_ready(run())
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    raised = peak is not None and peak > before.get("peak_bytes_in_use", 0)
    return peak - before.get("bytes_in_use", 0) if raised else None


def peak_of_cuda(run: Callable[[], object]) -> int:
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def available_bytes() -> int | None:
    """Of the machine's memory; None where Linux does not say."""
    with contextlib.suppress(OSError):
        return 1024 * int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])
    return None


# --- ceilings --------------------------------------------------------------------------------------


def fastest_seconds(function: Callable[[int], object], repeats: int = 7) -> float:
    milliseconds(function, 0, 1)
    return min(milliseconds(function, 0, 1) for _ in range(repeats)) / 1e3


def ceilings(dtype: str) -> dict[str, float]:
    """Bytes a second of a large copy, read and written, and operations a second of a large square product."""
    size, side = (2**25, 1024) if jax.default_backend() == "cpu" else (2**28, 8192)
    array = jax.random.normal(jax.random.key(0), (size,)).astype(dtype)
    square = jax.random.normal(jax.random.key(1), (side, side)).astype(dtype)
    copy, product = jax.jit(lambda x: x + jnp.ones((), x.dtype)), jax.jit(jnp.dot)
    return {
        "bytes_per_second": 2 * array.nbytes / fastest_seconds(lambda i: copy(array)),
        "operations_per_second": 2 * side**3 / fastest_seconds(lambda i: product(square, square)),
    }
