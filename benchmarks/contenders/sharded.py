"""Classes split over all devices: ours merges a few numbers per row by hand, the formula leaves it to XLA."""

from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import crossent_jax

from . import linear, logits
from .contender import Contender

AXIS = "classes"


def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))


def specs(arguments) -> tuple:
    """Matrices with the classes last are split; in a linear loss the hidden states, which come first, are not."""
    has_head = len(arguments) == 3
    return tuple(
        PartitionSpec(None, AXIS) if a.ndim == 2 and i == int(has_head) else PartitionSpec() for i, a in enumerate(arguments)
    )


def place(arguments) -> tuple:
    """The arguments on the devices, as their contenders expect them."""
    return tuple(jax.device_put(a, NamedSharding(mesh(), spec)) for a, spec in zip(arguments, specs(arguments), strict=True))


def over_devices(loss):
    def sharded(*arguments):
        return jax.shard_map(
            partial(loss, axis_name=AXIS), mesh=mesh(), in_specs=specs(arguments), out_specs=PartitionSpec()
        )(*arguments)

    return sharded


SHARDED_CROSS_ENTROPY = {
    "ours": Contender("cross_entropy(axis_name=...) in shard_map", lambda case: over_devices(crossent_jax.cross_entropy)),
    "logsumexp": Contender("the plain formula, split by XLA", lambda case: logits.logsumexp),
    "naive": Contender("softmax, then log, split by XLA", lambda case: logits.naive),
}
SHARDED_LINEAR_CROSS_ENTROPY = {
    "ours": Contender(
        "linear_cross_entropy(axis_name=...) in shard_map", lambda case: over_devices(crossent_jax.linear_cross_entropy)
    ),
    "logsumexp": Contender("the plain formula, split by XLA", lambda case: linear.of_logits(logits.logsumexp)),
    "naive": Contender("softmax, then log, split by XLA", lambda case: linear.of_logits(logits.naive)),
}
