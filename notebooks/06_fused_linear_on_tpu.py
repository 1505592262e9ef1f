# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/crossent-jax/crossent_jax/blob/main/notebooks/06_fused_linear_on_tpu.ipynb)
#
# # A fused linear loss on a TPU (and elsewhere)
#
# The logits of a language model are its largest array: tokens times vocabulary. `linear_cross_entropy` takes the hidden
# states and the head instead, and holds one chunk of logits at a time. Here you see what that saves, as the compiler
# counts it; which sizes fit a chip's memory; what it costs in time on the device you have; and that values and gradients
# are those of the whole logits. Made for Colab's TPU v5e; it runs anywhere, with sizes that suit the device.

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
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # told apart with any colour vision
ON_CPU = jax.default_backend() == "cpu"
print(jax.devices()[0].device_kind, f"({jax.default_backend()})")


def fused(hidden, head, labels):
    return crossent_jax.linear_cross_entropy(hidden, head, labels)


def whole(hidden, head, labels):
    """The usual way: logits in float32, one array."""
    logits = jnp.dot(hidden, head, preferred_element_type=jnp.float32)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


LOSSES = {"whole logits": whole, "linear_cross_entropy": fused}
COLORS = {"whole logits": ORANGE, "linear_cross_entropy": BLUE}


def shapes(tokens, features, vocabulary, dtype=jnp.bfloat16):
    return (
        jax.ShapeDtypeStruct((tokens, features), dtype),
        jax.ShapeDtypeStruct((features, vocabulary), dtype),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )


def program(loss):
    """Value and both gradients, as a training step wants them."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


# %% [markdown]
# ## The same numbers
#
# In float32, with products in full precision, value and gradients agree to rounding. The hidden size and vocabulary need
# not be round numbers.


# %%
def draw(tokens, features, vocabulary, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    hidden = jax.random.normal(keys[0], (tokens, features), dtype)
    head = (jax.random.normal(keys[1], (features, vocabulary)) / features**0.5).astype(dtype)
    return hidden, head, jax.random.randint(keys[2], (tokens,), 0, vocabulary)


def apart(a, b):
    """The largest difference, over the largest entry."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / np.abs(b).max()


with jax.default_matmul_precision("highest"):
    small = draw(300, 64, 5003)
    (value, gradients), (true, true_gradients) = (program(loss)(*small) for loss in (fused, whole))
print(f"loss {value:.6f} and {true:.6f} nats, difference {abs(value - true):.1e}")
for name, ours, theirs in zip(("hidden", "head"), gradients, true_gradients, strict=True):
    print(f"gradient of {name}: relative difference {apart(ours, theirs):.1e}")
    assert apart(ours, theirs) < 1e-5
assert abs(value - true) < 1e-5

# %% [markdown]
# `crossent_jax.explain` traces the call on shapes alone and says how it would run: the backend, the chunks, the number of
# matrix products. No array is made.

# %%
print(crossent_jax.explain(program(fused), *shapes(8192, 1024, 131072))[0])

# %% [markdown]
# ## Temporary memory
#
# XLA knows how much memory a compiled program needs beyond its arguments and results, before it runs:
# `memory_analysis()`. So the sizes below may be larger than this machine. With whole logits the temporaries grow as
# tokens × vocabulary. With the fused loss they are one chunk of float32 logits and the head's gradient in float32, and do
# not grow with the tokens.


# %%
def temporary_bytes(loss, *sizes):
    """As compiled for this device; NaN where its compiler refuses what cannot fit, or does not say."""
    try:
        return float(program(loss).lower(*shapes(*sizes)).compile().memory_analysis().temp_size_in_bytes)
    except Exception as error:
        if isinstance(error, AttributeError | NotImplementedError) or "RESOURCE_EXHAUSTED" in str(error):
            return float("nan")
        raise


def read(bytes_):
    return "none" if np.isnan(bytes_) else f"{bytes_ / 2**20:,.0f} MiB"


TOKENS, FEATURES = 8192, 512
vocabularies = [2**k for k in ((13, 15, 17) if FAST else (13, 14, 15, 16, 17, 18))]
memory = {name: [temporary_bytes(loss, TOKENS, FEATURES, v) for v in vocabularies] for name, loss in LOSSES.items()}
for row in zip(vocabularies, *memory.values(), strict=True):
    print(f"{row[0]:7d} classes: whole logits {read(row[1]):>11}, linear_cross_entropy {read(row[2]):>11}")
tokens_over = [2**k for k in ((10, 12, 14) if FAST else (10, 11, 12, 13, 14, 15))]
over_tokens = {name: [temporary_bytes(loss, t, FEATURES, 2**16) for t in tokens_over] for name, loss in LOSSES.items()}
assert not memory["linear_cross_entropy"][-1] > memory["whole logits"][-1] / 4  # true of NaN: a refusal is no failure
assert not max(over_tokens["linear_cross_entropy"]) > 1.2 * min(over_tokens["linear_cross_entropy"])

# %%
figure, both = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
sweeps = {
    f"vocabulary ({TOKENS} tokens)": (vocabularies, memory),
    "tokens (65536 classes)": (tokens_over, over_tokens),
}
for axes, (label, (xs, found)) in zip(both, sweeps.items(), strict=True):
    for name, style in {"whole logits": "s--", "linear_cross_entropy": "o-"}.items():
        axes.plot(xs, np.array(found[name]) / 2**20, style, color=COLORS[name], label=name)
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel=label)
    axes.grid(alpha=0.3)
both[0].set(ylabel="temporary memory (MiB)")
both[0].legend()
figure.suptitle(f"Value and gradients, {FEATURES} features, bfloat16, as compiled for {jax.default_backend().upper()}")
plt.show()

# %% [markdown]
# ## What fits
#
# A TPU v5e has 16 GiB, of which its compiler gives a program 15.75. Arguments, results and temporaries of one loss must
# fit; a model with its optimizer leaves less. For each number of tokens: the largest vocabulary, in steps of 1024, whose
# program fits by the figures of this device's compiler. At a fixed number of tokens they grow along a line, so two small
# compilations give an estimate, and a third one at the estimate must confirm that it fits. On another device than a v5e
# the picture is an indication: compilers differ in how many copies of whole logits they need.


# %%
def total_bytes(loss, *sizes):
    """Arguments, results (a loss and two gradients) and temporaries."""
    hidden, head, labels = (float(np.prod(s.shape) * s.dtype.itemsize) for s in shapes(*sizes))
    return temporary_bytes(loss, *sizes) + 2 * (hidden + head) + labels + 4


def largest_vocabulary(loss, tokens, features, limit):
    low, high = 8192, 16384
    at_low, at_high = (total_bytes(loss, tokens, features, v) for v in (low, high))
    if np.isnan(at_low + at_high):
        return float("nan")
    slope = (at_high - at_low) / (high - low)
    vocabulary = int(high + (limit - at_high) / slope) // 1024 * 1024
    while vocabulary > 1024 and not total_bytes(loss, tokens, features, vocabulary) <= limit:
        vocabulary = int(0.96 * vocabulary) // 1024 * 1024
    return vocabulary


LIMIT, WIDE = 15.75 * 2**30, 1024
frontier_tokens = [2**k for k in ((12, 15) if FAST else (11, 12, 13, 14, 15))]
frontier = {name: [largest_vocabulary(loss, t, WIDE, LIMIT) for t in frontier_tokens] for name, loss in LOSSES.items()}
for t, theirs, ours in zip(frontier_tokens, *frontier.values(), strict=True):
    print(f"{t:6d} tokens: up to {theirs:9,.0f} classes with whole logits, {ours:9,.0f} with linear_cross_entropy")
assert not frontier["linear_cross_entropy"][-1] < 4 * frontier["whole logits"][-1]

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, style in {"linear_cross_entropy": "o-", "whole logits": "s--"}.items():
    axes.plot(frontier_tokens, frontier[name], style, color=COLORS[name], label=name)
    axes.fill_between(frontier_tokens, 1, frontier[name], color=COLORS[name], alpha=0.2)
axes.axhline(262144, color="black", linestyle=":", linewidth=1)
axes.text(frontier_tokens[-1], 262144 * 1.05, "262144 classes", fontsize=9, ha="right", va="bottom")
axes.set_xscale("log", base=2)
axes.set(yscale="log", ylim=(4e3, None), xlabel="tokens", ylabel="largest vocabulary")
axes.set_title(f"What fits in 15.75 GiB: loss and gradients, {WIDE} features, bfloat16", fontsize=11)
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# Below a line a program fits. The fused loss is limited by the head itself, its gradient and a chunk, nearly whatever the
# number of tokens.
#
# ## Time
#
# The fused loss does the same three matrix products as the usual way. It computes the gradients while a chunk's logits
# exist, so nothing is computed twice. Measured here, on this device: the median of calls in turns, tokens per second, and
# the rate of $6\,n\,d\,v$ operations. Sizes are tiny on a CPU and those of language models on an accelerator.


# %%
def seconds(functions, arguments, rounds):
    """Medians, in turns; NaN for what runs out of memory."""
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):  # the first one compiles
        for name, function in functions.items():
            start = time.perf_counter()
            try:
                jax.block_until_ready(function(*arguments))
                times[name].append(time.perf_counter() - start)
            except Exception as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                times[name].append(float("nan"))
    return {name: float(np.median(each[1:])) for name, each in times.items()}


if ON_CPU:
    sizes, dtype = [(512, 128, 8192), (512, 128, 16384), (1024, 128, 32768)], jnp.float32
else:
    sizes, dtype = [(8192, 1024, 32768), (8192, 1024, 131072), (16384, 1024, 131072)], jnp.bfloat16
programs = {name: program(loss) for name, loss in LOSSES.items()}
rates = {name: [] for name in LOSSES}
print("  tokens  features  classes                          ms      tokens/s   TFLOP/s")
for tokens, features, vocabulary in sizes:
    timed = seconds(programs, draw(tokens, features, vocabulary, dtype), 3 if FAST else 7)
    for name, took in timed.items():
        rates[name].append(tokens / took)
        row = f"{tokens:8d} {features:9d} {vocabulary:8d}  {name:20} "
        print(row + f"{1e3 * took:7.1f} {tokens / took:13,.0f} {6e-12 * tokens * features * vocabulary / took:9.3f}")
assert np.isfinite(rates["linear_cross_entropy"]).all()

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for i, (name, found) in enumerate(rates.items()):
    places = np.arange(len(sizes)) + 0.4 * (i - 0.5)
    axes.bar(places, np.nan_to_num(found), 0.38, color=COLORS[name], label=name)
    for place, rate in zip(places, found, strict=True):
        text = "out of\nmemory" if np.isnan(rate) else f"{rate:,.0f}"
        axes.text(place, np.nan_to_num(rate), text, ha="center", va="bottom", fontsize=9)
axes.set_xticks(range(len(sizes)), [f"{n} tokens\n{d} features\n{v} classes" for n, d, v in sizes])
axes.set(ylabel="tokens per second", title=f"Loss and gradients, {dtype.__name__}, {jax.devices()[0].device_kind}")
axes.margins(y=0.15)
axes.legend()
plt.show()

# %% [markdown]
# ## Given logits: kernels of a TPU
#
# `implementation="pallas_tpu"` computes losses of given logits by kernels that read the logits once for the loss and once
# for the gradient. They were compiled for every TPU generation and run in an interpreter, never on a TPU. This cell does it:
# numbers against float64, time against XLA, and a verdict. Without a TPU XLA computes both, and there is none.

# %%
LOGITS = [(256, 1003)] if ON_CPU else [(4096, 32768), (1021, 50257)]
OPTIONS = {"plain": {}, "every option": {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 30.0, "entropy_weight": 0.01}}


def by(implementation, options):
    return jax.jit(jax.value_and_grad(partial(crossent_jax.cross_entropy, implementation=implementation, **options)))


def exact(logits, labels):
    """The plain loss and its gradient, in float64 on the host."""
    z = np.asarray(logits, np.float64)
    e = np.exp(z - z.max(1, keepdims=True))
    p, rows = e / e.sum(1, keepdims=True), np.arange(len(z))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    return loss, p / len(z)


if jax.device_count() > 1:
    print("several devices: the kernels want one, or a call inside jax.shard_map")
else:
    right, ratios = True, []
    for (n, v), name in [(shape, name) for shape in LOGITS for name in OPTIONS]:
        z = (3 * jax.random.normal(jax.random.key(7), (n, v))).astype(jnp.bfloat16)
        y = jax.random.randint(jax.random.key(8), (n,), 0, v)
        runs = {implementation: by(implementation, OPTIONS[name]) for implementation in ("xla", "pallas_tpu")}
        value, gradient = runs["pallas_tpu"](z, y)
        true, true_gradient = exact(z, np.asarray(y)) if name == "plain" else runs["xla"](z, y)
        error, of_gradient = abs(float(value) - float(true)), apart(gradient, true_gradient)
        right &= error < 1e-5 * abs(float(true)) and of_gradient < 2**-7  # the gradient is rounded to bfloat16
        timed = seconds(runs, (z, y), 3 if FAST else 20)
        ratios.append(timed["pallas_tpu"] / timed["xla"])
        print(f"({n}, {v}) {name:12}: loss off by {error:.1e}, gradient by {of_gradient:.1e}", end=", ")
        print(f"time over XLA's {ratios[-1]:.2f}")
    assert right
    if jax.default_backend() == "tpu":
        print(f"verdict: right; {min(ratios):.2f} to {max(ratios):.2f} of XLA's time on {jax.devices()[0].device_kind}")
    else:
        print("no TPU: XLA computed both, nothing is said of the kernels")

# %% [markdown]
# ## As a language model calls it
#
# Hidden states of shape (batch, sequence, features), a tied embedding of shape (classes, features), tokens, and a mask of
# padding. `head_vocab_axis=0` takes the embedding as it is, without a transposed copy; `shift=1` lets each hidden state
# predict the next token; `where` is indexed like the tokens. Below beside the same loss written out on whole logits.

# %%
keys = jax.random.split(jax.random.key(1), 3)
embedding = jax.random.normal(keys[0], (1000, 32)) / 6
mixing = jax.random.normal(keys[1], (32, 32)) / 6
tokens = jax.random.randint(keys[2], (4, 17), 0, 1000)
mask = jnp.arange(17) < jnp.array([17, 12, 9, 1])[:, None]  # lengths of the four sequences


def hidden_states(embedding):
    return jnp.tanh(embedding[tokens] @ mixing)


def tied(embedding, chunk_rows=None):
    hidden = hidden_states(embedding)
    return crossent_jax.linear_cross_entropy(
        hidden, embedding, tokens, head_vocab_axis=0, shift=1, where=mask, chunk_rows=chunk_rows
    )


def tied_whole(embedding):
    logits = hidden_states(embedding)[:, :-1] @ embedding.T
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
    counts = mask[:, 1:]
    return jnp.where(counts, nll, 0).sum() / counts.sum()


with jax.default_matmul_precision("highest"):
    (loss, gradient), (true, true_gradient) = (jax.jit(jax.value_and_grad(f))(embedding) for f in (tied, tied_whole))
print(f"loss {loss:.6f} and {true:.6f} nats; gradient of the embedding: relative difference", end=" ")
print(f"{apart(gradient, true_gradient):.1e}")
assert abs(loss - true) < 1e-5 and apart(gradient, true_gradient) < 1e-5

# %% [markdown]
# The embedding's gradient is the sum of both its uses, as input and as head. JAX adds them.
#
# ## `chunk_rows`
#
# The most rows whose logits exist at once. By default a chunk's float32 logits take half the memory of the head's float32
# gradient, with at least 128 rows. Fewer rows can save what is left there, and make the matrix products smaller.

# %%
n, d, v = sizes[-1]
arguments = draw(n, d, v, dtype)
by_chunk = {
    chunk: jax.jit(
        jax.value_and_grad(lambda *a, chunk=chunk: crossent_jax.linear_cross_entropy(*a, chunk_rows=chunk), argnums=(0, 1))
    )
    for chunk in ([None, 64] if FAST else [None, 256, 64])
}
timed = seconds(by_chunk, arguments, 3)
reference = by_chunk[None](*arguments)[0]
for chunk, run in by_chunk.items():
    (decision,) = crossent_jax.explain(run, *arguments)
    try:
        bytes_ = float(run.lower(*arguments).compile().memory_analysis().temp_size_in_bytes)
    except (AttributeError, NotImplementedError):
        bytes_ = float("nan")
    print(f"chunk_rows={chunk!s:5} temporary {read(bytes_):>9}, {1e3 * timed[chunk]:7.1f} ms   {decision.scheme}")
    assert abs(run(*arguments)[0] - reference) < 1e-4

# %% [markdown]
# Start with the default. Set `chunk_rows` where the last few hundred MiB decide whether a batch fits.
