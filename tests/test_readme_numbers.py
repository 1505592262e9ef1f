"""Every number of README's three facts is that of a committed result, whose file README names."""

import re
from pathlib import Path

import pytest

from benchmarks.records import read
from benchmarks.shapes import LINEAR, Shape
from benchmarks.targets import against_best_formula, by_case
from benchmarks.timing import geometric_mean

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FACTS = re.search(r"^\* \*\*Memory.*?(?=^!\[)", README, re.MULTILINE | re.DOTALL)
RESULTS = ROOT / "benchmarks" / "results"
FORMULAS = ("optax-integer", "optax-one-hot", "naive", "logsumexp")


def rows_of(name, pages=None):
    """All, or those that were measured with memory kept, or with fresh pages."""
    assert f"benchmarks/results/{name}" in README, f"README does not name {name}"
    results = read(RESULTS / name)
    return results.rows if pages is None else results.by_pages()[pages].rows


def facts():
    assert FACTS is not None
    return " ".join(FACTS[0].split())


def linear(dtype, pages):
    return by_case(rows_of("cpu-linear.jsonl", pages), "linear_cross_entropy", dtype, "value_and_grad", LINEAR)


def test_memory_on_a_cpu():
    ((_, found),) = by_case(
        rows_of("cpu-linear.jsonl", "kept"), "linear_cross_entropy", "float32", "value_and_grad", [Shape(1024, 262144, 64)]
    )
    ours, whole = (round(found[name]["temp_bytes"] / 2**20) for name in ("ours", "naive"))
    assert f"take {ours} MiB of temporary memory" in facts() and f"takes {whole:,} MiB" in facts()


def test_memory_as_compiled_for_chips():
    parts = {}
    for chip in ("h100", "v6e"):
        shape = [Shape(16384, 131072, 1024)]
        rows = rows_of("aot.jsonl")
        ((_, found),) = by_case(rows, "linear_cross_entropy", "bfloat16", "value_and_grad", shape, f"aot {chip}")
        parts[chip] = round(100 * found["ours"]["temp_bytes"] / found["naive"]["temp_bytes"])
    assert f"it is {parts['h100']} and {parts['v6e']} % of what whole logits take" in facts()


@pytest.mark.parametrize(
    "pages, dtype, mean, worst",
    [
        ("kept", "float32", 0.84, 1.03),
        ("kept", "bfloat16", 0.70, 1.15),
        ("fresh", "float32", 0.56, 0.88),
        ("fresh", "bfloat16", 0.42, 0.62),
    ],
)
def test_time(pages, dtype, mean, worst):
    ratios = [1 / found["naive"]["to_ours"] for _, found in linear(dtype, pages)]
    assert len(ratios) == 11 and "eleven shapes" in facts()
    assert (round(geometric_mean(ratios), 2), round(max(ratios), 2)) == (mean, worst)
    assert f"{mean:.2f}" in facts() and f"{worst:.2f}" in facts()


def test_time_from_logits():
    ratios = [ratio for _, ratio in against_best_formula("float32", "value_and_grad")(rows_of("cpu-logits.jsonl"))]
    assert len(ratios) == 12 and "twelve shapes" in facts()
    assert f"takes {geometric_mean(ratios):.2f} times as long" in facts()


def test_accuracy():
    errors = {}
    for row in rows_of("cpu-logits.jsonl"):
        if (row["op"], row["dtype"], row["status"]) == ("cross_entropy", "bfloat16", "ok"):
            errors[row["impl"]] = max(errors.get(row["impl"], 0), row["loss_error"])
    assert errors["ours"] <= 2e-6 and "within 0.000002 nats of float64" in facts()
    formulas = max(errors[name] for name in FORMULAS)
    assert f"off by up to {formulas:.2f} nats, PyTorch's by up to {errors['torch']:.2f}" in facts()
