"""The committed list of shapes and which of them a suite measures. Removing one is a changelog entry."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Rows, classes, and features where the classes' logits are a product (0 where they are given)."""

    n: int
    v: int
    d: int = 0

    def __str__(self) -> str:
        return f"n={self.n},{f'd={self.d},' if self.d else ''}v={self.v}"


class Case(NamedTuple):
    """What one process measures: every contender of an operation at a shape."""

    operation: str
    shape: Shape
    dtype: str
    mode: str
    pages: str | None = None  # of a CPU's memory, by name in .pages; None: as the C library has them

    def __str__(self) -> str:
        pages = f", {self.pages} pages" if self.pages else ""
        return f"{self.operation} {self.shape} {self.dtype} {self.mode}{pages}"


def case_from(fields: list) -> Case:
    """From JSON, which has lists for tuples."""
    operation, shape, *others = fields
    return Case(operation, Shape(*shape), *others)


class Group(NamedTuple):
    """Cases of one operation."""

    operation: str
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    modes: tuple[str, ...] = ("value_and_grad",)

    def cases(self) -> list[Case]:
        return [Case(self.operation, s, dtype, mode) for dtype in self.dtypes for mode in self.modes for s in self.shapes]


DTYPES = ("float32", "bfloat16", "float16")
MODES = ("forward", "value_and_grad", "eager")
PAGES = ("kept", "fresh")
BOTH = ("forward", "value_and_grad")

# Whole heads of models at a step's number of tokens: for accelerators. A CPU takes minutes for one call of some.
PRESETS = {
    "digits": Shape(1797, 10, 64),
    "gpt2": Shape(8192, 50257, 768),
    "llama3": Shape(4096, 128256, 4096),
    "qwen3": Shape(16384, 151936, 4096),
    "gemma3": Shape(8192, 262144, 1152),
}
LARGE = tuple(PRESETS[name] for name in ("gpt2", "llama3", "qwen3", "gemma3"))

# From digits to a language model's vocabulary, about 1.3 to 17 million logits each; odd sizes included.
LOGITS = tuple(
    Shape(n, v)
    for n, v in (
        (131072, 10),
        (65536, 32),
        (65536, 128),
        (32768, 257),
        (8192, 1000),
        (4096, 4099),
        (2048, 8192),
        (1024, 16384),
        (512, 32768),
        (256, 50257),
        (128, 65536),
        (64, 131072),
    )
)

# Every width of the head with a small, an odd and a large vocabulary.
LINEAR = tuple(
    Shape(n, v, d)
    for n, d, v in (
        (4096, 64, 4096),
        (2048, 64, 16384),
        (1023, 64, 50257),
        (1024, 64, 65536),
        (4096, 256, 8192),
        (2048, 256, 16384),
        (1021, 256, 32771),
        (1024, 256, 65536),
        (2048, 1024, 4099),
        (1024, 1024, 16384),
        (1024, 1024, 32768),
    )
)

# One size grows, the others stay: what the plots against v and n are made of.
OVER_V = tuple(Shape(1024, v, 64) for v in (1024, 4096, 16384, 65536, 262144))
OVER_N = tuple(Shape(n, 32768, 64) for n in (128, 512, 2048, 8192))
LOGITS_OVER_V = tuple(Shape(2**22 // v, v) for v in (16, 128, 1024, 8192, 65536, 262144))

DECISIONS = (Shape(32768, 10), Shape(4096, 1000), Shape(2048, 8192))  # each class is one
PAIRS = (Shape(32768, 10), Shape(8192, 257), Shape(2048, 4099), Shape(256, 50257))
BATCHES = (Shape(1021, 1021, 64), Shape(4096, 4096, 256))  # contrastive: as many classes as rows
LARGE_BATCH = Shape(16384, 16384, 512)  # a minute a round on a CPU: float32 only
DISTILLED = (Shape(1021, 32771, 256), Shape(2048, 16384, 64))
DISTILLED_LARGE = (Shape(8192, 131072, 1024),)  # compiled for chips alone

SUITES = {
    "smoke": (
        Group("cross_entropy", (Shape(1021, 4099),)),
        Group("cross_entropy", (Shape(1797, 10),), ("float32",)),
        Group("cross_entropy", (Shape(32, 10),), ("float32",), ("eager",)),
        Group("linear_cross_entropy", (Shape(1021, 8209, 64),), ("float32",)),
        Group("soft_cross_entropy", (Shape(1021, 4099),), ("float32",)),
        Group("info_nce", (Shape(1021, 1021, 64),), ("float32",)),
    ),
    "classify": (
        Group("cross_entropy", LOGITS, modes=BOTH),
        Group("cross_entropy", (Shape(32, 10),), ("float32",), ("eager", "value_and_grad")),
        Group("cross_entropy", LOGITS_OVER_V, DTYPES, ("forward",)),
        Group("binary_cross_entropy", DECISIONS, modes=BOTH),
    ),
    "llm": (
        Group("linear_cross_entropy", LINEAR),
        Group("linear_cross_entropy", OVER_V + OVER_N, ("float32",)),
        Group("linear_cross_entropy", LARGE, ("bfloat16",)),
    ),
    "divergence": (
        Group("soft_cross_entropy", PAIRS, modes=BOTH),
        Group("kl_divergence", PAIRS, modes=BOTH),
        Group("js_divergence", PAIRS),
        Group("linear_kl_divergence", DISTILLED),
    ),
    "contrastive": (Group("info_nce", BATCHES), Group("info_nce", (LARGE_BATCH,), ("float32",))),
    "sharded": (
        Group("sharded_cross_entropy", (Shape(1021, 32768), Shape(8192, 1024)), ("float32",), BOTH),
        Group("sharded_linear_cross_entropy", (Shape(1021, 32768, 64),), ("float32",)),
    ),
}

# What is compiled for chips that are not here, by default.
AOT = (
    Group("linear_cross_entropy", (Shape(8192, 131072, 2048), Shape(16384, 131072, 1024)), ("bfloat16",)),
    Group("linear_cross_entropy", (PRESETS["gpt2"]._replace(n=16384), Shape(16384, 50304, 768)), ("bfloat16",)),
    Group("linear_cross_entropy", (PRESETS["llama3"], PRESETS["qwen3"]), ("bfloat16",)),
    Group("cross_entropy", (Shape(4096, 50257),), ("bfloat16",)),
    Group("linear_kl_divergence", DISTILLED_LARGE, ("bfloat16",)),
)
AOT_IMPLEMENTATIONS = ("ours", "ours-4GiB", "naive", "products", "products-whole", "logsumexp", "optax-integer")


def named(text: str) -> Shape:
    """A preset's name, or ``n=,v=`` or ``n=,d=,v=``; ValueError says what it may be."""
    if text in PRESETS:
        return PRESETS[text]
    parts = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    good = {"n", "v"} <= set(parts) <= {"n", "d", "v"} and len(parts) == text.count(",") + 1
    if not good or not all(value.isdigit() and int(value) > 0 for value in parts.values()):
        raise ValueError(
            f"got shape {text!r}: give n=ROWS,v=CLASSES or n=ROWS,d=FEATURES,v=CLASSES with positive whole numbers, "
            f"or one of {', '.join(PRESETS)}"
        )
    return Shape(**{key: int(value) for key, value in parts.items()})
