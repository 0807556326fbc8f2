"""A PostgreSQL of a test's own, and what stands on it."""

from __future__ import annotations

from pathlib import Path

from onlooker import Onlooker
from postgres_server import PostgresServer


class LivePostgres(PostgresServer, Onlooker):
    """Started; looked at through a link of its own, a new one after each start."""

    def __init__(self, folder: Path, *settings: str, data: Path | None = None) -> None:
        PostgresServer.__init__(self, folder, *settings, data=data)
        self.start()

    def start(self) -> None:
        super().start()
        Onlooker.__init__(self, self.url)

    def kill(self) -> None:
        if self.process is not None:
            Onlooker.close(self)
        super().kill()

    def close(self) -> None:
        self.__exit__(None, None, None)


def behind(proxy_port: int) -> str:
    """The URL of a server behind a `TcpProxy`."""
    return f"postgresql://postgres@127.0.0.1:{proxy_port}/postgres"


def call_of(function: str) -> bytes:
    """What marks a call of that function on the wire, and not its preparation."""
    return b"\x00holdfast_%s\x00" % function.encode()
