"""Sticky leases: this process keeps what it released, so that taking it again costs no round trip.

A client keeps one lease per sticky lock. Its threads or tasks use it one at a time, first come, first served; each use
is a *turn*, whose holder sees it as a lease of its own. Who comes first when nothing is kept asks the engine for all.

Once anyone else wants it, it is given back: at once, or as soon as ``batch_s`` is over since that was first seen and
the turn that then runs has ended. A lease that is lost ends the turn that uses it, and the next one asks the engine.

All of this is decided under one mutex, held for a few steps without I/O. Who uses what is one reference, ``Kept.user``,
which is changed last: an interrupt on the way leaves a turn that its handle, once collected, gives back.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable

from .. import model
from ..errors import AcquireTimeout, HoldfastError, LeaseLost, Misuse
from ..hooks.event import Life
from ..model import NEVER_S, Claim, Signal, State, Turnstile
from ..world import Mailbox
from . import lease as leases
from .lease import LeaseBase
from .recipe import Recipe, check_timeout
from .session import Session
from .tenure import Tenure

MOST_KEPT = 1024
"""Leases that a client keeps at most while nobody uses them: each is renewed. Of more, the oldest are given back."""


class Turn:
    """One use of a kept lease; its handle reads it as it reads a `Tenure`."""

    __slots__ = ("keeping", "life", "mailbox", "over", "tenure")

    keeping: Kept
    mailbox: Mailbox
    tenure: Tenure

    def __init__(self) -> None:
        self.over = "not begun"  # "" while it lasts; then "released", although the lease goes on, or "given up"
        self.life: Life | None = None  # who hears of it

    @property
    def ended(self) -> str:
        return self.over or self.tenure.ended

    @property
    def why(self) -> str:
        return self.tenure.why

    @property
    def turnstile(self) -> Turnstile:
        return self.tenure.turnstile

    @property
    def token(self) -> int:
        return self.tenure.token

    @property
    def deadline(self) -> float:
        return self.tenure.deadline

    def is_over(self, now: float) -> bool:
        return self.tenure.is_over(now)

    @property
    def wanted(self) -> bool:
        return self.tenure.wanted

    @property
    def unsure(self) -> bool:
        return self.tenure.unsure

    @property
    def on_lost(self) -> list[Callable[[], object]]:
        return [] if self.over else self.tenure.on_lost

    @property
    def ends(self) -> list[Mailbox]:
        return self.tenure.ends


class Kept:
    """What a client has of one sticky lock: the lease that it keeps or asks for, who uses it, who of its own waits."""

    __slots__ = ("_keeper", "batch_s", "key", "queue", "tenure", "user", "was_kept", "yield_at")

    def __init__(self, keeper: Keeper, key: str) -> None:
        self._keeper = keeper
        self.key = key
        self.batch_s = 0.0
        self.tenure: Tenure | None = None
        self.user: Turn | None = None
        self.queue: deque[Turn] = deque()
        self.yield_at = NEVER_S  # from when on it is not used again here
        self.was_kept = False

    def keep(self, tenure: Tenure) -> None:
        """From here on this is the lease."""
        with self._keeper.session.mutex:
            self.tenure, tenure.keeping = tenure, self
        if tenure.wanted:  # it was told while it was none of ours
            self.wanted(tenure)

    def part(self) -> None:
        """Keep no more what was kept; under the mutex. What becomes of it concerns nobody here."""
        self.tenure, self.yield_at, self.was_kept = None, NEVER_S, False

    # -- what the renewer says

    def wanted(self, tenure: Tenure) -> None:
        """Someone else waits for it: from any thread."""
        keeper = self._keeper
        with keeper.session.mutex:
            if self.tenure is tenure:
                self.yield_at = min(self.yield_at, keeper.now() + self.batch_s)
                if self.user is None:
                    self.let_go_in_time(tenure)

    def let_go(self, tenure: Tenure) -> bool:
        """Whether the renewer is to give it back now, since others want it and nobody here uses it."""
        with self._keeper.session.mutex:
            tenure.let_go_at = NEVER_S
            if self.tenure is not tenure or self.user is not None or self._keeper.now() < self.yield_at:
                return False
            self._pass_on(None)
            return True

    def ended(self, tenure: Tenure) -> None:
        """It was lost or given back: whoever waits here asks anew, though its last user may not have noticed yet."""
        with self._keeper.session.mutex:
            if self.tenure is tenure:
                self._pass_on(None)

    # -- what its users do

    def leave(self, turn: Turn) -> Tenure | None:
        """End a turn. The tenure, where it is to be given back to the engine (or was lost); None where it is kept."""
        keeper = self._keeper
        with keeper.session.mutex:
            tenure = turn.tenure
            if turn.over:
                return None
            if self.user is not turn or tenure.ended:
                return tenure
            now = keeper.now()
            if self.tenure is not tenure or now >= self.yield_at or tenure.is_over(now):
                self._pass_on(None)
                return tenure
            tenure.hold_until = NEVER_S
            if tenure.on_lost:
                tenure.on_lost = []
            tenure.life = None  # before the next turn, which may run at once, puts its own there
            self._pass_on(tenure)
            turn.over = "released"
        if turn.life is not None:
            turn.life.step("released", tenure.turnstile, tenure.claim, tenure.token)
        for mailbox in tuple(tenure.ends):
            mailbox.post(Signal(model.NUDGE))
        return None

    def withdraw(self, turn: Turn) -> Tenure | None:
        """This turn is not to be, whatever it had come to. The tenure, where nobody is to use it."""
        with self._keeper.session.mutex:
            if self.user is turn:
                tenure = self.tenure
                parted = getattr(turn, "tenure", None) if tenure is None else None  # on its way back, or to be renewed
                if parted is not None or (tenure is not None and (tenure.ended or not tenure.admitted)):
                    self._pass_on(None)
                    return parted or tenure
                self._pass_on(tenure)
            else:
                with contextlib.suppress(ValueError):
                    self.queue.remove(turn)
            turn.over = "given up"
            return None

    def _pass_on(self, tenure: Tenure | None) -> None:
        """Let the next one here use ``tenure``, or ask for one. Nobody there: keep it, or forget this lock."""
        if tenure is None:
            self.part()
        queue = self.queue
        while queue and queue[0] is self.user:
            queue.popleft()
        if queue:
            queue[0].mailbox.post(Signal(model.NUDGE))
            self.user = queue[0]
            queue.popleft()
            return
        self.user = None
        if tenure is None:
            self._keeper.forget(self)
        elif self.yield_at < NEVER_S:
            self.let_go_in_time(tenure)
        elif tenure.renews and not self.was_kept:  # an engine may look who wants a claim only once it is renewed
            self.was_kept = True
            tenure.due = min(tenure.due, self._keeper.now())
            self._keeper.expect(tenure)

    def let_go_in_time(self, tenure: Tenure) -> None:
        tenure.let_go_at = self.yield_at
        self._keeper.expect(tenure)


class Keeper:
    """The sticky leases of one session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.now = session.world.now
        self.expect = session.renewer.expect
        self._kept: dict[str, Kept] = {}

    def retake(self, turn: Turn, recipe: Recipe) -> bool:
        """Use what is kept, if nobody does. Nothing is sent and nothing awaited."""
        with self.session.mutex:
            kept = self._kept.get(recipe.key)
            if kept is None or kept.user is not None or (tenure := kept.tenure) is None:
                return False
            now = self.now()
            if now >= kept.yield_at or not _lasts(tenure, now):
                return False
            turn.keeping, turn.tenure, turn.over = kept, tenure, ""
            tenure.let_go_at = NEVER_S
            kept.user = turn
        if tenure.max_hold_s is not None:
            tenure.hold_until = now + tenure.max_hold_s
            self.expect(tenure)
        if self.session.hooks:
            tenure.life = turn.life = self.session.new_life()
            tenure.tell("held")
        return True

    async def acquire(self, turn: Turn, recipe: Recipe, timeout_s: float | None) -> None:
        """Wait until this turn comes: for those before it here, then for the engine. Raises as `lease.acquire` does."""
        check_timeout(timeout_s)
        deadline = NEVER_S if timeout_s is None else self.now() + timeout_s
        turn.life = self.session.new_life()
        try:
            if not self._join(turn, recipe):
                await self._wait(turn, recipe, deadline)
            if not await self._is_good(turn, deadline):
                tenure = await self._new_tenure(turn, recipe, deadline)
                left_s = None if deadline == NEVER_S else max(0.0, deadline - self.now())
                await leases.acquire(self.session, tenure, recipe.strategy, left_s)
        except BaseException:
            await self._withdraw(turn, recipe, "gave_up")
            raise

    async def try_acquire(self, turn: Turn, recipe: Recipe) -> bool:
        """Take it if nobody here uses it or waits, and it is kept or free."""
        turn.life = self.session.new_life()
        try:
            taken = self._join(turn, recipe, waits=False) and (
                await self._is_good(turn, NEVER_S)
                or await leases.try_acquire(self.session, await self._new_tenure(turn, recipe, NEVER_S))
            )
        except BaseException:
            await self._withdraw(turn, recipe, "gave_up")
            raise
        if not taken:
            await self._withdraw(turn, recipe, "refused")
        return taken

    def _join(self, turn: Turn, recipe: Recipe, waits: bool = True) -> bool:
        """Use what is kept or ask for it, or, where another does, queue up (False)."""
        with self.session.mutex:
            kept = self._kept.get(recipe.key)
            if kept is None:
                kept = self._kept[recipe.key] = Kept(self, recipe.key)
            turn.keeping, turn.over = kept, ""
            if kept.user is None:
                kept.user = turn
                return True
            if waits:
                turn.mailbox = self.session.world.mailbox()
                kept.queue.append(turn)
            return False

    async def _wait(self, turn: Turn, recipe: Recipe, deadline: float) -> None:
        self._tell(turn, recipe, "waiting")
        while not self._is_up(turn):
            if await self.session.world.wait_signal(turn.mailbox, deadline) is None:
                raise AcquireTimeout(f"{recipe.turnstile.address} was not free in time: others of this client hold it")

    def _is_up(self, turn: Turn) -> bool:
        with self.session.mutex:  # who passes on to it wakes it first: not looked at in between
            return turn.keeping.user is turn

    def _tell(self, turn: Turn, recipe: Recipe, step: str) -> None:
        """Of a turn that has no claim yet."""
        if turn.life is not None:
            turn.life.step(step, recipe.turnstile, Claim("", recipe.weight, recipe.ttl_s), 0)

    async def _is_good(self, turn: Turn, deadline: float) -> bool:
        """Whether the kept lease can be used now. One that is due to others is given back, one near its end renewed."""
        kept, now = turn.keeping, self.now()
        with self.session.mutex:
            tenure, due = kept.tenure, now >= kept.yield_at
            good = tenure is not None and not due and _lasts(tenure, now)
            if tenure is not None:
                turn.tenure = tenure
                if not good:
                    kept.part()
        if tenure is None:
            return False
        if not good and not due:
            with contextlib.suppress(HoldfastError):
                good = (await self.session.renew_one(tenure, deadline)).state is State.ADMITTED and not tenure.ended
                if good:
                    kept.keep(tenure)
        if good:
            tenure.life = turn.life
            self.session.hold(tenure)
        else:
            with contextlib.suppress(LeaseLost):
                await self.session.release(tenure)
        return good

    async def _new_tenure(self, turn: Turn, recipe: Recipe, deadline: float) -> Tenure:
        """What this turn asks the engine for; kept from before it is sent, so that nothing of it can be forgotten."""
        if not self.session.listening:  # to be told when others want it
            await self.session.listen(deadline)
        tenure = leases.new_tenure(self.session, recipe)
        turn.tenure, tenure.life = tenure, turn.life
        turn.keeping.batch_s = recipe.batch_s or 0.0
        turn.keeping.keep(tenure)
        with self.session.mutex:
            if len(self._kept) > MOST_KEPT:
                self._let_go_of_oldest()
        return tenure

    def _let_go_of_oldest(self) -> None:
        for kept in self._kept.values():
            if kept.user is None and kept.tenure is not None and kept.yield_at == NEVER_S:
                kept.yield_at = self.now()
                kept.let_go_in_time(kept.tenure)
                return

    async def _withdraw(self, turn: Turn, recipe: Recipe, step: str) -> None:
        if not turn.over and (tenure := turn.keeping.withdraw(turn)) is not None:
            await self.session.undo(tenure)
            turn.over = "given up"
        self._tell(turn, recipe, step)

    def forget(self, kept: Kept) -> None:
        """Nothing is left of it. Under the mutex."""
        self._kept.pop(kept.key, None)


def _lasts(tenure: Tenure, now: float) -> bool:
    """Whether enough of the lease is left to begin with."""
    return tenure.deadline - now > tenure.claim.ttl_s / 3 and not tenure.ended


class StickyBase(LeaseBase):
    """The handle of a turn. Both faces add what does I/O."""

    __slots__ = ()

    _tenure: Turn  # type: ignore[assignment]

    def __init__(self, session: Session, turn: Turn, on_unsure: str = "pass") -> None:
        self._session, self._tenure, self._on_unsure = session, turn, on_unsure

    @property
    def token(self) -> int:
        """`Misuse`: there is no token of this taking alone."""
        raise Misuse(
            "a sticky lease's token is shared by all who take it in this process, so it fences nothing outside: take "
            "the lock with sticky=False for that. A cell is safe: each taking opens it anew"
        )

    def _end_turn(self) -> Tenure | None:
        """What is to be given back to the engine now, if anything is."""
        try:
            return self._tenure.keeping.leave(self._tenure)
        except BaseException:  # an interrupt: it was to end
            self._abandon(self._tenure)
            raise

    def _abandon(self, turn: Turn) -> None:
        """Let the renewer end this turn, where it lasts."""
        orphan = self._session.renewer.orphan
        if turn.over:
            return
        if not hasattr(turn, "tenure"):  # twice interrupted while it waited for those before it here
            orphan(None, functools.partial(turn.keeping.withdraw, turn))
        elif not turn.tenure.ended:
            orphan(turn.tenure, functools.partial(turn.keeping.leave, turn))

    def _own(self) -> Tenure:
        turn = self._tenure
        if turn.ended:
            raise LeaseLost(f"this taking of {turn.turnstile.address} was {turn.ended} before")
        return turn.tenure

    def __del__(self) -> None:
        """Thrown away without having been released, perhaps in the middle of anything, its making as well."""
        turn: Turn | None = getattr(self, "_tenure", None)
        if turn is not None:
            self._abandon(turn)
