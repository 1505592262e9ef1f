# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/crossent-jax/crossent_jax/blob/main/notebooks/09_meshes.ipynb)
#
# # Which mesh, which call
#
# A loss of hidden states and a head on eight devices: rows, the vocabulary, both, parameters (FSDP) or the sequence split
# over a mesh. Each layout is compared with one device, in value and both gradients, and its bytes on the wire are counted
# in the compiled program, beside those of whole logits. The cells are the same on a TPU v5e-8 and on anything smaller, as
# Colab's one chip, where eight devices of the CPU stand for the chips. The page [Many
# devices](https://github.com/crossent-jax/crossent_jax/blob/main/docs/meshes.md) says more, and goes on to several hosts.

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

# %% [markdown]
# ## Eight devices
#
# JAX may have chosen one chip, or a CPU as one device. Before any array is made that can be undone. What counts bytes
# belongs to a checkout, not to the installed package: elsewhere, as on Colab, the cell clones the repository.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.extend.backend import clear_backends
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

if jax.device_count() != 8:
    clear_backends()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
assert jax.device_count() == 8
print(jax.devices()[0].device_kind, "x", jax.device_count())

ROOT = next((folder for folder in (Path.cwd(), Path.cwd().parent) if (folder / "benchmarks" / "__main__.py").exists()), None)
if ROOT is None:
    ROOT = Path(tempfile.mkdtemp())
    address = "https://github.com/crossent-jax/crossent_jax"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", address, str(ROOT)], check=True)
sys.path.insert(0, str(ROOT))
from benchmarks.collectives import sent_bytes

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"  # told apart with any colour vision
jax.config.update("jax_default_matmul_precision", "highest")  # so that a TPU's numbers can be compared

# %% [markdown]
# ## One device
#
# Hidden states (batch, sequence, features), a head (features, vocabulary), tokens of sequences of different lengths. The
# next token is predicted (`shift=1`), padding does not count.

# %%
BATCH, SEQUENCE, FEATURES, CLASSES = (16, 32, 32, 512) if FAST else (16, 128, 64, 4096)
keys = jax.random.split(jax.random.key(0), 4)
hidden = jax.random.normal(keys[0], (BATCH, SEQUENCE, FEATURES))
head = jax.random.normal(keys[1], (FEATURES, CLASSES)) / FEATURES**0.5
lengths = jax.random.randint(keys[2], (BATCH, 1), SEQUENCE // 4, SEQUENCE + 1)
tokens = jnp.where(jnp.arange(SEQUENCE) < lengths, jax.random.randint(keys[3], (BATCH, SEQUENCE), 1, CLASSES), 0)
OPTIONS = {"shift": 1, "ignore_index": 0, "chunk_rows": BATCH * SEQUENCE // 16}


def one_call(hidden, head, tokens):
    return crossent_jax.linear_cross_entropy(hidden, head, tokens, **OPTIONS)


def whole_logits(hidden, head, tokens):
    logs, labels = jax.nn.log_softmax(hidden @ head)[:, :-1], tokens[:, 1:]
    return -jnp.mean(jnp.take_along_axis(logs, labels[..., None], -1)[..., 0], where=labels != 0)


loss, gradients = jax.jit(jax.value_and_grad(one_call, (0, 1)))(hidden, head, tokens)
print(f"{loss:.6f} nats on one device; {whole_logits(hidden, head, tokens):.6f} from whole logits")

# %% [markdown]
# ## Layouts
#
# A layout is a mesh and two specs: which mesh axis splits which axis of the hidden states and of the head. `sharded` takes
# the specs and the loss, finds the mesh that is set, and moves each array once. Labels and masks are split as the hidden
# states are. The answer is that of whole arrays, whatever is split: nothing else in a training step changes.

# %%
LAYOUTS = {
    "batch": ({"data": 8}, P("data"), P()),
    "vocabulary": ({"model": 8}, P(), P(None, "model")),
    "both": ({"data": 2, "model": 4}, P("data"), P(None, "model")),
    "FSDP": ({"data": 8}, P("data"), P("data", None)),
    "FSDP and vocabulary": ({"data": 2, "model": 4}, P("data"), P("data", "model")),
    "sequence": ({"sequence": 8}, P(None, "sequence"), P()),
}


def compiled(layout, way):
    """Value and gradients, split as the layout says, and their arguments."""
    axes, of_hidden, of_head = LAYOUTS[layout]
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    places = [NamedSharding(mesh, spec) for spec in (of_hidden, of_head, P(*of_hidden[:2]))]
    arrays = [jax.device_put(x, place) for x, place in zip((hidden, head, tokens), places, strict=True)]
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(way(of_hidden, of_head), (0, 1)), out_shardings=(None, tuple(places[:2])))
        return step.lower(*arrays).compile(), arrays


def ours(of_hidden, of_head):
    on_mesh = crossent_jax.sharded(crossent_jax.linear_cross_entropy, hidden=of_hidden, head=of_head)
    return lambda *arrays: on_mesh(*arrays, **OPTIONS)


WAYS = {
    "sharded": ours,
    "whole logits": lambda *specs: whole_logits,
    "the loss under jax.jit alone": lambda *specs: one_call,
}


def apart(a, b):
    """The largest difference, over the largest entry."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


errors, sent = {}, {way: {} for way in WAYS}
for layout in LAYOUTS:
    for way, make in WAYS.items():
        program, arrays = compiled(layout, make)
        sent[way][layout] = sent_bytes(program.as_text())
        if way == "sharded":
            value, (of_hidden, of_head) = program(*arrays)
            pairs = ((value, loss), (of_hidden, gradients[0]), (of_head, gradients[1]))
            errors[layout] = [apart(*pair) for pair in pairs]
            print(f"{layout:20} off by {errors[layout][0]:.0e}, gradients by", *(f"{e:.0e}" for e in errors[layout][1:]))

# %% [markdown]
# ## Bytes on the wire
#
# Counted in the compiled programs: what one device sends for a value and both gradients, every collective as a ring does
# it, in loops as often as they run. `sharded` sends what the layout must: the head's gradient where rows are split, three
# numbers a row and the gradient of the hidden states where the vocabulary is. It is the same with more chunks. The same
# loss under `jax.jit` alone is right too, but there the compiler places the collectives, and may put them into the loop
# over chunks.

# %%
print("kB that a device sends  " + "".join(f"{way:>30}" for way in WAYS))
for layout in LAYOUTS:
    print(f"{layout:24}" + "".join(f"{sent[way][layout] / 1e3:30,.0f}" for way in WAYS))

# %%
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
places = np.arange(len(LAYOUTS))
for i, (way, color) in enumerate(zip(WAYS, (BLUE, ORANGE, GREEN), strict=True)):
    axes.bar(places + 0.27 * (i - 1), [sent[way][layout] / 1e6 for layout in LAYOUTS], 0.25, color=color, label=way)
axes.set(
    yscale="log", ylabel="MB that a device sends", title=f"Value and gradients, {jax.devices()[0].platform} x 8, float32"
)
axes.set_xticks(places, [name.replace(" and ", "\nand ") for name in LAYOUTS])
axes.legend()
plt.show()

# %% [markdown]
# ## By hand
#
# `sharded` is short for this: inside `jax.shard_map` the loss is told the axis of the vocabulary, and the devices of the
# rows add up sums and weights before they divide. The mean of the devices' means is another number, since they count
# different numbers of tokens.

# %%
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
specs = (P("data"), P(None, "model"), P("data"))


def of_sums(*arrays):
    own = crossent_jax.linear_cross_entropy(*arrays, axis_name="model", reduction="loss_sum", **OPTIONS)
    return own.psum("data").mean()


def of_means(*arrays):
    return jax.lax.pmean(crossent_jax.linear_cross_entropy(*arrays, axis_name="model", **OPTIONS), "data")


by_hand, wrong = (
    float(jax.jit(jax.shard_map(way, mesh=mesh, in_specs=specs, out_specs=P()))(hidden, head, tokens))
    for way in (of_sums, of_means)
)
print(f"one device {loss:.6f}, sums {by_hand:.6f}, mean of means {wrong:.6f}")

# %% [markdown]
# ## Which one?
#
# - The head and its gradient fit a device, and the batch is large: split the **batch**.
# - The head does not fit: **FSDP** where rows are many, the **vocabulary** over devices that are close where they are few.
#   Its bytes grow with the rows, those of FSDP with the head.
# - Both at once on large meshes. `python -m benchmarks pod` prints a model of time, bytes and memory up to 4096 chips.
# - Sequences too long for a device: split the **sequence**.

# %%
largest = max(max(each) for each in errors.values())
ratios = {layout: sent["sharded"][layout] / sent["whole logits"][layout] for layout in LAYOUTS}
alone = {layout: sent["the loss under jax.jit alone"][layout] / sent["sharded"][layout] for layout in LAYOUTS}
assert largest < 2e-5 and abs(by_hand - float(loss)) < 1e-5 * float(loss) < abs(wrong - float(loss))
assert max(ratios.values()) < 1.2
print(f"verdict on {jax.devices()[0].device_kind} x 8: {len(LAYOUTS)} layouts right, to {largest:.0e} of one device;")
print(f"bytes sent: {min(ratios.values()):.2f} to {max(ratios.values()):.2f} of those of whole logits;")
print(f"the loss under jax.jit alone sends {min(alone.values()):.1f} to {max(alone.values()):.1f} times as many")
