"""A wire between a client and its server that counts round trips."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Any, Self


class Relay:
    """Passes on to ``port`` of this machine, and counts how often a client speaks after the server did."""

    def __init__(self, port: int) -> None:
        self.trips = 0
        self._target = port

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                spoke = [server]
                for source, sink in ((client, server), (server, client)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pass_on, args=(source, sink, client, spoke), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, client: socket.socket, spoke: list[Any]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.trips += source is client and spoke[0] is not client
                spoke[0] = source
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
