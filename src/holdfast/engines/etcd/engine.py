"""etcd: a claim is a key on a lease, its token the revision that created the key; whoever waits watches what blocks it.

Every operation is one transaction. Ends are the server's: a lease that nobody extends is over
by its leader's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from ...contract import AsyncLink, BlockingLink, Capabilities, Request
from ...model import CellReply, CellSnapshot, Change, Claim, Fence, Snapshot, Standing, Turnstile
from ..batches import by_turnstile
from .cells import check_size
from .look import list_standing, look
from .messages import Ask, txn
from .queue import space_of
from .replies import checked
from .target import target_at

RENEW_BATCH = 50
"""Queues per transaction, with two ranges for each: a server takes 128 operations."""

MAX_PUT_BYTES = 1_500_000
MAX_VALUE_BYTES = 700_000
"""A server takes no request of more than 1.5 MiB (its --max-request-bytes), and a put is one request."""

MIN_TTL_S = 2.0
"""A server grants no lease that a change of its leader could outlast: 2 s by default, 1.5 times --election-timeout."""


class EtcdEngine:
    """Turnstiles and cells on an etcd cluster."""

    def __init__(self, url: str, namespace: str = "") -> None:
        self._target = target_at(url)
        self._space = space_of(namespace)
        self.identity = f"{self._target.identity}#{namespace}"
        self.capabilities = Capabilities(
            engine="etcd",
            scope="fleet",
            fair=True,
            weighted=True,
            signals=True,
            cells=True,
            groups=True,
            survives_restart=True,
            token_survives_failover=True,
            token_source="the revision that created the claim's key: the cluster's count of changes",
            min_ttl_s=MIN_TTL_S,
            max_value_bytes=MAX_VALUE_BYTES,
            renewed_by_any=False,  # it hangs on its link's etcd lease
        )

    def blocking_link(self) -> BlockingLink:
        from .links import EtcdLink

        return EtcdLink(self._target, self._space)

    def async_link(self) -> AsyncLink:
        from .links import AsyncEtcdLink

        return AsyncEtcdLink(self._target, self._space)

    # -- requests: each body is the talk itself, begun when a link is asked to

    def ping(self) -> Request[None]:
        def talk(link: Any) -> Generator[Sequence[Ask], list[Any], None]:
            (reply,) = yield [txn([], [], reads=True)]
            checked(reply)

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
        return _request("look", lambda link: look(link.desk, turnstile))

    def open(self, cell: str, fence: Fence) -> Request[CellReply]:
        return _request("open", lambda link: link.cells.open(cell, fence))

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Request[CellReply]:
        check_size(value, changes, MAX_PUT_BYTES)
        return _request("put", lambda link: link.cells.put(cell, fence, version, op_id, value, changes))

    def read(self, cell: str, keys: Sequence[str] | None) -> Request[CellSnapshot]:
        return _request("read", lambda link: link.cells.read(cell, keys))

    def drop(self, cell: str) -> Request[bool]:
        return _request("drop", lambda link: link.cells.drop(cell))

    def list(self, prefix: str) -> Request[Sequence[Turnstile]]:
        return _request("list", lambda link: list_standing(link.desk, prefix))


def _request(op: str, talk: Callable[[Any], Any]) -> Request[Any]:
    return Request(op, talk, lambda outcome: outcome)
