# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/crossent-jax/crossent_jax/blob/main/notebooks/04_drop_in_training.ipynb)
#
# # Drop-in: optax, Flax NNX, Flax Linen, Equinox
#
# The same small training, handwritten digits, with `crossent_jax` in plain optax, Flax NNX, Flax Linen and Equinox: one
# line changes. Then what a training loop needs around the loss: masks for padding, gradients accumulated over uneven
# microbatches that equal those of the whole batch, and schedules of loss options that do not compile anew.

# %%
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version

if importlib.util.find_spec("crossent_jax") is None:  # the versions that are here stay as they are
    here = [f"{name}=={version(name)}" for name in ("jax", "jaxlib", "numpy")]
    library = "crossent-jax[notebooks,frameworks] @ git+https://github.com/crossent-jax/crossent_jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", library, *here], check=True)

import crossent_jax

FAST = os.environ.get("CROSSENT_JAX_FAST") == "1"  # small sizes, for a quick check
crossent_jax.show_versions()

# %%
import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from crossent_jax.compat import optax as losses

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # told apart with any colour vision
jax.config.update("jax_default_matmul_precision", "highest")  # float32 products on every device, to compare gradients
STEPS, HIDDEN = (30, 32) if FAST else (150, 64)
print("flax", flax.__version__, "equinox", eqx.__version__)

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
x, y = (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int32)
train_x, test_x = jnp.asarray(x[:1400]), jnp.asarray(x[1400:])
train_y, test_y = jnp.asarray(y[:1400]), jnp.asarray(y[1400:])
generator = np.random.default_rng(1)
batches = [generator.choice(1400, 100, replace=False) for _ in range(STEPS)]
optimizer = optax.adam(1e-2)
curves, accuracies = {}, {}


def record(name, curve, logits):
    curves[name] = np.array([float(value) for value in curve])
    accuracies[name] = float((logits.argmax(-1) == test_y).mean())
    print(f"{name}: loss {curves[name][0]:.3f} -> {curves[name][-1]:.3f} nats, test accuracy {accuracies[name]:.3f}")


# %% [markdown]
# ## Plain optax
#
# Before and after. Both are means over the batch, in nats; at `label_smoothing=0` they are the same number.

# %%
keys = jax.random.split(jax.random.key(0), 2)
start = {
    "in": {"kernel": jax.random.normal(keys[0], (64, HIDDEN)) / 8, "bias": jnp.zeros(HIDDEN)},
    "out": {"kernel": jax.random.normal(keys[1], (HIDDEN, 10)) / HIDDEN**0.5, "bias": jnp.zeros(10)},
}


def model(parameters, x):
    hidden = jax.nn.relu(x @ parameters["in"]["kernel"] + parameters["in"]["bias"])
    return hidden @ parameters["out"]["kernel"] + parameters["out"]["bias"]


def loss_before(parameters, x, y):
    return optax.losses.softmax_cross_entropy_with_integer_labels(model(parameters, x), y).mean()


def loss_after(parameters, x, y):
    return crossent_jax.cross_entropy(model(parameters, x), y)


def loss_by_optax_name(parameters, x, y):
    return losses.softmax_cross_entropy_with_integer_labels(model(parameters, x), y).mean()


def train(loss):
    @jax.jit
    def step(parameters, state, x, y):
        value, gradient = jax.value_and_grad(loss)(parameters, x, y)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, value

    parameters, state, curve = start, optimizer.init(start), []
    for chosen in batches:
        parameters, state, value = step(parameters, state, train_x[chosen], train_y[chosen])
        curve.append(value)
    return parameters, curve


for name, loss in {"optax": loss_before, "optax + crossent_jax": loss_after, "compat.optax": loss_by_optax_name}.items():
    parameters, curve = train(loss)
    record(name, curve, model(parameters, test_x))
for name in ("optax + crossent_jax", "compat.optax"):
    assert np.abs(curves[name] - curves["optax"]).max() < 0.01, "the same training"
print("largest difference of the loss along the training:", f"{np.abs(curves['compat.optax'] - curves['optax']).max():.1e}")

# %% [markdown]
# The third is the smallest change of all: optax's names and arguments, losses per example, by
# `from crossent_jax.compat import optax as losses`. Where optax is right the numbers are the same. Where it is not they
# differ: with labels that are no class, for example, or 16-bit logits.

# %%
logits = model(start, train_x[:3])
for label in (-1, 10, -100):
    wrong = jnp.array([0, 1, label])
    before = optax.losses.softmax_cross_entropy_with_integer_labels(logits, wrong)[2]
    after = losses.softmax_cross_entropy_with_integer_labels(logits, wrong)[2]
    print(f"label {label:4d}: optax {before:.4f}, compat.optax {after}")
    assert jnp.isnan(after)
as_class_9 = losses.softmax_cross_entropy_with_integer_labels(logits[2], jnp.array(9))
before = optax.losses.softmax_cross_entropy_with_integer_labels(logits[2], jnp.array(-1))
print(f"the loss of class 9 is {as_class_9:.4f}" + (": -1 trained it" if jnp.allclose(before, as_class_9) else ""))

sixteen = logits.astype(jnp.bfloat16)
after = losses.softmax_cross_entropy_with_integer_labels(sixteen, train_y[:3])
print("bfloat16 logits: optax", optax.losses.softmax_cross_entropy_with_integer_labels(sixteen, train_y[:3]).dtype, end="")
print(", compat.optax", after.dtype)
assert after.dtype == jnp.float32

# %% [markdown]
# ## Flax NNX
#
# The loss takes arrays, so any module that returns logits fits. The line that changed is marked.


# %%
class Digits(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, HIDDEN, rngs=rngs)
        self.out = nnx.Linear(HIDDEN, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(jax.nn.relu(self.hidden(x)))


@nnx.jit
def nnx_step(model, optimizer, x, y):
    def loss(model):
        return crossent_jax.cross_entropy(model(x), y)  # <- this line

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


nnx_model = Digits(nnx.Rngs(0))
nnx_optimizer = nnx.Optimizer(nnx_model, optimizer, wrt=nnx.Param)
curve = [nnx_step(nnx_model, nnx_optimizer, train_x[chosen], train_y[chosen]) for chosen in batches]
record("Flax NNX", curve, nnx_model(test_x))

# %% [markdown]
# ## Flax Linen


# %%
class LinenDigits(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(jax.nn.relu(nn.Dense(HIDDEN)(x)))


linen_model = LinenDigits()


@jax.jit
def linen_step(variables, state, x, y):
    def loss(variables):
        return crossent_jax.cross_entropy(linen_model.apply(variables, x), y)  # <- this line

    value, gradient = jax.value_and_grad(loss)(variables)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(variables, updates), state, value


variables = linen_model.init(jax.random.key(0), train_x[:1])
state, curve = optimizer.init(variables), []
for chosen in batches:
    variables, state, value = linen_step(variables, state, train_x[chosen], train_y[chosen])
    curve.append(value)
record("Flax Linen", curve, linen_model.apply(variables, test_x))


# %% [markdown]
# ## Equinox


# %%
@eqx.filter_jit
def equinox_step(model, state, x, y):
    @eqx.filter_value_and_grad
    def loss(model):
        return crossent_jax.cross_entropy(jax.vmap(model)(x), y)  # <- this line

    value, gradient = loss(model)
    updates, state = optimizer.update(gradient, state)
    return eqx.apply_updates(model, updates), state, value


equinox_model = eqx.nn.MLP(64, 10, HIDDEN, depth=1, key=jax.random.key(0))
state, curve = optimizer.init(eqx.filter(equinox_model, eqx.is_array)), []
for chosen in batches:
    equinox_model, state, value = equinox_step(equinox_model, state, train_x[chosen], train_y[chosen])
    curve.append(value)
record("Equinox", curve, jax.vmap(equinox_model)(test_x))
assert all(curve[-1] < curve[0] / 2 for curve in curves.values()) and min(accuracies.values()) > 0.7

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
styles = {
    "optax": ("0.6", "-", 5),
    "optax + crossent_jax": (BLUE, "-", 1.5),
    "Flax NNX": (ORANGE, "--", 1.5),
    "Flax Linen": (GREEN, "-.", 1.5),
    "Equinox": (PINK, ":", 2),
}
for name, (color, line, width) in styles.items():
    mean = np.convolve(curves[name], np.full(10, 0.1), "valid")
    axes.plot(np.arange(10, STEPS + 1), mean, line, color=color, linewidth=width, label=name)
axes.set(xlabel="step", ylabel="training loss, mean of ten steps (nats)", yscale="log")
axes.set_title("One loss, four ways to write a model")
axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# The first two share their start and their batches, and their curves lie on each other. The frameworks start from weights
# of their own.
#
# ## Padding: masks
#
# The last batch of an epoch is rarely full. Pad it and say which rows count: with `where=`, or with a label that means
# "ignore". The mean is over the rows that count. What the others hold, NaN too, changes neither value nor gradient.

# %%
padded_x = jnp.concatenate([train_x[:6], jnp.full((2, 64), jnp.nan)])
padded_y = jnp.concatenate([train_y[:6], jnp.array([-1, -1])])
mask = jnp.arange(8) < 6


def masked(parameters):
    return crossent_jax.cross_entropy(model(parameters, padded_x), padded_y, where=mask)


def ignored(parameters):
    return crossent_jax.cross_entropy(model(parameters, padded_x), padded_y, ignore_index=-1)


def difference(a, b):
    """The largest difference of any entry, over the largest entry."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    scale = max(float(jnp.abs(leaf).max()) for leaf in b)
    return max(float(jnp.abs(one - other).max()) for one, other in zip(a, b, strict=True)) / scale


whole = jax.value_and_grad(loss_after)(start, train_x[:6], train_y[:6])
logits_gradient = jax.grad(lambda z: crossent_jax.cross_entropy(z, padded_y, where=mask))(model(start, padded_x))
assert (logits_gradient[6:] == 0).all() and jnp.isfinite(logits_gradient).all()
for name, function in {"where=mask": masked, "ignore_index=-1": ignored}.items():
    value = function(start)
    print(f"{name:16} {value:.6f} nats; the six rows alone {whole[0]:.6f}")
    assert abs(value - whole[0]) < 1e-5

# %% [markdown]
# The loss gives those rows of the logits a gradient of exactly 0. Further back the model must do its part: a product with
# an input that is NaN makes 0 · NaN = NaN. So pad the inputs with zeros.

# %%
padded_x = padded_x.at[6:].set(0)
for function in (masked, ignored):
    assert difference(jax.grad(function)(start), whole[1]) < 1e-5
print("gradients of the parameters: those of the six rows alone")

# %% [markdown]
# ## Uneven microbatches: `LossSum`
#
# A batch that does not fit is split, and gradients are accumulated. Microbatches with different numbers of rows that count
# (padding, packed sequences) have means over different denominators, and the average of means is another number than the
# mean over all:
#
# $$\frac1K \sum_k \frac{\sum_i \ell_{ki}}{n_k} \;\ne\; \frac{\sum_k \sum_i \ell_{ki}}{\sum_k n_k}.$$
#
# `reduction="loss_sum"` returns numerator and denominator as a `LossSum`. Add them, accumulate the gradients of `total`,
# and divide once.

# %%
counts = jnp.array([32, 20, 9, 1])  # rows that count in each of four microbatches of 32
micro_x, micro_y = train_x[:128].reshape(4, 32, 64), train_y[:128].reshape(4, 32)
micro_where = jnp.arange(32) < counts[:, None]


def of_part(parameters, x, y, where):
    part = crossent_jax.cross_entropy(model(parameters, x), y, where=where, reduction="loss_sum")
    return part.total, part


@jax.jit
def accumulated(parameters):
    def add(carry, microbatch):
        gradient, part = jax.grad(of_part, has_aux=True)(parameters, *microbatch)
        return jax.tree.map(jnp.add, carry, (gradient, part)), None

    nothing = jax.tree.map(jnp.zeros_like, parameters), crossent_jax.LossSum(jnp.float32(0), jnp.float32(0))
    (gradient, part), _ = jax.lax.scan(add, nothing, (micro_x, micro_y, micro_where))
    return part.mean(), jax.tree.map(lambda g: g / part.weight, gradient)


@jax.jit
def average_of_means(parameters):
    def loss(parameters):
        def mean(x, y, where):
            return crossent_jax.cross_entropy(model(parameters, x), y, where=where)

        return jax.vmap(mean)(micro_x, micro_y, micro_where).mean()

    return jax.value_and_grad(loss)(parameters)


def full(parameters):
    x, y = micro_x.reshape(128, 64), micro_y.reshape(128)
    return crossent_jax.cross_entropy(model(parameters, x), y, where=micro_where.reshape(128))


true, gradient = jax.value_and_grad(full)(start)
for name, way in {"LossSum": accumulated, "average of means": average_of_means}.items():
    value, found = way(start)
    print(f"{name:17} loss {value:.6f} (whole batch {true:.6f}), gradient off by {difference(found, gradient):.1e}")
assert abs(accumulated(start)[0] - true) < 1e-5 and difference(accumulated(start)[1], gradient) < 1e-5
assert difference(average_of_means(start)[1], gradient) > 0.05

# %% [markdown]
# Equal to the rounding of float32 sums. `LossSum.psum(axis_name)` does the same across devices inside `jax.shard_map`.
#
# ## Schedules: one compilation
#
# Label smoothing that fades, a z-loss that grows, a temperature: these options may be traced scalars. A schedule of optax,
# evaluated at the step's number inside the jitted step, compiles once; as Python floats that change every step, each new
# value would be a new program.

# %%
smoothing_of = optax.linear_schedule(0.2, 0.0, STEPS)
z_loss_of = optax.linear_schedule(0.0, 1e-3, STEPS)


@jax.jit
def scheduled_step(parameters, state, count, x, y):
    def loss(parameters):
        smoothing, z_loss = smoothing_of(count), z_loss_of(count)
        logits = model(parameters, x)
        return crossent_jax.cross_entropy(logits, y, label_smoothing=smoothing, z_loss=z_loss), logits

    (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
    updates, state = optimizer.update(gradient, state)
    plain = crossent_jax.cross_entropy(logits, y)  # comparable along the schedule
    return optax.apply_updates(parameters, updates), state, count + 1, value, plain


parameters, state, count, own, plain = start, optimizer.init(start), jnp.int32(0), [], []
for chosen in batches:
    parameters, state, count, value, nll = scheduled_step(parameters, state, count, train_x[chosen], train_y[chosen])
    own.append(float(value))
    plain.append(float(nll))
print(f"{STEPS} steps with {STEPS} smoothings and z-losses: {scheduled_step._cache_size()} compilation")
assert scheduled_step._cache_size() == 1 and plain[-1] < plain[0] / 2
fixed = crossent_jax.cross_entropy(logits, train_y[:3], label_smoothing=float(smoothing_of(0)), z_loss=float(z_loss_of(7)))
traced = jax.jit(lambda a, b: crossent_jax.cross_entropy(logits, train_y[:3], label_smoothing=a, z_loss=b))
assert abs(traced(smoothing_of(0), z_loss_of(7)) - fixed) < 1e-6

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
steps = np.arange(1, STEPS + 1)
axes.plot(steps, own, color=ORANGE, label="loss that is trained: smoothing 0.2 → 0, z-loss 0 → 0.001")
axes.plot(steps, plain, "--", color=BLUE, label="plain cross-entropy of the same logits")
axes.set(xlabel="step", ylabel="loss (nats)", yscale="log", title="A schedule of loss options")
axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# The trained loss carries the entropy of its smoothed targets, less of it every step. Watch the plain one.
#
# ## Without logits
#
# The last line to change, for large vocabularies: give the hidden states and the head instead of logits. It works with
# each of the models above. Equinox holds weights as (classes, features), hence `head_vocab_axis=0`.

# %%
head = equinox_model.layers[-1]
hidden = jax.nn.relu(jax.vmap(equinox_model.layers[0])(test_x))
fused = crossent_jax.linear_cross_entropy(hidden, head.weight, test_y, bias=head.bias, head_vocab_axis=0)
given = crossent_jax.cross_entropy(jax.vmap(equinox_model)(test_x), test_y)
print(f"linear_cross_entropy {fused:.6f}, cross_entropy of the logits {given:.6f} nats")
assert abs(fused - given) < 1e-5
