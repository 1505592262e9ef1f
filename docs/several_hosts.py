"""A small language model trained by several processes: its batch and its vocabulary over the devices of all of them.

On a pod every host runs the same line, and JAX finds the others:

    python several_hosts.py

Elsewhere three variables say it, here for one process with four devices, and for two with two devices each:

    export XLA_FLAGS=--xla_force_host_platform_device_count=4
    COORDINATOR=localhost:9876 PROCESSES=1 PROCESS=0 python several_hosts.py

    export XLA_FLAGS=--xla_force_host_platform_device_count=2 COORDINATOR=localhost:9876 PROCESSES=2
    PROCESS=0 python several_hosts.py & PROCESS=1 python several_hosts.py
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import crossent_jax

STEPS, BATCH, LENGTH, FEATURES, CLASSES = 6, 8, 13, 16, 96
MODEL = 2  # devices that share a vocabulary; all devices / MODEL divide BATCH
PADDING = 0
SPECS = {"embedding": P("model", None), "mix": P()}
loss_on_mesh = crossent_jax.sharded(crossent_jax.linear_cross_entropy, hidden=P("data"), head=SPECS["embedding"])
optimizer = optax.adamw(3e-2)


def meet() -> None:
    """Before anything else of JAX."""
    if "COORDINATOR" in os.environ:
        number, own = int(os.environ["PROCESSES"]), int(os.environ["PROCESS"])
        jax.distributed.initialize(os.environ["COORDINATOR"], num_processes=number, process_id=own)
    else:
        jax.distributed.initialize()


def sequence(number: int) -> np.ndarray:
    """The tokens of one row of the data, of a length of its own, then padding. Yours are read from a file."""
    random = np.random.default_rng(number)
    tokens = (random.integers(1, CLASSES) + 7 * np.arange(LENGTH)) % (CLASSES - 1) + 1
    return np.where(np.arange(LENGTH) < random.integers(2, LENGTH + 1), tokens, PADDING).astype(np.int32)


def batch(step: int, mesh) -> jax.Array:
    """The whole batch, of which each process makes the rows of its own devices. It is asked for them by number: processes
    whose devices share rows, and split the vocabulary, make the same ones."""

    def rows(index):
        return np.stack([sequence(step * BATCH + row) for row in range(*index[0].indices(BATCH))])

    return jax.make_array_from_callback((BATCH, LENGTH), NamedSharding(mesh, P("data")), rows)


def initial(key: jax.Array) -> dict[str, jax.Array]:
    keys, shapes = jax.random.split(key), {"embedding": (CLASSES, FEATURES), "mix": (FEATURES, FEATURES)}
    return {name: jax.random.normal(k, shapes[name]) / FEATURES**0.5 for name, k in zip(shapes, keys, strict=True)}


def loss_of(params, tokens):
    """The mean over the tokens of all processes, however many each of them has."""
    hidden = jnp.tanh(params["embedding"][tokens] @ params["mix"])
    return loss_on_mesh(hidden, params["embedding"], tokens, head_vocab_axis=0, shift=1, ignore_index=PADDING)


@jax.jit
def train_step(params, state, tokens):
    loss, gradients = jax.value_and_grad(loss_of)(params, tokens)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def train() -> list[float]:
    """The loss of each step, the same in every process."""
    shape = (jax.device_count() // MODEL, MODEL)
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    losses = []
    with jax.set_mesh(mesh):
        placed = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
        params = jax.jit(initial, out_shardings=placed)(jax.random.key(0))
        state = optimizer.init(params)  # split as the parameters are
        for step in range(STEPS):
            params, state, loss = train_step(params, state, batch(step, mesh))
            losses.append(float(loss))
            if jax.process_index() == 0:
                print(f"step {step}: loss {losses[-1]:.4f}", flush=True)
    return losses


if __name__ == "__main__":
    meet()
    train()
