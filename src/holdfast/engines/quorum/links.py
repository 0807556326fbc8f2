"""A quorum as one process's threads use it: one connection to each node, written to all, then read as they answer.

No thread per node: a round is as many sends, and one wait for all sockets at once, with one deadline. It ends when its
talk has heard enough; what comes later is read and forgotten before the next answer of that connection. Only making
connections takes threads, for as long as it lasts, so that a host that does not answer holds up nobody.
"""

from __future__ import annotations

import logging
import queue
import secrets
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ...contract import LISTEN_S, Deliver, Request
from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported
from ...model import Turnstile
from ..redis.pipes import Wire
from ..redis.wire import Eval, Target, is_unknown_script
from ..room import Room
from . import nodes as nodes_
from .nodes import Facts, Nodes, facts_of
from .protocol import Round, Talk
from .signals import Ears

T = TypeVar("T")

log = logging.getLogger("holdfast.quorum")

IDLE_S = 1.0
"""Connections that rested longer are looked at before they are used: the server may have closed them."""

MAX_FANS = 16
"""Sets of connections for calls of one process: calls are short. More threads take turns, but no renewal does."""


class NodeWire(Wire):
    """A connection to one node that is written and read without blocking."""

    def __init__(self, server: Target, timeout_s: float) -> None:
        super().__init__(server, timeout_s)
        try:
            self.facts: Facts = facts_of(self.exchange(nodes_.HELLO, nodes_.HELLO_REPLIES, timeout_s), server.where)
        except BaseException:
            self.close()
            raise
        self.sock.settimeout(0)
        self._asked: deque[tuple[Eval, int]] = deque()  # not answered yet, oldest first, and in which round
        self._round = 0
        self._asked_at = 0.0
        self._forgotten: set[int] = set()  # scripts that the server did not know when nobody waited any more
        self._unsent = b""

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def ask(self, body: Eval) -> None:
        """Send, without waiting for the answer. Raises OSError."""
        now = time.monotonic()
        if not self._asked:
            self._asked_at = now
        elif now - self._asked_at > nodes_.SILENT_S:
            raise TimeoutError(f"no answer within {nodes_.SILENT_S} s")
        by_text = id(body.script) in self._forgotten
        self._forgotten.discard(id(body.script))
        self._asked.append((body, self._round))
        self._send(self.facts.payload(body, by_text))

    def over(self) -> None:
        """Nobody waits any more for what was asked so far."""
        self._round += 1

    def _send(self, payload: bytes) -> None:
        if self._unsent:
            self._unsent += payload
            return
        self._unsent = payload
        self.flush()

    def flush(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if type(error).__name__ not in ("SSLWantReadError", "SSLWantWriteError"):
                raise

    def hear(self) -> list[Any]:
        """What has come in answer to what is waited for; the rest is forgotten. Raises OSError."""
        heard: list[Any] = []
        while True:
            try:
                data = self.sock.recv(65536)
            except (BlockingIOError, InterruptedError):
                return heard
            except OSError as error:
                if type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError"):
                    return heard
                raise
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self._asked_at = time.monotonic()
            for reply in self._replies.feed(data):
                heard += self._answered(reply)
            if len(data) < 65536 and not getattr(self.sock, "pending", int)():
                return heard

    def _answered(self, reply: Any) -> list[Any]:
        if not self._asked:
            raise ConnectionResetError("the server said what it was not asked for")
        body, round = self._asked.popleft()
        if is_unknown_script(reply):
            if round == self._round or body.script in nodes_.GIVES_BACK:
                self._asked.append((body, round))
                self._send(self.facts.payload(body, by_text=True))
            else:
                self._forgotten.add(id(body.script))
            return []
        return [reply] if round == self._round else []


class Fan:
    """One connection to each node that can be reached; used by one thread at a time."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self.wires: list[NodeWire | None] = [None] * nodes.size
        self._selector = selectors.DefaultSelector()
        self._arrivals: queue.SimpleQueue[tuple[int, NodeWire | HoldfastError]] = queue.SimpleQueue()
        self._dialling: set[int] = set()
        self._lock = threading.Lock()
        self.rested_at = time.monotonic()
        self.closed = False

    # -- connections

    def connect(self, until: float) -> None:
        """Connect to who is missing, in parallel; return once a majority is there and nobody is worth waiting for."""
        nodes = self._nodes
        self._settle(block_s=0.0)
        if time.monotonic() - self.rested_at > IDLE_S:
            self._read(0.0, [nodes_.NOT_ASKED] * nodes.size)  # who hung up meanwhile, and what came late
        missing = [index for index, wire in enumerate(self.wires) if wire is None]
        if not missing:
            return
        started = time.monotonic()
        for index in missing:
            if index not in self._dialling and nodes.all[index].may_dial():
                self._dialling.add(index)
                left_s = max(nodes_.GRACE_S, until - started)
                threading.Thread(target=self._dial, args=(index, left_s), name="holdfast-connect", daemon=True).start()
        grace_s = nodes_.GRACE_S if nodes.met else nodes_.FIRST_S
        while self._dialling:
            now = time.monotonic()
            stop = until
            if sum(wire is not None for wire in self.wires) >= nodes.majority:
                if nodes.met and all(nodes.all[index].is_down for index in self._dialling):
                    return
                stop = min(until, started + grace_s)
            if now >= stop or not self._settle(stop - now):
                return

    def _settle(self, block_s: float) -> bool:
        """Take in what was dialled; False where nothing came in time."""
        came = False
        while True:
            try:
                index, outcome = self._arrivals.get(block=block_s > 0 and not came, timeout=block_s or None)
            except queue.Empty:
                return came
            came = True
            self._dialling.discard(index)
            if isinstance(outcome, NodeWire):
                try:
                    self._nodes.meet(index, outcome.facts)
                except BaseException:
                    outcome.close()
                    raise
                self.wires[index] = outcome
                self._selector.register(outcome.sock, selectors.EVENT_READ, index)
            else:
                self._nodes.all[index].went_down(outcome)
                if not self._nodes.met and isinstance(outcome, (Misuse, Unsupported)):
                    raise outcome

    def _dial(self, index: int, timeout_s: float) -> None:
        outcome: NodeWire | HoldfastError
        try:
            outcome = NodeWire(self._nodes.all[index].target, timeout_s)
        except HoldfastError as trouble:
            outcome = trouble
        except Exception as trouble:
            outcome = Unavailable(f"no connection to Redis at {self._nodes.all[index].target.where}: {trouble}")
        with self._lock:
            if not self.closed:
                self._arrivals.put((index, outcome))
                return
        if isinstance(outcome, NodeWire):
            outcome.close()

    # -- rounds

    def exchange(self, round: Round, until: float) -> list[Any]:
        """Ask, and listen until it is enough, or ``until``."""
        nodes = self._nodes
        replies: list[Any] = [None if index in round.bodies else nodes_.NOT_ASKED for index in range(nodes.size)]
        writing = False
        for index, body in round.bodies.items():
            wire = self.wires[index]
            if wire is None:
                replies[index] = nodes.all[index].trouble
                continue
            try:
                wire.ask(body)
                writing = writing or wire.wants_to_write
            except OSError as error:
                replies[index] = self._lose(index, error)
        until = min(until, time.monotonic() + round.within_s)
        while not round.enough(replies):
            left_s = until - time.monotonic()
            if left_s <= 0:
                break
            if writing:
                writing = self._watch_writers()
            writing = self._read(left_s, replies) or writing
        for wire in self.wires:
            if wire is not None:
                wire.over()
        return replies

    def _read(self, wait_s: float, replies: list[Any]) -> bool:
        """Fill in what has come for those who were asked; True where somebody has more to be sent."""
        writing = False
        for key, events in self._selector.select(wait_s):
            index: int = key.data
            wire = self.wires[index]
            if wire is None:
                continue
            try:
                if events & selectors.EVENT_WRITE:
                    wire.flush()
                heard = wire.hear() if events & selectors.EVENT_READ else []
            except (OSError, OutcomeUnknown) as error:
                trouble = self._lose(index, error)
                if replies[index] is None:
                    replies[index] = trouble
                continue
            writing = writing or wire.wants_to_write
            for reply in heard:
                if replies[index] is None:
                    replies[index] = self._nodes.heard(reply)
        return writing

    def _watch_writers(self) -> bool:
        """Large requests, or a server that reads slowly: go on writing as it can take more."""
        any_left = False
        for index, wire in enumerate(self.wires):
            if wire is not None:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wire.wants_to_write else 0)
                any_left = any_left or wire.wants_to_write
                self._selector.modify(wire.sock, events, index)
        return any_left

    def _lose(self, index: int, error: Exception) -> OutcomeUnknown:
        wire = self.wires[index]
        assert wire is not None
        self.wires[index] = None
        self._selector.unregister(wire.sock)
        wire.close()
        trouble = OutcomeUnknown(f"Redis at {wire.where} may or may not have done it: {error}")
        if isinstance(error, TimeoutError):
            self._nodes.all[index].went_down(trouble)
        return trouble

    def close(self) -> None:
        with self._lock:
            self.closed = True
        while True:
            try:
                _, outcome = self._arrivals.get(block=False)
            except queue.Empty:
                break
            if isinstance(outcome, NodeWire):
                outcome.close()
        for wire in self.wires:
            if wire is not None:
                wire.close()
        self._selector.close()


class Alone:
    """Lets one talk about a claim run at a time."""

    def __init__(self) -> None:
        self._busy: set[str] = set()
        self._changed = threading.Condition()

    def enter(self, id: str, timeout_s: float) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: id not in self._busy, timeout_s):
                return False
            self._busy.add(id)
            return True

    def leave(self, id: str) -> None:
        with self._changed:
            self._busy.discard(id)
            self._changed.notify_all()


class QuorumLink:
    """Calls from any thread; signals through one thread per node, once somebody waits."""

    lifeline = None

    def __init__(self, targets: list[Target]) -> None:
        self._targets = targets
        self._start()

    def _start(self) -> None:
        self.inbox = secrets.token_hex(8)
        self._nodes = Nodes(self._targets)
        self._idle: deque[Fan] = deque()
        self._fans: set[Fan] = set()
        self._room = Room(MAX_FANS, self._idle, self._fans, "the quorum's nodes")
        self._alone = Alone()
        self._ears = Ears(self._targets, self.inbox)
        self._closed = False

    # -- calls

    def call(self, request: Request[T], timeout_s: float) -> T:
        return self._call(request, time.monotonic() + timeout_s)

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        until = time.monotonic() + timeout_s
        replies: list[T | Exception] = []
        for request in requests:
            try:
                replies.append(self._call(request, until, in_turn=False))
            except HoldfastError as error:
                replies.append(error)
        return replies

    def _call(self, request: Request[T], until: float, *, in_turn: bool = True) -> T:
        body = request.body
        if not body.alone:
            return request.parse(self._converse(body.talk, until, in_turn))
        if not self._alone.enter(body.alone, max(0.0, until - time.monotonic())):
            raise OutcomeUnknown(f"another {request.op} of this claim is under way")
        try:
            return request.parse(self._converse(body.talk, until, in_turn))
        finally:
            self._alone.leave(body.alone)

    def _converse(self, make: Callable[[Nodes], Talk[T]], until: float, in_turn: bool) -> T:
        fan = self._take(until, in_turn)
        nodes = self._nodes
        try:
            fan.connect(until)
            try:
                outcome = self._hold(fan, nodes.conduct(make(nodes)), until)
            except (Unavailable, OutcomeUnknown):
                if not nodes.may_admit() or time.monotonic() >= until:
                    raise
                self._hold(fan, nodes.admit(), until)
                outcome = self._hold(fan, make(nodes), until)
        except HoldfastError:
            self._give(fan)
            raise
        except BaseException:
            self._drop(fan)
            raise
        nodes.met = True
        self._give(fan)
        return outcome

    def _hold(self, fan: Fan, talk: Talk[T], until: float) -> T:
        try:
            round = next(talk)
            while True:
                round = talk.send(fan.exchange(round, until))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    # -- connections

    def _take(self, until: float, in_turn: bool) -> Fan:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        if self._closed:
            raise Misuse("this client is closed")
        rested = self._room.wait(until - time.monotonic()) if in_turn else None
        if rested is not None:
            return rested
        fan = Fan(self._nodes)
        self._fans.add(fan)
        if in_turn:
            self._room.dialled()
        return fan

    def _give(self, fan: Fan) -> None:
        if self._closed or len(self._fans) > MAX_FANS:
            self._drop(fan)
        else:
            fan.rested_at = time.monotonic()
            self._idle.append(fan)
            if self._room.queue:
                self._room.serve()

    def _drop(self, fan: Fan) -> None:
        self._fans.discard(fan)
        fan.close()
        if self._room.queue:
            self._room.serve()

    # -- signals

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        if self._closed:
            raise Misuse("this client is closed")
        return self._ears.listen(deliver, look_again, timeout_s)

    def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        raise Unsupported("the quorum engine has no groups, so nothing announces changes")

    def unwatch(self, turnstile: Turnstile) -> None:
        return

    # -- ends

    def close(self) -> None:
        self._closed = True
        while self._idle:
            try:
                self._drop(self._idle.pop())
            except IndexError:
                break
        self._ears.close()

    def abandon(self) -> None:
        """Close the child's copies of the sockets. That says nothing to the servers: the parent's stay open."""
        for fan in self._fans:
            for wire in fan.wires:
                if wire is not None:
                    wire.close()
        self._ears.abandon()
        self._start()
