#!/usr/bin/env bash
# Versions: jax and jaxlib 0.7.2 and 0.10.2 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-28.
# Behaviour: a mean over shards, a sum and a count through one jax.lax.psum of a tuple inside jax.shard_map. jax 0.7.2 gives
#   its value but not its gradient, because the count does not depend on what is differentiated: an AssertionError without a
#   word. One psum for each part works, so does jax 0.10.2.
# Output:
#   0.7.2: mean of squares 3.5, gradient by one psum AssertionError, by two [0.0, 0.5, 1.0, 1.5]
#   0.10.2: mean of squares 3.5, gradient by one psum [0.0, 0.5, 1.0, 1.5], by two [0.0, 0.5, 1.0, 1.5]

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
for version in 0.7.2 0.10.2; do
    environment "$version" "jax==$version" "jaxlib==$version" numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
done

cat >"$folder/program.py" <<'END'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

jax.config.update("jax_num_cpu_devices", 2)
MESH = Mesh(np.array(jax.devices()), ("shards",))
X = jnp.arange(4.0)


def mean_of_squares(joint):
    def of_shard(x):
        parts = jnp.sum(x * x), jnp.sum(jnp.ones_like(x))
        total, count = jax.lax.psum(parts, "shards") if joint else [jax.lax.psum(part, "shards") for part in parts]
        return total / count

    return jax.shard_map(of_shard, mesh=MESH, in_specs=PartitionSpec("shards"), out_specs=PartitionSpec())


def gradient(joint):
    try:
        return str(jax.grad(mean_of_squares(joint))(X).tolist())
    except AssertionError:
        return "AssertionError"


value, joint, apart = float(mean_of_squares(True)(X)), gradient(True), gradient(False)
print(f"{jax.__version__}: mean of squares {value}, gradient by one psum {joint}, by two {apart}")
right = "[0.0, 0.5, 1.0, 1.5]"
if (value, joint, apart) != (3.5, right if sys.argv[1] == "right" else "AssertionError", right):
    sys.exit("the behaviour changed")
END

"$folder/0.7.2/bin/python" "$folder/program.py" fails
"$folder/0.10.2/bin/python" "$folder/program.py" right
