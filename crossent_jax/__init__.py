"""Exact cross-entropy and KL losses for JAX."""

from . import guards as guards
from . import information as information
from ._api.binary import binary_cross_entropy as binary_cross_entropy
from ._api.contrastive import info_nce as info_nce
from ._api.contrastive import sigmoid_contrastive as sigmoid_contrastive
from ._api.cross_entropy import cross_entropy as cross_entropy
from ._api.cross_entropy import row_stats as row_stats
from ._api.cross_entropy import soft_cross_entropy as soft_cross_entropy
from ._api.cross_entropy import token_log_probs as token_log_probs
from ._api.dispatch import explain as explain
from ._api.divergences import divergence as divergence
from ._api.divergences import jeffreys_divergence as jeffreys_divergence
from ._api.divergences import js_divergence as js_divergence
from ._api.divergences import kl_divergence as kl_divergence
from ._api.divergences import reverse_kl_divergence as reverse_kl_divergence
from ._api.divergences import total_variation as total_variation
from ._api.kl_arrays import kl as kl
from ._api.linear import linear_cross_entropy as linear_cross_entropy
from ._api.linear import linear_loss as linear_loss
from ._api.linear import linear_row_stats as linear_row_stats
from ._api.linear import linear_soft_cross_entropy as linear_soft_cross_entropy
from ._api.linear import linear_token_log_probs as linear_token_log_probs
from ._api.linear_divergence import linear_divergence as linear_divergence
from ._api.show_versions import show_versions as show_versions
from ._row.reduce import LossSum as LossSum
from ._row.state import RowStats as RowStats
