"""ZooKeeper: one server, or an ensemble of three."""

from __future__ import annotations

import itertools
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from kazoo.client import KazooClient
from servers import Server, eventually, free_port, missing

JARS = "/usr/share/java"
PARTS = ("zookeeper", "slf4j-simple", "netty-codec", "netty-resolver")
TICK_MS = 500


class ZooKeeperServer(Server):
    """One server. It keeps its data over restarts; ``settings`` go into its zoo.cfg, ``options`` to its JVM."""

    patience_s = 45.0

    def __init__(self, folder: Path, settings: str = "", *options: str) -> None:
        super().__init__(folder)
        self.settings = settings
        self.options = options
        self._chroots = itertools.count(1)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"zookeeper://{self.address}"

    def argv(self) -> list[str]:
        if not Path(f"{JARS}/zookeeper.jar").exists():
            missing("ZooKeeper (libzookeeper-java)")
        java = shutil.which("java") or missing("java")
        # sessions of a second, for tests that wait for one to expire; a kill loses nothing that was not synced
        (self.folder / "zoo.cfg").write_text(
            f"tickTime={TICK_MS}\nminSessionTimeout=1000\nmaxSessionTimeout=60000\ndataDir={self.folder}\n"
            f"clientPort={self.port}\nclientPortAddress=127.0.0.1\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n"
            f"{self.settings}"
        )
        return [
            java, "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dzookeeper.admin.enableServer=false",
            "-Dzookeeper.forceSync=no", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", *self.options,
            "-cp", ":".join(f"{JARS}/{name}.jar" for name in PARTS),
            "org.apache.zookeeper.server.quorum.QuorumPeerMain", str(self.folder / "zoo.cfg"),
        ]  # fmt: skip

    def answers(self) -> bool:
        return b"Mode: " in self.word("srvr")

    def word(self, word: str) -> bytes:
        """The answer to one of ZooKeeper's four-letter words."""
        with socket.create_connection(("127.0.0.1", self.port), 2) as probe:
            probe.sendall(word.encode())
            return b"".join(iter(lambda: probe.recv(1 << 16), b""))

    def forget(self) -> None:
        """Lose all data, as a server without a disk does when it ends."""
        shutil.rmtree(self.folder / "version-2")

    def client(self) -> KazooClient:
        """A connected client of one's own: stop it."""
        client = KazooClient(self.address)
        client.start(20)
        return client

    def new_url(self) -> str:
        """An empty tree of its own on this server."""
        path = f"/test{next(self._chroots)}"
        client = self.client()
        client.create(path)
        client.stop()
        client.close()
        return f"{self.url}{path}"


class ZooKeeperEnsemble:
    """Three servers that agree with one another."""

    def __init__(self, folder: Path) -> None:
        ports = [(free_port(), free_port()) for _ in range(3)]
        members = "".join(f"server.{n}=127.0.0.1:{a}:{b}\n" for n, (a, b) in enumerate(ports, 1))
        self.servers = [ZooKeeperServer(folder / str(n), f"initLimit=10\nsyncLimit=4\n{members}") for n in (1, 2, 3)]
        for number, server in enumerate(self.servers, 1):
            server.folder.mkdir()
            (server.folder / "myid").write_text(str(number))

    @property
    def url(self) -> str:
        return "zookeeper://" + ",".join(server.address for server in self.servers)

    def start(self) -> None:
        for server in self.servers:
            if server.process is None:
                server.launch()
        for server in self.servers:
            if not server.comes_up():
                raise RuntimeError(f"no quorum: {(server.folder / 'log').read_text()[-2000:]}")

    def mode(self, server: ZooKeeperServer) -> str:
        """leader, follower, or nothing where it serves nobody."""
        try:
            _, _, mode = server.word("srvr").partition(b"Mode: ")
        except OSError:
            return ""
        return mode.split(b"\n")[0].decode()

    def leader(self) -> ZooKeeperServer:
        """The one that leads; waits until there is one."""
        found: list[ZooKeeperServer] = []

        def leads() -> bool:
            found[:] = [server for server in self.servers if server.process and self.mode(server) == "leader"]
            return bool(found)

        eventually(leads, 30)
        return found[0]

    def followers(self) -> Iterator[ZooKeeperServer]:
        leader = self.leader()
        return (server for server in self.servers if server is not leader)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers:
            server.__exit__(kind, error, trace)
