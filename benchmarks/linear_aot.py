"""What compilers say of linear cross-entropy for chips that are not here: ``python -m benchmarks.linear_aot``.

Value and gradients of hidden states and head beside the three bare products of the same chunks, each program compiled in a
process of its own. Estimated cycles of the compiler, every loop's body times its trip count, the bytes that the operations
read and write over the chip's bandwidth, and temporary bytes. Nothing runs, and the estimates were never held against a
chip: they rank programs.

Two estimates. "model": the cost of each operation that the compiler leaves in the optimised program. "profile": of its
static profiler, from the instructions themselves, which gives up on some programs; what it had written by then is shown.
"at least" and "at most" take, of each operation, the profile or its memory, whichever is more; one without a profile counts
as its memory at least, as the model at most.

Needs jax[tpu]; for h100 the CUDA plugin of jax.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

SHAPE, MEMORY_SHAPE = (8192, 2048, 131072), (16384, 1024, 131072)
# Of one chip, as documented: bytes a second of its memory and cycles a second.
CHIPS = {"v5e": (819e9, 1.5e9), "v6e": (1640e9, 1.75e9)}
TARGETS = {"v5e": 1.15, "v6e": 1.3}
ITEM = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


# --- the process that compiles ---------------------------------------------------------------------


def compile_one(name: str, chip: str, n: int, d: int, v: int, folder: Path) -> None:
    """Leaves the optimised program and its temporary bytes in ``folder``."""
    import jax

    from crossent_jax._linear_rows import cut_rows
    from tests.chips import compile_for

    from . import linear

    rows = cut_rows((n,), d, v, None).rows
    losses = {"ours": linear.ours, "naive": linear.naive}
    function = linear.bare_products(rows) if name == "products" else jax.value_and_grad(losses[name], (0, 1))
    program = compile_for(chip, function, ((n, d), "bfloat16"), ((d, v), "bfloat16"), ((n,), "int32"))
    (folder / "program.txt").write_text(program.as_text())
    temporary = program.memory_analysis().temp_size_in_bytes
    allowed = int(4 * d * v + 1.2 * 4 * rows * v + 64 * n)
    (folder / "memory.json").write_text(json.dumps({"temporary_bytes": temporary, "allowed": allowed, "chunk_rows": rows}))


def in_a_process(name: str, chip: str, shape: tuple, folder: Path, flags: str, seconds: float) -> str | None:
    """Runs :func:`compile_one`; None, or the reason why the compiler gave up."""
    command = [sys.executable, "-m", "benchmarks.linear_aot", "--one", name, chip, *map(str, shape), str(folder)]
    environment = os.environ | {"LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:.0f} s"
    return None if done.returncode == 0 else reason(done.stdout + done.stderr, done.returncode)


def reason(output: str, code: int) -> str:
    """The line of a compiler's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines()]
    said = [line for line in lines if re.search(r"profiling of|Check failed|RESOURCE_EXHAUSTED|Error:|exceeded", line)]
    return (said[0] if said else f"exit status {code}")[:300]


# --- the optimised program -------------------------------------------------------------------------


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
    """Of a loop that counts from 0 by 1, as JAX's do, to a constant; exits where the program does not tell."""
    known = re.search(r'known_trip_count":\{"n":"?(\d+)', loop.line)
    if known:
        return int(known[1])
    condition = found[re.search(r"condition=%([\w.\-]+)", loop.line)[1]]
    constants = {o.name: re.search(r"constant\((\d+)\)", o.line) for o in condition if o.kind == "constant"}
    root = next(o for o in condition if "ROOT" in o.line.split("=")[0])
    bound = [constants[name] for name in root.operands if constants.get(name)]
    if root.kind != "compare" or "direction=LT" not in root.line or len(bound) != 1:
        sys.exit(f"cannot read how often the loop %{loop.name} runs: its condition ends in {root.line.strip()[:200]}")
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


def memory_bytes(operation: Operation, types: dict[str, str]) -> int:
    """What it reads and writes in the chip's main memory if it touches every operand once and whole."""
    if operation.kind in FREE or operation.kind.endswith("-done"):
        return 0
    result = operation.type.split("}, ")[0] if operation.kind == "copy-start" else operation.type
    return sum(map(bytes_of, [result, *(types.get(name, "") for name in operation.operands)]))


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


# --- cycles ----------------------------------------------------------------------------------------


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
                "bytes": times * memory_bytes(operation, types),
                "from": "/".join(re.search(r'op_name="([^"]*)"|$', operation.line)[0][9:-1].split("/")[-2:]),
                "result": re.sub(r"\{[^}]*\}", "", operation.type)[:60],
            }
            if row["model"] or row["profile"] or row["bytes"]:
                rows.append(row)
    return sorted(rows, key=lambda row: -row["model"])


def cycles_of(name: str, chip: str, shape: tuple, seconds: float, top: int) -> dict:
    """A program's cycles, bytes and memory; prints its dearest operations."""
    with tempfile.TemporaryDirectory() as folder:
        plain, profiled = Path(folder, "plain"), Path(folder, "profiled")
        plain.mkdir(), profiled.mkdir()
        failure = in_a_process(name, chip, shape, plain, "", seconds)
        if failure:
            return {"failure": failure}
        flag = f"--xla_jf_dump_static_llo_profile_to={profiled}"
        aborted = in_a_process(name, chip, shape, profiled, flag, seconds)
        operations = operations_of((plain / "program.txt").read_text(), profile_of(profiled))
        memory = json.loads((plain / "memory.json").read_text())
    bandwidth, clock = CHIPS[chip]
    cost = clock / bandwidth
    total = {
        "model": sum(o["model"] for o in operations),
        "memory": int(sum(o["bytes"] for o in operations) * cost),
        "profile": None if aborted else sum(o["profile"] or 0 for o in operations),
        "at least": int(sum(max(o["profile"] or 0, o["bytes"] * cost) for o in operations)),
        "at most": int(
            sum(max(o["model"] if o["profile"] is None else o["profile"], o["bytes"] * cost) for o in operations)
        ),
        "profiler": aborted or "complete",
    }
    show(name, chip, total, memory, operations[:top], cost)
    return {"cycles": total, **memory, "operations": operations[:top]}


def show(name: str, chip: str, total: dict, memory: dict, operations: list[dict], cycles_a_byte: float) -> None:
    print(f"\n{chip} {name}, chunks of {memory['chunk_rows']} rows")
    for key, value in total.items():
        print(f"  {key}: {value:,}" if isinstance(value, int) else f"  {key}: {value}")
    print(f"  temporary {memory['temporary_bytes']:,} B of {memory['allowed']:,} allowed")
    print(f"  {'times':>5} {'model':>12} {'profile':>12} {'memory':>12}  operation")
    for o in operations:
        profile = "-" if o["profile"] is None else f"{o['profile']:,}"
        cells = f"{o['times']:>5} {o['model']:>12,} {profile:>12} {int(o['bytes'] * cycles_a_byte):>12,}"
        print(f"  {cells}  %{o['name']}  {o['result']}  {o['from']}", flush=True)


def ratios(chip: str, ours: dict, products: dict) -> dict:
    """Ours over the bare products, each estimate over the same one; at least and at most differ where the profiler gave up.
    The prediction of a program is its cycles (of the profile, or of the model where the profiler gave up on one of the two)
    or those of its memory, whichever is more."""
    if "failure" in ours or "failure" in products:
        print(f"\n{chip}: {ours.get('failure') or products.get('failure')}")
        return {}
    mine, bare = ours["cycles"], products["cycles"]
    found = {key: mine[key] / bare[key] for key in mine if isinstance(mine[key], int) and isinstance(bare[key], int)}
    cycles = "profile" if "profile" in found else "model"
    found["prediction"] = max(mine[cycles], mine["memory"]) / max(bare[cycles], bare["memory"])
    print(f"\n{chip} ours / products, target {TARGETS[chip]}: " + ", ".join(f"{k} {r:.3f}" for k, r in found.items()))
    return found


# --- memory ----------------------------------------------------------------------------------------


def memory_of(name: str, chip: str, shape: tuple, seconds: float) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        failure = in_a_process(name, chip, shape, Path(folder), "", seconds)
        return {"failure": failure} if failure else json.loads(Path(folder, "memory.json").read_text())


def memory(chip: str, seconds: float) -> dict:
    """Temporary bytes of ours and of the naive formula; the target is a tenth."""
    rows = {name: memory_of(name, chip, MEMORY_SHAPE, seconds) for name in ("ours", "naive")}
    bytes_ = {name: row.get("temporary_bytes") for name, row in rows.items()}
    logits = 4 * MEMORY_SHAPE[0] * MEMORY_SHAPE[2]
    print(f"\n{chip} temporary bytes at {'x'.join(map(str, MEMORY_SHAPE))}:")
    for name, row in rows.items():
        print(
            f"  {name}: " + (f"{bytes_[name]:,} (allowed for ours {row['allowed']:,})" if bytes_[name] else row["failure"])
        )
    if bytes_["ours"]:
        other = "naive" if bytes_["naive"] else "the float32 logits alone"
        print(f"  ours / {other}: {bytes_['ours'] / (bytes_['naive'] or logits):.4f} (target 0.1)", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear_aot", description=__doc__.splitlines()[0])
    parser.add_argument("--chip", nargs="+", default=list(CHIPS), choices=CHIPS, help="whose cycles (default: all)")
    parser.add_argument(
        "--memory",
        nargs="*",
        default=[*CHIPS, "h100"],
        choices=[*CHIPS, "h100"],
        help="whose temporary bytes (default: all)",
    )
    parser.add_argument("--shape", default=",".join(map(str, SHAPE)), help="rows,features,classes of the cycles")
    parser.add_argument("--top", type=int, default=12, help="operations shown and kept (default 12)")
    parser.add_argument("--seconds", type=float, default=600, help="patience with one compilation (default 600)")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, chip, n, d, v, folder = options.one
        return compile_one(name, chip, int(n), int(d), int(v), Path(folder))
    shape, cycles = tuple(map(int, options.shape.split(","))), {}
    for chip in options.chip:
        programs = {name: cycles_of(name, chip, shape, options.seconds, options.top) for name in ("ours", "products")}
        cycles[chip] = programs | {"ratios": ratios(chip, **programs)}
    temporary = {chip: memory(chip, options.seconds) for chip in options.memory}
    if options.out:
        versions = {package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "libtpu")}
        about = versions | {"date": datetime.date.today().isoformat(), "shape": shape, "memory_shape": MEMORY_SHAPE}
        options.out.write_text(json.dumps({"about": about, "cycles": cycles, "memory": temporary}, indent=1) + "\n")


if __name__ == "__main__":
    main()
