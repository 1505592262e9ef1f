"""`--task digits`: classifies 8×8 handwritten digits, beside logistic regression and the majority class."""

import itertools
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score, train_test_split
from threadpoolctl import threadpool_limits

from . import model
from .batches import Examples
from .evaluate import Score
from .experiment import Options, Outcome, Task, run
from .plot import save_picture
from .report import conclude, print_cost, print_table

CLASSES = 10
WIDTHS = (64, 256, 256, CLASSES)
PEAK_LEARNING_RATE = 2e-3
INVERSE_PENALTIES = (1.0, 3.0, 10.0, 30.0)


class Baselines(NamedTuple):
    """Held-out scores of what the network has to beat."""

    majority: Score
    logistic: Score


def main(options: Options) -> int:
    """Runs the task and returns the exit status."""
    train, validation = read_digits()
    print(f"read {len(train.labels)} digits to train on, {len(validation.labels)} held out")
    baselines = fit_baselines(train, validation)
    task = Task(apply, init(options.seed), train, validation, PEAK_LEARNING_RATE)
    outcome = run(task, options)
    print_scores(outcome, baselines, len(validation.labels))
    print_cost(outcome)
    title = "Classifier of handwritten digits, trained with crossent_jax.cross_entropy"
    picture = save_picture(options.out / "digits.png", title, outcome, "image")
    return conclude(outcome, "logistic regression", baselines.logistic.nll, picture)


def read_digits() -> tuple[Examples, Examples]:
    """Pixels in [0, 1]. The same quarter of every class is held out on every machine."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    parts = train_test_split(images, labels.astype(np.int32), test_size=0.25, stratify=labels, random_state=0)
    train_images, validation_images, train_labels, validation_labels = map(np.asarray, parts)
    return Examples(train_images, train_labels), Examples(validation_images, validation_labels)


def init(seed: int) -> list[dict[str, np.ndarray]]:
    """Weights of variance 2 / fan-in."""
    generator = np.random.default_rng(seed)
    return [
        {
            "weights": model.normal(generator, (2 / rows) ** 0.5, rows, columns),
            "bias": np.zeros((1, columns), np.float32),
        }
        for rows, columns in itertools.pairwise(WIDTHS)
    ]


def apply(parameters: list[dict[str, Array]], pixels: Float[Array, "batch 64"]) -> Float[Array, "batch 10"]:
    """Logits of a perceptron with ReLU between its layers."""
    *hidden, last = parameters
    for layer in hidden:
        pixels = jax.nn.relu(pixels @ layer["weights"] + layer["bias"])
    return pixels @ last["weights"] + last["bias"]


def fit_baselines(train: Examples, validation: Examples) -> Baselines:
    """The classes' shares, and logistic regression with the penalty that cross-validation on the training data prefers."""
    shares = np.bincount(train.labels, minlength=CLASSES) / len(train.labels)
    majority = np.tile(shares, (len(validation.labels), 1))
    with threadpool_limits(1):  # the matrices are tiny: threads only wait for each other
        best = max(INVERSE_PENALTIES, key=lambda c: cross_validated_log_likelihood(c, train))
        logistic = LogisticRegression(C=best, max_iter=1000).fit(*train)
    return Baselines(*(score(p, validation.labels) for p in (majority, logistic.predict_proba(validation.inputs))))


def cross_validated_log_likelihood(inverse_penalty: float, train: Examples) -> float:
    """Mean log-likelihood of logistic regression, in nats per image, over three folds of the training data."""
    classifier = LogisticRegression(C=inverse_penalty, max_iter=1000)
    return cross_val_score(classifier, *train, scoring="neg_log_loss", cv=3).mean()


def score(probabilities: np.ndarray, labels: np.ndarray) -> Score:
    """The score of predicted class probabilities, shape (n, 10)."""
    nll = float(log_loss(labels, probabilities, labels=range(CLASSES)))
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    return Score(nll * len(labels), nll, accuracy)


def print_scores(outcome: Outcome, baselines: Baselines, count: int) -> None:
    """A table of the held-out scores, the baselines' among them."""
    trained = zip([trainee.name for trainee in outcome.trainees], outcome.scores, strict=True)
    named = [*trained, ("logistic regression", baselines.logistic), ("majority class", baselines.majority)]
    rows = [(name, (score.nll, score.accuracy)) for name, score in named]
    print_table(f"held-out digits: {count}", ("nats/image", "accuracy"), rows)
