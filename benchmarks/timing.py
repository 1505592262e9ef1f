"""Timing several functions fairly: interleaved, in shuffled order, medians, ratios within a round."""

import time

import jax
import numpy as np


def rounds_of(functions: dict, seconds: float = 1.0, at_least: int = 7) -> dict[str, np.ndarray]:
    """Wall times in milliseconds of each zero-argument function, one per round.

    The functions take turns in a new order each round: drift of the machine meets all alike, and none always follows the
    same other, whose caches and threads it would inherit.
    """
    names, order = list(functions), np.random.default_rng(0)
    for name in names:
        jax.block_until_ready(functions[name]())
    times: dict[str, list[float]] = {name: [] for name in names}
    end, rounds = time.perf_counter() + seconds * len(names), 0
    while rounds < at_least or time.perf_counter() < end:
        for name in order.permutation(names):
            start = time.perf_counter()
            jax.block_until_ready(functions[name]())
            times[name].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    return {name: np.array(times[name]) for name in names}


def medians(functions: dict, seconds: float = 1.0, at_least: int = 7) -> dict[str, float]:
    """Median wall time in milliseconds of each function."""
    return {name: float(np.median(times)) for name, times in rounds_of(functions, seconds, at_least).items()}


def median_ratio(others: np.ndarray, ours: np.ndarray) -> float:
    """How many times longer the other took: the median over the rounds, in each of which the machine was the same."""
    return float(np.median(others / ours))


def geometric_mean(values) -> float:
    return float(np.exp(np.mean(np.log(list(values)))))
