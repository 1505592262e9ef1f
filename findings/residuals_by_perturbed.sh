#!/usr/bin/env bash
# Versions: jax and jaxlib 0.7.2 and 0.12.0.1 (numpy 2.5.5, scipy 1.18.1, ml_dtypes 0.6.0), Python 3.13; 2026-11-28.
# Behaviour: a custom_vjp with symbolic_zeros=True keeps residuals whose tree depends on which operands are differentiated
#   (the flag `perturbed`). Called inside jax.jit, the backward rule gets the residuals in the tree of the
#   forward rule that was traced last: a pullback gives another gradient after another jax.vjp of the same function. With
#   as many leaves in both trees the wrong gradient is silent; with different numbers it is an AssertionError without a word.
# Output:
#   0.7.2: d/dw of 2 w: right 2.0; same number of leaves 0.0; another number AssertionError; same, without jit 2.0
#   0.12.0.1: d/dw of 2 w: right 2.0; same number of leaves 0.0; another number AssertionError; same, without jit 2.0

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
for version in 0.7.2 0.12.0.1; do
    environment "$version" "jax==$version" "jaxlib==$version" numpy==2.5.5 scipy==1.18.1 ml_dtypes==0.6.0
done

cat >"$folder/program.py" <<'END'
import sys

import jax
import jax.numpy as jnp


def product(residuals_of):
    """x * w with a rule that keeps x only where w is differentiated."""

    @jax.custom_vjp
    def f(x, w):
        return x * w

    def forward(x, w):
        return x.value * w.value, residuals_of(x.value, w.value, w.perturbed)

    def backward(residuals, g):
        w, x = residuals[:2]
        return g * w, jnp.zeros_like(w) if x is None else g * x

    f.defvjp(forward, backward, symbolic_zeros=True)
    return f


def same_number(x, w, perturbed):
    return (w, x, None) if perturbed else (w, None, x)


def another_number(x, w, perturbed):
    return (w, x) if perturbed else (w, None)


def slope(f):
    """df/dw at x = 2, w = 3, when f was differentiated in x alone between the forward and the backward pass."""
    _, pull = jax.vjp(f, jnp.float32(2), jnp.float32(3))
    jax.vjp(lambda x: f(x, jnp.float32(7)), jnp.float32(5))
    try:
        return str(float(pull(jnp.float32(1))[1]))
    except AssertionError:
        return "AssertionError"


found = [slope(f) for f in (jax.jit(product(same_number)), jax.jit(product(another_number)), product(same_number))]
same, another, eager = found
print(
    f"{jax.__version__}: d/dw of 2 w: right 2.0; same number of leaves {same}; another number {another}; "
    f"same, without jit {eager}"
)
if found != ["0.0", "AssertionError", "2.0"]:
    sys.exit("the behaviour changed")
END

for version in 0.7.2 0.12.0.1; do
    "$folder/$version/bin/python" "$folder/program.py"
done
