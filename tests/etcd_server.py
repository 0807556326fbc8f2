"""etcd: one server, or an ensemble of three."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from servers import Server, eventually, free_port, missing


class EtcdServer(Server):
    """One server. It keeps its data over restarts; ``options`` go on its command line.

    ``members``: names and peer addresses of an ensemble, of which it is the one called ``name``.
    """

    def __init__(self, folder: Path, *options: str, name: str = "one", peer_port: int = 0, members: str = "") -> None:
        super().__init__(folder)
        self.name = name
        self.peer_port = peer_port or free_port()
        self.members = members
        self.options = options
        self.tls: ssl.SSLContext | None = None
        self.files: tuple[str, ...] = ()
        self.token = ""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'etcds' if self.tls else 'etcd'}://{self.address}"

    def argv(self) -> list[str]:
        binary = shutil.which("etcd") or missing("etcd (etcd-server)")
        client = f"{'https' if self.tls else 'http'}://{self.address}"
        peer = f"http://127.0.0.1:{self.peer_port}"
        # a kill loses nothing that was not synced
        return [
            binary, "--name", self.name, "--data-dir", str(self.folder / "data"), "--unsafe-no-fsync",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", self.members or f"{self.name}={peer}", *self.options,
        ]  # fmt: skip

    def use_tls(self, ca: str, cert: str, key: str) -> None:
        self.tls = ssl.create_default_context(cafile=ca)
        self.options = (*self.options, "--cert-file", cert, "--key-file", key)

    def answers(self) -> bool:
        try:
            return "header" in self.ask("kv/range", {"key": _text("health")}, timeout_s=2)
        except (ssl.SSLError, http.client.HTTPException):
            return False

    def ask(self, path: str, body: Any = None, timeout_s: float = 10) -> Any:
        """One request to its JSON gateway, over a connection of its own."""
        if self.tls is not None:
            connection: Any = http.client.HTTPSConnection(self.address, timeout=timeout_s, context=self.tls)
        else:
            connection = http.client.HTTPConnection(self.address, timeout=timeout_s)
        headers = {"Authorization": self.token} if self.token else {}
        connection.request("POST", f"/v3/{path}", json.dumps(body or {}), headers)
        try:
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def clear(self) -> None:
        assert "header" in self.ask("kv/deleterange", {"key": "AA==", "range_end": "AA=="})

    def keys(self) -> list[bytes]:
        found = self.ask("kv/range", {"key": "AA==", "range_end": "AA==", "keys_only": True}).get("kvs", [])
        return [base64.b64decode(kv["key"]) for kv in found]

    def status(self) -> Any:
        return self.ask("maintenance/status", timeout_s=2)

    def login(self, user: str, password: str) -> None:
        self.token = self.ask("auth/authenticate", {"name": user, "password": password})["token"]

    def require_login(self, user: str, password: str, prefix: str = "holdfast/") -> None:
        """Turn authentication on: ``user`` may do everything under ``prefix``, root (with its password) all."""
        permission = {"permType": "READWRITE", "key": _text(prefix), "range_end": _text(prefix[:-1] + "0")}
        for path, body in (
            ("auth/user/add", {"name": "root", "password": password}),
            ("auth/role/add", {"name": "root"}),
            ("auth/user/grant", {"user": "root", "role": "root"}),
            ("auth/user/add", {"name": user, "password": password}),
            ("auth/role/add", {"name": "ours"}),
            ("auth/role/grant", {"name": "ours", "perm": permission}),
            ("auth/user/grant", {"user": user, "role": "ours"}),
            ("auth/enable", {}),
        ):
            assert "header" in (reply := self.ask(path, body)), reply


def _text(key: str) -> str:
    return base64.b64encode(key.encode()).decode()


class EtcdEnsemble:
    """Three servers that agree with one another."""

    def __init__(self, folder: Path, *options: str) -> None:
        peers = [(f"m{number}", free_port()) for number in range(3)]
        members = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in peers)
        self.servers = [
            EtcdServer(folder / name, *options, name=name, peer_port=port, members=members) for name, port in peers
        ]
        for server in self.servers:
            server.folder.mkdir()

    @property
    def url(self) -> str:
        return "etcd://" + ",".join(server.address for server in self.servers)

    def start(self) -> None:
        for server in self.servers:
            if server.process is None:
                server.launch()
        for server in self.servers:
            if not server.comes_up():
                raise RuntimeError(f"no quorum: {(server.folder / 'log').read_text()[-2000:]}")

    def leader(self) -> EtcdServer:
        """The one that leads; waits until there is one."""
        found: list[EtcdServer] = []

        def leads() -> bool:
            found[:] = [server for server in self.servers if server.process and self._leads(server)]
            return bool(found)

        eventually(leads, 30)
        return found[0]

    @staticmethod
    def _leads(server: EtcdServer) -> bool:
        try:
            status = server.status()
        except (OSError, http.client.HTTPException):
            return False
        return bool(status.get("leader") == status["header"]["member_id"])

    def followers(self) -> Iterator[EtcdServer]:
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
