#!/usr/bin/env bash
# Versions: jax and jaxlib 0.12.0.1 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-28; CPU.
# Behaviour: `cost_analysis()` of a compiled jax.lax.scan counts the body once, whatever its length: the flops of 1000
#   products are those of one. The compiled program says the number of trips ("known_trip_count"), but the analysis does not
#   read it. The same products unrolled are all counted.
# Output:
#   10 products of (64, 64): flops 524290 by scan (trip count in the program: 10), 5242880 unrolled
#   1000 products of (64, 64): flops 524290 by scan (trip count in the program: 1000)

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

"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    jax==0.12.0.1 jaxlib==0.12.0.1 numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
export JAX_PLATFORMS=cpu XLA_FLAGS=

cat >"$folder/program.py" <<'END'
import re
import sys

import jax
import jax.numpy as jnp

ONE = 2 * 64**3


def compiled(length, unroll):
    """x times itself, ``length`` times."""
    function = jax.jit(lambda x: jax.lax.scan(lambda y, _: (y @ x, None), x, None, length=length, unroll=unroll)[0])
    return function.lower(jnp.eye(64)).compile()


def flops(program):
    return round(program.cost_analysis()["flops"])


def trips(program):
    return int(re.search(r'known_trip_count":\{"n":"(\d+)"', program.as_text())[1])


short, long, unrolled = compiled(10, 1), compiled(1000, 1), compiled(10, 10)
print(
    f"10 products of (64, 64): flops {flops(short)} by scan (trip count in the program: {trips(short)}), "
    f"{flops(unrolled)} unrolled"
)
print(f"1000 products of (64, 64): flops {flops(long)} by scan (trip count in the program: {trips(long)})")
if not (ONE <= flops(short) == flops(long) < 2 * ONE and trips(long) == 1000 and flops(unrolled) >= 10 * ONE):
    sys.exit("the behaviour changed")
END

"$folder/venv/bin/python" "$folder/program.py"
