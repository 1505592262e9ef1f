"""What a call costs besides the arithmetic: ``python -m benchmarks.overhead``.

Eager call at (32, 10), trace + compile of value_and_grad, and the number of compilations over 100 steps in which every
scalar option changes; each beside optax's integer-label loss.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

import crossent_jax

from .contenders import optax_integer, ours
from .dense import inputs
from .timing import medians


def eager_ratio() -> tuple[float, float]:
    """Median microseconds of an eager call, ours and optax's."""
    arguments = inputs(32, 10, "float32")
    times = medians({"ours": lambda: ours(*arguments), "optax": lambda: optax_integer(*arguments)}, seconds=1.0)
    return 1e3 * times["ours"], 1e3 * times["optax"]


def compile_ratio(repeats: int = 15) -> tuple[float, float]:
    """Median milliseconds of trace + compile of value_and_grad at (32, 10), nothing cached."""
    arguments = inputs(32, 10, "float32")
    times = {ours: [], optax_integer: []}
    for _ in range(repeats):
        for function, samples in times.items():
            jax.clear_caches()
            start = time.perf_counter()
            jax.jit(jax.value_and_grad(function)).lower(*arguments).compile()
            samples.append(1e3 * (time.perf_counter() - start))
    return tuple(float(np.median(samples)) for samples in times.values())


def compilations(steps: int = 100) -> int:
    """Programs compiled by a jitted step whose options change at every step."""
    logits, labels = inputs(32, 10, "float32")

    @jax.jit
    def step(logits, smoothing, z_loss, temperature):
        def loss(z):
            options = {"label_smoothing": smoothing, "z_loss": z_loss, "temperature": temperature}
            return crossent_jax.cross_entropy(z, labels, **options)

        return jax.grad(loss)(logits)

    for i in range(steps):
        jax.block_until_ready(step(logits, jnp.float32(i / steps), jnp.float32(i * 1e-5), jnp.float32(1 + i / 10)))
    return step._cache_size()


def main() -> None:
    for title, unit, (mine, theirs) in (
        ("eager call (32, 10)", "us", eager_ratio()),
        ("trace + compile of value_and_grad", "ms", compile_ratio()),
    ):
        print(f"{title}: ours {mine:.1f} {unit}, optax {theirs:.1f} {unit}, ratio {mine / theirs:.2f}")
    print(f"compilations over 100 steps with changing options: {compilations()}")


if __name__ == "__main__":
    main()
