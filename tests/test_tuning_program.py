"""Trials that train together are those that train alone; with every optimizer that is given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import pytest

import crossent_jax
from crossent_jax import tuning
from crossent_jax.tuning._training import _batches

SPACE = {"learning_rate": [0.03, 0.3], "smoothing": [0.0, 0.3], "decay": [0.0, 0.1]}
X = jax.random.normal(jax.random.key(0), (97, 5))
Y = jnp.argmax(X[:, :3] + 0.3 * jax.random.normal(jax.random.key(1), (97, 3)), 1)
EXAMPLES, INPUTS, LABELS = (X[:60], Y[:60]), X[60:], Y[60:]


@pytest.fixture(autouse=True)
def no_log():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def init(hyper, key):
    first, second = jax.random.split(key)
    return {"in": 0.5 * jax.random.normal(first, (5, 7)), "out": 0.5 * jax.random.normal(second, (7, 3))}


def predict(hyper, parameters, inputs):
    return jnp.tanh(inputs @ parameters["in"]) @ parameters["out"]


def loss(hyper, parameters, batch):
    return crossent_jax.cross_entropy(
        predict(hyper, parameters, batch[0]), batch[1], label_smoothing=hyper["smoothing"], z_loss=1e-3
    )


def adamw(hyper):
    return optax.adamw(hyper["learning_rate"], weight_decay=hyper["decay"])


def injected(hyper):
    return optax.inject_hyperparams(optax.adamw)(learning_rate=hyper["learning_rate"], weight_decay=hyper["decay"])


def made(optimizer):
    return tuning.training(init, loss, predict, optimizer, steps=25, batch_size=13)


@pytest.fixture
def usual_promotion():
    """Adam in optax multiplies integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("optimizer, at_once", [(adamw, None), (injected, 5), (injected, 100)])
def test_together_is_as_alone(optimizer, at_once):
    """The plain loss of held-out labels, whatever the training loss was."""
    options = {"data": (EXAMPLES, INPUTS), "labels": LABELS, "sampler": "grid", "storage": None, "at_once": at_once}
    study = tuning.search(made(optimizer), SPACE, seeds=2, random_seed=5, **options)
    alone = jax.jit(made(optimizer))
    for trial in study.trials:
        hyper = {name: jnp.float32(value) for name, value in trial.params.items()}
        for key, found in zip(jax.random.split(jax.random.key(5), 2), trial.user_attrs["nll_of_seeds"], strict=True):
            logits = np.float64(alone(hyper, key, EXAMPLES, INPUTS))
            nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), LABELS]
            assert found == pytest.approx(nll.mean(), rel=2e-5)
    assert study.best_value < 0.6 * np.log(3)  # it has learned


def test_every_example_once_an_epoch():
    batches = np.asarray(_batches(jax.random.key(0), 60, 11, 13))
    assert batches.shape == (11, 13)
    for epoch in (batches[:4], batches[4:8], batches[8:]):
        assert len(set(epoch.ravel())) == epoch.size
    assert set(batches[:8].ravel()) <= set(range(60)) and not np.array_equal(batches[:4], batches[4:8])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0, "batch_size": 5}, "steps must be at least 1; got 0"),
        ({"steps": 5, "batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"steps": 5, "batch_size": 61}, "batch_size is 61, but there are 60 examples"),
    ],
)
def test_bad_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        trial = tuning.training(init, loss, predict, adamw, **options)
        trial({"learning_rate": 0.1, "smoothing": 0.1, "decay": 0.0}, jax.random.key(0), EXAMPLES, INPUTS)


def test_examples_of_different_lengths():
    with pytest.raises(ValueError, match=r"must share their first axis; got lengths \[59, 60\]"):
        made(adamw)({"learning_rate": 0.1, "decay": 0.0}, jax.random.key(0), (X[:60], Y[:59]), INPUTS)
