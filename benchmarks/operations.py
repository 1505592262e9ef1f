"""What is measured: arguments, the float64 answer, and how much work an operation is at the least.

Every operation is a mean loss in nats. ``exact`` computes it and its gradients in float64 with numpy, from the definition.
Work: floating-point operations of the matrix products alone (2 n d v each; exponentials are not counted), and bytes of every
argument read once and every gradient written once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .shapes import Case, Shape

TEMPERATURE = 0.07  # of the contrastive loss
BLOCK = 2**22  # logits that the float64 answer holds at once


class Operation(NamedTuple):
    """``layout``: the axes and the kind of every argument: "float" (the case's dtype), "float32" or "int32"."""

    name: str
    formula: str
    has_features: bool
    layout: tuple[tuple[str, str], ...]
    differentiated: int  # how many of the arguments, from the first
    draw: Callable[[Shape, np.random.Generator], tuple]
    exact: Callable[..., tuple[float, tuple]]


def exact_rows(logits: np.ndarray, target: np.ndarray, kl: bool = False) -> tuple[float, np.ndarray]:
    """Sum of the rows' losses and its gradient. ``target``: labels, or probabilities; ``kl``: minus their entropy."""
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    if target.ndim == 1:
        rows = np.arange(len(logits))
        gradient = np.exp(log_p)
        gradient[rows, target] -= 1
        return -log_p[rows, target].sum(), gradient
    own = np.where(target > 0, target * np.log(np.where(target > 0, target, 1)), 0).sum() if kl else 0.0
    return own - (target * log_p).sum(), np.exp(log_p) * target.sum(1, keepdims=True) - target


def row_blocks(n: int, v: int) -> list[slice]:
    size = max(1, BLOCK // v)
    return [slice(start, start + size) for start in range(0, n, size)]


def exact_js(logits, teacher):
    """Jensen-Shannon at beta 1/2, and its gradient of the logits."""
    total, gradient = 0.0, np.empty_like(logits)
    for rows in row_blocks(*logits.shape):
        log_p, log_t = (x - x.max(1, keepdims=True) for x in (logits[rows], teacher[rows]))
        log_p, log_t = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (log_p, log_t))
        log_m = np.logaddexp(log_p, log_t) - np.log(2)
        p, t = np.exp(log_p), np.exp(log_t)
        chi = p * (log_p - log_m) / 2
        total += chi.sum() + (t * (log_t - log_m)).sum() / 2
        gradient[rows] = chi - p * chi.sum(1, keepdims=True)
    return total / len(logits), (gradient / len(logits),)


def exact_linear_kl(hidden, head, teacher_hidden, teacher_head):
    total, d_hidden, d_head = 0.0, np.empty_like(hidden), np.zeros_like(head)
    for rows in row_blocks(len(hidden), head.shape[1]):
        loss, dz = exact_rows(hidden[rows] @ head, probabilities(teacher_hidden[rows] @ teacher_head), kl=True)
        total, d_hidden[rows] = total + loss, dz @ head.T
        d_head += hidden[rows].T @ dz
    n = len(hidden)
    return total / n, (d_hidden / n, d_head / n)


def exact_logits(logits, target, kl: bool = False):
    total, gradient = 0.0, np.empty_like(logits)
    for rows in row_blocks(*logits.shape):
        loss, gradient[rows] = exact_rows(logits[rows], target[rows], kl)
        total += loss
    return total / len(logits), (gradient / len(logits),)


def exact_linear(hidden, head, labels):
    total, d_hidden, d_head = 0.0, np.empty_like(hidden), np.zeros_like(head)
    for rows in row_blocks(len(hidden), head.shape[1]):
        loss, dz = exact_rows(hidden[rows] @ head, labels[rows])
        total, d_hidden[rows] = total + loss, dz @ head.T
        d_head += hidden[rows].T @ dz
    n = len(hidden)
    return total / n, (d_hidden / n, d_head / n)


def exact_binary(logits, labels):
    magnitude = np.abs(logits)
    loss = np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-magnitude))
    return loss.mean(), ((np.exp(-np.logaddexp(0, -logits)) - labels) / logits.size,)


def exact_info_nce(queries, keys):
    n, own = len(queries), np.arange(len(queries))
    logits = queries @ keys.T / TEMPERATURE
    (rows, d_rows), (columns, d_columns) = exact_rows(logits, own), exact_rows(logits.T.copy(), own)
    dz = (d_rows + d_columns.T) / (2 * n * TEMPERATURE)
    return (rows + columns) / (2 * n), (dz @ keys, dz.T @ queries)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def draw_labels(shape, random):
    return random.integers(0, shape.v, shape.n, np.int32)


def draw_logits(shape, random):
    return 3 * normal(random, shape.n, shape.v)


def draw_linear(shape, random):
    """Logits of deviation 3."""
    return (
        normal(random, shape.n, shape.d),
        np.float32(3 * shape.d**-0.5) * normal(random, shape.d, shape.v),
        draw_labels(shape, random),
    )


def draw_batch(shape, random):
    """Unit vectors; each key is near its query, as in training."""
    queries = normal(random, shape.n, shape.d)
    keys = queries + normal(random, shape.n, shape.d)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, keys))


def probabilities(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


LOGITS, HIDDEN, HEAD, LABELS = ("nv", "float"), ("nd", "float"), ("dv", "float"), ("n", "int32")
LABELLED = Operation(
    "cross_entropy",
    "mean of lse(z) - z[label]",
    False,
    (LOGITS, LABELS),
    1,
    lambda shape, random: (draw_logits(shape, random), draw_labels(shape, random)),
    exact_logits,
)
PROJECTED = Operation(
    "linear_cross_entropy",
    "cross_entropy of z = hidden @ head",
    True,
    (HIDDEN, HEAD, LABELS),
    2,
    draw_linear,
    exact_linear,
)
BINARY = Operation(
    "binary_cross_entropy",
    "mean over all decisions of log(1 + exp(z)) - y z",
    False,
    (LOGITS, ("nv", "float32")),
    1,
    lambda shape, random: (draw_logits(shape, random), random.integers(0, 2, (shape.n, shape.v))),
    exact_binary,
)
SOFT = Operation(
    "soft_cross_entropy",
    "mean of -sum t log softmax(z)",
    False,
    (LOGITS, ("nv", "float32")),
    1,
    lambda shape, random: (draw_logits(shape, random), probabilities(draw_logits(shape, random))),
    exact_logits,
)
KL = Operation(
    "kl_divergence",
    "mean of KL(softmax(teacher) || softmax(z)), gradient of z",
    False,
    (LOGITS, LOGITS),
    1,
    lambda shape, random: (draw_logits(shape, random), draw_logits(shape, random)),
    lambda z, teacher: exact_logits(z, probabilities(teacher), kl=True),
)
JS = KL._replace(
    name="js_divergence",
    formula="mean of the Jensen-Shannon divergence of softmax(teacher) and softmax(z), gradient of z",
    exact=exact_js,
)
LINEAR_KL = Operation(
    "linear_kl_divergence",
    "kl_divergence of hidden @ head and of the teacher's own product, gradients of hidden and head",
    True,
    (HIDDEN, HEAD, HIDDEN, HEAD),
    2,
    lambda shape, random: (*draw_linear(shape, random)[:2], *draw_linear(shape, random)[:2]),
    exact_linear_kl,
)
INFO_NCE = Operation(
    "info_nce",
    f"symmetric InfoNCE at temperature {TEMPERATURE}, positives on the diagonal",
    True,
    (HIDDEN, HIDDEN),
    2,
    draw_batch,
    exact_info_nce,
)
OPERATIONS = {
    operation.name: operation
    for operation in (
        LABELLED,
        BINARY,
        PROJECTED,
        SOFT,
        KL,
        JS,
        LINEAR_KL,
        INFO_NCE,
        LABELLED._replace(name="sharded_cross_entropy", formula="cross_entropy, classes split over all devices"),
        PROJECTED._replace(
            name="sharded_linear_cross_entropy", formula="linear_cross_entropy, classes split over all devices"
        ),
    )
}
SHARDED = tuple(name for name in OPERATIONS if name.startswith("sharded_"))


def dimensions(case: Case) -> list[tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every argument."""
    kinds = {"float": case.dtype, "float32": "float32", "int32": "int32"}
    layout = OPERATIONS[case.operation].layout
    return [(tuple(getattr(case.shape, axis) for axis in axes), jnp.dtype(kinds[kind])) for axes, kind in layout]


def arguments(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Random, the same on every device."""
    drawn = OPERATIONS[case.operation].draw(case.shape, np.random.default_rng(seed))
    return tuple(array.astype(dtype) for array, (_, dtype) in zip(drawn, dimensions(case), strict=True))


def product_operations(case: Case, products: int | None = None) -> int:
    """Of the matrix products: the logits, and with gradients one more for each factor. ``products``: of a scheme that does
    another number of them."""
    n, v, d = case.shape
    return 2 * n * d * v * (products or (3 if case.mode == "value_and_grad" else 1))


def least_bytes(case: Case, differentiated: int | None = None) -> int:
    """Every argument once, every gradient once. ``differentiated``: of the arguments, where not as many as usual."""
    sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in dimensions(case)]
    count = (differentiated or OPERATIONS[case.operation].differentiated) if case.mode == "value_and_grad" else 0
    return sum(sizes) + sum(sizes[:count])
