#!/usr/bin/env bash
# Versions: jax and jaxlib 0.10.2 and 0.12.0.1 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-29; CPU
#   with two cores, EPYC with AVX-512.
# Behaviour: log1p(expm1(-abs d) / 2) of a float32 array of ten columns, d being the difference of two arrays less one number
#   a row each and one for both, is computed by XLA's CPU backend as vectors; with one select in it (0 where d is NaN) the loop
#   takes several times as long in jax 0.10.2. With sixteen columns the select costs nothing. jax 0.12.0.1 has no such step.
#   tanh in the place of expm1 (the same function) avoids it.
# Output:
#   jax 0.10.2, 10 columns: 1.42 ms, with a select 8.56 ms
#   jax 0.10.2, 16 columns: 1.67 ms, with a select 1.49 ms
#   jax 0.12.0.1, 10 columns: 1.36 ms, with a select 1.38 ms
#   jax 0.12.0.1, 16 columns: 2.72 ms, with a select 2.10 ms

set -euo pipefail

if ! grep -qs avx512f /proc/cpuinfo; then
    echo "cannot be shown here: it was seen on CPUs with AVX-512"
    exit 0
fi

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

for version in 0.10.2 0.12.0.1; do
    "$python" -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
        "jax==$version" "jaxlib==$version" numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
done
export JAX_PLATFORMS=cpu XLA_FLAGS=

cat >"$folder/program.py" <<'END'
import time

import jax
import jax.numpy as jnp

CALLS, LEAST = 10, 15


def log_of_mean(d):
    """log((1 + exp(-abs d)) / 2)"""
    return jnp.log1p(0.5 * jnp.expm1(-jnp.abs(d)))


def milliseconds(function, rows, classes):
    keys = jax.random.split(jax.random.key(0), 5)
    arrays = [jax.random.normal(key, (rows, classes)) for key in keys[:2]]
    arrays += [jax.random.normal(key, (rows, 1)) for key in keys[2:]]
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arrays))
    least = float("inf")
    for _ in range(LEAST):
        start = time.perf_counter()
        for _ in range(CALLS):
            jax.block_until_ready(compiled(*arrays))
        least = min(least, time.perf_counter() - start)
    return 1e3 * least / CALLS


def without(x, y, a, b, c):
    return log_of_mean((x - a) - (y - b) - c)


def with_select(x, y, a, b, c):
    d = (x - a) - (y - b) - c
    return log_of_mean(jnp.where(jnp.isnan(d), 0, d))


for rows, classes in ((32768, 10), (32768, 16)):
    times = milliseconds(without, rows, classes), milliseconds(with_select, rows, classes)
    slower = times[1] > 2 * times[0]
    print(f"jax {jax.__version__}, {classes} columns: {times[0]:.2f} ms, with a select {times[1]:.2f} ms")
    if slower != (jax.__version__ == "0.10.2" and classes == 10):
        raise SystemExit("the behaviour changed")
END
for version in 0.10.2 0.12.0.1; do
    "$folder/$version/bin/python" "$folder/program.py"
done
