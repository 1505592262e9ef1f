#!/usr/bin/env bash
# Versions: jax and jaxlib 0.12.0.1 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-28; glibc 2.36,
#   pages of 4 KiB; CPU with two cores, Xeon of 2.5 GHz.
# Behaviour: every call of a jitted x + 1 whose result has 64 MiB touches as many fresh pages as the result has, though the
#   one before was dropped: XLA's CPU backend takes them from glibc's allocator, which gives blocks above 32 MiB back to the
#   kernel at once. The page faults take most of the time. They vanish with donate_argnums, or where GLIBC_TUNABLES tells
#   glibc to keep freed memory.
# Output:
#   pages of the result: 16384; page faults per call: 16385, donated 0, with GLIBC_TUNABLES 0
#   milliseconds per call: 45.63, donated 7.67, with GLIBC_TUNABLES 13.06

set -euo pipefail

if grep -qs '\[always\]' /sys/kernel/mm/transparent_hugepage/enabled || ! getconf GNU_LIBC_VERSION >/dev/null 2>&1; then
    echo "cannot be shown here: it needs glibc, and transparent huge pages that are not \"always\""
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

"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    jax==0.12.0.1 jaxlib==0.12.0.1 numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
export JAX_PLATFORMS=cpu XLA_FLAGS=

cat >"$folder/program.py" <<'END'
import resource
import sys
import time

import jax
import jax.numpy as jnp

FLOATS, WARM_UP, CALLS = 2**24, 40, 20
add_one = jax.jit(lambda x: x + 1, donate_argnums=(0,) if sys.argv[1] == "donated" else ())


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


x = jnp.zeros(FLOATS)
for call in range(WARM_UP + CALLS):
    if call == WARM_UP:
        before, start = faults(), time.perf_counter()
    x = jax.block_until_ready(add_one(x))
milliseconds = 1e3 * (time.perf_counter() - start) / CALLS
print(4 * FLOATS // resource.getpagesize(), round((faults() - before) / CALLS), f"{milliseconds:.2f}")
END

run() {
    "$folder/venv/bin/python" "$folder/program.py" "$1"
}
read -r pages fresh fresh_time <<<"$(run fresh)"
read -r pages donated donated_time <<<"$(run donated)"
keep=glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000
read -r pages kept kept_time <<<"$(GLIBC_TUNABLES=$keep run fresh)"
echo "pages of the result: $pages; page faults per call: $fresh, donated $donated, with GLIBC_TUNABLES $kept"
echo "milliseconds per call: $fresh_time, donated $donated_time, with GLIBC_TUNABLES $kept_time"
if ((fresh < pages * 9 / 10 || donated > pages / 10 || kept > pages / 4)); then
    echo "the behaviour changed" >&2
    exit 1
fi
