"""The renewer: one protocol that keeps all leases and waiting claims of a client, and gives back what nobody wants.

It extends them in batches, notices deadlines, and is where a tenure ends: whoever takes it out of ``tenures`` ends it,
so it ends once.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import warnings
import weakref
from collections import deque
from collections.abc import Callable

from .. import model
from ..contract import Engine
from ..model import NEVER_S, Signal, Standing, State
from ..world import World
from .helping import Helper
from .tenure import Tenure

log = logging.getLogger("holdfast.renewer")

GRAVES_AT_ONCE = 256

RENEW_SHARE, JITTER = 1 / 3, 0.1
"""How much of a lease is over when it is renewed. It differs from client to client, so that those of a fleet that began
together do not go on together, and is one for all leases of a client, which share their rounds."""

CLOSE_S = 1.0
"""How long closing goes on giving back; what is left then ends by its lease."""

SESSION_LAG_S = 5.0
"""How much longer than three leases an engine's session may keep a claim that was given up."""


class Renewer:
    """What one client holds or waits for, by claim id, and what it still has to give back."""

    def __init__(self, engine: Engine, world: World, *, patience_s: float) -> None:
        self.engine = engine
        self.world = world
        self.patience_s = patience_s
        self.helper: Helper | None = None
        self.renew_share = RENEW_SHARE * (1 - JITTER + 2 * JITTER * world.random())
        self.tenures: dict[str, Tenure] = {}
        self.graves: dict[str, Tenure] = {}  # ended here, but the engine has not confirmed it
        self.closing = False
        self._by_session = engine.capabilities.ttl_s is not None  # leases hang on a session with the engine
        self._orphans: deque[tuple[Tenure | None, Callable[[], object] | None]] = deque()
        self._mailbox = world.mailbox()
        self._wake_at = NEVER_S
        self._started = itertools.count()
        self._running = False

    def expect(self, tenure: Tenure) -> None:
        """Make sure to wake for this tenure; a nudge only where the renewer would sleep too long."""
        if not self._running:
            self.world.spawn(self._run(), "holdfast-renewer")
            self._running = True
        wake_at = tenure.wake_at
        if wake_at < self._wake_at:
            self._wake_at = wake_at
            self._nudge()

    def wake(self) -> None:
        """Do a round now."""
        self._wake_at = self.world.now()
        self._nudge()

    def _nudge(self) -> None:
        self._mailbox.post(Signal(model.NUDGE))

    # -- what is heard of a tenure

    def hear(self, tenure: Tenure, standing: Standing, sent: float) -> None:
        """The engine's answer to a renewal that was sent at ``sent``."""
        if standing.state is State.GONE:
            self.gone(tenure)
            return
        tenure.acknowledge(sent, standing, self.renew_share)
        if self.helper is not None:
            self.helper.update(tenure)
        if standing.state is State.ADMITTED:
            if tenure.admitted:
                tenure.tell("renewed")
            else:
                tenure.mailbox.post(Signal(model.ADMITTED, tenure.claim.id))
        if standing.wanted:
            self.want(tenure)

    def want(self, tenure: Tenure) -> None:
        if not tenure.wanted:
            tenure.wanted = True
            tenure.tell("wanted")
        if tenure.keeping is not None:
            tenure.keeping.wanted(tenure)

    def doubt(self, tenure: Tenure, trouble: object) -> None:
        if not tenure.unsure:
            tenure.unsure = True
            log.warning("renewal of %s failed, retrying: %s", tenure.turnstile.address, trouble)
            tenure.tell("unsure", str(trouble))
        if tenure.stops_unsure and tenure.admitted and tenure.claim.id in self.tenures:
            self.lose(tenure, f"a renewal failed, and it stops then: {trouble}")
            self.bequeath(tenure, self.world.now())

    def gone(self, tenure: Tenure) -> None:
        tenure.first_sent = None
        self.lose(tenure, f"{self.engine.capabilities.engine} no longer knows it")

    # -- ends

    def watch_handle(self, tenure: Tenure, handle: object) -> None:
        """Release the claim if its handle is collected without having been released."""
        tenure.handle = weakref.ref(handle, lambda _: self.orphan(tenure))

    def orphan(self, tenure: Tenure | None, leave: Callable[[], object] | None = None) -> None:
        """Its handle was collected, in the middle of anything. ``leave`` gives None where it is kept for others."""
        self._orphans.append((tenure, leave))
        self._nudge()

    def end(self, tenure: Tenure, how: str, why: str = "") -> None:
        tenure.ended, tenure.why, tenure.handle = how, why, None
        if self.helper is not None:
            self.helper.drop(tenure)
        if tenure.keeping is not None:
            tenure.keeping.ended(tenure)
        for mailbox in list(tenure.ends):
            mailbox.post(Signal(model.NUDGE))
        if tenure.life is not None:
            step = "gave_up" if how == "given up" else how
            tenure.tell("handed_over" if how == "released" and tenure.wanted else step, why)

    def lose(self, tenure: Tenure, why: str) -> None:
        """The claim is no more; tell its holder, or who waits with it, once."""
        if self.tenures.pop(tenure.claim.id, None) is None:
            return
        if tenure.admitted:  # asked after it was taken out, as `Session.hold` says it before it looks whether it is in
            self.lost(tenure, why)
        else:
            tenure.mailbox.post(Signal(model.GONE, tenure.claim.id))

    def lost(self, tenure: Tenure, why: str) -> None:
        """A held claim that was taken out of ``tenures`` is no more."""
        log.warning("lost %s (token %d): %s", tenure.turnstile.address, tenure.token, why)
        self.end(tenure, "lost", why)
        if self._by_session and tenure.first_sent is not None:  # lost by its time, which ends it only here
            self.bequeath(tenure, self.world.now())
        self.tell_lost(tenure)
        tenure.mailbox.post(Signal(model.LOST, tenure.claim.id))

    def tell_lost(self, tenure: Tenure) -> None:
        """Call back who asked to be told, each once, though several threads may be at it."""
        with contextlib.suppress(IndexError):
            while True:
                self.world.notify(tenure.on_lost.pop(0))

    def bequeath(self, tenure: Tenure, due: float) -> None:
        """Give this claim back from ``due`` on, for as long as it may stand."""
        if tenure.deadline == NEVER_S:
            tenure.deadline = self.world.now() + tenure.claim.ttl_s
        if self._by_session:  # which outlasts its leases
            tenure.deadline = self.world.now() + 3 * tenure.claim.ttl_s + SESSION_LAG_S
        tenure.due, tenure.look_at, tenure.hold_until = due, NEVER_S, NEVER_S
        self.graves[tenure.claim.id] = tenure
        self.expect(tenure)

    def given_back(self, tenure: Tenure) -> None:
        """The engine confirmed that it is gone."""
        tenure.first_sent = None  # nothing of it is left to undo
        self.graves.pop(tenure.claim.id, None)

    def let_go(self, tenure: Tenure) -> None:
        """Give back what nobody uses, in the background."""
        if self.tenures.pop(tenure.claim.id, None) is not None:
            self.end(tenure, "released")
            self.bequeath(tenure, self.world.now())

    # -- rounds

    async def _run(self) -> None:
        if next(self._started):  # the first one stays
            return
        while not self.closing:
            await self.world.wait_signal(self._mailbox, self._wake_at)
            while self._orphans:
                self._collect(*self._orphans.popleft())
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
        if self.helper is not None:
            self.helper.beat()
        for tenure in list(self.tenures.values()):
            if tenure.is_over(now):
                self.lose(tenure, "its time ran out before a renewal was acknowledged")
            elif now >= tenure.hold_until:
                self.lose(tenure, f"held for longer than max_hold_s={tenure.max_hold_s}")
                self.bequeath(tenure, now)
            elif now >= tenure.let_go_at and tenure.keeping is not None and tenure.keeping.let_go(tenure):
                self.let_go(tenure)
        await self._renew([tenure for tenure in list(self.tenures.values()) if tenure.is_due(now)])
        await self._give_back_due(now)
        self._wake_at = min(self._wake_at, self._next_at())

    def _next_at(self) -> float:
        """When the first of all tenures needs something."""
        kept = [*self.tenures.values(), *self.graves.values()]
        return min((tenure.wake_at for tenure in kept), default=NEVER_S)

    async def _renew(self, due: list[Tenure]) -> None:
        for tenure in due:
            tenure.renewing = True
        try:
            await self._renew_kept([tenure for tenure in due if tenure.claim.id in self.tenures])
        finally:
            for tenure in due:
                tenure.renewing = False

    async def _renew_kept(self, due: list[Tenure]) -> None:
        """Who leaves meanwhile is told to bury: a node that hears of it late must not grant again what was left."""
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
                    self.hear(tenure, standing, sent)
        now = self.world.now()
        for tenure in due:
            if tenure.claim.id not in heard and not tenure.ended:
                tenure.unknown = True  # it may still arrive, after it was left
                tenure.due = now + self._pause_s(tenure)
                tenure.look_at = NEVER_S
                self.doubt(tenure, trouble)

    async def _give_back_due(self, now: float) -> None:
        for claim_id in [id for id, tenure in list(self.graves.items()) if now >= tenure.deadline]:
            self.graves.pop(claim_id, None)  # it has expired at the engine as well
        due = [tenure for tenure in list(self.graves.values()) if tenure.due <= now][:GRAVES_AT_ONCE]
        if not due:
            return
        requests = [self.engine.leave(tenure.turnstile, tenure.claim.id, tenure.buries) for tenure in due]
        replies = await self.world.call_many(requests, self._timeout_s())
        for tenure, reply in zip(due, replies, strict=True):
            if isinstance(reply, Exception):
                tenure.unknown = True
                tenure.due = self.world.now() + self._pause_s(tenure)
            else:
                self.given_back(tenure)

    def _timeout_s(self) -> float:
        """How long a call of the renewer may take: half of what the first lease to end has left.

        So a connection that died in silence costs no lease: another is tried while there is time.
        """
        first_end = min((tenure.deadline for tenure in list(self.tenures.values())), default=NEVER_S)
        return max(0.05, min(self.patience_s, (first_end - self.world.now()) / 2))

    def _pause_s(self, tenure: Tenure) -> float:
        return min(1.0, tenure.claim.ttl_s / 10) * (0.5 + self.world.random() / 2)

    def _collect(self, tenure: Tenure | None, leave: Callable[[], object] | None) -> None:
        """Its handle was thrown away: nobody can use or release this lease, so release it."""
        left = leave is not None and leave() is None
        if tenure is None:
            return
        if not left:
            if self.tenures.pop(tenure.claim.id, None) is None:
                return
            self.end(tenure, "released", "its handle was collected")
            self.bequeath(tenure, self.world.now())
        try:
            warnings.warn(f"a lease on {tenure.turnstile.address} was never released", ResourceWarning, stacklevel=2)
        except ResourceWarning:
            log.exception("a ResourceWarning that was made an error")

    # -- close and fork

    async def close(self) -> None:
        """Release everything that is held or waits, and stop."""
        self.closing = True
        now = self.world.now()
        for tenure in list(self.tenures.values()):
            if self.tenures.pop(tenure.claim.id, None) is not None:
                self.end(tenure, "released", "its client was closed")
                self.bequeath(tenure, now)
                tenure.mailbox.post(Signal(model.GONE, tenure.claim.id))  # nobody waits on a closed client
        self._nudge()
        while self.graves and self.world.now() < now + min(self.patience_s, CLOSE_S):
            await self._give_back_due(self.world.now())
            if self.graves:
                await self.world.sleep(0.01)
        if self.helper is not None:
            await self._dismiss(self.helper)

    async def _dismiss(self, helper: Helper) -> None:
        helper.dismiss()
        patient_until = self.world.now() + CLOSE_S
        until = patient_until + CLOSE_S
        while not helper.has_ended(kill=(now := self.world.now()) >= patient_until) and now < until:
            await self.world.sleep(0.002)

    def forget(self, why: str) -> None:
        """In a forked child: hold nothing."""
        for tenure in self.tenures.values():
            tenure.ended, tenure.why, tenure.handle, tenure.life = "lost", why, None, None  # the parent tells of it
        self.tenures.clear()
        self.graves.clear()
        self.closing = True
        if self.helper is not None:
            self.helper.abandon()
