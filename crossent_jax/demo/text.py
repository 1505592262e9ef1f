"""The corpus: the source of Python's own standard library, which every machine that runs this has.

Files are ordered, sampled and held out by a hash of their path inside the library, so the same Python
gives the same text everywhere. Whole files are held out: no line of a validation file is trained on.
"""

import hashlib
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SAMPLE_BYTES = 3_000_000
VALIDATION_SHARE = 0.08
LARGEST_FILE = 150_000

# Not everywhere installed, not prose-like code, or (last line) not the standard library.
SKIPPED_FOLDERS = frozenset(
    ["test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "__pycache__"]
    + ["site-packages", "dist-packages"]
)


class Corpus(NamedTuple):
    """Whole files as bytes, split into two disjoint sets of paths."""

    train_names: list[str]
    validation_names: list[str]
    train: list[bytes]
    validation: list[bytes]

    def describe(self) -> str:
        """One line: how much was read, and how it is split."""
        train, validation = (sum(map(len, texts)) for texts in (self.train, self.validation))
        return (
            f"read {(train + validation) / 1e6:.2f} MB of Python's standard library: "
            f"{len(self.train)} files ({train / 1e6:.2f} MB) to train on, "
            f"{len(self.validation)} files ({validation / 1e6:.2f} MB) held out"
        )


def fraction(name: str, salt: str) -> float:
    """A number in [0, 1) that depends on nothing but the two strings."""
    digest = hashlib.blake2b(f"{salt}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def is_held_out(name: str) -> bool:
    """Whether a file is for validation; its path alone decides."""
    return fraction(name, "held out") < VALIDATION_SHARE


def library_files(root: Path) -> list[str]:
    """Paths, relative to `root`, of the library's source files, in hash order."""
    names = [path.relative_to(root).as_posix() for path in root.rglob("*.py") if is_wanted(path, root)]
    return sorted(names, key=lambda name: (fraction(name, "order"), name))


def is_wanted(path: Path, root: Path) -> bool:
    """Whether a file belongs to the corpus: written by people, part of the library, neither empty nor too large."""
    inside = path.relative_to(root)
    machine_made = path.name.startswith("_sysconfigdata")
    return not (SKIPPED_FOLDERS & set(inside.parts) or machine_made) and 0 < path.stat().st_size <= LARGEST_FILE


def take_sample(root: Path, names: Iterable[str], limit: int) -> dict[str, bytes]:
    """The first files, in the order given, that hold `limit` bytes together."""
    texts: dict[str, bytes] = {}
    for name in names:
        if sum(map(len, texts.values())) >= limit:
            break
        texts[name] = (root / name).read_bytes()
    return texts


def read_corpus(root: Path | None = None, limit: int = SAMPLE_BYTES) -> Corpus:
    """Reads about `limit` bytes of the standard library and splits its files."""
    root = root or Path(sysconfig.get_path("stdlib"))
    texts = take_sample(root, library_files(root), limit)
    train = [name for name in texts if not is_held_out(name)]
    validation = [name for name in texts if is_held_out(name)]
    if not train or not validation:
        raise FileNotFoundError(f"too little Python source under {root}: is the standard library installed as files?")
    return Corpus(train, validation, [texts[name] for name in train], [texts[name] for name in validation])
