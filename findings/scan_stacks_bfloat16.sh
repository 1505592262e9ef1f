#!/usr/bin/env bash
# Versions: jax and jaxlib 0.10.2 and 0.12.0.1 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-28; CPU
#   with two cores, Xeon of 2.5 GHz with AVX-512 (no AMX).
# Behaviour: a jitted jax.lax.scan that stacks bfloat16 rows converts the whole stack to float32 and back at every step, so
#   its time grows faster than the number of steps. float16 rows are not converted, nor are bfloat16 rows that the body
#   returns as uint16 bits. jax 0.12 no longer does it.
# Output, milliseconds for rows of 4096:
#   0.10.2: 256 steps: bfloat16 64.28, float16 0.48, bits of bfloat16 0.57; 1024 steps: bfloat16 559.71
#   0.12.0.1: 256 steps: bfloat16 2.42, float16 0.55, bits of bfloat16 1.92; 1024 steps: bfloat16 11.20

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
for version in 0.10.2 0.12.0.1; do
    environment "$version" "jax==$version" "jaxlib==$version" numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
done

cat >"$folder/program.py" <<'END'
import sys
import time

import jax
import jax.numpy as jnp


def bits(x):
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def stack(cast):
    return jax.jit(lambda rows: jax.lax.scan(lambda carry, row: (carry, cast(2 * row)), 0, rows)[1])


def milliseconds(function, steps):
    rows, times = jnp.ones((steps, 4096), jnp.float32), []
    for _ in range(12):
        start = time.perf_counter()
        jax.block_until_ready(function(rows))
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


bfloat16 = stack(lambda row: row.astype(jnp.bfloat16))
of_bfloat16 = milliseconds(bfloat16, 256)
of_float16 = milliseconds(stack(lambda row: row.astype(jnp.float16)), 256)
of_bits = milliseconds(stack(lambda row: bits(row.astype(jnp.bfloat16))), 256)
of_more = milliseconds(bfloat16, 1024)
print(
    f"{jax.__version__}: 256 steps: bfloat16 {of_bfloat16:.2f}, float16 {of_float16:.2f}, "
    f"bits of bfloat16 {of_bits:.2f}; 1024 steps: bfloat16 {of_more:.2f}"
)
slow = of_bfloat16 > 8 * of_bits
if slow != (sys.argv[1] == "slow"):
    sys.exit(f"the behaviour changed: it was {sys.argv[1]}")
END

"$folder/0.10.2/bin/python" "$folder/program.py" slow
"$folder/0.12.0.1/bin/python" "$folder/program.py" fast
