"""The memory engine with faults to order: calls that fail before or after they were done, leases that are lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar, cast, get_args

from ..contract import Request
from ..core.lease import LeaseBase
from ..engines.memory import AsyncMemoryLink, MemoryEngine, MemoryLink
from ..errors import Misuse, OutcomeUnknown, Unavailable

T = TypeVar("T")

Op = Literal["ping", "enter", "leave", "renew", "look", "list", "open", "put", "read", "drop"]
OPS = frozenset(get_args(Op))


class Fault(AbstractContextManager["Fault"]):
    """Calls that fail. Left as a context manager, it is over."""

    def __init__(self, engine: ScriptedEngine, times: float, op: Op | None, done: bool) -> None:
        self._engine = engine
        self.times_left = times
        self.op = op
        self.done = done

    def __exit__(self, *exc: object) -> None:
        self._engine.faults.remove(self)


class ScriptedEngine(MemoryEngine):
    """All clients of one test. Its time is the test's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock, lambda: clock() * 1e6)
        self.faults: list[Fault] = []

    def blocking_link(self) -> MemoryLink:
        return ScriptedLink(self)

    def async_link(self) -> AsyncMemoryLink:
        return AsyncScriptedLink(self)

    def unavailable(self, times: int | None = None, op: Op | None = None, done: bool = False) -> Fault:
        """Let the next ``times`` calls of ``op`` fail (None: all, of every kind).

        With ``done`` the engine does what it was asked and only the reply is lost. Ends after ``times``, at the end of
        ``with engine.unavailable():``, or with `available`.
        """
        if op is not None and op not in OPS:
            raise Misuse(f"op is one of {', '.join(sorted(OPS))}, not {op!r}")
        if times is not None and times < 1:
            raise Misuse(f"times is a whole number from 1, or None for all, not {times!r}")
        fault = Fault(self, float("inf") if times is None else times, op, done)
        self.faults.append(fault)
        return fault

    def available(self) -> None:
        """End every fault that was ordered."""
        for fault in self.faults:
            fault.times_left = 0

    def next_fault(self, op: str) -> Fault | None:
        """The fault that this call meets, if any."""
        for fault in self.faults:
            if fault.times_left > 0 and fault.op in (None, op):
                fault.times_left -= 1
                return fault
        return None


def take_away(lease: LeaseBase) -> None:
    """End this lease as if its engine had: the holder is told, and whoever waits is admitted."""
    session, tenure = lease._session, lease._own()  # pyright: ignore[reportPrivateUsage]
    leave = session.engine.leave(tenure.turnstile, tenure.claim.id, True)
    MemoryLink(cast(ScriptedEngine, session.engine)).call(leave, 1.0)
    session.renewer.lose(tenure, "the test took it away")


_LOSABLE: dict[type[Any], type[Any]] = {}


def make_losable(handle: Any) -> None:
    """Give this lease, of whatever kind, the method ``lose()``: `take_away`."""
    kind: type[Any] = handle.__class__
    if kind not in _LOSABLE:
        _LOSABLE[kind] = type(f"Fake{kind.__name__}", (kind,), {"__slots__": (), "lose": take_away})
    handle.__class__ = _LOSABLE[kind]


class ScriptedLink(MemoryLink):
    """Where the ordered faults happen."""

    engine: ScriptedEngine

    def call(self, request: Request[T], timeout_s: float) -> T:
        with self.engine.lock:
            fault = self.engine.next_fault(request.op)
            if fault is None:
                return super().call(request, timeout_s)
            if not fault.done:
                raise Unavailable(f"the test made {request.op} unavailable")
            super().call(request, timeout_s)
            raise OutcomeUnknown(f"the test lost the reply of {request.op}")


class AsyncScriptedLink(AsyncMemoryLink):
    """The same, awaitable."""

    def __init__(self, engine: ScriptedEngine) -> None:
        super().__init__(engine)
        self._link = ScriptedLink(engine)
        self.inbox = self._link.inbox
