"""A search tries what it says, scores it by the plain held-out loss, and survives what goes wrong."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from matplotlib.figure import Figure
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

import crossent_jax
from crossent_jax import tuning
from crossent_jax.tuning import _space, _storage

from .pictures import faults

SCORES = jnp.array([[1.0, -0.5, 0.2], [0.0, 2.0, -1.0], [0.3, 0.1, 0.4], [1.0, 0.5, -3.0], [0.0, 0.1, 0.2]])
LABELS = jnp.array([0, 1, 0, 2, 1])
GRID = {"scale": [0.0, 0.5, 1.0], "shift": [0.0, 2.0]}


@pytest.fixture(autouse=True)
def no_log():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def scaled(hyper, key):
    """Logits that depend on the hyper-parameters alone."""
    return hyper["scale"] * SCORES + jnp.float32(hyper["shift"]) * jnp.arange(3.0)[None]


def true_score(scale, shift):
    z = np.float64(scale) * np.float64(SCORES) + shift * np.arange(3)
    return float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(5), np.asarray(LABELS)]))


def search(trial=scaled, space=GRID, **options):
    options = {"labels": LABELS, "sampler": "grid", "storage": None} | options
    return tuning.search(trial, space, **options)


def states(study):
    return Counter(trial.state for trial in study.trials)


def points(study, state=TrialState.COMPLETE):
    return Counter(tuple(trial.params.values()) for trial in study.trials if trial.state == state)


EVERY_POINT = Counter({(scale, shift): 1 for scale in GRID["scale"] for shift in GRID["shift"]})


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_a_grid_has_every_point_once_and_its_score(batch):
    study = search(batch=batch)
    assert points(study) == EVERY_POINT and states(study) == {TrialState.COMPLETE: 6}
    for trial in study.trials:
        assert trial.value == pytest.approx(true_score(**trial.params), rel=1e-6)
    assert study.best_value == min(trial.value for trial in study.trials)


def test_grids_of_distributions():
    space = {"scale": FloatDistribution(0.1, 0.4, step=0.1), "shift": IntDistribution(1, 5, step=2)}
    study = search(space=space)
    found = {tuple(np.round(point, 6)) for point in points(study)}
    assert found == {(scale, shift) for scale in (0.1, 0.2, 0.3, 0.4) for shift in (1, 3, 5)}


@pytest.mark.parametrize("sampler", ["random", "bayesian", optuna.samplers.TPESampler(seed=1, n_startup_trials=20)])
def test_samplers_find_the_best_of_a_smooth_surface(sampler):
    space = {"scale": FloatDistribution(-2.0, 2.0), "shift": FloatDistribution(-2.0, 2.0)}
    study = search(space=space, sampler=sampler, trials=40, batch=8)
    assert states(study) == {TrialState.COMPLETE: 40}
    finest = min(true_score(scale, shift) for scale in np.linspace(-2, 2, 81) for shift in np.linspace(-2, 2, 81))
    assert finest <= study.best_value + 1e-9 <= finest + 0.03


def test_one_program_for_all_batches():
    """Of sizes 4 and 2 (3 rounds up to 4): two shapes, each traced once."""
    traced = []

    def trial(hyper, key):
        traced.append(hyper["scale"].shape)
        return scaled(hyper, key)

    search(trial, {"scale": [0.1 * i for i in range(11)], "shift": [0.0]}, batch=4)
    assert len(traced) <= 2 and set(traced) == {()}


def test_static_values_have_programs_of_their_own():
    seen = []

    def trial(hyper, key):
        seen.append(hyper["form"])
        return scaled({"scale": hyper["scale"], "shift": 1.0 if hyper["form"] == "shifted" else 0.0}, key)

    study = search(trial, {"scale": [0.0, 0.5, 1.0], "form": ["plain", "shifted"]}, static=("form",), batch=6)
    assert sorted(seen[1:]) == ["plain", "shifted"]  # after the trace that precedes the study
    for each in study.trials:
        shift = 1.0 if each.params["form"] == "shifted" else 0.0
        assert each.value == pytest.approx(true_score(each.params["scale"], shift), rel=1e-6)


def test_dtypes_of_hyper_parameters():
    found = {}

    def trial(hyper, key):
        found.update({name: hyper[name].dtype for name in hyper})
        return SCORES * sum(jnp.asarray(hyper[name], jnp.float32) for name in hyper)

    search(
        trial, {"a": [1, 2], "b": [1, 0.5], "c": [True], "d": IntDistribution(3, 4), "e": FloatDistribution(1, 2, step=1)}
    )
    assert found == {"a": jnp.int32, "b": jnp.float32, "c": jnp.int32, "d": jnp.int32, "e": jnp.float32}


def noisy(hyper, key):
    return hyper["scale"] * SCORES + jax.random.normal(key, SCORES.shape)


def test_mean_and_standard_error_over_seeds():
    study = search(noisy, {"scale": [0.0, 1.0, 2.0]}, seeds=4, random_seed=3)
    keys = jax.random.split(jax.random.key(3), 4)
    for trial in study.trials:
        logits = [noisy({"scale": jnp.float32(trial.params["scale"])}, key) for key in keys]
        alone = np.array([crossent_jax.cross_entropy(z, LABELS) for z in logits], np.float64)
        np.testing.assert_allclose(trial.user_attrs["nll_of_seeds"], alone, rtol=1e-6)
        assert trial.value == pytest.approx(alone.mean(), rel=1e-6)
        assert trial.user_attrs["standard_error"] == pytest.approx(alone.std(ddof=1) / 2, rel=1e-4)


def test_held_out_rows_that_do_not_count():
    where = jnp.array([True, True, False, True, False])
    spoilt = jnp.where(where[:, None], SCORES, jnp.nan)
    study = search(lambda hyper, key: hyper["scale"] * spoilt, {"scale": [1.0]}, where=where)
    assert study.best_value == pytest.approx(float(crossent_jax.cross_entropy(SCORES[where], LABELS[where])), rel=1e-6)


def test_a_score_of_ones_own():
    study = search(lambda hyper, key: hyper["x"] ** 2, {"x": [-1.0, 0.5, 2.0]}, labels=None, score=lambda x: x)
    assert study.best_params == {"x": 0.5} and study.best_value == 0.25


def test_data_are_shared():
    study = search(lambda hyper, key, scores: hyper["scale"] * scores, {"scale": [0.5, 1.0]}, data=(SCORES,))
    assert {t.params["scale"]: pytest.approx(t.value, rel=1e-6) for t in study.trials} == {
        scale: true_score(scale, 0.0) for scale in (0.5, 1.0)
    }


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_trial_without_a_finite_score_is_pruned_and_touches_no_other(bad):
    def trial(hyper, key):
        return jnp.where(hyper["scale"] == 0.5, bad, scaled(hyper, key))

    study = search(trial, batch=6, seeds=2)
    assert points(study, TrialState.PRUNED) == {(0.5, 0.0): 1, (0.5, 2.0): 1}
    for each in study.get_trials(states=(TrialState.COMPLETE,)):
        assert each.value == pytest.approx(true_score(**each.params), rel=1e-6)


def test_what_raises_is_named_and_tried_again(tmp_path):
    path, broken = tmp_path / "study.sqlite3", [True]

    def trial(hyper, key):
        def complain(scale):
            if hyper["form"] == "odd" and broken:
                raise OverflowError("too odd")

        hyper["form"]
        jax.debug.callback(complain, hyper["scale"])
        return scaled({"scale": hyper["scale"], "shift": 0.0}, key)

    options = {"space": {"form": ["even", "odd"], "scale": [0.5, 1.0]}, "static": ("form",), "storage": path, "batch": 3}
    with pytest.raises(RuntimeError, match=r"(?s)trial 2: {'form': 'odd', 'scale': 0.5} raised .*: .*too odd"):
        search(trial, **options)
    kept = stored(path)
    assert points(kept) == {("even", 0.5): 1, ("even", 1.0): 1} and points(kept, TrialState.FAIL) == {("odd", 0.5): 1}
    broken.clear()
    study = search(trial, **options)
    assert points(study) == {(form, scale): 1 for form in ("even", "odd") for scale in (0.5, 1.0)}


def test_a_study_goes_on_where_it_stopped(tmp_path):
    space = {"scale": FloatDistribution(-1, 1), "shift": FloatDistribution(-1, 1)}
    options = {"space": space, "sampler": "random", "storage": tmp_path / "study.sqlite3", "name": "mine"}
    first = search(trials=4, **options).trials
    study = search(trials=7, **options)
    assert len(first) == 4 and len(study.trials) == 7
    assert len(points(study)) == 7  # no draw was repeated
    assert [t.params for t in study.trials[:4]] == [t.params for t in first]
    assert len(search(trials=5, **options).trials) == 7


def stored(path):
    return optuna.load_study(study_name="search", storage=_storage.open_storage(path))


def test_a_trial_whose_process_died_while_it_began_is_tried_again(tmp_path, monkeypatch):
    path, space = tmp_path / "study.sqlite3", {"scale": [1.0, 2.0], "shift": [0.0]}
    chosen = _space.distributions(space)
    points = _space.grid_points(chosen, 10)
    study = _storage.open_study(_storage.open_storage(path), "search", optuna.samplers.RandomSampler(), points, chosen)
    with _storage.quiet():
        study.ask(chosen)  # and nothing more: no heartbeat
    assert states(study) == {TrialState.RUNNING: 1, TrialState.WAITING: 1}
    monkeypatch.setattr(_storage, "UNHEARD_SECONDS", 0)
    assert states(search(storage=path, space=space)) == {TrialState.COMPLETE: 2, TrialState.FAIL: 1}


KILLED = """
import os, signal, sys
import jax, jax.numpy as jnp
from crossent_jax import tuning

def kill_in_the_second_batch(scale):
    if scale > 2:
        os.kill(os.getpid(), signal.SIGKILL)

def trial(hyper, key):
    jax.debug.callback(kill_in_the_second_batch, hyper["scale"])
    return hyper["scale"] * jnp.eye(2)

space = {"scale": [1.0, 2.0, 3.0, 4.0, 5.0]}
tuning.search(trial, space, labels=jnp.array([0, 1]), sampler="grid", batch=2, storage=sys.argv[1])
"""


def run_script(text, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(text), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.subprocess
def test_a_killed_search_loses_the_batch_that_ran(tmp_path, monkeypatch):
    path = tmp_path / "study.sqlite3"
    child = run_script(KILLED, path)
    child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL
    left = stored(path)
    assert points(left) == {(1.0,): 1, (2.0,): 1} and states(left)[TrialState.RUNNING] == 2
    monkeypatch.setattr(_storage, "HEARTBEAT_SECONDS", 1)
    options = {"space": {"scale": [1.0, 2.0, 3.0, 4.0, 5.0]}, "labels": jnp.array([0, 1]), "storage": path}
    study = search(lambda hyper, key: hyper["scale"] * jnp.eye(2), **options)
    assert points(study) == {(scale,): 1 for scale in (1.0, 2.0, 3.0, 4.0, 5.0)}
    assert points(study, TrialState.FAIL) == {(3.0,): 1, (4.0,): 1}
    assert [t.value for t in study.trials[:2]] == [t.value for t in left.trials[:2]]


WORKER = """
import sys
import jax.numpy as jnp
from crossent_jax import tuning

def trial(hyper, key):
    return hyper["a"] * hyper["b"] * jnp.eye(2)

space = {"a": [1, 2, 3, 4, 5], "b": [1, 2, 3]}
tuning.search(trial, space, labels=jnp.array([0, 1]), sampler="grid", batch=2, storage=sys.argv[1])
"""


@pytest.mark.subprocess
def test_two_processes_share_a_grid(tmp_path):
    path = tmp_path / "study.sqlite3"
    workers = [run_script(WORKER, path) for _ in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    study = stored(path)
    assert points(study) == {(a, b): 1 for a in range(1, 6) for b in range(1, 4)}


def foreign_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 100)
    return path


def foreign_database(tmp_path):
    path = tmp_path / "songs.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()
    return path


def missing_folder(tmp_path):
    return tmp_path / "nowhere" / "study.sqlite3"


@pytest.mark.parametrize(
    "made, message",
    [
        (foreign_file, "is not a SQLite file: give another path; nothing was written"),
        (foreign_database, r"is another program's, with the tables \['songs'\]"),
        (missing_folder, "a file in an existing folder"),
    ],
)
def test_files_of_others_are_left_alone(made, message, tmp_path):
    path = made(tmp_path)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(ValueError, match=message):
        search(storage=path)
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_locked_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_storage, "LOCK_SECONDS", 0.1)
    path = tmp_path / "study.sqlite3"
    search(storage=path, space={"scale": [1.0], "shift": [0.0]})
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(ValueError, match="locked by another program or not writable"):
            search(storage=path, space={"scale": [1.0], "shift": [0.0]})
    finally:
        holder.close()


def test_a_study_of_another_grid(tmp_path):
    path = tmp_path / "study.sqlite3"
    search(storage=path)
    with pytest.raises(ValueError, match=r"holds another space: it has 'scale' as .*0.0, 0.5, 1.0.*this space has"):
        search(storage=path, space={"scale": [0.0, 1.0, 2.0], "shift": [1.0]})


def misspelt(hyper, key):
    return hyper["scal"] * SCORES


WRONG = {
    "no space": ({"space": {}}, "space is empty"),
    "no values": ({"space": {"scale": []}}, r"space\['scale'\] must be .* a list of at least one value; got \[\]"),
    "a range": ({"space": {"scale": (0.1)}}, r"space\['scale'\] must be an optuna.distributions object or a list"),
    "a large grid": (
        {"space": {"scale": list(range(101)), "shift": list(range(100))}},
        "10100 points, 101 .scale. x 100 .shift.",
    ),
    "an endless grid": ({"space": {"scale": FloatDistribution(0, 1)}}, "has no grid: give a list of values, or a step"),
    "a sampler": ({"sampler": "bayes", "trials": 3}, r"sampler must be one of .*got .bayes."),
    "trials of a grid": ({"trials": 3}, "trials must be a number of at least 1 .and None for a grid"),
    "no trials": ({"sampler": "random"}, "trials must be a number of at least 1"),
    "zero trials": ({"sampler": "random", "trials": 0}, "trials must be at least 1; got 0"),
    "seeds": ({"seeds": 0}, "seeds must be at least 1; got 0"),
    "batch": ({"batch": 0}, "batch must be at least 1; got 0"),
    "at once": ({"at_once": 0}, "at_once must be at least 1; got 0"),
    "static": ({"static": ("size",)}, r"static names \['size'\], but the space has only \['scale', 'shift'\]"),
    "strings": ({"space": {"scale": ["a"], "shift": [1]}}, "holds 'a', which cannot be an array: add 'scale' to static"),
    "no score": ({"labels": None}, "give labels, the held-out ones, or score"),
    "two scores": ({"score": jnp.sum}, "give labels, the held-out ones, or score"),
    "where of a score": ({"labels": None, "score": jnp.sum, "where": LABELS > 0}, "where belongs to labels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments(name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        search(**options)


WRONG_TRIALS = {
    "unread": (lambda hyper, key: hyper["scale"] * SCORES, r"never reads \['shift'\], which the space has"),
    "misspelt": (misspelt, r"the trial reads 'scal'; the space has \['scale', 'shift'\]"),
    "rows": (lambda hyper, key: hyper["scale"] * hyper["shift"] * SCORES[1:], "labels"),
    "vector": (lambda hyper, key: hyper["scale"] + hyper["shift"], "logits"),
}


@pytest.mark.parametrize("name", WRONG_TRIALS)
def test_bad_trials(name):
    trial, message = WRONG_TRIALS[name]
    with pytest.raises((ValueError, KeyError), match=message):
        search(trial)


def test_best_so_far():
    study = search(noisy, {"scale": [0.0, 2.0, 1.0, 3.0]}, seeds=3, batch=1)
    figure = tuning.plot_best_so_far({"grid": study})
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), np.minimum.accumulate([trial.value for trial in study.trials]))
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    best = study.best_trial
    assert (
        np.max(band) >= study.trials[0].value
        and np.min(band)
        == pytest.approx(
            min(t.value - t.user_attrs["standard_error"] for t in study.trials if t.value <= study.trials[0].value), abs=1e-6
        )
        or np.min(band) == pytest.approx(best.value - best.user_attrs["standard_error"], abs=1e-6)
    )


def test_nothing_to_draw():
    study = search(lambda hyper, key: hyper["scale"] * jnp.nan * SCORES, {"scale": [1.0]})
    with pytest.raises(ValueError, match="no trial with a score to draw"):
        tuning.plot_best_so_far(study)
    with pytest.raises(ValueError, match="studies must have a study to draw; got none"):
        tuning.plot_best_so_far({})


def ended(*values, name=None, error=0.1):
    """A study whose trials have these scores."""
    study = optuna.create_study(study_name=name)
    study.add_trials([optuna.trial.create_trial(value=v, user_attrs={"standard_error": error}) for v in values])
    return study


STUDIES = {
    "one trial": ended(0.7),
    "no error": ended(0.7, 0.6, error=float("nan")),
    "never better": ended(1.0, 2.0, 3.0),
    "many": {f"study {i} of a family with a long name": ended(3.0, 2.0 + i, 1.0 + 1 / (i + 1)) for i in range(14)},
    "one long word": ended(3.0, 2.0, name="x" * 150),
}


@pytest.mark.parametrize("case", STUDIES)
def test_best_so_far_of_any_studies_is_readable(case):
    figure = tuning.plot_best_so_far(STUDIES[case])
    axes = figure.axes[0]
    axes.set_title("Samplers")
    assert faults(figure) == []
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1  # covers no line
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == len(axes.lines)
    assert all(tick == int(tick) for tick in axes.get_xticks())
    assert all(line.get_marker() not in ("", "None") for line in axes.lines)  # a trial alone makes no line


def test_best_so_far_is_drawn_into_given_axes():
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    assert tuning.plot_best_so_far({"a": ended(3.0, 2.0), "b": ended(2.5)}, ax=left) is left
    assert figure.axes == [left, right] and len(left.lines) == 2 and not right.has_data()
    right.set(xlabel="x", ylabel="y")
    assert faults(figure) == []
    box, inside = left.get_legend().get_window_extent(), left.get_window_extent()
    assert np.all(box.min >= inside.min) and np.all(box.max <= inside.max)
