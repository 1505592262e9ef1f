"""One way to compute an operation, and why it cannot run somewhere."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from ..shapes import Case


class Contender(NamedTuple):
    """``make(case)`` gives the loss as a function of the operation's arguments (torch tensors if the library is torch)."""

    what: str
    make: Callable[[Case], Callable[..., Any]]
    library: str = "jax"
    packages: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    modes: tuple[str, ...] = ("forward", "value_and_grad")
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    ranked: bool = True  # False: a floor or a variant, shown beside but not compared as a loss
    is_loss: bool = True  # False: ``make`` gives a function that is run as it is, such as bare products
    products: int | None = None  # of a scheme that does another number of them than the operation needs
    differentiated: int | None = None  # of the arguments, where not as many as the operation's
    least_width: int = 0  # features below which it is left out: a variant that says nothing there
    head_by_class: bool = False  # wants the head as (v, d): its (d, v) is then a view of that

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]

    def absence(self, case: Case, platform: str) -> str | None:
        """Why it does not run this case, or None."""
        if missing := self.missing():
            return f"not installed: {', '.join(missing)}"
        for what, value, known in (
            ("platform", platform, self.platforms),
            ("mode", case.mode, self.modes),
            ("dtype", case.dtype, self.dtypes),
        ):
            if value not in known:
                return f"{what} {value}: only {', '.join(known)}"
        return f"fewer than {self.least_width} features" if case.shape.d < self.least_width else None


def formula(what: str, loss: Callable[..., Any], **more: Any) -> Contender:
    """One that is the same for every case."""
    return Contender(what, lambda case: loss, **more)


def of_torch(what: str, make: Callable[[Case], Callable], *packages: str, platforms=("cpu", "gpu"), **more: Any):
    return Contender(what, make, "torch", ("torch", *packages), platforms, **more)
