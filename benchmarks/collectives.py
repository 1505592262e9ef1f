"""What moves between the devices of an optimised program. An array counts wherever it lies: a TPU keeps some of them out of
its main memory, which :func:`hlo.bytes_of` leaves out.

Two measures: the results on one device, and the bytes that one device sends, every collective as rings do it, whatever
moves them in fact. Over k devices a sum is a scatter of sums and a gather: it sends (B + C) (k-1)/k bytes, B of its operand
and C of its result, which a TPU rounds at once.
"""

import math
import re
from typing import NamedTuple

from .hlo import Operation, bytes_of, closing, computations, repetitions, unlaid

SENT = {  # of B bytes of operands and C of results, over k devices
    "all-reduce": lambda B, C, k: (B + C) * (k - 1) / k,
    "all-gather": lambda B, C, k: B * (k - 1),
    "reduce-scatter": lambda B, C, k: B * (k - 1) / k,
    "all-to-all": lambda B, C, k: B * (k - 1) / k,
    "collective-permute": lambda B, C, k: B,
}


class Collective(NamedTuple):
    """``kind``: of :data:`SENT`; ``combines``: how an all-reduce joins two numbers ("add", "maximum"), else "". ``given``
    and ``size``: bytes of operands and results on one device, each time that it runs; ``devices``: how many take part."""

    kind: str
    combines: str
    times: int
    given: int
    size: int
    devices: int


def collectives(text: str) -> list[Collective]:
    """Of a program, its loops as often as they run."""
    found, count = computations(text), re.search(r"num_partitions=(\d+)", text)
    everyone, wired = int(count[1]) if count else 1, []
    for name, times in repetitions(found):
        types = {operation.name: unlaid(operation.type) for operation in found[name]}
        for operation in found[name]:
            kind, line = kind_and_line(operation, found)
            if kind in SENT:
                joined = re.search(r"to_apply=%([\w.\-]+)", line) if kind == "all-reduce" else None
                combines = found[joined[1]][-1].kind if joined and joined[1] in found else ""
                given = sum(bytes_of(types[operand]) for operand in operation.operands)
                size = bytes_of(unlaid(result_type(operation)))
                wired.append(Collective(kind, combines, times, given, size, group_size(line, everyone)))
    return wired


def result_bytes(text: str) -> int:
    """Of all collectives, on one device."""
    return sum(each.times * each.size for each in collectives(text))


def sent_bytes(text: str) -> float:
    """By one device."""
    return sum(each.times * SENT[each.kind](each.given, each.size, each.devices) for each in collectives(text))


def kind_and_line(operation: Operation, found: dict[str, list[Operation]]) -> tuple[str, str]:
    """Its kind, and the line that names its devices. A TPU scatters in a fusion of a sum and a slice, which it names so."""
    scatter = re.search(r"calls=%(all-reduce-scatter[\w.\-]*)", operation.line)
    if scatter:
        return "reduce-scatter", next(o.line for o in found[scatter[1]] if o.kind == "all-reduce")
    return operation.kind.removesuffix("-start"), operation.line


def result_type(collective: Operation) -> str:
    """Of a collective; the start of one that is not waited for has ``(operands, results)``, but for an all-reduce's."""
    if not collective.kind.endswith("-start") or collective.kind == "all-reduce-start":
        return collective.type
    both = collective.type[1:]
    return both[closing(both) if both.startswith("(") else both.index("]") + 1 :]


def group_size(line: str, everyone: int) -> int:
    """How many devices take part together: a program lists them, counts them, or names axes of a mesh."""
    groups = re.search(r"replica_groups=(\{\{[\d,]*\}|\[\d+,\d+\]|mesh\[.*?\] \{.*?\})", line)
    if not groups:
        return everyone
    words = groups[1]
    if words.startswith("{{"):
        return words.count(",") + 1
    if words.startswith("["):
        return int(words[1:-1].split(",")[1])
    sizes, names = words.split("] {")
    lengths = dict(re.findall(r"'(\w+)'=(\d+)", sizes))
    return math.prod(int(lengths[name]) for name in re.findall(r"'(\w+)'", names))
