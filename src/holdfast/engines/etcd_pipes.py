"""Connections to one member: one that a thread uses alone, and one that a task does."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ..errors import HoldfastError, OutcomeUnknown, Unavailable, Unsupported
from .etcd_members import Members
from .etcd_wire import NEEDED, Answers, Ask, NoHttp, pack, read

KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
"""A connection that waits for events would never notice that the other end is gone."""


def settle(sock: socket.socket) -> None:
    """Send at once; notice in some seconds that the other machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def not_connected(members: Members, member: int, error: Exception) -> HoldfastError:
    name = members.names[member].decode()
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unavailable(f"the certificate of etcd at {name} is not trusted: {error.verify_message}; give its ca=")
    if isinstance(error, ssl.SSLError):
        return Unavailable(f"no TLS with etcd at {name}: {error.reason or error}")
    why = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return Unavailable(f"no connection to etcd at {name}: {why}")


def replies_of(
    members: Members, member: int, requests: Sequence[Ask], answers: list[tuple[int, bytes]], trouble: Exception | None
) -> list[Any]:
    """What became of each request; those that were not answered are unknown, or simply not there where they read."""
    replies = [
        read(answer, members.target, wrote=not request.reads)
        for request, answer in zip(requests, answers, strict=False)
    ]
    for request in requests[len(answers) :]:
        why = "no answer in time" if isinstance(trouble, TimeoutError) else str(trouble) or type(trouble).__name__
        where = f"etcd at {members.names[member].decode()}"
        if isinstance(trouble, NoHttp):
            replies.append(Unsupported(f"{where} is none: {trouble}; {NEEDED}"))
        elif request.reads:
            replies.append(Unavailable(f"{where} did not answer: {why}"))
        else:
            replies.append(OutcomeUnknown(f"{where} may or may not have done it: {why}"))
    return replies


class Wire:
    """One connection, used by one thread at a time."""

    def __init__(self, members: Members, timeout_s: float) -> None:
        self.members, self.member = members, members.at
        self.rested_at = 0.0
        self.closed = False
        self._limit_s = -1.0
        host = members.target.hosts[self.member]
        try:
            self.sock = socket.create_connection(host, timeout_s)
            settle(self.sock)
            if (tls := members.target.tls) is not None:
                self.sock = tls.wrap_socket(self.sock, server_hostname=host[0])
        except OSError as error:
            if hasattr(self, "sock"):
                self.sock.close()
            raise not_connected(members, self.member, error) from error

    def is_fresh(self) -> bool:
        """Nothing came while it rested, so the server has not closed it."""
        self._limit_s = -1.0
        try:
            self.sock.settimeout(0)
            self.sock.recv(1)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def exchange(self, requests: Sequence[Ask], timeout_s: float) -> list[Any]:
        """Send all, and read the answer to each."""
        members = self.members
        if not timeout_s / 2 < self._limit_s <= timeout_s * 1.05:  # a new limit costs a system call
            self._limit_s = timeout_s
            self.sock.settimeout(timeout_s)
        host, login = members.names[self.member], members.login
        answers: list[tuple[int, bytes]] = []
        trouble: Exception | None = None
        reader = Answers()
        until = 0.0
        try:
            self.sock.sendall(b"".join([pack(request, host, login) for request in requests]))
            while len(answers) < len(requests):
                data = self.sock.recv(65536)
                if not data:
                    raise ConnectionError("it closed the connection")
                answers += reader.feed(data)
                now = time.monotonic()
                until = until or now + timeout_s
                if now >= until and len(answers) < len(requests):
                    raise TimeoutError
        except (OSError, NoHttp) as error:
            trouble = error
            self.close()
        return replies_of(members, self.member, requests, answers, trouble)

    def close(self) -> None:
        self.closed = True
        self.sock.close()


class AsyncWire:
    """One connection, used by one task at a time."""

    def __init__(self, members: Members) -> None:
        self.members, self.member = members, members.at
        self.closed = False
        self.rested_at = 0.0
        self._reader: Any = None
        self._writer: Any = None

    async def connect(self, timeout_s: float) -> None:
        host, tls = self.members.target.hosts[self.member], self.members.target.tls
        try:
            async with asyncio.timeout(timeout_s):
                self._reader, self._writer = await asyncio.open_connection(
                    *host, ssl=tls, server_hostname=host[0] if tls else None, limit=1 << 22
                )
            settle(self._writer.get_extra_info("socket"))
        except (OSError, TimeoutError) as error:
            self.closed = True
            raise not_connected(self.members, self.member, error) from error

    def is_fresh(self) -> bool:
        return not self._reader.at_eof()

    async def exchange(self, requests: Sequence[Ask], timeout_s: float) -> list[Any]:
        """Send all, and read the answer to each. A task that is cancelled meanwhile takes the connection with it."""
        members = self.members
        host, login = members.names[self.member], members.login
        answers: list[tuple[int, bytes]] = []
        trouble: Exception | None = None
        reader = Answers()
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(b"".join([pack(request, host, login) for request in requests]))
                while len(answers) < len(requests):
                    data = await self._reader.read(65536)
                    if not data:
                        raise ConnectionError("it closed the connection")
                    answers += reader.feed(data)
        except (OSError, NoHttp) as error:  # TimeoutError is an OSError
            trouble = error
            self.close()
        except BaseException:
            self.close()
            raise
        return replies_of(members, self.member, requests, answers, trouble)

    async def stream(self, request: Ask) -> AsyncIterator[Any]:
        """The lines of an answer that goes on."""
        members = self.members
        self._writer.write(pack(request, members.names[self.member], members.login))
        reader = Answers(streams=True)
        while data := await self._reader.read(65536):
            for answer in reader.feed(data):
                yield read((answer[0], answer[1] + b"\n" if answer[0] == 200 else answer[1]), members.target, False)

    def close(self) -> None:
        self.closed = True
        if self._writer is not None:
            self._writer.transport.abort()

    def abandon(self) -> None:
        """Let go of a forked child's copy of the socket, and tell neither loop nor selector: they are shared."""
        sock = self._writer.get_extra_info("socket") if self._writer is not None and not self.closed else None
        if sock is not None and sock.fileno() >= 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, sock.fileno(), inheritable=False)
            os.close(null)
        _abandoned.append(self)


_abandoned: list[AsyncWire] = []
"""Kept, so that no destructor in a forked child reaches for the parent's event loop."""
