"""What stands on etcd, for people and for watchers."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from urllib.parse import unquote

from ...model import ClaimView, Snapshot, Turnstile
from .desk import Desk, Talk
from .messages import Keys, after, get, time_to_live, txn
from .queue import Node
from .replies import checked
from .turnstile import queue_of

LISTED_AT_ONCE = 5000
ASKED_AT_ONCE = 100


def look(desk: Desk, turnstile: Turnstile) -> Talk[Snapshot]:
    home = desk.home(turnstile)
    (reply,) = yield [txn([], [get(home.claims)], reads=True)]
    queue = queue_of(checked(reply).responses, home, reply)
    leases = list({node.lease for node in queue.nodes})
    left: dict[int, int] = {}
    for start in range(0, len(leases), ASKED_AT_ONCE):
        batch = leases[start : start + ASKED_AT_ONCE]
        replies = yield list(map(time_to_live, batch))
        left |= {id: checked(reply).ttl_s for id, reply in zip(batch, replies, strict=True)}
    views = [_view(node, queue.is_admitted(node), left[node.lease]) for node in queue.nodes]
    return Snapshot(turnstile.kind, turnstile.name, queue.capacity, tuple(views))


def _view(node: Node, admitted: bool, left_s: int) -> ClaimView:
    """``left_s`` is of its lease, which is longer than the claim's own time."""
    said = node.said()
    age_s = max(0.0, time.time() - said["entered_at"])
    remaining_s = min(node.ttl_s, float(left_s))
    payload = base64.b64decode(said["payload"])
    return ClaimView(said["id"], node.token, node.weight, admitted, said["owner"], payload, age_s, remaining_s)


def list_standing(desk: Desk, prefix: str) -> Talk[Sequence[Turnstile]]:
    base = b"%bt/" % desk.space
    start, end = base, after(base)
    standing: dict[str, Turnstile] = {}
    while True:
        page = [get(Keys(start, end), keys_only=True, limit=LISTED_AT_ONCE)]
        (reply,) = yield [txn([], page, reads=True)]
        keys = [kv.key for kv in checked(reply).responses[0].kvs]
        for key in keys:
            name, _, rest = key[len(base) :].decode().partition("/")
            address = unquote(name)
            if rest.startswith("c/") and address.startswith(prefix) and address not in standing:
                capacity = int(rest[2:].partition("/")[0])
                announces = rest.split("!")[-2] == "a"
                kind, _, plain = address.partition(":")
                standing[address] = Turnstile(kind, plain, capacity, announces)
        if len(keys) < LISTED_AT_ONCE:
            return [standing[address] for address in sorted(standing)]
        start = keys[-1] + b"\0"
