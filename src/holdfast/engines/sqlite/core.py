"""What both links are made of: the file, this process's life line, its post and its vigil. Opened at the first call."""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from ... import model
from ...contract import Request
from ...errors import HoldfastError, Misuse, Unavailable
from ...model import Signal, Turnstile
from . import lifeline, signals
from .file import file_mode, live_folder
from .lifeline import Lifeline, Pulses
from .listener import Listener
from .signals import Post
from .store import NOWHERE, Store
from .turnstile import Desk
from .vigil import Vigil

T = TypeVar("T")
Clock = Callable[[], float]

log = logging.getLogger("holdfast.sqlite")

CLOSE_S = 1.0


def transaction(op: str, body: Callable[[Desk], T]) -> Request[T]:
    """A request that is this one transaction."""
    return Request(op, body, _as_it_is)


def _as_it_is(reply: T) -> T:
    return reply


class Core:
    """One user of the file. ``prefix`` comes before every name; ``clock`` in seconds, ``tokens_us`` in µs."""

    def __init__(self, path: Path, prefix: str, clock: Clock, tokens_us: Clock) -> None:
        self.inbox = secrets.token_hex(6)
        self._path = path
        self._prefix = prefix
        self._clock = clock
        self._tokens_us = tokens_us
        self._folder = live_folder(path)
        self._store = Store(path)
        self._opening = threading.Lock()
        self._lifeline: Lifeline | None = None
        self._post: Post | None = None
        self._watched: set[str] = set()
        self._file = NOWHERE
        self._closed = False
        self._is_alive = Pulses(self._folder).is_alive
        self.listener = Listener(Vigil(self._is_alive), lambda: self._closed)

    @property
    def lifeline(self) -> int | None:
        return None if self._lifeline is None else self._lifeline.fd

    @property
    def is_open(self) -> bool:
        return self._post is not None and self._store.is_open

    # -- calls

    def call(self, request: Request[T], timeout_s: float, *, wait: bool = True) -> T:
        post = self._post or self._open(timeout_s)
        reply = self._transact(request.body, timeout_s, post, wait=wait)
        if self._store.file != self._file:
            self._settle(post)
        return request.parse(reply)

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        until = time.monotonic() + timeout_s
        replies: list[T | Exception] = []
        for request in requests:
            try:
                replies.append(self.call(request, max(0.0, until - time.monotonic())))
            except HoldfastError as error:
                replies.append(error)
        return replies

    def _transact(self, body: Callable[[Desk], T], timeout_s: float, post: Post, *, wait: bool = True) -> T:
        desk: Desk | None = None

        def work(db: sqlite3.Connection) -> T | Misuse:
            nonlocal desk
            desk = self._desk(db)
            try:
                return body(desk)
            except Misuse as refusal:  # what was swept before it stays swept
                return refusal

        try:
            reply = self._store.run(work, timeout_s, wait=wait)
            if desk is not None and (desk.ahead or desk.outbox):
                self._finish(desk, post)
        except BaseException:
            if desk is not None and desk.outbox:
                self._hint(desk, post)
            raise
        if isinstance(reply, Misuse):
            raise reply
        return reply

    def _desk(self, db: sqlite3.Connection) -> Desk:
        return Desk(db, self._prefix, self.inbox, self._clock(), self._tokens_us, self._is_alive)

    # -- after the commit

    def _finish(self, desk: Desk, post: Post) -> None:
        """Note who is ahead of ours, and tell those whom it concerns."""
        vigil = self.listener.vigil
        for address, waiter, inboxes in desk.ahead:
            if inboxes is None:
                vigil.forget(waiter)
            elif waiter.kind != model.CHANGED or waiter.key in self._watched:
                vigil.expect(address, waiter, inboxes)
                self.listener.rouse()
        for inbox, told in desk.outbox.items():
            if not self._send(post, inbox, told):
                self._unwatch_for(inbox, [signal.key for signal in told if signal.kind == model.CHANGED])

    def _hint(self, desk: Desk, post: Post) -> None:
        """It is not known whether this was committed, so nobody is told to be admitted, only to look."""
        for inbox, told in desk.outbox.items():
            self._send(post, inbox, [s if s.kind == model.CHANGED else Signal(model.NUDGE, s.key) for s in told])

    def _send(self, post: Post, inbox: str, told: Sequence[Signal]) -> bool:
        """False where nobody reads that inbox any more."""
        if inbox == self.inbox:
            for signal in told:
                self.listener.receive(signal)
            return True
        try:
            return post.send(inbox, told)
        except OSError as error:
            log.debug("a signal to %s was not sent: %s", inbox, error)
            return True

    def _unwatch_for(self, inbox: str, addresses: Iterable[str]) -> None:
        """For another who is gone. If the file is busy, the next signal to it finds that out again."""

        def work(db: sqlite3.Connection) -> None:
            for address in addresses:
                self._desk(db).unwatch(address, inbox)

        with contextlib.suppress(Unavailable):
            self._store.run(work, 0.0, wait=False)

    # -- watching

    def watch(self, turnstile: Turnstile) -> Request[None]:
        self._watched.add(turnstile.address)
        return transaction("watch", lambda desk: desk.watch(turnstile.address))

    def unwatch(self, turnstile: Turnstile) -> Request[None]:
        self._watched.discard(turnstile.address)
        self.listener.vigil.forget(Signal(model.CHANGED, turnstile.address))
        return transaction("unwatch", lambda desk: desk.unwatch(turnstile.address, self.inbox))

    # -- opening and closing

    def opened(self, timeout_s: float) -> Post:
        """For who listens. Where all was removed under us, a call makes it anew, though not before its regular look."""
        post = self._post or self._open(timeout_s)
        if not self._folder.is_dir():
            self.call(transaction("listen", lambda desk: None), timeout_s)
        return post

    def _open(self, timeout_s: float) -> Post:
        with self._opening:
            if self._post is not None:
                return self._post
            if self._closed:
                raise Unavailable("this link is closed")
            self._store.run(_open_it, timeout_s)
            try:
                mode = file_mode(self._path)
                if self._lifeline is None:
                    self._lifeline = Lifeline(self._folder, self.inbox, mode)
                post = Post(self._folder, self.inbox, mode)
                self._file = self._store.file
                with contextlib.suppress(Unavailable):
                    for inbox in lifeline.stale(self._folder):
                        self._bury(inbox, timeout_s, post)
            except OSError as error:
                raise Unavailable(f"{self._folder} cannot be used: {error.strerror}") from error
            self._post = post
            return post

    def _settle(self, post: Post) -> None:
        """Somebody removed the file, perhaps with all that stood beside it: be found beside the new one as well."""
        with self._opening:
            if self._file == self._store.file:
                return
            self._file = self._store.file
            try:
                mode = file_mode(self._path)
                if self._lifeline is not None and not self._lifeline.stands:
                    self._lifeline.close(remove=False)
                    self._lifeline = Lifeline(self._folder, self.inbox, mode)
                if post.receiver is not None and not post.stands:
                    self.listener.rebind(post)
            except OSError as error:
                log.warning("%s cannot be used: %s", self._folder, error.strerror)
        for address in list(self._watched):
            self._transact(functools.partial(Desk.watch, turnstile_address=address), CLOSE_S, post)

    def _bury(self, inbox: str, timeout_s: float, post: Post) -> None:
        """Remove what a process that ended left in the file and beside it."""
        self._transact(lambda desk: desk.bury([inbox]), timeout_s, post)
        signals.remove(self._folder, inbox)

    def close(self) -> None:
        self._closed = True
        self.listener.rouse()
        with self._opening:
            post, self._post = self._post, None
            if self._lifeline is not None and post is not None:
                try:
                    self._bury(self.inbox, CLOSE_S, post)
                except HoldfastError:  # the next process to open the file does it
                    self._lifeline.close(remove=False)
                else:
                    self._lifeline.close(remove=True)
                post.close()
            self._store.close(CLOSE_S)


def _open_it(_: sqlite3.Connection) -> None:
    return None
