"""What stands on a quorum, for people: the views of its nodes put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ...model import ClaimView, Snapshot, Turnstile
from ..redis.wire import Eval, bulk
from . import scripts
from .nodes import NODE_KEYS, node_eval
from .protocol import (
    Replies,
    Round,
    Talk,
    answers,
    everywhere,
    heard_from,
    is_answer,
    majority,
    need_majority,
    open_for,
    parts,
)


def quote(text: str) -> str:
    """Any text between colons."""
    return text.replace("%", "%25").replace(":", "%3A")


def unquote(text: str) -> str:
    return text.replace("%3A", ":").replace("%25", "%")


def all_heard(replies: Replies) -> bool:
    return None not in replies


def look(size: int, turnstile: Turnstile, body: Any) -> Talk[Snapshot]:
    """Who holds on a majority, and who waits on one, in about the order of arrival."""

    def enough(replies: Replies) -> bool:
        """No claim's number of nodes can cross the line any more."""
        if answers(replies) < majority(size):
            return all_heard(replies)
        missing = open_for(replies, range(size))
        counts = Counter((one[0], one[2]) for reply in replies for one in parts(reply))
        return all(count >= majority(size) or count + missing < majority(size) for count in counts.values())

    replies = yield Round(everywhere(size, body), enough)
    need_majority("look", replies)
    seen: dict[tuple[bytes, int], list[list[Any]]] = {}
    for reply in replies:
        for one in parts(reply):
            seen.setdefault((one[0], one[2]), []).append(one)
    views = [_view(rows) for rows in seen.values() if len(rows) >= majority(size)]
    views.sort(key=lambda view: (not view.admitted, -view.age_s))
    return Snapshot(turnstile.kind, turnstile.name, 1 if views else 0, tuple(views))


def _view(rows: Sequence[Sequence[Any]]) -> ClaimView:
    """As the nodes see it that see the most of it; its token is what most of them agree on."""
    number = Counter(int(row[1]) for row in rows).most_common(1)[0][0]
    age_s, left_s = (max(float(row[at]) for row in rows) / 1000 for at in (5, 6))
    id, _, admitted, owner, payload = rows[0][:5]
    return ClaimView(id.decode(), number, 1, admitted == 1, owner.decode(), payload, max(0.0, age_s), left_s)


def list_all(size: int, space: str, prefix: str, keys_of: Callable[[Turnstile], bytes]) -> Talk[Sequence[Turnstile]]:
    """Every node is asked for its keys, and then about each that was found."""
    pattern = bulk("".join(f"\\{letter}" if letter in "*?[]^\\" else letter for letter in space + quote(prefix)) + "*")
    cursors: dict[int, bytes] = dict.fromkeys(range(size), b"0")
    names: set[str] = set()
    while cursors:
        bodies = {node: node_eval(scripts.SCAN, bulk(cursor), pattern) for node, cursor in cursors.items()}
        replies = yield Round(bodies, heard_from(bodies))
        first = len(cursors) == size
        if first:
            need_majority("list", replies)
        for node in list(cursors):
            reply = replies[node]
            if not is_answer(reply) or reply[0] == b"0":
                del cursors[node]
            else:
                cursors[node] = reply[0]
            for key in reply[1] if is_answer(reply) else ():
                name, _, suffix = key.decode()[len(space) :].partition(":")
                if suffix in ("h", "w"):
                    names.add(unquote(name))
    found: list[Turnstile] = []
    for name in sorted(names):
        kind, _, rest = name.partition(":")
        turnstile = Turnstile(kind, rest, 1)
        body = Eval(scripts.LOOK, 8, bulk("5") + NODE_KEYS + keys_of(turnstile))
        if (yield from look(size, turnstile, body)).claims:
            found.append(turnstile)
    return found
