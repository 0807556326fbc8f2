"""The live side of a client: what happens to a claim from its first request until it is given back.

One session serves one process (threads) or one event loop (tasks); its `Renewer` keeps what it holds.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .. import model
from ..contract import Engine, Request
from ..errors import HoldfastError, LeaseLost, Misuse, OutcomeUnknown, Unavailable
from ..hooks.event import Hook, Life
from ..model import NEVER_S, Claim, Signal, Standing, State, Turnstile
from ..world import Mailbox, World
from .calls import LEAST_TRY_S, Asker, Calls
from .holding import Holdings
from .renewer import Renewer
from .tenure import Tenure

if TYPE_CHECKING:
    from .sticky import Keeper

T = TypeVar("T")

log = logging.getLogger("holdfast.session")

CLEANUP_S = 5.0
"""How long an interrupted caller waits for what it took to be given back; after that the renewer goes on with it."""


ASKED_AT_ONCE = 512


class Session:
    """Everything of one client that lives while it is connected."""

    keeper: Keeper
    """Of sticky leases; the client brings it."""

    def __init__(
        self, engine: Engine, world: World, *, patience_s: float, owner: str, hooks: tuple[Hook, ...] = ()
    ) -> None:
        self.engine = engine
        self.world = world
        self.patience_s = patience_s
        self.owner = owner
        self.hooks = hooks
        self.renewer = Renewer(engine, world, patience_s=patience_s)
        self.calls = Calls(engine.capabilities.engine, world, patience_s)
        self.tenures = self.renewer.tenures
        self.watchers: dict[str, dict[int, Mailbox]] = {}
        self.holdings = Holdings(world.belongings)
        self.mutex = world.mutex()
        self.listening = False  # signals surely flow: what is said to a claim from now on arrives
        self.forgotten = ""
        capabilities = engine.capabilities
        self._listens_first = capabilities.ttl_s is not None or capabilities.tied  # to be told at once when it breaks
        self._numbers = itertools.count(1)

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
        tenure = Tenure(turnstile, claim, mailbox or self.world.mailbox(), renews=renews, max_hold_s=max_hold_s)
        if self.hooks:
            tenure.life = self.new_life()
        return tenure

    def new_life(self) -> Life | None:
        """For what is asked for from now on; None where nobody would hear of it."""
        return Life(self.hooks, self.engine.capabilities.engine, self.world.now) if self.hooks else None

    def new_id(self) -> str:
        """For a claim or a put: no other process ever makes the same, nor does a fork of this one."""
        return f"{self.world.inbox}.{next(self._numbers):x}"

    async def enter(self, tenure: Tenure, nowait: bool, give_up_at: float = NEVER_S) -> Standing:
        """Join the queue, or see where this claim stands in it: ADMITTED, WAITING, BUSY, or GONE if it just expired.

        The tenure is kept from before the request is sent, so no signal can come too early for it. An id that was
        given up elsewhere (evicted) is replaced by a fresh one.
        """
        self.refuse_closed()
        if self._listens_first and not self.listening:
            await self.listen(give_up_at)
        if tenure.first_sent is None:
            tenure.first_sent = self.world.now()
        sent = tenure.first_sent  # an answer to a resend may speak of the first try
        self.tenures[tenure.claim.id] = tenure
        try:
            request = self.engine.enter(tenure.turnstile, tenure.claim, nowait)
            standing = await self.calls.ask(request, give_up_at, tenure)
        except HoldfastError:  # not reached, or refused
            if not tenure.unknown and tenure.deadline == NEVER_S:
                tenure.first_sent = None  # surely nothing was done, so there is nothing to undo
            raise
        return await self._entered(tenure, sent, standing, nowait, give_up_at)

    async def _entered(
        self, tenure: Tenure, sent: float, standing: Standing, nowait: bool, give_up_at: float
    ) -> Standing:
        if standing.state is State.ADMITTED or standing.state is State.WAITING:
            self._keep(tenure, sent, standing)
            if tenure.deadline - self.world.now() < tenure.claim.ttl_s / 3:
                return await self.renew_one(tenure, give_up_at)
            return standing
        self.tenures.pop(tenure.claim.id, None)
        if not tenure.unknown or standing.state is State.BURIED:  # else a copy of an earlier try may still come
            tenure.first_sent = None
        if standing.state is State.BURIED:
            tenure.claim = tenure.claim._replace(id=self.new_id())
            return await self.enter(tenure, nowait, give_up_at)
        return standing

    async def enter_many(self, tenures: Sequence[Tenure]) -> list[Standing]:
        """`enter` for many new claims at once, pipelined. Where it raises, some may stand: `give_up` them all."""
        self.refuse_closed()
        if self._listens_first and not self.listening:
            await self.listen()
        sent = self.world.now()
        for tenure in tenures:
            tenure.first_sent = sent
            self.tenures[tenure.claim.id] = tenure
        requests = [self.engine.enter(tenure.turnstile, tenure.claim, False) for tenure in tenures]
        standings: list[Standing] = []
        replies = await self.world.call_many(requests, self.patience_s)
        for tenure, reply in zip(tenures, replies, strict=True):
            if isinstance(reply, Exception):
                tenure.unknown |= not isinstance(reply, Unavailable)
                standings.append(await self.enter(tenure, False))
            else:
                standings.append(await self._entered(tenure, sent, reply, False, NEVER_S))
        return standings

    async def renew_one(self, tenure: Tenure, give_up_at: float = NEVER_S) -> Standing:
        """Renew this claim now and see where it stands; GONE where the engine does not know it."""
        self.refuse_closed()
        sent = self.world.now()
        (request,) = self.engine.renew([(tenure.turnstile, tenure.claim)])
        standing = (await self.ask(request, give_up_at))[tenure.claim.id]
        if standing.state is State.GONE:
            tenure.first_sent = None
        else:
            self._keep(tenure, sent, standing)
        return standing

    def _keep(self, tenure: Tenure, sent: float, standing: Standing) -> None:
        if self.renewer.closing:  # since this was sent, and what we have was given back
            self._refuse()
        self.tenures[tenure.claim.id] = tenure
        tenure.acknowledge(sent, standing, self.renewer.renew_share)
        self.renewer.expect(tenure)
        if standing.wanted and standing.state is State.ADMITTED:
            self.renewer.want(tenure)
        if tenure.life is not None and standing.state is State.WAITING:
            tenure.tell("waiting")

    def refuse_fork(self) -> None:
        """Raise `LeaseLost` in a forked child: what it inherited is its parent's."""
        if self.forgotten:
            raise LeaseLost(self.forgotten)

    def refuse_closed(self) -> None:
        """Raise `Misuse` once the client was closed; `LeaseLost` in a forked child."""
        if self.renewer.closing:
            self._refuse()

    def _refuse(self) -> NoReturn:
        self.refuse_fork()
        raise Misuse("this client was closed")

    def hold(self, tenure: Tenure) -> None:
        """Its owner has seen that it is admitted."""
        tenure.hold(self.world.now())
        if tenure.life is not None:
            tenure.tell("held")
            if tenure.wanted:  # told before it was held
                tenure.tell("wanted")
        if tenure.max_hold_s is not None:
            self.renewer.expect(tenure)
        if tenure.renews and self.renewer.helper is not None:
            self.renewer.helper.add(tenure)
        if self.tenures.get(tenure.claim.id) is not tenure and not tenure.ended:
            self.renewer.lost(tenure, "it was gone again before its holder knew that it had it")

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
                self.renewer.end(tenure, "released")
            await self.undo(tenure)
            raise

    async def _release(self, tenure: Tenure) -> None:
        if self.tenures.pop(tenure.claim.id, None) is None:
            if tenure.ended == "lost":
                raise LeaseLost(lost_message(tenure))
            return
        now = self.world.now()
        if tenure.is_over(now):
            self.renewer.lost(tenure, "its time ran out")
            raise LeaseLost(lost_message(tenure))
        tenure.ended = "released"  # whatever the engine says, it is ours no more
        request = self.engine.leave(tenure.turnstile, tenure.claim.id, tenure.buries)
        try:
            left = await self.world.call(request, self.patience_s / 2)
        except (Unavailable, OutcomeUnknown) as trouble:
            tenure.unknown = True
            log.warning("release of %s is being retried: %s", tenure.turnstile.address, trouble)
            await self._give_back(tenure, min(now + self.patience_s, tenure.deadline))
            left = True
        else:
            self.renewer.given_back(tenure)
        if not left:
            self.renewer.lost(tenure, f"{self.engine.capabilities.engine} no longer knew it at its release")
            raise LeaseLost(lost_message(tenure))
        self.renewer.end(tenure, "released")

    async def undo(self, tenure: Tenure, patience_s: float = CLEANUP_S) -> None:
        """Give back whatever an unfinished acquire or release may have left, whatever interrupts us meanwhile.

        One try at least, and more for up to ``patience_s``; then the renewer goes on with it.
        """
        self.tenures.pop(tenure.claim.id, None)
        try:
            if not tenure.ended:
                self.renewer.end(tenure, "given up")
            if tenure.first_sent is not None:
                await self.world.shield(self._give_back(tenure, self.world.now() + patience_s), CLEANUP_S)
        except BaseException:
            if tenure.first_sent is not None:  # not even begun: the renewer does it
                self.renewer.bequeath(tenure, tenure.first_sent)
            raise

    def give_up(self, tenure: Tenure) -> None:
        """`undo` without waiting for it: the renewer does it, many at once."""
        self.tenures.pop(tenure.claim.id, None)
        if not tenure.ended:
            self.renewer.end(tenure, "given up")
        if tenure.first_sent is not None:
            self.renewer.bequeath(tenure, self.world.now())

    async def release_many(self, tenures: Sequence[Tenure]) -> None:
        """Give held claims back, pipelined; what was lost is skipped. What fails, the renewer goes on with."""
        now = self.world.now()
        due: list[Tenure] = []
        for tenure in tenures:
            if self.tenures.pop(tenure.claim.id, None) is None:
                continue
            if tenure.is_over(now):
                self.renewer.lost(tenure, "its time ran out")
                continue
            self.renewer.end(tenure, "released")
            self.renewer.bequeath(tenure, now + CLEANUP_S)
            due.append(tenure)
        requests = [self.engine.leave(tenure.turnstile, tenure.claim.id, tenure.buries) for tenure in due]
        try:
            replies = await self.world.call_many(requests, self.patience_s / 2)
        except BaseException:
            for tenure in due:
                tenure.unknown = True
                self.renewer.bequeath(tenure, now)
            raise
        for tenure, reply in zip(due, replies, strict=True):
            if isinstance(reply, Exception):
                tenure.unknown = True
                self.renewer.bequeath(tenure, now)
            else:
                self.renewer.given_back(tenure)

    async def _give_back(self, tenure: Tenure, until: float) -> None:
        """Leave; what does not succeed by ``until``, the renewer goes on with."""
        self.renewer.bequeath(tenure, self.world.now() + CLEANUP_S)
        request = self.engine.leave(tenure.turnstile, tenure.claim.id, tenure.buries)
        try:
            await self.ask(request, until, tenure)
        except BaseException as trouble:
            self.renewer.bequeath(tenure, self.world.now())
            if not isinstance(trouble, HoldfastError):
                raise
            log.info("giving back %s goes on in the background: %s", tenure.turnstile.address, trouble)
        else:
            self.renewer.given_back(tenure)

    # -- calls

    def ask(
        self, request: Request[T], give_up_at: float = NEVER_S, asker: Asker | None = None
    ) -> Coroutine[Any, Any, T]:
        """`Calls.ask`, but not in a forked child."""
        self.refuse_fork()
        return self.calls.ask(request, give_up_at, asker)

    async def ask_many(self, requests: Sequence[Request[T]], give_up_at: float = NEVER_S) -> list[T]:
        """`ask` for many at once, pipelined, in order; what did not arrive is asked again, one by one."""
        self.refuse_fork()
        found: list[T] = []
        for start in range(0, len(requests), ASKED_AT_ONCE):
            some = requests[start : start + ASKED_AT_ONCE]
            left_s = max(LEAST_TRY_S, min(self.patience_s, give_up_at - self.world.now()))
            replies = await self.world.call_many(some, left_s)
            for request, reply in zip(some, replies, strict=True):
                if isinstance(reply, (Unavailable, OutcomeUnknown)):
                    found.append(await self.ask(request, give_up_at))
                elif isinstance(reply, Exception):
                    raise reply
                else:
                    found.append(reply)
        return found

    async def listen(self, give_up_at: float = NEVER_S) -> bool:
        """Let signals flow; True if they did not before, and the caller must look again. Raises `Unavailable`."""
        world = self.world
        new = await self.calls.insist("signals", lambda s: world.listen(self.deliver, self.look_again, s), give_up_at)
        self.listening = True
        return new

    async def watch(self, turnstile: Turnstile, mailbox: Mailbox) -> None:
        """Post CHANGED to ``mailbox`` whenever this announcing turnstile changes. Raises `Unavailable`."""
        await self.listen()
        self.watchers.setdefault(turnstile.address, {})[id(mailbox)] = mailbox
        try:
            await self.calls.insist("signals", lambda timeout_s: self.world.watch(turnstile, timeout_s))
        except BaseException:
            await self.unwatch(turnstile, mailbox)
            raise

    async def unwatch(self, turnstile: Turnstile, mailbox: Mailbox) -> None:
        """An engine that cannot be told goes on signalling to nobody; one whose link is closed needs not be told."""
        mailboxes = self.watchers.get(turnstile.address, {})
        mailboxes.pop(id(mailbox), None)
        if not mailboxes and self.watchers.pop(turnstile.address, None) is not None and not self.renewer.closing:
            with contextlib.suppress(HoldfastError):
                await self.world.unwatch(turnstile)

    # -- signals

    def deliver(self, signal: Signal) -> None:
        """Pass an engine's signal to whom it concerns. From any thread."""
        if signal.kind == model.CHANGED:
            for mailbox in list(self.watchers.get(signal.key, {}).values()):
                mailbox.post(signal)
        elif tenure := self.tenures.get(signal.key):
            if signal.kind == model.WANTED:
                self.renewer.want(tenure)
            elif signal.kind == model.UNSURE:
                self.renewer.doubt(tenure, "the connection broke")
                tenure.due = self.world.now()
                self.renewer.wake()
            elif signal.kind == model.GONE:
                self.renewer.gone(tenure)
            else:
                tenure.mailbox.post(signal)

    def look_again(self) -> None:
        """Signals may have been missed: let every waiter and watcher look."""
        now = self.world.now()
        for tenure in list(self.tenures.values()):
            if not tenure.admitted and tenure.deadline < NEVER_S:
                tenure.look_at = now
            elif tenure.keeping is not None:
                tenure.due = min(tenure.due, now)  # others may want it
        for address, mailboxes in list(self.watchers.items()):
            for mailbox in list(mailboxes.values()):
                mailbox.post(Signal(model.CHANGED, address))
        self.renewer.wake()

    # -- ends

    def watch_handle(self, tenure: Tenure, handle: object) -> None:
        """Release the claim if its handle is collected without having been released."""
        self.renewer.watch_handle(tenure, handle)

    def detach(self, tenure: Tenure) -> None:
        """Forget a held claim without giving it back."""
        self.tenures.pop(tenure.claim.id, None)
        self.renewer.end(tenure, "detached")

    async def close(self) -> None:
        """Release everything that is held or waits."""
        await self.renewer.close()
        self.look_again()  # whoever watches is to see that there is nothing to see any more

    def strand(self) -> None:
        """Its event loop was closed, and nobody keeps what it held: that ends with its lease. Let the hooks know."""
        for tenure in list(self.tenures.values()):
            tenure.tell("lost", "its event loop was closed")
        if self.renewer.helper is not None:
            self.renewer.helper.dismiss()

    def forget(self, why: str) -> None:
        """In a forked child: hold nothing, and say so to whoever looks."""
        self.renewer.forget(why)
        self.mutex = self.world.mutex()  # another thread of the parent may have it
        self.watchers.clear()
        self.forgotten = why


def lost_message(tenure: Tenure, why: str = "") -> str:
    """``why``: where the renewer has not said why, since it has not noticed yet."""
    lease = f"the lease on {tenure.turnstile.address} (token {tenure.token})"
    if tenure.ended in ("", "lost"):
        return f"{lease} was lost: {tenure.why or why}"
    return f"{lease} was {tenure.ended} before{tenure.why and ': ' + tenure.why}"
