"""A quorum as one asyncio event loop uses it: one connection to each node, shared by all tasks."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from ...contract import LISTEN_S, Deliver, Request
from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported
from ...model import Turnstile
from ..redis.pipes import Pipe, dial
from ..redis.wire import Eval, Target, is_unknown_script
from . import nodes as nodes_
from .nodes import Facts, Nodes, SameServer, facts_of
from .protocol import Round, Talk
from .signals import AsyncEars

T = TypeVar("T")


class NodePipe:
    """The connection to one node, and what it said of itself."""

    def __init__(self, pipe: Pipe, facts: Facts) -> None:
        self.pipe = pipe
        self.facts = facts
        self._loop = asyncio.get_running_loop()
        self._owed = 0
        self._asked_at = 0.0
        self._forgotten: set[int] = set()  # scripts that the server did not know when nobody waited any more

    def ask(self, body: Eval, heard: Callable[[Any], bool]) -> None:
        """Send; ``heard`` takes the reply, and says whether somebody still waited for it."""
        now = self._loop.time()
        if self._owed == 0:
            self._asked_at = now
        elif now - max(self._asked_at, self.pipe.heard_at) > nodes_.SILENT_S:
            self.pipe.fail(Unavailable(f"no answer within {nodes_.SILENT_S} s"))
        by_text = id(body.script) in self._forgotten
        self._forgotten.discard(id(body.script))
        self._owed += 1
        self.pipe.ask(self.facts.payload(body, by_text)).add_done_callback(partial(self._hear, body, heard))

    def _hear(self, body: Eval, heard: Callable[[Any], bool], future: asyncio.Future[Any]) -> None:
        self._owed -= 1
        if future.cancelled():
            return
        reply = future.result()
        if not is_unknown_script(reply):
            heard(reply)
        elif heard(None) or body.script in nodes_.GIVES_BACK:
            self._owed += 1
            again = self.pipe.ask(self.facts.payload(body, by_text=True))
            again.add_done_callback(partial(self._hear, body, heard))
        else:
            self._forgotten.add(id(body.script))


class _Hearing:
    """The replies of one round as they come, and a bell for when they are enough."""

    def __init__(self, round: Round, nodes: Nodes) -> None:
        self.replies: list[Any] = [None if node in round.bodies else nodes_.NOT_ASKED for node in range(nodes.size)]
        self.bell: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._round = round
        self._nodes = nodes

    def hear(self, node: int, reply: Any) -> bool:
        if self.bell.done():
            return False
        if reply is not None:
            self.replies[node] = self._nodes.heard(reply)
            self.look()
        return True

    def look(self) -> None:
        if not self.bell.done() and self._round.enough(self.replies):
            self.bell.set_result(None)

    def over(self) -> None:
        if not self.bell.done():
            self.bell.set_result(None)


class AsyncQuorumLink:
    """Calls from any task of one event loop; signals through one task per node, once somebody waits."""

    lifeline = None

    def __init__(self, targets: list[Target]) -> None:
        self._targets = targets
        self._start()

    def _start(self) -> None:
        self.inbox = secrets.token_hex(8)
        self._nodes = Nodes(self._targets)
        self._pipes: list[NodePipe | None] = [None] * self._nodes.size
        self._dialling: dict[int, asyncio.Task[None]] = {}
        self._refusal: HoldfastError | None = None
        self._alone: dict[str, asyncio.Lock] = {}
        self._ears = AsyncEars(self._targets, self.inbox)
        self._closed = False

    # -- calls

    async def call(self, request: Request[T], timeout_s: float) -> T:
        return await self._call(request, asyncio.get_running_loop().time() + timeout_s)

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        until = asyncio.get_running_loop().time() + timeout_s
        replies: list[T | Exception] = await asyncio.gather(*[self._attempt(one, until) for one in requests])
        return replies

    async def _attempt(self, request: Request[Any], until: float) -> Any:
        try:
            return await self._call(request, until)
        except HoldfastError as error:
            return error

    async def _call(self, request: Request[T], until: float) -> T:
        body = request.body
        if not body.alone:
            return request.parse(await self._converse(body.talk, until))
        lock = self._alone.setdefault(body.alone, asyncio.Lock())
        try:
            async with asyncio.timeout_at(until):
                await lock.acquire()
        except TimeoutError:
            raise OutcomeUnknown(f"another {request.op} of this claim is under way") from None
        try:
            return request.parse(await self._converse(body.talk, until))
        finally:
            lock.release()
            if not lock.locked() and not getattr(lock, "_waiters", None):
                self._alone.pop(body.alone, None)

    async def _converse(self, make: Callable[[Nodes], Talk[T]], until: float) -> T:
        nodes = self._nodes
        await self._connect(until)
        try:
            outcome = await self._hold(nodes.conduct(make(nodes)), until)
        except (Unavailable, OutcomeUnknown):
            if not nodes.may_admit() or asyncio.get_running_loop().time() >= until:
                raise
            await self._hold(nodes.admit(), until)
            outcome = await self._hold(make(nodes), until)
        nodes.met = True
        return outcome

    async def _hold(self, talk: Talk[T], until: float) -> T:
        try:
            round = next(talk)
            while True:
                round = talk.send(await self._exchange(round, until))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _exchange(self, round: Round, until: float) -> list[Any]:
        nodes = self._nodes
        hearing = _Hearing(round, nodes)
        for node, body in round.bodies.items():
            pipe = self._pipes[node]
            if pipe is None:
                hearing.replies[node] = nodes.all[node].trouble
            else:
                pipe.ask(body, partial(hearing.hear, node))
        hearing.look()
        loop = asyncio.get_running_loop()
        timer = loop.call_at(min(until, loop.time() + round.within_s), hearing.over)
        try:
            await hearing.bell
        finally:
            timer.cancel()
            hearing.over()
        return hearing.replies

    # -- connections

    async def _connect(self, until: float) -> None:
        """Connect to who is missing, in parallel; return once a majority is there and nobody is worth waiting for."""
        nodes, loop = self._nodes, asyncio.get_running_loop()
        if self._closed:
            raise Misuse("this client is closed")
        missing = [node for node in range(nodes.size) if self._is_lost(node)]
        if not missing:
            return
        started = loop.time()
        for node in missing:
            if node not in self._dialling and nodes.all[node].may_dial():
                left_s = max(nodes_.GRACE_S, until - started)
                self._dialling[node] = asyncio.create_task(self._dial(node, left_s), name="holdfast-connect")
        grace_s = nodes_.GRACE_S if nodes.met else nodes_.FIRST_S
        while self._dialling:
            stop = until
            if sum(pipe is not None for pipe in self._pipes) >= nodes.majority:
                if nodes.met and all(nodes.all[node].is_down for node in self._dialling):
                    return
                stop = min(until, started + grace_s)
            left_s = stop - loop.time()
            if left_s <= 0:
                return
            await asyncio.wait(self._dialling.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            self._check_refusal()
        self._check_refusal()

    def _check_refusal(self) -> None:
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise refusal

    def _is_lost(self, node: int) -> bool:
        pipe = self._pipes[node]
        if pipe is not None and pipe.pipe.closed:
            self._pipes[node] = None
        return self._pipes[node] is None

    async def _dial(self, node: int, timeout_s: float) -> None:
        target = self._targets[node]
        pipe: Pipe | None = None
        try:
            pipe = await dial(target, timeout_s)
            facts = facts_of(await pipe.exchange(nodes_.HELLO, nodes_.HELLO_REPLIES, timeout_s), target.where)
            self._nodes.meet(node, facts)
            self._pipes[node], pipe = NodePipe(pipe, facts), None
        except HoldfastError as trouble:
            self._nodes.all[node].went_down(trouble)
            if isinstance(trouble, (Misuse, Unsupported)) and (not self._nodes.met or isinstance(trouble, SameServer)):
                self._refusal = trouble
        except Exception as trouble:
            self._nodes.all[node].went_down(Unavailable(f"no connection to Redis at {target.where}: {trouble}"))
        finally:
            if pipe is not None:
                pipe.close()
            self._dialling.pop(node, None)

    # -- signals

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        if self._closed:
            raise Misuse("this client is closed")
        return await self._ears.listen(deliver, look_again, timeout_s)

    async def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        raise Unsupported("the quorum engine has no groups, so nothing announces changes")

    async def unwatch(self, turnstile: Turnstile) -> None:
        return

    # -- ends

    async def close(self) -> None:
        self._closed = True
        dialling = list(self._dialling.values())
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        await self._ears.close()
        for pipe in self._pipes:
            if pipe is not None:
                pipe.pipe.close()
                await pipe.pipe.lost

    def abandon(self) -> None:
        """Forget the inherited connections; the parent's go on undisturbed."""
        for pipe in self._pipes:
            if pipe is not None and not pipe.pipe.closed:
                pipe.pipe.abandon()
        self._ears.abandon()
        self._start()
