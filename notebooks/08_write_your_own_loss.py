# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/crossent-jax/crossent_jax/blob/main/notebooks/08_write_your_own_loss.ipynb)
#
# # Write your own loss
#
# Most losses of a softmax need only a few numbers of each row: its log-sum-exp, the label's negative log-likelihood, its
# entropy. Here you write losses in plain `jax.numpy` on these numbers, let `linear_loss` compute them without holding the
# logits, and add a divergence from one line of mathematics. Each gradient is checked against finite differences in
# float64.

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
import optax

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # told apart with any colour vision
keys = jax.random.split(jax.random.key(0), 8)

# %% [markdown]
# ## Statistics of a row
#
# `row_stats` returns all of them, in nats and in float32:
#
# | field | meaning |
# |---|---|
# | `lse` | $\log \sum_j e^{z_j}$ |
# | `nll` | $-\log p_y$, the negative log-likelihood of the label |
# | `entropy` | $-\sum_j p_j \log p_j$ |
# | `ce_prior` | $-\frac1v \sum_j \log p_j$, the cross-entropy of the uniform distribution |
# | `target_probability` | $p_y$ |
# | `target_mass` | 1 for an integer label |
# | `argmax` | the lowest index of the largest logit; the only one without a derivative |

# %%
logits, labels = 2 * jax.random.normal(keys[0], (4, 6)), jnp.array([0, 5, 2, 2])
stats = crossent_jax.row_stats(logits, labels)
for name, field in stats._asdict().items():
    print(f"{name:19} {np.asarray(field).round(4)}")

z = np.asarray(logits, np.float64)
log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
assert np.allclose(stats.lse, np.log(np.exp(z).sum(-1)), atol=1e-5)
assert np.allclose(stats.nll, -log_p[np.arange(4), labels], atol=1e-5)
assert np.allclose(stats.entropy, -(np.exp(log_p) * log_p).sum(-1), atol=1e-5)
assert np.allclose(stats.ce_prior, -log_p.mean(-1), atol=1e-5)
assert (np.asarray(stats.argmax) == z.argmax(-1)).all()

# %% [markdown]
# ## A loss on them
#
# The confidence penalty (Pereyra et al. 2017) rewards entropy: $-\log p_y - \beta H(p)$. It is one line, and JAX
# differentiates it. The library has it as an option too, so the two can be compared. Rows that are masked have statistics
# 0 and an exactly zero gradient, whatever they hold; divide by the rows that count.


# %%
def confidence_penalised(logits, labels, mask, beta=0.1):
    stats = crossent_jax.row_stats(logits, labels, where=mask)
    return (stats.nll - beta * stats.entropy).sum() / jnp.maximum(mask.sum(), 1)


mask = jnp.array([True, True, True, False])
with_nan = logits.at[3].set(jnp.nan)
value, gradient = jax.value_and_grad(confidence_penalised)(with_nan, labels, mask)
built_in = crossent_jax.cross_entropy(with_nan, labels, where=mask, entropy_weight=0.1)
print(f"own loss {value:.6f}, option entropy_weight {built_in:.6f}")
print("gradient of the masked row, which holds NaN:", np.asarray(gradient[3]))
assert abs(value - built_in) < 1e-6 and (gradient[3] == 0).all() and jnp.isfinite(gradient).all()

# %% [markdown]
# ### Is the gradient right?
#
# Write the loss once more, without care for speed, in NumPy's float64, and take central differences of it. Their error is
# about $10^{-9}$, far below that of float32, so the comparison measures the float32 gradient.


# %%
def finite_differences(function, x, step=1e-5):
    """Gradient of a NumPy function at x, in float64, by central differences."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        gradient[index] = (function(x + shift) - function(x - shift)) / (2 * step)
    return gradient


def plain(z, beta=0.1):
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    nll, entropy = -log_p[np.arange(len(z)), labels[: len(z)]], -(np.exp(log_p) * log_p).sum(-1)
    return (nll - beta * entropy).mean()


worst = np.abs(gradient[:3] - finite_differences(plain, logits[:3])).max()
print(f"largest difference of a gradient entry: {worst:.1e}")
assert worst < 1e-5

# %% [markdown]
# ## The same from hidden states and a head
#
# With a vocabulary, logits are the largest array of a training step. `linear_loss` takes hidden states, the head, the
# labels and a function of *one row*: its statistics, all scalars. It maps the function over the rows, computes its
# gradient while a chunk of logits exists, and computes only the statistics that the function reads.

# %%
rows, width, vocabulary = (512, 32, 2048) if FAST else (2048, 64, 8192)
hidden = jax.random.normal(keys[1], (rows, width))
head = jax.random.normal(keys[2], (width, vocabulary)) / 4
tokens = jax.random.randint(keys[3], (rows,), 0, vocabulary)


def penalty(stats):
    return stats.nll - 0.1 * stats.entropy


def on_logits(hidden, head):
    return penalty(crossent_jax.row_stats(hidden @ head, tokens)).mean()


def linear(hidden, head):
    return crossent_jax.linear_loss(penalty, hidden, head, tokens)


def naive(hidden, head):
    log_p = jax.nn.log_softmax(hidden @ head)
    return -(log_p[jnp.arange(rows), tokens] - 0.1 * (jnp.exp(log_p) * log_p).sum(-1)).mean()


def compiled(function, *args):
    """The program, and the MiB that it needs beside its arguments and results: None where the backend does not say."""
    program = jax.jit(function).lower(*args).compile()
    analysis = program.memory_analysis()
    return program, None if analysis is None else analysis.temp_size_in_bytes / 2**20


memory, values = {}, {}
with jax.default_matmul_precision("highest"):
    for name, function in {"naive formula": naive, "row_stats": on_logits, "linear_loss": linear}.items():
        program, memory[name] = compiled(jax.value_and_grad(function, (0, 1)), hidden, head)
        values[name] = program(hidden, head)
for name, (value, _) in values.items():
    megabytes = "not reported here" if memory[name] is None else f"{memory[name]:6.1f} MiB"
    print(f"{name:14} loss {value:.5f}, temporary memory of value and gradients: {megabytes}")
print(f"the logits take {rows * vocabulary * 4 / 2**20:.1f} MiB")
for name in ("row_stats", "linear_loss"):
    assert abs(values[name][0] / values["naive formula"][0] - 1) < 1e-4
    for ours, other in zip(values[name][1], values["naive formula"][1], strict=True):
        assert jnp.linalg.norm(ours - other) < 1e-3 * jnp.linalg.norm(other)
if None not in memory.values() and not FAST:
    assert memory["linear_loss"] < memory["naive formula"]

# %%
vocabularies = [1024, 2048] if FAST else [1024, 2048, 4096, 8192, 16384]
needs = {"naive": [], "linear_loss": []}
for size in vocabularies:
    shapes = jax.ShapeDtypeStruct((rows, width), jnp.float32), jax.ShapeDtypeStruct((width, size), jnp.float32)
    for name, function in {"naive": naive, "linear_loss": linear}.items():
        needs[name].append(compiled(jax.grad(function, (0, 1)), *shapes)[1])  # never run

if None not in needs["naive"] + needs["linear_loss"]:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(vocabularies, needs["naive"], "--o", color=ORANGE, label="naive formula on whole logits")
    axes.plot(vocabularies, needs["linear_loss"], "-o", color=BLUE, label="linear_loss")
    logits_size = [rows * size * 4 / 2**20 for size in vocabularies]
    axes.plot(vocabularies, logits_size, ":", color="black", label="the logits alone")
    axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="temporary memory (MiB)", xticks=vocabularies)
    axes.set(title=f"Gradient of a loss of one's own: {rows} rows, {width} features, float32")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.legend(fontsize=9)
    plt.show()

# %% [markdown]
# ## Numbers of one's own for each row
#
# A clipped policy loss, as PPO and GRPO use it, needs two more numbers per token: its advantage $A$ and its
# log-probability when it was sampled. With the ratio $r = p_y / p_y^{\text{old}}$ the loss is $-\min(r A,\
# \mathrm{clip}(r, 1 - c, 1 + c)\, A)$. Such arrays follow the labels, as `row_args`, and the function gets its row's
# entry of each. `where` leaves out the prompt and the padding.


# %%
def clipped_policy(stats, advantage, old_log_prob):
    ratio = jnp.exp(-stats.nll - old_log_prob)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)


answers, length, few = 4, 6, 10
states = jax.random.normal(keys[4], (answers, length, 8))
policy = jax.random.normal(keys[5], (8, few)) / 2
sampled = jax.random.randint(keys[6], (answers, length), 0, few)
in_answer = jnp.arange(length) >= jnp.array([[1], [2], [2], [4]])
advantages = jnp.broadcast_to(jnp.array([[1.0], [-1.0], [0.5], [-0.5]]), sampled.shape)
old = crossent_jax.linear_token_log_probs(states, policy + 0.1 * jax.random.normal(keys[7], policy.shape), sampled)


def policy_loss(states, policy):
    return crossent_jax.linear_loss(clipped_policy, states, policy, sampled, advantages, old, where=in_answer)


def plain_policy_loss(policy):
    z = np.asarray(states, np.float64) @ policy
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    ratio = np.exp(np.take_along_axis(log_p, np.asarray(sampled)[..., None], -1)[..., 0] - np.asarray(old, np.float64))
    gain = np.asarray(advantages, np.float64)
    losses = -np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain)
    return losses[np.asarray(in_answer)].mean()


with jax.default_matmul_precision("highest"):
    value, (to_states, to_policy) = jax.value_and_grad(policy_loss, (0, 1))(states, policy)
worst = np.abs(to_policy - finite_differences(plain_policy_loss, policy)).max()
print(f"loss {value:.6f}, float64 {plain_policy_loss(np.asarray(policy, np.float64)):.6f}")
print(f"largest difference of a gradient entry from finite differences: {worst:.1e}")
print("gradient is 0 in every masked position:", bool((to_states[~in_answer] == 0).all()))
assert worst < 1e-4 and (to_states[~in_answer] == 0).all()
assert abs(value - plain_policy_loss(np.asarray(policy, np.float64))) < 1e-5

# %% [markdown]
# Pass what changes from step to step as `row_args` (or as arrays that the function closes over, inside your own
# `jax.jit`), and define the function once. Then a training step compiles once: below, three steps with new data and one
# compiled program.


# %%
@jax.jit
def train_step(policy, states, sampled, advantages, old, mask):
    def loss(policy):
        return crossent_jax.linear_loss(clipped_policy, states, policy, sampled, advantages, old, where=mask)

    value, gradient = jax.value_and_grad(loss)(policy)
    return policy - 0.5 * gradient, value


improved = policy
for number in range(3):
    improved, value = train_step(improved, states + 0.01 * number, sampled, advantages, old, in_answer)
    print(f"step {number}: loss {value:.4f}, compiled programs {train_step._cache_size()}")
assert train_step._cache_size() == 1

# %% [markdown]
# ## A divergence of one's own
#
# `divergence(kind=...)` also takes an integrand $\varphi(\log p, \log t)$, a function of arrays, and sums it over the
# classes. The derivatives are JAX's. As an example the squared Hellinger distance, $\frac12 \sum_j (\sqrt{p_j} -
# \sqrt{t_j})^2$:


# %%
def hellinger(log_p, log_t):
    return 0.5 * jnp.square(jnp.exp(log_p / 2) - jnp.exp(log_t / 2))


def plain_hellinger(z):
    p, t = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (z, np.asarray(teacher, np.float64)))
    return 0.5 * np.square(np.sqrt(p) - np.sqrt(t)).sum(-1).mean()


student, teacher = jax.random.normal(keys[0], (4, 6)), jax.random.normal(keys[1], (4, 6))
value, gradient = jax.value_and_grad(lambda z: crossent_jax.divergence(z, teacher, kind=hellinger))(student)
worst = np.abs(gradient - finite_differences(plain_hellinger, student)).max()
print(f"Hellinger² {value:.6f}, float64 {plain_hellinger(np.asarray(student, np.float64)):.6f}, gradient within {worst:.1e}")
assert abs(value - plain_hellinger(np.asarray(student, np.float64))) < 1e-6 and worst < 1e-5

one_hot = jnp.array([[0.0, -jnp.inf, -jnp.inf]])
opposite = jnp.array([[-jnp.inf, 0.0, -jnp.inf]])
print("of two distributions without a common class:", crossent_jax.divergence(one_hot, opposite, kind=hellinger))
assert abs(crossent_jax.divergence(one_hot, opposite, kind=hellinger) - 1) < 1e-6

# %% [markdown]
# `linear_divergence` takes the same function, and mask, soft cap and temperature go with it. Near zero your integrand
# keeps as many digits as you write it with: $\sqrt{p} - \sqrt{t}$ above is a difference of rounded numbers. The named
# kinds are written so that they keep theirs.
#
# ## A temperature that is learned
#
# Scalar options may be traced arrays, with exact gradients. Here a classifier is overconfident by a factor of 3: labels
# are drawn from $\mathrm{softmax}(z)$ and it returns $3 z$. Minimising the cross-entropy over the temperature alone finds
# the factor again, within what 4000 labels tell. A traced temperature needs no compilation per value.

# %%
true_logits = 2 * jax.random.normal(keys[2], (4000, 5))
drawn = jax.random.categorical(keys[3], true_logits)
overconfident = 3 * true_logits


@jax.jit
def nll(log_temperature):
    return crossent_jax.cross_entropy(overconfident, drawn, temperature=jnp.exp(log_temperature))


optimizer = optax.adam(0.1)
log_temperature, trace = jnp.float32(0), []
state = optimizer.init(log_temperature)
for _ in range(60):
    value, gradient = jax.value_and_grad(nll)(log_temperature)
    trace.append((float(jnp.exp(log_temperature)), float(value)))
    updates, state = optimizer.update(gradient, state)
    log_temperature = optax.apply_updates(log_temperature, updates)
print(f"temperature {trace[0][0]:.2f} -> {trace[-1][0]:.3f}, loss {trace[0][1]:.4f} -> {trace[-1][1]:.4f} nats")


def plain_nll(log_temperature):
    z = np.asarray(overconfident, np.float64) / np.exp(log_temperature[0])
    return (np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), drawn]).mean()


slope = jax.grad(nll)(jnp.float32(0.5))
difference = finite_differences(plain_nll, np.array([0.5]))[0]
print(f"slope at log T = 0.5: {slope:.6f}, finite differences in float64 {difference:.6f}")
assert abs(trace[-1][0] - 3) < 0.3 and abs(slope - difference) < 1e-4

# %%
curve = jnp.linspace(0.8, 6, 60)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(curve, jax.vmap(nll)(jnp.log(curve)), color=BLUE, label="cross-entropy at temperature T")
axes.plot(*zip(*trace, strict=True), "o", color=ORANGE, markersize=4, alpha=0.7, label="60 steps of Adam")
axes.axvline(3, color="black", linestyle=":", linewidth=1, label="the factor that was hidden: 3")
axes.set(title="Learning a temperature", xlabel="temperature T", ylabel="cross-entropy (nats)")
axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# `docs/recipes.md` has DPO, GRPO with a KL penalty, and perplexity, in the same style.
