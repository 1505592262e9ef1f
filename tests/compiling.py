"""How much XLA optimises for the tests.

``quick`` compiles a program of the suite in a quarter of the time: the same HLO passes, then LLVM without its own and the
older emitter of fusions. What a test says of meaning does not depend on it; tests marked ``optimized`` (the last bits,
memory) run without it alone. Milliseconds of CPU time to compile value and gradient (jax 0.10.2, a Xeon): cross_entropy with
five options 477 and 97, linear_cross_entropy 606 and 125, js_divergence 384 and 103, ``x + 1`` 41 and 12.
"""

import os
from importlib import metadata

VARIABLE = "CROSSENT_JAX_COMPILE"  # "quick" or "optimized" (default); workers and their processes inherit it
QUICK: dict[str, int | bool] = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
if tuple(map(int, metadata.version("jax").split(".")[:2])) < (0, 11):  # the switch is gone since
    QUICK["xla_cpu_use_fusion_emitters"] = False


def is_quick() -> bool:
    """Whether this run compiles quickly."""
    how = os.environ.get(VARIABLE, "optimized")
    if how not in ("quick", "optimized"):
        raise ValueError(f"{VARIABLE} must be quick or optimized; got {how!r}.")
    return how == "quick"


def as_flags() -> str:
    """QUICK for the variable XLA_FLAGS."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())
