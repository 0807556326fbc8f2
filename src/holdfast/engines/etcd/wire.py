"""How a call to etcd ended, in our words."""

from __future__ import annotations

from typing import Any

from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported
from .http2 import Call, NotHttp2
from .messages import Ask
from .target import Target

NEEDED = (3, 4)
UNIMPLEMENTED = 12


class LeaseGone(Unavailable):
    """The request was refused since its lease has ended; nothing was done."""


class NoLeader(Unavailable):
    """This member cannot serve now; another may."""


class TokenRefused(Unavailable):
    """The login has ended: log in again."""


def reply_of(request: Ask, call: Call, trouble: Exception | None, target: Target, name: str) -> Any:
    """What a call brought; an error is returned as its exception.

    ``trouble``: what became of the connection, where the call did not end.
    """
    where = f"etcd at {name}"
    if isinstance(trouble, NotHttp2):
        return Unsupported(f"{where} is none, or wants TLS (etcds://): {trouble}")
    if call.status == 0 and call.messages:
        return request.parse(call.messages)
    if call.status > 0:
        return refused(call.status, call.text, target, where, wrote=not request.reads)
    why = call.text or ("no answer in time" if isinstance(trouble, TimeoutError) else str(trouble or "no answer"))
    if call.not_done or request.reads:
        return Unavailable(f"{where} did not answer: {why}")
    return OutcomeUnknown(f"{where} may or may not have done it: {why}")


def refused(status: int, message: str, target: Target, where: str, wrote: bool) -> HoldfastError:
    """What an error means to the caller. ``wrote``: whether something may have been changed."""
    for mark, error in (
        ("requested lease not found", LeaseGone(f"the lease of a claim has ended on {where}")),
        ("no leader", NoLeader(f"{where} has no leader: a majority of its members does not answer")),
        ("not capable", Unavailable(f"{where} is still starting")),
        ("invalid auth token", TokenRefused(f"{where} wants a new login")),
        ("revision in header is old", TokenRefused(f"{where} wants a new login")),
        ("authentication is not enabled", Misuse(f"{where} has authentication off: leave user:password@ out")),
        ("authentication failed", Misuse(f"{where} refused the password of {target.who}")),
        ("user name is empty", Misuse(f"{where} wants a login: etcd://user:password@host")),
        ("user name not found", Misuse(f"{where} knows no {target.who}")),
        ("permission denied", Misuse(
            f"{where} does not allow this to {target.who}: its role needs readwrite on all keys that start with "
            "'holdfast/' (etcdctl role grant-permission ROLE readwrite holdfast/ --prefix=true)")),
        ("database space exceeded", Unavailable(
            f"{where} is full and takes no new claims: compact and defragment it, or raise --quota-backend-bytes; "
            "then etcdctl alarm disarm")),
        ("request is too large", Misuse(f"{where} takes no request of this size (its --max-request-bytes)")),
        ("too many operations", Misuse(f"{where} takes fewer operations at once (its --max-txn-ops, 128 by default)")),
        ("too many requests", Unavailable(f"{where} has too much to do")),
    ):  # fmt: skip
        if mark in message:
            return error
    if status == UNIMPLEMENTED or status > 1000:
        return Unsupported(f"{where} answers, but not as etcd does: {message}")
    if wrote:
        return OutcomeUnknown(f"{where} may or may not have done it: {message}")
    return Unavailable(f"{where} refused: {message}")


def too_old(version: str, name: str) -> Unsupported | None:
    """Refuse a server that lacks what is used here."""
    try:
        found = tuple(map(int, version.split(".")[:2]))
    except ValueError:
        return None
    if found >= NEEDED:
        return None
    return Unsupported(f"etcd at {name} has version {version}: holdfast needs 3.4 or newer")
