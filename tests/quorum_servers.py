"""Independent Redis servers, as the nodes of one quorum."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from servers import RedisServer

SYNCED = ("--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no")
"""What cells need: each write is on the disk before it is answered."""


class QuorumServers:
    """``count`` servers that know nothing of one another; started side by side."""

    def __init__(self, folder: Path, *arguments: str, count: int = 5) -> None:
        self.servers: list[RedisServer] = []
        for number in range(count):
            place = folder / str(number)
            place.mkdir()
            self.servers.append(RedisServer(place, *arguments))

    @property
    def url(self) -> str:
        return url_of(self.servers)

    def start(self) -> None:
        for server in self.servers:
            server.launch()
        for server in self.servers:
            if not server.comes_up():
                server.start()  # somebody took its port

    def reset(self) -> None:
        """Empty them, as new nodes are."""
        for server in self.servers:
            assert server.command("FLUSHALL").startswith(b"+OK")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers:
            server.__exit__(kind, error, trace)


def url_of(places: list[RedisServer] | list[int]) -> str:
    """The quorum of these servers or ports."""
    ports = [place if isinstance(place, int) else place.port for place in places]
    return "redis+quorum://" + ",".join(f"127.0.0.1:{port}" for port in ports)
