"""Byte-level byte-pair encoding (Gage 1994; Sennrich et al. 2016, arXiv:1508.07909).

Text is cut into words; the words are counted once, and the most frequent neighbouring pair of symbols
is merged until the vocabulary is full. Ids 0-255 are the bytes, 256 marks a file's start and end, and
every later id is one merge. Any bytes can be encoded, and decoding gives them back.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

BOUNDARY = 256
FIRST_MERGE = 257
WORD_END = -1

# A line break with its indentation, an identifier, a number, punctuation, other space: every byte is in one.
WORD = re.compile(rb"\n[ \t]*| ?[A-Za-z_]+| ?[0-9]+| ?[^\sA-Za-z0-9_]+|\s")

Pair = tuple[int, int]


class Tokenizer:
    """Encodes bytes as ids. `merges[k]` is the pair that id 257 + k stands for."""

    def __init__(self, merges: Iterable[Pair]):
        self.merges = tuple(merges)
        self.ranks = {pair: FIRST_MERGE + rank for rank, pair in enumerate(self.merges)}
        self.pieces = [bytes([byte]) for byte in range(256)] + [b""]
        for left, right in self.merges:
            self.pieces.append(self.pieces[left] + self.pieces[right])
        self._known_words: dict[bytes, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """Number of ids: the bytes, the boundary mark and the merges."""
        return len(self.pieces)

    def encode(self, text: bytes) -> np.ndarray:
        """The ids of a text, int32, without boundary marks."""
        ids = [symbol for word in WORD.findall(text) for symbol in self._encode_word(word)]
        return np.asarray(ids, dtype=np.int32)

    def encode_file(self, text: bytes) -> np.ndarray:
        """The ids between two boundary marks, so that a model also says where a file ends."""
        return np.concatenate([[BOUNDARY], self.encode(text), [BOUNDARY]]).astype(np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes that the ids stand for; a boundary mark stands for none."""
        return b"".join(self.pieces[symbol] for symbol in ids)

    def _encode_word(self, word: bytes) -> list[int]:
        if word not in self._known_words:
            self._known_words[word] = self._apply_merges(list(word))
        return self._known_words[word]

    def _apply_merges(self, symbols: list[int]) -> list[int]:
        """Merges the pair learned first, then the next, until none of the pairs is known."""
        while len(symbols) > 1:
            pair = min(zip(symbols, symbols[1:], strict=False), key=lambda pair: self.ranks.get(pair, np.inf))
            if pair not in self.ranks:
                break
            symbols = merge_pair(symbols, pair, self.ranks[pair])
        return symbols


def merge_pair(symbols: list[int], pair: Pair, merged: int) -> list[int]:
    """Replaces every occurrence of the pair, leftmost first."""
    result, position = [], 0
    while position < len(symbols):
        found = tuple(symbols[position : position + 2]) == pair
        result.append(merged if found else symbols[position])
        position += 2 if found else 1
    return result


class PairTable:
    """Every word type, once, as one flat array of symbols, with the id of the pair that starts at each position.

    A merge makes a new symbol, so each pair it creates is new too: old ids never change, and counting all
    pairs is one weighted `np.bincount`. Id 0 means that no pair starts here (a word ends).
    """

    def __init__(self, word_counts: Mapping[bytes, int]):
        self.symbols = np.array([symbol for word in word_counts for symbol in (*word, WORD_END)], dtype=np.int32)
        lengths = [len(word) + 1 for word in word_counts]
        self.weights = np.repeat(np.array(list(word_counts.values()), dtype=float), lengths)
        self.pair_ids = np.zeros(len(self.symbols), dtype=np.int64)
        self.pairs: list[Pair] = [(WORD_END, WORD_END)]
        self._name_pairs(np.arange(max(0, len(self.symbols) - 1)))

    def most_frequent(self) -> int | None:
        """The id of the pair that occurs most often (the oldest of equals); None if none occurs twice."""
        counts = np.bincount(self.pair_ids, self.weights, minlength=1)
        counts[0] = 0
        best = int(np.argmax(counts))
        return best if counts[best] > 1 else None

    def merge(self, pair_id: int, merged: int) -> None:
        """Replaces each occurrence of the pair by one symbol."""
        hits = without_overlaps(np.flatnonzero(self.pair_ids == pair_id))
        self.symbols[hits] = merged
        for name in ("symbols", "weights", "pair_ids"):
            setattr(self, name, np.delete(getattr(self, name), hits + 1))
        hits = hits - np.arange(len(hits))
        self._name_pairs(np.union1d(hits, hits[hits > 0] - 1))

    def _name_pairs(self, positions: np.ndarray) -> None:
        """Gives new ids to the pairs that start at these positions."""
        neighbours = np.stack([self.symbols[positions], self.symbols[positions + 1]], axis=1)
        inside = (neighbours != WORD_END).all(axis=1)
        new_pairs, inverse = np.unique(neighbours[inside], axis=0, return_inverse=True)
        self.pair_ids[positions] = 0
        self.pair_ids[positions[inside]] = len(self.pairs) + inverse.reshape(-1)
        self.pairs += [(int(left), int(right)) for left, right in new_pairs]


def without_overlaps(positions: np.ndarray) -> np.ndarray:
    """Of consecutive positions (the pair "aa" in "aaa") keeps the first, the third, and so on."""
    run_starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
    run_lengths = np.diff(run_starts, append=len(positions))
    offsets = np.arange(len(positions)) - np.repeat(run_starts, run_lengths)
    return positions[offsets % 2 == 0]


def train_bpe(texts: Iterable[bytes], vocab_size: int) -> Tokenizer:
    """Learns merges from the words of `texts`; fewer than asked if no pair occurs twice any more."""
    word_counts = Counter(word for text in texts for word in WORD.findall(text))
    table = PairTable({word: count for word, count in word_counts.items() if count > 1})
    merges: list[Pair] = []
    while FIRST_MERGE + len(merges) < vocab_size and (pair_id := table.most_frequent()):
        table.merge(pair_id, FIRST_MERGE + len(merges))
        merges.append(table.pairs[pair_id])
    return Tokenizer(merges)
