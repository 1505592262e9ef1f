# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/crossent-jax/crossent_jax/blob/main/notebooks/07_benchmarks_roofline.ipynb)
#
# # Benchmarks and rooflines
#
# The repository measures itself with one command, `python -m benchmarks`, and commits what it found. Here you run it on
# the device you have, read its files with nothing but `json`, compare two of them, and draw rooflines: how far a loss is
# from what the hardware can do. At the end stand estimates for chips that are not here, and what they are worth.

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
# The folder `benchmarks` belongs to a checkout, not to the installed package. In a checkout it stands beside this
# notebook's folder; elsewhere, as on Colab, the next cell clones the repository.

# %%
import gc
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from jax.extend.backend import clear_backends

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # told apart with any colour vision
SCRATCH = Path(tempfile.mkdtemp())
ROOT = next((folder for folder in (Path.cwd(), Path.cwd().parent) if (folder / "benchmarks" / "__main__.py").exists()), None)
if ROOT is None:
    ROOT = SCRATCH / "crossent_jax"
    address = "https://github.com/crossent-jax/crossent_jax"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", address, str(ROOT)], check=True)
RESULTS = ROOT / "benchmarks" / "results"


def benchmarks(command, lines=None):
    """`python -m benchmarks COMMAND` in the scratch folder: its exit status, its output printed."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "130", "NO_COLOR": "1", "TERM": "dumb"}
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):  # a notebook asks for colours; here plain text is enough
        variables.pop(name, None)
    arguments = [sys.executable, "-m", "benchmarks", *command.split()]
    done = subprocess.run(arguments, cwd=SCRATCH, env=variables, capture_output=True, text=True)
    for line in (done.stdout + (done.stderr if done.returncode > 1 else "")).splitlines()[:lines]:
        print(line.rstrip())
    return done.returncode


# %% [markdown]
# ## What is measured, and on what
#
# `env` prints what a result would carry as its origin. `list` has the suites, operations, contenders and named shapes, and
# what is missing here. A TPU serves one process at a time, and so in effect does a GPU's memory: this notebook lets go of
# its device first.

# %%
platform = jax.default_backend()
clear_backends()
gc.collect()
where = "" if benchmarks("env") == 0 else "--device cpu"  # this process could not let go of its device
print("device of this notebook:", platform, where)

# %%
assert benchmarks("list", lines=34) == 0

# %% [markdown]
# ## A tiny run
#
# One operation, three contenders: ours, the naive formula, and the bare matrix products of our chunks, which are a floor
# and no loss. Each contender is compiled, checked against float64, then timed in turns with the others. Each row is a
# contender. "/ ours" is how many times longer it takes than ours, "ceiling" the time that the hardware would need at its
# measured best over the time taken, and the last columns are errors against float64.

# %%
shapes = ["n=1021,d=64,v=8209"] if FAST else ["n=1021,d=64,v=8209", "n=1024,d=256,v=4096", "n=1024,d=1024,v=2048"]
command = (
    f"run --op linear_cross_entropy --shape {' '.join(shapes)} --dtype float32 --mode value_and_grad "
    "--impl ours naive products --seconds 0.3 --out here.jsonl"
)
status = benchmarks(f"{command} {where}")
if status == 2 and not where:  # the device is still held
    status = benchmarks(f"{command} --device cpu")
assert status == 0

# %% [markdown]
# ## The file
#
# JSON lines: one of kind `environment`, a `ceiling` for each dtype, then a `row` for each contender of each case. A
# contender that failed or is absent has a `reason` in place of figures.


# %%
def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


here = read(SCRATCH / "here.jsonl")
print(dict(Counter(line["kind"] for line in here)))
for line in here:
    if line["kind"] == "ceiling":
        bandwidth, operations = line["bytes_per_second"], line["operations_per_second"]
        print(f"{line['dtype']}: copy {bandwidth / 1e9:.1f} GB/s, product {operations / 1e9:.0f} GFLOP/s")
for line in here:
    if line["kind"] == "row" and line["status"] == "ok":
        milliseconds = line["wall_ms"]["median"]
        expected = 6 * line["n"] * line["d"] * line["v"]
        assert line["operations"] == expected  # three matrix products of 2 n d v operations
        assert abs(line["operations_per_second"] / (1e3 * expected / milliseconds) - 1) < 1e-6
        print(
            f"{line['impl']:9} n={line['n']}, d={line['d']}, v={line['v']}: {milliseconds:.1f} ms, "
            f"{line['operations_per_second'] / 1e9:.1f} GFLOP/s, temporaries {line['temp_bytes'] / 2**20:.1f} MiB"
        )

# %% [markdown]
# ## What a roofline is
#
# A program with $W$ operations that moves $Q$ bytes has the intensity $I = W / Q$. On a device that computes at most $P$
# operations a second and moves at most $B$ bytes a second it cannot run faster than
#
# $$\text{operations per second} \le \min(P, \; I \cdot B).$$
#
# Left of the knee at $I = P / B$ memory is the limit, right of it arithmetic. Here $W$ and $Q$ are the least that *any*
# implementation must do: $2 n d v$ operations for each of three matrix products, every argument read once and every
# gradient written once. So all contenders of a case stand above the same $I$, and only their height differs.
#
# The ceiling is no data sheet's number. $P$ and $B$ are measured at the start of the same run, by a large square matrix
# product and a large copy, so that a busy or throttled machine is compared with itself. They are measurements too, with
# noise: while something else keeps the machine busy, they may come out too low and a program above them.
#
# First the committed run on a CPU with two cores, drawn by the function behind `python -m benchmarks plot`.

# %%
sys.path.insert(0, str(ROOT))
from benchmarks import plots, records

committed = records.read(RESULTS / "cpu-linear.jsonl").by_pages()["kept"]
figure = plots.roofline([committed])
plt.show()
shares = {}
for row in committed.rows:
    if row["status"] == "ok" and row.get("share_of_ceiling"):
        shares.setdefault((row["dtype"], row["impl"]), []).append(row["share_of_ceiling"])
for (dtype, name), found in sorted(shares.items()):
    if name in ("ours", "naive"):
        print(f"{dtype:9} {name:6} {min(found):4.0%} to {max(found):4.0%} of the ceiling, median {np.median(found):4.0%}")

# %% [markdown]
# That picture is cut to where the losses are. Below is the whole roof, with its slope and knee, of the committed run and of
# the one just made on this device, in float32.

# %%
mine = records.read(SCRATCH / "here.jsonl")
figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
intensity = np.geomspace(0.3, 1e4, 200)
for label, results, marker, line in (("committed", committed, "o", "--"), ("here", mine, "^", "-")):
    ceiling = next(ceiling for (dtype, _), ceiling in results.ceilings.items() if dtype == "float32")
    peak, bandwidth = ceiling["operations_per_second"], ceiling["bytes_per_second"]
    axes.plot(intensity, np.minimum(peak, intensity * bandwidth) / 1e9, line, color="black", label=f"ceiling, {label}")
    rows = [row for row in results.rows if row["status"] == "ok" and row["dtype"] == "float32"]
    for name, color in {"naive": ORANGE, "ours": BLUE}.items():
        points = [
            (row["operations"] / row["least_bytes"], row["operations_per_second"] / 1e9)
            for row in rows
            if row["impl"] == name
        ]
        axes.scatter(*zip(*points, strict=True), 36, color, marker=marker, label=f"{name}, {label}", alpha=0.8)
    print(f"{label:9} on {results.device}: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s, ", end="")
    print(f"knee at {peak / bandwidth:.1f} operations a byte")
axes.set(xscale="log", yscale="log", xlabel="operations a byte, both at the least", ylabel="GFLOP/s")
axes.set_title("Roofline of linear_cross_entropy, float32")
axes.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# ## Two files
#
# `compare` sets two runs of one device side by side, or two devices; `--common` takes the cases that both have. Its exit
# status is 1 where a loss of ours is slower than before by more than the threshold, and the spreads of the two do not
# overlap. Between two machines that says which is faster, no more. Here the committed smoke suite and the run just made.

# %%
shutil.copy(RESULTS / "cpu-smoke.jsonl", SCRATCH / "committed.jsonl")
status = benchmarks("compare --common committed.jsonl here.jsonl")
print("exit status", status)
assert status in (0, 1)
assert benchmarks("compare here.jsonl here.jsonl", lines=0) == 0  # a file is no slower than itself

# %% [markdown]
# The same as bars, device against device. Beside it the ratio that travels better between machines than a time: how much
# longer the naive formula takes than ours in the same run.

# %%
by_pages = records.read(SCRATCH / "committed.jsonl").by_pages()  # memory kept between calls, and fresh pages
smoke = by_pages.get(mine.rows[0].get("pages"), by_pages["kept"])
case = {"op": "linear_cross_entropy", "n": 1021, "d": 64, "v": 8209, "dtype": "float32", "mode": "value_and_grad"}
runs = {f"committed:\n{smoke.device}": smoke, f"here:\n{mine.device}": mine}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for place, results in enumerate(runs.values()):
    rows = {row["impl"]: row for row in results.rows if case.items() <= row.items() and row["status"] == "ok"}
    for shift, (name, color) in enumerate({"ours": BLUE, "naive": ORANGE}.items()):
        spread = rows[name]["wall_ms"]
        errors = [[spread["median"] - spread["p10"]], [spread["p90"] - spread["median"]]]
        left.bar(
            place + 0.4 * shift - 0.2,
            spread["median"],
            0.36,
            yerr=errors,
            capsize=4,
            color=color,
            label="" if place else name,
        )
    ratio = rows["naive"]["to_ours"]
    right.bar(place, ratio, 0.5, color=GREEN)
    right.text(place, ratio, f"{ratio:.2f}", ha="center", va="bottom")
for axes in (left, right):
    axes.set_xticks(range(len(runs)), [name.replace(" Processor", "").replace(", ", ",\n") for name in runs], fontsize=8)
    axes.margins(y=0.15)
left.set(ylabel="milliseconds (p10 to p90)", title="n=1021, d=64, v=8209, float32")
left.legend()
right.axhline(1, color="black", linewidth=1, linestyle=":")
right.set(ylabel="time of the naive formula / ours", title="Ratio within one run")
plt.show()

# %% [markdown]
# ## Estimates for chips that are not here
#
# `python -m benchmarks aot --chip v5e v6e h100` compiles for chips without having them. Temporary memory is then the
# compiler's plan, the same that it would carry out. Cycles are another matter: for TPUs they come from the compiler's cost
# model, operation by operation, or from the bytes over the documented bandwidth where these take longer. They were never
# held against a chip. They can rank two programs for the same chip; they are no time, and none of them is in the rooflines
# above. For the H100 there is no such model, only memory.

# %%
NAMES = ("ours", "ours-4GiB", "naive", "products-whole")
ahead = [line for line in read(RESULTS / "aot.jsonl") if line["kind"] == "row" and line["op"] == "linear_cross_entropy"]
chips = ("v5e", "v6e", "h100")
found = {(line["platform"].removeprefix("aot "), line["n"], line["d"], line["v"], line["impl"]): line for line in ahead}
cases = sorted({case[1:-1] for case in found if case[-1] == "naive"})  # the others have no formula beside them
for chip in chips:
    for n, d, v in cases:
        for name in NAMES:
            line = found[chip, n, d, v, name]
            about = f"{chip:5} n={n:5d}, d={d}, v={v} {name:14}"
            if line["status"] == "failed":
                print(f"{about} {line['reason'].split(':')[0]}")
                continue
            cycles = f"{line['cycles_by_operation'] / 1e6:6.0f} Mcycles" if "cycles_by_operation" in line else ""
            print(f"{about} {line['temp_bytes'] / 2**30:5.2f} GiB {cycles}")
assert all(
    found[chip, *case, "ours"]["temp_bytes"] < found[chip, *case, "naive"].get("temp_bytes", np.inf) / 4
    for chip in chips
    for case in cases
)

# %% [markdown]
# `ours-4GiB` is the loss with `memory_budget=4 * 2**30`: larger chunks, fewer of them. The
# bare products, whole, are the least that any program for this loss has to do.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
COLORS = {"ours": BLUE, "ours-4GiB": GREEN, "naive": ORANGE}
panels = ((left, chips, "temp_bytes", 2**-30), (right, chips[:2], "cycles_by_operation", None))
for axes, drawn, field, scale in panels:
    places = [(chip, *case) for case in cases for chip in drawn]
    for shift, (name, color) in enumerate(COLORS.items()):
        for place, at in enumerate(places):
            line, floor = found[*at, name], found[*at, "products-whole"]
            height = line[field] * (scale or 1 / floor[field]) if line["status"] == "ok" else 0
            x = place + 0.28 * (shift - 1)
            axes.bar(x, height, 0.26, color=color, label="" if place else name)
            text = f"{height:.2f}" if height else " does not fit"
            axes.text(x, height, text, ha="center", va="bottom", fontsize=7, rotation=0 if height else 90)
    axes.set_xticks(range(len(places)), [f"{chip}\nn={n}\nd={d}" for chip, n, d, _ in places], fontsize=8)
    axes.margins(y=0.15)
left.set(ylabel="temporary memory (GiB)", title="The compiler's plan")
right.set(ylabel="estimated cycles / bare products', whole", title="Its cost model: an estimate")
right.axhline(1, color="black", linewidth=1, linestyle=":")
left.legend()
figure.suptitle("linear_cross_entropy, v=131072, bfloat16, value and gradients, compiled ahead of time", fontsize=11)
plt.show()

# %% [markdown]
# To measure your own device in earnest: `python -m benchmarks run --suite llm --out mine.jsonl`, with nothing else running.
# `python -m benchmarks targets` prints every number that the library promises beside the worst case in the committed files,
# also where it does not hold.

# %%
shutil.rmtree(SCRATCH)
