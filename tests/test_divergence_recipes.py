"""The code blocks of docs/divergences.md, as they stand there, against the formulas on whole arrays."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

PAGE = Path(__file__).resolve().parent.parent / "docs" / "divergences.md"
RECIPES: dict = {}
exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)), RECIPES)

N, D, E, V = 7, 5, 4, 19
KEYS = jax.random.split(jax.random.key(0), 4)
HIDDEN, HEAD = jax.random.normal(KEYS[0], (N, D)), jax.random.normal(KEYS[1], (D, V))
TEACHER_HIDDEN, TEACHER_HEAD = jax.random.normal(KEYS[2], (N, E)), jax.random.normal(KEYS[3], (E, V))
Z, W = HIDDEN @ HEAD, TEACHER_HIDDEN @ TEACHER_HEAD
LABELS = jnp.arange(N) * 3 % V


def kl(z, w, temperature=1.0):
    log_p, log_t = jax.nn.log_softmax(z / temperature), jax.nn.log_softmax(w / temperature)
    return (jnp.exp(log_t) * (log_t - log_p)).sum(-1)


def same(recipe, formula, *arguments):
    (value, gradient), (right, right_gradient) = (
        jax.value_and_grad(recipe)(*arguments),
        jax.value_and_grad(formula)(*arguments),
    )
    np.testing.assert_allclose(value, right, rtol=1e-5)
    np.testing.assert_allclose(gradient, right_gradient, rtol=1e-4, atol=1e-6)


def test_soft_and_hard_targets():
    def formula(z, w, labels):
        hard = -jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], 1)[:, 0]
        return (0.9 * 4 * kl(z, w, 2.0) + 0.1 * hard).mean()

    same(RECIPES["distillation_loss"], formula, Z, W, LABELS)


def test_two_heads():
    arguments = HIDDEN, HEAD, TEACHER_HIDDEN, TEACHER_HEAD
    same(RECIPES["fused_distillation_loss"], lambda x, w, y, u: kl(x @ w, y @ u).mean(), *arguments)


def test_stored_teacher():
    log_probs, indices = jax.lax.top_k(jax.nn.log_softmax(W), 3)

    def formula(hidden, head, indices, log_probs):
        p, t = jnp.take_along_axis(jax.nn.softmax(hidden @ head), indices, -1), jnp.exp(log_probs)
        rest = (1 - t.sum(-1)) * jnp.log((1 - t.sum(-1)) / (1 - p.sum(-1)))
        return ((t * jnp.log(t / p)).sum(-1) + rest).mean()

    same(RECIPES["offline_distillation_loss"], formula, HIDDEN, HEAD, indices, log_probs)


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def test_clip():
    def formula(images, texts, log_scale):
        z = unit(images) @ unit(texts).T * jnp.exp(log_scale)
        return -(jnp.diagonal(jax.nn.log_softmax(z, 0)) + jnp.diagonal(jax.nn.log_softmax(z, 1))).mean() / 2

    same(RECIPES["clip_loss"], formula, HIDDEN, jnp.sin(HIDDEN), jnp.float32(1.5))


def test_supervised():
    classes = jnp.arange(N) % 3

    def formula(vectors, others, classes):
        log_p = [jax.nn.log_softmax(z / 0.1) for z in (vectors @ others.T, others @ vectors.T)]
        same_class = (classes[:, None] == classes[None]).astype(jnp.float32)
        rows = [-(same_class * x).sum(1) / same_class.sum(1) for x in log_p]
        return (rows[0].mean() + rows[1].mean()) / 2

    same(RECIPES["supervised_contrastive_loss"], formula, unit(HIDDEN), unit(jnp.sin(HIDDEN)), classes)


def test_siglip():
    def formula(images, texts, log_scale, bias):
        z = images @ texts.T * jnp.exp(log_scale) + bias
        return -jax.nn.log_sigmoid(jnp.where(jnp.eye(N) > 0, z, -z)).sum() / N

    same(RECIPES["siglip_loss"], formula, unit(HIDDEN), unit(jnp.sin(HIDDEN)), jnp.float32(1.5), jnp.float32(-3.0))
