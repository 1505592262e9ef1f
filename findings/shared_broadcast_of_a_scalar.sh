#!/usr/bin/env bash
# Versions: jax and jaxlib 0.12.0.1 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-29; CPU (0.10.2 too).
# Behaviour: bfloat16 logits (1024, 4096), float32 exponentials of (z - max) / t with one scalar t, summed, and made once more
#   for the gradient behind an optimization_barrier of z and max. XLA's CPU backend gives the sum to a library's fusion; as the
#   broadcast of t has two users, it is written to memory as a float32 array of the logits' size, 16 MiB that hold one number.
#   With t in the barrier as well there are two broadcasts, each inside its fusion, and nothing is written.
# Output:
#   temporary memory 16.0 MiB, %wrapped_broadcast = f32[1024,4096]; with the scalar in the barrier 0.0 MiB, none

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

SIZE = 4 * 1024 * 4096
LOGITS, SCALAR = jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16), jax.ShapeDtypeStruct((), jnp.float32)


def exponentials(z, top, t):
    return jnp.exp((z.astype(jnp.float32) - top) / t)


def compiled(scalar_in_barrier):
    def sum_and_shares(z, t):
        top = jnp.max(z, 1, keepdims=True).astype(jnp.float32)
        total = jnp.sum(exponentials(z, top, t), 1, keepdims=True)
        if scalar_in_barrier:
            z, top, t = jax.lax.optimization_barrier((z, top, t))
        else:
            z, top = jax.lax.optimization_barrier((z, top))
        return total, (exponentials(z, top, t) / total).astype(z.dtype)

    return jax.jit(sum_and_shares).lower(LOGITS, SCALAR).compile()


def held(program):
    """Temporary bytes, and the operations of the entry computation that give a float32 array of the logits' size."""
    text = program.as_text()
    arrays = re.findall(r"%(\w+)[\w.]* = f32\[1024,4096\]", text[text.index("ENTRY") :])
    return program.memory_analysis().temp_size_in_bytes, arrays


(shared, arrays), (apart, others) = held(compiled(False)), held(compiled(True))
print(
    f"temporary memory {shared / 2**20:.1f} MiB, {', '.join(f'%{name} = f32[1024,4096]' for name in arrays) or 'none'}; "
    f"with the scalar in the barrier {apart / 2**20:.1f} MiB, {', '.join(others) or 'none'}"
)
if not (shared >= SIZE and arrays == ["wrapped_broadcast"] and apart < SIZE / 100 and not others):
    sys.exit("the behaviour changed")
END

"$folder/venv/bin/python" "$folder/program.py"
