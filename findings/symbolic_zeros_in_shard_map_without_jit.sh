#!/usr/bin/env bash
# Versions: jax and jaxlib 0.12.0.1 and 0.10.2 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-30; CPU.
# Behaviour: a function with a jax.custom_vjp rule of symbolic_zeros=True inside jax.shard_map: its gradient is computed, under
#   jax.jit and without it, and its value under jax.jit; its value alone, without jax.jit, is refused (NotImplementedError:
#   custom_vjp symbolic_zeros support with shard_map), though the rule is for derivatives. Without symbolic_zeros all four are
#   computed.
# Output:
#   jax 0.10.2: symbolic_zeros: value refused, value in jax.jit computed, gradient computed, gradient in jax.jit computed
#   jax 0.12.0.1: symbolic_zeros: value refused, value in jax.jit computed, gradient computed, gradient in jax.jit computed

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

jax.config.update("jax_num_cpu_devices", 2)
MESH = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
X = jnp.arange(4.0)


def square(symbolic_zeros):
    """Of each number, with a rule for its derivative."""

    @jax.custom_vjp
    def function(x):
        return x * x

    def forward(x):
        x = x.value if symbolic_zeros else x
        return x * x, x

    function.defvjp(forward, lambda x, g: (2 * g * x,), symbolic_zeros=symbolic_zeros)
    return function


def seen(function, expected):
    try:
        return "computed" if (function(X) == expected).all() else "wrong"
    except NotImplementedError as error:
        return "refused" if "symbolic_zeros" in str(error) else f"another error: {error}"


def found(symbolic_zeros):
    of_axis = PartitionSpec("a")
    value = jax.shard_map(square(symbolic_zeros), mesh=MESH, in_specs=of_axis, out_specs=of_axis)
    gradient = jax.grad(lambda x: jnp.sum(value(x)))
    cases = (value, X * X), (jax.jit(value), X * X), (gradient, 2 * X), (jax.jit(gradient), 2 * X)
    return [seen(*case) for case in cases]


NAMES = ("value", "value in jax.jit", "gradient", "gradient in jax.jit")
with_zeros, without = found(True), found(False)
print(f"jax {jax.__version__}: symbolic_zeros:", ", ".join(f"{name} {how}" for name, how in zip(NAMES, with_zeros)))
if with_zeros != ["refused", "computed", "computed", "computed"] or set(without) != {"computed"}:
    sys.exit(f"the behaviour changed (without symbolic_zeros: {without})")
END

export JAX_PLATFORMS=cpu XLA_FLAGS=
for version in 0.10.2 0.12.0.1; do
    "$python" -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
        "jax==$version" "jaxlib==$version" numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
    "$folder/$version/bin/python" "$folder/program.py"
done
