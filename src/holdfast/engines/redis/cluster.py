"""A Redis or Valkey cluster as one process's threads use it, and as one asyncio event loop does.

Each turnstile and each cell is whole on one node, since its keys share a hash tag. A claimant's inbox is a plain
channel, which the cluster carries to every node: so it is heard wherever it listens, whichever node admits its claim.
That way may take 40 ms (nodes talk to each other without TCP_NODELAY), so it is heard at the nodes that are called as
well, and what arrives twice is passed on once. What a turnstile announces to its watchers stays within its shard where
the servers can do that (Redis 7).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from ...contract import LISTEN_S, Deliver, Request
from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable
from ...model import Signal, Turnstile
from .links import AsyncRedisLink, RedisLink
from .pipes import Pipe, Wire, dial
from .places import Address, Cluster
from .signals import AsyncEar, Ear, Once
from .slots import Errand, Slots, learned, routed, slot_of_channel
from .wire import CHANNELS

T = TypeVar("T")


class ClusterLink(RedisLink):
    """Calls from any thread, each over a connection to the node that it is for; errands to several nodes at once."""

    def __init__(self, cluster: Cluster, channel_of: Callable[[Turnstile], bytes]) -> None:
        self._cluster = cluster
        super().__init__(cluster.node._replace(where=cluster.where), channel_of)

    def _start(self) -> None:
        super()._start()
        self._slots = Slots(self._cluster)
        self._nodes: dict[Address, RedisLink] = {}
        self._nearer: dict[Address, Ear] = {}
        self._watches: dict[bytes, Ear] = {}

    # -- calls

    def call(self, request: Request[T], timeout_s: float) -> T:
        body = request.body
        if callable(body):
            return request.parse(self._converse(body(), timeout_s))
        (reply,) = self.replies((body,), timeout_s)
        return self._outcome(request, reply)

    def replies(self, bodies: Sequence[Any], timeout_s: float, *, in_turn: bool = True) -> list[Any]:
        return self._hold(routed(self._slots, bodies), timeout_s, in_turn)

    def _hold(self, talk: Generator[list[Errand], list[list[Any]], T], timeout_s: float, in_turn: bool = True) -> T:
        until = time.monotonic() + timeout_s
        try:
            errands = next(talk)
            while True:
                left_s = max(0.001, until - time.monotonic())
                errands = talk.send(self._run(errands, left_s, in_turn))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _run(self, errands: Sequence[Errand], left_s: float, in_turn: bool) -> list[list[Any]]:
        def asked(errand: Errand) -> list[Any]:
            return self._node(errand.node).replies(errand.bodies, left_s * errand.share, in_turn=in_turn)

        if len(errands) == 1:
            return [asked(errands[0])]
        done: queue.SimpleQueue[tuple[int, list[Any]]] = queue.SimpleQueue()

        def run(number: int, errand: Errand) -> None:
            done.put((number, asked(errand)))

        for one in enumerate(errands):  # in threads of their own: a node that is silent holds up no other's
            threading.Thread(target=run, args=one, name="holdfast-redis-node", daemon=True).start()
        lost = OutcomeUnknown(f"no reply within {left_s:.1f} s")
        answers: dict[int, list[Any]] = {}
        until = time.monotonic() + left_s + 1
        while len(answers) < len(errands):
            try:
                number, replies = done.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            answers[number] = replies
        return [answers.get(number, [lost] * len(errand.bodies)) for number, errand in enumerate(errands)]

    def _node(self, address: Address) -> RedisLink:
        if self._closed:
            raise Misuse("this client is closed")
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes.setdefault(address, RedisLink(self._cluster.node.at(*address), self._channel_of))
        if self._ear is not None and address not in self._nearer:
            self._hear_at(address)
        return node

    # -- signals

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        return super().listen(Once(deliver), look_again, timeout_s)

    def _hear_at(self, address: Address) -> None:
        """Hear our inbox at this node as well: in the background, as nothing depends on it but speed."""
        server = self._cluster.node.at(*address)

        def dial_node(timeout_s: float) -> Wire:
            if not self._slots.stale and address not in self._slots.primaries:
                self._nearer.pop(address, None)
                ear.close()
            return Wire(server, timeout_s)

        def deliver(signal: Signal) -> None:
            if self._ear is not None:
                self._ear.deliver(signal)

        channels = {f"{CHANNELS}{self.inbox}".encode(): ""}
        ear = Ear(dial_node, server.where, channels, self._wake, deliver, lambda: None)
        if self._nearer.setdefault(address, ear) is ear:
            threading.Thread(target=ear.run, name="holdfast-redis-signals", daemon=True).start()

    def _dial(self, timeout_s: float) -> Wire:
        """To any node: plain channels reach them all."""
        until = time.monotonic() + timeout_s
        if self._slots.stale:
            self._hold(learned(self._slots), timeout_s / 2)
        trouble: HoldfastError | None = None
        for node in self._slots.some_nodes():
            try:
                return Wire(self._cluster.node.at(*node), max(0.001, (until - time.monotonic()) / 2))
            except Unavailable as error:
                trouble = error
                self._slots.stale = True
        raise Unavailable(f"no node of {self._cluster.where} can be reached") from trouble

    def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        if self._ear is None:
            raise Misuse("watch() needs listen() first")
        channel = self._channel_of(turnstile)

        def dial_owner(timeout_s: float) -> Wire:
            self._hold(learned(self._slots), timeout_s / 2)
            return Wire(self._cluster.node.at(*self._slots.owner(slot_of_channel(channel))), timeout_s / 2)

        with self._ear_lock:
            if channel in self._watches:
                return
            channels = {channel: turnstile.address}
            ear = Ear(
                dial_owner, self._cluster.where, channels, self._wake, self._ear.deliver, self._look, sharded=True
            )
            ear.connect(timeout_s)
            self._watches[channel] = ear
        threading.Thread(target=ear.run, name="holdfast-redis-watch", daemon=True).start()

    def _look(self) -> None:
        if self._ear is not None:
            self._ear.look_again()

    def unwatch(self, turnstile: Turnstile) -> None:
        ear = self._watches.pop(self._channel_of(turnstile), None)
        if ear is not None:
            ear.close()

    # -- ends

    def close(self) -> None:
        super().close()
        with self._ear_lock:
            for ear in [*self._watches.values(), *self._nearer.values()]:
                ear.close()
        for node in list(self._nodes.values()):
            node.close()

    def abandon(self) -> None:
        for ear in [*self._watches.values(), *self._nearer.values()]:
            if ear.wire is not None:
                ear.wire.close()
        for node in list(self._nodes.values()):
            node.abandon()
        super().abandon()


class AsyncClusterLink(AsyncRedisLink):
    """The same on one event loop."""

    def __init__(self, cluster: Cluster, channel_of: Callable[[Turnstile], bytes]) -> None:
        self._cluster = cluster
        super().__init__(cluster.node._replace(where=cluster.where), channel_of)

    def _start(self) -> None:
        super()._start()
        self._slots = Slots(self._cluster)
        self._nodes: dict[Address, AsyncRedisLink] = {}
        self._nearer: dict[Address, AsyncEar] = {}
        self._watches: dict[bytes, AsyncEar] = {}

    # -- calls

    async def call(self, request: Request[T], timeout_s: float) -> T:
        body = request.body
        if callable(body):
            return request.parse(await self._converse(body(), timeout_s))
        (reply,) = await self.replies((body,), timeout_s)
        return self._outcome(request, reply)

    async def replies(self, bodies: Sequence[Any], timeout_s: float) -> list[Any]:
        return await self._hold(routed(self._slots, bodies), timeout_s)

    async def _hold(self, talk: Generator[list[Errand], list[list[Any]], T], timeout_s: float) -> T:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        try:
            errands = next(talk)
            while True:
                left_s = max(0.001, until - loop.time())
                if len(errands) == 1:
                    answers = [await self._run(errands[0], left_s)]
                else:
                    answers = await asyncio.gather(*(self._run(errand, left_s) for errand in errands))
                errands = talk.send(answers)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _run(self, errand: Errand, left_s: float) -> list[Any]:
        return await self._node(errand.node).replies(errand.bodies, left_s * errand.share)

    def _node(self, address: Address) -> AsyncRedisLink:
        if self._closed:
            raise Misuse("this client is closed")
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = AsyncRedisLink(self._cluster.node.at(*address), self._channel_of)
        if self._ear is not None and address not in self._nearer:
            self._hear_at(address)
        return node

    # -- signals

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        return await super().listen(Once(deliver), look_again, timeout_s)

    def _hear_at(self, address: Address) -> None:
        """Hear our inbox at this node as well: in the background, as nothing depends on it but speed."""
        server = self._cluster.node.at(*address)

        async def dial_node(timeout_s: float) -> Pipe:
            if not self._slots.stale and address not in self._slots.primaries and ear.task is not None:
                self._nearer.pop(address, None)
                ear.task.cancel()
            return await dial(server, timeout_s)

        def deliver(signal: Signal) -> None:
            if self._ear is not None:
                self._ear.deliver(signal)

        channels = {f"{CHANNELS}{self.inbox}".encode(): ""}
        ear = self._nearer[address] = AsyncEar(dial_node, server.where, channels, deliver, lambda: None)
        ear.task = asyncio.create_task(ear.run(), name="holdfast-redis-signals")

    async def _dial(self, timeout_s: float) -> Pipe:
        """To any node: plain channels reach them all."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        if self._slots.stale:
            await self._hold(learned(self._slots), timeout_s / 2)
        trouble: HoldfastError | None = None
        for node in self._slots.some_nodes():
            try:
                return await dial(self._cluster.node.at(*node), max(0.001, (until - loop.time()) / 2))
            except Unavailable as error:
                trouble = error
                self._slots.stale = True
        raise Unavailable(f"no node of {self._cluster.where} can be reached") from trouble

    async def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        if self._ear is None:
            raise Misuse("watch() needs listen() first")
        channel = self._channel_of(turnstile)

        async def dial_owner(timeout_s: float) -> Pipe:
            await self._hold(learned(self._slots), timeout_s / 2)
            return await dial(self._cluster.node.at(*self._slots.owner(slot_of_channel(channel))), timeout_s / 2)

        async with self._ear_lock:
            if channel in self._watches:
                return
            channels = {channel: turnstile.address}
            ear = AsyncEar(dial_owner, self._cluster.where, channels, self._ear.deliver, self._look, sharded=True)
            await ear.connect(timeout_s)
            self._watches[channel] = ear
        ear.task = asyncio.create_task(ear.run(), name="holdfast-redis-watch")

    def _look(self) -> None:
        if self._ear is not None:
            self._ear.look_again()

    async def unwatch(self, turnstile: Turnstile) -> None:
        ear = self._watches.pop(self._channel_of(turnstile), None)
        if ear is not None:
            await ear.close()

    # -- ends

    async def close(self) -> None:
        await super().close()
        for ear in [*self._watches.values(), *self._nearer.values()]:
            await ear.close()
        for node in list(self._nodes.values()):
            await node.close()

    def abandon(self) -> None:
        for ear in [*self._watches.values(), *self._nearer.values()]:
            if ear.pipe is not None and not ear.pipe.closed:
                ear.pipe.abandon()
        for node in list(self._nodes.values()):
            node.abandon()
        super().abandon()
