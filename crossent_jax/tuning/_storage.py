"""Where a study lives: a SQLite file, which a killed process cannot spoil and several processes may share."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ._arguments import address
from ._quiet import quiet
from ._resume import FIXED, check_study
from ._space import contains

HEARTBEAT_SECONDS = 2  # a running trial that has been silent for five times as long is taken for lost
LOCK_SECONDS = 10
UNHEARD_SECONDS = 30  # a running trial without any heartbeat for so long is lost too: its process died while it began
QUEUED, POINT, HEARD = "grid_points", "grid_point", "heard"  # user attributes of a study, of a trial, and of a trial


def open_storage(given: str | Path | None) -> BaseStorage:
    """None: memory. With "://": a database's address for Optuna. Otherwise the path of a SQLite file."""
    url = address(given)
    if url is None:
        return InMemoryStorage()
    if "://" not in url:
        check_file(Path(url))
        url = f"sqlite:///{url}"
    for wait in (0.5, 1.0, 2.0):  # two processes that make the same tables at once get in each other's way
        try:
            return _connect(url)
        except (ArgumentError, ImportError, ValueError) as error:
            raise ValueError(f"storage {url!r} cannot be opened: {error}") from error
        except SQLAlchemyError:
            time.sleep(wait)
    return _connect(url)


def _connect(url: str) -> RDBStorage:
    in_a_file = url.startswith("sqlite:")
    with quiet():
        storage = RDBStorage(
            url,
            {"connect_args": {"timeout": 60}, "poolclass": NullPool} if in_a_file else None,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=5 * HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=enqueue_again,
        )
    if in_a_file:
        _lock_at_the_start(storage.engine)
    return storage


def _lock_at_the_start(engine) -> None:
    """Transactions of SQLite take the file's write lock when they begin. By default a transaction takes it when it writes,
    and two processes that read the same queued trial would both mark it as theirs."""

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection, record):
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def check_file(path: Path) -> None:
    """Raises unless ``path`` is free for a new file or is a SQLite file of Optuna that can be written. Changes nothing."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"storage must be the path of a file in an existing folder; got {str(path)!r}.")
    if not path.exists():
        return
    other = f"storage {str(path)!r} is {{}}: give another path; nothing was written."
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            connection.rollback()
    except sqlite3.OperationalError as error:
        raise ValueError(other.format(f"locked by another program or not writable ({error})")) from error
    except sqlite3.DatabaseError as error:
        raise ValueError(other.format("not a SQLite file")) from error
    if tables and "studies" not in tables:
        raise ValueError(other.format(f"another program's, with the tables {sorted(tables)[:5]}"))


def open_study(
    storage: BaseStorage,
    name: str,
    sampler: optuna.samplers.BaseSampler,
    points: Sequence[dict] | None,
    chosen: Mapping[str, BaseDistribution],
) -> optuna.Study:
    """The study called ``name``, new or as it was left. ``points``: a grid, queued once by whoever makes the study."""
    try:
        study = optuna.create_study(storage=storage, study_name=name, sampler=sampler, direction="minimize")
        created = True
    except optuna.exceptions.DuplicatedStudyError:
        study, created = optuna.load_study(storage=storage, study_name=name, sampler=sampler), False
        check_study(study, chosen)
    if points is not None:
        if not created:
            _wait_for_queue(study)
        _queue(study, points)
    return study


def _queue(study: optuna.Study, points: Sequence[dict[str, Any]]) -> None:
    """Queues what is missing: all of it, or what a process that was killed here had not queued."""
    queued = study.user_attrs.get(QUEUED)
    if queued is not None:
        if queued != list(points):
            raise ValueError(
                f"the study {study.study_name!r} holds another grid, of {_length(queued)} points; this one has "
                f"{len(points)}: give another name, or the space that it was begun with."
            )
        return
    present = [trial.user_attrs.get(POINT) for trial in study.get_trials(deepcopy=False)]
    for point in points:
        if point not in present:
            study.enqueue_trial(point, {POINT: point})
    study.set_user_attr(QUEUED, list(points))


def _wait_for_queue(study: optuna.Study) -> None:
    """Another process may be queueing the points: until it is done, or has queued nothing for a while."""
    count, since = -1, time.monotonic()
    while study.user_attrs.get(QUEUED) is None and time.monotonic() - since < LOCK_SECONDS:
        now = len(study.get_trials(deepcopy=False))
        if now != count:
            count, since = now, time.monotonic()
        time.sleep(0.1)


def _length(queued: Any) -> int:
    return len(queued) if isinstance(queued, list) else 0


def enqueue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """The hyper-parameters of a trial that was lost, if it had any yet, are tried again.

    With its attributes, by which Optuna's ``GridSampler`` knows which point it is."""
    user = {name: value for name, value in trial.user_attrs.items() if name != HEARD}
    values = user.get(POINT) or trial.params
    if values:
        system = trial.system_attrs | {FIXED: dict(values)}
        study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=user, system_attrs=system))


def put_back(study: optuna.Study, trial: optuna.Trial) -> None:
    """A trial that was asked for and not begun waits in the queue, with the hyper-parameters that it has."""
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def fail_lost_trials(study: optuna.Study) -> None:
    """Trials whose process is gone are marked failed, and their hyper-parameters queued again."""
    with quiet():
        optuna.storages.fail_stale_trials(study)
    started = datetime.now() - timedelta(seconds=UNHEARD_SECONDS)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if HEARD in trial.user_attrs or not trial.datetime_start or trial.datetime_start > started:
            continue
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process was faster
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            enqueue_again(study, trial)


def ask(
    storage: BaseStorage, study: optuna.Study, chosen: Mapping[str, BaseDistribution], asked: Sequence[optuna.Trial] = ()
) -> optuna.Trial:
    """A new trial, and the first sign of its life: what was never heard cannot be missed.

    Raises ValueError where the sampler gives it no value of the space: it and the others that were ``asked`` for in vain
    are not left running."""
    with quiet():
        trial = study.ask()
    if isinstance(storage, RDBStorage):
        storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr(HEARD, True)
    for name, distribution in chosen.items():
        try:
            value = _suggest(trial, name, distribution)
            if not contains(distribution, value):
                raise ValueError(f"it gave {value!r}, which is not of {distribution}")
        except Exception as error:
            study.tell(trial, state=TrialState.FAIL)
            for other in asked:
                put_back(study, other)
            raise ValueError(
                f"sampler {type(study.sampler).__name__} has no value for space[{name!r}]: {type(error).__name__}: {error}"
            ) from error
    return trial


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def is_queued(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Whether it came from the queue, not from the sampler."""
    return FIXED in study._storage.get_trial_system_attrs(trial._trial_id)


def count(study: optuna.Study, *states: TrialState, of_grid: bool = False) -> int:
    """Trials in these states; of a grid alone those that are its points."""
    found = study.get_trials(deepcopy=False, states=states)
    return sum(POINT in trial.user_attrs for trial in found) if of_grid else len(found)


@contextmanager
def stops(study: optuna.Study) -> Iterator[threading.Event]:
    """Set once the sampler has called ``study.stop()``, as Optuna's exhaustive ones do after their last point: allowed by
    Optuna inside of ``study.optimize`` alone."""
    stopped = threading.Event()
    study.stop = stopped.set
    try:
        yield stopped
    finally:
        del study.stop


@contextmanager
def alive(storage: BaseStorage, trials: Sequence[optuna.Trial]) -> Iterator[None]:
    """Says every few seconds that these trials still run."""
    if not isinstance(storage, RDBStorage):
        yield
        return
    ended = threading.Event()

    def keep_beating():
        while not ended.wait(HEARTBEAT_SECONDS):
            for trial in trials:
                storage.record_heartbeat(trial._trial_id)

    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
