"""What the benchmarks compare is the same function: every contender answers as float64 does, and a wrong one shows."""

import mmap
import time

import jax
import numpy as np
import pytest

from benchmarks import programs, truth
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.sharded import place
from benchmarks.device import elapsed, intervals
from benchmarks.operations import OPERATIONS, SHARDED, arguments, dimensions, least_bytes, product_operations
from benchmarks.shapes import DTYPES, MODES, PRESETS, SUITES, Case, Shape, named
from benchmarks.timing import median_ratio, rounds_of, summary
from benchmarks.truth import EXACT_OPERATIONS, Truth, affordable_rows

from .oracle import x64

SMALL = {"info_nce": Shape(37, 37, 5)}
REFUSED = ("ours-kernel",)  # so few rows; tests/test_pallas_tpu.py has its numbers
PAIRS = [
    (operation, name)
    for operation, contenders in CONTENDERS.items()
    for name, contender in contenders.items()
    if contender.library == "jax" and not contender.packages and contender.is_loss and name not in REFUSED
]


def small_case(operation: str, dtype: str = "float32", mode: str = "value_and_grad") -> Case:
    shape = SMALL.get(operation, Shape(37, 136, 5 if OPERATIONS[operation].has_features else 0))
    return Case(operation, shape, dtype, mode)


def drawn(case: Case, seed: int = 0):
    found = arguments(case, seed)
    return place(found) if case.operation in SHARDED else tuple(map(jax.numpy.asarray, found))


@pytest.mark.parametrize("operation, name", PAIRS)
def test_every_contender_computes_the_operation(operation, name):
    case = small_case(operation)
    given = drawn(case)
    function = programs.jax_function(CONTENDERS[operation][name]._replace(least_width=0), case)
    errors = Truth(case, given).errors(jax.jit(function)(*given))
    assert errors["loss_error"] <= 2e-6 and errors["gradient_error"] <= 3e-6


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_float64_answer_is_that_of_automatic_differentiation(operation):
    """With JAX in float64 and the naive formula, whose products of features stay in float32: another way to the numbers."""
    case = small_case(operation)
    with x64():
        given = [np.asarray(a, np.float64 if a.dtype == np.float32 else a.dtype) for a in arguments(case, 0)]
        loss = CONTENDERS[operation]["log-softmax" if operation in ("info_nce", "kl_divergence") else "naive"].make(case)
        count = OPERATIONS[operation].differentiated
        value, gradients = jax.value_and_grad(loss, tuple(range(count)))(*map(jax.numpy.asarray, given))
    exact, exact_gradients = OPERATIONS[operation].exact(*given)
    tolerance = 1e-6 if OPERATIONS[operation].has_features else 1e-12
    assert abs(float(value) - exact) <= tolerance * max(1, abs(exact))
    for mine, theirs in zip(exact_gradients, gradients, strict=True):
        np.testing.assert_allclose(mine, np.asarray(theirs), atol=tolerance * np.abs(mine).max(), rtol=0)


def test_a_wrong_answer_shows():
    case = small_case("cross_entropy")
    given = drawn(case)
    wrong = jax.value_and_grad(lambda z, y: CONTENDERS["cross_entropy"]["ours"].make(case)(z, (y + 1) % 136), (0,))
    errors = Truth(case, given).errors(wrong(*given))
    assert errors["loss_error"] > 0.01 and errors["gradient_error"] > 0.5


def test_a_nan_is_an_error_of_nan():
    case = small_case("cross_entropy", mode="forward")
    given = drawn(case)
    assert np.isnan(Truth(case, given).errors(jax.numpy.float32(np.nan))["loss_error"])


def test_a_nan_in_one_of_two_gradients_shows():
    case = small_case("linear_cross_entropy")
    given = drawn(case)
    loss, (d_hidden, d_head) = programs.jax_function(CONTENDERS["linear_cross_entropy"]["ours"], case)(*given)
    exact = Truth(case, given)
    assert np.isnan(exact.errors((loss, (d_hidden, d_head * np.nan)))["gradient_error"])
    assert np.isnan(exact.errors((loss, (d_hidden * np.nan, d_head)))["gradient_error"])


def test_the_check_is_refused_where_it_would_fill_the_machine(monkeypatch):
    monkeypatch.setattr(truth, "available_bytes", lambda: 10_000)
    with pytest.raises(MemoryError, match="float64 needs"):
        Truth(small_case("cross_entropy"), drawn(small_case("cross_entropy")))


def test_large_cases_are_checked_on_fewer_rows():
    case = Case("linear_cross_entropy", PRESETS["llama3"], "bfloat16", "value_and_grad")
    rows = affordable_rows(case)
    assert 64 <= rows < case.shape.n
    assert 8 * rows * case.shape.d * case.shape.v <= EXACT_OPERATIONS or rows == 64
    assert affordable_rows(small_case("linear_cross_entropy")) == 37
    assert affordable_rows(Case("cross_entropy", Shape(2**14, 2**18), "bfloat16", "forward")) == 2**10


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_are_random_and_of_the_layout(operation, dtype):
    case = small_case(operation, dtype)
    first, again, other = arguments(case, 0), arguments(case, 0), arguments(case, 1)
    assert [(a.shape, a.dtype) for a in first] == dimensions(case)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


def test_work_is_counted_by_the_written_formulas():
    case = Case("linear_cross_entropy", Shape(7, 11, 3), "bfloat16", "value_and_grad")
    assert product_operations(case) == 3 * 2 * 7 * 3 * 11
    assert product_operations(case, 4) == 4 * 2 * 7 * 3 * 11
    assert product_operations(case._replace(mode="forward")) == 2 * 7 * 3 * 11
    assert least_bytes(case) == 2 * (2 * 7 * 3 + 2 * 3 * 11) + 4 * 7
    assert least_bytes(case._replace(mode="forward")) == 2 * 7 * 3 + 2 * 3 * 11 + 4 * 7
    assert least_bytes(case, differentiated=1) == least_bytes(case) - 2 * 3 * 11
    assert least_bytes(case._replace(mode="eager")) == least_bytes(case._replace(mode="forward"))
    assert product_operations(case._replace(mode="eager")) == product_operations(case._replace(mode="forward"))


def test_suites_name_only_what_exists():
    for groups in SUITES.values():
        for group in groups:
            assert group.operation in CONTENDERS and group.operation in OPERATIONS
            assert set(group.dtypes) <= set(DTYPES) and set(group.modes) <= set(MODES)
            assert all(bool(shape.d) == OPERATIONS[group.operation].has_features for shape in group.shapes)


def test_sizes_of_the_suites_include_odd_ones_and_every_preset_vocabulary():
    vocabularies = {case.shape.v for groups in SUITES.values() for group in groups for case in group.cases()}
    assert {10, 50257, 128256, 151936, 262144} <= vocabularies
    assert any(v % 2 for v in vocabularies)


@pytest.mark.parametrize("text", ["", "n=3", "n=3,v=", "n=0,v=2", "n=3,v=2,x=1", "n=3;v=2", "n=3,v=2,v", "n=-1,v=2", "gpt9"])
def test_a_bad_shape_is_refused_with_what_it_may_be(text):
    with pytest.raises(ValueError, match="llama3"):
        named(text)


def test_a_shape_is_read():
    assert named("n=3,d=4,v=5") == Shape(3, 5, 4) and named("v=5,n=3") == Shape(3, 5) and named("gpt2") == PRESETS["gpt2"]


def test_products_are_counted_in_the_words_of_every_compiler():
    text = "%a = f32[2] dot(%x, %y)\n%b = f32[2] convolution(%x, %y)\n"
    text += 'custom-call(%x), custom_call_target="__cublas$lt$matmul"\nfusion(%x), calls=%dot'
    assert programs.products_in(text) == 3


def test_the_other_contenders_of_a_round_read_other_inputs():
    seen = []
    rounds_of({name: lambda i: seen.append(i) or time.sleep(0.003) for name in "abc"}, seconds=0.01, at_least=4)
    timed = seen[6:]  # after two warm calls of each
    assert timed == sorted(set(timed))


def test_rounds_take_turns_on_all_inputs():
    seen = {"a": [], "b": []}
    rounds = rounds_of({name: calls.append for name, calls in seen.items()}, seconds=0.01, at_least=7)
    assert len(rounds["a"].milliseconds) == len(rounds["b"].milliseconds) >= 7
    assert {i % 3 for i in seen["a"]} == {0, 1, 2}
    assert len(seen["a"]) > 7 * 10  # a short call is repeated within a sample


def test_rounds_count_page_faults_of_one_call():
    """A page of memory that was never touched is a fault; one that was is not."""
    page, pages = mmap.PAGESIZE, 100  # fewer than one huge page holds
    held = mmap.mmap(-1, page * pages)

    def touch(memory):
        for address in range(0, page * pages, page):
            memory[address] = 1

    calls = {"fresh": lambda i: touch(mmap.mmap(-1, page * pages)), "kept": lambda i: touch(held)}
    kernel = {name: rounds.kernel for name, rounds in rounds_of(calls, seconds=0.01).items()}
    assert pages <= kernel["fresh"].page_faults < 1.2 * pages and kernel["kept"].page_faults < 0.2 * pages
    assert kernel["fresh"].system_ms >= 0


def test_ratios_are_of_rounds_not_of_medians():
    """Every round the other takes twice as long, while the machine's speed changes fourfold."""
    ours = np.array([1.0, 4.0, 1.0, 4.0, 2.0])
    assert median_ratio(2 * ours, ours) == 2.0
    assert summary(ours) == {"median": 2.0, "p10": 1.0, "p90": 4.0, "rounds": 5}


class Named:
    def __init__(self, name, **more):
        self.name = name
        self.__dict__.update(more)


def event(start, duration):
    return Named("op", start_ns=start, duration_ns=duration)


def test_device_time_is_from_the_first_start_to_the_last_end_of_each_call():
    """Two streams that overlap, with a gap that the device waits in; two equal calls."""
    spans = [(0, 6e6), (1e6, 2e6), (10e6, 11e6), (13e6, 17e6)]
    assert list(elapsed(spans, 2)) == [6.0, 7.0]


@pytest.mark.parametrize("spans", [[], [(0, 1)], [(0, 1), (2, 3), (4, 5)]])
def test_a_trace_that_does_not_divide_into_its_calls_is_refused(spans):
    with pytest.raises(ValueError, match=f"{len(spans)} spans of 2 equal calls"):
        elapsed(spans, 2)


def test_a_trace_of_a_tpu_gives_programs_and_one_of_a_gpu_gives_streams():
    tpu = Named("/device:TPU:0", lines=[Named("XLA Modules", events=[event(5, 10)]), Named("XLA Ops", events=[event(5, 3)])])
    gpu = Named("/device:GPU:0", lines=[Named("Stream #7(Compute)", events=[event(9, 1), event(2, 3)])])
    other = Named("/device:CUSTOM:Trace", lines=[Named("XLA Modules", events=[event(0, 99)])])
    host = Named("/host:CPU", lines=[Named("python", events=[event(0, 100)])])
    assert intervals(Named("", planes=[host, other, tpu])) == [(5, 15)]
    assert intervals(Named("", planes=[host, gpu])) == [(2, 5), (9, 10)]
    assert intervals(Named("", planes=[host])) == []
