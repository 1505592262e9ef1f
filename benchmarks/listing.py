"""What there is to measure, and what is missing here."""

from argparse import Namespace

from rich.markup import escape

from . import table
from .contenders import CONTENDERS
from .operations import OPERATIONS
from .shapes import PRESETS, SUITES


def main(options: Namespace) -> int:
    del options
    console = table.console()
    console.print("[bold]suites[/bold]")
    for suite, groups in SUITES.items():
        operations = ", ".join(dict.fromkeys(group.operation for group in groups))
        console.print(f"  {suite}: {sum(len(group.cases()) for group in groups)} cases of {operations}")
    console.print("[bold]shapes with a name[/bold]")
    for name, shape in PRESETS.items():
        console.print(f"  {name}: {shape}")
    for name, operation in OPERATIONS.items():
        console.print(f"[bold]{name}[/bold]: {escape(operation.formula)}")
        for implementation, contender in CONTENDERS[name].items():
            notes = [f"only {'/'.join(contender.platforms)}"] * (len(contender.platforms) < 3)
            missing = contender.missing()
            notes += [f"not installed: {', '.join(missing)}"] * bool(missing)
            suffix = f" ({'; '.join(notes)})" if notes else ""
            console.print(f"  {implementation}: {contender.what}{suffix}", markup=False)
    return 0
