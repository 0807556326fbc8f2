"""Ctrl-C and cancellation at every call of the world, also twice: nothing stays behind, and all goes on.

Each scenario first runs undisturbed, which counts its points; then once per point, interrupted there; then again with a
second interrupt at the first, second, … point of the clean-up.
"""

from __future__ import annotations

import asyncio
import gc
import linecache
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from faces import go
from interrupts import InterruptedAsyncClient, InterruptedClient, Plan
from servers import eventually

import holdfast
from holdfast import sync
from holdfast.engines.memory import MemoryEngine
from holdfast.model import Claim, Turnstile
from holdfast.testing.engine import ScriptedEngine

pytestmark = pytest.mark.filterwarnings("ignore:a lease on:ResourceWarning")

LOCK = Turnstile("lock", "x", 1)
OTHER = Claim("other", 1, 600.0)


class Scenario:
    """Something to interrupt, on either face: ``prepare`` before, ``act`` under interrupts, ``finish`` what it gave."""

    keeps = False
    """Whether something is held before it, and after an interrupt as well."""

    async def prepare(self, case: Case) -> None: ...

    async def act(self, case: Case) -> Any:
        raise NotImplementedError

    async def finish(self, case: Case, result: Any) -> None:
        await go(result.release())

    async def after(self, case: Case) -> None:
        """After an interrupt: use the client again."""


class Case:
    """One run of a scenario: an engine and a client of its own."""

    def __init__(self, face: str) -> None:
        self.face = face
        self.plan = Plan()
        self.engine = ScriptedEngine(time.monotonic)
        client = InterruptedClient if face == "sync" else InterruptedAsyncClient
        self.hf: Any = client(self.engine, self.plan)
        self.lease: Any = None
        self.opened: Any = None

    def others_claim(self, comes: bool) -> None:
        request: Any = self.engine.enter(LOCK, OTHER, False) if comes else self.engine.leave(LOCK, OTHER.id, False)
        self.engine.blocking_link().call(request, 1.0)

    async def close(self) -> None:
        await go(self.hf.close() if self.face == "sync" else self.hf.aclose())

    def claims(self) -> list[str]:
        return [
            f"{stand.turnstile.address} {id}" for stand in list(self.engine.stands.values()) for id in [*stand.places]
        ]

    def others_only(self) -> bool:
        return all(claim.endswith(f" {OTHER.id}") for claim in self.claims())

    async def until(self, condition: Callable[[], object], what: Callable[[], str]) -> None:
        give_up_at = time.monotonic() + 20
        while not condition():
            gc.collect()
            assert time.monotonic() < give_up_at, what()
            await asyncio.sleep(0.002)


class Acquire(Scenario):
    async def act(self, case: Case) -> Any:
        return await go(case.hf.lock("x").acquire())

    async def after(self, case: Case) -> None:
        assert await go(case.hf.lock("x").acquire(timeout_s=20))
        await go(case.hf.lock("x").release())


class AcquireAfterWaiting(Acquire):
    async def prepare(self, case: Case) -> None:
        case.others_claim(comes=True)
        case.plan.meanwhile = lambda: case.others_claim(comes=False)

    async def after(self, case: Case) -> None:
        case.others_claim(comes=False)
        await super().after(case)


class AcquireAdaptively(AcquireAfterWaiting):
    """Interrupted while it asks, between that and the queue, and in the queue."""

    async def act(self, case: Case) -> Any:
        return await go(case.hf.lock("x", strategy=holdfast.Adaptive(spin_s=1.0, most_asks=2)).acquire())


class AcquireInVain(Acquire):
    """It times out, so that giving back is interrupted too."""

    async def prepare(self, case: Case) -> None:
        case.others_claim(comes=True)

    async def act(self, case: Case) -> Any:
        with pytest.raises(TimeoutError):
            await go(case.hf.lock("x").acquire(timeout_s=0.01))
        return None

    async def finish(self, case: Case, result: Any) -> None:
        case.others_claim(comes=False)

    async def after(self, case: Case) -> None:
        case.others_claim(comes=False)
        await super().after(case)


class AcquireWithLostReplies(Acquire):
    async def prepare(self, case: Case) -> None:
        case.engine.unavailable(1, "enter", done=True)

    async def after(self, case: Case) -> None:
        case.engine.available()
        await super().after(case)


class TryAcquire(Acquire):
    async def act(self, case: Case) -> Any:
        return await go(case.hf.lock("x").try_acquire())


class Release(Acquire):
    async def prepare(self, case: Case) -> None:
        case.lease = await go(case.hf.lock("x").acquire())

    async def act(self, case: Case) -> Any:
        await go(case.lease.release())

    async def finish(self, case: Case, result: Any) -> None: ...

    async def after(self, case: Case) -> None:
        await case.until(lambda: not case.claims(), lambda: f"still there: {case.claims()}")
        await super().after(case)


class ReleaseWithLostReplies(Release):
    async def prepare(self, case: Case) -> None:
        await super().prepare(case)
        case.engine.unavailable(1, "leave", done=True)

    async def after(self, case: Case) -> None:
        case.engine.available()
        await super().after(case)


class With(Acquire):
    """The whole block. Its end may be interrupted as well."""

    async def act(self, case: Case) -> Any:
        if case.face == "sync":
            with case.hf.lock("x") as lease:
                assert lease.is_held
        else:
            async with case.hf.lock("x") as lease:
                assert lease.is_held

    async def finish(self, case: Case, result: Any) -> None: ...


class Sticky(Acquire):
    """What is kept is given back as soon as another wants it, and can be taken again meanwhile."""

    keeps = True

    async def act(self, case: Case) -> Any:
        return await go(case.hf.lock("x", sticky=True).acquire())

    async def finish(self, case: Case, result: Any) -> None:
        await super().finish(case, result)
        del result
        await self.after(case)

    async def after(self, case: Case) -> None:
        lease = await go(case.hf.lock("x", sticky=True).acquire(timeout_s=20))
        assert lease.is_held
        await go(lease.release())
        link, late = case.engine.blocking_link(), OTHER._replace(id="late")
        link.call(case.engine.enter(LOCK, late, False), 1.0)
        await case.until(lambda: case.claims() == ["lock:x late"], lambda: f"still there: {case.claims()}")
        link.call(case.engine.leave(LOCK, late.id, False), 1.0)


class StickyAfterWaiting(Sticky):
    async def prepare(self, case: Case) -> None:
        case.others_claim(comes=True)
        case.plan.meanwhile = lambda: case.others_claim(comes=False)

    async def after(self, case: Case) -> None:
        case.others_claim(comes=False)
        await super().after(case)


class StickyTry(Sticky):
    async def act(self, case: Case) -> Any:
        return await go(case.hf.lock("x", sticky=True).try_acquire())


class StickyRelease(Sticky):
    """Wanted, so that it is given back with a call."""

    async def prepare(self, case: Case) -> None:
        case.lease = await go(case.hf.lock("x", sticky=True).acquire())
        case.others_claim(comes=True)
        await case.until(lambda: case.lease.wanted, lambda: "nobody wants it")
        case.others_claim(comes=False)

    async def act(self, case: Case) -> Any:
        await go(case.lease.release())
        return case.lease


class Open(Scenario):
    keeps = True

    async def prepare(self, case: Case) -> None:
        case.lease = await go(case.hf.lock("x").acquire())

    async def act(self, case: Case) -> Any:
        return await go(case.hf.cell("c").open(case.lease))

    async def finish(self, case: Case, result: Any) -> None:
        await go(result.put(b"value"))
        await go(case.lease.release())

    async def after(self, case: Case) -> None:
        assert case.lease.state == "HELD"
        opened = await go(case.hf.cell("c").open(case.lease))
        await go(opened.put(b"again"))
        assert (await go(case.hf.cell("c").read())).value == b"again"
        await go(case.lease.release())


class Put(Open):
    async def prepare(self, case: Case) -> None:
        await super().prepare(case)
        case.opened = await go(case.hf.cell("c").open(case.lease))

    async def act(self, case: Case) -> Any:
        await go(case.opened.put(b"value"))
        return case.opened


class PutWithLostReplies(Put):
    async def prepare(self, case: Case) -> None:
        await super().prepare(case)
        case.engine.unavailable(1, "put", done=True)

    async def after(self, case: Case) -> None:
        case.engine.available()
        await super().after(case)


class Campaign(Scenario):
    async def act(self, case: Case) -> Any:
        return await go(case.hf.election("e").campaign(b"payload"))

    async def finish(self, case: Case, result: Any) -> None:
        assert (await go(case.hf.election("e").leader())).token == result.token
        await go(result.resign())

    async def after(self, case: Case) -> None:
        await case.until(lambda: not case.claims(), lambda: f"still there: {case.claims()}")
        await self.finish(case, await go(case.hf.election("e").campaign(timeout_s=20)))


class Resign(Campaign):
    async def prepare(self, case: Case) -> None:
        case.lease = await go(case.hf.election("e").campaign())

    async def act(self, case: Case) -> Any:
        await go(case.lease.resign())

    async def finish(self, case: Case, result: Any) -> None:
        if result is not None:
            await super().finish(case, result)


class JoinGroup(Scenario):
    async def act(self, case: Case) -> Any:
        return await go(case.hf.group("g").join(b"payload"))

    async def after(self, case: Case) -> None:
        member = await go(case.hf.group("g").join())
        await case.until(lambda: len(case.claims()) == 1, lambda: f"still there: {case.claims()}")
        await go(member.release())


class JoinPartitions(Scenario):
    async def act(self, case: Case) -> Any:
        return await go(case.hf.partitions("p", 4).join())

    async def finish(self, case: Case, result: Any) -> None:
        await case.until(lambda: len(result.owned) == 4, lambda: f"owned: {result.owned}")
        await go(result.leave())

    async def after(self, case: Case) -> None:
        await case.until(lambda: not case.claims(), lambda: f"still there: {case.claims()}")
        await self.finish(case, await self.act(case))


async def run(face: str, scenario: Scenario, at: frozenset[int]) -> int:
    """Run it interrupted at these points; how many points it passed."""
    case = Case(face)
    try:
        _ = case.hf.session
        await scenario.prepare(case)
        case.plan.arm(at)
        left: BaseException | None = None
        result = None
        try:
            result = await scenario.act(case)
        except (KeyboardInterrupt, asyncio.CancelledError) as interrupt:
            left = interrupt
            for one in (interrupt, *case.plan.raised):  # so that nothing is kept by its frames
                one.__traceback__ = one.__context__ = None
        case.plan.disarm()
        if left is not None:
            assert left in case.plan.raised if face == "sync" else case.plan.raised, "it leaves as it came"
            if face == "aio" and not scenario.keeps:
                assert case.others_only(), f"interrupted at {sorted(at)}: the clean-up was stopped"
            task = asyncio.current_task()
            while face == "aio" and task is not None and task.cancelling():
                task.uncancel()
            await scenario.after(case)
        else:
            assert not case.plan.raised, "an interrupt was swallowed"
            await scenario.finish(case, result)
            del result
        case.plan.raised.clear()
        what = f"interrupted at {sorted(at)}: still there: "
        await case.until(lambda: not case.claims(), lambda: what + str(case.claims()))
        await case.until(lambda: not case.hf.session.tenures, lambda: what + str(case.hf.session.tenures))
        await case.until(lambda: not case.hf.session.renewer.graves, lambda: what + str(case.hf.session.renewer.graves))
        return case.plan.passed
    finally:
        case.plan.disarm()
        await case.close()


SCENARIOS = [
    Acquire,
    AcquireAfterWaiting,
    AcquireAdaptively,
    AcquireInVain,
    AcquireWithLostReplies,
    TryAcquire,
    Release,
    ReleaseWithLostReplies,
    With,
    Sticky,
    StickyAfterWaiting,
    StickyTry,
    StickyRelease,
    Open,
    Put,
    PutWithLostReplies,
    Campaign,
    Resign,
    JoinGroup,
    JoinPartitions,
]


@pytest.mark.parametrize("face", ["sync", "aio"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_interrupt_at_any_call_also_a_second_one_leaves_nothing_behind(scenario: type[Scenario], face: str) -> None:
    async def main() -> None:
        points = await run(face, scenario(), frozenset())
        assert points >= 2
        for first in range(points):
            passed = await run(face, scenario(), frozenset([first]))
            for second in range(first + 1, passed):
                await run(face, scenario(), frozenset([first, second]))

    asyncio.run(main())


# -- between any two lines


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class Tracer:
    """Interrupts the running thread at the n-th line of ours that it comes to.

    Not inside the engine, which is another machine elsewhere; nor in the few lines with which the end of a block looks
    up what it is to release: a lease that they never come to stays with its thread.
    """

    OURS = str(Path(holdfast.__file__).parent)
    LOOKS_UP = ("__exit__", "_leave", "release", "session", "pop_own", "belongings")

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        caller = frame.f_back.f_code.co_filename if frame.f_back is not None else ""
        if not code.co_filename.startswith(self.OURS) or "engines" in code.co_filename + caller:
            return None
        if any(outer.f_code.co_name == "__del__" for outer in outwards(frame)):  # where Python swallows it
            return None
        looks_up = code.co_name in self.LOOKS_UP and "session.py" not in code.co_filename
        looks_up = looks_up or code.co_filename.endswith("holding.py")
        # A tracer comes to a `with` again between the end of its block and its exit, where no interrupt ever comes.
        looks_up = looks_up or "mutex:" in linecache.getline(code.co_filename, frame.f_lineno)
        if event == "line" and not looks_up:
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def interrupt_block(at: int) -> bool:
    """Whether a ``with`` has as many lines as to be interrupted at this one."""
    engine = MemoryEngine()
    with sync.Client(engine) as hf:
        other = hf.lock("other").acquire()  # all is opened
        tracer, before = Tracer(at), sys.gettrace()
        try:
            sys.settrace(tracer)
            with hf.lock("x"):
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        eventually(lambda: gc.collect() >= 0 and "lock:x" not in engine.stands, what=f"still held: line {at}")
        with hf.lock("x", timeout_s=20) as lease:
            assert lease.is_held
        other.release()
    return tracer.left < 0


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_an_interrupt_between_any_two_lines_leaves_no_lock_taken() -> None:
    """Where no clean-up can be sure to come, the collected handle gives it back."""
    at = 0
    while interrupt_block(at):
        at += 1
    assert at > 100


def interrupt_sticky_block(at: int, wanted: bool) -> bool:
    """The same for a sticky lock that is kept already; ``wanted``: it is to be handed over at the end of the block."""
    engine = MemoryEngine()
    blocking = engine.blocking_link()
    with sync.Client(engine) as hf:
        lock = hf.lock("x", sticky=True)
        with lock:
            pass
        tracer, before = Tracer(at), sys.gettrace()
        try:
            sys.settrace(tracer)
            with lock:
                if wanted:
                    blocking.call(engine.enter(LOCK, OTHER, False), 1.0)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        gc.collect()
        blocking.call(engine.enter(LOCK, OTHER, False), 1.0)
        eventually(
            lambda: gc.collect() >= 0 and list(engine.stands["lock:x"].places) == [OTHER.id],
            what=f"not handed over: line {at}",
        )
        blocking.call(engine.leave(LOCK, OTHER.id, False), 1.0)
        with lock as lease:
            assert lease.is_held
    return tracer.left < 0


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("wanted", [False, True])
def test_an_interrupt_between_any_two_lines_of_a_sticky_taking_keeps_it_from_nobody(wanted: bool) -> None:
    at = 0
    while interrupt_sticky_block(at, wanted):
        at += 1
    assert at > 40
