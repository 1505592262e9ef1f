"""One process that compiles one program for a chip that is not here: its text and its temporary bytes."""

import json
import os
import sys
from pathlib import Path

import jax.numpy as jnp

from . import memory
from .chips import compile_for
from .contenders import CONTENDERS, linear, logits
from .operations import dimensions
from .programs import jax_function, products_in, reason
from .shapes import Case, case_from
from .worker import say


def program_of(case: Case, name: str, options: str | None):
    """The function of the operation's arrays, or of those that its options want, and their shapes and dtypes."""
    if options is None:
        return jax_function(CONTENDERS[case.operation][name], case), dimensions(case)
    side = ("logits",) if case.mode == "value_and_grad" else ()
    cell = memory.Cell(f"{case.operation}, {options}", side, case.dtype)
    return memory.program_of(cell, case.shape, implementation=logits.IMPLEMENTATIONS[name])


def main(request: dict) -> None:
    case, linear.other_chip = case_from(request["case"]), request["chip"]
    function, given = program_of(case, request["name"], request["options"])
    try:
        program = compile_for(request["chip"], function, *((size, jnp.dtype(kind)) for size, kind in given))
    except Exception as error:  # a program that the compiler refuses is a cell of the table
        return say(refused=reason(error))
    text = program.as_text() or ""
    Path(request["text"]).write_text(text)
    say(temp_bytes=program.memory_analysis().temp_size_in_bytes, dots=products_in(text))


if __name__ == "__main__":
    os.dup2(2, 1)  # what libraries print must not mix with the messages
    main(json.loads(sys.argv[1]))
