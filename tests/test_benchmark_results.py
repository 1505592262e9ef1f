"""Files of results: what is refused, what is compared, what is promised, what is drawn."""

import io
import json
from argparse import Namespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks import __main__ as command_line
from benchmarks import collectives, compare, hlo, plots, records, table, targets
from benchmarks.cases import chosen_cases
from benchmarks.records import Bad
from benchmarks.shapes import DTYPES, LINEAR, LOGITS, SUITES, Case, Shape

from .pictures import faults, legends_of

ENVIRONMENT = {
    "date": "2026-01-01",
    "versions": {"jax": "0.10.2", "jaxlib": "0.10.2"},
    "platform": "cpu",
    "device": "cpu",
    "commit": "0",
    "processor": "x",
    "cores": 2,
}


def row(case: Case, impl: str, milliseconds: float = 1.0, **more) -> dict:
    spread = {"median": milliseconds, "p10": 0.99 * milliseconds, "p90": 1.01 * milliseconds, "rounds": 7}
    figures = {"compile_ms": 9.0, "temp_bytes": 1000, "dots": 3, "peak_bytes": 2000, "operations": 100, "least_bytes": 10}
    rates = {
        "tokens_per_second": 1.0,
        "operations_per_second": 2e9,
        "bytes_per_second": 1e9,
        "share_of_ceiling": 0.5,
    }
    base = records.fields_of(case) | {
        "devices": 1,
        "impl": impl,
        "platform": "cpu",
        "status": "ok",
        "ranked": True,
        "to_ours": milliseconds,
    }
    return base | figures | rates | {"wall_ms": spread, "loss_error": 1e-7, "gradient_error": 1e-6} | more


def write(path, rows, **environment):
    ceilings = {"bytes_per_second": 1e10, "operations_per_second": 1e11}
    lines = [records.line_of("environment", **ENVIRONMENT | environment)]
    lines += [records.line_of("ceiling", dtype=dtype, **ceilings) for dtype in ("float32", "bfloat16")]
    records.create(path, lines + [records.line_of("row", **r) for r in rows])
    return path


CASE = Case("cross_entropy", Shape(64, 10), "float32", "forward")
OTHER = CASE._replace(shape=Shape(64, 11))


# --- files -----------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    results = records.read(write(tmp_path / "a.jsonl", [row(CASE, "ours"), row(CASE, "naive", 2.0)]))
    assert [r["impl"] for r in results.rows] == ["ours", "naive"]
    assert records.key_of(results.rows[1]) == (CASE, "naive")
    assert results.device == "CPU x, 2 cores" and set(results.ceilings) == {("float32", None), ("bfloat16", None)}


def test_rows_of_other_pages_are_other_cases_and_memory_kept_comes_first(tmp_path, capsys):
    fresh, kept = (CASE._replace(pages=pages) for pages in ("fresh", "kept"))
    assert str(kept) == f"{CASE}, kept pages"
    results = records.read(write(tmp_path / "a.jsonl", [row(fresh, "ours", 3.0), row(kept, "ours", 1.0), row(CASE, "ours")]))
    parts = results.by_pages()
    assert list(parts) == ["kept", "fresh", None]
    for pages, median in (("kept", 1.0), ("fresh", 3.0)):
        assert [r["wall_ms"]["median"] for r in parts[pages].rows] == [median]
        assert parts[pages].device.endswith(f"{pages} pages")
    assert set(parts[None].ceilings) == set(results.ceilings) and not parts["kept"].ceilings
    case = Case("cross_entropy", targets.LOGITS[0], "float32", "value_and_grad")
    times = {("fresh", "ours"): 1.0, ("fresh", "naive"): 1.5, ("kept", "ours"): 1.0, ("kept", "naive"): 1.25}
    rows = [row(case._replace(pages=pages), name, time) for (pages, name), time in times.items()]
    assert command_line.main(["targets", str(write(tmp_path / "b.jsonl", rows))]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "1.250" in line or "1.500" in line]
    assert lines and ["kept" in line for line in lines] == ["1.250" in line for line in lines]


def test_a_file_that_says_nothing_of_pages_is_held_against_memory_kept(tmp_path, capsys):
    kept, fresh = (CASE._replace(pages=pages) for pages in ("kept", "fresh"))
    other = write(tmp_path / "a.jsonl", [row(CASE, "ours", 2.0)])
    both = write(tmp_path / "b.jsonl", [row(fresh, "ours", 9.0), row(kept, "ours", 2.1)])
    assert command_line.main(["compare", str(other), str(both)]) == 0
    assert "1 compared" in capsys.readouterr().out
    slower = write(tmp_path / "c.jsonl", [row(fresh, "ours", 2.0), row(kept, "ours", 9.0)])
    assert command_line.main(["compare", str(other), str(slower)]) == 1
    out = tmp_path / "plots"
    assert command_line.main(["plot", str(both), str(other), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"b-devices.png", "b-devices-fresh.png"}
    assert command_line.main(["plot", str(other), str(both), "--out", str(tmp_path / "others")]) == 0
    assert (tmp_path / "others" / "a-devices.png").exists()


def test_a_nan_survives_the_file_which_stays_json(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(CASE, "ours", loss_error=float("nan"), gradient_error=float("inf"))])
    json.loads(path.read_text().splitlines()[-1], parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    (found,) = records.read(path).rows
    assert np.isnan(found["loss_error"]) and found["gradient_error"] == np.inf


def test_the_last_row_of_a_contender_counts(tmp_path):
    results = records.read(write(tmp_path / "a.jsonl", [row(CASE, "ours", 1.0), row(CASE, "ours", 3.0)]))
    assert [r["to_ours"] for r in results.rows] == [3.0]


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda text: text[:-40], "line 5: not JSON.*cut short"),
        (lambda text: text[:-1], "cut short"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 2, this version reads up to 1: update"),
        (lambda text: text.replace('"schema": 1', '"schema": "x"'), "line 1: not a line of results"),
        (lambda text: text.replace('"kind": "row"', '"kind": "tow"'), "line 4: not a line of results"),
        (lambda text: text.replace('"impl"', '"impL"'), "line 4: a line of kind 'row' without impl"),
        (lambda text: text.replace('"commit"', '"comit"'), "line 1: a line of kind 'environment' without commit"),
        (lambda text: text.replace('"n": 64', '"n": "64"'), "line 4: a row whose fields"),
        (lambda text: text.replace('"status": "ok"', '"status": "failed"'), "line 4: a row whose fields"),
        (lambda text: text.replace('"median"', '"mean"'), "line 4: a row whose fields"),
        (lambda text: "\n".join(text.splitlines()[1:]) + "\n", "one line of kind 'environment', got 0"),
        (lambda text: text + text, "one line of kind 'environment', got 2"),
        (lambda text: "[]\n" + text, "line 1: not a line of results"),
        (lambda text: "", "one line of kind 'environment', got 0"),
    ],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path, damage, says):
    path = write(tmp_path / "a.jsonl", [row(CASE, "ours"), row(CASE, "naive")])
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    with pytest.raises(Bad, match=says):
        records.read(path)
    assert path.read_bytes() == before


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(Bad, match="cannot read"):
        records.read(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Bad, match="cannot read"):
        records.read(tmp_path / "binary")


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("mine")
    with pytest.raises(Bad, match="exists and is left as it is"):
        records.create(path, ["x"])
    assert path.read_text() == "mine"
    with pytest.raises(Bad, match="cannot write"):
        records.create(tmp_path / "no folder" / "a.jsonl", ["x"])


# --- compare ---------------------------------------------------------------------------------------


def compared(tmp_path, before, after, environment=None, **options):
    a = write(tmp_path / "a.jsonl", before)
    b = write(tmp_path / "b.jsonl", after, **environment or {})
    defaults = {"threshold": 0.05, "ratios": False, "common": False}
    return compare.main(Namespace(before=a, after=b, **defaults | options))


def test_a_slower_loss_is_a_regression_and_a_slower_peer_is_not(tmp_path, capsys):
    before = [row(CASE, "ours", 1.0), row(CASE, "naive", 1.0)]
    assert compared(tmp_path, before, [row(CASE, "ours", 1.1), row(CASE, "naive", 1.0)]) == 1
    assert "1 worse of 2" in capsys.readouterr().out


def test_peers_noise_and_gains_are_no_regressions(tmp_path):
    before = [row(CASE, "ours", 1.0), row(CASE, "naive", 1.0), row(CASE, "ours-reference", 1.0)]
    noisy = row(CASE, "ours", 1.1)
    noisy["wall_ms"]["p10"] = 1.0  # its spread reaches into the one before
    after = [noisy, row(CASE, "naive", 9.0), row(CASE, "ours-reference", 0.5)]
    assert compared(tmp_path, before, after) == 0


def test_the_threshold_is_the_users(tmp_path):
    assert compared(tmp_path, [row(CASE, "ours", 1.0)], [row(CASE, "ours", 1.1)], threshold=0.2) == 0


def test_device_time_is_compared_where_both_have_it(tmp_path):
    def with_device(milliseconds):
        return row(CASE, "ours", 1.0, device_ms={"median": milliseconds, "p10": milliseconds, "p90": milliseconds})

    assert compared(tmp_path, [with_device(1.0)], [with_device(2.0)]) == 1


def test_files_of_other_cases_are_not_compared(tmp_path):
    with pytest.raises(Bad, match="share no case"):
        compared(tmp_path, [row(CASE, "ours")], [row(OTHER, "ours")])


def test_a_comparison_of_nothing_is_no_success(tmp_path):
    """Ratios need the formula's time beside ours, and the compiler's figures the same versions; failed rows have neither."""
    with pytest.raises(Bad, match="nothing was compared"):
        compared(tmp_path, [row(CASE, "ours")], [row(CASE, "ours")], {"versions": {"jax": "0.7.2"}}, ratios=True)
    (tmp_path / "a.jsonl").unlink(), (tmp_path / "b.jsonl").unlink()
    failed = {"impl": "ours", "status": "failed", "reason": "out of memory"}
    with pytest.raises(Bad, match="nothing was compared"):
        compared(tmp_path, [row(CASE, "ours") | failed], [row(CASE, "ours") | failed])


def test_files_with_some_common_cases_are_compared_when_asked(tmp_path):
    before, after = [row(CASE, "ours"), row(OTHER, "ours")], [row(CASE, "ours")]
    with pytest.raises(Bad, match="n=64,v=11.*--common"):
        compared(tmp_path, before, after)
    (tmp_path / "a.jsonl").unlink(), (tmp_path / "b.jsonl").unlink()
    assert compared(tmp_path, before, after, common=True) == 0


@pytest.mark.parametrize(
    "after",
    [
        {"status": "failed", "reason": "out of memory: 9"},
        {"loss_error": float("nan")},
        {"loss_error": 0.5},
        {"gradient_error": 1.0},
    ],
)
@pytest.mark.parametrize("ratios", [False, True])
def test_a_loss_of_ours_that_breaks_is_never_passed_over(tmp_path, capsys, after, ratios):
    before = [row(CASE, "ours"), row(CASE, "naive", 2.0)]
    assert compared(tmp_path, before, [row(CASE, "ours", **after), row(CASE, "naive", 2.0)], ratios=ratios) == 1
    assert "broken: cross_entropy n=64,v=10" in capsys.readouterr().out


def test_what_failed_before_or_is_not_ours_is_not_broken(tmp_path):
    failed = {"status": "failed", "reason": "out of memory: 9"}
    before = [row(CASE, "ours", **failed), row(CASE, "naive"), row(CASE, "ours-reference")]
    after = [row(CASE, "ours", **failed), row(CASE, "naive", **failed), row(CASE, "ours-reference")]
    assert compared(tmp_path, before, after) == 0


def test_what_another_device_lacks_is_not_broken(tmp_path):
    absent = {"status": "absent", "reason": "platform gpu: only cpu"}
    assert (
        compared(tmp_path, [row(CASE, "ours"), row(CASE, "naive")], [row(CASE, "ours", **absent), row(CASE, "naive")]) == 0
    )


def test_ratios_are_compared_whatever_the_machine(tmp_path):
    """Everything ten times slower is no regression; the naive formula that catches up is."""
    before = [row(CASE, "ours", 1.0), row(CASE, "naive", 3.0)]
    slower = [row(CASE, "ours", 10.0, to_ours=1.0), row(CASE, "naive", 30.0, to_ours=3.0)]
    assert compared(tmp_path, before, slower, ratios=True) == 0
    (tmp_path / "a.jsonl").unlink(), (tmp_path / "b.jsonl").unlink()
    caught_up = [row(CASE, "ours", 1.0), row(CASE, "naive", 1.5)]
    assert compared(tmp_path, before, caught_up, ratios=True, threshold=0.3) == 1


@pytest.mark.parametrize("figure", ["temp_bytes", "dots"])
@pytest.mark.parametrize("environment, status", [({}, 1), ({"versions": {"jax": "0.12.0"}}, 0), ({"processor": "y"}, 0)])
def test_figures_of_the_same_compiler_are_compared_exactly(tmp_path, figure, environment, status):
    after, naive = row(CASE, "ours"), row(CASE, "naive", 3.0, to_ours=3.0)
    after[figure] += 1
    assert compared(tmp_path, [row(CASE, "ours"), naive], [after, naive], environment, ratios=True) == status


def test_cycles_of_chips_are_compared_chip_by_chip(tmp_path):
    def of_chip(chip, cycles):
        return row(CASE, "ours", platform=f"aot {chip}", model_cycles=cycles) | {"wall_ms": None}

    before, after = [of_chip("v5e", 10), of_chip("v6e", 20)], [of_chip("v5e", 10), of_chip("v6e", 21)]
    assert compared(tmp_path, before, before[::-1]) == 0
    (tmp_path / "a.jsonl").unlink(), (tmp_path / "b.jsonl").unlink()
    assert compared(tmp_path, before, after) == 1


# --- targets ---------------------------------------------------------------------------------------


def test_a_target_shows_its_worst_case():
    rows = [row(Case("linear_cross_entropy", s, "float32", "value_and_grad"), n, t) for s, n, t in linear_figures()]
    (target,) = [t for t in targets.targets() if t.text == "linear_cross_entropy float32: over naive"]
    name, figure, holds = targets.verdict(target, list(target.figures(rows)))
    assert (name, holds) == (str(LINEAR[1]), False) and figure == pytest.approx(2.0)


def linear_figures():
    """At the second shape the naive formula takes half of our time."""
    for i, shape in enumerate(LINEAR[:3]):
        yield shape, "ours", 1.0
        yield shape, "naive", 0.5 if i == 1 else 2.0


def test_the_best_formula_of_each_shape_counts_and_the_mean_is_geometric():
    rows = []
    for shape, naive, other in ((LOGITS[0], 4.0, 2.0), (LOGITS[1], 8.0, 9.0)):
        case = Case("cross_entropy", shape, "float32", "value_and_grad")
        rows += [row(case, "ours", 1.0), row(case, "naive", naive), row(case, "logsumexp", other)]
    what = "cross_entropy float32 value_and_grad: best formula, times longer"
    worst, mean = (next(t for t in targets.targets() if t.text == text) for text in (what, what + ", mean"))
    assert targets.verdict(worst, list(worst.figures(rows))) == (f"{LOGITS[0]} logsumexp", 2.0, True)
    assert targets.verdict(mean, list(mean.figures(rows)))[1] == pytest.approx(4.0)


def test_figures_of_chips_and_of_this_machine_are_not_mixed():
    case = Case("linear_cross_entropy", targets.CYCLES[0], "bfloat16", "value_and_grad")
    cycles = {"model_cycles": 300, "memory_cycles": 50}
    rows = [
        row(case, "ours", platform="aot v5e", **cycles | {"temp_bytes": 2**30 + 600 * 2**20}),
        row(case, "products", platform="aot v5e", **cycles | {"model_cycles": 200, "memory_cycles": 250}),
    ]
    found = {t.text: list(t.figures(rows)) for t in targets.targets() if list(t.figures(rows))}
    assert found["v5e: cycles over the products of our chunks"] == [(str(case.shape), 1.5)]
    assert found["v5e: the larger of cycles and memory, over the same"] == [(str(case.shape), 1.2)]
    assert found["v5e: temporary MiB beside the head's gradient"] == [(str(case.shape), 600.0)]
    assert not any(text.startswith(("v6e", "h100", "linear", "GPU")) for text in found)


def test_the_committed_results_hold_every_target_but_those_of_a_gpu(capsys):
    """Measured or not is what is asserted here, not the figure: that is printed for the reader. v5e cannot compile naive."""
    assert targets.main(Namespace(files=[])) == 0
    missing = [line.split("│")[0].strip() for line in capsys.readouterr().out.splitlines() if "not meas" in line]
    assert all(text.startswith("GPU:") or text == "v5e: temporary bytes over naive's" for text in missing)


# --- tables and plots ------------------------------------------------------------------------------


def shown(rows) -> str:
    terminal = {"force_terminal": True, "color_system": "standard", "highlight": False, "width": 200}
    console = table.Console(**terminal, record=True, file=io.StringIO())
    table.show(console, CASE, rows)
    return console.export_text(styles=True)


def test_the_best_right_answer_is_bold_and_a_wrong_one_is_red():
    text = shown([row(CASE, "ours", 2.0), row(CASE, "naive", 3.0), row(CASE, "wrong", 1.0, loss_error=0.5)])
    assert "\x1b[1m2\x1b" in text and "\x1b[1m1\x1b" not in text
    assert "\x1b[31m" in next(line for line in text.splitlines() if "wrong" in line)


def test_a_nan_is_wrong():
    assert table.is_wrong({"loss_error": float("nan")}) and not table.is_wrong({"loss_error": None})


def test_what_did_not_run_is_listed_with_the_reason():
    text = shown(
        [row(CASE, "ours"), records.fields_of(CASE) | {"impl": "x", "status": "failed", "reason": "out of memory: 9"}]
    )
    assert "x: out of memory: 9" in text


def many_rows():
    for dtype in DTYPES:
        for v in (16, 256, 4096):
            case = Case("cross_entropy", Shape(64, v), dtype, "forward")
            yield from (row(case, name, v / 16) for name in ("ours", "naive"))
    for shape in LINEAR:
        case = Case("linear_cross_entropy", shape, "float32", "value_and_grad")
        yield from (row(case, name, shape.v / 100) for name in ("ours", "naive"))
    for n in (10, 20, 40):
        yield row(Case("linear_cross_entropy", Shape(n, 500, 8), "float32", "value_and_grad"), "ours")


def test_every_plot_is_drawn_from_results_that_hold_it(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", list(many_rows()), device=name) for name in ("one", "two")]
    assert plots.main(Namespace(files=files, out=tmp_path / "plots")) == 0
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == {f"one-{name}" for name in plots.PLOTS}


def test_a_plot_that_has_no_data_says_so(tmp_path, capsys):
    with pytest.raises(Bad, match="nothing to draw"):
        plots.main(Namespace(files=[write(tmp_path / "a.jsonl", [row(CASE, "ours", operations=0)])], out=tmp_path / "plots"))
    assert capsys.readouterr().out.count("not drawn") == len(plots.PLOTS)


def test_lines_are_of_cases_in_which_one_size_varies():
    rows = list(many_rows())
    assert {(r["n"], r["op"]) for r in plots.family(rows, "v")} == {(64, "cross_entropy")}
    assert {(r["v"], r["d"], r["op"]) for r in plots.family(rows, "n")} == {(500, 8, "linear_cross_entropy")}


CROWD = ["a-contender-with-a-name-of-some-length"] + [f"other-{i}" for i in range(20)] + ["ours"]
LONG_NAME = "a vendor's long name (R) Processor with a model's number 98765 @ 2.50GHz amx_bf16"


def crowded_rows():
    """Many contenders, each with figures of its own; every plot has something to draw."""
    for op, mode, d in (("cross_entropy", "forward", 0), ("linear_cross_entropy", "value_and_grad", 64)):
        for dtype in ("float32", "bfloat16"):
            cases = [Case(op, Shape(n, v, d), dtype, mode) for n, v in ((64, 16), (64, 256), (64, 4096), (8, 16), (16, 16))]
            for k, case in enumerate(cases):
                for i, name in enumerate(CROWD):
                    sizes = {"temp_bytes": 10**5 * (i + 1) * 4**k, "operations": d and 10 ** (k - 1), "loss_error": 10.0**-i}
                    yield row(case, name, (i + 1) * 3.0**k, **sizes, operations_per_second=1e9 * (i + 1))


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("results") / name for name in ("a.jsonl", "b.jsonl")]
    return [records.read(write(path, list(crowded_rows()), processor=LONG_NAME)) for path in paths]


@pytest.mark.parametrize("name", plots.PLOTS)
def test_no_text_of_a_plot_meets_another_and_every_axis_has_a_label(name, crowded):
    figure = plots.PLOTS[name](crowded)
    assert faults(figure) == []
    (legend,) = legends_of(figure)
    assert len(legend.get_texts()) == {"devices": 2, "errors": 1}.get(name, len(CROWD))
    plt.close(figure)


def test_each_contender_has_a_look_of_its_own():
    assert len({plots.style(name, CROWD) for name in CROWD}) == len(CROWD)


def test_lines_that_coincide_are_all_seen():
    """Each is drawn on the one before and is thinner."""
    axes = plt.figure().subplots()
    plots.draw_lines(axes, {name: {1: 1, 2: 2, 3: 3} for name in CROWD[:6]})
    assert np.all(np.diff([line.get_linewidth() for line in axes.lines]) < 0)
    assert np.all(np.diff([line.get_markersize() for line in axes.lines]) < 0)
    plt.close()


def test_points_above_the_ceiling_are_counted_with_a_reason():
    """The ceiling is 100 from an intensity of 10 on, 10 times the intensity below it."""
    under = [(5, 49), (50, 99), (10, 100)]
    assert plots.above(np.array(under), 100, 10) == ""
    assert plots.above(np.array([*under, (5, 51), (1, 11)]), 100, 10) == "\n2 above: their data can stay in a cache"
    assert plots.above(np.array([*under, (5, 200), (50, 101)]), 100, 10).count("1 above") == 2


def test_the_roofline_says_how_many_points_are_above_it(tmp_path):
    case = Case("linear_cross_entropy", Shape(64, 16, 8), "float32", "forward")
    rows = [
        row(case, name, operations=1000, operations_per_second=speed) for name, speed in (("ours", 2e11), ("naive", 9e10))
    ]
    figure = plots.roofline([records.read(write(tmp_path / "a.jsonl", rows))])
    assert "1 above: the ceiling came out too low" in figure.axes[0].get_title() and faults(figure) == []
    plt.close(figure)


def test_the_linear_cases_drawn_have_the_most_logits_then_the_fewest_rows(tmp_path):
    shapes = [Shape(n, v, 8) for n, v in ((1, 4096), (64, 64), (4, 1024), (16, 256), (2, 2048), (8, 512), (4, 8192))]
    rows = [row(Case("linear_cross_entropy", shape, "float32", "forward"), "ours") for shape in shapes]
    figure = plots.pareto([records.read(write(tmp_path / "a.jsonl", rows))])
    drawn = [axes.get_title().split(",")[0] for axes in figure.axes]
    assert drawn == ["n=4", "n=1", "n=2", "n=4"]
    plt.close(figure)


# --- programs of chips -----------------------------------------------------------------------------

PROGRAM = """HloModule m

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p = (s32[], f32[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %bound = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[], f32[8,128]{1,0}) parameter(0)
  %x = f32[8,128]{1,0} get-tuple-element(%p), index=1
  %fast = bf16[8,128]{1,0:S(1)} convert(%x), backend_config={"estimated_cycles":"7"}
  %y = f32[8,128]{1,0} add(%x, %fast), backend_config={"estimated_cycles":"100"}
  ROOT %t = (s32[], f32[8,128]{1,0}) tuple(%i, %y)
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %start = (s32[], f32[8,128]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[8,128]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loops_body_counts_as_often_as_it_runs_and_fast_memory_does_not():
    operations = {o["name"]: o for o in hlo.operations_of(PROGRAM, {"y": 60})}
    array = 4 * 8 * 128
    assert operations["y"] | {"from": "", "result": ""} == {
        "name": "y",
        "times": 5,
        "model": 500,
        "profile": 300,
        "bytes": 5 * 2 * array,
        "from": "",
        "result": "",
    }
    assert operations["fast"]["bytes"] == 5 * array and operations["fast"]["profile"] is None


def test_a_loop_that_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="cannot read how often"):
        hlo.operations_of(PROGRAM.replace("direction=LT", "direction=GT"), {})


@pytest.mark.parametrize(
    "kind, given, found",
    [
        ("all-gather", "f32[8,4]{1,0}", 128),
        ("all-gather-start", "(bf16[16,8]{1,0:T(8,128)}, bf16[128,8]{1,0})", 2048),
        ("reduce-scatter-start", "((f32[128,8]{1,0}), f32[16,8]{1,0})", 512),
        ("all-gather-start", "((s32[2]{0}, bf16[2,3]{1,0}), (s32[8]{0}, bf16[8,3]{1,0}))", 80),
        ("all-reduce-start", "(f32[8]{0}, f32[2]{0})", 40),
    ],
)
def test_the_result_of_a_collective_is_not_its_operand(kind, given, found):
    assert hlo.bytes_of(collectives.result_type(hlo.Operation("", given, kind, [], ""))) == found


# --- the command line ------------------------------------------------------------------------------


def options(**given):
    return Namespace(**{"suite": None, "op": None, "impl": None, "shape": None, "dtype": None, "mode": None} | given)


@pytest.mark.parametrize(
    "given, says",
    [
        ({"suite": ["smokes"]}, "unknown suite smokes: expected one of smoke, classify"),
        ({"op": ["x"]}, "unknown operation x: expected one of cross_entropy"),
        ({"shape": ["n=1"]}, "give n=ROWS,v=CLASSES"),
        ({"op": ["linear_cross_entropy"], "shape": ["n=3,v=4"]}, "needs features"),
        ({"op": ["info_nce"], "shape": ["n=3,d=2,v=4"]}, "give v=3"),
        ({"suite": ["contrastive"], "op": ["kl_divergence"]}, "no case"),
    ],
)
def test_a_bad_choice_is_refused(given, says):
    with pytest.raises(Bad, match=says):
        chosen_cases(options(**given))


def test_choices():
    smoke = [case for group in SUITES["smoke"] for case in group.cases()]
    assert chosen_cases(options()) == smoke
    assert {c.operation for c in chosen_cases(options(op=["info_nce"]))} == {"info_nce"}
    assert {c.operation for c in chosen_cases(options(shape=["gpt2"]))} == {"linear_cross_entropy"}
    assert {c.shape for c in chosen_cases(options(shape=["n=5,v=7"]))} == {Shape(5, 7)}
    assert {c.shape for c in chosen_cases(options(op=["cross_entropy"], shape=["gpt2"]))} == {Shape(8192, 50257)}
    (case,) = chosen_cases(options(shape=["llama3"], mode=["forward"], dtype=["float16"]))
    assert (case.operation, case.dtype, case.mode) == ("linear_cross_entropy", "float16", "forward")


@pytest.mark.parametrize(
    "words, says",
    [
        (["compare", "a.jsonl", "b.jsonl", "--threshold", "x%"], "such as 5%"),
        (["compare", "a.jsonl", "b.jsonl", "--threshold", "5"], "such as 5%"),
        (["run", "--seconds", "0"], "positive number"),
        (["run", "--dtype", "float8"], "invalid choice"),
        (["runn"], "invalid choice"),
        ([], "required"),
    ],
)
def test_a_bad_word_is_refused(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.main(words)
    assert ended.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, says",
    [
        (["run", "--impl", "ourss"], "unknown implementation ourss"),
        (["run", "--resume"], "give --out"),
        (["compare", "none.jsonl", "none.jsonl"], "cannot read none.jsonl"),
        (["aot", "--chip", "v9"], "unknown chip v9"),
        (["aot", "--op", "sharded_cross_entropy"], "aot compiles for one chip"),
        (["aot", "--op", "info_nce", "--options", "softcap"], "options are those of cross_entropy"),
        (["aot", "--op", "cross_entropy", "--options", "softcaps"], "unknown options softcaps"),
        (["targets", "none.jsonl"], "cannot read none.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(words, says, capsys):
    assert command_line.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks: ") and says in error and error.count("\n") == 1


def test_a_line_of_json_is_strict_about_its_own_fields():
    line = json.loads(records.line_of("row", **row(CASE, "ours")))
    assert (line["schema"], line["n"], line["d"], line["v"]) == (records.SCHEMA, 64, 0, 10)
    assert np.isfinite(line["wall_ms"]["median"])
