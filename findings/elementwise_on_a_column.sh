#!/usr/bin/env bash
# Versions: jax and jaxlib 0.7.2 and 0.12.0.1 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-28;
#   CPU with two cores, Xeon of 2.5 GHz with AVX-512.
# Behaviour: XLA's CPU backend computes the logarithm of an (n, 1) array, what a sum with keepdims=True leaves, several times
#   slower than that of the same numbers as (n,) or (n / 1024, 1024). A reshape to (n,) inside the jitted function does not
#   help. jax 0.7.2 takes the same time for both.
# Output, milliseconds for 2**20 float32:
#   0.7.2: (n,) 1.14, (n, 1) 1.12, (n, 1) reshaped to (n,) inside 1.11, (n / 1024, 1024) 1.12
#   0.12.0.1: (n,) 1.16, (n, 1) 7.94, (n, 1) reshaped to (n,) inside 7.89, (n / 1024, 1024) 1.16

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

# environment NAME PACKAGE...
environment() {
    local name=$1
    shift
    "$python" -m venv "$folder/$name"
    "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"
}

export JAX_PLATFORMS=cpu XLA_FLAGS=
for version in 0.7.2 0.12.0.1; do
    environment "$version" "jax==$version" "jaxlib==$version" numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
done

cat >"$folder/program.py" <<'END'
import sys
import time

import jax
import jax.numpy as jnp

flat = jnp.linspace(1, 2, 2**20)
cases = {
    "(n,)": (jax.jit(jnp.log), flat),
    "(n, 1)": (jax.jit(jnp.log), flat.reshape(-1, 1)),
    "(n, 1) reshaped to (n,) inside": (jax.jit(lambda x: jnp.log(x.reshape(-1)).reshape(-1, 1)), flat.reshape(-1, 1)),
    "(n / 1024, 1024)": (jax.jit(jnp.log), flat.reshape(-1, 1024)),
}
least = dict.fromkeys(cases, float("inf"))
for _ in range(40):
    for name, (function, x) in cases.items():
        start = time.perf_counter()
        jax.block_until_ready(function(x))
        least[name] = min(least[name], 1e3 * (time.perf_counter() - start))
print(f"{jax.__version__}:", ", ".join(f"{name} {time:.2f}" for name, time in least.items()))
of_flat, of_column, inside, of_rows = least.values()
slow = min(of_column, inside) > 2 * max(of_flat, of_rows)
if slow != (sys.argv[1] == "slow"):
    sys.exit(f"the behaviour changed: a column was {sys.argv[1]}")
END

"$folder/0.7.2/bin/python" "$folder/program.py" fast
"$folder/0.12.0.1/bin/python" "$folder/program.py" slow
