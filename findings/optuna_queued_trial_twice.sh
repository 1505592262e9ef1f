#!/usr/bin/env bash
# Versions: optuna 5.0.0 (sqlalchemy 2.1.9), Python 3.13 with its sqlite3; 2026-11-28.
# Behaviour: a trial queued with enqueue_trial in a SQLite file is handed to two processes at once. `ask` reads the state of
#   a waiting trial, for update, and then marks it as running; SQLite ignores the "for update", and a transaction of it takes
#   the write lock only when it writes, so that both processes read "waiting". Where transactions begin with BEGIN IMMEDIATE,
#   every trial is handed out once.
# Output (four processes; how many are handed out twice differs from run to run):
#   as it is: 40 trials queued, 40 times asked, 5 trials handed out more than once
#   with BEGIN IMMEDIATE: 40 trials queued, 40 times asked, 0 trials handed out more than once

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=
pyenv=${PYENV_ROOT:-$HOME/.pyenv}/versions
for candidate in python3.13 python3.12 "$pyenv"/3.13.*/bin/python "$pyenv"/3.12.*/bin/python; do
    if "$candidate" -c 'import ensurepip, sys, venv; assert sys.version_info[:2] in ((3, 12), (3, 13))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || { echo "needs Python 3.12 or 3.13, on the path or in pyenv" >&2; exit 2; }

"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    optuna==5.0.0 sqlalchemy==2.1.9

cat >"$folder/program.py" <<'END'
import multiprocessing
import sys
import tempfile
from collections import Counter

import optuna
from sqlalchemy import event

PROCESSES, EACH, ROUNDS = 4, 10, 5


def storage_at(url, immediate):
    storage = optuna.storages.RDBStorage(url, {"connect_args": {"timeout": 60}})
    if immediate:
        storage.engine.dispose()
        event.listen(storage.engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def ask(url, immediate, barrier, asked):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="study", storage=storage_at(url, immediate))
    barrier.wait()
    asked.put([study.ask().number for _ in range(EACH)])


def handed_out(immediate):
    """How often each trial was handed out."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/study.db"
        study = optuna.create_study(study_name="study", storage=url)
        for point in range(PROCESSES * EACH):
            study.enqueue_trial({"x": point})
        barrier, asked = multiprocessing.Barrier(PROCESSES), multiprocessing.Queue()
        arguments = (url, immediate, barrier, asked)
        processes = [multiprocessing.Process(target=ask, args=arguments) for _ in range(PROCESSES)]
        for process in processes:
            process.start()
        numbers = [number for _ in processes for number in asked.get(timeout=300)]
        for process in processes:
            process.join()
        return Counter(numbers)


def report(name, counts):
    twice = sum(count > 1 for count in counts.values())
    queued, asked = PROCESSES * EACH, counts.total()
    print(f"{name}: {queued} trials queued, {asked} times asked, {twice} trials handed out more than once")
    return twice


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seen = any(report("as it is", handed_out(False)) for _ in range(ROUNDS))
    if not seen or report("with BEGIN IMMEDIATE", handed_out(True)):
        sys.exit("the behaviour changed")
END

"$folder/venv/bin/python" "$folder/program.py"
