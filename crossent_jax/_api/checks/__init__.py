"""Guards of the public arguments: one function each, returning the argument in the form the rest relies on.

They look at rank, shape, dtype and static values only, at trace time, and always run (chex's switch does not reach them).
What needs the data, such as the range of labels, belongs to ``guards.values()``.
"""

from .arrays import array as array
from .arrays import axis_name as axis_name
from .arrays import boolean as boolean
from .arrays import flag as flag
from .arrays import floating as floating
from .arrays import one_of as one_of
from .arrays import reduction as reduction
from .arrays import renumbered as renumbered
from .arrays import same_shape as same_shape
from .arrays import scalar as scalar
from .arrays import split_over as split_over
from .binary_calls import binary_labels as binary_labels
from .binary_calls import pos_weight as pos_weight
from .contrastive_calls import ids as ids
from .contrastive_calls import vectors as vectors
from .label_calls import batch_shape as batch_shape
from .label_calls import class_mask as class_mask
from .label_calls import class_weights as class_weights
from .label_calls import ignore_index as ignore_index
from .label_calls import labels as labels
from .label_calls import logits as logits
from .label_calls import row_weights as row_weights
from .label_calls import softcap as softcap
from .label_calls import targets as targets
from .label_calls import where as where
from .linear_calls import chunk_rows as chunk_rows
from .linear_calls import head_vocab_axis as head_vocab_axis
from .linear_calls import limits as limits
from .linear_calls import logits_dtype as logits_dtype
from .linear_calls import projection as projection
from .linear_calls import row_arg as row_arg
from .linear_calls import segment_ids as segment_ids
from .linear_calls import sequence as sequence
from .linear_calls import shift as shift
from .pair_calls import order as order
from .pair_calls import teacher_logits as teacher_logits
from .pair_calls import teacher_top_k as teacher_top_k
