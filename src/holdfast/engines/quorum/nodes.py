"""The nodes of a quorum as a client knows them: their addresses, what a new connection tells, and who is down."""

from __future__ import annotations

import logging
import random
import time
import warnings
from typing import Any, NamedTuple, TypeVar

from ...errors import HoldfastError, Misuse, Unavailable, Unsupported
from ..redis.scripts import Script
from ..redis.wire import ACL_HELP, CHANNELS, Eval, Refusal, Target, answered, bulk, pack, target_at
from . import protocol, scripts
from .protocol import SITTING_OUT, Talk

T = TypeVar("T")

log = logging.getLogger("holdfast.quorum")

SCHEMES = {"redis+quorum": "redis", "rediss+quorum": "rediss", "valkey+quorum": "redis", "valkeys+quorum": "rediss"}

NEEDED = (5, 0)
"""The oldest server whose scripts may ask for the time and write."""

SILENT_S = 3.0
"""A connection that owes an answer for longer is given up."""

GRACE_S = 0.25
"""How long a call goes on waiting for connections when a majority has one."""

ADMIT_EVERY_S = 0.3
"""How often at most it is asked whether nodes that sit out may count again."""

FIRST_S = 2.0
"""The same for the first call of all, which is to find out what is wrong with an address."""

HELLO = pack("INFO") + pack("CONFIG", "GET", "append*")
HELLO_REPLIES = 2

NOT_ASKED = Unavailable("this node was not asked")

_TWO = bulk("2")
NODE_KEYS = bulk(f"{CHANNELS}quorum:node") + bulk(f"{CHANNELS}quorum:numbers")


def targets_at(url: str, *, asynchronous: bool) -> list[Target]:
    """The nodes that a URL names: ``redis+quorum://user:password@h1:p1,h2:p2,h3:p3/0?option=…``.

    A user and password before the first host go for all that have none of their own. Raises `Misuse`.
    """
    scheme, _, rest = url.partition("://")
    cut = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    hosts, tail = rest[:cut].split(","), rest[cut:]
    first, at, _ = hosts[0].rpartition("@")
    urls = [f"{SCHEMES[scheme]}://{host if '@' in host else first + at + host}{tail}" for host in hosts]
    if len(urls) < 3:
        raise Misuse(f"a quorum has at least 3 nodes, {scheme}://host1,host2,host3; this URL names {len(urls)}")
    if not all(host.rpartition("@")[2].strip("[]: ") for host in hosts):
        raise Misuse(f"the URL {scheme}://… names a host that is empty: {len(hosts)} hosts, separated by commas")
    targets = [target_at(one, asynchronous) for one in urls]
    places = [target.where for target in targets]
    for where in places:
        if places.count(where) > 1:
            raise Misuse(f"{where} is named twice: each node of a quorum is a server of its own")
    return targets


def warn_if_even(count: int) -> None:
    if count % 2 == 0:
        warnings.warn(
            f"a quorum of {count} nodes survives no more losses than one of {count - 1}: name an odd number of hosts",
            stacklevel=2,
        )


GIVES_BACK = (scripts.UNDO, scripts.LEAVE)
"""What is seen through though nobody waits for the answer: it speaks of one attempt or claim, and is never late."""


class SameServer(Misuse):
    """Two nodes are one: their majorities would be none. Always refused, where other bad nodes are just left out."""


class Facts(NamedTuple):
    """What a server says of itself on a new connection. ``run``: the id of its process; ``synced``: each write is on
    its disk before it is answered; ``suffix``: both, as the last arguments of every script."""

    run: bytes
    synced: bool
    suffix: bytes

    def payload(self, body: Eval, by_text: bool) -> bytes:
        """A script call as it goes to this server. Its ``count`` has the suffix in it."""
        head = body.script.by_text if by_text else body.script.by_sha
        return b"*%d\r\n%b%b%b" % (body.count + 2, head, body.rest, self.suffix)


def facts_of(replies: list[Any], where: str) -> Facts:
    """Raises `Misuse` or `Unsupported` where the server can be no node of a quorum."""
    info = answered(replies[0])
    if isinstance(info, Exception):
        raise Misuse(f"the server at {where} does not say who it is: {info}; {ACL_HELP} and +info for a quorum")
    fields = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    version = tuple(int(part) for part in fields[b"redis_version"].split(b".")[:2])
    if version < NEEDED:
        raise Unsupported(
            f"the server at {where} is Redis {'.'.join(map(str, version))}; a quorum needs "
            f"{'.'.join(map(str, NEEDED))} or newer"
        )
    if fields.get(b"redis_mode", b"standalone") != b"standalone":
        mode = fields[b"redis_mode"].decode()
        raise Unsupported(f"the server at {where} runs in {mode} mode; each node of a quorum is a server of its own")
    if fields.get(b"role", b"master") != b"master":
        raise Misuse(f"the server at {where} is a replica; each node of a quorum is a primary of its own")
    config = protocol.parts(replies[1])
    settings = dict(zip(config[::2], config[1::2], strict=True))
    synced = settings.get(b"appendonly") == b"yes" and settings.get(b"appendfsync") == b"always"
    run = fields[b"run_id"]
    return Facts(run, synced, bulk("1" if synced else "0") + bulk(run))


class Node:
    """One node, whatever the number of connections to it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.facts: Facts | None = None
        self.trouble: HoldfastError = Unavailable(f"no connection to Redis at {target.where} yet")
        self._failures = 0
        self._rests_until = 0.0

    @property
    def is_down(self) -> bool:
        return self._failures > 0

    def may_dial(self) -> bool:
        return time.monotonic() >= self._rests_until

    def came_up(self, facts: Facts) -> None:
        if self._failures:
            log.info("the node at %s serves again", self.target.where)
        self.facts, self._failures, self._rests_until = facts, 0, 0.0

    def went_down(self, trouble: HoldfastError) -> None:
        if not self._failures:
            log.warning("a node of the quorum is left out until it serves: %s", trouble)
        self.trouble = trouble
        self._failures += 1
        self._rests_until = time.monotonic() + min(1.0, 0.02 * 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1)


class Nodes:
    """All nodes as one client knows them, and what it may rely on."""

    def __init__(self, targets: list[Target]) -> None:
        self.all = [Node(target) for target in targets]
        self.size = len(targets)
        self.majority = protocol.majority(self.size)
        self.met = False  # a majority once served: from then on a bad node is one that is down
        self.announced_ms = 0.0
        self.rests = False  # somebody sits out
        self._admit_at = 0.0

    def meet(self, index: int, facts: Facts) -> None:
        """A new connection. Raises `Misuse` where two names lead to one server."""
        for other, node in enumerate(self.all):
            if other != index and node.facts is not None and node.facts.run == facts.run:
                raise SameServer(
                    f"{node.target.where} and {self.all[index].target.where} are the same server; "
                    "each node of a quorum is a server of its own"
                )
        self.all[index].came_up(facts)

    def heard(self, reply: Any) -> Any:
        """A node's reply as the protocol takes it."""
        if type(reply) is Refusal:
            return answered(reply)
        if reply == SITTING_OUT:
            self.rests = True
        elif type(reply) is bytes and reply[:2] == b"L ":
            return Misuse(
                f"layout {reply[2:].decode()} is stored here, which this release does not know: "
                "let all users of these nodes run the same release of holdfast"
            )
        return reply

    def troubles(self) -> list[Exception]:
        return [node.trouble for node in self.all]

    def conduct(self, talk: Talk[T]) -> Talk[T]:
        """A talk, and before it whatever lets nodes that sit out count again."""
        if self.may_admit():
            yield from self.admit()
        return (yield from talk)

    def may_admit(self) -> bool:
        return self.rests and time.monotonic() >= self._admit_at

    def admit(self) -> Talk[None]:
        self.rests = False
        self._admit_at = time.monotonic() + ADMIT_EVERY_S
        yield from protocol.admit(self.size, ADMITS, self.announced_ms)

    def announce(self, ttl_ms: float) -> Talk[None]:
        """Before a lease of a length that was never asked for here: a node that loses its memory sits out that long."""
        if ttl_ms > self.announced_ms:
            yield from protocol.tell("enter", self.size, node_eval(scripts.ANNOUNCE, bulk(repr(ttl_ms))))
            self.announced_ms = max(self.announced_ms, ttl_ms)


def node_eval(script: Script, *args: bytes) -> Eval:
    """A call about the node itself."""
    return Eval(script, 5 + len(args), _TWO + NODE_KEYS + b"".join(args))


class _Admits:
    """What is asked of nodes that may have lost their memory."""

    state = node_eval(scripts.STATE)

    def admit(self, since: bytes, highest: int, longest_ms: float, whole: bool) -> Eval:
        args = (since, b"%d" % highest, repr(longest_ms).encode(), b"1" if whole else b"0")
        return node_eval(scripts.ADMIT, *(bulk(arg) for arg in args))


ADMITS = _Admits()
