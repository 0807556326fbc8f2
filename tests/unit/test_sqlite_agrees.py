"""Whatever is asked, the embedded engine answers and signals as the reference engine does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.contract import BlockingLink
from holdfast.engines.memory import MemoryEngine
from holdfast.engines.sqlite.engine import SqliteEngine
from holdfast.errors import Misuse
from holdfast.model import Change, Claim, Fence, Signal, Turnstile

NAMES = ("a", "it's \x00 odd ☃ %_*", "ab")
TURNSTILES = tuple(
    Turnstile(kind, name, capacity, announces)
    for name in NAMES
    for kind, capacity, announces in (("lock", 1, False), ("semaphore", 3, False), ("group", 5, True))
)


class Pair:
    """Both engines under one clock, and one inbox on each; signals and answers are compared."""

    def __init__(self, path: Path, namespace: str) -> None:
        self.now = 1000.0
        self.wall_us = 0
        self.memory = MemoryEngine(clock=lambda: self.now, tokens_us=lambda: self.wall_us)
        self.sqlite = SqliteEngine(path, namespace)
        self.sqlite.clock = lambda: self.now
        self.sqlite.tokens_us = lambda: self.wall_us
        links: list[BlockingLink] = [self.memory.blocking_link(), self.sqlite.blocking_link()]
        self.links = links
        self.heard: tuple[list[Signal], list[Signal]] = ([], [])
        for link, heard in zip(self.links, self.heard, strict=True):
            link.listen(heard.append, lambda: None)

    def ask(self, op: str, *args: Any) -> Any:
        self.wall_us += 7
        answers: list[Any] = []
        for engine, link in zip((self.memory, self.sqlite), self.links, strict=True):
            mine = [_of(link.inbox, arg) for arg in args]
            try:
                made = getattr(engine, op)(*mine)
                requests = list(made) if op == "renew" else [made]
                replies = [link.call(request, 5.0) for request in requests]
                answers.append(replies[0] if op != "renew" else {k: v for reply in replies for k, v in reply.items()})
            except Misuse as refusal:
                answers.append(str(refusal))
        assert answers[1] == answers[0], (op, args)
        assert sorted(self.heard[1]) == sorted(self.heard[0]), (op, args, self.heard)
        for heard in self.heard:
            heard.clear()
        return answers[1]

    def watch(self, turnstile: Turnstile) -> None:
        for link in self.links:
            link.watch(turnstile)

    def close(self) -> None:
        for link in self.links:
            link.close()


def _of(inbox: str, arg: Any) -> Any:
    """A claim of this link's inbox."""
    if isinstance(arg, Claim) and arg.inbox:
        return Claim(arg.id, arg.weight, arg.ttl_s, inbox, arg.owner, arg.payload)
    if isinstance(arg, list) and arg and isinstance(arg[0], tuple) and isinstance(arg[0][0], Turnstile):
        return [(turnstile, _of(inbox, claim)) for turnstile, claim in arg]
    return arg


@pytest.fixture(params=["", "other"])
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(tmp_path / "holdfast.db", request.param)
    yield pair
    pair.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_random_life_of_turnstiles_is_the_same_on_both(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    for turnstile in TURNSTILES:
        if turnstile.announces:
            pair.watch(turnstile)
    claims: dict[str, tuple[Turnstile, Claim]] = {}
    states: set[str] = set()
    for step in range(400):
        turnstile = chance.choice(TURNSTILES)
        known = [id for id, (at, _) in claims.items() if at == turnstile] or ["unheard of"]
        what = chance.random()
        if what < 0.45:
            weight = chance.randint(0 if turnstile.capacity > 1 else 1, turnstile.capacity)
            claim = Claim(f"c{step}", weight, chance.choice((0.5, 3, 50)), chance.choice(("mine", "")), "me", b"\0p")
            if chance.random() < 0.1 and known[0] in claims:
                claim = claims[chance.choice(known)][1]
            claims[claim.id] = (turnstile, claim)
            asked = turnstile
            if chance.random() < 0.03:
                asked = Turnstile(turnstile.kind, turnstile.name, turnstile.capacity + 1, turnstile.announces)
            answer = pair.ask("enter", asked, claim, chance.random() < 0.3)
            states.add(answer if isinstance(answer, str) else answer.state.name)
        elif what < 0.7:
            pair.ask("leave", turnstile, chance.choice(known), chance.random() < 0.3)
        elif what < 0.85:
            pair.ask("renew", chance.sample(sorted(claims.values(), key=lambda one: one[1].id), min(len(claims), 5)))
        elif what < 0.92:
            pair.ask("look", turnstile)
        elif what < 0.96:
            pair.ask("list", chance.choice(("", "lock:", "lock:a", "none", "semaphore:it's \x00")))
        else:
            pair.now += chance.choice((0.01, 0.4, 2.0, 1000.0))
    assert {"ADMITTED", "WAITING", "BUSY"} <= states


@pytest.mark.parametrize("seed", range(4))
def test_a_random_life_of_cells_is_the_same_on_both(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    versions: dict[str, int] = {}
    accepted = 0
    for step in range(300):
        cell = chance.choice(NAMES)
        turnstile = chance.choice(("lock:a", "lock:a", "lock:a", "lock:b"))
        fence = Fence(turnstile, chance.randint(1, 3), chance.choice("xy"), chance.randint(1, 2))
        what = chance.random()
        if what < 0.35:
            versions[cell] = pair.ask("open", cell, fence).version
        elif what < 0.8:
            changes = [
                Change(chance.choice(NAMES), chance.choice((None, b"", b"v%d" % step)), chance.random() < 0.5)
                for _ in range(chance.randint(0, 3))
            ]
            value = chance.choice((None, b"", b"\x00value%d" % step))
            standing = pair.ask("read", cell, [])
            if standing.claim and chance.random() < 0.8:
                fence = Fence("lock:a", standing.token, standing.claim, fence.opening)
            put = (cell, fence, standing.version - (chance.random() < 0.1), f"op{step}", value, changes)
            reply = pair.ask("put", *put)
            accepted += reply.accepted
            if chance.random() < 0.3:
                assert pair.ask("put", *put) == reply or not reply.accepted
        elif what < 0.95:
            pair.ask("read", cell, chance.choice((None, list(NAMES[:2]), ["absent"])))
        else:
            pair.ask("drop", cell)
    assert accepted > 5
