"""Bytes that one device sends in an optimised program, every collective as rings do it, whatever moves them in fact. Over k
devices a sum is a scatter of sums and a gather: it sends (B + C) (k-1)/k bytes, B of its operand and C of its result, which
a TPU rounds at once."""

import math
import re

from .hlo import Operation, bytes_of, computations, repetitions, unlaid

SENT = {  # of B bytes of operands and C of results, over k devices
    "all-reduce": lambda B, C, k: (B + C) * (k - 1) / k,
    "all-gather": lambda B, C, k: B * (k - 1),
    "reduce-scatter": lambda B, C, k: B * (k - 1) / k,
    "all-to-all": lambda B, C, k: B * (k - 1) / k,
    "collective-permute": lambda B, C, k: B,
}


def sent_bytes(text: str, devices: int) -> float:
    """Of a program for so many devices, its loops as often as they run. An operand counts wherever it lies: a TPU keeps some
    of them out of its main memory, which :func:`hlo.bytes_of` leaves out."""
    found, total = computations(text), 0.0
    for name, times in repetitions(found):
        types = {operation.name: unlaid(operation.type) for operation in found[name]}
        for operation in found[name]:
            kind, line = collective(operation, found)
            if kind in SENT:
                given = sum(bytes_of(types[operand]) for operand in operation.operands)
                total += times * SENT[kind](given, bytes_of(types[operation.name]), group_size(line, devices))
    return total


def collective(operation: Operation, found: dict[str, list[Operation]]) -> tuple[str, str]:
    """Its kind, and the line that names its devices. A TPU scatters in a fusion of a sum and a slice, which it names so."""
    scatter = re.search(r"calls=%(all-reduce-scatter[\w.\-]*)", operation.line)
    if scatter:
        return "reduce-scatter", next(o.line for o in found[scatter[1]] if o.kind == "all-reduce")
    return operation.kind.removesuffix("-start"), operation.line


def group_size(line: str, devices: int) -> int:
    """How many devices take part together: a program lists them, counts them, or names axes of a mesh."""
    groups = re.search(r"replica_groups=(\{\{[\d,]*\}|\[\d+,\d+\]|mesh\[.*?\] \{.*?\})", line)
    if not groups:
        return devices
    words = groups[1]
    if words.startswith("{{"):
        return words.count(",") + 1
    if words.startswith("["):
        return int(words[1:-1].split(",")[1])
    sizes, names = words.split("] {")
    lengths = dict(re.findall(r"'(\w+)'=(\d+)", sizes))
    return math.prod(int(lengths[name]) for name in re.findall(r"'(\w+)'", names))
