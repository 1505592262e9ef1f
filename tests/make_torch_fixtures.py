"""Answers of PyTorch for tests/test_compat_torch.py, which itself does not need it.

    python tests/make_torch_fixtures.py            writes tests/fixtures/torch.json
    python tests/make_torch_fixtures.py --check    compares with it; exit status 1 on a difference

Values and gradients in float64. Every input is a multiple of 1/1024, so that float32 holds it exactly.
"""

import argparse
import itertools
import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np

PATH = Path(__file__).parent / "fixtures" / "torch.json"
REDUCTIONS = ("none", "mean", "sum")
INF = float("inf")


def arrays() -> dict[str, np.ndarray]:
    """The inputs, by name."""
    rng = np.random.default_rng(20260801)

    def logits(*shape):
        return np.round(2 * rng.normal(size=shape) * 1024) / 1024

    def distributions(n, classes):
        return rng.multinomial(1024, rng.dirichlet(np.ones(classes)), size=n) / 1024

    def any_sum(*shape):
        return rng.integers(1, 2048, size=shape) / 1024

    named = {
        "z": logits(7, 5),
        "z_vector": logits(5),
        "z_image": logits(2, 5, 3, 2),
        "z_offset": logits(7, 5) + 1000,
        "z_masked": logits(7, 5),
        "z_nan": logits(7, 5),
        "z_empty": np.zeros((0, 5)),
        "weight": np.array([0.5, 2.0, 1.0, 0.25, 3.0]),
        "weight_zero": np.array([0.5, 0.0, 1.0, 0.25, 3.0]),
        "y": np.array([0, 4, -100, 2, 1, -100, 3]),
        "y_positive": np.array([0, 4, 2, 2, 1, 2, 3]),
        "y_none": np.full(7, -100),
        "y_too_large": np.array([0, 5, 1, 2, 1, 0, 3]),
        "y_negative": np.array([0, -1, 1, 2, 1, 0, 3]),
        "y_vector": np.array(3),
        "y_image": rng.integers(0, 5, size=(2, 3, 2)),
        "y_empty": np.zeros(0, int),
        "t": distributions(7, 5),
        "t_vector": distributions(1, 5)[0],
        "t_any_sum": any_sum(7, 5),
        "t_image": any_sum(2, 5, 3, 2),
        "t_empty": np.zeros((0, 5)),
        "log_p": np.minimum(logits(6, 5), 0),
        "log_p_cube": np.minimum(logits(3, 4, 2), 0),
        "log_p_masked": np.minimum(logits(6, 5), 0),
        "q": any_sum(6, 5),
        "q_zero": any_sum(6, 5),
        "q_row": any_sum(5),
        "q_cube": any_sum(3, 4, 2),
        "log_q": np.minimum(logits(6, 5), 0),
        "log_q_masked": np.minimum(logits(6, 5), 0),
        "b": logits(6, 5),
        "b_image": logits(2, 3, 3, 2),
        "b_extreme": np.array([200.0, -200.0, 200.0, -200.0, 0.0, 90.0]),
        "b_infinite": np.array([INF, -INF, 1.0]),
        "hits": rng.integers(0, 2, size=(6, 5)).astype(float),
        "hits_soft": rng.integers(0, 1025, size=(6, 5)) / 1024,
        "hits_beyond": rng.integers(-512, 2048, size=(6, 5)) / 1024,
        "hits_image": rng.integers(0, 2, size=(2, 3, 3, 2)).astype(float),
        "hits_extreme": np.array([1.0, 0.0, 0.0, 1.0, 0.5, 1.0]),
        "hits_infinite": np.array([1.0, 0.0, 1.0]),
        "scalar": np.array(2.5),
        "per_class": np.array([0.5, 2.0, 1.0, 0.25, 3.0]),
        "per_channel": np.array([0.5, 2.0, 4.0]).reshape(3, 1, 1),
        "per_row": np.array([0.5, 2.0, 1.0, 0.25, 3.0, 0.0]).reshape(6, 1),
    }
    named["z_masked"][[0, 3, 5], [1, 3, 4]] = -INF  # row 5 is ignored by y
    named["z_nan"][2] = math.nan
    named["log_p_masked"][1, 2] = -INF
    named["q_zero"][[0, 1, 5], [1, 2, 4]] = 0
    named["log_q_masked"][0, 1] = -INF
    return named


def cases():
    """``(function, arguments, options)``; an argument is the name of an array."""
    yield from cross_entropy_cases()
    yield from kl_div_cases()
    yield from binary_cases()


def cross_entropy_cases():
    def case(input, target, weight=None, **options):
        arguments = {"input": input, "target": target} | ({"weight": weight} if weight else {})
        return "cross_entropy", arguments, options

    for target, weight, smoothing, reduction in itertools.product(
        ("y", "t", "t_any_sum"), (None, "weight"), (0.0, 0.1), REDUCTIONS
    ):
        yield case("z", target, weight, label_smoothing=smoothing, reduction=reduction)
    for input, target in (
        ("z_image", "y_image"),
        ("z_image", "t_image"),
        ("z_vector", "y_vector"),
        ("z_vector", "t_vector"),
    ):
        for reduction in REDUCTIONS:
            yield case(input, target, "weight", label_smoothing=0.25, reduction=reduction)
        yield case(input, target)
    yield case("z_offset", "y", "weight", label_smoothing=0.1)
    yield case("z_offset", "t", "weight", label_smoothing=0.1)
    yield case("z", "y", "weight_zero", label_smoothing=0.1)
    yield case("z", "y", label_smoothing=1.0)
    yield case("z", "y_positive", "weight", ignore_index=2, label_smoothing=0.1)
    yield case("z", "t", ignore_index=-7)
    for smoothing, reduction in itertools.product((0.0, 0.1), REDUCTIONS):
        yield case("z", "y_none", "weight", label_smoothing=smoothing, reduction=reduction)
        yield case("z_masked", "y", label_smoothing=smoothing, reduction=reduction)
    for reduction in REDUCTIONS:
        yield case("z_empty", "y_empty", reduction=reduction)
        yield case("z_empty", "t_empty", reduction=reduction)
        yield case("z_masked", "t_any_sum", "weight", label_smoothing=0.1, reduction=reduction)
    # differences and errors
    yield case("z_masked", "y", "weight_zero", label_smoothing=0.1, reduction="none")
    yield case("z_masked", "t", "weight_zero", reduction="none")
    yield case("z_nan", "y", reduction="none")
    yield case("z", "y_too_large", reduction="none")
    yield case("z", "y_negative", reduction="none")
    yield case("z", "t", ignore_index=3)
    yield case("z", "y", label_smoothing=1.5)
    yield case("z", "y", reduction="batchmean")


def kl_div_cases():
    def case(input, target, **options):
        return "kl_div", {"input": input, "target": target}, options

    for reduction in (*REDUCTIONS, "batchmean"):
        yield case("log_p", "q", reduction=reduction)
        yield case("log_p", "log_q", reduction=reduction, log_target=True)
        yield case("log_p", "q_row", reduction=reduction)
        yield case("log_p_cube", "q_cube", reduction=reduction)
    yield case("z_vector", "log_q", reduction="batchmean", log_target=True)
    yield case("log_p_masked", "q", reduction="none")
    yield case("log_p_masked", "q", reduction="sum")
    # differences and errors
    yield case("log_p", "q_zero", reduction="none")
    yield case("log_p_masked", "q_zero", reduction="none")
    yield case("log_p", "log_q_masked", reduction="none", log_target=True)
    yield case("log_p", "y", reduction="none")


def binary_cases():
    def case(input, target, weight=None, pos_weight=None, **options):
        arguments = {"input": input, "target": target, "weight": weight, "pos_weight": pos_weight}
        return "binary_cross_entropy_with_logits", {name: value for name, value in arguments.items() if value}, options

    for target in ("hits", "hits_soft", "hits_beyond"):
        for reduction in REDUCTIONS:
            yield case("b", target, reduction=reduction)
        for pos_weight in ("scalar", "per_class", "per_row"):
            yield case("b", target, None, pos_weight)
    for weight, reduction in itertools.product(("scalar", "per_class", "per_row"), REDUCTIONS):
        yield case("b", "hits", weight, "per_class", reduction=reduction)
    yield case("b_image", "hits_image", "per_channel", "per_channel")
    yield case("b_extreme", "hits_extreme", reduction="none")
    yield case("b_extreme", "hits_extreme", "scalar", "scalar", reduction="none")
    yield case("t_empty", "t_empty")
    # differences and errors
    yield case("b_infinite", "hits_infinite", reduction="none")
    yield case("b", "per_class", reduction="none")
    yield case("b", "per_class", None, "per_class", reduction="none")


def cotangent(shape) -> np.ndarray:
    """What the gradients of unreduced losses are taken along."""
    return (1.0 + np.arange(math.prod(shape)) % 3).reshape(shape)


def answer(function, named, arguments, options) -> dict:
    """PyTorch's value, and the gradient of input and target."""
    import torch

    tensors = {name: torch.from_numpy(np.array(named[array])) for name, array in arguments.items()}
    differentiable = [name for name in ("input", "target") if tensors[name].is_floating_point()]  # PyTorch: no weights
    for name in differentiable:
        tensors[name].requires_grad_()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = getattr(torch.nn.functional, function)(**tensors, **options)
    except (RuntimeError, IndexError, ValueError) as error:
        return {"raises": f"{type(error).__name__}: {error}"[:80]}
    (value * torch.from_numpy(cotangent(tuple(value.shape)))).sum().backward()
    gradients = {name: rounded(tensors[name].grad.numpy()) for name in differentiable if tensors[name].grad is not None}
    return {"value": rounded(value.detach().numpy()), "gradients": gradients}


def rounded(x: np.ndarray):
    """Nested lists of numbers of 13 digits: enough, and the same on every machine."""
    return [rounded(row) for row in x] if x.ndim else float(f"{float(x):.13g}")


def generate() -> dict:
    """The whole file."""
    import torch

    named = arrays()
    answers = [
        {"function": function, "arguments": arguments, "options": options} | answer(function, named, arguments, options)
        for function, arguments, options in cases()
    ]
    return {
        "torch": torch.__version__.split("+")[0],
        "arrays": {name: {"dtype": str(x.dtype), "shape": x.shape, "data": x.ravel().tolist()} for name, x in named.items()},
        "cases": answers,
    }


def differences(old, new, where="") -> list[str]:
    """Where two files differ: numbers by more than 1e-10 relative to the larger of themselves and 1."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [found for key in old for found in differences(old[key], new[key], f"{where}/{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [found for i, pair in enumerate(zip(old, new, strict=True)) for found in differences(*pair, f"{where}/{i}")]
    if isinstance(old, float) and isinstance(new, float):
        same = np.isclose(old, new, rtol=1e-10, atol=1e-10, equal_nan=True)
    else:
        same = type(old) is type(new) and old == new
    return [] if same else [f"{where}: {old!r} in the file, {new!r} now"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    text = json.dumps(generate(), separators=(",", ":")).replace('{"function"', '\n{"function"') + "\n"
    if not parser.parse_args().check:
        PATH.write_text(text)
        return 0
    found = differences(json.loads(PATH.read_text()), json.loads(text))
    print("\n".join(found[:20]) or f"{PATH.name} agrees")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
