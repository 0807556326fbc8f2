"""What the running thread or task holds through lock objects, which are shared and keep nothing themselves."""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..errors import Misuse
from .recipe import Recipe
from .session import Session

L = TypeVar("L")


class Holdings(Generic[L]):
    """The leases of one session, per thread or task and per turnstile and weight, innermost last.

    Kept under the thread or task itself, weakly: when that is gone, so are its leases, and the renewer gives them back.
    """

    def __init__(self, session: Session) -> None:
        self._by_actor = session.holdings
        self._actor = session.world.actor

    def push(self, recipe: Recipe, lease: L) -> None:
        actor = self._actor()
        held = self._by_actor.get(actor)
        if held is None:
            held = self._by_actor[actor] = {}
        held.setdefault((recipe.turnstile, recipe.weight), []).append(lease)

    def top(self, recipe: Recipe) -> L | None:
        leases = self._leases(recipe)
        return leases[-1] if leases else None

    def depth(self, recipe: Recipe) -> int:
        return len(self._leases(recipe))

    def pop(self, recipe: Recipe) -> tuple[L, bool]:
        """The innermost lease, and whether that was its last use (a reentrant one may be held further out)."""
        leases = self._leases(recipe)
        if not leases:
            raise Misuse(
                f"this thread or task holds no {recipe.turnstile.address}; a lease that another took is released "
                "through its own lease.release()"
            )
        lease = leases.pop()
        if not leases:
            del self._by_actor[self._actor()][recipe.turnstile, recipe.weight]
        return lease, not any(other is lease for other in leases)

    def _leases(self, recipe: Recipe) -> list[L]:
        held: dict[Any, list[L]] = self._by_actor.get(self._actor()) or {}
        return held.get((recipe.turnstile, recipe.weight), [])


def refuse_self_deadlock(recipe: Recipe, held: Any) -> None:
    """A nested ``with`` of an exclusive lock would wait for itself."""
    if held is not None and recipe.weight == recipe.turnstile.capacity and held.state in ("HELD", "UNSURE"):
        raise Misuse(
            f"this thread or task already holds {recipe.turnstile.address} and would wait for itself; "
            "reentrant=True allows taking it again"
        )


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
