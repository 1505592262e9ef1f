"""The float64 answer to a case, and how far a result is from it."""

from typing import Any

import numpy as np

from .device import available_bytes
from .operations import OPERATIONS, product_operations
from .programs import as_numpy
from .shapes import Case

EXACT_OPERATIONS = 4e11  # float64 products that a case may spend; more are done on fewer rows
EXACT_LOGITS = 2**28  # the same of logits that are given
LEAST_ROWS = 64
SHARE_OF_MEMORY = 0.5


def affordable_rows(case: Case) -> int:
    """As many as the budget of operations allows. A contrastive loss has as many classes as rows: its cost falls with the
    square."""
    n, v, d = case.shape
    cost = 4 / 3 * product_operations(case._replace(mode="value_and_grad"))  # the float64 answer makes four products
    share = EXACT_OPERATIONS / cost if d else EXACT_LOGITS / (n * v)
    rows = int(n * (share**0.5 if case.operation == "info_nce" else share))
    return min(n, max(LEAST_ROWS, rows))


def check_memory(arguments: tuple) -> None:
    """MemoryError where float64 arguments, gradients and a gradient to compare would fill the machine: it would kill us."""
    needed, available = 3 * 8 * sum(a.size for a in arguments), available_bytes()
    if available and needed > SHARE_OF_MEMORY * available:
        raise MemoryError(f"float64 needs {needed / 2**30:.0f} of {available / 2**30:.0f} GiB")


class Truth:
    """The float64 loss and gradients of a case, on as many rows as the budget of operations allows."""

    def __init__(self, case: Case, arguments: tuple):
        operation = OPERATIONS[case.operation]
        self.rows = affordable_rows(case)
        self.whole = self.rows == case.shape.n
        self.arguments = tuple(
            a[: self.rows] if axes[0] == "n" and not self.whole else a
            for a, (axes, _) in zip(arguments, operation.layout, strict=True)
        )
        check_memory(self.arguments)
        classes = self.rows if case.operation == "info_nce" else case.shape.v
        self.case = case._replace(shape=case.shape._replace(n=self.rows, v=classes))
        exact = [np.asarray(a, None if np.issubdtype(a.dtype, np.integer) else np.float64) for a in self.arguments]
        self.loss, self.gradients = operation.exact(*exact)

    def errors(self, result: Any) -> dict[str, float | None]:
        """Nats of the loss; of the gradients the largest error over the largest entry."""
        loss, *gradients = as_numpy(result)
        worst = [float(np.max(np.abs(g - t)) / np.max(np.abs(t))) for g, t in zip(gradients, self.gradients, strict=False)]
        return {"loss_error": abs(float(loss) - self.loss), "gradient_error": float(np.max(worst)) if worst else None}
