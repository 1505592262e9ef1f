"""The temperature of least held-out loss, and calibration errors by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from matplotlib.figure import Figure

import crossent_jax
from crossent_jax import tuning

from .pictures import faults


def drawn(n=203, v=7, true_temperature=1.0, dtype=np.float32):
    """Logits and labels drawn from their softmax at ``true_temperature``."""
    gen = np.random.default_rng(11)
    z = (3 * gen.normal(size=(n, v))).astype(dtype)
    p = np.asarray(jax.nn.softmax(jnp.asarray(z / true_temperature), -1), np.float64)
    return z, np.array([gen.choice(v, p=row / row.sum()) for row in p])


def nll(z, labels, temperature):
    u = np.float64(z) / temperature
    u -= u.max(1, keepdims=True)
    return np.mean(np.log(np.exp(u).sum(1)) - u[np.arange(len(u)), labels])


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_the_minimum(true_temperature):
    z, labels = drawn(true_temperature=true_temperature)
    right = scipy.optimize.minimize_scalar(lambda t: nll(z, labels, t), bounds=(0.05, 20), options={"xatol": 1e-9}).x
    found = tuning.fit_temperature(z, labels)
    assert found.dtype == jnp.float32 and found == pytest.approx(right, rel=2e-5)
    assert found == pytest.approx(true_temperature, rel=0.2)
    assert jax.jit(tuning.fit_temperature)(z, labels) == pytest.approx(float(found), rel=1e-6)


def test_what_scales_the_logits_scales_the_temperature():
    z, labels = drawn()
    assert tuning.fit_temperature(8 * z, labels) == pytest.approx(8 * float(tuning.fit_temperature(z, labels)), rel=1e-5)


def test_rows_that_do_not_count():
    z, labels = drawn()
    where = np.arange(len(z)) % 3 > 0
    spoilt = np.where(where[:, None], z, np.nan)
    assert tuning.fit_temperature(spoilt, labels, where=where) == pytest.approx(
        float(tuning.fit_temperature(z[where], labels[where])), rel=1e-6
    )
    assert np.isnan(tuning.fit_temperature(spoilt, labels))


def test_the_ends_of_the_range():
    never_wrong = 5 * jnp.eye(4)
    slope = jax.grad(lambda t: crossent_jax.cross_entropy(never_wrong, jnp.arange(4), temperature=t))
    coldest = tuning.fit_temperature(never_wrong, jnp.arange(4))  # below it, every float32 slope is 0
    assert slope(0.99 * coldest) == 0 < slope(1.01 * coldest)
    assert tuning.fit_temperature(1e-4 * never_wrong, jnp.arange(4)) == pytest.approx(2**-10, rel=1e-5)
    always_wrong = tuning.fit_temperature(-never_wrong, jnp.arange(4))
    assert always_wrong == pytest.approx(2**10, rel=1e-5)


def test_bfloat16_logits():
    z, labels = drawn()
    z = jnp.asarray(z, jnp.bfloat16)
    found = tuning.fit_temperature(z, labels)
    assert found.dtype == jnp.float32
    assert found == pytest.approx(float(tuning.fit_temperature(z.astype(jnp.float32), labels)), rel=1e-5)


def by_hand(z, labels, temperature, bins):
    u = np.exp(np.float64(z) / temperature)
    p = u / u.sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == labels
    error = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        error += abs(right[inside].sum() - confidence[inside].sum()) / len(z)
    return error, confidence, right


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("bins", [1, 7, 15])
def test_reliability(bins, temperature):
    z, labels = drawn()
    found = tuning.reliability(z, labels, temperature=temperature, bins=bins)
    error, confidence, right = by_hand(z, labels, temperature, bins)
    assert found.expected_calibration_error == pytest.approx(error, abs=1e-6)
    assert found.count.sum() == len(z) and len(found.edges) == bins + 1
    used = found.count > 0
    np.testing.assert_allclose((found.count * found.confidence)[used].sum(), confidence.sum(), rtol=1e-6)
    np.testing.assert_allclose((found.count * found.accuracy)[used].sum(), right.sum(), rtol=1e-12)
    assert np.all(np.isnan(found.accuracy[~used]))


def test_scaling_lessens_the_error():
    z, labels = drawn(n=1001)
    overconfident = 4 * z
    temperature = tuning.fit_temperature(overconfident, labels)
    before = tuning.reliability(overconfident, labels)
    after = tuning.reliability(overconfident, labels, temperature=float(temperature))
    assert after.expected_calibration_error < 0.5 * before.expected_calibration_error
    axes = tuning.plot_reliability({"before": before, "after": after}).axes[0]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert f"before (calibration error {before.expected_calibration_error:.3f})" in texts


def binned(count, accuracy):
    """A result with these counts, and confidences in the middle of the bins."""
    count, accuracy, bins = np.array(count), np.array(accuracy, float), len(count)
    edges = np.linspace(0, 1, bins + 1)
    confidence = np.where(count, edges[:-1] + 0.5 / bins, np.nan)
    error = np.nansum(count * np.abs(accuracy - confidence)) / count.sum()
    return tuning.Reliability(edges, count, confidence, np.where(count, accuracy, np.nan), error)


RELIABILITIES = {
    "usual": {"before": binned([0, 3, 40, 500], [0, 0.4, 0.5, 0.8]), "after": binned([2, 91, 150, 300], [0, 0.3, 0.6, 0.9])},
    "one example": binned([0, 1, 0], [0, 1, 0]),
    "all confident": binned([0] * 14 + [40_000], [0] * 14 + [1]),
    "empty bins between": binned([7, 0, 0, 0, 1_000_000], [0, 0, 0, 0, 1]),
    "one bin": binned([5], [0.4]),
    "many": {f"model {i} with a name that does not end soon": binned([i + 1, 0, 9], [0, 0, 1]) for i in range(13)},
}


@pytest.mark.parametrize("case", RELIABILITIES)
def test_reliability_is_drawn_with_the_count_of_each_bin(case):
    found = RELIABILITIES[case]
    figure = tuning.plot_reliability(found)
    figure.axes[0].set_title("Accuracy against confidence")  # a title set later has its place
    assert faults(figure) == []
    each = list(found.values()) if isinstance(found, dict) else [found]
    (strip,) = figure.axes[0].child_axes
    heights = [[bar.get_height() for bar in bars] for bars in strip.containers]
    np.testing.assert_array_equal(np.concatenate(heights), np.concatenate([one.count for one in each]))
    assert strip.get_ylim()[1] > np.max(np.concatenate(heights)) and 0 < strip.get_ylim()[0] < 1
    legend = figure.axes[0].get_legend()
    assert legend.get_window_extent().x0 >= figure.axes[0].get_window_extent().x1  # covers no point


def test_the_line_of_reliability_breaks_at_an_empty_bin():
    _, line = tuning.plot_reliability(RELIABILITIES["empty bins between"]).axes[0].lines
    assert np.isnan(line.get_ydata()[1:4]).all()


def test_reliability_is_drawn_into_given_axes():
    figure = Figure(figsize=(10, 5))
    left, right = figure.subplots(1, 2)
    place = right.get_position()
    assert tuning.plot_reliability(RELIABILITIES["usual"], ax=right) is right
    assert figure.axes == [left, right] and not left.has_data()
    left.set(xlabel="x", ylabel="y")
    assert faults(figure) == []
    boxes = [axes.get_window_extent().transformed(figure.transFigure.inverted()) for axes in (right, *right.child_axes)]
    corners = np.array([box.get_points() for box in boxes])  # all within the place that was given
    assert np.all(corners >= place.min - 1e-6) and np.all(corners <= place.max + 1e-6)


def test_no_reliability_to_draw():
    with pytest.raises(ValueError, match="reliabilities must have a result to draw; got none"):
        tuning.plot_reliability({})


def test_reliability_of_some_rows():
    z, labels = drawn()
    where = np.arange(len(z)) % 2 > 0
    np.testing.assert_equal(tuning.reliability(z, labels, where=where), tuning.reliability(z[where], labels[where]))


@pytest.mark.parametrize(
    "function, arguments, options, message",
    [
        (tuning.fit_temperature, (jnp.zeros((3, 2)), jnp.zeros(2, int)), {}, "labels"),
        (tuning.fit_temperature, (jnp.zeros((3, 2)), jnp.zeros((3, 2), int)), {}, "labels"),
        (tuning.reliability, (jnp.zeros((3, 2)), jnp.zeros(2, int)), {}, "labels"),
        (tuning.reliability, (jnp.zeros((3, 2)), jnp.zeros(3, int)), {"bins": 0}, "bins must be at least 1; got 0"),
        (tuning.reliability, (jnp.zeros((0, 2)), jnp.zeros(0, int)), {}, "a row that counts"),
        (tuning.reliability, (jnp.full((3, 2), jnp.nan), jnp.zeros(3, int)), {}, "finite confidences"),
    ],
)
def test_bad_arguments(function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments, **options)


def test_temperature_is_that_of_cross_entropy():
    """The fitted temperature beats its neighbours in the library's own loss."""
    z, labels = drawn()
    best = float(tuning.fit_temperature(z, labels))
    losses = [crossent_jax.cross_entropy(z, labels, temperature=best * factor) for factor in (0.9, 1.0, 1.1)]
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_masks_labels_and_temperatures_follow_the_rules_of_the_losses():
    """An integer mask is a mask, not row numbers; a label of no class is none of the predictions."""
    z, labels = drawn()
    keep = np.arange(len(z)) % 3 > 0
    expected = tuning.reliability(z, labels, where=keep)
    for mask in (keep.astype(np.int32), jnp.asarray(keep, jnp.uint8)):
        assert tuning.reliability(z, labels, where=mask).expected_calibration_error == expected.expected_calibration_error
        assert tuning.fit_temperature(z, labels, where=mask) == tuning.fit_temperature(z, labels, where=keep)
    ignored = np.where(keep, labels, -100)
    assert np.isnan(tuning.fit_temperature(z, ignored))
    with pytest.raises(ValueError, match=r"labels must be class ids in .*labels\[0\] is -100.*where="):
        tuning.reliability(z, ignored)
    assert tuning.reliability(z, ignored, where=keep).expected_calibration_error == expected.expected_calibration_error
    with pytest.raises(ValueError, match="temperature must be a finite number, above 0"):
        tuning.reliability(z, labels, temperature=-1.0)
    with pytest.raises(TypeError, match="where must be boolean or integer"):
        tuning.reliability(z, labels, where=keep.astype(float))
    with pytest.raises(ValueError, match="where must have the labels' shape"):
        tuning.fit_temperature(z, labels, where=keep[:3])
