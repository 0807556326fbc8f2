"""The names of decorated functions' locks: made for each call from its arguments."""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Callable
from typing import Any

from ..errors import Misuse


def call_namer(name: str, function: Callable[..., Any]) -> Callable[..., str] | None:
    """For a decorated function: from the arguments of a call to the lock's name, or None where the name is fixed.

    ``{user_id}`` in a name stands for the argument of that name.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(name) if field is not None]
    except ValueError as error:
        raise Misuse(f"the name {name!r} is no format: {error}") from None
    if not fields:
        return None
    signature = inspect.signature(function)
    for field in fields:
        root = field.split(".")[0].split("[")[0]
        if root not in signature.parameters:
            raise Misuse(f"{{{field}}} in the name {name!r} is no parameter of {function.__qualname__}{signature}")

    @functools.wraps(function)
    def named(*args: Any, **kwargs: Any) -> str:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return name.format(**bound.arguments)

    return named
