"""The float64 answer to a case, and how far a result is from it."""

from typing import Any

import numpy as np

from .operations import OPERATIONS, product_operations
from .programs import as_numpy
from .shapes import Case

EXACT_OPERATIONS = 4e11  # float64 products that a case may spend; more are done on fewer rows
LEAST_ROWS = 64


def affordable_rows(case: Case) -> int:
    """As many as the budget of operations allows. A contrastive loss has as many classes as rows: its cost falls with the
    square."""
    cost = 4 / 3 * product_operations(case._replace(mode="value_and_grad"))  # the float64 answer makes four products
    if cost <= EXACT_OPERATIONS:
        return case.shape.n
    share = EXACT_OPERATIONS / cost
    return max(LEAST_ROWS, int(case.shape.n * (share**0.5 if case.operation == "info_nce" else share)))


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
        classes = self.rows if case.operation == "info_nce" else case.shape.v
        self.case = case._replace(shape=case.shape._replace(n=self.rows, v=classes))
        exact = [np.asarray(a, None if np.issubdtype(a.dtype, np.integer) else np.float64) for a in self.arguments]
        self.loss, self.gradients = operation.exact(*exact)

    def errors(self, result: Any) -> dict[str, float | None]:
        """Nats of the loss; of the gradients the largest error over the largest entry."""
        loss, *gradients = as_numpy(result)
        worst = [float(np.max(np.abs(g - t)) / np.max(np.abs(t))) for g, t in zip(gradients, self.gradients, strict=False)]
        return {"loss_error": abs(float(loss) - self.loss), "gradient_error": max(worst) if worst else None}
