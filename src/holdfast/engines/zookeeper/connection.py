"""The connection to one ZooKeeper server: kazoo's, which writes from the asking thread and reads as much as there is.

kazoo's own writes each request by itself from its thread, after a wake-up through a pipe, and reads each reply in two
pieces. Here what was asked together is one write of whoever asks.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

# kazoo has no types
_connection: Any = import_module("kazoo.protocol.connection")
_serialization: Any = import_module("kazoo.protocol.serialization")


class Slot:
    """Where one reply is put."""

    __slots__ = ("_index", "_put")

    def __init__(self, put: Callable[[int, Any], None], index: int) -> None:
        self._put = put
        self._index = index

    def set(self, value: Any = None) -> None:
        self._put(self._index, value)

    set_exception = set


class Buffered:
    """A non-blocking socket that reads as much as there is; like one of TLS it says what is `pending`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._read = b""
        self._at = 0
        self.fileno, self.setblocking, self.getpeername = sock.fileno, sock.setblocking, sock.getpeername
        self.send, self.close = sock.send, sock.close

    def pending(self) -> int:
        return len(self._read) - self._at

    def recv(self, count: int) -> bytes:
        if self._at >= len(self._read):
            self._read, self._at = self.sock.recv(1 << 16), 0
        piece = self._read[self._at : self._at + count]
        self._at += len(piece)
        return piece

    def frame(self) -> bytes | None:
        """The next message, if all of it has come."""
        if self._at >= len(self._read):
            try:
                self._read, self._at = self.sock.recv(1 << 16), 0
            except BlockingIOError:
                return None
        if len(self._read) - self._at < 4:
            return None
        (size,) = struct.unpack_from(">i", self._read, self._at)
        end = self._at + 4 + size
        if len(self._read) < end:
            return None
        frame = self._read[self._at + 4 : end]
        self._at = end
        return frame


class Connection(_connection.ConnectionHandler):  # type: ignore[misc]
    """kazoo's, which whoever asks may write to, and which knows more ways in which a server greets.

    One that is just starting may take a connection and never answer on it. kazoo would wait for as long as a session
    lasts, and cost its leases; here it has a share of that, and twice as much each time: it may only be slow.

    One that knows less than we saw hangs up. It may be behind, or it has lost its data, and then would do so for ever:
    so next it is asked about our session as if we had seen nothing. Only that the session is over is believed.
    """

    client: Any
    silence_s = 1.0
    granted_s = 0.0
    _patience_s = 0.0
    _refused = False  # a server hung up when it was greeted
    _socket: Any
    _read_sock: Any
    _write_sock: Any
    _xid: int

    def __init__(self, *args: Any, **options: Any) -> None:
        base: Any = super()
        base.__init__(*args, **options)
        self._writing = threading.Lock()
        self._open = False  # whoever asks may write to the socket himself
        self._rest = b""  # of what was written, what the socket had no room for

    def post(self, asked: Sequence[tuple[Any, Slot]]) -> None:
        """Send these requests, in this order: at once, or by the connection's thread where that would block."""
        with self._writing:
            queue = self.client._queue
            if self._open and not queue and not self._rest:
                self._write_now(asked)
                if self._rest:
                    self._wake(1)
            else:
                queue.extend(asked)
                self._wake(len(asked))

    def _wake(self, count: int) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full of what wakes
            self._write_sock.send(b"\0" * count)

    def _write_now(self, asked: Sequence[tuple[Any, Slot]]) -> None:
        frames: list[bytes] = []
        for request, slot, body in [(request, slot, bytes(request.serialize())) for request, slot in asked]:
            self._xid = self._xid % 0x7FFFFFFF + 1
            frames.append(struct.pack(">iii", len(body) + 8, self._xid, request.type) + body)
            self.client._pending.append((request, slot, self._xid))
        data = self._rest + b"".join(frames)
        sent = 0
        if type(self._socket) is Buffered:
            with contextlib.suppress(OSError):  # no room; or it broke, which its reader finds out
                sent = self._socket.send(data)
        self._rest = data[sent:]

    def shut(self) -> None:
        """What is asked from now on waits for another connection, or for the end of all."""
        with self._writing:
            self._open = False
            self._rest = b""

    def _connect(self, host: Any, hostip: Any, port: Any) -> Any:
        base: Any = super()
        timeouts = base._connect(host, hostip, port)
        with self._writing:
            self._open = type(self._socket) is Buffered  # TLS bears no two threads
        return timeouts

    def _invoke(self, timeout: float, request: Any, xid: int | None = None) -> Any:
        base: Any = super()
        if not isinstance(request, _serialization.Connect):
            return base._invoke(timeout, request, xid)
        self._patience_s = max(self._patience_s, self.silence_s)
        asks_only = self._refused and request.last_zxid_seen > 0
        if asks_only:
            request = request._replace(last_zxid_seen=0)
        try:
            result: Any = base._invoke(min(timeout, self._patience_s), request, xid)
        except self.handler.timeout_exception:
            self._patience_s = min(2 * self._patience_s, timeout)
            raise
        except _connection.ConnectionDropped:
            self._refused = not self._refused
            raise
        self._patience_s, self._refused = 0.0, False
        granted_ms = result[0].time_out
        if asks_only and granted_ms > 0:
            raise _connection.ConnectionDropped("this server is behind what we saw, or just started")
        self.granted_s = granted_ms / 1000
        return result

    def _send_request(self, read_timeout: float, connect_timeout: float) -> None:
        with self._writing:
            queue = self.client._queue
            asked: list[tuple[Any, Slot]] = []
            while queue and type(queue[0][1]) is Slot:
                asked.append(queue.popleft())
            if asked:
                with contextlib.suppress(BlockingIOError):
                    self._read_sock.recv(len(asked))  # one byte came for each
                self._write_now(asked)
            elif not self._rest:
                base: Any = super()
                base._send_request(read_timeout, connect_timeout)
        self._write_rest(connect_timeout)

    def _write_rest(self, timeout: float) -> None:
        with self._writing:
            rest = self._rest  # of this one, and not what another thread is about to write
        if rest:  # until it is written, nobody else writes
            write: Any = self._write
            write(rest, timeout)
            with self._writing:
                self._rest = b""

    def _send_ping(self, connect_timeout: float) -> None:
        self._write_rest(connect_timeout)
        base: Any = super()
        with self._writing:
            base._send_ping(connect_timeout)

    def _read_header(self, timeout: float) -> Any:
        frame = self._socket.frame() if type(self._socket) is Buffered else None
        if frame is None:
            base: Any = super()
            return base._read_header(timeout)
        header, offset = _serialization.ReplyHeader.deserialize(frame, 0)
        return header, frame, offset
