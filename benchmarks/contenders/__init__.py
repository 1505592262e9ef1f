"""Who is measured: the one table, by operation."""

from .binary import BINARY_CROSS_ENTROPY
from .contender import Contender as Contender
from .linear import LINEAR_CROSS_ENTROPY
from .logits import CROSS_ENTROPY
from .pairs import INFO_NCE, JS_DIVERGENCE, KL_DIVERGENCE, LINEAR_KL_DIVERGENCE, SOFT_CROSS_ENTROPY
from .sharded import SHARDED_CROSS_ENTROPY, SHARDED_LINEAR_CROSS_ENTROPY

CONTENDERS: dict[str, dict[str, Contender]] = {
    "cross_entropy": CROSS_ENTROPY,
    "binary_cross_entropy": BINARY_CROSS_ENTROPY,
    "linear_cross_entropy": LINEAR_CROSS_ENTROPY,
    "soft_cross_entropy": SOFT_CROSS_ENTROPY,
    "kl_divergence": KL_DIVERGENCE,
    "js_divergence": JS_DIVERGENCE,
    "linear_kl_divergence": LINEAR_KL_DIVERGENCE,
    "info_nce": INFO_NCE,
    "sharded_cross_entropy": SHARDED_CROSS_ENTROPY,
    "sharded_linear_cross_entropy": SHARDED_LINEAR_CROSS_ENTROPY,
}
