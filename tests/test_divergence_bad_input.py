"""What is wrong with a call of a divergence is said by name, with what was expected and what came; nothing is broadcast."""

import jax
import jax.numpy as jnp
import pytest

import crossent_jax
from crossent_jax import divergence, linear_divergence

Z, W = jnp.zeros((3, 5)), jnp.ones((3, 5))
HIDDEN, HEAD = jnp.ones((3, 2)), jnp.ones((2, 5))
TOP = jnp.zeros((3, 2), int).at[:, 1].set(1), jnp.full((3, 2), -1.0)

DENSE = [
    (
        {"teacher_logits": jnp.zeros((3, 6))},
        ValueError,
        r"teacher_logits must have the logits' shape \(3, 5\); got \(3, 6\)",
    ),
    ({"teacher_logits": jnp.zeros(5)}, ValueError, "Both need the same vocabulary"),
    ({"teacher_logits": jnp.zeros((3, 5), int)}, TypeError, "teacher_logits must have a floating dtype"),
    ({"teacher_logits": None}, TypeError, "teacher_logits must be an array"),
    ({"kind": "kl"}, ValueError, "kind must be one of 'forward_kl', 'reverse_kl'.*; got 'kl'"),
    ({"kind": 3}, ValueError, "or a function"),
    ({"kind": "js", "beta": 1.5}, ValueError, "beta must be a finite number, at least 0 and at most 1; got 1.5"),
    ({"beta": 0.3}, ValueError, "beta belongs to kind 'js'; got it with kind='forward_kl'"),
    ({"order": 2.0}, ValueError, "order belongs to kind 'renyi' and 'alpha'"),
    ({"kind": "renyi"}, TypeError, "kind='renyi' needs a static order: pass a Python number; got None"),
    ({"kind": "renyi", "order": -1.0}, ValueError, "order must be a finite number above 0"),
    ({"kind": "alpha", "order": 0.0}, ValueError, "the limit at 0 is kind='reverse_kl'"),
    ({"kind": "renyi", "order": jnp.float32(2)}, TypeError, "static order"),
    ({"kind": lambda log_p, log_t: log_p.sum()}, TypeError, "elementwise"),
    ({"kind": lambda log_p, log_t: (log_p, log_t)}, TypeError, "elementwise"),
    ({"label_weight": 0.5}, ValueError, "label_weight belongs to labels"),
    ({"ignore_index": 0}, ValueError, "ignore_index belongs to labels"),
    ({"labels": jnp.zeros(3)}, TypeError, "labels must have an integer dtype"),
    ({"labels": jnp.zeros((3, 5), int)}, ValueError, "labels must have the shape of the logits"),
    ({"labels": jnp.zeros(3, int), "label_weight": 2.0}, ValueError, "label_weight must be a finite number"),
    ({"stop_teacher_gradient": 1}, TypeError, "stop_teacher_gradient must be True or False; got 1"),
    ({"scale_by_temperature_squared": None}, TypeError, "scale_by_temperature_squared must be True or False"),
    ({"temperature": 0}, ValueError, "temperature must be a finite number, above 0"),
    ({"where": jnp.ones((3, 5), bool)}, ValueError, "A mask over classes is class_mask"),
    ({"class_mask": jnp.ones(3, bool)}, ValueError, "class_mask must have shape"),
    ({"row_weights": jnp.ones(2)}, ValueError, "row_weights must have"),
    ({"axis": 2}, ValueError, "axis 2 is outside logits"),
    ({"reduction": "batchmean"}, ValueError, "reduction must be one of"),
    ({"implementation": "cuda"}, ValueError, "implementation must be None"),
    ({"softcap": -1.0}, ValueError, "softcap must be a finite number above 0"),
]


@pytest.mark.parametrize("change, error, message", DENSE, ids=[message for _, _, message in DENSE])
def test_divergence(change, error, message):
    teacher = change.get("teacher_logits", W)
    options = {name: value for name, value in change.items() if name != "teacher_logits"}
    with pytest.raises(error, match=message):
        divergence(Z, teacher, **options)


LINEAR = [
    ({}, ValueError, "give the teacher once.*got none of them"),
    ({"teacher_logits": W, "teacher_top_k": TOP}, ValueError, "got teacher_logits, teacher_top_k"),
    ({"teacher_hidden": HIDDEN}, ValueError, "teacher_head is missing"),
    ({"teacher_head": HEAD}, ValueError, "teacher_hidden is missing"),
    ({"teacher_logits": W, "teacher_bias": jnp.ones(5)}, ValueError, "teacher_bias belongs to teacher_hidden"),
    ({"teacher_hidden": HIDDEN, "teacher_head": jnp.ones((2, 6))}, ValueError, "teacher_head has 6 classes and head 5"),
    (
        {"teacher_hidden": jnp.ones((4, 2)), "teacher_head": HEAD},
        ValueError,
        "teacher_hidden must have hidden's batch shape",
    ),
    ({"teacher_hidden": HIDDEN, "teacher_head": HEAD.T}, ValueError, "pass teacher_head_vocab_axis=0"),
    ({"teacher_logits": jnp.ones((3, 6))}, ValueError, "teacher_logits must have the logits' shape"),
    ({"teacher_top_k": TOP[0]}, TypeError, "teacher_top_k must be a pair"),
    ({"teacher_top_k": (TOP[1], TOP[1])}, TypeError, "the indices of teacher_top_k must have an integer dtype"),
    ({"teacher_top_k": (TOP[0], TOP[0])}, TypeError, "the log_probs of teacher_top_k must have a floating dtype"),
    ({"teacher_top_k": (TOP[0][:2], TOP[1])}, ValueError, "the indices of teacher_top_k must have the batch shape"),
    ({"teacher_top_k": (TOP[0], TOP[1][:, :1])}, ValueError, "the log_probs of teacher_top_k must have the shape"),
    ({"teacher_top_k": TOP, "top_k_tail": "drop"}, ValueError, "top_k_tail must be one of 'bucket', 'renormalize'"),
    ({"teacher_logits": W, "top_k_tail": "renormalize"}, ValueError, "top_k_tail belongs to teacher_top_k"),
    ({"teacher_top_k": TOP[::-1]}, TypeError, "the order of jax.lax.top_k. Swap the two"),
    ({"teacher_top_k": (TOP[0], 1 + 0 * TOP[1])}, ValueError, "log-probabilities of at most 1 in all: logits go through"),
    ({"teacher_logits": W, "chunk_rows": 0}, ValueError, "chunk_rows must be at least 1"),
]


@pytest.mark.parametrize("given, error, message", LINEAR, ids=[message for _, _, message in LINEAR])
def test_linear_divergence(given, error, message):
    with pytest.raises(error, match=message):
        linear_divergence(HIDDEN, HEAD, **given)


GUARDED = [
    (lambda: divergence(Z.at[1, 2].set(jnp.nan), W), r"logits\[1, 2\] is nan"),
    (lambda: divergence(Z, W.at[0, 4].set(jnp.inf)), r"teacher_logits\[0, 4\] is inf"),
    (lambda: divergence(Z, W, labels=jnp.array([0, 5, 1])), r"labels\[1\] is 5: expected a class id in \[0, 5\)"),
    (
        lambda: divergence(Z, W, kind="js", beta=jnp.float32(1.5)),
        "beta is 1.5: expected a finite number, at least 0 and at most 1",
    ),
    (lambda: divergence(Z, W, temperature=jnp.float32(0)), "temperature is 0.0"),
    (lambda: divergence(Z, W, row_weights=jnp.array([1.0, jnp.nan, 1.0])), r"row_weights\[1\] is nan"),
    (lambda: linear_divergence(HIDDEN, HEAD, teacher_top_k=(TOP[0].at[2, 0].set(7), TOP[1])), r"teacher_top_k\[2, 0\] is 7"),
    (lambda: linear_divergence(HIDDEN, HEAD, teacher_top_k=(TOP[0].at[2, 0].set(1), TOP[1])), "every class at most once"),
    (lambda: linear_divergence(HIDDEN, HEAD, teacher_top_k=(TOP[0], 0 * TOP[1])), "log-probabilities of at most 1 in all"),
    (lambda: linear_divergence(HIDDEN.at[0, 0].set(jnp.nan), HEAD, teacher_logits=W), r"hidden\[0, 0\] is nan"),
    (
        lambda: linear_divergence(HIDDEN, HEAD, teacher_hidden=HIDDEN, teacher_head=HEAD.at[1, 1].set(jnp.inf)),
        r"teacher_head\[1, 1\] is inf",
    ),
]


@pytest.mark.parametrize("call, message", GUARDED, ids=[message for _, message in GUARDED])
@pytest.mark.parametrize("jit", [False, True])
def test_value_guards(call, message, jit):
    with pytest.raises(ValueError, match=message), crossent_jax.guards.values():
        jax.block_until_ready((jax.jit(call) if jit else call)())


def test_masked_vocabulary_passes_the_guards():
    with crossent_jax.guards.values():
        value = divergence(Z, W.at[:, 0].set(-jnp.inf))
    assert jnp.isfinite(value)
