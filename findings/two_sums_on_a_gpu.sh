#!/usr/bin/env bash
# Versions: jax, jaxlib, jax-cuda13-plugin and jax-cuda13-pjrt 0.10.2 (numpy 2.4.6, scipy 1.18.1, ml_dtypes 0.6.0), Python
#   3.13; 2026-11-29; compiled for an H100 on a machine that has none, nothing runs.
# Behaviour: two sums over the same axis, of two long expressions that share their beginning (the two halves of a
#   Jensen-Shannon divergence of (4096, 32768) logits), hold a float32 array of the logits' size: XLA's GPU backend writes one
#   to memory instead of taking both sums in one pass. jax.lax.reduce of both at once holds it too. Added up as the real and
#   the imaginary part of complex numbers they hold 4 MiB.
# Output:
#   bfloat16: two sums 516 MiB, one reduction of pairs 516 MiB, a sum of complex numbers 4 MiB
#   float32: two sums 516 MiB, one reduction of pairs 516 MiB, a sum of complex numbers 4 MiB

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
pip=("$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile)
"${pip[@]}" jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.18.1 ml_dtypes==0.6.0
"${pip[@]}" --no-deps jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2 # a compiler needs none of NVIDIA's libraries
export JAX_PLATFORMS=cpu

cat >"$folder/program.py" <<'END'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
  device_vendor: "NVIDIA Corporation" name: "NVIDIA H100 80GB HBM3"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
SHAPE = 4096, 32768


def halves(a, b):
    """p (log p - log m) and q (log q - log m), m being the mean of p and q."""
    log_p, log_q = (jax.nn.log_softmax(z.astype(jnp.float32)) for z in (a, b))
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    log_m = jnp.log((p + q) / 2)
    return p * (log_p - log_m), q * (log_q - log_m)


def two_sums(a, b):
    return [jnp.sum(half, -1) for half in halves(a, b)]


def of_pairs(a, b):
    zero = jnp.float32(0)
    return jax.lax.reduce(halves(a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (1,))


def of_complex_numbers(a, b):
    both = jnp.sum(jax.lax.complex(*halves(a, b)), -1)
    return both.real, both.imag


topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("chip",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
as_seen = True
for dtype in (jnp.bfloat16, jnp.float32):
    logits = jax.ShapeDtypeStruct(SHAPE, dtype, sharding=sharding)
    two, pairs, numbers = (
        jax.jit(f).lower(logits, logits).compile().memory_analysis().temp_size_in_bytes / 2**20
        for f in (two_sums, of_pairs, of_complex_numbers)
    )
    print(
        f"{logits.dtype}: two sums {two:.0f} MiB, one reduction of pairs {pairs:.0f} MiB, "
        f"a sum of complex numbers {numbers:.0f} MiB"
    )
    as_seen &= 500 < two < 540 and 500 < pairs < 540 and numbers < 10
sys.exit(not as_seen)
END
"$folder/venv/bin/python" "$folder/program.py" 2>"$folder/log" || { tail -5 "$folder/log" >&2; exit 1; }
