"""The tables from which every test draws. Shrinking one is a changelog entry.

An option of a loss is *off* (not given), *neutral* (given, with the value that changes nothing: then it is traced, and one
compiled function serves a whole table) or *on*.
"""

import contextlib
import gc
import os

import jax
import numpy as np

from crossent_jax.backends import BACKENDS as ALL_BACKENDS

from .compiling import QUICK

WITH_TESTS_OF_THEIR_OWN = ("pallas_tpu",)  # a CPU runs XLA in the place of a TPU's kernels
BACKENDS = tuple(name for name in ALL_BACKENDS if name not in WITH_TESTS_OF_THEIR_OWN)
CUSTOM_VJP_BACKENDS = tuple(name for name in BACKENDS if ALL_BACKENDS[name].dense_gradient is not None)
DTYPES = ("float32", "bfloat16", "float16", "float64")
CLASSES = (1, 2, 10, 1000, 50257, 262144)
CLASSES_OF_EVERY_DTYPE = (10, 50257)
SIZES = tuple((v, dtype) for v in CLASSES for dtype in (DTYPES if v in CLASSES_OF_EVERY_DTYPE else DTYPES[:2]))
LABEL_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
REDUCTIONS = ("none", "sum", "mean", "loss_sum")
TARGETS = ("hard", "soft")

SCALARS = {  # option: (neutral, on)
    "label_smoothing": (0.0, 0.1),
    "z_loss": (0.0, 0.05),
    "focal_gamma": (0.0, 1.5),
    "poly_epsilon": (0.0, 0.7),
    "entropy_weight": (0.0, 0.3),
    "temperature": (1.0, 1.7),
}
ARRAYS = ("class_weights", "class_mask", "row_weights", "where")
STATIC = {  # option: (off, *on)
    "softcap": (None, 4.0),
    "ignore_index": (None, -100),
    "axis": (-1, 0),
    "reduction": ("mean", "sum", "none", "loss_sum"),
}
OPTIONS = (*SCALARS, *ARRAYS, *STATIC)
HARD_ONLY = ("ignore_index",)

QUICK_COMPILE = dict(QUICK)  # for the programs of tests of meaning in runs that compile as users do

SHAPES = ((5, 7), (1, 3), (4, 33), (3, 129))  # (rows, classes): none divides, or is divided by, a block


def quick(function, **options):
    """``jax.jit`` of a formula that is compared with: one program, in the place of one for each of its operations."""
    return jax.jit(function, compiler_options=QUICK_COMPILE, **options)


@contextlib.contextmanager
def checking_leaks():
    """``jax.checking_leaks``, whose search for the holders of a tracer leaves out the objects that are older than it."""
    gc.freeze()
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.unfreeze()


def rng(*key) -> np.random.Generator:
    """A generator of its own for every key, the same in every run."""
    return np.random.default_rng([sum(map(ord, str(part))) for part in key])


def session_seed() -> int:
    """The seed that pytest prints; it only feeds tests that are random on purpose."""
    return int(os.environ["CROSSENT_JAX_SEED"])


def logits(gen: np.random.Generator, rows: int, classes: int, dtype="float32", scale=2.0, offset=0.0) -> np.ndarray:
    """Rounded to ``dtype``, so that every implementation sees the same numbers."""
    return (offset + scale * gen.standard_normal((rows, classes))).astype(numpy_dtype(dtype))


def labels(gen: np.random.Generator, rows: int, classes: int) -> np.ndarray:
    return gen.integers(0, classes, rows).astype(np.int32)


def targets(gen: np.random.Generator, rows: int, classes: int, allowed=None, dtype="float32") -> np.ndarray:
    """Distributions over the allowed classes, some entries exactly 0."""
    weight = gen.exponential(size=(rows, classes)) * (gen.uniform(size=(rows, classes)) < 0.8) + 1e-3
    weight = weight if allowed is None else np.where(allowed, weight, 0)
    return (weight / weight.sum(-1, keepdims=True)).astype(numpy_dtype(dtype))


def neutral_arrays(rows: int, classes: int) -> dict[str, np.ndarray]:
    return {
        "class_weights": np.ones(classes, np.float32),
        "class_mask": np.ones(classes, bool),
        "row_weights": np.ones(rows, np.float32),
        "where": np.ones(rows, bool),
    }


def random_arrays(gen: np.random.Generator, rows: int, classes: int, label=None) -> dict[str, np.ndarray]:
    """Weights with a zero among them, masks with holes; the classes in ``label`` stay unmasked and row 0 stays valid."""
    mask = gen.uniform(size=classes) < 0.7
    mask[0 if label is None else label] = True
    row_weights = gen.uniform(0.3, 2.0, rows)
    row_weights[rows // 2] = 0.0 if rows > 2 else 1.5
    where = gen.uniform(size=rows) < 0.7
    where[0] = True
    return {
        "class_weights": gen.uniform(0.3, 2.0, classes).astype(np.float32),
        "class_mask": mask,
        "row_weights": row_weights.astype(np.float32),
        "where": where,
    }


def alone_table(gen, rows: int, classes: int, label: np.ndarray) -> dict[str, dict]:
    """Named settings of one traced call: every option neutral except the one that names the setting. ``ignore_index`` is
    static, and on through a label that it names."""
    neutral = {name: np.float32(off) for name, (off, _) in SCALARS.items()}
    neutral |= neutral_arrays(rows, classes) | {"labels": label}
    table = {"none": neutral}
    table |= {name: neutral | {name: np.float32(on)} for name, (_, on) in SCALARS.items()}
    on = random_arrays(gen, rows, classes, label)
    table |= {name: neutral | {name: on[name]} for name in ARRAYS}
    ignored = np.where(np.arange(rows) == 1, STATIC["ignore_index"][1], label).astype(label.dtype)
    return table | {"ignore_index": neutral | {"labels": ignored}}


def numpy_dtype(name) -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
