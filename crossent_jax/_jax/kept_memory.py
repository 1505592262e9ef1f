"""Whether this process keeps the memory that a CPU's arrays leave: see docs/on-a-cpu.md.

XLA's CPU backend allocates every result and temporary anew at each call. glibc gives large blocks back to the kernel when
they are freed, and the kernel clears every page of the next ones. With three settings, read once when a process starts, it
keeps them instead.
"""

import os
import platform

VARIABLE = "GLIBC_TUNABLES"
KEEPS = {  # no blocks outside the heap, no second heap for other threads, and no end at which the heap is cut
    "glibc.malloc.arena_max": "1",
    "glibc.malloc.mmap_max": "0",
    "glibc.malloc.trim_threshold": "100000000000",
}


def can_be_set() -> bool:
    """Only glibc has these settings."""
    return platform.libc_ver()[0] == "glibc"


def settings(tunables: str) -> dict[str, str]:
    """By name, of a value of the variable; what is no setting is left out, as glibc does."""
    return dict(part.split("=", 1) for part in tunables.split(":") if "=" in part)


def with_memory(tunables: str, kept: bool) -> str:
    """The variable's value with these three settings or without, others as they are."""
    others = {name: value for name, value in settings(tunables).items() if name not in KEEPS}
    return ":".join(f"{name}={value}" for name, value in (others | (KEEPS if kept else {})).items())


def is_kept() -> bool:
    """Of this process: whether all three are set as here."""
    return settings(os.environ.get(VARIABLE, "")).items() >= KEEPS.items()
