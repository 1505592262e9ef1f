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


def torch_mean_losses(logits, labels, gradient: bool) -> dict:
    """Zero-argument functions that run ``torch.nn.functional.cross_entropy`` on copies; empty without torch.

    In half precision twice: as it is (a loss and a gradient rounded to 16 bits on the way) and on ``logits.float()``.
    """
    try:
        import torch
    except ImportError:
        return {}
    half = logits.dtype == jnp.bfloat16
    z = torch.from_numpy(jax.device_get(logits.astype(jnp.float32)).copy()).to(torch.bfloat16 if half else torch.float32)
    y = torch.from_numpy(jax.device_get(labels).copy()).long()
    z.requires_grad_(gradient)

    def run(convert):
        with torch.set_grad_enabled(gradient):
            loss = torch.nn.functional.cross_entropy(convert(z), y)
        return (loss.detach(), *(torch.autograd.grad(loss, z) if gradient else ()))

    runs = {"torch": lambda: run(lambda z: z)}
    return runs | {"torch float32": lambda: run(torch.Tensor.float)} if half else runs
