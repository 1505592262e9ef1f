"""What the losses are measured against: the formulas people write, and other libraries at their best settings.

Each is ``(logits, labels) -> mean loss``. Those in half precision compute in the logits' own dtype, as their authors wrote
them: a fast wrong answer is shown with its error.
"""

import jax
import jax.numpy as jnp
import optax

import crossent_jax


def ours(logits, labels):
    return crossent_jax.cross_entropy(logits, labels)


def optax_integer(logits, labels):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def optax_one_hot(logits, labels):
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.losses.softmax_cross_entropy(logits, one_hot).mean()


def naive(logits, labels):
    """softmax, then log."""
    probabilities = jax.nn.softmax(logits)
    return -jnp.log(jnp.take_along_axis(probabilities, labels[:, None], 1)).mean()


def logsumexp(logits, labels):
    chosen = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=-1) - chosen).mean()


FORMULAS = {
    "optax integer": optax_integer,
    "optax one-hot": optax_one_hot,
    "naive": naive,
    "logsumexp": logsumexp,
}


def torch_mean_loss(logits, labels, gradient: bool):
    """A zero-argument function that runs ``torch.nn.functional.cross_entropy`` on copies, or None without torch."""
    try:
        import torch
    except ImportError:
        return None
    dtype = torch.bfloat16 if logits.dtype == jnp.bfloat16 else torch.float32
    z = torch.from_numpy(jax.device_get(logits.astype(jnp.float32)).copy()).to(dtype).requires_grad_(gradient)
    y = torch.from_numpy(jax.device_get(labels).copy()).long()

    def run():
        if not gradient:
            with torch.no_grad():
                return torch.nn.functional.cross_entropy(z, y)
        loss = torch.nn.functional.cross_entropy(z, y)
        return torch.autograd.grad(loss, z)

    return run
