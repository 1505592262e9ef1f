"""Fixed-size batches. Whatever does not fill them is padding, marked by the label -1."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .losses import PADDING


class Examples(NamedTuple):
    """Inputs (n, ...) and int32 labels (n,) or (n, seq); the label -1 is padding."""

    inputs: np.ndarray
    labels: np.ndarray


def cut_into_sequences(files: Sequence[np.ndarray], seq_len: int) -> Examples:
    """Every token but a file's first is a label exactly once; a file's last sequence is padded to `seq_len`."""
    rows = [(ids[start : start + seq_len + 1]) for ids in files for start in range(0, len(ids) - 1, seq_len)]
    inputs = np.zeros((len(rows), seq_len), dtype=np.int32)
    labels = np.full((len(rows), seq_len), PADDING, dtype=np.int32)
    for row, ids in enumerate(rows):
        inputs[row, : len(ids) - 1] = ids[:-1]
        labels[row, : len(ids) - 1] = ids[1:]
    return Examples(inputs, labels)


def in_order(examples: Examples, size: int) -> Iterator[Examples]:
    """All examples once; the last batch is filled up with padding rows."""
    for start in range(0, len(examples.labels), size):
        yield fill(Examples(*(array[start : start + size] for array in examples)), size)


def fill(batch: Examples, size: int) -> Examples:
    """The batch with padding rows up to `size`."""
    missing = size - len(batch.labels)
    inputs, labels = ([(0, missing)] + [(0, 0)] * (array.ndim - 1) for array in batch)
    return Examples(np.pad(batch.inputs, inputs), np.pad(batch.labels, labels, constant_values=PADDING))


def shuffled(examples: Examples, size: int, seed: int) -> Iterator[Examples]:
    """Epoch after epoch, each in a new order drawn from the seed."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(examples.labels))
        yield from in_order(Examples(*(array[order] for array in examples)), size)
