"""`--task text`: a language model of Python's standard library, beside a bigram model and gzip."""

import math
import time

import jax
from jaxtyping import Array

from . import model
from .baselines import bits_per_byte, fit_bigram, gzip_bits_per_byte
from .batches import cut_into_sequences
from .bpe import train_bpe
from .experiment import Options, Outcome, Task, run
from .losses import fused_loss
from .plot import save_picture
from .report import conclude, print_cost, print_table
from .text import Corpus, read_corpus

PEAK_LEARNING_RATE = 4e-3


def main(options: Options) -> int:
    """Runs the task and returns the exit status."""
    corpus = read_corpus()
    print(corpus.describe())
    tokenizer, train_files, validation_files = tokenize(corpus, options.vocab)
    bigram = fit_bigram(train_files, tokenizer.vocab_size)
    task = Task(
        apply=model.apply,
        parameters=model.init(options.seed, tokenizer.vocab_size),
        train=cut_into_sequences(train_files, options.seq_len),
        validation=cut_into_sequences(validation_files, options.seq_len),
        peak_learning_rate=PEAK_LEARNING_RATE,
        fused=fused,
    )
    describe_padding(task)
    outcome = run(task, options)
    bigram_nll = bigram.nll(validation_files)
    print_scores(outcome, bigram_nll, sum(len(ids) - 1 for ids in validation_files), corpus)
    print_cost(outcome)
    title = "Language model of Python's standard library, trained with crossent_jax.linear_cross_entropy"
    picture = save_picture(options.out / "text.png", title, outcome, "token")
    return conclude(outcome, "the bigram model", bigram_nll, picture)


def fused(parameters, batch) -> Array:
    """The loss of a batch, whose logits are never held."""
    features = model.features(parameters, batch.inputs)
    return fused_loss(features, parameters["embedding"], parameters["bias"].reshape(-1), batch.labels)


def tokenize(corpus: Corpus, vocab_size: int):
    """A tokenizer learned from the training files, and the ids of each training and each validation file."""
    start = time.perf_counter()
    tokenizer = train_bpe(corpus.train, vocab_size)
    train, validation = ([tokenizer.encode_file(text) for text in texts] for texts in (corpus.train, corpus.validation))
    tokens = sum(len(ids) - 1 for ids in train)
    seconds = time.perf_counter() - start
    print(f"byte-pair encoding: {tokenizer.vocab_size} tokens; {tokens:,} of them to train on ({seconds:.1f} s)")
    return tokenizer, train, validation


def describe_padding(task: Task) -> None:
    """Prints the model's size and the share of training positions that are padding."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(task.parameters))
    padding = float((task.train.labels < 0).mean())
    print(f"transformer of {parameters:,} parameters; {padding:.1%} of the training positions are padding")


def print_scores(outcome: Outcome, bigram_nll: float, token_count: int, corpus: Corpus) -> None:
    """A table of the held-out scores, the baselines' among them."""
    byte_count = sum(map(len, corpus.validation))
    nlls = [(trainee.name, score.nll) for trainee, score in zip(outcome.trainees, outcome.scores, strict=True)]
    rows: list[tuple[str, tuple[float | None, ...]]] = [
        (name, (nll, math.exp(nll), bits_per_byte(nll * token_count, byte_count)))
        for name, nll in [*nlls, ("bigram", bigram_nll)]
    ]
    rows.append(("gzip -9", (None, None, gzip_bits_per_byte(corpus.validation))))
    title = f"held-out text: {byte_count:,} bytes, {token_count:,} tokens"
    print_table(title, ("nats/token", "perplexity", "bits/byte"), rows)
