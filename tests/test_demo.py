"""The demo: its tokenizer, baselines, batches and losses by their properties, and small runs from end to end."""

import itertools
import math
import re
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crossent_jax.demo
from crossent_jax.demo import baselines, batches, bpe, cli, evaluate, language, losses, model, plot, report, text, train
from crossent_jax.demo.evaluate import Score
from crossent_jax.demo.experiment import NAIVE, OURS, WHOLE, Outcome

from .pictures import faults

SOURCES = [path.read_bytes() for path in sorted(Path(crossent_jax.demo.__file__).parent.glob("*.py")) if path.stat().st_size]
CORPUS = text.Corpus([f"{n}.py" for n in range(1, len(SOURCES))], ["0.py"], SOURCES[1:], SOURCES[:1])
TOKENIZER = bpe.train_bpe(SOURCES, 300)
FILES = [TOKENIZER.encode_file(source) for source in SOURCES]
TINY = ["--vocab", "270", "--batch", "2", "--seq-len", "16"]


@pytest.fixture
def optax_may_promote():
    """Optax's bias correction raises a float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def tiny_task(monkeypatch):
    monkeypatch.setattr(language, "read_corpus", lambda: CORPUS)
    monkeypatch.setattr(model, "LAYERS", 1)


# Tokenizer


@settings(max_examples=50, deadline=None)
@given(st.binary() | st.text().map(str.encode))
def test_decoding_gives_back_any_bytes(data):
    ids = TOKENIZER.encode_file(data)
    assert TOKENIZER.decode(ids) == data
    assert ids[0] == ids[-1] == bpe.BOUNDARY and (ids[1:-1] != bpe.BOUNDARY).all()


@pytest.mark.parametrize("size", [257, 258, 300])
def test_vocabulary_has_the_size_asked_for(size):
    tokenizer = bpe.train_bpe(SOURCES, size)
    assert tokenizer.vocab_size == size
    assert max(tokenizer.encode(SOURCES[-1])) < size


@pytest.mark.parametrize("texts", [[b""], [b"abc"], []])
def test_text_without_a_repeated_pair_gives_no_merges(texts):
    assert bpe.train_bpe(texts, 300).vocab_size == bpe.FIRST_MERGE


def test_every_merge_is_a_most_frequent_pair_by_a_textbook_count():
    source = b" aaaa aaaa aaaaa aaaaa banana banana bandana bandana band band" * 3
    word_counts = Counter(bpe.WORD.findall(source))
    words = {word: list(word) for word in word_counts}
    for merged, pair in enumerate(bpe.train_bpe([source], 270).merges, start=bpe.FIRST_MERGE):
        counts = Counter()
        for word, symbols in words.items():
            for neighbours in itertools.pairwise(symbols):
                counts[neighbours] += word_counts[word]
        assert counts[pair] == max(counts.values())
        words = {word: bpe.merge_pair(symbols, pair, merged) for word, symbols in words.items()}


# Corpus


def test_the_same_library_gives_the_same_disjoint_split(tmp_path):
    for number in range(60):
        (tmp_path / f"module_{number}.py").write_bytes(b"x = %d\n" % number)
    corpus = text.read_corpus(tmp_path)
    assert corpus == text.read_corpus(tmp_path)
    assert not set(corpus.train_names) & set(corpus.validation_names)
    assert len(corpus.train_names) + len(corpus.validation_names) == 60
    assert corpus.validation == [(tmp_path / name).read_bytes() for name in corpus.validation_names]


def test_the_standard_library_is_read_without_its_tests_and_site_packages():
    corpus = text.read_corpus(limit=1_000_000)
    assert 1_000_000 <= sum(map(len, corpus.train + corpus.validation)) <= 1_000_000 + text.LARGEST_FILE
    for name in corpus.train_names + corpus.validation_names:
        assert not text.SKIPPED_FOLDERS & set(name.split("/"))


def test_a_missing_library_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="too little Python source"):
        text.read_corpus(tmp_path)


# Baselines


def test_bigram_probabilities_sum_to_one_after_any_token():
    bigram = baselines.fit_bigram(FILES, 300)
    for before in (0, 10, 97, 256, 299):
        probabilities = bigram.probabilities(np.full(300, before), np.arange(300))
        assert probabilities.min() > 0
        assert math.isclose(probabilities.sum(), 1, rel_tol=1e-12)


def test_bigram_by_hand():
    """After a: 3 of 4 times b, once c (D = 0.5). C: a has 1 kind before it, b 1, c 1, each plus 1, of 6."""
    bigram = baselines.Bigram(np.array([[0, 3, 1], [1, 0, 0], [0, 0, 0]]), discount=0.5)
    assert np.allclose(bigram.probabilities(np.array([0, 2]), np.array([1, 1])), [2.5 / 4 + 0.25 / 3, 1 / 3])


def test_bits_per_byte_by_hand():
    assert math.isclose(baselines.bits_per_byte(8 * math.log(2), 4), 2.0)
    assert math.isclose(baselines.bits_per_byte(10.0, 5), 10 / 5 / 0.6931471805599453)


def test_gzip_is_measured_on_the_joined_text():
    assert baselines.gzip_bits_per_byte([b"spam" * 500, b"spam" * 500]) < 0.3
    noise = np.random.default_rng(0).bytes(10_000)
    assert 8 <= baselines.gzip_bits_per_byte([noise]) < 8.1


# Batches


@pytest.mark.parametrize("seq_len", [7, 64])
def test_every_token_but_the_first_is_a_label_once_and_the_rest_is_padding(seq_len):
    examples = batches.cut_into_sequences(FILES, seq_len)
    is_real = examples.labels != losses.PADDING
    assert np.array_equal(examples.labels[is_real], np.concatenate([ids[1:] for ids in FILES]))
    assert np.array_equal(examples.inputs[is_real], np.concatenate([ids[:-1] for ids in FILES]))
    assert not is_real.all()
    assert (np.diff(is_real.astype(int), axis=1) <= 0).all(), "padding is at the end of a row"


def test_an_epoch_holds_every_example_once_and_its_last_batch_is_filled_with_padding():
    examples = batches.cut_into_sequences(FILES, 64)
    size = len(examples.labels) // 2 + 1
    stream = batches.shuffled(examples, size, seed=3)
    epoch = [next(stream), next(stream)]
    assert all(batch.labels.shape == (size, 64) for batch in epoch)
    assert (epoch[1].labels[len(examples.labels) - size :] == losses.PADDING).all()
    seen = np.concatenate([batch.labels for batch in epoch])[: len(examples.labels)]
    assert sorted(map(tuple, seen)) == sorted(map(tuple, examples.labels))
    assert np.array_equal(next(batches.shuffled(examples, size, seed=3)).labels, epoch[0].labels)


# Losses and scores


def test_the_naive_formula_agrees_on_a_real_padded_batch():
    batch = next(batches.in_order(batches.cut_into_sequences(FILES[:1], 64), 4))
    assert (batch.labels == losses.PADDING).any()
    logits = jax.numpy.asarray(np.random.default_rng(1).normal(0, 3, (4, 64, 300)), np.float32)
    labels = jax.numpy.asarray(batch.labels)
    ours, our_gradient = jax.value_and_grad(losses.exact_loss)(logits, labels)
    naive, naive_gradient = jax.value_and_grad(losses.naive_loss)(logits, labels)
    assert math.isclose(ours, naive, rel_tol=1e-5)
    assert np.allclose(our_gradient, naive_gradient, rtol=0, atol=1e-5 * np.abs(naive_gradient).max())


@pytest.mark.optimized
def test_the_fused_loss_is_the_one_of_the_logits_in_less_memory():
    """At the shape of the demo's own batch, with padding."""
    examples = batches.cut_into_sequences(FILES, 64)
    batch = next(batches.in_order(batches.Examples(*(array[-5:] for array in examples)), 8))
    parameters = model.init(0, 2048)

    def on_logits(parameters, batch):
        return losses.exact_loss(model.apply(parameters, batch.inputs), batch.labels)

    whole, fused = (
        jax.jit(jax.value_and_grad(objective)).lower(parameters, batch).compile()
        for objective in (on_logits, language.fused)
    )
    assert fused.memory_analysis().temp_size_in_bytes < 0.7 * whole.memory_analysis().temp_size_in_bytes
    (ours, our_gradients), (expected, gradients) = fused(parameters, batch), whole(parameters, batch)
    assert math.isclose(ours, expected, rel_tol=1e-6)
    for ours, right in zip(jax.tree.leaves(our_gradients), jax.tree.leaves(gradients), strict=True):
        assert np.allclose(ours, right, rtol=0, atol=1e-5 * np.abs(right).max())


def test_the_score_does_not_depend_on_how_the_padding_falls():
    examples = batches.cut_into_sequences(FILES[:2], 32)
    table = model.normal(np.random.default_rng(0), 1.0, 300, 300)
    scores = [evaluate.score(lookup, table, examples, size) for size in (1, 5, 64)]
    for score in scores:
        assert math.isclose(score.nats, scores[0].nats, rel_tol=1e-5)
        assert math.isclose(score.nll, score.nats / (examples.labels >= 0).sum(), rel_tol=1e-5)
        assert score.accuracy == scores[0].accuracy


def lookup(table, tokens):
    """A bigram model as a table of logits."""
    return table[tokens]


def test_the_model_is_causal():
    apply = partial(jax.jit(model.apply), model.init(0, 300))
    tokens = np.arange(12, dtype=np.int32).reshape(1, 12)
    changed = np.where(np.arange(12) < 8, tokens, 7).astype(np.int32)
    before, after = apply(tokens), apply(changed)
    assert np.allclose(before[:, :8], after[:, :8], atol=1e-5)
    assert not np.allclose(before[:, 8:], after[:, 8:], atol=1e-2)


def test_learning_rate_rises_then_falls_to_a_small_share():
    assert train.learning_rate_share(0, 0.0) == pytest.approx(1 / train.WARMUP_STEPS)
    assert train.learning_rate_share(500, 0.2) == 1
    assert train.learning_rate_share(500, 0.65) == pytest.approx(0.5)
    assert train.learning_rate_share(500, 1.0) == train.FINAL_SHARE


# Runs


@pytest.mark.parametrize(("nll", "interrupted", "status"), [(1.0, False, 0), (3.0, False, 1), (1.0, True, 130)])
def test_exit_status_says_whether_the_baseline_was_beaten(nll, interrupted, status, capsys):
    outcome = Outcome([], [Score(nll, nll, 0.5)], interrupted)
    assert report.conclude(outcome, "the bigram model", 2.0, Path("x.png")) == status
    assert ("does NOT beat" in capsys.readouterr().out) == (nll > 2)


def trained(name, losses, temp_bytes=10**8):
    """A model with these losses, as if it had been trained."""
    return train.Trainee(name, lambda: None, None, temp_bytes, list(losses), [0.25] * len(losses))


FALLING = 2 + 6 * np.exp(-np.arange(200) / 30)
PICTURES = {
    "usual": ([trained(OURS, FALLING), trained(NAIVE, FALLING + 1e-7)], trained(WHOLE, [], 10**9)),
    "alone": ([trained(OURS, FALLING)], None),
    "one step": ([trained(OURS, FALLING[:1]), trained(NAIVE, FALLING[:1] + 1e-7)], trained(WHOLE, [])),
    "decades, no memory": ([trained(OURS, FALLING - 1.999, 0), trained(NAIVE, FALLING - 1.999, 0)], None),
    "overflow": ([trained(OURS, FALLING), trained(NAIVE, [*FALLING[:100], *[math.inf] * 50, *[math.nan] * 50])], None),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_is_readable(name, tmp_path, monkeypatch):
    figures, close = [], plot.plt.close
    monkeypatch.setattr(plot.plt, "close", figures.append)
    trainees, whole = PICTURES[name]
    plot.save_picture(
        tmp_path / "x.png", "A model of a kind, trained with a loss", Outcome(trainees, [], False, whole), "token"
    )
    (figure,) = figures
    close(figure)
    assert faults(figure) == []
    curves = figure.axes[0].lines
    assert len(curves) == len(trainees)
    assert all(len(line.get_xdata()) > 1 or line.get_marker() == "o" for line in curves)  # a step alone makes no line


def test_two_steps_do_not_beat_the_bigram_model_but_leave_a_picture(tiny_task, optax_may_promote, tmp_path, capsys):
    assert cli.main([*TINY, "--steps", "2", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "does NOT beat the bigram model" in printed and "gzip -9" in printed and "naive" in printed
    assert str(tmp_path / "text.png") in printed
    assert (tmp_path / "text.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_reports_what_was_reached(tiny_task, optax_may_promote, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model, "LAYERS", 0)  # compiles faster
    advance = train.Trainee.advance

    def press_ctrl_c_in_the_second_step(trainee, batch, learning_rate):
        if len(trainee.losses) == 1:
            signal.raise_signal(signal.SIGINT)
        advance(trainee, batch, learning_rate)

    monkeypatch.setattr(train.Trainee, "advance", press_ctrl_c_in_the_second_step)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main([*TINY, "--steps", "1000", "--no-naive", "--out", str(tmp_path)]) == 130
    printed = capsys.readouterr().out
    assert "trained 2 of 1000 steps" in printed and "interrupted by Ctrl-C" in printed
    assert (tmp_path / "text.png").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt), train.ctrl_c_noted() as was_pressed:
        signal.raise_signal(signal.SIGINT)
        assert was_pressed.is_set()
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_before_training_ends_without_a_traceback(tmp_path, capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt  # what Ctrl-C raises; a shell's background job would ignore the signal itself

    monkeypatch.setattr(language, "read_corpus", interrupted)
    assert cli.main([*TINY, "--out", str(tmp_path)]) == 130
    assert "outside training" in capsys.readouterr().err


def test_training_stops_at_the_deadline():
    batch = batches.Examples(np.zeros((1, 1)), np.zeros(1))
    trainee = train.Trainee("crossent_jax", lambda state, batch, rate: (state, np.float32(1)), (None, None), 0)
    assert train.train([trainee], itertools.repeat(batch), 1e-3, steps=10**9, deadline=time.perf_counter() + 0.05) is False
    assert 1 <= len(trainee.losses) < 10**6


def test_digits(optax_may_promote, tmp_path, capsys):
    assert cli.main(["--task", "digits", "--steps", "200", "--out", str(tmp_path)]) == 0
    assert "beats logistic regression" in capsys.readouterr().out
    assert (tmp_path / "digits.png").exists()


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--vocab", "256"], "give 257"),
        (["--steps", "0"], "at least 1"),
        (["--steps", "many"], "whole number"),
        (["--seq-len", "1"], "give 2 to"),
        (["--seconds", "nan"], "above 0"),
        (["--seed", "-1"], "from 0"),
        (["--out", __file__], "name another one"),
    ],
)
def test_bad_options_say_what_to_do(arguments, advice, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert advice in capsys.readouterr().err


def test_a_batch_larger_than_the_data_is_named(tmp_path, capsys):
    assert cli.main(["--task", "digits", "--batch", "100000000", "--out", str(tmp_path)]) == 2
    assert re.search(r"--batch: got 100000000: give at most \d+, the training examples\n$", capsys.readouterr().err)


@pytest.mark.parametrize("name", cli.DEMO_PACKAGES)
def test_a_missing_package_is_named_with_its_remedy(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(cli.DEMO_PACKAGES, name, "no_such_module")
    assert cli.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"the demo needs {name}: pip install crossent-jax[demo]\n"
