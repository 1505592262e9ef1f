"""A trial made of an initialisation, a loss and an optax optimizer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._arguments import function, integer


def training(
    init: Callable, loss: Callable, predict: Callable, optimizer: Callable, *, steps: int, batch_size: int
) -> Callable:
    """A ``trial`` for :func:`search` that takes ``steps`` steps of an optimizer.

    Args:
        init: ``init(hyper, key) -> parameters``, any pytree of arrays.
        loss: ``loss(hyper, parameters, batch) -> scalar``: the training loss, with whatever smoothing or weights ``hyper``
            has.
        predict: ``predict(hyper, parameters, inputs) -> logits``.
        optimizer: ``optimizer(hyper)`` -> an optax ``GradientTransformation``. ``optax.inject_hyperparams(optax.adamw)(
            learning_rate=hyper["learning_rate"])`` keeps a traced hyper-parameter in the optimizer's state.
        steps: how many steps.
        batch_size: examples a step, drawn without replacement until less than a batch is left, then shuffled anew.

    Returns:
        ``trial(hyper, key, examples, inputs)``: give ``data=(examples, inputs)`` to ``search``. ``examples`` is a pytree of
        arrays whose first axis is that of the training examples; ``inputs`` are the held-out ones.

    Raises:
        TypeError: ``steps`` or ``batch_size`` not an integer, or one that is not a function.
        ValueError: ``steps`` or ``batch_size`` below 1, or more in a batch than there are examples.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optuna, crossent_jax
        >>> from crossent_jax import tuning
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> x = jax.random.normal(jax.random.key(0), (90, 2))
        >>> y = (x[:, 0] > 0).astype(jnp.int32)
        >>> def logits(hyper, weights, x):
        ...     return x @ weights
        >>> def loss(hyper, weights, batch):
        ...     return crossent_jax.cross_entropy(batch[0] @ weights, batch[1], label_smoothing=hyper["smoothing"])
        >>> trial = tuning.training(
        ...     lambda hyper, key: 0.1 * jax.random.normal(key, (2, 2)), loss, logits,
        ...     lambda hyper: optax.sgd(hyper["learning_rate"]), steps=20, batch_size=30,
        ... )
        >>> study = tuning.search(
        ...     trial, {"learning_rate": [0.01, 1.0], "smoothing": [0.0, 0.5]}, data=((x[:60], y[:60]), x[60:]),
        ...     labels=y[60:], sampler="grid", storage=None, seeds=2,
        ... )
        >>> study.best_params
        {'learning_rate': 1.0, 'smoothing': 0.0}
    """
    for name, value in {"init": init, "loss": loss, "predict": predict, "optimizer": optimizer}.items():
        function(name, value)
    steps, batch_size = integer("steps", steps), integer("batch_size", batch_size)

    def trial(hyper, key, examples, inputs):
        start, order = jax.random.split(key)
        parameters = init(hyper, start)
        transformation = optimizer(hyper)

        def step(carry, chosen):
            parameters, state = carry
            batch = jax.tree.map(lambda x: jnp.asarray(x)[chosen], examples)
            gradient = jax.grad(lambda parameters: loss(hyper, parameters, batch))(parameters)
            updates, state = transformation.update(gradient, state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        carry = parameters, transformation.init(parameters)
        batches = _batches(order, _length(examples), steps, batch_size)
        (parameters, _), _ = jax.lax.scan(step, carry, batches)
        return predict(hyper, parameters, inputs)

    return trial


def _length(examples: Any) -> int:
    lengths = {x.shape[0] for x in jax.tree.leaves(examples)}
    if len(lengths) != 1:
        raise ValueError(f"the arrays of examples must share their first axis; got lengths {sorted(lengths)}.")
    return lengths.pop()


def _batches(key: jax.Array, examples: int, steps: int, size: int) -> jax.Array:
    """(steps, size) positions of examples."""
    if size > examples:
        raise ValueError(f"batch_size is {size}, but there are {examples} examples.")
    each = examples // size
    keys = jax.random.split(key, -(-steps // each))
    orders = jax.vmap(lambda key: jax.random.permutation(key, examples)[: each * size])(keys)
    return jnp.reshape(orders, (-1, size))[:steps]
