"""Reads an optimised program: what each operation reads and writes, and how often it runs.

Estimated cycles are the compiler's: "model", of each operation that it leaves in the program, or "profile", of its static
profiler, from the instructions themselves. Both count a loop's body once; here it is multiplied by the trip count.
"""

import re
from pathlib import Path
from typing import NamedTuple

ITEM = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


class Operation(NamedTuple):
    """One line of a computation. ``type``: of its result."""

    name: str
    type: str
    kind: str
    operands: list[str]
    line: str


def computations(text: str) -> dict[str, list[Operation]]:
    """Of an optimised program, by name; the one that is run is "ENTRY"."""
    found, current = {}, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if head:
            current = found.setdefault("ENTRY" if head[1] else head[2], [])
        elif current is not None and (operation := parsed(re.sub(r"/\*.*?\*/", "", line))):
            current.append(operation)
    return found


def parsed(line: str) -> Operation | None:
    start = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
    if not start:
        return None
    after = line[start.end() :]
    end = closing(after) if after.startswith("(") else after.index(" ")
    kind = re.match(r" ?([\w\-]+)\(", after[end:])
    if not kind:
        return None
    inside = after[end + kind.end() - 1 :]
    operands = re.findall(r"%([\w.\-]+)", inside[: closing(inside)])
    return Operation(start[1], after[:end], kind[1], operands, line)


def closing(text: str) -> int:
    """Behind the bracket that closes the first one."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i + 1
    return len(text)


def trip_count(found: dict, loop: Operation) -> int:
    """Of a loop that counts from 0 by 1, as JAX's do, to a constant; 0 of one that a flag starts, as where a guess does not
    do for every row. ValueError where the program does not tell."""
    known = re.search(r'known_trip_count":\{"n":"?(\d+)', loop.line)
    if known:
        return int(known[1])
    condition = found[re.search(r"condition=%([\w.\-]+)", loop.line)[1]]
    constants = {o.name: re.search(r"constant\((\d+)\)", o.line) for o in condition if o.kind == "constant"}
    root = next(o for o in condition if "ROOT" in o.line.split("=")[0])
    bound = [constants[name] for name in root.operands if constants.get(name)]
    if root.kind == "get-tuple-element" and root.type.startswith("pred[]"):
        return 0
    if root.kind != "compare" or "direction=LT" not in root.line or len(bound) != 1:
        raise ValueError(
            f"cannot read how often the loop %{loop.name} runs: its condition ends in {root.line.strip()[:200]}"
        )
    return int(bound[0][1])


def repetitions(found: dict, name: str = "ENTRY", times: int = 1) -> list[tuple[str, int]]:
    """Every computation that runs as code of its own, with how often it does: loops in loops multiply."""
    runs = [(name, times)]
    for operation in found[name]:
        if operation.kind == "while":
            body = re.search(r"body=%([\w.\-]+)", operation.line)[1]
            runs += repetitions(found, body, times * trip_count(found, operation))
        elif operation.kind in ("call", "conditional", "async-start"):
            inner = re.findall(r"(?:to_apply|calls|_computation)=%([\w.\-]+)", operation.line)
            inner += re.findall(r"%([\w.\-]+)", "".join(re.findall(r"branch_computations=\{(.*?)\}", operation.line)))
            for part in inner:
                runs += repetitions(found, part, times)
    return runs


FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "custom-call"}


KERNELS = re.compile(r'custom_call_target="(tpu_custom_call|__cublas[\w$]*)"')
VIEWS = ("bitcast", "get-tuple-element")
PARTS = ("slice", "dynamic-slice", "gather")  # read as much as they give


def memory_bytes(operation: Operation, types: dict[str, str], found: dict[str, list[Operation]]) -> int:
    """What it reads and writes in the chip's main memory if it touches every operand once: whole, but for slices, and for
    what is updated in place. The scratch of a library's product is not counted."""
    if operation.kind == "dynamic-slice":
        return 2 * bytes_of(operation.type)
    if operation.kind == "dynamic-update-slice":
        return 2 * bytes_of(types.get(operation.operands[1], ""))
    kernel = KERNELS.search(operation.line)
    if (operation.kind in FREE and not kernel) or operation.kind.endswith("-done"):
        return 0
    if operation.kind == "fusion":
        return fusion_bytes(operation, types, found)
    result = operation.type.split("}, ")[0] if operation.kind == "copy-start" or kernel else operation.type
    return sum(map(bytes_of, [result, *(types.get(name, "") for name in operation.operands)]))


def fusion_bytes(fusion: Operation, types: dict[str, str], found: dict[str, list[Operation]]) -> int:
    """Of a fusion: of a parameter that is only sliced the slices, of one that is only updated nothing, of a result that is
    an update the update."""
    inside = {o.name: o for o in found[re.search(r"calls=%([\w.\-]+)", fusion.line)[1]]}
    read = 0
    for parameter in (o for o in inside.values() if o.kind == "parameter"):
        operand = fusion.operands[int(re.search(r"parameter\((\d+)\)", parameter.line)[1])]
        users = users_of(inside, parameter.name)
        if users and all(o.kind in (*PARTS, "dynamic-update-slice") and first for o, first in users):
            slices = [o for o, _ in users if o.kind in PARTS]
            read += min(bytes_of(types.get(operand, "")), sum(bytes_of(unlaid(o.type)) for o in slices))
        else:
            read += bytes_of(types.get(operand, ""))
    root = next(o for o in inside.values() if "ROOT" in o.line.split("=")[0])
    results = [inside[name] for name in root.operands if name in inside] if root.kind == "tuple" else [root]
    updates = [seen_through(inside, o) for o in results]
    if all(o.kind != "dynamic-update-slice" for o in updates):
        return read + bytes_of(fusion.type)
    types_inside = {o.name: o.type for o in inside.values()}
    written = (types_inside[o.operands[1]] if o.kind == "dynamic-update-slice" else o.type for o in updates)
    return read + sum(bytes_of(unlaid(type_)) for type_ in written)


def unlaid(type_: str) -> str:
    """A type inside a fusion, whose layout says nothing of where the array is."""
    return re.sub(r"\{[^}]*\}", "", type_)


def users_of(inside: dict[str, Operation], name: str) -> list[tuple[Operation, bool]]:
    """The operations that read it, through views, and whether it is their first operand."""
    users = []
    for o in inside.values():
        if name in o.operands:
            users += users_of(inside, o.name) if o.kind in VIEWS else [(o, o.operands[0] == name)]
    return users


def seen_through(inside: dict[str, Operation], o: Operation) -> Operation:
    """What a view shows."""
    return seen_through(inside, inside[o.operands[0]]) if o.kind in VIEWS and o.operands[0] in inside else o


def bytes_of(type_: str) -> int:
    """Of the arrays in a type that are in main memory: layouts with S(n) are elsewhere."""
    total = 0
    for kind, sizes, layout in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?", type_):
        if "S(" not in layout and kind in ITEM:
            size = ITEM[kind]
            for length in filter(None, sizes.split(",")):
                size *= int(length)
            total += size
    return total


def profile_of(folder: Path) -> dict[str, int]:
    """Cycles of each operation that the static profiler wrote down, times the equivalent operations."""
    cycles = {}
    for path in folder.glob("*_static_llo_profile.textproto"):
        for block in path.read_text().split("hlo_op_estimate")[1:]:
            name, each, count = (
                re.search(rf"{key}: \"?([\w.\-]+)", block)[1]
                for key in ("hlo_op_name", "estimated_cycles", "num_equivalent_hlos")
            )
            cycles[name] = int(each) * int(count)
    return cycles


def operations_of(text: str, profile: dict[str, int]) -> list[dict]:
    """Every operation that costs something, the dearest first."""
    found, rows = computations(text), []
    for name, times in repetitions(found):
        types = {operation.name: operation.type for operation in found[name]}
        for operation in found[name]:
            model = re.search(r'"estimated_cycles":"(\d+)"', operation.line)
            row = {
                "name": operation.name,
                "times": times,
                "model": times * int(model[1]) if model else 0,
                "profile": times * profile[operation.name] if operation.name in profile else None,
                "bytes": times * memory_bytes(operation, types, found),
                "from": "/".join(re.search(r'op_name="([^"]*)"|$', operation.line)[0][9:-1].split("/")[-2:]),
                "result": re.sub(r"\{[^}]*\}", "", operation.type)[:60],
            }
            if row["model"] or row["profile"] or row["bytes"]:
                rows.append(row)
    return sorted(rows, key=lambda row: (-row["model"], -row["bytes"]))
