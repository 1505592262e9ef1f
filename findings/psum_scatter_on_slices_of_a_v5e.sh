#!/usr/bin/env bash
# Versions: jax and jaxlib 0.10.2, libtpu 0.0.42.1 (numpy 2.3.5, scipy 1.16.3, ml_dtypes 0.5.4), Python 3.11 to 3.13; 2026-11-30.
# Behaviour: compiled ahead of time, jax.lax.psum_scatter over all chips of a TPU v5e is a scatter of sums on slices of 2x2 and
#   2x4, and on 4x4 and 8x8 a sum of the whole array on every chip and a slice of it: 1.5 times the bytes on the wire and the
#   whole sum in memory. Over one of the mesh's two axes it scatters on 4x4 and 8x8 too. So parameters split over all chips of
#   a large slice (FSDP) cost more than over one axis of two.
# Output:
#   v5e:2x2: over all chips scatter, over one of two axes scatter
#   v5e:2x4: over all chips scatter, over one of two axes scatter
#   v5e:4x4: over all chips sum of the whole, over one of two axes scatter
#   v5e:8x8: over all chips sum of the whole, over one of two axes scatter

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=
pyenv=${PYENV_ROOT:-$HOME/.pyenv}/versions
for candidate in python3 python3.13 python3.12 python3.11 "$pyenv"/3.1[123].*/bin/python; do
    if "$candidate" -c 'import ensurepip, sys, venv; assert (3, 11) <= sys.version_info[:2] <= (3, 13)' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || { echo "needs Python 3.11, 3.12 or 3.13, on the path or in pyenv" >&2; exit 2; }
"$python" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1 numpy==2.3.5 scipy==1.16.3 ml_dtypes==0.5.4

cat >"$folder/program.py" <<'END'
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def how(chips, names):
    """What a scatter of sums over these axes of a mesh of two is compiled to."""
    mesh = Mesh(np.array(chips).reshape(2, -1), ("data", "parts"))

    def scattered(x):
        return jax.lax.psum_scatter(x[0], names, scatter_dimension=0, tiled=True)[None]

    step = jax.jit(jax.shard_map(scattered, mesh=mesh, in_specs=P(("data", "parts")), out_specs=P(("data", "parts"))))
    x = jax.ShapeDtypeStruct((len(chips), 4096, 2048), jnp.float32, sharding=NamedSharding(mesh, P(("data", "parts"))))
    text = step.lower(x).compile().as_text()
    return "scatter" if "reduce-scatter" in text else "sum of the whole" if "all-reduce" in text else "neither"


found = {}
for slice_ in ("v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:8x8"):
    chips = topologies.get_topology_desc(platform="tpu", topology_name=slice_).devices
    found[slice_] = how(chips, ("data", "parts")), how(chips, "parts")
    print(f"{slice_}: over all chips {found[slice_][0]}, over one of two axes {found[slice_][1]}")
whole = [slice_ for slice_, (over_all, _) in found.items() if over_all == "sum of the whole"]
if whole != ["v5e:4x4", "v5e:8x8"] or {over_one for _, over_one in found.values()} != {"scatter"}:
    raise SystemExit("the behaviour changed")
END
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_WORKER_HOSTNAMES=localhost
"$folder/env/bin/python" "$folder/program.py"
