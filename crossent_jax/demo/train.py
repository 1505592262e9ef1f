"""Training of one or several models side by side, on the same batches, so that they can be compared step by step."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from .batches import Examples

WARMUP_STEPS = 30
DECAY_START = 0.3
FINAL_SHARE = 0.02


@dataclass
class Trainee:
    """A model in training, and what was measured: each step's loss (nats) and wall time (seconds)."""

    name: str
    step: Callable
    state: Any
    temp_bytes: int
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    @property
    def parameters(self):
        """As they are after the latest step."""
        return self.state[0]

    def advance(self, batch: Examples, learning_rate: np.float32) -> None:
        """Trains for one step and notes its loss and wall time."""
        start = time.perf_counter()
        self.state, loss = self.step(self.state, batch, learning_rate)
        self.losses.append(float(loss))
        self.step_seconds.append(time.perf_counter() - start)


def make_trainee(name: str, objective: Callable, parameters, batch: Examples) -> Trainee:
    """Trains on `objective(parameters, batch)`, compiled ahead of time as `state, batch, learning_rate -> state, loss`;
    `parameters` are copied."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.98), optax.scale(-1.0))

    def step(state, batch, learning_rate):
        parameters, memory = state
        value, gradient = jax.value_and_grad(objective)(parameters, batch)
        direction, memory = optimizer.update(gradient, memory)
        updates = jax.tree.map(lambda leaf: learning_rate * leaf, direction)
        return (optax.apply_updates(parameters, updates), memory), value

    state = jax.jit(lambda p: (jax.tree.map(jnp.copy, p), optimizer.init(p)))(parameters)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, np.float32(0)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend does not report the memory of a compiled program"
    return Trainee(name, compiled, state, memory.temp_size_in_bytes)


def learning_rate_share(step: int, progress: float) -> float:
    """Rises over the first steps, stays at 1, and falls in a line from `progress` 0.3 on."""
    rise = min(1.0, (step + 1) / WARMUP_STEPS)
    fall = min(1.0, (1 - progress) / (1 - DECAY_START))
    return rise * max(FINAL_SHARE, fall)


def train(
    trainees: Sequence[Trainee], batches: Iterator[Examples], peak_learning_rate: float, steps: int, deadline: float
) -> bool:
    """Advances all trainees together until `steps` are done, the deadline, or Ctrl-C. True if it was Ctrl-C.

    The learning rate follows whichever budget is used up faster, steps or time, so it has decayed at either end.
    """
    start, progress = time.perf_counter(), 0.0
    seconds = max(deadline - start, 1e-3)
    with ctrl_c_noted() as was_pressed, tqdm(total=steps, unit="step", mininterval=0.5) as bar:
        for step, batch in zip(range(steps), batches, strict=False):
            rate = np.float32(peak_learning_rate * learning_rate_share(step, progress))
            for trainee in trainees:
                trainee.advance(batch, rate)
            bar.set_postfix({trainee.name: f"{trainee.losses[-1]:.3f}" for trainee in trainees}, refresh=False)
            bar.update()
            progress = max((step + 1) / steps, (time.perf_counter() - start) / seconds)
            if was_pressed.is_set() or progress >= 1:
                break
    return was_pressed.is_set()


@contextmanager
def ctrl_c_noted() -> Iterator[threading.Event]:
    """Notes the first Ctrl-C instead of raising it in the middle of a step; a second one raises as usual."""
    pressed = threading.Event()

    def note(number, frame):
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
