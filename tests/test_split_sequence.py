"""``shift`` over a mesh axis that splits the sequence: a device's last states predict the first labels of the next one."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import crossent_jax

from . import grid

BATCH, SEQUENCE, FEATURES, CLASSES, DEVICES = 3, 24, 5, 14, 4
GEN = grid.rng("split sequence")
HIDDEN = jnp.asarray(GEN.standard_normal((BATCH, SEQUENCE, FEATURES)), jnp.float32)
HEAD = jnp.asarray(GEN.standard_normal((FEATURES, CLASSES)), jnp.float32)
TOKENS = {
    "labels": jnp.asarray(GEN.integers(0, CLASSES, (BATCH, SEQUENCE)), jnp.int32),
    "where": jnp.asarray(GEN.random((BATCH, SEQUENCE)) < 0.8),
    "row_weights": jnp.asarray(GEN.random((BATCH, SEQUENCE)), jnp.float32),
    "segment_ids": jnp.asarray(np.sort(GEN.integers(0, 4, (BATCH, SEQUENCE))), jnp.int32),
}
SPLIT, WHOLE = P(None, "sequence"), P()


def over_devices(function, out_specs, check_vma=True, of_head=WHOLE):
    """``function(hidden, head, tokens)`` on four devices by two."""
    mesh = jax.make_mesh((DEVICES, 2), ("sequence", "classes"), axis_types=(AxisType.Auto, AxisType.Auto))
    in_specs = (SPLIT, of_head, dict.fromkeys(TOKENS, SPLIT))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma)


def sums(hidden, head, tokens, devices=None, **options):
    """The sum of losses and its weight, over all devices where their axis is named."""
    loss = crossent_jax.linear_cross_entropy(hidden, head, **tokens, reduction="loss_sum", label_smoothing=0.1, **options)
    loss = loss.psum(devices) if devices else loss
    return loss.total, loss.weight


ACROSS = {"devices": "sequence", "sequence_axis_name": "sequence"}


@cache
def whole(shift):
    return jax.value_and_grad(partial(sums, shift=shift), (0, 1), has_aux=True)(HIDDEN, HEAD, TOKENS)


CASES = {
    "one place": (1, True, {}),
    "vma off": (1, False, {}),
    "all places of a device": (6, True, {}),
    "classes split too": (1, True, {"axis_name": "classes"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_split_sequence_gives_the_same(case):
    shift, check_vma, options = CASES[case]
    split = over_devices(
        partial(sums, shift=shift, **ACROSS, **options),
        (WHOLE, WHOLE),
        check_vma,
        P(None, "classes") if options else WHOLE,
    )
    ours = grid.quick(jax.value_and_grad(split, (0, 1), has_aux=True))(HIDDEN, HEAD, TOKENS)
    for mine, right in zip(jax.tree.leaves(ours), jax.tree.leaves(whole(shift)), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-5, atol=1e-5)


def results(hidden, head, tokens, **options):
    """Of each token, in three functions."""
    others = {name: x for name, x in tokens.items() if name != "row_weights"}
    return (
        crossent_jax.linear_cross_entropy(hidden, head, **tokens, reduction="none", **options),
        crossent_jax.linear_token_log_probs(hidden, head, **others, **options),
        crossent_jax.linear_loss(
            lambda stats, weight: weight * stats.nll,
            hidden, head, tokens["labels"], tokens["row_weights"], reduction="none", **options,
        ),
    )  # fmt: skip


def test_results_of_tokens_stand_at_the_tokens():
    split = over_devices(partial(results, shift=2, sequence_axis_name="sequence"), (SPLIT, SPLIT, SPLIT))
    right = results(HIDDEN, HEAD, TOKENS, shift=2)
    for mine, other in zip(grid.quick(split)(HIDDEN, HEAD, TOKENS), right, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_only_borders_travel():
    """``shift`` places of each of the four arrays of tokens, and the sum."""
    split = over_devices(partial(sums, shift=1, **ACROSS), (WHOLE, WHOLE))
    text = grid.quick(split).lower(HIDDEN, HEAD, TOKENS).compile().as_text()
    moved = [line for line in text.splitlines() if " collective-permute(" in line]
    assert len(moved) == len(TOKENS) and all(f"[{BATCH},1]" in line for line in moved)
    assert not any(f" {name}(" in text for name in ("all-gather", "all-to-all"))


REFUSED = {
    "no such axis": ({"sequence_axis_name": "rows", "shift": 1}, ValueError, "no mesh axis here"),
    "not a name": ({"sequence_axis_name": 0, "shift": 1}, TypeError, "splits the sequence"),
    "no shift": ({"sequence_axis_name": "sequence", "shift": 0}, ValueError, "shift=0"),
    "the classes' axis": ({"sequence_axis_name": "sequence", "shift": 1, "axis_name": "sequence"}, ValueError, "for both"),
    "a long shift": ({"sequence_axis_name": "sequence", "shift": 7}, ValueError, "at most the places of a device, 6"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    options, error, words = REFUSED[case]

    def loss(hidden, head, tokens):
        return crossent_jax.linear_cross_entropy(hidden, head, tokens["labels"], reduction="none", **options)

    with pytest.raises(error, match=words):
        jax.eval_shape(over_devices(loss, SPLIT), HIDDEN, HEAD, TOKENS)


@pytest.mark.parametrize("same", ["hidden", "labels"])
def test_a_sequence_that_is_not_split_is_refused(same):
    places = SEQUENCE // DEVICES

    def loss(hidden, head, tokens):
        hidden = HIDDEN[:, :places] if same == "hidden" else hidden
        labels = TOKENS["labels"][:, :places] if same == "labels" else tokens["labels"]
        return crossent_jax.linear_cross_entropy(hidden, head, labels, shift=1, sequence_axis_name="sequence")

    with pytest.raises(ValueError, match=f"{same} must be split over sequence_axis_name='sequence'"):
        jax.eval_shape(over_devices(loss, WHOLE), HIDDEN, HEAD, TOKENS)
