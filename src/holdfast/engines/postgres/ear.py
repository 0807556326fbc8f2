"""The connection that listens: kept by a thread of its own, watched for silence, and made again whenever it breaks."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from ... import model
from ...contract import Deliver
from ...errors import HoldfastError, Misuse, Unavailable, Unsupported
from ...model import Signal
from .dial import wait_for
from .target import Postgres
from .wire import Wire, abandon

log = logging.getLogger("holdfast.postgres")

PING_S = 5.0
"""How long the signals' connection may be silent before it is asked, and how long the answer may take."""

CONNECT_S = 5.0
"""How long it may take to be made again; calls bring their own time."""

Knock = Callable[[str | None, float], bool]
"""Signals a channel, if one is given, within so many seconds; whether calls lead through a pooler."""


def signals_of(payload: str, address: str | None) -> list[Signal]:
    """What a notification means: one of the inbox (address ''), or of a watched turnstile."""
    if address:
        return [Signal(model.CHANGED, address)]
    try:
        key = bytes.fromhex(payload[1:]).decode()
    except ValueError:  # not ours
        return []
    kinds = {"a": [model.ADMITTED], "b": [model.WANTED, model.ADMITTED], "w": [model.WANTED]}.get(payload[:1], [])
    return [Signal(kind, key) for kind in kinds]


class Ear:
    """The connection that listens. Once it runs, only its own thread uses it: others leave word and wake it."""

    def __init__(self, target: Postgres, inbox: str) -> None:
        self.target = target
        self.deliver: Deliver | None = None
        self.look_again: Callable[[], None] = lambda: None
        self.broke: Callable[[], None] = lambda: None
        self.wire: Wire | None = None
        self.up = threading.Event()
        """It is connected, as far as its thread knows."""
        self._inbox = inbox
        self._channels: dict[str, str] = {f"holdfast_{inbox}": ""}
        self._confirmed: set[str] = set()
        self._changed = threading.Condition()
        self._knocked = threading.Event()
        self._closing = threading.Event()
        self._word, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="holdfast-postgres-signals", daemon=True)

    @property
    def channel(self) -> str:
        return f"holdfast_{self._inbox}"

    # -- what others call

    def start(self, knock: Knock, timeout_s: float) -> None:
        """Connect; returns once no signal can be missed. Raises as calls do."""
        until = time.monotonic() + timeout_s
        self._connect(until)
        self._thread.start()
        if self.target.listens_elsewhere:
            knock(self.channel, max(0.001, until - time.monotonic()))
            if not self._knocked.wait(max(0.0, until - time.monotonic())):
                raise Misuse(
                    f"what is signalled at {self.target.where} is not heard at {self.target.listener.where}: "
                    "listen_url= leads to the same database, past any pooler in transaction mode"
                )

    def add(self, channel: str, address: str, timeout_s: float) -> None:
        """Listen on one more. Returns once the server has confirmed it."""
        with self._changed:
            self._channels[channel] = address
        self.wake()
        with self._changed:
            if not self._changed.wait_for(lambda: channel in self._confirmed, timeout_s):
                raise Unavailable(f"PostgreSQL at {self.target.where} did not confirm that it signals {address}")

    def remove(self, channel: str) -> None:
        with self._changed:
            self._channels.pop(channel, None)
        self.wake()

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake
            self._wake.send(b"\0")

    def close(self) -> None:
        self._closing.set()
        self.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(PING_S)
        elif not self._thread.ident:
            self._end()

    def abandon(self) -> None:
        if self.wire is not None and not self.wire.closed:
            abandon(self.wire)
        self._word.close()
        self._wake.close()

    # -- its thread

    def _connect(self, until: float) -> None:
        listener = self.target.listener
        made = listener.make() if listener.make is not None and not listener.is_asynchronous else None
        if listener.is_asynchronous:
            raise Unsupported(
                "signals need a connection that a thread can make: give a URL, a pool, a plain function, or listen_url="
            )
        wire = Wire(listener, max(0.05, until - time.monotonic()), made)
        try:
            if self.target.ends_with_connection:
                if wire.pooled:
                    raise Unsupported(
                        "ends_with_connection needs a connection to the server itself: give one as listen_url="
                    )
                wire.ask(f"SELECT \"{self.target.schema}\".tie('{self._inbox}')", until)
            with self._changed:
                self._confirmed.clear()
            self._update(wire, until)
        except BaseException:
            wire.close()
            raise
        self.wire = wire
        self.up.set()

    def _update(self, wire: Wire, until: float) -> None:
        """Listen to what is wanted, and no more to what is not."""
        with self._changed:
            new, old = self._channels.keys() - self._confirmed, self._confirmed - self._channels.keys()
        if new or old:
            commands = [*(f'LISTEN "{one}"' for one in new), *(f'UNLISTEN "{one}"' for one in old)]
            wire.ask("; ".join(commands), until)
            with self._changed:
                self._confirmed = (self._confirmed | new) - old
                self._changed.notify_all()

    def _run(self) -> None:
        pause_s = 0.02
        while not self._closing.is_set():
            try:
                self._hear()
            except (HoldfastError, psycopg.Error, OSError) as trouble:
                log.info("signals are connected again after: %s", trouble)
            if self._closing.is_set():
                break
            self.up.clear()
            if self.wire is not None:
                self.wire.close()
            self.broke()
            while not self._closing.is_set():
                try:
                    self._connect(time.monotonic() + CONNECT_S)
                    pause_s = 0.02
                    self.look_again()
                    break
                except Exception as trouble:
                    log.debug("signals are not connected yet: %s", trouble)
                    self._closing.wait(pause_s * random.uniform(0.5, 1))
                    pause_s = min(2.0, pause_s * 2)
        self._end()

    def _hear(self) -> None:
        wire = self.wire
        assert wire is not None
        pg = wire.pg
        while not self._closing.is_set():
            for note in iter(pg.notifies, None):
                self._heard(note)
            readable = wait_for(time.monotonic() + PING_S, wire.fileno, self._word.fileno())
            if self._word.fileno() in readable:
                self._word.recv(4096)
                self._update(wire, time.monotonic() + CONNECT_S)
            if wire.fileno in readable:
                pg.consume_input()
            elif not readable:
                wire.ask("SELECT 1", time.monotonic() + PING_S)

    def _heard(self, note: Any) -> None:
        self._knocked.set()
        if self.deliver is not None:
            for signal in signals_of(note.extra.decode(), self._channels.get(note.relname.decode())):
                self.deliver(signal)

    def _end(self) -> None:
        if self.wire is not None:
            self.wire.close()
        self._word.close()
        self._wake.close()
