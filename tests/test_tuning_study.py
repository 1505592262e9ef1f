"""A study that is gone on with: the same space, or an error that says what differs and leaves the file as it was."""

import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import BruteForceSampler, GridSampler
from optuna.trial import TrialState

from crossent_jax import tuning
from crossent_jax.tuning import _space, _storage

LABELS = jnp.array([0, 1])


@pytest.fixture(autouse=True)
def no_log():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def total(hyper, key):
    """What it reads is a number, or a tuple of them."""
    return sum(jnp.sum(jnp.asarray(hyper[name], jnp.float32)) for name in hyper)


def search(space, trial=total, **options):
    options = {"score": lambda x: x, "sampler": "grid", "storage": None} | options
    return tuning.search(trial, space, **options)


def values(study, state=TrialState.COMPLETE):
    """In the order of the trials."""
    return [trial.value or 0.0 for trial in study.get_trials(states=(state,))]


def seen(path):
    """All that a file holds of the study."""
    study = optuna.load_study(study_name="search", storage=_storage.open_storage(path))
    return [(t.state, t.params, t.value, t.user_attrs, t.system_attrs) for t in study.trials], study.user_attrs


@pytest.mark.parametrize("options", [{}, {"sampler": "random", "trials": 2}])
def test_tuples_survive_a_file(options, tmp_path):
    """JSON gives lists back; the trial gets tuples."""
    shapes = []

    def trial(hyper, key):
        shapes.append(hyper["shape"])
        return total(hyper, key)

    options = options | {"static": ("shape",), "storage": tmp_path / "study.sqlite3"}
    first = search({"shape": [(1, 2), [7, 8]]}, trial, **options)
    again = search({"shape": ((1, 2), [7, 8])}, trial, **options)
    assert [t.params for t in again.trials] == [t.params for t in first.trials]
    assert all(t.value == np.sum(np.hstack(t.params["shape"])) for t in again.trials)
    assert set(shapes) <= {(1, 2), (7, 8)}


def test_scalars_of_arrays_are_choices(tmp_path):
    space = {
        "a": [np.float32(0.5)],
        "b": np.arange(2, 3),
        "c": [np.array(3), jnp.array(4)],
        "d": [np.bool_(True)],
        "e": [jnp.bfloat16(2.0)],
    }
    for _ in range(2):
        study = search(space, storage=tmp_path / "study.sqlite3")
        assert values(study) == [0.5 + 2 + c + 1 + 2 for c in (3, 4)]
        assert {type(value) for t in study.trials for value in t.params.values()} == {float, int, bool}


CHANGED = {
    "range": (FloatDistribution(0, 1), FloatDistribution(0, 2), r"'x' as FloatDistribution\(high=1.0.*this space.*high=2.0"),
    "step": (FloatDistribution(0, 1), FloatDistribution(0, 1, step=0.5), "step=None.*this space has .*step=0.5"),
    "log": (FloatDistribution(0.1, 1), FloatDistribution(0.1, 1, log=True), "log=False.*this space has .*log=True"),
    "kind": (FloatDistribution(0, 3), IntDistribution(0, 3), "'x' as FloatDistribution.*this space has IntDistribution"),
    "choices": ([1, 2], [1, 3], r"'x' as CategoricalDistribution\(choices=\(1, 2\)\), this space.*\(1, 3\)"),
    "order": ([1, 2], [2, 1], r"choices=\(1, 2\)\), this space.*\(2, 1\)"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_space_is_refused_by_name(case, tmp_path):
    before, after, message = CHANGED[case]
    path = tmp_path / "study.sqlite3"
    search({"x": before}, sampler="random", trials=2, storage=path)
    held = seen(path)
    with pytest.raises(
        ValueError, match=f"study 'search' in this storage holds another space: .*{message}.*nothing was cha"
    ):
        search({"x": after}, sampler="random", trials=4, storage=path)
    assert seen(path) == held


@pytest.mark.parametrize(
    "after, message",
    [
        ({"y": [1, 2]}, "it has 'x', Cat.*, which this space lacks"),
        ({"x": [1, 2], "y": [1, 2]}, r"it has no 'y', only \['x'\]"),
    ],
)
def test_other_names_are_refused(after, message, tmp_path):
    path = tmp_path / "study.sqlite3"
    search({"x": [1, 2]}, storage=path)
    held = seen(path)
    with pytest.raises(ValueError, match=message):
        search(after, storage=path)
    assert seen(path) == held


@pytest.mark.parametrize(
    "queued, message",
    [({"x": 9}, "'x' = 9 in its queue, this space has Int"), ({"z": 1}, "'z' in its queue, which this space lacks")],
)
def test_what_is_queued_is_of_the_space(queued, message, tmp_path):
    path = tmp_path / "study.sqlite3"
    optuna.create_study(storage=_storage.open_storage(path), study_name="search").enqueue_trial(queued)
    held = seen(path)
    with pytest.raises(ValueError, match=message):
        search({"x": IntDistribution(0, 3)}, sampler="random", trials=2, storage=path)
    assert seen(path) == held


@pytest.mark.parametrize("directions", [["maximize"], ["minimize", "minimize"]])
def test_a_study_that_does_not_minimise_is_refused(directions, tmp_path):
    path = tmp_path / "study.sqlite3"
    optuna.create_study(storage=_storage.open_storage(path), study_name="search", directions=directions)
    with pytest.raises(ValueError, match=f"'search' in this storage was made to {directions[0]}.*Give another name"):
        search({"x": [1, 2]}, storage=path)
    assert seen(path) == ([], {})


def test_another_programs_study_goes_on(tmp_path):
    """Its trials count, and what it wrote beside them stays."""
    path = tmp_path / "study.sqlite3"
    theirs = optuna.create_study(storage=_storage.open_storage(path), study_name="search")
    theirs.set_user_attr("who", "theirs")
    theirs.enqueue_trial({"x": 0.0})
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1) + 1, n_trials=2)
    theirs.enqueue_trial({"x": 0.125}, user_attrs={"why": "a guess"})
    study = search({"x": FloatDistribution(0, 1)}, sampler="random", trials=4, storage=path)
    assert len(study.trials) == 4 and study.user_attrs == {"who": "theirs"} and study.trials[0].value == 1.0
    assert study.trials[2].params == {"x": 0.125} and study.trials[2].user_attrs["why"] == "a guess"


def test_a_grid_is_whole_whatever_was_there(tmp_path, monkeypatch):
    """Random trials of an earlier call and a trial that the user queued are none of its points."""
    monkeypatch.setattr(_storage, "LOCK_SECONDS", 0.5)
    path, space = tmp_path / "study.sqlite3", {"x": [1, 2, 3]}
    search(space, sampler="random", trials=3, storage=path).enqueue_trial({"x": 2})
    study = search(space, storage=path)
    ended = study.get_trials(states=(TrialState.COMPLETE,))
    assert sorted(t.value or 0.0 for t in ended if "grid_point" in t.user_attrs) == [1, 2, 3]
    assert len(ended) == len(study.trials) == 7


@pytest.mark.parametrize("batch", [2, 16])
@pytest.mark.parametrize("made", [lambda: GridSampler({"x": [1, 2, 3], "y": [0, 10]}), lambda: BruteForceSampler(seed=1)])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_exhaustive_samplers_of_optuna(made, batch, tmp_path):
    space = {"x": IntDistribution(1, 3), "y": [0, 10]}
    path, sampler = tmp_path / "study.sqlite3" if batch == 2 else None, made()
    for trials in (4, 100) if path else (100,):
        study = search(space, sampler=sampler, trials=trials, batch=batch, storage=path)
        assert len(study.trials) == min(trials, 6)
    assert sorted(values(study)) == [1, 2, 3, 11, 12, 13]
    with pytest.raises(RuntimeError, match="inside an objective"):
        study.stop()  # Optuna's own again


def test_a_sampler_of_another_space_leaves_nothing_running(tmp_path):
    path = tmp_path / "study.sqlite3"
    with pytest.raises(ValueError, match=r"sampler GridSampler has no value for space\['y'\]"):
        search({"x": [1, 2], "y": [1, 3]}, sampler=GridSampler({"x": [1, 2]}), trials=2, storage=path)
    assert TrialState.RUNNING not in {state for state, *_ in seen(path)[0]}


def test_grids_of_logarithmic_ranges_and_of_steps():
    space = {"x": IntDistribution(1, 4, log=True), "y": FloatDistribution(0.1, 0.7, step=0.2)}
    expected = [x + y for x in range(1, 5) for y in (0.1, 0.3, 0.5, 0.7)]
    np.testing.assert_allclose(values(search(space)), expected, rtol=1e-6)


def test_what_tracing_raises_is_the_users_and_writes_nothing(tmp_path):
    path = tmp_path / "study.sqlite3"
    with pytest.raises(TypeError, match="mine"):
        search({"x": [1, 2]}, lambda hyper, key: (_ for _ in ()).throw(TypeError("mine")), storage=path)
    for returned in (jnp.ones(2), jnp.complex64(1), "text"):
        with pytest.raises((TypeError, ValueError), match="score must return|text"):
            search({"x": [1, 2]}, lambda hyper, key, returned=returned: (hyper["x"], returned)[1], storage=path)
    assert not path.exists()


def test_what_tracing_one_static_value_raises_fails_no_trial(tmp_path):
    path, broken = tmp_path / "study.sqlite3", [True]

    def trial(hyper, key):
        if hyper["form"] == "odd" and broken:
            raise OverflowError("too odd")
        return hyper["x"]

    options = {"space": {"form": ["even", "odd"], "x": [3, 4]}, "static": ("form",), "storage": path, "batch": 3}
    with pytest.raises(OverflowError, match="too odd") as raised:
        search(trial=trial, **options)
    assert "trial 2: {'form': 'odd', 'x': 3}" in "".join(raised.value.__notes__)
    assert {state for state, *_ in seen(path)[0]} == {TrialState.WAITING}
    broken.clear()
    study = search(trial=trial, **options)
    assert values(study) == [3, 4, 3, 4] and len(study.trials) == 4


def test_an_interrupted_search_goes_on(tmp_path, monkeypatch):
    path, tell = tmp_path / "study.sqlite3", optuna.Study.tell

    def interrupted(study, trial, *arguments, **options):
        if trial.number == 1 and "state" not in options:
            raise KeyboardInterrupt
        return tell(study, trial, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Study, "tell", interrupted)
        search({"x": [1, 2, 3]}, storage=path)
    study = search({"x": [1, 2, 3]}, storage=path)
    assert sorted(values(study)) == [1, 2, 3]


def test_a_trial_that_another_process_took_for_lost(monkeypatch):
    """As after a computer slept: its score comes too late, and the copy in the queue runs."""
    original, lost = _storage.ask, []

    def ask(kept, study, chosen, asked=()):
        trial = original(kept, study, chosen, asked)
        if not lost:
            lost.append(study.tell(trial, state=TrialState.FAIL))
            _storage.enqueue_again(study, lost[0])
        return trial

    monkeypatch.setattr("crossent_jax.tuning._search.ask", ask)
    study = search({"x": [1, 2]})
    assert sorted(values(study)) == [1, 2]
    assert lost[0].number == 0 and study.trials[0].state == TrialState.FAIL


LARGE = 2**31
WRONG = {
    "nan": ({"space": {"x": [1.0, np.nan]}}, r"space\['x'\] holds nan"),
    "nan in a tuple": ({"space": {"x": [(1.0, np.float32(np.nan))]}, "static": ("x",)}, r"space\['x'\] holds nan"),
    "int64": ({"space": {"x": [1, LARGE]}}, r"space\['x'\] holds 2147483648, which int32 cannot"),
    "negative int64": ({"space": {"x": [np.int64(-LARGE - 1)]}}, "holds -2147483649, which int32 cannot"),
    "range of int64": ({"space": {"x": IntDistribution(0, LARGE)}, "sampler": "random", "trials": 1}, "holds 2147483648"),
    "int among floats": ({"space": {"x": [0.5, 2**24 + 1]}}, "holds 16777217, which float32 cannot"),
    "huge int among floats": ({"space": {"x": [0.5, 10**400]}}, "holds 1000.*, which float32 cannot"),
    "float64": ({"space": {"x": [1e39]}}, r"holds 1e\+39, which float32 cannot"),
    "underflow": ({"space": {"x": FloatDistribution(1e-60, 1, log=True)}, "sampler": "random", "trials": 1}, "holds 1e-60"),
    "equal static values": ({"space": {"x": [1, True]}, "static": ("x",)}, "holds 1 and True, which are equal"),
    "not hashable": ({"space": {"x": [{}]}, "static": ("x",)}, r"space\['x'\] holds {}, which is not hashable"),
    "not of a file": ({"space": {"x": [len]}, "static": ("x",), "storage": "s.sqlite3"}, "which a storage cannot keep"),
    "space": ({"space": [("x", [1])]}, "space must be a dictionary"),
    "a name": ({"space": {1: [1]}}, "space must have strings as names; got 1"),
    "static": ({"static": "x"}, "static must be a tuple of names, .*got str 'x'"),
    "data": ({"data": np.ones(2)}, r"data must be a tuple of arrays, such as data=\(x,\); got ndarray"),
    "data of text": ({"data": ("x",)}, "data must hold arrays of numbers; got str 'x'"),
    "score": ({"score": 3}, "score must be a function; got int 3"),
    "trial": ({"trial": None}, "trial must be a function; got NoneType None"),
    "name": ({"name": ""}, "name must be a string that is not empty; got str ''"),
    "storage": ({"storage": 3}, "storage must be a path, a database's address or None; got int 3"),
    "address": ({"storage": "nosuch://x"}, "storage 'nosuch://x' cannot be opened"),
    "sampler": ({"sampler": optuna.samplers.TPESampler, "trials": 1}, "sampler must be one of"),
    "large seed": ({"random_seed": 2**31}, "random_seed must be at most 2147483647; got 2147483648"),
    "negative seed": ({"random_seed": -1}, "random_seed must be at least 0; got -1"),
}
for argument in ("batch", "seeds", "at_once", "max_grid_points", "random_seed", "trials"):
    for value in (1.5, "2", True, np.ones(2)):
        message = f"{argument} is static and must be an integer of at least [01]; got {type(value).__name__}"
        WRONG[f"{argument} {value}"] = ({"sampler": "random", "trials": 1} | {argument: value}, message)
    for value in (-1,):
        least = "[01]"
        WRONG[f"{argument} {value}"] = (
            {"sampler": "random", "trials": 1} | {argument: value},
            f"{argument} must be at least {least}; got -1",
        )


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    options, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=message):
        search(**{"space": {"x": [1, 2]}} | options)


def test_integers_of_numpy_are_integers():
    assert values(search({"x": [1, -(2**31), 2**31 - 1]}, batch=np.int64(2), seeds=np.int32(1))) == [1, -(2.0**31), 2.0**31]


@pytest.mark.parametrize("size", [1.5, "2", True, jnp.float32(2)])
def test_sizes_of_training_are_integers(size):
    with pytest.raises(TypeError, match="batch_size is static and must be an integer of at least 1; got"):
        tuning.training(total, total, total, total, steps=1, batch_size=size)


def test_a_size_that_is_searched_is_static():
    def trial(hyper, key):
        return tuning.training(total, total, total, total, steps=hyper["steps"], batch_size=1)

    with pytest.raises(TypeError, match="steps is static .* got a traced array, int32.*belongs to static="):
        search({"steps": [1, 2]}, trial)


def test_functions_in_memory():
    def double(x):
        return 2 * x

    study = search({"f": [double, abs]}, lambda hyper, key: hyper["f"](-1.0), static=("f",))
    assert values(study) == [-2.0, 1.0] and study.best_params == {"f": double}
    assert _space.frozen([1, [2]]) == (1, (2,))
