"""How signals come in: on an event loop, or to a waiting thread that reads them itself, or to a thread of their own.

A thread that reads for itself is awake with the signal; one that another wakes has to wait for two wake-ups. So the
listener's own thread reads only while nobody else does. Meanwhile it keeps the vigil, and looks every tick whether it
should: what comes for those who do not wait may lie for so long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import select
import socket
import threading
import time
from collections.abc import Callable

from ... import model
from ...contract import Deliver
from ...errors import Unavailable
from ...model import Signal
from .signals import FULL, Post
from .vigil import TICK_S, Vigil

log = logging.getLogger("holdfast.sqlite")

IDLE_TICKS = 50
"""So long after the last waiter the thread goes on ticking, rather than be woken by the next one."""

DATAGRAM_BYTES = 1 << 16


class Listener:
    """Delivers what comes for one inbox. Until it is started, signals go nowhere."""

    def __init__(self, vigil: Vigil, is_closed: Callable[[], bool]) -> None:
        self.vigil = vigil
        self._is_closed = is_closed
        self._post: Post | None = None
        self._deliver: Deliver | None = None
        self._look_again: Callable[[], None] | None = None
        self._binding = threading.Lock()
        self._asleep = False
        self._in_a_row = 0  # datagrams read since none was there
        self._reader: object = None  # who waits and reads; set and cleared by it, so an interrupt leaves no lock behind
        self._reader_thread = 0
        self._reader_wakes = False
        self._watched: socket.socket | None = None  # what it sleeps on
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._read_by_loop: socket.socket | None = None
        self._wake: Callable[[], None] = lambda: None
        self._start: Callable[[socket.socket], object] = lambda receiver: None

    def bind(self, post: Post, deliver: Deliver, look_again: Callable[[], None]) -> socket.socket | None:
        """A socket that from now on receives; None where there is one already."""
        if self._post is not None:
            return None
        with self._binding:
            self._deliver, self._look_again = deliver, look_again
            if post.receiver is not None:
                return None
            try:
                receiver = post.bind()
            except OSError as error:  # its folder was removed
                raise Unavailable(f"signals cannot be received: {error.strerror}") from error
            self._post = post
            return receiver

    def rebind(self, post: Post) -> None:
        """The inbox was removed with its folder: receive at a new one, and look at what was said in between."""
        old = post.receiver
        self._start(post.bind())
        if old is not None:
            with contextlib.suppress(OSError):
                old.shutdown(socket.SHUT_RD)  # its reader wakes, and closes it
        if self._look_again is not None:
            self._look_again()

    def receive(self, signal: Signal) -> None:
        deliver = self._deliver
        if deliver is not None:
            if signal.kind == model.ADMITTED:
                self.vigil.forget(Signal(model.NUDGE, signal.key))
            deliver(signal)

    def rouse(self) -> None:
        """There is something to keep an eye on, or to stop."""
        if self._asleep:
            self._wake()

    def take(self, receiver: socket.socket) -> bool:
        """Deliver one datagram; False where none is there."""
        assert self._post is not None
        try:
            data = receiver.recv(DATAGRAM_BYTES)
        except OSError:
            full, self._in_a_row = self._in_a_row >= FULL, 0
            if full and self._look_again is not None:
                self._look_again()
            return False
        self._in_a_row += 1
        for signal in self._post.read(data):
            self.receive(signal)
        return True

    def _take_all(self, receiver: socket.socket) -> None:
        while self._reads(receiver) and self.take(receiver):  # one that was shut down gives empty ones on some systems
            pass

    def _tick(self) -> None:
        for signal in self.vigil.tick():
            self.receive(signal)

    # -- by a thread that waits (`worlds.threads.Reading`)

    def begin(self, reader: object) -> bool:
        """From now on ``reader`` reads; False where another does, or where a loop does."""
        if self._post is None or self._read_by_loop is not None:
            return False
        thread = threading.get_ident()  # its own signal handler may wait in the middle of its waiting
        if self._reader is not None and self._reader_thread != thread:
            return False
        self._reader, self._reader_thread = reader, thread
        return True

    def end(self, reader: object) -> None:
        if self._reader is reader:
            self._reader = None
            if self._asleep or self.vigil.needed:  # others wait as well: the thread reads for them
                self._bell.put(None)

    def wait(self, timeout_s: float) -> None:
        assert self._post is not None
        self._watched = receiver = self._post.receiver
        try:
            if receiver is None or self._is_closed():
                time.sleep(min(timeout_s, TICK_S))
            elif receiver is self._post.receiver and not self.take(receiver):  # else it may be closed already
                _readable(receiver)(timeout_s)
                self._reader_wakes = True
                self.take(receiver)
        finally:
            self._watched = None
            self._reader_wakes = False

    def interrupt(self) -> None:
        assert self._post is not None
        if not self._reader_wakes:  # else it looks at its mailbox next
            self._post.wake()

    # -- in a thread of its own

    def run_in_thread(self, receiver: socket.socket) -> None:
        self._wake, self._start = self._wake_thread, self.run_in_thread
        threading.Thread(target=self._run, args=(receiver,), name="holdfast-signals", daemon=True).start()

    def _wake_thread(self) -> None:
        self._bell.put(None)
        self.interrupt()

    def _run(self, receiver: socket.socket) -> None:
        readable = _readable(receiver)
        idle = 0
        next_tick = 0.0
        with receiver:  # closed by none but its reader: a descriptor must not go while it is waited on
            while not self._is_closed() and self._reads(receiver):
                idle = 0 if self.vigil.needed else idle + 1
                self._asleep = idle > IDLE_TICKS
                if self._asleep and (self.vigil.needed or self._is_closed()):
                    continue  # that came in between, and did not see us asleep
                pause_s = None if self._asleep else TICK_S
                try:
                    if self._reader is not None:
                        with contextlib.suppress(queue.Empty):
                            self._bell.get(timeout=pause_s)
                    elif readable(pause_s) and self._reader is None and self._reads(receiver):
                        self._take_all(receiver)
                        if self._reader is not None:  # since then, and what was to wake it may be among those
                            self.interrupt()
                    if not self._asleep and (now := time.monotonic()) >= next_tick:
                        next_tick = now + TICK_S * 0.9
                        self._tick()
                except Exception:
                    log.exception("a signal could not be delivered")
                    time.sleep(TICK_S)
            while self._watched is receiver:
                time.sleep(TICK_S)

    def _reads(self, receiver: socket.socket) -> bool:
        """Whether this is where signals come in now."""
        return self._post is not None and self._post.receiver is receiver

    # -- on a loop

    def run_on(self, loop: asyncio.AbstractEventLoop, receiver: socket.socket) -> bool:
        """False where this loop does not read sockets of ours."""
        try:
            loop.add_reader(receiver, self._readable, receiver)
        except NotImplementedError:
            return False
        self._read_by_loop = receiver
        self._wake = lambda: _soon(loop, self._start_ticking)
        self._start = lambda fresh: _soon(loop, lambda: self._change_on(loop, fresh))
        self._asleep = True
        if self.vigil.needed:
            self._start_ticking()
        return True

    def _change_on(self, loop: asyncio.AbstractEventLoop, fresh: socket.socket) -> None:
        self.leave(loop)
        self.run_on(loop, fresh)

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read no more on this loop."""
        receiver, self._read_by_loop = self._read_by_loop, None
        if receiver is not None:
            loop.remove_reader(receiver)
            receiver.close()

    def _readable(self, receiver: socket.socket) -> None:
        self._take_all(receiver)

    def _start_ticking(self) -> None:
        if self._asleep:
            self._asleep = False
            self._tick_and_again()

    def _tick_and_again(self) -> None:
        self._tick()
        self._asleep = True
        if self.vigil.needed and not self._is_closed():  # asked last: whoever comes from here on sees us asleep
            self._asleep = False
            asyncio.get_running_loop().call_later(TICK_S, self._tick_and_again)


def _readable(receiver: socket.socket) -> Callable[[float | None], object]:
    """Waits for so many seconds at most, and says whether something is there to be read."""
    if not hasattr(select, "poll"):
        return lambda timeout_s: select.select([receiver], [], [], timeout_s)[0]
    poll = select.poll()
    poll.register(receiver, select.POLLIN)
    return lambda timeout_s: poll.poll(None if timeout_s is None else math.ceil(timeout_s * 1000))


def _soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(callback)
