"""One tree of errors. Each message says what happened and what to do."""

from __future__ import annotations


class HoldfastError(Exception):
    """The root of everything that holdfast raises on purpose."""


class AcquireTimeout(HoldfastError, TimeoutError):
    """The lock was not ours within ``timeout_s``; nothing of ours is left in the queue."""


class LeaseLost(HoldfastError):
    """The lease ended before its holder released it; another may hold it by now."""


class StaleToken(HoldfastError):
    """A newer holder has opened this cell: the write was refused and changed nothing."""


class Unavailable(HoldfastError, ConnectionError):
    """The engine could not be reached, or refused to serve; the request did nothing there."""


class OutcomeUnknown(HoldfastError, ConnectionError):
    """The request may or may not have been done: its reply never came.

    Protocols resend on this (every operation is idempotent by its id); a caller sees it only where
    the resends ran out of time as well.
    """


class Unsupported(HoldfastError):
    """This engine cannot do that; raised when the object is made, never later."""


class Misuse(HoldfastError, ValueError):
    """The call itself is wrong; the message names what would be right."""
