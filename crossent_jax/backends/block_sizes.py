"""How much of the logits a TPU kernel takes at a time, and for which TPU.

Blocks of few rows and many classes: the fewer blocks a row has, the less often its state is joined to theirs. Thousands of
cycles of the state of (4096, 32768) bfloat16 logits (static profile of libtpu 0.0.42.1, jax 0.10.2; XLA's passes read
the logits twice, and three times with every option):

| rows x classes | v5e | v6e | v5e, every option |
|---|---|---|---|
| 512 x 1024 | 760 | | |
| 256 x 1024 | | | 2859 |
| 512 x 2048 | 613 | 430 | |
| 256 x 4096 | 582 | 437 | 1754 |
| 128 x 8192 | 572 | 402 | 1604 |
| 128 x 16384 | 543 | 379 | |
| XLA | 1676 | 495 | 2965 |
"""

from typing import NamedTuple

import jax

MIB = 2**20
ROWS, LANES = 128, 128
WINDOWS = 8 * MIB  # the most that blocks of arrays take, each of which is there twice: one is moved, one is computed with
LARGE_MEMORY = ("TPU v5", "TPU v6", "TPU7")  # 64 MiB of fast memory at least; older ones have 16


class Blocks(NamedTuple):
    """Of one step: rows and classes, multiples of 128."""

    rows: int
    classes: int


def fast_memory() -> int:
    """Bytes that a kernel may take, of the TPU that the ambient mesh is of, or else of JAX's first device."""
    return 48 * MIB if device_kind().startswith(LARGE_MEMORY) else 15 * MIB


def device_kind() -> str:
    """As JAX names it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None else jax.devices()[0].device_kind


def block_sizes(v: int, bytes_of_a_class: int, is_plain: bool, memory: int) -> Blocks:
    """For rows of v classes, of each of which a kernel reads and writes so many bytes. Blocks are as equal as can be.

    What a kernel holds: its windows twice, and what its compiler puts aside: the exponentials, and where more than a plain
    row's state is made four arrays more (seen: 16 bytes a class).
    """
    put_aside = 4 if is_plain else 20
    most = min(WINDOWS // (2 * ROWS * bytes_of_a_class), memory // (ROWS * (2 * bytes_of_a_class + put_aside)))
    count = -(-v // most)
    return Blocks(ROWS, -(-v // (LANES * count)) * LANES)
