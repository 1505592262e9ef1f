#!/usr/bin/env bash
# Versions: jax and jaxlib 0.9.0, 0.9.1 and 0.7.2 (numpy 2.3.5, scipy 1.16.3, ml_dtypes 0.5.4), Python 3.13; 2026-11-30; CPU.
# Behaviour: in a Pallas kernel for a TPU, jax.lax.platform_dependent with a branch for another platform and a default stops
#   lowering with "argument of type 'NoneType' is not iterable" until jax 0.9.0; from 0.9.1 on the default is taken. A branch
#   named mosaic, which no page names, is taken by all of them. Seen by jax.export for a TPU, which needs none.
# Output:
#   jax 0.7.2: with a default TypeError, with a branch named mosaic lowered
#   jax 0.9.0: with a default TypeError, with a branch named mosaic lowered
#   jax 0.9.1: with a default lowered, with a branch named mosaic lowered

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

cat >"$folder/program.py" <<'END'
import sys

import jax
import jax.export
import jax.numpy as jnp
from jax.experimental import pallas as pl


def lowered(**branches):
    """What comes of a kernel whose body depends on the platform."""

    def kernel(x, out):
        out[...] = jax.lax.platform_dependent(x[...], cpu=lambda x: x + 1, **branches, default=lambda x: x + 3)

    def add(x):
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    try:
        jax.export.export(jax.jit(add), platforms=["tpu"])(jax.ShapeDtypeStruct((8, 128), jnp.float32))
    except TypeError as error:
        assert "NoneType" in str(error), error
        return "TypeError"
    return "lowered"


found = lowered(), lowered(mosaic=lambda x: x + 2)
print(f"jax {jax.__version__}: with a default {found[0]}, with a branch named mosaic {found[1]}")
if found != (sys.argv[1], "lowered"):
    raise SystemExit("the behaviour changed")
END
export JAX_PLATFORMS=cpu
for pair in 0.7.2:TypeError 0.9.0:TypeError 0.9.1:lowered; do
    version=${pair%%:*}
    "$python" -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
        "jax==$version" "jaxlib==$version" numpy==2.3.5 scipy==1.16.3 ml_dtypes==0.5.4
    "$folder/$version/bin/python" "$folder/program.py" "${pair##*:}"
done
