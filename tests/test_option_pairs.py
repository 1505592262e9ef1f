"""All pairs of options, and random combinations, with masks and weights, hard and soft targets: values and the gradient of
everything differentiable.

Meaning is at stake here, precision in ``test_values.py``: several options may cancel each other in a row, so the slack is
that of the batch's largest gradient, and the roundings of the largest term that may have cancelled."""

import math
from itertools import combinations, cycle, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax

from . import grid, oracle

ROWS, CLASSES = grid.SHAPES[0]
FAMILIES = {"hard": crossent_jax.cross_entropy, "soft": crossent_jax.soft_cross_entropy}
CONSTANTS = ("class_mask", "where", "labels", "cotangent")


def options_of(kind):
    return [name for name in grid.OPTIONS if kind == "hard" or name not in grid.HARD_ONLY]


def structures(kind, backend):
    """Every pair of values of two static options, in eight programs (an orthogonal array). In four for a backend that JAX
    differentiates, without the pairs with a reduction, which is the same code for every backend."""
    reductions, options = grid.STATIC["reduction"], options_of(kind)
    for r, on in product(range(len(reductions)), (0, 1)):
        if backend not in grid.CUSTOM_VJP_BACKENDS and on != (r in (1, 2)):
            continue
        picks = {"softcap": on, "ignore_index": on ^ (r % 2), "axis": on ^ (r // 2)}
        chosen = [(name, grid.STATIC[name][pick]) for name, pick in picks.items() if name in options]
        yield (*chosen, ("reduction", reductions[r]))


def pair_cases(kind, backend):
    """``{static structure: [options that are on, ...]}`` over every pair of options: with a static one each of the others
    alone, and the pairs of these shared out among the structures."""
    moving = [name for name in options_of(kind) if name not in grid.STATIC]
    cases = {structure: [[name] for name in moving] for structure in structures(kind, backend)}
    for on, pair in zip(cycle(cases.values()), combinations(moving, 2), strict=False):
        on.append(list(pair))
    return cases


def random_structure(gen, kind):
    return tuple((n, v[gen.integers(len(v))]) for n, v in grid.STATIC.items() if n in options_of(kind))


def random_subset(gen, kind):
    return [name for name in options_of(kind) if name not in grid.STATIC and gen.uniform() < 0.4]


def random_scalar(gen, name):
    off, on = grid.SCALARS[name]
    return off + (on - off) * gen.uniform(0.2, 1.8)


def make_case(gen, kind, structure, on, *, give_all, randomly=False):
    """The arguments of one call, the logits with the classes last; labels are never masked."""
    static = {name: values[0] for name, values in grid.STATIC.items()} | dict(structure)
    label = grid.labels(gen, ROWS, CLASSES)
    arrays, neutral = grid.random_arrays(gen, ROWS, CLASSES, label), grid.neutral_arrays(ROWS, CLASSES)
    values = {name: arrays[name] if name in on else neutral[name] for name in grid.ARRAYS}
    for name, (off, value) in grid.SCALARS.items():
        value = random_scalar(gen, name) if randomly else value
        values[name] = np.float32(value if name in on else off)
    values = {name: value for name, value in values.items() if give_all or name in on}
    if static["ignore_index"] is not None:
        label[1] = static["ignore_index"]
    allowed = values.get("class_mask", neutral["class_mask"])
    target = {"labels": label} if kind == "hard" else {"targets": grid.targets(gen, ROWS, CLASSES, allowed)}
    cotangent = gen.standard_normal(ROWS).astype(np.float32)
    arguments = values | target | {"z": grid.logits(gen, ROWS, CLASSES), "cotangent": cotangent}
    return static, arguments


def library_function(kind, backend, static):
    """Jitted ``(differentiable, constant) -> ((scalar, output), gradients)``, the class axis moved to where it is named."""
    static = {name: value for name, value in static.items() if name in options_of(kind)}

    def scalar(differentiable, constant):
        options = differentiable | constant
        z, target = options.pop("z"), options.pop("labels" if kind == "hard" else "targets")
        cotangent = options.pop("cotangent")
        z = jnp.moveaxis(z, -1, static["axis"])
        target = target if kind == "hard" else jnp.moveaxis(target, -1, static["axis"])
        out = FAMILIES[kind](z, target, **options, **static, implementation=backend)
        return oracle.contract(out, cotangent), out

    return jax.jit(jax.value_and_grad(scalar, has_aux=True), compiler_options=grid.QUICK_COMPILE)


def assert_case(function, static, arguments, label):
    constant = {name: value for name, value in arguments.items() if name in CONSTANTS}
    differentiable = {name: value for name, value in arguments.items() if name not in CONSTANTS}
    (_, out), ours = function(differentiable, constant)
    call = {name: value for name, value in arguments.items() if name not in ("labels", "targets", "cotangent")}
    call |= {name: static[name] for name in ("reduction", "softcap", "ignore_index")}
    call["target"] = arguments.get("labels", arguments.get("targets"))
    for ours_leaf, exact_leaf in zip(jax.tree.leaves(out), jax.tree.leaves(oracle.exact_loss(**call)), strict=True):
        error = np.abs(np.asarray(ours_leaf) - exact_leaf).astype(float)
        assert np.all(error <= oracle.loss_slack(exact_leaf.astype(float))), f"{label}: value off by {error}"
    call["cotangent"] = arguments["cotangent"]
    exact, naive = oracle.gradients(**call), oracle.gradients(dtype="float32", **call)
    assert ours.keys() == exact.keys()
    for name, gradient in ours.items():
        error = np.asarray(gradient) - exact[name]
        if name == "z":
            slack = np.max(oracle.gradient_slack(exact["z"], "float32", naive["z"])) + term_slack(arguments, static)
        else:  # the gradient of an option or a target is a statistic of rows, like the loss, or the sum of one over rows
            slack = ROWS * oracle.loss_slack(exact[name]) + np.max(np.abs(naive[name] - exact[name]))
        if name == "targets":
            error = along_the_simplex(error, arguments)
        error = np.abs(error)
        assert np.all(error <= slack), f"{label}: gradient of {name} off by {np.max(error / slack)} times the slack"


def term_slack(arguments, static):
    """Probabilities and targets enter a gradient times cotangent, row weight and class weight. Half an ulp of that product
    for each of its four roundings: the cotangent times the weights, times (1 - smoothing), times the target, and the sum."""
    cotangent = arguments["cotangent"] if static["reduction"] == "none" else np.ones(1)
    weights = (arguments.get(name, np.ones(1)) for name in ("row_weights", "class_weights"))
    largest = max(1.0, math.prod(float(np.max(np.abs(factor))) for factor in (cotangent, *weights)))
    return 4 * oracle.statistics_eps("float32") / 2 * largest


def along_the_simplex(error, arguments):
    """A masked class has no gradient by definition, and with class weights only the directions that keep the sum of a
    target are defined."""
    allowed = np.broadcast_to(arguments.get("class_mask", True), error.shape)
    mean = np.sum(error, -1, where=allowed, keepdims=True) / np.sum(allowed, -1, keepdims=True)
    return np.where(allowed, error - mean if "class_weights" in arguments else error, 0)


STRUCTURES = [
    (kind, s, backend) for kind, backend in product(grid.TARGETS, grid.BACKENDS) for s in structures(kind, backend)
]


@pytest.mark.parametrize("kind, structure, backend", STRUCTURES)
def test_every_pair(kind, structure, backend):
    """One compilation: every array option is given, the ones not in play with neutral values."""
    gen = grid.rng("pairs", kind, structure)
    function = None
    for on in pair_cases(kind, backend)[structure]:
        static, arguments = make_case(gen, kind, structure, on, give_all=True)
        function = function or library_function(kind, backend, static)
        assert_case(function, static, arguments, f"{backend} {kind} {dict(structure)} {on}")


SEED = grid.session_seed()
GROUPS, CASES_IN_GROUP, OFF_CASES = 8, 22, 12


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_combinations(group):
    """Any number of options at once, at random values; a static structure per group."""
    gen = np.random.default_rng([SEED, group])
    kind, backend = grid.TARGETS[group % 2], grid.BACKENDS[group // 2 % 2]
    structure = random_structure(gen, kind)
    function = None
    for case in range(CASES_IN_GROUP):
        on = random_subset(gen, kind)
        static, arguments = make_case(gen, kind, structure, on, give_all=True, randomly=True)
        function = function or library_function(kind, backend, static)
        label = f"seed {SEED} group {group} case {case}: {backend} {kind} {structure} {on}"
        assert_case(function, static, arguments, label)


@pytest.mark.parametrize("case", range(OFF_CASES))
def test_random_combinations_with_the_rest_off(case):
    """What is not in play is not given: fewer statistics, other programs."""
    gen = np.random.default_rng([SEED, GROUPS, case])
    kind, backend = grid.TARGETS[case % 2], grid.BACKENDS[case // 2 % 2]
    structure, on = random_structure(gen, kind), random_subset(gen, kind)
    static, arguments = make_case(gen, kind, structure, on, give_all=False, randomly=True)
    function = library_function(kind, backend, static)
    assert_case(function, static, arguments, f"seed {SEED} case {case}: {backend} {kind} {structure} {on}")


@pytest.mark.parametrize("kind", grid.TARGETS)
@pytest.mark.parametrize("backend", grid.BACKENDS)
def test_the_structures_hold_every_pair_of_options(kind, backend):
    static = {name: values for name, values in grid.STATIC.items() if name in options_of(kind)}
    found = [dict(structure) for structure in structures(kind, backend)]
    for name, values in static.items():
        assert {structure[name] for structure in found} == set(values)
    for first, second in combinations(static, 2):
        seen = {(structure[first], structure[second]) for structure in found}
        if backend in grid.CUSTOM_VJP_BACKENDS or "reduction" not in (first, second):
            assert seen == set(product(static[first], static[second]))
    moving = [name for name in options_of(kind) if name not in grid.STATIC]
    together = [tuple(on) for cases in pair_cases(kind, backend).values() for on in cases if len(on) == 2]
    assert sorted(together) == sorted(combinations(moving, 2))
