"""Inside ``jax.shard_map`` every function has the gradient of each argument alone: the types of a mesh, which show in
``jax.eval_shape``. Values on a mesh are in ``test_sharding.py``, ``test_linear_transforms.py``, ``test_divergence_mesh.py``.
"""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import crossent_jax

N, D, V, K = 8, 6, 12, 3  # of all devices: 2 of rows, 2 of classes
ROLES = {
    "logits": "nv",
    "teacher_logits": "nv",
    "targets": "nv",
    "hidden": "nd",
    "teacher_hidden": "nd",
    "head": "dv",
    "teacher_head": "dv",
    "bias": "v",
    "class_weights": "v",
    "class_mask": "v",
    "row_weights": "n",
    "where": "n",
    "labels": "n",
    "advantages": "n",
    "indices": "nk",
    "log_probs": "nk",
    "temperature": "",
    "z_loss": "",
    "label_smoothing": "",
    "beta": "",
    "label_weight": "",
    "pos_weight": "",
    "queries": "nd",
    "keys": "nd",
    "decisions": "nk",
    "decision_labels": "nk",
}
WHOLE = {"labels": jnp.int32, "indices": jnp.int32, "where": jnp.bool_, "class_mask": jnp.bool_}
CHUNKS = {"chunk_rows": 3}  # which does not divide the 4 rows of a device
SIZES = {"n": N, "d": D, "v": V, "k": K}


def take(a, *names):
    return {name: a[name] for name in names}


def top_k(a, axis_name):
    teacher = a["indices"], a["log_probs"]
    options = {"axis_name": axis_name, "temperature": a["temperature"]} | CHUNKS
    return crossent_jax.linear_divergence(a["hidden"], a["head"], teacher_top_k=teacher, **options)


def own(reduction, a, axis_name):
    def loss(stats, advantage):
        return advantage * stats.nll - 0.1 * stats.entropy + stats.lse

    call = a["hidden"], a["head"], a["labels"], a["advantages"]
    options = take(a, "bias", "temperature") | {"axis_name": axis_name, "reduction": reduction} | CHUNKS
    return jnp.sum(crossent_jax.linear_loss(loss, *call, **options))


def all_statistics(stats):
    return sum(jnp.sum(x) for x in stats if x is not None and x.dtype != jnp.int32)


TERMS = ("temperature", "z_loss", "label_smoothing", "class_weights", "row_weights")
CALLS = {  # name: (the floating arguments, the others, function of the arguments and axis_name)
    "cross_entropy": (
        ("logits", *TERMS),
        ("labels", "where", "class_mask"),
        lambda a, axis: crossent_jax.cross_entropy(
            a["logits"], a["labels"], axis_name=axis, **take(a, *TERMS, "where", "class_mask"), entropy_weight=0.1
        ),
    ),
    "cross_entropy plain": (
        ("logits",),
        ("labels",),
        lambda a, axis: crossent_jax.cross_entropy(a["logits"], a["labels"], axis_name=axis),
    ),
    "soft_cross_entropy": (
        ("logits", "targets", *TERMS),
        (),
        lambda a, axis: crossent_jax.soft_cross_entropy(a["logits"], a["targets"], axis_name=axis, **take(a, *TERMS)),
    ),
    "row_stats": (
        ("logits", "temperature"),
        ("labels",),
        lambda a, axis: all_statistics(
            crossent_jax.row_stats(a["logits"], a["labels"], axis_name=axis, temperature=a["temperature"])
        ),
    ),
    "token_log_probs": (
        ("logits",),
        ("labels",),
        lambda a, axis: jnp.sum(crossent_jax.token_log_probs(a["logits"], a["labels"], axis_name=axis)),
    ),
}
CALLS |= {
    "linear_cross_entropy": (
        ("hidden", "head", "bias", *TERMS),
        ("labels", "where"),
        lambda a, axis: crossent_jax.linear_cross_entropy(
            a["hidden"], a["head"], a["labels"], axis_name=axis, **take(a, "bias", "where", *TERMS), **CHUNKS
        ),
    ),
    "linear_cross_entropy none": (
        ("hidden", "head", "temperature"),
        ("labels",),
        lambda a, axis: jnp.sum(
            crossent_jax.linear_cross_entropy(
                a["hidden"],
                a["head"],
                a["labels"],
                axis_name=axis,
                temperature=a["temperature"],
                reduction="none",
                **CHUNKS,
            )
        ),
    ),
    "linear_soft_cross_entropy": (
        ("hidden", "head", "targets", "temperature", "class_weights"),
        (),
        lambda a, axis: crossent_jax.linear_soft_cross_entropy(
            a["hidden"], a["head"], a["targets"], axis_name=axis, **take(a, "temperature", "class_weights"), **CHUNKS
        ),
    ),
    "linear_row_stats": (
        ("hidden", "head", "bias"),
        ("labels",),
        lambda a, axis: all_statistics(
            crossent_jax.linear_row_stats(a["hidden"], a["head"], a["labels"], bias=a["bias"], axis_name=axis, **CHUNKS)
        ),
    ),
    "linear_token_log_probs": (
        ("hidden", "head", "temperature"),
        ("labels",),
        lambda a, axis: jnp.sum(
            crossent_jax.linear_token_log_probs(
                a["hidden"], a["head"], a["labels"], temperature=a["temperature"], axis_name=axis, **CHUNKS
            )
        ),
    ),
    "linear_loss": (
        ("hidden", "head", "bias", "temperature", "advantages"),
        ("labels",),
        partial(own, "mean"),
    ),
    "linear_loss none": (
        ("hidden", "head", "bias", "temperature", "advantages"),
        ("labels",),
        partial(own, "none"),
    ),
    "linear_divergence logits": (
        ("hidden", "head", "teacher_logits", "temperature", "label_weight"),
        ("labels", "where"),
        lambda a, axis: crossent_jax.linear_divergence(
            a["hidden"],
            a["head"],
            axis_name=axis,
            **take(a, "teacher_logits", "temperature", "labels", "label_weight", "where"),
            **CHUNKS,
        ),
    ),
    "linear_divergence heads": (
        ("hidden", "head", "teacher_hidden", "teacher_head", "row_weights"),
        (),
        lambda a, axis: crossent_jax.linear_divergence(
            a["hidden"],
            a["head"],
            axis_name=axis,
            kind="js",
            **take(a, "teacher_hidden", "teacher_head", "row_weights"),
            **CHUNKS,
        ),
    ),
}
CALLS["linear_divergence top k"] = (("hidden", "head", "log_probs", "temperature"), ("indices",), top_k)
for kind in ("forward_kl", "reverse_kl", "js", "jeffreys", "total_variation", "renyi"):
    CALLS[f"divergence {kind}"] = (
        ("logits", "teacher_logits", "temperature", "row_weights", "label_weight"),
        ("labels", "where", "class_mask"),
        lambda a, axis, kind=kind: crossent_jax.divergence(
            a["logits"],
            a["teacher_logits"],
            kind=kind,
            order=2.0 if kind == "renyi" else None,
            axis_name=axis,
            **take(a, "temperature", "row_weights", "label_weight", "labels", "where", "class_mask"),
        ),
    )
CALLS["divergence stopped"] = (
    ("logits",),
    ("teacher_logits",),
    lambda a, axis: crossent_jax.kl_divergence(a["logits"], a["teacher_logits"], stop_teacher_gradient=True, axis_name=axis),
)
for name in ("info_nce", "sigmoid_contrastive"):  # their mesh axis is that of the rows
    CALLS[name] = (
        ("queries", "keys", "temperature"),
        ("where",),
        lambda a, axis, name=name: getattr(crossent_jax, name)(
            a["queries"], a["keys"], axis_name="data", **take(a, "temperature", "where"), **CHUNKS
        ),
    )
CALLS["info_nce one-sided, by ids"] = (
    ("queries", "keys"),
    ("labels",),
    lambda a, axis: crossent_jax.info_nce(
        a["queries"],
        a["keys"],
        temperature=0.5,
        symmetric=False,
        query_ids=a["labels"],
        key_ids=a["labels"],
        axis_name="data",
    ),
)
CALLS["binary_cross_entropy"] = (
    ("decisions", "decision_labels", "pos_weight", "label_smoothing"),
    (),
    lambda a, axis: jnp.sum(
        crossent_jax.binary_cross_entropy(
            a["decisions"], a["decision_labels"], reduction="sum", **take(a, "pos_weight", "label_smoothing")
        )
    ),
)
SPLIT = {"n": "data", "v": "vocab"}  # what fails where one of them is split fails where both are


@pytest.mark.parametrize("check_vma", (True, False), ids=("vma", "no vma"))
@pytest.mark.parametrize("call", CALLS)
def test_the_gradient_of_each_argument_alone(call, check_vma):
    floating, others, function = CALLS[call]
    mesh = jax.make_mesh((2, 2), ("data", "vocab"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    arrays = {
        name: jax.ShapeDtypeStruct(tuple(SIZES[axis] for axis in ROLES[name]), WHOLE.get(name, jnp.float32))
        for name in (*floating, *others)
    }
    specs = {name: P(*map(SPLIT.get, ROLES[name])) for name in arrays}
    wrap = partial(jax.shard_map, mesh=mesh, check_vma=check_vma)

    def loss(a):
        return jax.lax.psum(function(a, "vocab"), "data")

    def inside(name, a):
        return jax.grad(lambda x: loss(a | {name: x}))(a[name])

    def outside(name, a):
        return jax.grad(lambda x: wrap(loss, in_specs=(specs,), out_specs=P())(a | {name: x}))(a[name])

    failed = []
    for name in floating:
        within = wrap(partial(inside, name), in_specs=(specs,), out_specs=specs[name])
        programs = {"inside": within} | ({"outside": partial(outside, name)} if check_vma else {})
        for where, program in programs.items():
            try:
                found = jax.eval_shape(program, arrays)
                assert (found.shape, found.dtype) == (arrays[name].shape, arrays[name].dtype)
            except Exception as error:  # the whole list is what helps
                failed.append(f"{name} {where} shard_map: {type(error).__name__}: {str(error)[:200]}")
    assert failed == []
