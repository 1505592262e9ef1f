"""Timing several functions fairly: interleaved, in shuffled order, medians, ratios within a round."""

import math
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

SHORTEST = 2e-3  # seconds of one sample: shorter calls are repeated within it


class Kernel(NamedTuple):
    """What the operating system did in a call, for all threads of this process: pages of memory that were not there when
    they were touched, and milliseconds of its own."""

    page_faults: float
    system_ms: float


class Rounds(NamedTuple):
    """Wall times of one call, one per round, and what the kernel did in a call on average."""

    milliseconds: np.ndarray
    kernel: Kernel


def of_the_kernel() -> np.ndarray:
    """Page faults, and milliseconds in the kernel, since this process began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([used.ru_minflt + used.ru_majflt, 1e3 * used.ru_stime])


def milliseconds(function: Callable[[int], object], first: int, calls: int) -> float:
    """Of one call, each waited for. ``function`` is given the number of the call, to take other inputs than before."""
    start = time.perf_counter()
    for i in range(first, first + calls):
        jax.block_until_ready(function(i))
    return 1e3 * (time.perf_counter() - start) / calls


def rounds_of(functions: dict[str, Callable], seconds: float = 1.0, at_least: int = 5) -> dict[str, Rounds]:
    """Each function, timed once per round.

    The functions take turns in a new order each round: drift of the machine meets all alike, and none always follows the
    same other, whose caches and threads it would inherit.
    """
    names, order, done = list(functions), np.random.default_rng(0), 0
    warm = {name: milliseconds(functions[name], 0, 2) for name in names}
    calls = {name: max(1, math.ceil(1e3 * SHORTEST / warm[name])) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    kernel = {name: np.zeros(2) for name in names}
    end, rounds = time.perf_counter() + seconds * len(names), 0
    while rounds < at_least or time.perf_counter() < end:
        for name in order.permutation(names):
            before = of_the_kernel()
            times[name].append(milliseconds(functions[name], done, calls[name]))
            kernel[name] += of_the_kernel() - before
            done += calls[name]  # of all: the next function must not find the inputs of this one in a cache
        rounds += 1
    per_call = {name: Kernel(*map(float, kernel[name] / (rounds * calls[name]))) for name in names}
    return {name: Rounds(np.array(times[name]), per_call[name]) for name in names}


def summary(times: np.ndarray) -> dict[str, float]:
    """Median and the tenth and ninetieth percentile."""
    p10, median, p90 = np.percentile(times, (10, 50, 90))
    return {"median": float(median), "p10": float(p10), "p90": float(p90), "rounds": len(times)}


def median_ratio(others: np.ndarray, ours: np.ndarray) -> float:
    """How many times longer the other took: the median over the rounds, in each of which the machine was the same."""
    return float(np.median(others / ours))


def geometric_mean(values) -> float:
    return float(np.exp(np.mean(np.log(list(values)))))
