#!/usr/bin/env bash
# Versions: jax and jaxlib 0.12.0.1 and 0.10.2 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-30; CPU.
# Behaviour: a jax.shard_map over mesh axis "b" within one over axis "a" computes its value, but its gradient under jax.jit
#   is refused ("operates on axis "a" which is already bound"): what the inner one keeps for the backward pass is typed as split
#   over both axes. With jax.checkpoint around the inner one's function, which then keeps its arguments alone, it is right;
#   with jax.checkpoint around the inner jax.shard_map it is refused too.
# Output:
#   jax 0.10.2: value 13.4635; gradient: as it is refused, checkpoint inside 0.5403, checkpoint around refused
#   jax 0.12.0.1: value 13.4635; gradient: as it is refused, checkpoint inside 0.5403, checkpoint around refused

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
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

jax.config.update("jax_num_cpu_devices", 4)
MESH = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))
X = jnp.ones((4, 4))


def unchanged(function):
    return function


def loss(within, around):
    """The sum of sines, over "b" by the inner jax.shard_map and over "a" by the outer."""

    def inner(x):
        return jax.lax.psum(jnp.sum(jnp.sin(x)), "b")

    def outer(x):
        of_columns = PartitionSpec(None, "b")
        part = jax.shard_map(within(inner), in_specs=of_columns, out_specs=PartitionSpec(), axis_names={"b"})
        return jax.lax.psum(around(part)(x), "a")

    return jax.shard_map(outer, in_specs=PartitionSpec("a"), out_specs=PartitionSpec(), axis_names={"a"})


def gradient(within=unchanged, around=unchanged):
    try:
        return f"{jax.jit(jax.grad(loss(within, around)))(X)[0, 0]:.4f}"
    except ValueError as error:
        return "refused" if "already bound" in str(error) else f"another error: {error}"


with jax.set_mesh(MESH):
    value = f"{jax.jit(loss(unchanged, unchanged))(X):.4f}"
    found = gradient(), gradient(within=jax.checkpoint), gradient(around=jax.checkpoint)
print(
    f"jax {jax.__version__}: value {value}; gradient: as it is {found[0]}, checkpoint inside {found[1]}, "
    f"checkpoint around {found[2]}"
)
if (value, *found) != ("13.4635", "refused", "0.5403", "refused"):
    sys.exit("the behaviour changed")
END

export JAX_PLATFORMS=cpu XLA_FLAGS=
for version in 0.10.2 0.12.0.1; do
    "$python" -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
        "jax==$version" "jaxlib==$version" numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
    "$folder/$version/bin/python" "$folder/program.py"
done
