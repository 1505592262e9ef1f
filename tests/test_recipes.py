"""The code blocks of docs/recipes.md, as they stand there: values against the formulas in float64, gradients against those
of the same formulas on whole logits."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
BATCH, LENGTH, FEATURES, CLASSES = 6, 9, 5, 37
BETA, CLIP = 0.3, 0.15
RECIPES: dict = {}
exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)), RECIPES)

random = np.random.default_rng(7)
HEAD = random.normal(size=(FEATURES, CLASSES))
OLD_HEAD, REFERENCE_HEAD = (HEAD + 0.1 * random.normal(size=HEAD.shape) for _ in range(2))
HIDDEN = random.normal(size=(BATCH, LENGTH, FEATURES))
TOKENS = random.integers(CLASSES, size=(BATCH, LENGTH), dtype=np.int32)
MASK = (np.arange(LENGTH) >= 2) & (np.arange(LENGTH) < np.array([[4], [5], [6], [7], [8], [9]]))
REWARDS = random.normal(size=(2, 3))
HALF = BATCH // 2


# The formulas of the papers on whole logits: of numpy in float64, of jax.numpy in float32


def dense_log_probs(xp, hidden, head):
    """log softmax at the tokens, 0 at masked ones."""
    logits = (hidden @ head)[:, :-1]
    logs = logits - xp.log(xp.exp(logits).sum(-1, keepdims=True))
    chosen = xp.take_along_axis(logs, TOKENS[:, 1:, None], axis=-1)[..., 0]
    return xp.concatenate([xp.zeros_like(chosen[:, :1]), xp.where(MASK[:, 1:], chosen, 0)], axis=1)


def dense_dpo(xp, hidden, head):
    """Pairs are rows i (chosen) and HALF + i (rejected)."""
    ratios = (dense_log_probs(xp, hidden, head) - dense_log_probs(xp, hidden, cast(xp, REFERENCE_HEAD))).sum(-1)
    return xp.log(1 + xp.exp(-BETA * (ratios[:HALF] - ratios[HALF:]))).mean()


def dense_grpo(xp, hidden, head):
    """A sum over answers and tokens, one term at a time."""
    heads = (head, cast(xp, OLD_HEAD), cast(xp, REFERENCE_HEAD))
    new, old, reference = (dense_log_probs(xp, hidden, each) for each in heads)
    total = 0.0
    for row, advantage in enumerate(expected_advantages().reshape(-1).tolist()):
        for place in np.flatnonzero(MASK[row]):
            ratio = xp.exp(new[row, place] - old[row, place])
            gain = xp.minimum(ratio * advantage, xp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
            to_reference = xp.exp(reference[row, place] - new[row, place])
            total += (gain - BETA * (to_reference - xp.log(to_reference) - 1)) / float(MASK[row].sum())
    return -total / BATCH


def dense_perplexity(xp, hidden, head):
    return xp.exp(-dense_log_probs(xp, hidden, head).sum() / float(MASK.sum()))


def expected_advantages():
    return (REWARDS - REWARDS.mean(1)[:, None]) / (REWARDS.std(1)[:, None] + 1e-4)


def cast(xp, array):
    return array if xp is np else jnp.asarray(array, jnp.float32)


# The recipes, called as the page says


def log_probs(hidden, head):
    return RECIPES["log_probs"](hidden, head, TOKENS, MASK)


def dpo(hidden, head):
    policy, reference = log_probs(hidden, head).sum(-1), log_probs(hidden, cast(jnp, REFERENCE_HEAD)).sum(-1)
    return RECIPES["dpo_loss"](policy[:HALF], policy[HALF:], reference[:HALF], reference[HALF:], BETA)


def grpo(hidden, head):
    old, reference = (log_probs(hidden, cast(jnp, frozen)) for frozen in (OLD_HEAD, REFERENCE_HEAD))
    advantages = RECIPES["group_advantages"](cast(jnp, REWARDS)).reshape(-1)
    return RECIPES["grpo_loss"](log_probs(hidden, head), old, reference, jnp.asarray(MASK), advantages, CLIP, BETA)


def perplexity(hidden, head):
    parts = (slice(0, 1), slice(1, BATCH))  # of 2 and 25 tokens: the mean of their means would be another
    return RECIPES["perplexity"]([(hidden[part], TOKENS[part], jnp.asarray(MASK[part])) for part in parts], head)


LOSSES = {"dpo": (dpo, dense_dpo), "grpo": (grpo, dense_grpo), "perplexity": (perplexity, dense_perplexity)}


@pytest.mark.parametrize("name", LOSSES)
def test_value_is_the_formula_in_float64(name):
    recipe, formula = LOSSES[name]
    assert np.allclose(recipe(cast(jnp, HIDDEN), cast(jnp, HEAD)), formula(np, HIDDEN, HEAD), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_whole_logits(name):
    recipe, formula = LOSSES[name]
    arguments = cast(jnp, HIDDEN), cast(jnp, HEAD)
    ours = jax.jit(jax.grad(recipe, (0, 1)))(*arguments)
    expected = jax.jit(jax.grad(lambda hidden, head: formula(jnp, hidden, head), (0, 1)))(*arguments)
    for mine, right in zip(ours, expected, strict=True):
        assert np.abs(right).max() > 1e-3
        assert np.allclose(mine, right, rtol=0, atol=1e-5 * np.abs(right).max())


def test_some_ratios_are_clipped_and_some_are_not():
    new, old = (dense_log_probs(np, HIDDEN, head) for head in (HEAD, OLD_HEAD))
    clipped = np.abs(np.exp(new - old) - 1)[MASK] > CLIP
    assert clipped.any() and not clipped.all()


def test_equal_rewards_have_no_advantage():
    assert np.abs(RECIPES["group_advantages"](jnp.full((2, 7), 0.1))).max() < 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_masked_hidden_states_change_nothing(name):
    """The state before a masked token predicts nothing: NaN there reaches neither the value nor a gradient."""
    recipe, _ = LOSSES[name]
    states = np.roll(MASK, -1, axis=1)[..., None]
    clean, poisoned = (cast(jnp, np.where(states, HIDDEN, value)) for value in (0.0, np.nan))
    run = jax.value_and_grad(recipe, (0, 1))
    results = (jax.tree.leaves(run(hidden, cast(jnp, HEAD))) for hidden in (poisoned, clean))
    for mine, right in zip(*results, strict=True):
        assert np.array_equal(mine, right)
