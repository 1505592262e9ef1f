"""Results on disk: JSON lines, the environment first, then ceilings, then one row per contender of each case.

Every line has ``schema`` and ``kind``. A line is whole or the file is refused: nothing is guessed from half of one.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .shapes import Case, Shape

SCHEMA = 1
ERRORS = ("loss_error", "gradient_error")
KINDS = {
    "environment": ("date", "commit", "versions", "platform", "device", "processor", "cores"),
    "ceiling": ("dtype", "bytes_per_second", "operations_per_second"),
    "row": ("op", "n", "d", "v", "dtype", "mode", "impl", "platform", "status"),
}


class Bad(Exception):
    """What is wrong with what the user gave; shown as one line, with exit status 2."""


class Results(NamedTuple):
    """A file's contents. ``ceilings``: by dtype and pages."""

    path: Path
    environment: dict[str, Any]
    ceilings: dict[tuple[str, str | None], dict[str, Any]]
    rows: list[dict[str, Any]]
    pages: str | None = None  # where the rows are of one kind only

    @property
    def device(self) -> str:
        """In words: a CPU's kind says nothing, its processor does."""
        about = self.environment
        if about["platform"] == "cpu":
            return f"CPU {about['processor']}, {about['cores']} cores" + (f", {self.pages} pages" if self.pages else "")
        return f"{about['platform']} {about['device']}"

    def by_pages(self) -> dict[str | None, "Results"]:
        """What was measured with each kind of pages, memory kept first."""
        found = sorted({row.get("pages") for row in self.rows}, key=lambda pages: (pages is None, pages != "kept"))
        return {
            pages: self._replace(
                ceilings={key: ceiling for key, ceiling in self.ceilings.items() if key[1] == pages},
                rows=[row for row in self.rows if row.get("pages") == pages],
                pages=pages,
            )
            for pages in found
        }


def case_of(row: dict) -> Case:
    return Case(row["op"], Shape(row["n"], row["v"], row["d"]), row["dtype"], row["mode"], row.get("pages"))


def key_of(row: dict) -> tuple[Case, str]:
    return case_of(row), row["impl"]


def fields_of(case: Case) -> dict[str, Any]:
    pages = {"pages": case.pages} if case.pages else {}
    return {"op": case.operation, **case.shape._asdict(), "dtype": case.dtype, "mode": case.mode} | pages


def line_of(kind: str, **fields: Any) -> str:
    """Numbers that JSON has no words for, such as the error of a NaN loss, are strings."""
    finite = {key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in fields.items()}
    return json.dumps({"schema": SCHEMA, "kind": kind, **finite}, allow_nan=False) + "\n"


def parsed(path: Path, number: int, line: str) -> dict:
    """One line, or :class:`Bad` with the file, the line and the fix."""
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        raise Bad(f"{where}: not JSON, the file is damaged or was cut short: delete this line, then go on") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(schema, int) or record.get("kind") not in KINDS:
        raise Bad(f"{where}: not a line of results: expected schema {SCHEMA} and a kind of {', '.join(KINDS)}")
    if schema > SCHEMA:
        raise Bad(f"{where}: has schema {schema}, this version reads up to {SCHEMA}: update crossent_jax")
    missing = [field for field in KINDS[record["kind"]] if field not in record]
    if missing:
        raise Bad(f"{where}: a line of kind {record['kind']!r} without {', '.join(missing)}")
    if record["kind"] == "row":
        check_row(record, where)
        record |= {error: float(record[error]) for error in ERRORS if isinstance(record.get(error), str)}
    return record


def check_row(row: dict, where: str) -> None:
    """:class:`Bad` unless the fields that everything rests on have their types."""
    sizes = all(isinstance(row[size], int) for size in ("n", "d", "v"))
    words = all(isinstance(row[word], str) for word in ("op", "dtype", "mode", "impl", "platform"))
    known = row["status"] in ("ok", "absent", "failed") and (row["status"] == "ok" or isinstance(row.get("reason"), str))
    spread = row.get("wall_ms")
    timed = spread is None or isinstance(spread, dict) and {"median", "p10", "p90"} <= set(spread)
    if not (sizes and words and known and timed):
        raise Bad(f"{where}: a row whose fields are not of the types that this version writes: the file is damaged")


def read(path: Path) -> Results:
    """A file of results, the last row of each contender and case; :class:`Bad` if it is missing, damaged, empty or newer."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Bad(f"cannot read {path}: {error}") from None
    records = [parsed(path, i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    environments = [record for record in records if record["kind"] == "environment"]
    if len(environments) != 1:
        raise Bad(f"{path}: expected one line of kind 'environment', got {len(environments)}: not a file of one run")
    if not text.endswith("\n"):
        raise Bad(f"{path}: the last line has no end, the file was cut short: delete that line, then go on")
    ceilings = {(record["dtype"], record.get("pages")): record for record in records if record["kind"] == "ceiling"}
    rows = {(key_of(record), record["platform"]): record for record in records if record["kind"] == "row"}
    return Results(path, environments[0], ceilings, list(rows.values()))


def create(path: Path, lines: Iterable[str]) -> None:
    """A new file; :class:`Bad` if there is one or it cannot be written."""
    try:
        with path.open("x") as file:
            file.writelines(lines)
    except FileExistsError:
        raise Bad(
            f"{path} exists and is left as it is: choose another --out (`run` can go on with its own: --resume)"
        ) from None
    except OSError as error:
        raise Bad(f"cannot write {path}: {error.strerror}") from None


def append(path: Path, lines: Iterable[str]) -> None:
    """At once. What a full disk cuts short is found, and refused, by the next reading."""
    try:
        with path.open("a") as file:
            file.write("".join(lines))
    except OSError as error:
        raise Bad(f"cannot write {path}: {error.strerror}; what was measured before is in it") from None
