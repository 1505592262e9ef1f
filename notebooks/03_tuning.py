# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/crossent-jax/crossent_jax/blob/main/notebooks/03_tuning.ipynb)
#
# # Tuning hyper-parameters by held-out loss
#
# `crossent_jax.tuning` searches hyper-parameters by grid, at random or with a Bayesian sampler, and trains many trials in
# one compiled program. Here you see why trials are scored by the plain held-out negative log-likelihood, how the three
# samplers look on one response surface, how a study survives an interruption and a NaN, and how to repair the confidence
# of the model that was chosen.

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
import tempfile
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import display
from sklearn.datasets import load_digits

warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar that is not used here
import optuna

from crossent_jax import tuning

optuna.logging.set_verbosity(optuna.logging.WARNING)
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # told apart with any colour vision
STEPS = 100 if FAST else 400

# %% [markdown]
# ## A trial
#
# The data are scikit-learn's handwritten digits: 500 to train on, 500 held out, the rest for the very end. A tenth of the
# training labels is replaced by random ones, so that there is something to overfit.
#
# A trial is any function `trial(hyper, key, *data)` that trains and returns logits of the held-out examples.
# `tuning.training` makes one of four small functions. What it draws (weights, batches) follows from the key.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
x, y = (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int32)
train_x, held_out_x, test_x = np.split(x, [500, 1000])
train_y, held_out_y, test_y = np.split(y, [500, 1000])
noise = np.random.default_rng(1)
train_y = np.where(noise.random(500) < 0.1, noise.integers(0, 10, 500), train_y).astype(np.int32)
data = (train_x, train_y), held_out_x


def init(hyper, key, hidden=32):
    drawn = jax.random.normal(key, (74, hidden))
    return {"in": drawn[:64] / 8, "bias": jnp.zeros(hidden), "out": drawn[64:].T / hidden**0.5}


def predict(hyper, parameters, inputs):
    return jax.nn.relu(inputs @ parameters["in"] + parameters["bias"]) @ parameters["out"]


def loss(hyper, parameters, batch):
    return crossent_jax.cross_entropy(predict(hyper, parameters, batch[0]), batch[1])


def optimizer(hyper):
    return optax.adamw(hyper["learning_rate"], weight_decay=hyper["weight_decay"])


trial = tuning.training(init, loss, predict, optimizer, steps=STEPS, batch_size=50)

# %% [markdown]
# ## What to compare trials by
#
# Options of the loss are hyper-parameters too, and with them each trial minimises a loss of its own. These losses are
# different quantities. With smoothing $\varepsilon$ over $V$ classes even a perfect model has the entropy of its smoothed
# targets left,
#
# $$H(\varepsilon) = -\left(1 - \varepsilon + \tfrac{\varepsilon}{V}\right) \ln \left(1 - \varepsilon +
# \tfrac{\varepsilon}{V}\right) - (V - 1) \tfrac{\varepsilon}{V} \ln \tfrac{\varepsilon}{V},$$
#
# a z-loss adds a term of its own, and a focal loss multiplies by something less than 1. Whoever chooses by the own loss
# chooses the option that makes the number small. Below, each variant is evaluated on the same held-out examples, by its
# own loss and by the plain negative log-likelihood (NLL), `cross_entropy(logits, labels)` without options.


# %%
def own_loss(options, parameters, batch):
    return crossent_jax.cross_entropy(predict(options, parameters, batch[0]), batch[1], **options)


def adam(options):
    return optax.adam(0.03)


off = {"label_smoothing": 0.0, "temperature": 1.0, "z_loss": 0.0, "focal_gamma": 0.0}
variants = {
    "plain": {},
    "smoothing 0.1": {"label_smoothing": 0.1},
    "temperature 1/2": {"temperature": 0.5},
    "z-loss 0.1": {"z_loss": 0.1},
    "focal, gamma 2": {"focal_gamma": 2.0},
}
variant_trial = tuning.training(init, own_loss, predict, adam, steps=150, batch_size=50)
seeds = jax.random.split(jax.random.key(0), 4)


@jax.jit  # the options are traced: compiled once
def train_seeds(options):
    return jax.lax.map(lambda key: variant_trial(options, key, *data), seeds)


own, plain = {}, {}
print("variant          own loss   held-out NLL (nats)")
for name, options in variants.items():
    options = jax.tree.map(jnp.float32, off | options)
    logits = train_seeds(options)
    labels = jnp.broadcast_to(held_out_y, logits.shape[:-1])
    own[name] = float(crossent_jax.cross_entropy(logits, labels, **options))
    plain[name] = float(crossent_jax.cross_entropy(logits, labels))
    print(f"{name:16} {own[name]:8.3f} {plain[name]:12.3f}")
likely, rest = 0.91, 0.01
floor = -likely * np.log(likely) - 9 * rest * np.log(rest)
print(f"entropy of targets smoothed by 0.1: {floor:.3f} nats, the least that its own loss can be")
print(f"ranked by own loss:     {', '.join(sorted(own, key=own.get))}")
print(f"ranked by held-out NLL: {', '.join(sorted(plain, key=plain.get))}")
assert own["smoothing 0.1"] > floor and train_seeds._cache_size() == 1
assert own["focal, gamma 2"] == min(own.values()) and plain["focal, gamma 2"] > plain["plain"]

# %% [markdown]
# The two rankings disagree, and only the second is about one thing: how probable the model finds labels that it has not
# seen. `search` scores by it whatever the trial was trained with.
#
# ## One surface, three searches
#
# Now AdamW's learning rate and weight decay. First the whole surface, by a fine grid, each point trained with several
# seeds. A batch of trials, with all their seeds, is one compiled program.

# %%
size = 4 if FAST else 8
rates = [float(rate) for rate in np.geomspace(1e-3, 0.3, size)]
decays = [float(decay) for decay in np.geomspace(0.01, 6, size)]
shared = {"data": data, "labels": held_out_y, "storage": None, "seeds": 2 if FAST else 3}

start = time.perf_counter()
surface = tuning.search(
    trial, {"learning_rate": rates, "weight_decay": decays}, sampler="grid", batch=16 if FAST else 32, **shared
)
print(f"{len(surface.trials)} trials, {shared['seeds']} seeds each: {time.perf_counter() - start:.1f} s")
print(f"best: {surface.best_value:.3f} nats,", {name: round(value, 4) for name, value in surface.best_params.items()})
assert len(surface.trials) == size**2

# %% [markdown]
# Now the three samplers with the same small budget. The grid spends it on the corners as well. Random search never repeats
# a value, which pays when one hyper-parameter matters more than the other. The Bayesian sampler (the tree-structured
# Parzen estimator of Optuna) draws its first ten trials at random, then more often where trials were good. With the same
# seed these first ones can be the very trials of the random search.

# %%
box = {
    "learning_rate": optuna.distributions.FloatDistribution(1e-3, 0.3, log=True),
    "weight_decay": optuna.distributions.FloatDistribution(0.01, 6, log=True),
}
coarse = {
    "learning_rate": [float(rate) for rate in np.geomspace(1e-3, 0.3, 6)],
    "weight_decay": [float(decay) for decay in np.geomspace(0.01, 6, 4)],
}
studies = {
    "grid": tuning.search(trial, coarse, sampler="grid", batch=4, **shared),
    "random": tuning.search(trial, box, sampler="random", trials=24, batch=4, **shared),
    "Bayesian": tuning.search(trial, box, sampler="bayesian", trials=24, batch=4, **shared),
}
for name, study in studies.items():
    best = study.best_trial
    print(
        f"{name:9} {len(study.trials)} trials, best {best.value:.3f} ± {best.user_attrs['standard_error']:.3f} nats at "
        f"learning rate {best.params['learning_rate']:.4f}, weight decay {best.params['weight_decay']:.3f}"
    )
    assert len(study.trials) == 24 and np.isfinite(best.value)
drawn = [[t.params for t in studies[name].trials] for name in ("random", "Bayesian")]
print(f"trials that the random and the Bayesian search have in common: {sum(point in drawn[0] for point in drawn[1])}")

# %%
height = {(t.params["weight_decay"], t.params["learning_rate"]): t.value for t in surface.trials if t.value is not None}
values = np.array([[height.get((decay, rate), np.nan) for rate in rates] for decay in decays])
figure, axes = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
levels = np.geomspace(np.nanmin(values), np.nanmax(values), 15)
filled = axes.contourf(rates, decays, values, levels=levels, cmap="Greys", norm="log")
bar = figure.colorbar(filled, label="held-out NLL (nats)", ticks=levels[::2], format="%.2f")
bar.minorticks_off()
styles = zip("so^", (ORANGE, BLUE, PINK), (40, 90, 30), strict=True)
for (name, study), (marker, color, area) in zip(studies.items(), styles, strict=True):
    points = [[t.params["learning_rate"], t.params["weight_decay"]] for t in study.trials]
    axes.scatter(
        *zip(*points, strict=True), area, color, marker=marker, label=name, edgecolors="black", linewidths=0.6, clip_on=False
    )
axes.set(
    xscale="log",
    yscale="log",
    xlabel="learning rate",
    ylabel="weight decay",
    title="Where each sampler looked (darker is worse)",
)
figure.legend(loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% [markdown]
# The best score so far, with a band of its standard error over seeds. Where bands overlap, the order of the samplers is
# not yet known.

# %%
figure = tuning.plot_best_so_far(studies)
figure.axes[0].set(title="Three samplers, one surface")
display(figure)

# %% [markdown]
# ## How sure is the winner?
#
# The keys are the same for every trial, so a difference is not due to a luckier start. What is left is the spread over
# seeds: each trial has `nll_of_seeds` and `standard_error`, the sample standard deviation over $\sqrt{\text{seeds}}$.

# %%
best = sorted((t for t in surface.trials if t.value is not None), key=lambda t: t.value)[:5]
for t in best:
    each = t.user_attrs["nll_of_seeds"]
    error = np.std(each, ddof=1) / len(each) ** 0.5
    assert abs(error - t.user_attrs["standard_error"]) < 1e-6 and abs(np.mean(each) - t.value) < 1e-6
    print(
        f"learning rate {t.params['learning_rate']:.4f}, weight decay {t.params['weight_decay']:.3f}: "
        f"{t.value:.3f} ± {error:.3f} nats"
    )
close = sum(t.value < best[0].value + 2 * best[0].user_attrs["standard_error"] for t in surface.trials if t.value)
print(f"{close} of {len(surface.trials)} points are within two standard errors of the best")

# %% [markdown]
# The winner of many trials also looks better on the held-out examples than it is: it was chosen for that. The examples set
# aside at the start are for the last number.
#
# ## What shapes the program: hidden units, batch size
#
# A learning rate is a number inside the program, traced. The number of hidden units shapes the arrays and the batch size
# the loop, so they are `static`: each choice gets a program of its own, and the trials that share it train together.


# %%
def structural_trial(hyper, key, examples, inputs):
    train = tuning.training(
        lambda hyper, key: init(hyper, key, hyper["hidden"]),
        loss,
        predict,
        optimizer,
        steps=STEPS,
        batch_size=hyper["batch_size"],
    )
    return train(hyper, key, examples, inputs)


sizes = [25] if FAST else [25, 100]
structural = tuning.search(
    structural_trial,
    {"hidden": [8, 64], "batch_size": sizes, "learning_rate": [0.01, 0.03], "weight_decay": [0.1, 1.0]},
    static=("hidden", "batch_size"),
    sampler="grid",
    **shared,
)
for hidden in (8, 64):
    for size in sizes:
        group = [t for t in structural.trials if (t.params["hidden"], t.params["batch_size"]) == (hidden, size)]
        print(f"{hidden:2d} hidden units, batches of {size:3d}: best of {len(group)} {min(t.value for t in group):.3f} nats")
        assert len(group) == 4

# %% [markdown]
# ## Stop and go on
#
# `storage` is the path of a SQLite file, and the same name goes on where the study stopped: `trials` counts the earlier
# ones as well. A process that is killed loses at most the batch that ran.

# %%
with tempfile.TemporaryDirectory() as folder:
    stored = {**shared, "storage": Path(folder) / "tuning.sqlite3", "name": "digits", "batch": 4}
    first = tuning.search(trial, box, trials=4, **stored)
    before = [(t.params, t.value) for t in first.trials]
    again = tuning.search(trial, box, trials=12, **stored)  # as another process would, later
    after = [(t.params, t.value) for t in again.trials]
print(f"{len(before)} trials, then {len(after)}; best {min(v for _, v in before):.3f}, then {min(v for _, v in after):.3f}")
assert len(before) == 4 and len(after) == 12 and after[:4] == before

# %% [markdown]
# ## A trial that ends in NaN
#
# Some learning rates are too large, and one lane of the program overflows. That trial is pruned: it has no score, cannot
# win, and the others of its batch are untouched.


# %%
def sgd(hyper):
    return optax.sgd(hyper["learning_rate"])


unstable = tuning.training(init, loss, predict, sgd, steps=STEPS, batch_size=50)
study = tuning.search(unstable, {"learning_rate": [0.1, 1.0, 1e20]}, sampler="grid", batch=4, **shared)
for t in sorted(study.trials, key=lambda t: t.params["learning_rate"]):
    print(f"learning rate {t.params['learning_rate']:g}: {t.state.name}, seeds {t.user_attrs['nll_of_seeds']}")
states = {t.params["learning_rate"]: t.state.name for t in study.trials}
assert states[1e20] == "PRUNED" and states[0.1] == "COMPLETE" and study.best_params["learning_rate"] < 1e20

# %% [markdown]
# ## One program or many
#
# The same trials, four ways: by `search`, side by side or one after another within one program; as one jitted function
# that is called for each trial; and each trial jitted anew with its hyper-parameters as Python constants, as a loop around
# a training script does. All times include compilation. Side by side is what accelerators want; on a CPU, products of many
# small matrices at once can be slower than one after another, so there `search` does that unless `at_once` is given.

# %%
count = 2 if FAST else 8
draws = np.random.default_rng(2)
hypers = [
    {"learning_rate": float(10 ** draws.uniform(-3, -1)), "weight_decay": float(10 ** draws.uniform(-2, 1))}
    for _ in range(count)
]
key = jax.random.split(jax.random.key(0), 1)[0]
timed = {**shared, "seeds": 1, "trials": count, "batch": count, "sampler": "random"}


def score(hyper, key, examples, inputs):
    return crossent_jax.cross_entropy(trial(hyper, key, examples, inputs), held_out_y)


def one_function():
    run = jax.jit(score)
    return [run(jax.tree.map(jnp.float32, hyper), key, *data) for hyper in hypers]


def jitted_anew():
    return [jax.jit(lambda key, *data, hyper=hyper: score(hyper, key, *data))(key, *data) for hyper in hypers]


ways = {
    "one program, side by side": lambda: tuning.search(trial, box, at_once=count, **timed),
    "one program, one after another": lambda: tuning.search(trial, box, at_once=1, **timed),
    "one jitted function, called for each": one_function,
    "one jitted function for each": jitted_anew,
}
print(f"{count} trials on {jax.devices()[0].device_kind}:")
for name, way in ways.items():
    start = time.perf_counter()
    result = way()
    if isinstance(result, list):
        jax.block_until_ready(result)
    print(f"{name:37} {time.perf_counter() - start:6.2f} s")

# %% [markdown]
# ## Confidence: temperature scaling
#
# A network that is trained for long on few, noisy labels is too sure of itself. Dividing its logits by a temperature $T$
# changes no prediction, only the confidence. The held-out loss is convex in $1/T$, so `fit_temperature` finds the best
# $T$ exactly. It is fitted on the held-out examples and judged on those that nothing has seen yet.

# %%
long = tuning.training(init, loss, predict, optimizer, steps=600, batch_size=50)
overfit = {"learning_rate": jnp.float32(0.03), "weight_decay": jnp.float32(0)}
all_logits = jax.jit(long)(overfit, jax.random.key(3), (train_x, train_y), np.concatenate([held_out_x, test_x]))
held_out_logits, test_logits = all_logits[:500], all_logits[500:]
temperature = tuning.fit_temperature(held_out_logits, held_out_y)
before = tuning.reliability(test_logits, test_y, bins=10)
after = tuning.reliability(test_logits, test_y, temperature=float(temperature), bins=10)
nll_before = crossent_jax.cross_entropy(test_logits, test_y)
nll_after = crossent_jax.cross_entropy(test_logits, test_y, temperature=temperature)
print(f"T = {temperature:.2f}, test NLL {nll_before:.3f} -> {nll_after:.3f} nats; expected calibration error ", end="")
print(f"{before.expected_calibration_error:.3f} -> {after.expected_calibration_error:.3f}")
assert temperature > 1 and nll_after < nll_before
assert after.expected_calibration_error < before.expected_calibration_error
here = crossent_jax.cross_entropy(held_out_logits, held_out_y, temperature=temperature)
for other in (0.9, 1.1):
    assert here <= crossent_jax.cross_entropy(held_out_logits, held_out_y, temperature=other * temperature)

# %%
figure = tuning.plot_reliability({"before": before, f"T = {temperature:.2f}": after})
figure.axes[0].set(title="Accuracy against confidence, test digits")
display(figure)

# %% [markdown]
# Points below the diagonal are predictions that are right less often than they claim. The area of a point is its share of
# the examples.
