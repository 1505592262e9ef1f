"""What the trained model has to beat: a bigram model of the same tokens, and gzip on the same bytes."""

import gzip
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DISCOUNTS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


class Bigram(NamedTuple):
    """Interpolated Kneser-Ney, the strong classic (Chen & Goodman 1999, section 2.7).

    P(b | a) = (count(a, b) - D) / count(a) over the pairs seen, + D · kinds(a, ·) / count(a) · C(b)

    kinds(a, ·) is the number of different tokens seen after a, and C(b) is the share of kinds(·, b), the number of
    different tokens seen before b, plus 1. After an unseen a, P(b | a) = C(b).
    """

    pair_counts: np.ndarray
    discount: float

    @property
    def continuation(self) -> np.ndarray:
        """C(b), shape (v,)."""
        kinds_before = np.count_nonzero(self.pair_counts, axis=0) + 1.0
        return kinds_before / kinds_before.sum()

    def probabilities(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """P(after | before), elementwise, for two arrays of ids."""
        counts = self.pair_counts.sum(axis=1, dtype=np.float64)[before]
        kinds_after = np.count_nonzero(self.pair_counts, axis=1)[before]
        own = np.maximum(self.pair_counts[before, after] - self.discount, 0) / np.maximum(counts, 1)
        left_over = np.where(counts > 0, self.discount * kinds_after / np.maximum(counts, 1), 1.0)
        return own + left_over * self.continuation[after]

    def nll(self, files: Sequence[np.ndarray]) -> float:
        """Mean of -log P over every token but each file's first, in nats per token."""
        return float(-np.log(self.probabilities(*neighbours(files))).mean())


def neighbours(files: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All (previous, next) token pairs; no pair spans two files."""
    return np.concatenate([ids[:-1] for ids in files]), np.concatenate([ids[1:] for ids in files])


def count_pairs(files: Sequence[np.ndarray], vocab_size: int) -> np.ndarray:
    """Counts of the (previous, next) token pairs, shape (v, v)."""
    before, after = neighbours(files)
    counts = np.bincount(before.astype(np.int64) * vocab_size + after, minlength=vocab_size**2)
    return counts.reshape(vocab_size, vocab_size)


def fit_bigram(files: Sequence[np.ndarray], vocab_size: int) -> Bigram:
    """Counts all training files. D is the one that suits every fifth of them best when only the rest is counted."""
    rest = count_pairs([ids for index, ids in enumerate(files) if index % 5], vocab_size)
    discount = min(DISCOUNTS, key=lambda discount: Bigram(rest, discount).nll(files[::5]))
    return Bigram(count_pairs(files, vocab_size), discount)


def bits_per_byte(nats: float, byte_count: int) -> float:
    """`nats` summed over a text, as bits for each of its bytes: nats / (ln 2 · bytes)."""
    return nats / (math.log(2) * byte_count)


def gzip_bits_per_byte(texts: Sequence[bytes]) -> float:
    """gzip -9 on the texts joined into one stream, header included, primed on nothing."""
    joined = b"".join(texts)
    return 8 * len(gzip.compress(joined, compresslevel=9, mtime=0)) / len(joined)
