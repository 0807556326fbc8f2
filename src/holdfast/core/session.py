"""The live side of a client: its tenures, the renewer that keeps them, and every call to the engine.

One session serves one process (threads) or one event loop (tasks). Its renewer is a single protocol that extends
all leases and waiting claims in batches, notices deadlines, and gives back what nobody wants any more.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import warnings
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from .. import model
from ..contract import Engine, Request
from ..errors import HoldfastError, LeaseLost, Misuse, OutcomeUnknown, Unavailable
from ..hooks import Event, Hook, emit
from ..model import NEVER_S, Claim, Signal, Standing, State, Turnstile
from ..world import Mailbox, World
from .holding import Holdings
from .tenure import Tenure

T = TypeVar("T")

log = logging.getLogger("holdfast.renewer")

CLEANUP_S = 5.0
"""How long an interrupted caller waits for what it took to be given back; after that the renewer goes on with it."""

CLOSE_S = 1.0
"""How long closing goes on giving back; what is left then ends by its lease."""

GRAVES_AT_ONCE = 256


class Asker(Protocol):
    """Notes whether some request of its own may or may not have been done."""

    unknown: bool


class Session:
    """Everything of one client that lives while it is connected."""

    def __init__(
        self, engine: Engine, world: World, *, patience_s: float, owner: str, hooks: tuple[Hook, ...] = ()
    ) -> None:
        self.engine = engine
        self.world = world
        self.patience_s = patience_s
        self.owner = owner
        self.hooks = hooks
        self.tenures: dict[str, Tenure] = {}
        self.graves: dict[str, Tenure] = {}  # ended here, but the engine has not confirmed it
        self.watchers: dict[str, dict[int, Mailbox]] = {}
        self.holdings = Holdings(world.actor)
        self._by_session = engine.capabilities.ttl_s is not None  # leases hang on a session with the engine
        self.closing = False
        self.forgotten = ""
        self.listening = False  # signals surely flow: what is said to a claim from now on arrives
        self._orphans: deque[Tenure] = deque()
        self._mailbox = world.mailbox()
        self._numbers = itertools.count(1)
        self._wake_at = NEVER_S
        self._renewers = itertools.count()
        self._renewing = False

    # -- claims

    def new_tenure(
        self,
        turnstile: Turnstile,
        weight: int,
        ttl_s: float,
        *,
        renews: bool = True,
        max_hold_s: float | None = None,
        payload: bytes = b"",
        mailbox: Mailbox | None = None,
    ) -> Tenure:
        """A claim with a fresh id, not yet sent. ``mailbox``: where its signals go, one of its own by default."""
        claim = Claim(self.new_id(), weight, ttl_s, self.world.inbox, self.owner, payload)
        return Tenure(turnstile, claim, mailbox or self.world.mailbox(), renews=renews, max_hold_s=max_hold_s)

    def new_id(self) -> str:
        """For a claim or a put: no other process ever makes the same, nor does a fork of this one."""
        return f"{self.world.inbox}.{next(self._numbers):x}"

    async def enter(self, tenure: Tenure, nowait: bool, give_up_at: float = NEVER_S) -> Standing:
        """Join the queue, or see where this claim stands in it: ADMITTED, WAITING, BUSY, or GONE if it just expired.

        The tenure is kept from before the request is sent, so no signal can come too early for it. An id that was
        given up elsewhere (evicted) is replaced by a fresh one.
        """
        self._refuse_closed()
        if self._by_session and not self.listening:
            await self.listen(give_up_at)  # to be told at once when it breaks
        if tenure.first_sent is None:
            tenure.first_sent = self.world.now()
        sent = tenure.first_sent  # an answer to a resend may speak of the first try
        self.tenures[tenure.claim.id] = tenure
        try:
            standing = await self.ask(self.engine.enter(tenure.turnstile, tenure.claim, nowait), give_up_at, tenure)
        except HoldfastError:  # not reached, or refused
            if not tenure.unknown and tenure.deadline == NEVER_S:
                tenure.first_sent = None  # surely nothing was done, so there is nothing to undo
            raise
        if standing.state is State.ADMITTED or standing.state is State.WAITING:
            self._keep(tenure, sent, standing)
            if tenure.deadline - self.world.now() < tenure.claim.ttl_s / 3:
                return await self.renew_one(tenure, give_up_at)
            return standing
        self.tenures.pop(tenure.claim.id, None)
        tenure.first_sent = None
        if standing.state is State.BURIED:
            tenure.claim = tenure.claim._replace(id=self.new_id())
            return await self.enter(tenure, nowait, give_up_at)
        return standing

    async def renew_one(self, tenure: Tenure, give_up_at: float = NEVER_S) -> Standing:
        """Renew this claim now and see where it stands; GONE where the engine does not know it."""
        self._refuse_closed()
        sent = self.world.now()
        (request,) = self.engine.renew([(tenure.turnstile, tenure.claim)])
        standing = (await self.ask(request, give_up_at))[tenure.claim.id]
        if standing.state is State.GONE:
            tenure.first_sent = None
        else:
            self._keep(tenure, sent, standing)
        return standing

    def _keep(self, tenure: Tenure, sent: float, standing: Standing) -> None:
        self._refuse_closed()  # it may have been closed meanwhile, and gave this claim back
        self.tenures[tenure.claim.id] = tenure
        tenure.acknowledge(sent, standing)
        self._expect(tenure)

    def refuse_fork(self) -> None:
        """Raise `LeaseLost` in a forked child: what it inherited is its parent's."""
        if self.forgotten:
            raise LeaseLost(self.forgotten)

    def _refuse_closed(self) -> None:
        self.refuse_fork()
        if self.closing:
            raise Misuse("this client was closed")

    def hold(self, tenure: Tenure, started: float) -> None:
        """Its owner has seen that it is admitted, ``started`` being when it began to ask."""
        now = self.world.now()
        tenure.hold(now)
        if self.hooks:
            self.emit("held", tenure, now - started)
        if self.tenures.get(tenure.claim.id) is not tenure and not tenure.ended:
            self._lost(tenure, "it was gone again before its holder knew that it had it")

    async def release(self, tenure: Tenure) -> None:
        """Give a held claim back. Raises `LeaseLost` if it was lost before; a second release does nothing.

        Where the engine cannot be reached the renewer goes on trying in the background, and this returns: what the
        lease covered is covered.
        """
        try:
            await self._release(tenure)
        except LeaseLost:
            raise
        except BaseException:  # before, during or after the call: it was to be given back
            tenure.unknown = True
            if tenure.ended != "lost":
                self._end(tenure, "released")
            await self.undo(tenure)
            raise

    async def _release(self, tenure: Tenure) -> None:
        if self.tenures.pop(tenure.claim.id, None) is None:
            if tenure.ended == "lost":
                raise LeaseLost(lost_message(tenure))
            return
        now = self.world.now()
        if now >= tenure.deadline:
            self._lost(tenure, "its time ran out")
            raise LeaseLost(lost_message(tenure))
        tenure.ended = "released"  # whatever the engine says, it is ours no more
        request = self.engine.leave(tenure.turnstile, tenure.claim.id, tenure.unknown)
        try:
            left = await self.world.call(request, self.patience_s / 2)
        except (Unavailable, OutcomeUnknown) as trouble:
            tenure.unknown = True
            log.warning("release of %s is being retried: %s", tenure.turnstile.address, trouble)
            await self._give_back(tenure, min(now + self.patience_s, tenure.deadline))
            left = True
        else:
            self._given_back(tenure)
        if not left:
            self._lost(tenure, f"{self.engine.capabilities.engine} no longer knew it at its release")
            raise LeaseLost(lost_message(tenure))
        self._end(tenure, "released")

    async def undo(self, tenure: Tenure, patience_s: float = CLEANUP_S) -> None:
        """Give back whatever an unfinished acquire or release may have left, whatever interrupts us meanwhile.

        One try at least, and more for up to ``patience_s``; then the renewer goes on with it.
        """
        self.tenures.pop(tenure.claim.id, None)
        try:
            if not tenure.ended:
                self._end(tenure, "given up")
            if tenure.first_sent is not None:
                await self.world.shield(self._give_back(tenure, self.world.now() + patience_s), CLEANUP_S)
        except BaseException:
            if tenure.first_sent is not None:  # not even begun: the renewer does it
                self._bequeath(tenure, tenure.first_sent)
            raise

    async def _give_back(self, tenure: Tenure, until: float) -> None:
        """Leave; what does not succeed by ``until``, the renewer goes on with."""
        self._bequeath(tenure, self.world.now() + CLEANUP_S)
        request = self.engine.leave(tenure.turnstile, tenure.claim.id, tenure.unknown)
        try:
            await self.ask(request, until, tenure)
        except BaseException as trouble:
            self._bequeath(tenure, self.world.now())
            if not isinstance(trouble, HoldfastError):
                raise
            log.info("giving back %s goes on in the background: %s", tenure.turnstile.address, trouble)
        else:
            self._given_back(tenure)

    def _given_back(self, tenure: Tenure) -> None:
        tenure.first_sent = None  # nothing of it is left to undo
        self.graves.pop(tenure.claim.id, None)

    def _bequeath(self, tenure: Tenure, due: float) -> None:
        """Let the renewer give this claim back from ``due`` on, for as long as it may stand."""
        if tenure.deadline == NEVER_S:
            tenure.deadline = self.world.now() + tenure.claim.ttl_s
        if self._by_session:  # which outlasts its leases
            tenure.deadline = self.world.now() + 3 * tenure.claim.ttl_s + CLEANUP_S
        tenure.due, tenure.look_at, tenure.hold_until = due, NEVER_S, NEVER_S
        self.graves[tenure.claim.id] = tenure
        self._expect(tenure)

    # -- calls

    async def ask(self, request: Request[T], give_up_at: float = NEVER_S, asker: Asker | None = None) -> T:
        """Call, and call again while the engine does not answer: every operation is idempotent by its id.

        For at most ``patience_s``, and not beyond ``give_up_at`` once it has been tried. A try has half of the time
        that is left, so that a connection that died in silence leaves some for another. Raises `Unavailable`; what may
        have been done nevertheless is noted on ``asker``.
        """
        self.refuse_fork()
        started = self.world.now()
        attempt = 0
        while True:
            left_s = min(started + self.patience_s, give_up_at) - self.world.now()
            try:
                return await self.world.call(request, max(left_s / 2, 0.25))
            except (OutcomeUnknown, Unavailable) as trouble:
                if asker is not None and isinstance(trouble, OutcomeUnknown):
                    asker.unknown = True
                attempt += 1
                await self._bear(trouble, request.op, attempt, started, give_up_at)
            except HoldfastError:
                raise
            except BaseException:
                if asker is not None:
                    asker.unknown = True
                raise

    async def _bear(self, trouble: Exception, op: str, attempt: int, started: float, give_up_at: float) -> None:
        """Pause before the next try; or raise `Unavailable` where there is no time for one."""
        pause_s = min(1.0, 0.01 * 2**attempt) * (0.5 + self.world.random() / 2)
        now = self.world.now()
        left_s = min(started + self.patience_s, give_up_at) - now
        if left_s <= 0:
            raise Unavailable(
                f"{self.engine.capabilities.engine} did not serve {op} "
                f"(tried {attempt} times in {now - started:.1f} s): {trouble}"
            ) from trouble
        await self.world.sleep(min(pause_s, left_s))

    async def _insist(self, op: str, once: Callable[[float], Awaitable[T]], give_up_at: float = NEVER_S) -> T:
        """`ask` for what is no request: ``once`` takes the seconds that this try has."""
        started = self.world.now()
        attempt = 0
        while True:
            left_s = min(started + self.patience_s, give_up_at) - self.world.now()
            try:
                return await once(max(left_s / 2, 0.25))
            except (OutcomeUnknown, Unavailable) as trouble:
                attempt += 1
                await self._bear(trouble, op, attempt, started, give_up_at)

    async def listen(self, give_up_at: float = NEVER_S) -> bool:
        """Let signals flow; True if they did not before, and the caller must look again. Raises `Unavailable`."""
        world = self.world
        new = await self._insist("signals", lambda s: world.listen(self.deliver, self.look_again, s), give_up_at)
        self.listening = True
        return new

    async def watch(self, turnstile: Turnstile, mailbox: Mailbox) -> None:
        """Post CHANGED to ``mailbox`` whenever this announcing turnstile changes. Raises `Unavailable`."""
        await self.listen()
        self.watchers.setdefault(turnstile.address, {})[id(mailbox)] = mailbox
        try:
            await self._insist("signals", lambda timeout_s: self.world.watch(turnstile, timeout_s))
        except BaseException:
            with contextlib.suppress(HoldfastError):
                await self.unwatch(turnstile, mailbox)
            raise

    async def unwatch(self, turnstile: Turnstile, mailbox: Mailbox) -> None:
        mailboxes = self.watchers.get(turnstile.address, {})
        mailboxes.pop(id(mailbox), None)
        if not mailboxes and self.watchers.pop(turnstile.address, None) is not None:
            await self.world.unwatch(turnstile)

    # -- signals

    def deliver(self, signal: Signal) -> None:
        """Pass an engine's signal to whom it concerns. From any thread."""
        if signal.kind == model.CHANGED:
            for mailbox in list(self.watchers.get(signal.key, {}).values()):
                mailbox.post(signal)
        elif tenure := self.tenures.get(signal.key):
            if signal.kind == model.WANTED:
                self._want(tenure)
            elif signal.kind == model.UNSURE:
                self._doubt(tenure, "the connection broke")
                tenure.due = self._wake_at = self.world.now()
                self.nudge()
            elif signal.kind == model.GONE:
                self._gone(tenure)
            else:
                tenure.mailbox.post(signal)

    def look_again(self) -> None:
        """Signals may have been missed: let every waiter and watcher look."""
        now = self.world.now()
        for tenure in list(self.tenures.values()):
            if not tenure.admitted and tenure.deadline < NEVER_S:
                tenure.look_at = now
        for address, mailboxes in list(self.watchers.items()):
            for mailbox in list(mailboxes.values()):
                mailbox.post(Signal(model.CHANGED, address))
        self._wake_at = now
        self.nudge()

    def nudge(self) -> None:
        self._mailbox.post(Signal(model.NUDGE))

    def emit(self, kind: str, tenure: Tenure, elapsed_s: float = 0.0) -> None:
        if self.hooks:
            emit(self.hooks, Event(kind, tenure.turnstile.address, tenure.claim.id, tenure.token, elapsed_s))

    def _want(self, tenure: Tenure) -> None:
        if not tenure.wanted:
            tenure.wanted = True
            self.emit("wanted", tenure)

    # -- ends

    def watch_handle(self, tenure: Tenure, handle: object) -> None:
        """Release the claim if its handle is collected without having been released."""
        orphans, nudge = self._orphans, self.nudge

        def collected(_: object) -> None:
            orphans.append(tenure)
            nudge()

        tenure.handle = weakref.ref(handle, collected)

    def _end(self, tenure: Tenure, how: str, why: str = "") -> None:
        tenure.ended, tenure.why, tenure.handle = how, why, None
        for mailbox in list(tenure.ends):
            mailbox.post(Signal(model.NUDGE))
        if self.hooks:
            held_s = self.world.now() - tenure.held_since if tenure.admitted else 0.0
            self.emit({"given up": "gave_up"}.get(how, how), tenure, held_s)

    def detach(self, tenure: Tenure) -> None:
        """Forget a held claim without giving it back."""
        self.tenures.pop(tenure.claim.id, None)
        self._end(tenure, "detached")

    def lose(self, tenure: Tenure, why: str) -> None:
        """The claim is no more; tell its holder, or who waits with it, once."""
        if self.tenures.pop(tenure.claim.id, None) is None:
            return
        if tenure.admitted:  # asked after it was taken out, as `hold` says it before it looks whether it is in
            self._lost(tenure, why)
        else:
            tenure.mailbox.post(Signal(model.GONE, tenure.claim.id))

    def _lost(self, tenure: Tenure, why: str) -> None:
        log.warning("lost %s (token %d): %s", tenure.turnstile.address, tenure.token, why)
        self._end(tenure, "lost", why)
        if self._by_session and tenure.first_sent is not None:  # lost by its time, which ends it only here
            self._bequeath(tenure, self.world.now())
        self.tell_lost(tenure)
        tenure.mailbox.post(Signal(model.LOST, tenure.claim.id))

    def tell_lost(self, tenure: Tenure) -> None:
        """Call back who asked to be told, each once, though several threads may be at it."""
        with contextlib.suppress(IndexError):
            while True:
                self.world.notify(tenure.on_lost.pop(0))

    # -- the renewer

    def _expect(self, tenure: Tenure) -> None:
        """Make sure the renewer wakes for this tenure; a nudge only where it would sleep too long."""
        if not self._renewing:
            self.world.spawn(self._renew_forever(), "holdfast-renewer")
            self._renewing = True
        wake_at = tenure.wake_at
        if wake_at < self._wake_at:
            self._wake_at = wake_at
            self.nudge()

    async def _renew_forever(self) -> None:
        if next(self._renewers):  # the first one stays
            return
        while not self.closing:
            await self.world.wait_signal(self._mailbox, self._wake_at)
            while self._orphans:
                self._collect(self._orphans.popleft())
            try:
                if self.world.now() >= self._wake_at:
                    await self._round()
                else:  # a nudge only ever brings the time forward, so that one lock taken again and again costs none
                    self._wake_at = min(self._wake_at, self._next_at())
            except Exception:
                log.exception("a round of renewals failed; the next one follows")
                self._wake_at = self.world.now() + 0.1

    async def _round(self) -> None:
        """Once over all tenures: end what is over, renew what is due, give back what is unwanted."""
        self._wake_at = NEVER_S  # whoever comes in the meantime nudges
        now = self.world.now()
        for tenure in list(self.tenures.values()):
            if now >= tenure.deadline:
                self.lose(tenure, "its time ran out before a renewal was acknowledged")
            elif now >= tenure.hold_until:
                self.lose(tenure, f"held for longer than max_hold_s={tenure.max_hold_s}")
                self._bequeath(tenure, now)
        await self._renew([tenure for tenure in list(self.tenures.values()) if tenure.is_due(now)])
        await self._give_back_due(now)
        self._wake_at = min(self._wake_at, self._next_at())

    def _next_at(self) -> float:
        """When the first of all tenures needs something."""
        kept = [*self.tenures.values(), *self.graves.values()]
        return min((tenure.wake_at for tenure in kept), default=NEVER_S)

    async def _give_back_due(self, now: float) -> None:
        for claim_id in [id for id, tenure in list(self.graves.items()) if now >= tenure.deadline]:
            self.graves.pop(claim_id, None)  # it has expired at the engine as well
        due = [tenure for tenure in list(self.graves.values()) if tenure.due <= now][:GRAVES_AT_ONCE]
        if not due:
            return
        requests = [self.engine.leave(tenure.turnstile, tenure.claim.id, tenure.unknown) for tenure in due]
        replies = await self.world.call_many(requests, self._timeout_s())
        for tenure, reply in zip(due, replies, strict=True):
            if isinstance(reply, Exception):
                tenure.unknown = True
                tenure.due = self.world.now() + self._pause_s(tenure)
            else:
                self._given_back(tenure)

    def _timeout_s(self) -> float:
        """How long a call of the renewer may take: half of what the first lease to end has left.

        So a connection that died in silence costs no lease: another is tried while there is time.
        """
        first_end = min((tenure.deadline for tenure in list(self.tenures.values())), default=NEVER_S)
        return max(0.05, min(self.patience_s, (first_end - self.world.now()) / 2))

    def _pause_s(self, tenure: Tenure) -> float:
        return min(1.0, tenure.claim.ttl_s / 10) * (0.5 + self.world.random() / 2)

    async def _renew(self, due: list[Tenure]) -> None:
        if not due:
            return
        sent = self.world.now()
        requests = list(self.engine.renew([(tenure.turnstile, tenure.claim) for tenure in due]))
        heard: set[str] = set()
        trouble: Exception | None = None
        for reply in await self.world.call_many(requests, self._timeout_s()):
            if isinstance(reply, Exception):
                trouble = reply
                continue
            heard.update(reply)
            for claim_id, standing in reply.items():
                if tenure := self.tenures.get(claim_id):
                    self._hear(tenure, standing, sent)
        now = self.world.now()
        for tenure in due:
            if tenure.claim.id not in heard and not tenure.ended:
                tenure.due = now + self._pause_s(tenure)
                tenure.look_at = NEVER_S
                self._doubt(tenure, trouble)

    def _doubt(self, tenure: Tenure, trouble: object) -> None:
        if not tenure.unsure:
            tenure.unsure = True
            log.warning("renewal of %s failed, retrying: %s", tenure.turnstile.address, trouble)
            self.emit("unsure", tenure)

    def _hear(self, tenure: Tenure, standing: Standing, sent: float) -> None:
        if standing.state is State.GONE:
            self._gone(tenure)
            return
        tenure.acknowledge(sent, standing)
        if standing.state is State.ADMITTED:
            if tenure.admitted:
                self.emit("renewed", tenure)
            else:
                tenure.mailbox.post(Signal(model.ADMITTED, tenure.claim.id))
        if standing.wanted:
            self._want(tenure)

    def _gone(self, tenure: Tenure) -> None:
        tenure.first_sent = None
        self.lose(tenure, f"{self.engine.capabilities.engine} no longer knows it")

    def _collect(self, tenure: Tenure) -> None:
        """Its handle was thrown away: nobody can use or release this lease, so release it."""
        if self.tenures.pop(tenure.claim.id, None) is None:
            return
        self._end(tenure, "released", "its handle was collected")
        self._bequeath(tenure, self.world.now())
        try:
            warnings.warn(f"a lease on {tenure.turnstile.address} was never released", ResourceWarning, stacklevel=2)
        except ResourceWarning:
            log.exception("a ResourceWarning that was made an error")

    # -- close and fork

    async def close(self) -> None:
        """Release everything that is held or waits, and stop the renewer."""
        self.closing = True
        now = self.world.now()
        for tenure in list(self.tenures.values()):
            if self.tenures.pop(tenure.claim.id, None) is not None:
                self._end(tenure, "released", "its client was closed")
                self._bequeath(tenure, now)
                tenure.mailbox.post(Signal(model.GONE, tenure.claim.id))  # nobody waits on a closed client
        self.nudge()
        while self.graves and self.world.now() < now + min(self.patience_s, CLOSE_S):
            await self._give_back_due(self.world.now())
            if self.graves:
                await self.world.sleep(0.01)

    def forget(self, why: str) -> None:
        """In a forked child: hold nothing, and say so to whoever looks."""
        for tenure in self.tenures.values():
            tenure.ended, tenure.why, tenure.handle = "lost", why, None
        self.tenures.clear()
        self.graves.clear()
        self.watchers.clear()
        self.closing = True
        self.forgotten = why


def lost_message(tenure: Tenure) -> str:
    lease = f"the lease on {tenure.turnstile.address} (token {tenure.token})"
    if tenure.ended in ("", "lost"):
        return f"{lease} was lost: {tenure.why}"
    return f"{lease} was {tenure.ended} before{tenure.why and ': ' + tenure.why}"
