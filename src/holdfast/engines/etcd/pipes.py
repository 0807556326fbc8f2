"""Connections to one member: one that a thread uses alone, and one that all tasks of an event loop share."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from .http2 import Call, Connection, NotHttp2
from .members import Members
from .messages import Ask
from .wire import reply_of

KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))


def settle(sock: socket.socket) -> None:
    """Send at once; notice in some seconds that the other machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def begin(connection: Connection, request: Ask, call: Call, login: bytes) -> Call:
    connection.begin(call, request.path, login)
    last = len(request.messages) - 1
    for place, message in enumerate(request.messages):
        connection.send(call, message, last=place == last)
    return call


class Wire:
    """One connection, used by one thread at a time."""

    def __init__(self, members: Members, timeout_s: float) -> None:
        self.members, self.member = members, members.at
        self.rested_at = 0.0
        self.closed = False
        self._limit_s = -1.0
        host, tls = members.target.hosts[self.member], members.target.tls
        sock: socket.socket | None = None
        try:
            sock = socket.create_connection(host, timeout_s)
            settle(sock)
            self.sock = sock if tls is None else tls.wrap_socket(sock, server_hostname=host[0])
        except OSError as error:
            if sock is not None:
                sock.close()
            raise members.not_connected(self.member, error) from error
        self._connection = Connection(members.names[self.member].encode(), tls is not None)

    def is_fresh(self) -> bool:
        """Whether the server has not closed it while it rested."""
        self._limit_s = -1.0
        try:
            self.sock.settimeout(0)
            while data := self.sock.recv(65536):
                self._connection.receive(data)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return not self._connection.closing
        except (OSError, NotHttp2):
            return False
        return False

    def exchange(self, requests: Sequence[Ask], timeout_s: float) -> list[Any]:
        """Send all, and read the answer to each."""
        connection, sock, login = self._connection, self.sock, self.members.login
        if not timeout_s / 2 < self._limit_s <= timeout_s * 1.05:  # a new limit costs a system call
            self._limit_s = timeout_s
            sock.settimeout(timeout_s)
        calls = [begin(connection, request, Call(), login) for request in requests]
        trouble: Exception | None = None
        until = 0.0
        try:
            self._send()
            while not all(call.ended for call in calls):
                data = sock.recv(65536)
                if not data:
                    raise ConnectionError("it closed the connection")
                connection.receive(data)
                if connection.urgent:
                    self._send()
                if not until:
                    until = time.monotonic() + timeout_s
                elif time.monotonic() >= until:
                    raise TimeoutError
        except (OSError, NotHttp2) as error:
            trouble = error
            self.close()
        if connection.closing:
            self.close()
        return self._replies(requests, calls, trouble)

    def _send(self) -> None:
        connection = self._connection
        out, connection.urgent = bytes(connection.out), False
        connection.out.clear()
        self.sock.sendall(out)

    def _replies(self, requests: Sequence[Ask], calls: list[Call], trouble: Exception | None) -> list[Any]:
        target, name = self.members.target, self.members.names[self.member]
        return [reply_of(request, call, trouble, target, name) for request, call in zip(requests, calls, strict=True)]

    def close(self) -> None:
        self.closed = True
        self.sock.close()


class Pipe(asyncio.Protocol):
    """One connection for all tasks: each waits for its own answers."""

    def __init__(self, members: Members) -> None:
        self.members, self.member = members, members.at
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard_at = 0.0
        self.transport: Any = None
        tls = members.target.tls is not None
        self._connection = Connection(members.names[self.member].encode(), tls)
        self._trouble: Exception | None = None

    @property
    def closed(self) -> bool:
        """Whether it takes no new calls."""
        return self.lost.done() or self._connection.closing or self.transport.is_closing()

    @property
    def pongs(self) -> int:
        return self._connection.pongs

    # -- the protocol's side

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        try:
            self._connection.receive(data)
        except NotHttp2 as trouble:
            self.fail(trouble)
        if self._connection.urgent:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._trouble = self._trouble or exc or ConnectionError("it closed the connection")
        for call in list(self._connection.calls.values()):
            call.end()
        self._connection.calls.clear()
        if not self.lost.done():
            self.lost.set_result(None)

    def _send(self) -> None:
        connection = self._connection
        if connection.out and not self.transport.is_closing():
            self.transport.write(bytes(connection.out))
        connection.out.clear()
        connection.urgent = False

    # -- our side

    async def exchange(self, requests: Sequence[Ask], timeout_s: float) -> list[Any]:
        """Send all, and wait for the answer to each."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left = len(requests)

        def ended(call: Call) -> None:
            nonlocal left
            left -= 1
            if not left and not done.done():
                done.set_result(None)

        sent_at = time.monotonic()
        login = self.members.login
        calls = [begin(self._connection, request, Call(ended), login) for request in requests]
        self._send()
        trouble: Exception | None = None
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError as error:
            trouble = error
            if self.heard_at < sent_at:  # not a word: it is not this call alone
                self.fail(error)
        finally:
            for call in calls:
                if not call.ended:
                    self.cancel(call)
        target, name = self.members.target, self.members.names[self.member]
        trouble = trouble or self._trouble
        return [reply_of(request, call, trouble, target, name) for request, call in zip(requests, calls, strict=True)]

    def open(self, path: bytes, heard: Callable[[bytes], None], ended: Callable[[Call], None]) -> Call:
        """A call that goes on: `send` tells it more."""
        call = Call(ended, heard)
        self._connection.begin(call, path, self.members.login)
        self._send()
        return call

    def send(self, call: Call, message: bytes) -> None:
        self._connection.send(call, message, last=False)
        self._send()

    def cancel(self, call: Call) -> None:
        self._connection.cancel(call)
        self._send()

    def ping(self) -> None:
        self._connection.ping()
        self._send()

    def fail(self, trouble: Exception) -> None:
        self._trouble = self._trouble or trouble
        self.transport.abort()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def abandon(self) -> None:
        """Let go of a forked child's copy of the socket, and tell neither loop nor selector: they are shared."""
        if self.transport is not None and not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, sock.fileno(), inheritable=False)
            os.close(null)
        _abandoned.append(self)


_abandoned: list[Pipe] = []
"""Kept, so that no destructor in a forked child reaches for the parent's event loop."""


async def dial(members: Members, timeout_s: float) -> Pipe:
    """A new connection to the member that is asked now."""
    member = members.at
    host, tls = members.target.hosts[member], members.target.tls
    try:
        async with asyncio.timeout(timeout_s):
            _, pipe = await asyncio.get_running_loop().create_connection(
                lambda: Pipe(members), *host, ssl=tls, server_hostname=host[0] if tls else None
            )
    except OSError as error:  # TimeoutError is one
        raise members.not_connected(member, error) from error
    settle(cast(socket.socket, pipe.transport.get_extra_info("socket")))
    return pipe
