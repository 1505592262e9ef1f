#!/usr/bin/env bash
# Versions: jax and jaxlib 0.12.0.1 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0) and 0.7.2, Python 3.13; 2026-11-29; CPU.
# Behaviour: `jnp.searchsorted` in a function that is exported with a symbolic length (`jax.export`). jax 0.7.2 exports
#   method="sort" and "compare_all", which need no number of steps; 0.12 none of the four methods, since the dtype of the
#   result is chosen from the length as a number. A count by `argsort` and `cumsum` is exported by both.
# Output:
#   0.7.2: scan TypeError, scan_unrolled TypeError, sort [4, 3, 2, 1, 0], compare_all [4, 3, 2, 1, 0], argsort [4, 3, 2, 1, 0]
#   0.12.0.1: scan, scan_unrolled, sort, compare_all InconclusiveDimensionOperation, argsort [4, 3, 2, 1, 0]

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
export JAX_PLATFORMS=cpu XLA_FLAGS=

cat >"$folder/program.py" <<'END'
import sys

import jax
import jax.numpy as jnp
from jax import export

METHODS = ("scan", "scan_unrolled", "sort", "compare_all")
RIGHT = [4, 3, 2, 1, 0]


def by_argsort(ordered, values):
    """How many of ``ordered`` are below each value: equal ones stand after it."""
    order = jnp.argsort(jnp.concatenate([values, ordered]), stable=True)
    before = jnp.cumsum(order >= values.shape[0])
    return jnp.zeros_like(before).at[order].set(before)[: values.shape[0]]


def outcome(function):
    (n,) = export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    try:
        program = export.export(jax.jit(function))(shape, shape)
    except Exception as error:
        return type(error).__name__
    return program.call(jnp.arange(5.0), jnp.arange(5.0)[::-1]).tolist()


found = {name: outcome(lambda a, v, name=name: jnp.searchsorted(a, v, method=name)) for name in METHODS}
found["argsort"] = outcome(by_argsort)
print(f"{jax.__version__}: " + ", ".join(f"{name} {what}" for name, what in found.items()))
exported = {name for name, what in found.items() if what == RIGHT}
expected = {"argsort", "sort", "compare_all"} if jax.__version__ == "0.7.2" else {"argsort"}
if exported != expected:
    sys.exit("the behaviour changed")
END

for version in 0.7.2 0.12.0.1; do
    "$python" -m venv --clear "$folder/venv"
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
        "jax==$version" "jaxlib==$version" numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
    "$folder/venv/bin/python" "$folder/program.py"
done
