"""Processes that measure or compile, whose end by a signal or a clock is an answer too."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TELLING = r"profiling of|Check failed|RESOURCE_EXHAUSTED|Error\b|bad_alloc"


class Died(Exception):
    """A worker ended without an answer. ``begun``: what it last said it would do."""

    def __init__(self, begun: str, why: str):
        super().__init__(why)
        self.begun, self.why = begun, why


def last_words(process: subprocess.Popen, errors: IO[str], timed_out: bool, timeout: float) -> str:
    if timed_out:
        return f"no answer within {timeout:g} s"
    if process.returncode == -9:
        return "killed by signal 9 (out of memory?)"
    errors.seek(0)
    said = telling([line.strip() for line in errors.read().splitlines() if line.strip()], process.returncode)
    return f"signal {-process.returncode}: {said}" if process.returncode < 0 else said


def telling(lines: list[str], status: int) -> str:
    """The line of a process's errors that says what went wrong."""
    said = [line for line in lines if re.search(TELLING, line)]
    return (said[0] if status < 0 and said else lines[-1] if lines else f"exit status {status}")[:300]


def end(process: subprocess.Popen) -> None:
    """It and what it started: they are a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def answers(
    request: dict, variables: dict[str, str], timeout: float, module: str = "benchmarks.worker"
) -> Iterator[dict[str, Any]]:
    """What a worker says, line by line; raises :class:`Died` if it does not end well."""
    command = [sys.executable, "-m", module, json.dumps(request)]
    folder, begun, expired = Path(__file__).parent.parent, "start", threading.Event()
    pipes = {"stdout": subprocess.PIPE, "text": True, "env": variables, "cwd": folder, "start_new_session": True}
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(command, stderr=errors, **pipes) as process:
        timer = threading.Timer(timeout, lambda: (expired.set(), end(process)))
        timer.daemon = True  # Ctrl-C at the wrong moment must not leave us waiting for it
        try:
            timer.start()
            for line in process.stdout or ():
                message = json.loads(line)
                begun = message.get("begin", begun)
                yield message
            process.wait()
        finally:
            timer.cancel()
            end(process)
        if process.returncode:
            raise Died(begun, last_words(process, errors, expired.is_set(), timeout))
