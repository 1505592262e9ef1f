"""What to do where JAX refuses to differentiate forwards: its own message does not know this library."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

REFUSAL = "forward-mode"  # in the TypeError that JAX raises for the jvp of a custom_vjp
WAY_OUT = 'Forward mode (jvp, jacfwd, linearize) needs implementation="reference"; grad, vjp and hessian do not.'
NO_WAY_OUT = "Contrastive losses have no forward mode (jvp, jacfwd, linearize): use grad or vjp."


def forward_mode_hint(hint: str) -> Callable[[F], F]:
    """A decorator: JAX's refusal, raised inside the function, ends with a note."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def called(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except TypeError as error:
                if REFUSAL in str(error) and not getattr(error, "__notes__", None):
                    error.add_note(hint)
                raise

        return cast(F, called)

    return decorate
