"""Redis on more than one server: a primary with a replica and three sentinels, and a cluster of six nodes."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from servers import RedisServer, eventually, free_port, missing

SERVICE = "mymaster"


class Sentinel(RedisServer):
    """One of those that watch a primary and appoint the next."""

    def __init__(self, folder: Path, primary_port: int, down_after_ms: int, *lines: str) -> None:
        super().__init__(folder)
        watched = f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} 2"
        times = [
            f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}",
            f"sentinel failover-timeout {SERVICE} 4000",
        ]
        config = ["bind 127.0.0.1", f"dir {folder}", watched, *times, *lines, ""]
        (folder / "sentinel.conf").write_text("\n".join(config))

    def argv(self) -> list[str]:
        binary = shutil.which("redis-sentinel") or shutil.which("valkey-sentinel") or missing("redis-sentinel")
        return [binary, str(self.folder / "sentinel.conf"), "--port", str(self.port)]


def ask(port: int, *words: Any, password: str = "") -> Any:
    """One command; the reply as the server put it."""
    with redis.Redis(port=port, password=password or None, socket_timeout=5, protocol=2) as client:
        client.response_callbacks.clear()
        return client.execute_command(*words)


def info(port: int, section: str, password: str = "") -> dict[str, str]:
    """INFO, or the like, as a mapping."""
    text = ask(port, *section.split(" "), password=password).decode()
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


class SentinelDeployment:
    """A primary, a replica, three sentinels. ``primary`` is the one by the sentinels' word.

    Without ``password`` for the sentinels themselves, as most are run.
    """

    def __init__(self, folder: Path, password: str = "", *, down_after_ms: int = 20000) -> None:
        secret = ["--requirepass", password, "--masterauth", password] if password else []
        quick = ["--repl-ping-replica-period", "1", "--repl-diskless-sync-delay", "0", "--repl-timeout", "5"]
        self.servers = [RedisServer(_folder(folder / name), *quick, *secret) for name in ("first", "second")]
        self.password = password
        self.down_after_ms = down_after_ms
        self._folder = folder
        self.sentinels: list[Sentinel] = []

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        login = f":{self.password}@" if self.password else ""
        return f"redis+sentinel://{login}{hosts}/{SERVICE}"

    def ask(self, server: RedisServer, *words: Any) -> Any:
        return ask(server.port, *words, password="" if isinstance(server, Sentinel) else self.password)

    @property
    def primary(self) -> RedisServer:
        """Whom most of the sentinels that run name."""
        named: list[int] = []
        for sentinel in self.sentinels:
            with contextlib.suppress(redis.RedisError):
                answer = self.ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                named.append(int(answer[1]))
        port = max(named, key=named.count)
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> RedisServer:
        primary = self.primary
        return next(server for server in self.servers if server is not primary)

    def is_settled(self) -> bool:
        """The replica follows, and every sentinel knows all the others and the replica."""
        try:
            said = info(self.primary.port, "INFO REPLICATION", self.password)
            return "state=online" in said.get("slave0", "") and all(map(self._knows_all, self.sentinels))
        except redis.RedisError:
            return False

    def _knows_all(self, sentinel: Sentinel) -> bool:
        flat = self.ask(sentinel, "SENTINEL", "MASTER", SERVICE)
        state = dict(zip(flat[::2], flat[1::2], strict=True))
        return state[b"num-slaves"] == b"1" and state[b"num-other-sentinels"] == b"2" and state[b"flags"] == b"master"

    def has_caught_up(self) -> bool:
        """The replica has taken in all that the primary has."""
        said = info(self.primary.port, "INFO REPLICATION", self.password)
        return f"offset={said['master_repl_offset']}," in said.get("slave0", "")

    def fails_over(self, before: RedisServer, timeout_s: float = 40) -> None:
        """Wait until another than ``before`` is the primary and takes writes."""

        def took_over() -> bool:
            with contextlib.suppress(redis.RedisError):
                now = self.primary
                return now is not before and self.ask(now, "ROLE")[0] == b"master"
            return False

        eventually(took_over, timeout_s, "no failover")

    def start(self) -> None:
        first, second = self.servers
        first.start()
        second.arguments += ("--replicaof", f"127.0.0.1 {first.port}")
        second.start()
        lines = [f"sentinel auth-pass {SERVICE} {self.password}"] if self.password else []
        self.sentinels = [
            Sentinel(_folder(self._folder / f"s{n}"), first.port, self.down_after_ms, *lines) for n in (1, 2, 3)
        ]
        for sentinel in self.sentinels:
            sentinel.start()
        eventually(self.is_settled, 30, "the deployment does not settle")

    def reset(self) -> None:
        """Empty it, for a test that does it no harm."""
        self.ask(self.primary, "FLUSHALL")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (*self.sentinels, *self.servers):
            server.__exit__(kind, error, trace)


class ClusterNode(RedisServer):
    """One node. Its bus listens on a free port of its own."""

    def __init__(self, folder: Path, timeout_ms: int, *arguments: str) -> None:
        self.bus = free_port()
        quick = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            str(timeout_ms),
            "--cluster-replica-validity-factor",
            "0",
        ]
        quick += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        super().__init__(folder, *quick, *arguments)

    def argv(self) -> list[str]:
        return [*super().argv(), "--cluster-port", str(self.bus)]

    def move(self) -> None:
        super().move()
        self.bus = free_port()

    def ask(self, *words: Any) -> Any:
        return ask(self.port, *words)

    @property
    def id(self) -> str:
        return str(self.ask("CLUSTER", "MYID").decode())

    @property
    def lines(self) -> list[list[str]]:
        """What it knows of every node, as CLUSTER NODES puts it, in fields."""
        return [line.split(" ") for line in self.ask("CLUSTER", "NODES").decode().splitlines()]


class RedisCluster:
    """Three primaries, each with a replica where ``replicas`` says so."""

    def __init__(self, folder: Path, *arguments: str, replicas: bool = True, timeout_ms: int = 20000) -> None:
        count = 6 if replicas else 3
        self.nodes = [ClusterNode(_folder(folder / str(n)), timeout_ms, *arguments) for n in range(count)]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def start(self) -> None:
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            if not node.comes_up():
                node.kill()
                node.move()  # nobody knows it yet
                node.start()
        primaries, replicas = self.nodes[:3], self.nodes[3:]
        for number, node in enumerate(primaries):
            first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)
        eventually(lambda: all(self._knows_all(node) for node in self.nodes), 30, "the nodes do not meet")
        for primary, replica in zip(primaries, replicas, strict=False):
            replica.ask("CLUSTER", "REPLICATE", primary.id)
        eventually(self.is_settled, 30, "the cluster does not settle")

    def _knows_all(self, node: ClusterNode) -> bool:
        return len(node.lines) == len(self.nodes) and not any("handshake" in fields[2] for fields in node.lines)

    def is_settled(self) -> bool:
        """Every node finds all slots served, no node failing and the replicas where they belong; and they follow."""

        def agrees(node: ClusterNode) -> bool:
            flags = [fields[2] for fields in node.lines]
            fine = info(node.port, "CLUSTER INFO")["cluster_state"] == "ok" and not any(
                "fail" in flag for flag in flags
            )
            return fine and sum("slave" in flag for flag in flags) == len(self.nodes) - 3

        def follows(node: ClusterNode) -> bool:
            role = node.ask("ROLE")
            return role[0] == b"slave" and role[3] == b"connected"

        return all(map(agrees, self.nodes)) and sum(map(follows, self.nodes)) == len(self.nodes) - 3

    def owner(self, slot: int) -> ClusterNode:
        """The primary of a slot, by the word of the first node that answers."""
        for node in self.nodes:
            with contextlib.suppress(redis.RedisError):
                for first, last, primary, *_ in node.ask("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(one for one in self.nodes if one.port == primary[1])
        raise AssertionError(f"no node answers that serves slot {slot}")

    def reset(self) -> None:
        """Empty it, for a test that does it no harm."""
        for node in self.nodes:
            if node.ask("ROLE")[0] == b"master":
                node.ask("FLUSHALL")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.__exit__(kind, error, trace)
