#!/usr/bin/env bash
# Versions: jax and jaxlib 0.7.2, 0.10.2 and 0.12.0.1 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-28.
# Behaviour: a custom_vjp returns two outputs, one of which does not depend on the operand that jax.vmap maps. That output is
#   one value for the whole batch, and so is its cotangent, which already is the sum over the batch. The backward rule runs
#   once per example, each time with the whole sum, so the gradient of an unmapped operand counts it once per example, here
#   3 times. 0.7.2 and 0.10.2 give the wrong gradient silently, 0.12 raises.
# Output:
#   0.7.2: by JAX's own rules 7.6209, by custom_vjp 10.8627
#   0.10.2: by JAX's own rules 7.6209, by custom_vjp 10.8627
#   0.12.0.1: by JAX's own rules 7.6209, by custom_vjp ValueError

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
for version in 0.7.2 0.10.2 0.12.0.1; do
    environment "$version" "jax==$version" "jaxlib==$version" numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
done

cat >"$folder/program.py" <<'END'
import sys

import jax
import jax.numpy as jnp


def plain(x, y):
    return jnp.sin(x), x * y


@jax.custom_vjp
def custom(x, y):
    return plain(x, y)


def forward(x, y):
    return plain(x, y), (x, y)


def backward(residuals, cotangents):
    (x, y), (of_sine, of_product) = residuals, cotangents
    return of_sine * jnp.cos(x) + of_product * y, of_product * x


custom.defvjp(forward, backward)


def gradient(f):
    """d/dx, at x = 1, of the sum over y = 1, 2, 3 of sin x + x y: 3 cos 1 + 6."""
    return jax.grad(lambda x: jnp.sum(jax.vmap(lambda y: sum(f(x, y)))(jnp.array([1.0, 2.0, 3.0]))))(1.0)


right = float(gradient(plain))
try:
    found = f"{float(gradient(custom)):.4f}"
except ValueError:
    found = "ValueError"
print(f"{jax.__version__}: by JAX's own rules {right:.4f}, by custom_vjp {found}")
if found != sys.argv[1]:
    sys.exit(f"the behaviour changed: it was {sys.argv[1]}")
END

"$folder/0.7.2/bin/python" "$folder/program.py" 10.8627
"$folder/0.10.2/bin/python" "$folder/program.py" 10.8627
"$folder/0.12.0.1/bin/python" "$folder/program.py" ValueError
