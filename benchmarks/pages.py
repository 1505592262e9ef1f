"""Pages of a CPU's memory: kept between calls, or fresh from the kernel, which clears them."""

import os

from crossent_jax._jax import kept_memory

from .records import Bad
from .shapes import PAGES, Case

LARGE_ENOUGH = 2**21  # logits: with fewer, little is given back


def variables(pages: str | None) -> dict[str, str]:
    """Of the environment of a process that measures so."""
    if pages is None:
        return {}
    return {kept_memory.VARIABLE: kept_memory.with_memory(os.environ.get(kept_memory.VARIABLE, ""), pages == "kept")}


def with_pages(cases: list[Case], wanted: str | None, platform: str, smoke: bool) -> list[Case]:
    """The cases in each way that is wanted: by default with memory kept, and beside it the smoke suite's large ones with
    fresh pages. As they are where that is not ours to choose; :class:`Bad` if it was asked for."""
    if platform == "cpu" and kept_memory.can_be_set():
        return [case._replace(pages=pages) for case in cases for pages in ways(case, wanted, smoke)]
    if wanted:
        raise Bad(f"--pages {wanted}: only a CPU's memory under glibc can be kept or not, this is {platform}: leave it out")
    return cases


def ways(case: Case, wanted: str | None, smoke: bool) -> tuple[str, ...]:
    both = wanted == "both" or wanted is None and smoke and case.shape.n * case.shape.v >= LARGE_ENOUGH
    return PAGES if both else (wanted or "kept",)
