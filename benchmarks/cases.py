"""Which cases a command line asks for."""

from argparse import Namespace

from .contenders import CONTENDERS
from .operations import OPERATIONS
from .records import Bad
from .shapes import LARGE, SUITES, Case, Group, Shape, named

TOO_LARGE = "minutes a call on a CPU: ask for it with --shape"


def known(what: str, given: list[str] | None, names) -> list[str] | None:
    unknown = [name for name in given or () if name not in names]
    if unknown:
        raise Bad(f"unknown {what} {', '.join(unknown)}: expected one of {', '.join(names)}")
    return given


def shapes_of(texts: list[str] | None) -> list[Shape] | None:
    try:
        return [named(text) for text in texts] if texts else None
    except ValueError as error:
        raise Bad(str(error)) from None


def fitting(operation: str, shape: Shape) -> Shape:
    """The shape as the operation takes it."""
    if not OPERATIONS[operation].has_features:
        return shape._replace(d=0)
    if not shape.d:
        raise Bad(f"{operation} needs features: got {shape}, give n=,d=,v=")
    if operation == "info_nce" and shape.n != shape.v:
        raise Bad(f"info_nce has as many classes as rows: got {shape}, give v={shape.n}")
    return shape


def changed(group: Group, shapes: list[Shape] | None, options: Namespace) -> Group:
    """With the shapes, dtypes and modes asked for in the place of its own."""
    if shapes:
        group = group._replace(shapes=tuple(fitting(group.operation, shape) for shape in shapes))
    return group._replace(dtypes=tuple(options.dtype or group.dtypes), modes=tuple(options.mode or group.modes))


def is_smoke(options: Namespace) -> bool:
    return options.suite == ["smoke"] or not (options.suite or options.op or options.shape)


def chosen_cases(options: Namespace) -> list[Case]:
    """Those of the suites, of the operations asked for; without a suite, of any that has the operation."""
    suites, operations = known("suite", options.suite, SUITES), known("operation", options.op, OPERATIONS)
    shapes = shapes_of(options.shape)
    if shapes and not suites and not operations:
        operations = list(dict.fromkeys("linear_cross_entropy" if shape.d else "cross_entropy" for shape in shapes))
    suites = ["smoke"] if is_smoke(options) else suites or list(SUITES)
    groups = [group for suite in suites for group in SUITES[suite] if not operations or group.operation in operations]
    cases = list(dict.fromkeys(case for group in groups for case in changed(group, shapes, options).cases()))
    if not cases:
        raise Bad(f"no case: the suites {', '.join(suites)} have nothing of {', '.join(operations or ())} (see `list`)")
    return cases


def names_of(case: Case, wanted: list[str] | None) -> list[str]:
    return [name for name in CONTENDERS[case.operation] if not wanted or name in wanted]


def skipped(case: Case, options: Namespace, platform: str) -> str | None:
    """Why a suite's case is not for this platform."""
    if platform == "cpu" and case.shape in LARGE and not options.shape:
        return TOO_LARGE
    return None
