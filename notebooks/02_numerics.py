# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/crossent-jax/crossent_jax/blob/main/notebooks/02_numerics.ipynb)
#
# # Numerics: the textbook formula and the exact one
#
# The formulas of cross-entropy and KL fit on one line, and that line breaks: at large logits, at masks, in padding, where
# two distributions are close. Each section shows the plain formula, what it returns, and what `crossent_jax` returns,
# beside NumPy's float64. Afterwards you know which NaN to expect where, and how many digits of a loss to trust.

# %%
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version

if importlib.util.find_spec("crossent_jax") is None:  # the versions that are here stay as they are
    here = [f"{name}=={version(name)}" for name in ("jax", "jaxlib", "numpy")]
    library = "crossent-jax[notebooks] @ git+https://github.com/crossent-jax/crossent_jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", library, *here], check=True)

import crossent_jax

FAST = os.environ.get("CROSSENT_JAX_FAST") == "1"  # small sizes, for a quick check
crossent_jax.show_versions()

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # told apart with any colour vision


def textbook(logits, labels):
    """-log(exp(z_y) / sum exp(z)), as printed."""
    p = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
    return -jnp.log(p[jnp.arange(len(labels)), labels]).mean()


def softmax_then_log(logits, labels):
    return -jnp.log(jax.nn.softmax(logits)[jnp.arange(len(labels)), labels]).mean()


def logsumexp_minus_logit(logits, labels):
    return (jax.nn.logsumexp(logits, -1) - logits[jnp.arange(len(labels)), labels]).mean()


# %% [markdown]
# ## Large logits
#
# Two classes, and the label is the unlikely one. At logits 0 and 100 the loss is 100 and its gradient $(-1, 1)$. In
# float32 $e^{100}$ overflows and the textbook formula is $\infty / \infty$. A softmax that subtracts the maximum first
# does not overflow, but then $e^{-100}$ is below the smallest normal number and is rounded to 0 or to a few bits. At 200
# nothing is left of it: the loss is infinite and the gradient NaN. So the logarithm must never see the rounded
# probability.

# %%
losses = {
    "exp / sum, log": textbook,
    "softmax, log": softmax_then_log,
    "logsumexp − logit": logsumexp_minus_logit,
    "crossent_jax": crossent_jax.cross_entropy,
}
label = jnp.array([0])
for gap in (10.0, 100.0, 200.0):
    for name, function in losses.items():
        loss, gradient = jax.value_and_grad(function)(jnp.array([[0.0, gap]]), label)
        print(f"logits (0, {gap:3.0f})  {name:18} loss {loss:9.4f}  gradient {np.asarray(gradient[0])}")
assert abs(loss - 200) < 1e-4 and jnp.allclose(gradient, jnp.array([[-1.0, 1.0]]))
assert not jnp.isfinite(textbook(jnp.array([[0.0, 100.0]]), label))
assert jnp.isnan(jax.grad(softmax_then_log)(jnp.array([[0.0, 200.0]]), label)).any()

# %% [markdown]
# How fast does it get worse? Below, random logits are multiplied by a scale, and the loss and its gradient are compared
# with float64. A cross, in the colour of its formula, is an infinite or NaN result.


# %%
def exact(logits, labels):
    """Mean loss and its gradient in float64, by NumPy."""
    z, rows = np.asarray(logits, np.float64), np.arange(len(labels))
    d = z - z.max(-1, keepdims=True)
    log_p = d - np.log(np.exp(d).sum(-1, keepdims=True))
    gradient = np.exp(log_p)
    gradient[rows, labels] -= 1
    return -log_p[rows, labels].mean(), gradient / len(labels)


def relative_error(value, true):
    return float(np.linalg.norm(np.asarray(value, np.float64) - true) / np.linalg.norm(true))


keys = jax.random.split(jax.random.key(0), 4)
base, labels = jax.random.normal(keys[0], (64, 100)), jax.random.randint(keys[1], (64,), 0, 100)
scales = np.geomspace(0.1, 1000, 9 if FAST else 25)
errors = {name: [] for name in losses}
for name, function in losses.items():
    run = jax.jit(jax.value_and_grad(function))
    for scale in scales:
        logits = base * jnp.float32(scale)
        pairs = zip(run(logits, labels), exact(logits, np.asarray(labels)), strict=True)
        errors[name].append([relative_error(value, true) for value, true in pairs])

worst = np.max(errors["crossent_jax"], 0)
print(f"crossent_jax, worst over the scales: loss {worst[0]:.1e}, gradient {worst[1]:.1e}")
assert (worst < 1e-5).all()
assert not np.isfinite(errors["exp / sum, log"][-1]).any()
assert not np.isfinite(errors["softmax, log"][-1]).any()

# %%
figure, both = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="tight")
styles = {
    "color": (PINK, ORANGE, GREEN, BLUE),
    "linestyle": ("-", "--", "-.", "-"),
    "linewidth": (1.5, 1.5, 1.5, 4),
    "zorder": (3, 3, 3, 2),
}
for column, (axes, what) in enumerate(zip(both, ("loss", "gradient"), strict=True)):
    for (name, values), *style in zip(errors.items(), *styles.values(), strict=True):
        error = np.array(values)[:, column]
        finite = np.isfinite(error)
        style = dict(zip(styles, style, strict=True))
        axes.plot(scales[finite], np.maximum(error[finite], 1e-9), label=name, **style)
        height = 0.3 if name == "exp / sum, log" else 0.1  # two rows of crosses, so that both are seen
        axes.plot(scales[~finite], np.full((~finite).sum(), height), "x", color=style["color"])
    axes.set(xscale="log", yscale="log", ylim=(1e-9, 1), xlabel="standard deviation of the logits")
    axes.set(title=f"Error of the {what} (×: not finite)")
both[0].set_ylabel("relative error against float64")
both[0].legend(fontsize=9, loc="center left")
plt.show()

# %% [markdown]
# `logsumexp − logit` is safe at any scale, with one weakness: it subtracts two numbers of the size of the logits. An
# offset common to all logits changes no probability, but costs it digits. `crossent_jax` subtracts the maximum from both
# first.

# %%
rows = jnp.arange(len(labels))
for offset in (0.0, 1e3, 1e5):
    logits = jnp.round(base * 64) / 64 + offset  # rounded, so that adding the offset is exact
    z = np.asarray(logits, np.float64) - offset
    true = np.log(np.exp(z).sum(-1)) - z[rows, labels]
    plain = jax.nn.logsumexp(logits, -1) - logits[rows, labels]
    ours = crossent_jax.cross_entropy(logits, labels, reduction="none")
    plain_error, our_error = (np.abs(np.asarray(losses, np.float64) - true).max() for losses in (plain, ours))
    print(f"offset {offset:7.0f}: worst row, logsumexp − logit {plain_error:.1e} nats, crossent_jax {our_error:.1e} nats")
assert our_error < 1e-5 < 1e-3 < plain_error

# %% [markdown]
# ## bfloat16 logits
#
# A model in bfloat16 returns logits with 8 significant bits. They carry an error, and nothing can be done about it. But a
# loss that is also *computed* in bfloat16 adds one of its own: its softmax, its logarithm and its mean are rounded to 8
# bits each. Here both compute on the same bfloat16 logits. The loss of `crossent_jax` is float32; the gradient is
# computed in float32 and rounded once, to the dtype of the logits.

# %%
many, classes = jax.random.normal(keys[2], (512, 1000)), jax.random.randint(keys[3], (512,), 0, 1000)
half = (3 * many).astype(jnp.bfloat16)
true_loss, true_gradient = exact(half.astype(jnp.float32), np.asarray(classes))
half_errors = {}
for name, function in {"log_softmax": lambda z, y: -jax.nn.log_softmax(z)[jnp.arange(len(y)), y].mean(), **losses}.items():
    if name in ("log_softmax", "crossent_jax"):
        loss, gradient = jax.jit(jax.value_and_grad(function))(half, classes)
        half_errors[name] = abs(float(loss) - true_loss), relative_error(gradient, true_gradient)
        print(f"{name:13} {loss.dtype.name:8} loss {loss:.6f} (error {half_errors[name][0]:.1e} nats)", end="  ")
        print(f"gradient {gradient.dtype.name} (relative error {half_errors[name][1]:.1e})")
print(f"float64                loss {true_loss:.6f}")
assert half_errors["crossent_jax"][0] < 1e-4 < half_errors["log_softmax"][0]
assert half_errors["crossent_jax"][1] < 2**-8

# %% [markdown]
# ## Masked classes: logits of $-\infty$
#
# An action that is not allowed, a token that must not be produced: its logit is set to $-\infty$, its probability is 0.
# With label smoothing or soft targets the plain formula meets $0 \cdot (-\infty)$ = NaN. Here a masked class with target
# 0 adds 0, and smoothing spreads over the classes that are left.

# %%
logits = jnp.array([[2.0, 1.0, -jnp.inf, 0.0]])
targets = jnp.array([[0.9, 0.1, 0.0, 0.0]])


def plain_soft(logits):
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()


def soft(logits):
    return crossent_jax.soft_cross_entropy(logits, targets)


def smoothed(logits):
    return crossent_jax.cross_entropy(logits, jnp.array([0]), label_smoothing=0.1)


for name, function in {
    "plain, soft targets": plain_soft,
    "soft_cross_entropy": soft,
    "label_smoothing=0.1": smoothed,
}.items():
    loss, gradient = jax.value_and_grad(function)(logits)
    print(f"{name:20} loss {loss:.4f}  gradient {np.asarray(gradient[0]).round(4)}")
assert jnp.isnan(plain_soft(logits)) and jnp.isfinite(soft(logits)) and jnp.isfinite(jax.grad(smoothed)(logits)).all()
without = crossent_jax.cross_entropy(logits[:, jnp.array([0, 1, 3])], jnp.array([0]), label_smoothing=0.1)
assert abs(smoothed(logits) - without) < 1e-6
print(f"{'class 2 cut out':20} loss {without:.4f}, the same")

# %% [markdown]
# ## Ignored rows that hold NaN
#
# Padding may hold anything, NaN too. Multiplying the losses by weights of 0 and 1 gives $0 \cdot$ NaN = NaN. Selecting
# with `jnp.where` mends the value but not the gradient: on the way back a zero still meets the NaN. `where=` and
# `ignore_index=` are exact in both.

# %%
logits = jnp.array([[2.0, 0.0, -1.0], [jnp.nan, jnp.nan, jnp.nan]])
labels_2, mask = jnp.array([0, 0]), jnp.array([True, False])
weights = jnp.array([1.0, 0.0])


def row_losses(logits):
    return -jax.nn.log_softmax(logits)[jnp.arange(2), labels_2]


ways = {
    "loss * weights": lambda z: (row_losses(z) * weights).sum() / weights.sum(),
    "jnp.where(mask, loss, 0)": lambda z: jnp.where(mask, row_losses(z), 0).sum() / mask.sum(),
    "crossent_jax, where=mask": lambda z: crossent_jax.cross_entropy(z, labels_2, where=mask),
}
for name, function in ways.items():
    loss, gradient = jax.value_and_grad(function)(logits)
    print(f"{name:25} loss {loss:.4f}  gradient {np.array2string(np.asarray(gradient), precision=3).replace(chr(10), '')}")
assert jnp.isfinite(gradient).all() and (gradient[1] == 0).all()
assert jnp.isnan(ways["loss * weights"](logits))
assert jnp.isnan(jax.grad(ways["jnp.where(mask, loss, 0)"])(logits)).any()

# %% [markdown]
# A NaN in a row that counts is not hidden: it makes that row's loss NaN, and no other's.
#
# ## A batch with nothing in it
#
# The last microbatch is all padding, and the mean is $0/0$. One NaN gradient is enough to ruin the parameters. Here a
# mean over nothing is 0, with gradient 0. No $\varepsilon$ is added to a denominator for it, so no other mean is changed.

# %%
nothing = jnp.array([False, False])
print("sum / count:        ", row_losses(jnp.ones((2, 3))).sum(where=nothing) / nothing.sum())
loss, gradient = jax.value_and_grad(lambda z: crossent_jax.cross_entropy(z, labels_2, where=nothing))(jnp.ones((2, 3)))
print("crossent_jax, where:", loss, "and gradient", np.unique(gradient))
assert loss == 0 and (gradient == 0).all()
per_row = crossent_jax.cross_entropy(logits, labels_2, reduction="none")
print("both rows counted:  ", per_row)
assert jnp.isfinite(per_row[0]) and jnp.isnan(per_row[1])

# %% [markdown]
# ## A label that is no class
#
# A tokenizer and a model disagree by one, or a -100 from another framework slips through. NumPy-style indexing wraps
# negative labels and JAX clamps labels that are too large: the model is silently trained towards another class. Here such
# a row has a NaN loss, which shows, and a zero gradient, which does no harm. `guards.values()` names the place.

# %%
logits = jnp.array([[2.0, 0.0, -1.0]] * 3)
for wrong in (-1, 3):
    given = jnp.array([0, 1, wrong])
    indexed = -jax.nn.log_softmax(logits)[jnp.arange(3), given]
    ours = crossent_jax.cross_entropy(logits, given, reduction="none")
    print(
        f"label {wrong:2d}: indexing {np.asarray(indexed).round(3)} (as class 2), crossent_jax {np.asarray(ours).round(3)}"
    )
    assert jnp.allclose(indexed[2], -jax.nn.log_softmax(logits)[2, 2])
    assert jnp.isnan(ours[2]) and jnp.isfinite(ours[:2]).all()
gradient = jax.grad(lambda z: crossent_jax.cross_entropy(z, given, reduction="sum"))(logits)
assert (gradient[2] == 0).all() and jnp.isfinite(gradient).all()
try:
    with crossent_jax.guards.values():
        crossent_jax.cross_entropy(logits, given)
    raise AssertionError("not refused")
except ValueError as error:
    print("guards.values():", error)

# %% [markdown]
# ## Focal loss and Poly-1 near certainty
#
# Focal loss multiplies by $(1 - p)^\gamma$. For a confident, right answer $p$ rounds to 1. Then $1 - p$ has lost its
# digits, and for $\gamma < 1$ the derivative of the power at 0 is infinite: the gradient is NaN exactly for the examples
# that are learned best.


# %%
def plain_focal(logits):
    log_p = jax.nn.log_softmax(logits)[0]
    return -((1 - jnp.exp(log_p)) ** 0.5) * log_p


def focal(logits):
    return crossent_jax.cross_entropy(logits[None], jnp.array([0]), focal_gamma=0.5)


def poly(logits):
    return crossent_jax.cross_entropy(logits[None], jnp.array([0]), poly_epsilon=1.0)


print("margin       plain focal   crossent_jax        float64   slope: plain  crossent_jax       float64        Poly-1")
for margin in (2.0, 8.0, 14.0, 30.0, 200.0):
    logits = jnp.array([margin, 0.0])
    nll, miss = np.log1p(np.exp(-margin)), 1 / (1 + np.exp(margin))
    true, slope = miss**0.5 * nll, -(miss**0.5) * (0.5 * (1 - miss) * nll + miss)
    values = plain_focal(logits), focal(logits), true
    slopes = jax.grad(plain_focal)(logits)[0], jax.grad(focal)(logits)[0], slope
    print(f"{margin:6.0f}", *(f"{float(value):14.4e}" for value in values), *(f"{float(s):13.4e}" for s in slopes), end=" ")
    print(f"{float(poly(logits)):13.4e}")
    assert jnp.isfinite(jax.grad(focal)(logits)).all() and jnp.isfinite(jax.grad(poly)(logits)).all()
    assert abs(focal(logits) - true) < 1e-6 and abs(slopes[1] - slope) < 1e-6
assert jnp.isnan(slopes[0])

# %% [markdown]
# The limit of float32 remains: a loss below $10^{-7}$ is right to about $10^{-7}$ in absolute terms and may print as 0.
#
# ## A small KL divergence
#
# Policy optimisation and distillation watch KL divergences near 0, where it is of second order: logits that differ by
# $10^{-5}$ have a KL of about $10^{-10}$. The plain formula $\sum t (\log t - \log p)$ adds terms of size $10^{-5}$, of
# either sign, rounded to $10^{-8}$ or so, and what remains is noise, often a negative number. `kl_divergence` sums
# $p - t - t \log (p / t)$ instead, each term of which is non-negative, and takes it from the series of $e^x - 1 - x$ where
# $p$ and $t$ are close.


# %%
def plain_kl(logits, teacher_logits):
    log_p, log_t = jax.nn.log_softmax(logits), jax.nn.log_softmax(teacher_logits)
    return (jnp.exp(log_t) * (log_t - log_p)).sum(-1).mean()


def exact_kl(logits, teacher_logits):
    """KL(t ‖ p) = log E_t[exp d], d the logits' difference less its mean under t: float64, and nothing cancels."""
    u, w = (np.asarray(z, np.float64) for z in (logits, teacher_logits))
    t = np.exp(w - w.max(-1, keepdims=True))
    t /= t.sum(-1, keepdims=True)
    d = u - w
    d -= (t * d).sum(-1, keepdims=True)
    return np.log1p((t * np.expm1(d)).sum(-1)).mean()


noise = jax.random.normal(keys[3], (64, 100))
differences = np.geomspace(1e-5, 3, 8 if FAST else 24)
sizes, kl_errors = [], {"plain formula": [], "crossent_jax": []}
for difference in differences:
    student = base + jnp.float32(difference) * noise
    sizes.append(exact_kl(student, base))
    for name, function in {"plain formula": plain_kl, "crossent_jax": crossent_jax.kl_divergence}.items():
        kl_errors[name].append(abs(float(function(student, base)) - sizes[-1]) / sizes[-1])
print(f"KL = {sizes[0]:.2e}: relative error of", *(f"{name} {error[0]:.1e}" for name, error in kl_errors.items()), sep="  ")
print("KL of identical logits:", crossent_jax.kl_divergence(base, base))
assert sizes[0] < 1e-10 and max(kl_errors["crossent_jax"]) < 1e-3 and kl_errors["plain formula"][0] > 0.1
assert crossent_jax.kl_divergence(base, base) == 0

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(sizes, kl_errors["plain formula"], "--o", color=ORANGE, markersize=4, label="Σ t (log t − log p)")
axes.plot(sizes, kl_errors["crossent_jax"], "-o", color=BLUE, markersize=4, label="crossent_jax.kl_divergence")
axes.axhline(1, color="black", linewidth=1, linestyle=":", label="100 %: no digit is right")
axes.set(xscale="log", yscale="log", title="The smaller the divergence, the worse the plain formula")
axes.set(xlabel="KL(t‖p) (nats)", ylabel="relative error against float64")
axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# ## Probabilities of 0
#
# Arrays of probabilities, from counts for example, hold zeros. $0 \log 0$ is 0 by its limit, and NaN by the plain
# formula. Choosing 0 with `jnp.where` after the logarithm mends the value and leaves the gradient NaN. Adding $10^{-8}$
# inside the logarithm gives a wrong number where infinity is the answer. `kl` takes arrays, by name, and its gradients
# are the limits.


# %%
def plain(q):
    return (p * (jnp.log(p) - jnp.log(q))).sum()


def selected(q):
    return jnp.where(p > 0, p * (jnp.log(p) - jnp.log(q)), 0).sum()


def with_epsilon(q):
    return (p * (jnp.log(p + 1e-8) - jnp.log(q + 1e-8))).sum()


def ours(q):
    return crossent_jax.kl(p=p, q=q)


p, q = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.75, 0.0])
impossible = jnp.array([0.0, 1.0, 0.0])
true = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
for name, function in {"plain": plain, "jnp.where": selected, "1e-8": with_epsilon, "crossent_jax.kl": ours}.items():
    print(
        f"{name:16} KL {function(q):.4f}, gradient {jax.grad(function)(q)}; where q = 0 < p: KL {function(impossible):.4f}"
    )
print(f"{'float64':16} KL {true:.4f}, gradient {np.array([-0.5 / 0.25, -0.5 / 0.75, 0])}; where q = 0 < p: KL inf")
assert abs(ours(q) - true) < 1e-6 and jnp.isnan(plain(q)) and ours(impossible) == jnp.inf
assert (
    jnp.isfinite(jax.grad(ours)(q)).all()
    and jnp.isnan(jax.grad(selected)(q)).any()
    and jnp.isfinite(with_epsilon(impossible))
)

# %% [markdown]
# The documentation's page Numerics (`docs/numerics.md`) lists these promises, and the test suite holds the library to them.
