"""Contrastive losses of queries and keys that are split over a mesh: what ``sharded`` does with them."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from . import checks
from .contrastive import info_nce, sigmoid_contrastive
from .mesh_specs import mapped, names_of, parted, refuse_made_here

CONTRASTIVE = (info_nce, sigmoid_contrastive)
OF_PAIRS = ("queries", "keys", "query_ids", "key_ids", "where")  # split as the batch is; other arrays are numbers


def sharded_pairs(function: Callable, given: Mapping[str, P]) -> Callable:
    """The loss of queries and keys that the specs ``given`` as ``hidden`` and ``head`` split over one mesh axis."""
    if "labels" in given:
        raise ValueError(f"{function.__name__} has no labels: leave their spec out; got labels={given['labels']}.")

    @wraps(function)
    def run(*arguments, **options):
        refuse_made_here(options, ("axis_name",))
        axis_name = _axis_of(given)
        arrays, static = _call(function, arguments, options)
        specs = {name: P(axis_name) if name in OF_PAIRS else P() for name in arrays}
        here = partial(function, **static, axis_name=axis_name)
        whole = partial(function, **static)
        fix = _fix(arrays["queries"].shape == arrays["keys"].shape)
        return mapped(lambda x: here(**x), lambda x: whole(**x), arrays, specs, P(), lambda name, axis: fix)

    return run


def _fix(as_many: bool) -> str:
    if as_many:
        return "Pad queries and keys alike, and mask the padding with where."
    return "Give as many queries, and as many keys, as the devices divide."


def _axis_of(given: Mapping[str, P]) -> str:
    """The mesh axis that splits the batch, of both."""
    of_queries, of_keys = (names_of(given[name], 2, name) for name in ("hidden", "head"))
    if of_queries != of_keys or of_queries[1] or len(of_queries[0]) != 1:
        raise ValueError(
            "one mesh axis must split the batch of both queries (hidden=) and keys (head=), as jax.P('data') does, and none "
            f"their features; got hidden={given['hidden']} and head={given['head']}."
        )
    return of_queries[0][0]


def _call(function: Callable, arguments: tuple, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(arrays, all other arguments)`` by name, ids numbered anew where that is needed before devices part."""
    bound = inspect.signature(function).bind(*arguments, **options)
    bound.apply_defaults()
    values = {name: x for name, x in bound.arguments.items() if name != "axis_name"}
    if values.get("query_ids") is not None and values.get("key_ids") is not None:
        ids = checks.renumbered(values["query_ids"], values["key_ids"])
        values |= dict(zip(("query_ids", "key_ids"), ids, strict=True))
    arrays, static = parted(values, OF_PAIRS)
    arrays = {name: checks.array(name, x) for name, x in arrays.items()}
    if not static.get("symmetric", False) and "query_ids" not in arrays and "key_ids" not in arrays:
        arrays |= _ids_of_more_keys(arrays["queries"], arrays["keys"])
    return arrays, static


def _ids_of_more_keys(queries: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
    """Where there are more keys than queries a pair may be on two devices: ids find it."""
    if not queries.ndim == keys.ndim == 2 or keys.shape[0] <= queries.shape[0]:
        return {}
    return {"query_ids": jnp.arange(queries.shape[0]), "key_ids": jnp.arange(keys.shape[0])}
