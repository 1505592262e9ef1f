# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/crossent-jax/crossent_jax/blob/main/notebooks/05_divergences_distillation.ipynb)
#
# # Divergences and distillation
#
# A divergence says how far a student's distribution $p$ is from a teacher's $t$. Here you see what the choice of one
# does: which way round a KL divergence is taken, how the kinds grow, and what a temperature changes. Then a small network
# learns handwritten digits from a larger one, and two language-model heads are compared without holding the logits of
# either.

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
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"  # told apart with any colour vision

# %% [markdown]
# ## Which way round?
#
# The name or the keyword says it, here and in the whole library: the student's logits come first, the teacher's second.
#
# $$\texttt{kl\_divergence(student, teacher)} = \mathrm{KL}(t \,\|\, p) = \sum_j t_j (\log t_j - \log p_j)$$
#
# $$\texttt{reverse\_kl\_divergence(student, teacher)} = \mathrm{KL}(p \,\|\, t) = \sum_j p_j (\log p_j - \log t_j)$$
#
# The first is infinite where $p_j = 0 < t_j$, the second where $t_j = 0 < p_j$.

# %%
teacher, student = jnp.log(jnp.array([[0.5, 0.5, 0.0]])), jnp.log(jnp.array([[0.4, 0.4, 0.2]]))
forward, reverse = crossent_jax.kl_divergence(student, teacher), crossent_jax.reverse_kl_divergence(student, teacher)
print(f"KL(t‖p) = {forward:.4f}, KL(p‖t) = {reverse}: the student can say what the teacher never says")
assert abs(forward - np.log(0.5 / 0.4)) < 1e-5 and reverse == jnp.inf

# %% [markdown]
# The direction matters most where the student cannot be like the teacher. Take a teacher with two peaks, and a student
# that is a normal distribution on the same grid, with a mean and a width to learn. Forward KL punishes a student that is
# nearly 0 where the teacher is not: it covers both peaks ("mass-covering"). Reverse KL punishes a student that is where
# the teacher is not: it settles on one peak ("mode-seeking"), here the one that is nearer to its start.

# %%
grid = jnp.linspace(-16, 16, 641)


def normal_logits(mean, log_width):
    return -0.5 * ((grid - mean) * jnp.exp(-log_width)) ** 2


two_peaks = jnp.logaddexp(jnp.log(0.4) + normal_logits(-4.0, 0.0), jnp.log(0.6) + normal_logits(3.0, 0.0))


@partial(jax.jit, static_argnums=0)
def fitted(kind):
    """Mean and width of the student after 400 steps of Adam from N(1, 2)."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 400))

    def step(carry, _):
        parameters, state = carry
        gradient = jax.grad(lambda x: crossent_jax.divergence(normal_logits(*x), two_peaks, kind=kind))(parameters)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), None

    start = (jnp.float32(1), jnp.log(2.0))
    (parameters, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=400)
    return parameters


fits = {kind: fitted(kind) for kind in ("forward_kl", "reverse_kl")}
for kind, (mean, log_width) in fits.items():
    print(f"{kind:10}  mean {mean:6.3f}  width {jnp.exp(log_width):.3f}")
t = jax.nn.softmax(two_peaks)
teacher_mean = (t * grid).sum()
teacher_width = jnp.sqrt((t * (grid - teacher_mean) ** 2).sum())
print(f"teacher     mean {teacher_mean:6.3f}  width {teacher_width:.3f} (its own moments: what forward KL matches)")
assert abs(fits["forward_kl"][0] - teacher_mean) < 0.02 and abs(jnp.exp(fits["forward_kl"][1]) - teacher_width) < 0.02
assert abs(fits["reverse_kl"][0] - 3) < 0.1 and abs(jnp.exp(fits["reverse_kl"][1]) - 1) < 0.1

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.fill_between(grid, t / (grid[1] - grid[0]), color="0.8", label="teacher t")
lines = {
    "forward_kl": (ORANGE, "--", "student, forward KL(t‖p)"),
    "reverse_kl": (BLUE, "-", "student, reverse KL(p‖t)"),
}
for kind, (color, line, name) in lines.items():
    axes.plot(grid, jax.nn.softmax(normal_logits(*fits[kind])) / (grid[1] - grid[0]), line, color=color, label=name)
axes.set(title="The student that each direction leads to", xlabel="x", ylabel="probability density", xlim=(-12, 12))
axes.legend(loc="upper left", fontsize=9)
plt.show()

# %% [markdown]
# ## The kinds, as two distributions separate
#
# Student and teacher are two unit normals on a fine grid, a distance $d$ apart. Closed forms are known: both KLs are
# $d^2 / 2$, Jeffreys' divergence is their sum, Rényi's of order $\tfrac12$ is $d^2 / 4$, total variation is
# $2 \Phi(d / 2) - 1$. Those without a bound give a strong gradient far away. Jensen–Shannon (at most $\ln 2$) and total
# variation (at most 1) level off, and a far student learns little from them.

# %%
fine = jnp.linspace(-12, 12, 1201)
distances = jnp.geomspace(0.05, 8, 12 if FAST else 40)
right, left = (-0.5 * (fine - mean[:, None]) ** 2 for mean in (distances / 2, -distances / 2))  # logits
kinds = {
    "Jeffreys": {"kind": "jeffreys"},
    "forward KL": {"kind": "forward_kl"},
    "Rényi, order ½": {"kind": "renyi", "order": 0.5},
    "total variation": {"kind": "total_variation"},
    "Jensen–Shannon": {"kind": "js"},
}
values = {name: crossent_jax.divergence(right, left, reduction="none", **options) for name, options in kinds.items()}
normal_cdf = jax.scipy.stats.norm.cdf(distances / 2)
closed = {
    "Jeffreys": distances**2,
    "forward KL": distances**2 / 2,
    "Rényi, order ½": distances**2 / 4,
    "total variation": 2 * normal_cdf - 1,
}
for name, true in closed.items():
    worst = jnp.max(jnp.abs(values[name] / true - 1))
    print(f"{name:16} largest relative difference from the closed form {worst:.1e}")
    assert worst < 2e-3  # what the grid loses
assert (values["Jensen–Shannon"] <= jnp.log(2.0) + 1e-6).all() and (values["total variation"] <= 1 + 1e-6).all()

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, value), color, line in zip(
    values.items(), (PINK, ORANGE, SKY, BLUE, GREEN), ("-", "--", "-.", "-", "--"), strict=True
):
    axes.plot(distances, value, line, color=color, linewidth=2, label=name)
axes.axhline(np.log(2), color="black", linewidth=1, linestyle=":", label="ln 2")
axes.set(
    xscale="log", yscale="log", title="Divergences of N(−d/2, 1) and N(d/2, 1)", xlabel="distance d (standard deviations)"
)
axes.set_ylabel("divergence (nats; total variation: no unit)")
axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# ## Temperature and $T^2$
#
# Dividing both sides' logits by $T$ before the softmax shows the student what the teacher thinks of the unlikely classes.
# The gradient shrinks as $1 / T^2$: one $T$ from the chain rule, one since the probabilities are closer. With
# `scale_by_temperature_squared=True` it keeps its size, and the weight of hard labels beside it its meaning.

# %%
keys = jax.random.split(jax.random.key(0), 8)
u, w = 2 * jax.random.normal(keys[0], (256, 10)), 2 * jax.random.normal(keys[1], (256, 10))


def gradient_norm(temperature, scaled):
    gradient = jax.grad(partial(crossent_jax.kl_divergence, reduction="sum", scale_by_temperature_squared=scaled), 0)
    return jnp.linalg.norm(gradient(u, w, temperature=temperature))


norms = jax.jit(jax.vmap(gradient_norm, in_axes=(0, None)), static_argnums=1)
temperatures = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
for temperature, *pair in zip(temperatures, norms(temperatures, False), norms(temperatures, True), strict=True):
    print(f"T = {temperature:2.0f}   gradient of KL {pair[0]:8.4f}   of T² KL {pair[1]:8.4f}")
centred = (u - u.mean(-1, keepdims=True)) - (w - w.mean(-1, keepdims=True))
limit = jnp.linalg.norm(centred) / 10  # (u - w) / v, each less its mean: Hinton et al. 2015, section 2.1
print(f"limit for large T: {limit:.4f}, that of half the mean square of the logits' difference")
assert abs(norms(temperatures, True)[-1] / limit - 1) < 0.05

# %% [markdown]
# ## Distilling a digit classifier
#
# The teacher has 128 hidden units and learns from all training images of scikit-learn's digits. A student has 16, and
# only 100 of those images. It learns from their labels (hard), from the teacher's opinion of the same images at $T = 3$
# (soft), or from both. The students of each loss, which differ in their start, are trained at once by `vmap`. They are
# scored by plain held-out negative log-likelihood: never by the training losses, which are not comparable.

# %%
pixels, digits = load_digits(return_X_y=True)
split = train_test_split(pixels.astype(np.float32) / 16, digits.astype(np.int32), test_size=450, random_state=0)
train_x, test_x, train_y, test_y = map(jnp.asarray, split)


def initial(key, hidden):
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (64, hidden)) / 8,
        "b1": jnp.zeros(hidden),
        "w2": jax.random.normal(second, (hidden, 10)) / np.sqrt(hidden),
        "b2": jnp.zeros(10),
    }


def network(parameters, x):
    hidden = jax.nn.relu(x @ parameters["w1"] + parameters["b1"])
    return hidden @ parameters["w2"] + parameters["b2"]


def trained(loss, parameters, steps):
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def step(carry, _):
        parameters, state = carry
        updates, state = optimizer.update(jax.grad(loss)(parameters), state)
        return (optax.apply_updates(parameters, updates), state), None

    return jax.lax.scan(step, (parameters, optimizer.init(parameters)), length=steps)[0][0]


def scores(parameters):
    stats = crossent_jax.row_stats(network(parameters, test_x), test_y)
    return stats.nll.mean(), (stats.argmax == test_y).mean()


def teacher_loss(parameters):
    return crossent_jax.cross_entropy(network(parameters, train_x), train_y)


steps, starts = (30, 2) if FAST else (300, 8)
teacher = jax.jit(lambda key: trained(teacher_loss, initial(key, 128), steps))(keys[2])
print("teacher: held-out NLL {:.3f} nats, accuracy {:.1%}".format(*scores(teacher)))

# %%
few_x, few_y = train_x[:100], train_y[:100]
opinion = network(teacher, few_x)
distill = partial(
    crossent_jax.kl_divergence, teacher_logits=opinion, temperature=3.0, scale_by_temperature_squared=True, labels=few_y
)
weights = {"hard": 1.0, "hard + soft": 0.3, "soft": 0.0}  # of the labels


@jax.jit
def students(label_weight):
    def one(key):
        loss = lambda parameters: distill(network(parameters, few_x), label_weight=label_weight)  # noqa: E731
        return scores(trained(loss, initial(key, 16), steps))

    return jax.vmap(one)(jax.random.split(keys[3], starts))


results = {name: students(jnp.float32(weight)) for name, weight in weights.items()}
for name, (nll, accuracy) in results.items():
    spread = f"{nll.min():.3f} to {nll.max():.3f}"
    print(f"{name:12} held-out NLL {nll.mean():.3f} nats ({spread}), accuracy {accuracy.mean():.1%}")
hard = crossent_jax.cross_entropy(opinion, few_y)
assert abs(distill(opinion, label_weight=1.0) - hard) < 1e-5  # weight 1 is the cross-entropy of the labels alone
assert students._cache_size() == 1  # the weight is traced: three losses, one compilation
if not FAST:
    assert results["soft"][0].mean() < results["hard"][0].mean()

# %%
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for row, ((nll, _), color) in enumerate(zip(results.values(), (ORANGE, GREEN, BLUE), strict=True)):
    axes.plot(nll, np.full(len(nll), row), "o", color=color, alpha=0.7)
    axes.plot(nll.mean(), row, "|", color="black", markersize=24)
axes.axvline(scores(teacher)[0], color="black", linestyle=":", linewidth=1, label="teacher")
axes.set(yticks=range(3), yticklabels=list(results), ylim=(-0.5, 2.5), xlim=(0, None), ylabel="what the student learns from")
axes.set(title=f"{starts} students per loss (bar: their mean)", xlabel="held-out negative log-likelihood (nats)")
axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# ## Two heads, and the logits of neither
#
# With a vocabulary, logits are the largest arrays of a distillation step, and there are two of them. `linear_divergence`
# takes the hidden states and the head of each model, which may have different widths, and goes through them in chunks of
# rows. Value and gradients are those of the whole logits.

# %%
rows, vocabulary = (256, 2048) if FAST else (1024, 8192)
hidden, head = jax.random.normal(keys[4], (rows, 64)), jax.random.normal(keys[5], (64, vocabulary)) / 4
teacher_hidden, teacher_head = jax.random.normal(keys[6], (rows, 128)), jax.random.normal(keys[7], (128, vocabulary)) / 4


def whole(hidden, head):
    return crossent_jax.kl_divergence(hidden @ head, teacher_hidden @ teacher_head, stop_teacher_gradient=True)


def chunked(hidden, head):
    return crossent_jax.linear_divergence(
        hidden, head, teacher_hidden=teacher_hidden, teacher_head=teacher_head, stop_teacher_gradient=True
    )


def compiled(function, *args):
    """The program, and the MiB that it needs beside its arguments and results: None where the backend does not say."""
    program = jax.jit(function).lower(*args).compile()
    analysis = program.memory_analysis()
    return program, None if analysis is None else analysis.temp_size_in_bytes / 2**20


with jax.default_matmul_precision("highest"):
    programs, memory = zip(*(compiled(jax.value_and_grad(f, (0, 1)), hidden, head) for f in (whole, chunked)), strict=True)
outcomes = [program(hidden, head) for program in programs]
for name, (value, _), megabytes in zip(("whole logits", "linear_divergence"), outcomes, memory, strict=True):
    print(f"{name:18} KL {value:.5f} nats", "" if megabytes is None else f"temporary memory {megabytes:7.1f} MiB")
print(f"one array of logits takes {rows * vocabulary * 4 / 2**20:.1f} MiB")
(value, gradients), (chunked_value, chunked_gradients) = outcomes
assert abs(chunked_value / value - 1) < 1e-4
for ours, other in zip(chunked_gradients, gradients, strict=True):
    assert jnp.linalg.norm(ours - other) < 1e-3 * jnp.linalg.norm(other)
if None not in memory and not FAST:
    assert memory[1] < memory[0]

# %% [markdown]
# ### A teacher that was run before
#
# Storing all logits of a teacher takes more room than its corpus. Its $k$ likeliest tokens and their log-probabilities
# are often enough. `top_k_tail="bucket"` compares $k + 1$ outcomes: the $k$ tokens and "any other". Merging outcomes can
# only lower a KL divergence, so the bucket's value grows with $k$ up to the full one. `"renormalize"` pretends that the
# teacher never says anything else, which is another teacher: its value has no such order.

# %%
log_t = jax.nn.log_softmax(teacher_hidden @ teacher_head)
full = crossent_jax.linear_divergence(hidden, head, teacher_logits=log_t)
previous = 0.0
for k in (64,) if FAST else (1, 8, 64, 512):
    log_probs, indices = jax.lax.top_k(log_t, k)
    top_k = {
        tail: crossent_jax.linear_divergence(hidden, head, teacher_top_k=(indices, log_probs), top_k_tail=tail)
        for tail in ("bucket", "renormalize")
    }
    mass, share = jnp.exp(log_probs).sum(-1).mean(), 2 * k / vocabulary
    print(f"k = {k:3d}: teacher's mass {mass:6.1%}, stored numbers {share:6.2%}", end="")
    print("".join(f", {tail} {divergence:.4f}" for tail, divergence in top_k.items()))
    assert previous < top_k["bucket"] < full + 1e-3
    previous = top_k["bucket"]
print(f"all {vocabulary} classes: {full:.4f} nats")

# %% [markdown]
# `docs/divergences.md` says whose KL is whose in other libraries, and has contrastive losses, which share this machinery.
