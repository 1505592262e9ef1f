"""Eight virtual CPU devices, strict promotion, shapes and types enforced inside the library, and a printed seed.

``make test`` runs the suite in two parts: programs compiled quickly (``compiling.py``), and the tests marked ``optimized``,
compiled as users do; of each test at most four parameter cases, always the same ones, and ``make test-all`` runs the others.
Plain ``pytest`` runs all of them, compiled as users do.

Programs are compiled once: later tests, the other worker and later runs take them from pytest's cache (`--cache-clear`
forgets them). More than half of the suite's time went into compiling, half of that into programs compiled before.
"""

import gc
import os
import random
import zlib
from collections import defaultdict

from . import compiling

SEED_VARIABLE = "CROSSENT_JAX_SEED"
FIRST_CASES = 4  # of each test, in `make test`
DEVICES = " --xla_force_host_platform_device_count=8"

FLAGS = f"{DEVICES} {compiling.as_flags()}" if compiling.is_quick() else DEVICES
if FLAGS not in os.environ.get("XLA_FLAGS", ""):  # xdist workers inherit them
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + FLAGS  # before jax is imported
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(SEED_VARIABLE, str(random.SystemRandom().randrange(10**6)))  # xdist workers inherit it

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", False)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
TYPED = (
    "crossent_jax._dense.shards",
    "crossent_jax._dense.vjp",
    "crossent_jax._pairs.integrands",
    "crossent_jax._pairs.series",
    "crossent_jax._row.block",
    "crossent_jax._row.labels",
    "crossent_jax._row.logit_map",
    "crossent_jax._row.losses",
    "crossent_jax._row.reduce",
    "crossent_jax._row.state",
    "crossent_jax.backends",
)  # a name that does not exist fails in tests/test_wings.py
jaxtyping.install_import_hook(list(TYPED), "beartype.beartype")


def pytest_configure(config):
    config.addinivalue_line("markers", "optimized: the last bits or the memory of a program; compiled as users do")
    config.addinivalue_line("markers", "subprocess: starts other processes; left out by `make check`")
    if hasattr(config, "cache"):  # not with -p no:cacheprovider
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))


def pytest_addoption(parser):
    parser.addoption(
        "--cases", type=int, help="run at most so many of each test's parameter cases, the same ones every time"
    )
    parser.addoption(
        "--part", choices=("first", "rest"), help=f"run {FIRST_CASES} cases of each test at most, or the others"
    )


def pytest_collection_modifyitems(config, items):
    if compiling.is_quick():
        deselect(config, items, [item for item in items if item.get_closest_marker("optimized")])
    part, most = config.getoption("--part"), config.getoption("--cases")
    if part is not None:
        left_out = slice(FIRST_CASES, None) if part == "first" else slice(FIRST_CASES)
        deselect(config, items, [item for group in mixed_cases(items) for item in group[left_out]])
    if most is not None:
        deselect(config, items, [item for group in mixed_cases(items) for item in group[most:]])


def mixed_cases(items):
    """Of each test, in an order that is always the same."""
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    return [sorted(group, key=lambda item: zlib.crc32(item.nodeid.encode())) for group in cases.values()]


def deselect(config, items, left_out):
    left_out = set(left_out)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish():
    """What is alive now stays; the collector need not look at it again (it took a sixteenth of the time)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_report_header(config):
    seed = os.environ[SEED_VARIABLE]
    how = "quickly" if compiling.is_quick() else "as users do"
    return f"random seed: {seed} (repeat with {SEED_VARIABLE}={seed}); jax {jax.__version__}, programs compiled {how}"


@pytest.fixture
def one_device(monkeypatch):
    """The suite runs with eight devices of the CPU, where rows are never taken in blocks, nor relative to their labels."""
    import jax

    from crossent_jax._jax import row_blocks

    monkeypatch.setattr(row_blocks, "several_devices", lambda: False)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def small_blocks():
    """A chunk's classes cut into three blocks for its state, unless the call is plain, and four for its gradient (1024 at
    most), as those of a large chunk are on a CPU."""
    from crossent_jax._linear import cuts, rows

    def blocks(row_count, classes, itemsize, plain):
        return cuts.Blocks(None if plain else min(1024, classes // 3 + 1), min(1024, classes // 4 + 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "cpu_blocks", blocks)
        jax.clear_caches()
        yield
    jax.clear_caches()
