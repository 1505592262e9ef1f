"""docs/several_hosts.py run by several processes: in each of them the losses of one device and whole logits."""

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from . import compiling

pytestmark = pytest.mark.subprocess
FILE = Path(__file__).resolve().parent.parent / "docs" / "several_hosts.py"
_spec = importlib.util.spec_from_file_location("several_hosts", FILE)
several_hosts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(several_hosts)
CODE = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[1])
import several_hosts
several_hosts.meet()
pathlib.Path(sys.argv[2]).write_text(json.dumps(several_hosts.train()))
"""
SECONDS = 120


def all_rows(step):
    first = step * several_hosts.BATCH
    return np.stack([several_hosts.sequence(row) for row in range(first, first + several_hosts.BATCH)])


@functools.cache
@jax.numpy_dtype_promotion("standard")  # optax's
def alone():
    """The losses of the same training on one device: the mean over the tokens that count, of whole logits."""

    def loss(params, tokens):
        hidden = jnp.tanh(params["embedding"][tokens] @ params["mix"])
        logs = jax.nn.log_softmax(hidden @ params["embedding"].T)[:, :-1]
        counts = tokens[:, 1:] != several_hosts.PADDING
        return -jnp.mean(jnp.take_along_axis(logs, tokens[:, 1:, None], -1)[..., 0], where=counts)

    params, losses = several_hosts.initial(jax.random.key(0)), []
    state, step_of = several_hosts.optimizer.init(params), jax.jit(jax.value_and_grad(loss))
    for step in range(several_hosts.STEPS):
        value, gradients = step_of(params, all_rows(step))
        updates, state = several_hosts.optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    return losses


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def together(count, devices, folder):
    """What each of the processes wrote; what they printed if one fails or they take too long. None is left."""
    flags = f"--xla_force_host_platform_device_count={devices} {compiling.as_flags()}"
    shared = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    shared |= {"COORDINATOR": f"localhost:{free_port()}", "PROCESSES": str(count)}
    results, logs = ([folder / f"{i}.{kind}" for i in range(count)] for kind in ("json", "log"))
    children, deadline = [], time.monotonic() + SECONDS
    try:
        for i in range(count):
            command = [sys.executable, "-c", CODE, str(FILE.parent), str(results[i])]
            with logs[i].open("w") as log:
                child = subprocess.Popen(command, env=shared | {"PROCESS": str(i)}, stdout=log, stderr=subprocess.STDOUT)
            children.append(child)
        while {None} <= {child.poll() for child in children} <= {None, 0} and time.monotonic() < deadline:
            time.sleep(0.05)
        status = [child.poll() for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    printed = [log.read_text() for log in logs]
    assert status == [0] * count, "\n".join([f"exit status {status}; they printed:", *printed])
    return [json.loads(result.read_text()) for result in results], printed


def test_the_parts_of_a_batch_count_different_numbers_of_tokens():
    """Otherwise the mean of means would be right."""
    counts = [(all_rows(step)[:, 1:] != several_hosts.PADDING).sum(1) for step in range(several_hosts.STEPS)]
    assert all(count[: len(count) // 2].sum() != count[len(count) // 2 :].sum() for count in counts)


@pytest.mark.parametrize("count, devices", [(2, 2), (4, 1)])
def test_the_losses_are_those_of_one_device(count, devices, tmp_path):
    losses, printed = together(count, devices, tmp_path)
    assert losses == [losses[0]] * count
    np.testing.assert_allclose(losses[0], alone(), rtol=2e-6)
    assert ["step 0: loss" in text for text in printed] == [True] + [False] * (count - 1)


def test_a_process_that_fails_is_quoted_and_ends_the_others(tmp_path, monkeypatch):
    code = "import os, sys, time; os.environ['PROCESS'] == '0' or sys.exit('why it failed'); time.sleep(1000)"
    monkeypatch.setitem(globals(), "CODE", code)
    with pytest.raises(AssertionError, match="(?s)None, 1.*why it failed"):
        together(2, 1, tmp_path)
