"""ZooKeeper: claims are ephemeral sequential nodes, so what a dead session held goes with it, and no clock is asked.

All leases of a client hang on its one session with the ensemble. They last as long as that was last confirmed for by
the leader, less what the leader may know late; and whoever waits is woken when a node that kept him out is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from ...contract import AsyncLink, BlockingLink, Capabilities, Request
from ...errors import Misuse
from ...model import CellReply, CellSnapshot, Change, Claim, Fence, Snapshot, Standing, Turnstile
from ..batches import by_turnstile
from .queue import node_name
from .target import target_at, target_of

RENEW_BATCH = 100
"""Queues per round trip."""

MAX_VALUE_BYTES = 500_000
MAX_PUT_BYTES = 1_040_000
"""A server takes no request of 1 MiB or more (its jute.maxbuffer), and a put is one request."""

ENTRY_BYTES = 150
"""What one change of a put takes besides names and its value."""


class ZooKeeperEngine:
    """Turnstiles and cells on a ZooKeeper ensemble.

    ``target`` is a URL or a KazooClient. Of a client, only its settings are used: the session is ours.
    """

    def __init__(self, target: Any, namespace: str = "") -> None:
        self._target = target_at(target) if isinstance(target, str) else target_of(target)
        self._namespace = namespace
        self.identity = f"{self._target.identity}#{namespace}"
        self.capabilities = Capabilities(
            engine="zookeeper",
            scope="fleet",
            fair=True,
            weighted=True,
            signals=True,
            cells=True,
            groups=True,
            survives_restart=True,
            token_survives_failover=True,
            token_source="the claim's czxid: the ensemble's count of changes",
            min_ttl_s=self._target.ttl_s,
            max_value_bytes=MAX_VALUE_BYTES,
            ttl_s=self._target.ttl_s,
            renewed_by_any=False,
        )

    def blocking_link(self) -> BlockingLink:
        from .links import BlockingZooKeeperLink

        return BlockingZooKeeperLink(self._target, self._namespace)

    def async_link(self) -> AsyncLink:
        from .links import AsyncZooKeeperLink

        return AsyncZooKeeperLink(self._target, self._namespace)

    # -- requests: each body is the talk itself, begun when a link is asked to

    def ping(self) -> Request[None]:
        def talk(link: Any) -> Generator[Sequence[Any], list[Any], None]:
            (reply,) = yield [link.desk.sync]
            link.desk.checked(reply, wrote=False)

        return _request("ping", talk)

    def enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Request[Standing]:
        return _request("enter", lambda link: link.turnstiles.enter(turnstile, claim, nowait))

    def leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> Request[bool]:
        return _request("leave", lambda link: link.turnstiles.leave(turnstile, claim_id, bury))

    def renew(self, items: Sequence[tuple[Turnstile, Claim]]) -> Iterable[Request[dict[str, Standing]]]:
        for batch in by_turnstile(items, RENEW_BATCH):
            yield self._renew(batch)

    def _renew(self, batch: Sequence[tuple[Turnstile, Claim]]) -> Request[dict[str, Standing]]:
        return _request("renew", lambda link: link.turnstiles.renew(batch))

    def look(self, turnstile: Turnstile) -> Request[Snapshot]:
        return _request("look", lambda link: link.turnstiles.look(turnstile))

    def open(self, cell: str, fence: Fence) -> Request[CellReply]:
        return _request("open", lambda link: link.cells.open(cell, fence))

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Request[CellReply]:
        each = len(f"{self._target.chroot}{node_name(self._namespace)}{node_name(cell)}") + ENTRY_BYTES
        size = sum(len(node_name(change.key)) + len(change.value or b"") + each for change in changes)
        if len(value or b"") + size > MAX_PUT_BYTES:
            raise Misuse(
                f"one put on ZooKeeper carries less than 1 MB in all: write {len(changes)} entries in several puts"
            )
        return _request("put", lambda link: link.cells.put(cell, fence, version, op_id, value, changes))

    def read(self, cell: str, keys: Sequence[str] | None) -> Request[CellSnapshot]:
        return _request("read", lambda link: link.cells.read(cell, keys))

    def drop(self, cell: str) -> Request[bool]:
        return _request("drop", lambda link: link.cells.drop(cell))

    def list(self, prefix: str) -> Request[Sequence[Turnstile]]:
        return _request("list", lambda link: link.turnstiles.list(prefix))


def _request(op: str, talk: Callable[[Any], Any]) -> Request[Any]:
    return Request(op, talk, lambda outcome: outcome)
