"""The cell's protocol: raise the fence on open, write under exactly that fence and version."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import Request
from ..errors import HoldfastError, LeaseLost, Misuse, OutcomeUnknown, StaleToken, Unavailable, Unsupported
from ..model import CellReply, CellSnapshot, Change, Fence, check_name
from .session import Session, lost_message
from .tenure import Tenure


class Opening:
    """One opening of a cell: what later puts need. ``value`` and ``version`` follow our own puts.

    ``pending`` is the last put, with its value, while its outcome is not known.
    """

    __slots__ = ("cell", "fence", "max_value_bytes", "pending", "unknown", "value", "version")

    def __init__(self, cell: str, fence: Fence, reply: CellReply, max_value_bytes: int) -> None:
        self.cell = cell
        self.fence = fence
        self.value = reply.value
        self.version = reply.version
        self.max_value_bytes = max_value_bytes
        self.pending: tuple[Request[CellReply], bytes | None] | None = None
        self.unknown = False


def check_cell(session_engine_cells: bool, engine: str, name: str) -> str:
    if not session_engine_cells:
        raise Unsupported(f"the {engine} engine has no cells")
    return check_name(name)


def entry(key: str, value: bytes, create: bool) -> Change:
    """An entry to be written; None, which would delete it, is `Misuse`."""
    if value is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise Misuse("a cell holds bytes, not None; delete(key) removes an entry")
    return Change(key, value, create)


async def open_cell(session: Session, cell: str, tenure: Tenure) -> Opening:
    """Raise the cell's fence to this lease's token. Raises `StaleToken`, `LeaseLost`, `Misuse`."""
    if tenure.claim.weight < tenure.turnstile.capacity:
        raise Misuse(
            f"a cell is opened under an exclusive lease; this one has {tenure.claim.weight} of "
            f"{tenure.turnstile.capacity} of {tenure.turnstile.address}: give each permit a cell of its own"
        )
    if tenure.ended:
        raise LeaseLost(lost_message(tenure))
    tenure.openings += 1
    fence = Fence(tenure.turnstile.address, tenure.token, tenure.claim.id, tenure.openings)
    reply = await session.ask(session.engine.open(cell, fence))
    if reply.foreign:
        raise Misuse(f"the cell {cell!r} belongs to {reply.turnstile}; it cannot be opened under {fence.turnstile}")
    if not reply.accepted:
        raise _stale(cell, fence, reply.token)
    return Opening(cell, fence, reply, session.engine.capabilities.max_value_bytes)


async def put(session: Session, opening: Opening, value: bytes | None, changes: Sequence[Change]) -> tuple[bool, ...]:
    """Write the value (None leaves it) and entries, all or nothing.

    Raises `StaleToken` if a newer holder opened it, `Unavailable` if it was surely not written, and `OutcomeUnknown` if
    it may have been: what comes next under this opening comes after it in any case.
    """
    for data in (value, *(change.value for change in changes)):
        if data is not None and not isinstance(data, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise Misuse(f"a cell holds bytes, not {type(data).__name__}")
        if data is not None and len(data) > opening.max_value_bytes:
            raise Misuse(f"a value has at most {opening.max_value_bytes} bytes here, this one has {len(data)}")
    for change in changes:
        check_name(change.key, "key")
    if opening.pending is not None:
        await _settle(session, opening, *opening.pending)
    request = session.engine.put(opening.cell, opening.fence, opening.version, session.new_id(), value, changes)
    return (await _settle(session, opening, request, value)).applied


async def _settle(session: Session, opening: Opening, request: Request[CellReply], value: bytes | None) -> CellReply:
    """Send a put until its outcome is known. Where that fails, the next one begins with it."""
    opening.pending = request, value
    try:
        reply = await session.ask(request, asker=opening)
    except HoldfastError as trouble:
        if not opening.unknown:
            opening.pending = None
        elif isinstance(trouble, Unavailable):
            raise OutcomeUnknown(f"the put may or may not have been done: {trouble}") from trouble
        raise
    opening.pending, opening.unknown = None, False
    if not reply.accepted:
        raise _stale(opening.cell, opening.fence, reply.token)
    opening.version = reply.version
    if value is not None:
        opening.value = value
    return reply


async def read(session: Session, cell: str, keys: Sequence[str] | None) -> CellSnapshot:
    """What stands there now, unfenced."""
    return await session.ask(session.engine.read(cell, keys))


async def read_own(session: Session, opening: Opening, keys: Sequence[str] | None) -> CellSnapshot:
    """The same, refused with `StaleToken` where another has opened the cell since."""
    if opening.pending is not None:
        await _settle(session, opening, *opening.pending)
    snapshot = await read(session, opening.cell, keys)
    if snapshot.version != opening.version or snapshot.token != opening.fence.token:
        raise _stale(opening.cell, opening.fence, snapshot.token)
    return snapshot


def _stale(cell: str, fence: Fence, token: int) -> StaleToken:
    if token == fence.token:
        return StaleToken(f"the cell {cell!r} was opened again under token {token}: this opening is over")
    if token == 0:
        return StaleToken(f"the cell {cell!r} is gone; open it again to go on")
    return StaleToken(
        f"the cell {cell!r} was opened under token {token}; ours is {fence.token}: we are no longer the holder"
    )
