"""Where a study lives: a SQLite file, which a killed process cannot spoil and several processes may share."""

import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

HEARTBEAT_SECONDS = 2  # a running trial that has been silent for five times as long is taken for lost
LOCK_SECONDS = 10
UNHEARD_SECONDS = 30  # a running trial without any heartbeat for so long is lost too: its process died while it began
QUEUED, POINT, HEARD = "grid_points", "grid_point", "heard"  # user attributes of a study, of a trial, and of a trial


def open_storage(given: str | Path | None) -> BaseStorage:
    """None: memory. With "://": a database's address for Optuna. Otherwise the path of a SQLite file."""
    if given is None:
        return InMemoryStorage()
    url = str(given)
    if "://" not in url:
        check_file(Path(url))
        url = f"sqlite:///{url}"
    for wait in (0.5, 1.0, 2.0):  # two processes that make the same tables at once get in each other's way
        try:
            return _connect(url)
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


def open_study(storage: BaseStorage, name: str, sampler: optuna.samplers.BaseSampler, points: Sequence[dict] | None):
    """The study called ``name``, new or as it was left. ``points``: a grid, queued once by whoever makes the study."""
    try:
        study = optuna.create_study(storage=storage, study_name=name, sampler=sampler, direction="minimize")
        created = True
    except optuna.exceptions.DuplicatedStudyError:
        study, created = optuna.load_study(storage=storage, study_name=name, sampler=sampler), False
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
                f"the study {study.study_name!r} holds another grid, of {len(queued)} points; this one has {len(points)}: "
                "give another name, or the space that it was begun with."
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


def enqueue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """The hyper-parameters of a trial that was lost, if it had any yet, are tried again."""
    if point := trial.user_attrs.get(POINT):
        study.enqueue_trial(point, {POINT: point})
    elif trial.params:
        study.enqueue_trial(dict(trial.params))


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


def ask(storage: BaseStorage, study: optuna.Study, chosen: dict) -> optuna.Trial:
    """A new trial, and the first sign of its life: what was never heard cannot be missed."""
    with quiet():
        trial = study.ask(chosen)
    if isinstance(storage, RDBStorage):
        storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr(HEARD, True)
    return trial


def count(study: optuna.Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


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


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna calls heartbeats experimental, and expects them of its own loop alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        yield
