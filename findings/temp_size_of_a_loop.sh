#!/usr/bin/env bash
# Versions: jax and jaxlib 0.12.0.1, libtpu 0.0.50.1 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-29;
#   compiled for a TPU v5e on a machine that has none, nothing runs.
# Behaviour: a sum of products over chunks in a fori_loop, 256 MiB of float32 in all, each iteration of which holds a float32
#   array of 128 MiB. memory_analysis() of one compiled program contradicts itself: temp_size_in_bytes is 512 MiB, but all that
#   is allocated, less arguments and results, is 384 MiB, the sum and one array: what the loop holds is counted twice. With jax
#   0.10.2 and libtpu 0.0.42.1 temp_size_in_bytes is 256 MiB for the same program, which is why a table of temporary memory
#   seems to double from one version to the next while the peak grows from 520 to 648 MiB.
# Output:
#   temporary 512 MiB; allocated 648 MiB in all, 384 MiB without arguments and results

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
    jax==0.12.0.1 jaxlib==0.12.0.1 libtpu==0.0.50.1 numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
# what libtpu wants to hear where there is no TPU
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_WORKER_HOSTNAMES=localhost
export ALLOW_MULTIPLE_LIBTPU_LOAD=1

cat >"$folder/program.py" <<'END'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

ROWS, FEATURES, CLASSES, CHUNK = 4096, 1024, 65536, 512


def summed(hidden, head):
    """x^T exp(x W), added up over chunks of rows."""

    def step(i, total):
        x = jax.lax.dynamic_slice_in_dim(hidden, i * CHUNK, CHUNK)
        z = jnp.dot(x, head, preferred_element_type=jnp.float32)
        z = jax.lax.optimization_barrier(jnp.exp(z - jnp.max(z, 1, keepdims=True)).astype(x.dtype))
        return total + jnp.dot(x.T, z, preferred_element_type=jnp.float32)

    total = jax.lax.fori_loop(0, ROWS // CHUNK, step, jnp.zeros(head.shape, jnp.float32))
    return total.astype(head.dtype)


topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("chip",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=sharding) for s in ((ROWS, FEATURES), (FEATURES, CLASSES))]
memory = jax.jit(summed).lower(*shapes).compile().memory_analysis()
temporary = memory.temp_size_in_bytes / 2**20
allocated = memory.total_allocation_bytes / 2**20
rest = allocated - (memory.argument_size_in_bytes + memory.output_size_in_bytes) / 2**20
print(f"temporary {temporary:.0f} MiB; allocated {allocated:.0f} MiB in all, {rest:.0f} MiB without arguments and results")
sys.exit(not (500 < temporary < 530 and 380 < rest < 400))
END
"$folder/venv/bin/python" "$folder/program.py" 2>"$folder/log" || { tail -5 "$folder/log" >&2; exit 1; }
