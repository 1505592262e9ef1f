"""What one program for many trials saves: 64 trials of a perceptron on handwritten digits.

    python -m benchmarks.tuning [--trials 64] [--steps 100]

Each trial has its own learning rate, weight decay, label smoothing and key, and is scored by held-out loss. Prints the wall
time of all trials as one program, over that of the same trials (a) each jitted anew, compilation included on both sides, and
(b) run one after another by one compiled program, compilation excluded on both sides. One program: as ``tuning.search``
makes it here (on a CPU it trains one after another), and with all trials vmapped.

2026-11-26, two cores (AMD EPYC, AVX2), jax 0.10.2: one program 0.04 of (a) and 0.98 of (b); vmapped 0.06 and 1.36 (1.78 and
1.62 in two other runs).
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np
import optax

from crossent_jax import cross_entropy, tuning
from crossent_jax.demo import digits

REPEATS = 3


def init(hyper, key):
    seed = digits.init(0)
    keys = jax.random.split(key, len(seed))
    return [
        {
            "weights": np.sqrt(2 / layer["weights"].shape[0]) * jax.random.normal(key, layer["weights"].shape),
            "bias": layer["bias"],
        }
        for key, layer in zip(keys, seed, strict=True)
    ]


def loss(hyper, parameters, batch):
    return cross_entropy(digits.apply(parameters, batch.inputs), batch.labels, label_smoothing=hyper["label_smoothing"])


def optimizer(hyper):
    return optax.inject_hyperparams(optax.adamw)(learning_rate=hyper["learning_rate"], weight_decay=hyper["weight_decay"])


def drawn(count: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "learning_rate": np.float32(10 ** generator.uniform(-4, -2, count)),
        "weight_decay": np.float32(10 ** generator.uniform(-5, -1, count)),
        "label_smoothing": np.float32(generator.uniform(0, 0.2, count)),
    }


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def measure(count: int, steps: int) -> dict[str, float]:
    train, held_out = digits.read_digits()
    trial = tuning.training(
        init, loss, lambda hyper, parameters, inputs: digits.apply(parameters, inputs), optimizer, steps=steps, batch_size=64
    )
    hypers, keys = drawn(count), jax.random.split(jax.random.key(0), count)
    each = [({name: value[i] for name, value in hypers.items()}, keys[i]) for i in range(count)]

    def score(hyper, key):
        return cross_entropy(trial(hyper, key, train, held_out.inputs), held_out.labels)

    def program(at_once):
        return jax.jit(lambda *runs: jax.lax.map(lambda run: score(*run), runs, batch_size=at_once))

    def compiled_anew(function, *arguments):
        jax.clear_caches()
        return seconds(function, *arguments)

    found = {"each jitted anew": sum(compiled_anew(jax.jit(score), *run) for run in each)}
    one = jax.jit(score)
    alone = np.array([one(*run) for run in each])
    for name, at_once in {"one program": None if jax.default_backend() == "cpu" else count, "vmapped": count}.items():
        found[f"{name}, compilation included"] = compiled_anew(program(at_once), hypers, keys)
        found[f"{name}, compilation included, over each jitted anew"] = (
            found[f"{name}, compilation included"] / found["each jitted anew"]
        )
        together = program(at_once)
        np.testing.assert_allclose(together(hypers, keys), alone, rtol=0.05)  # the same trials
        one(*each[0])
        pairs = [(seconds(together, hypers, keys), seconds(lambda: [one(*run) for run in each])) for _ in range(REPEATS)]
        found[name], found[f"one after another, beside {name}"] = map(statistics.median, zip(*pairs, strict=True))
        found[f"{name} over one after another"] = statistics.median(a / b for a, b in pairs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    found = measure(options.trials, options.steps)
    print(
        json.dumps({"trials": options.trials, "steps": options.steps} | {k: round(v, 3) for k, v in found.items()}, indent=1)
    )


if __name__ == "__main__":
    main()
