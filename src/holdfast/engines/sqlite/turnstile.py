"""The turnstile on SQLite: every operation inside one transaction, which has the file to itself.

By the lemma of `core.turnstile` a claim is admitted where its token is not above its turnstile's frontier.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ... import model
from ...contract import TOMBSTONE_S
from ...core import turnstile as rule
from ...model import Claim, ClaimView, Signal, Snapshot, Standing, State, Turnstile

SWEEP = 500
"""How many expired claims one operation removes at most; the next one goes on."""

AHEAD = 64
"""How many claims ahead of a waiter are looked at for processes that died."""

Row = tuple[int, int]  # token, weight

_STAND = """
SELECT capacity, announces, load, frontier, wanted,
    (SELECT ends FROM claim INDEXED BY claim_ends WHERE turnstile = ?1 ORDER BY ends LIMIT 1)
FROM turnstile WHERE address = ?1
"""


class Stand(NamedTuple):
    """A turnstile that has claims. ``load``: the weight of the admitted."""

    capacity: int
    announces: int
    load: int
    frontier: int
    wanted: int


class Desk:
    """One transaction: what it knows, and what is to be sent and watched once it is committed."""

    __slots__ = ("ahead", "alive", "db", "inbox", "is_alive", "now", "outbox", "prefix", "tokens_us")

    def __init__(
        self,
        db: sqlite3.Connection,
        prefix: str,
        inbox: str,
        now: float,
        tokens_us: Callable[[], float],
        is_alive: Callable[[str], bool],
    ) -> None:
        self.db = db
        self.prefix = prefix
        self.inbox = inbox
        self.now = now
        self.tokens_us = tokens_us
        self.is_alive = is_alive
        self.alive: dict[str, bool] = {"": True, inbox: True}
        self.outbox: dict[str, list[Signal]] = {}
        self.ahead: list[tuple[str, Signal, set[str] | None]] = []  # where, who, the inboxes ahead (None: no longer)

    # -- the operations

    def enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Standing:
        db, address = self.db, self.prefix + turnstile.address
        stand = self._sweep(address)
        if self._outcome(address, claim.id) is not None:
            return Standing(State.BURIED)
        if stand is not None:
            rule.check_capacity(turnstile, stand.capacity)
            known = db.execute("SELECT token FROM claim WHERE turnstile = ? AND id = ?", (address, claim.id)).fetchone()
            if known is not None:
                return self._standing(address, stand, known[0], claim.id)
            if not self._fits(address, stand, claim.weight):
                stand = self._bury_dead(address, stand, self._inboxes(address, stand.frontier + 1))
        fits = claim.weight <= turnstile.capacity if stand is None else self._fits(address, stand, claim.weight)
        if nowait and not fits:
            if stand is not None:
                self._want(address, stand)
            return Standing(State.BUSY)
        token = self._next_token()
        db.execute(
            "INSERT INTO claim VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (address, token, claim.id, claim.weight, self.now, self.now + claim.ttl_s, claim.inbox, claim.owner,
             claim.payload),
        )  # fmt: skip
        load, frontier = (claim.weight, token) if fits else (0, 0)
        if stand is None:
            stand = Stand(turnstile.capacity, turnstile.announces, load, frontier, 0)
            db.execute("INSERT INTO turnstile VALUES (?, ?, ?, ?, ?, ?)", (address, *stand))
        elif fits:
            stand = self._update(address, stand._replace(load=stand.load + load, frontier=frontier))
        else:
            stand = self._want(address, stand)
        self._announce(address, stand)
        if fits:
            return Standing(State.ADMITTED, token)
        return self._standing(address, stand, token, claim.id)

    def leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> bool:
        db, address = self.db, self.prefix + turnstile.address
        self.ahead.append((address, Signal(model.NUDGE, claim_id), None))
        stand = self._sweep(address)
        row: Row | None = None
        if stand is not None:
            row = db.execute(
                "SELECT token, weight FROM claim WHERE turnstile = ? AND id = ?", (address, claim_id)
            ).fetchone()
        if row is None:
            outcome = self._outcome(address, claim_id)
            if outcome is not None:
                return outcome
        if bury or row is None:
            self._dig(address, claim_id, was_there=row is not None)
        if stand is not None and row is not None:
            self._remove(address, stand, [row])
        return row is not None

    def renew(self, items: Iterable[tuple[Turnstile, Claim]]) -> dict[str, Standing]:
        return {claim.id: self._renew(self.prefix + turnstile.address, claim) for turnstile, claim in items}

    def look(self, turnstile: Turnstile) -> Snapshot:
        address = self.prefix + turnstile.address
        stand = self._sweep(address)
        if stand is not None:
            stand = self._bury_dead(address, stand, self._inboxes(address, None))
        if turnstile.announces:
            self.ahead.append((address, Signal(model.CHANGED, turnstile.address), self._inboxes(address, None)))
        if stand is None:
            return Snapshot(turnstile.kind, turnstile.name, 0)
        views = tuple(
            ClaimView(id, token, weight, token <= stand.frontier, owner, payload, self.now - since, ends - self.now)
            for id, token, weight, owner, payload, since, ends in self.db.execute(
                "SELECT id, token, weight, owner, payload, since, ends FROM claim WHERE turnstile = ? ORDER BY token",
                (address,),
            )
        )
        return Snapshot(turnstile.kind, turnstile.name, stand.capacity, views)

    def list(self, prefix: str) -> list[Turnstile]:
        prefix = self.prefix + prefix
        inboxes = [row[0] for row in self.db.execute("SELECT DISTINCT inbox FROM claim")]
        expired = self.db.execute("SELECT DISTINCT turnstile FROM claim WHERE ends <= ?", (self.now,)).fetchall()
        for (address,) in expired:
            self._sweep(address)
        self.bury(inbox for inbox in inboxes if not self._lives(inbox))
        rows = self.db.execute(
            "SELECT address, capacity, announces FROM turnstile WHERE address >= ? ORDER BY address", (prefix,)
        )
        found: list[Turnstile] = []
        for address, capacity, announces in rows:
            if not address.startswith(prefix):
                break
            kind, _, name = address[len(self.prefix) :].partition(":")
            found.append(Turnstile(kind, name, capacity, bool(announces)))
        return found

    def watch(self, turnstile_address: str) -> None:
        """Have changes announced to our inbox."""
        address = self.prefix + turnstile_address
        self.db.execute("INSERT OR IGNORE INTO watch VALUES (?, ?)", (address, self.inbox))
        self.ahead.append((address, Signal(model.CHANGED, turnstile_address), self._inboxes(address, None)))

    def unwatch(self, turnstile_address: str, inbox: str) -> None:
        self.db.execute("DELETE FROM watch WHERE turnstile = ? AND inbox = ?", (self.prefix + turnstile_address, inbox))

    def bury(self, inboxes: Iterable[str]) -> None:
        """Remove all that these processes left behind: they are dead."""
        for inbox in inboxes:
            self.alive[inbox] = False
            self.db.execute("DELETE FROM watch WHERE inbox = ?", (inbox,))
            left = self.db.execute("SELECT DISTINCT turnstile FROM claim WHERE inbox = ?", (inbox,)).fetchall()
            for (address,) in left:
                stand = self._sweep(address)
                if stand is not None:
                    self._bury_dead(address, stand, [inbox])

    # -- who may go

    def _sweep(self, address: str) -> Stand | None:
        """Drop what expired and admit whoever fits; None where nobody is left."""
        row = self.db.execute(_STAND, (address,)).fetchone()
        if row is None:
            return None
        stand, first_ends = Stand(*row[:5]), row[5]
        if first_ends is None or first_ends > self.now:
            return stand
        expired: list[Row] = self.db.execute(
            "SELECT token, weight FROM claim INDEXED BY claim_ends WHERE turnstile = ? AND ends <= ? LIMIT ?",
            (address, self.now, SWEEP),
        ).fetchall()
        return self._remove(address, stand, expired)

    def _remove(self, address: str, stand: Stand, rows: Iterable[Row]) -> Stand | None:
        """Take these claims out, then admit by the rule and tell those who were admitted; None where nobody is left."""
        db, load, frontier = self.db, stand.load, stand.frontier
        for token, weight in rows:
            db.execute("DELETE FROM claim WHERE turnstile = ? AND token = ?", (address, token))
            if token <= frontier:
                load -= weight
        waiting = db.execute(
            "SELECT token, weight, id, inbox FROM claim WHERE turnstile = ? AND token > ? ORDER BY token",
            (address, frontier),
        )
        admitted: list[tuple[str, str]] = []
        dead: list[int] = []
        blocked = False
        for token, weight, claim_id, inbox in waiting:
            if load + weight > stand.capacity:
                blocked = True
                break
            if self._lives(inbox):  # never hand over to the dead: nobody would notice before their lease ends
                load, frontier = load + weight, token
                admitted.append((inbox, claim_id))
            else:
                dead.append(token)
        waiting.close()
        for token in dead:
            db.execute("DELETE FROM claim WHERE turnstile = ? AND token = ?", (address, token))
        for inbox, claim_id in admitted:
            if blocked:
                self._signal(inbox, Signal(model.WANTED, claim_id))
            self._signal(inbox, Signal(model.ADMITTED, claim_id))
        # while anyone waits, all who are admitted were told that they are wanted
        stand = stand._replace(load=load, frontier=frontier, wanted=frontier if blocked else stand.wanted)
        self._announce(address, stand)
        if blocked or admitted or load > 0 or self._has_claims(address):
            return self._update(address, stand)
        db.execute("DELETE FROM turnstile WHERE address = ?", (address,))
        return None

    def _has_claims(self, address: str) -> bool:
        return self.db.execute("SELECT 1 FROM claim WHERE turnstile = ? LIMIT 1", (address,)).fetchone() is not None

    def _fits(self, address: str, stand: Stand, weight: int) -> bool:
        return stand.load + weight <= stand.capacity and not self._head(address, stand)

    def _head(self, address: str, stand: Stand) -> int:
        """The token of the first who waits; 0 where nobody does."""
        row = self.db.execute(
            "SELECT token FROM claim WHERE turnstile = ? AND token > ? ORDER BY token LIMIT 1",
            (address, stand.frontier),
        ).fetchone()
        return 0 if row is None else row[0]

    def _standing(self, address: str, stand: Stand, token: int, claim_id: str) -> Standing:
        if token <= stand.frontier:
            self.ahead.append((address, Signal(model.NUDGE, claim_id), None))
            return Standing(State.ADMITTED, token, token <= stand.wanted or self._head(address, stand) > 0)
        self.ahead.append((address, Signal(model.NUDGE, claim_id), self._inboxes(address, token)))
        before = self.db.execute(
            "SELECT token, ends FROM claim WHERE turnstile = ? AND token < ? ORDER BY token DESC LIMIT 1",
            (address, token),
        ).fetchone()
        if before is None:
            return Standing(State.WAITING, token)
        last, ends = before
        if last <= stand.frontier:
            (ends,) = self.db.execute(
                "SELECT min(+ends) FROM claim WHERE turnstile = ? AND token <= ?", (address, stand.frontier)
            ).fetchone()
        return Standing(State.WAITING, token, look_in_s=ends - self.now)

    def _renew(self, address: str, claim: Claim) -> Standing:
        stand = self._sweep(address)
        row = None
        if stand is not None:
            row = self.db.execute(
                "SELECT token, inbox FROM claim WHERE turnstile = ? AND id = ?", (address, claim.id)
            ).fetchone()
        if stand is None or row is None:
            self.ahead.append((address, Signal(model.NUDGE, claim.id), None))
            return Standing(State.GONE)
        token, inbox = row
        self.db.execute(
            "UPDATE claim SET ends = ?, inbox = ? WHERE turnstile = ? AND token = ?",
            (self.now + claim.ttl_s, claim.inbox, address, token),
        )
        if claim.inbox == self.inbox:
            self.alive[inbox] = True  # whose claim we renew is not judged by what it hung on before
        if token > stand.frontier:
            stand = self._bury_dead(address, stand, self._inboxes(address, token)) or stand
        return self._standing(address, stand, token, claim.id)

    # -- who lives

    def _lives(self, inbox: str) -> bool:
        known = self.alive.get(inbox)
        if known is None:
            known = self.alive[inbox] = self.is_alive(inbox)
        return known

    def _inboxes(self, address: str, before: int | None) -> set[str]:
        """The other processes of the first claims, or of those before a token."""
        rows = self.db.execute(
            "SELECT inbox FROM claim WHERE turnstile = ? AND token < ? ORDER BY token LIMIT ?",
            (address, 1 << 62 if before is None else before, AHEAD if before is not None else SWEEP),
        )
        return {row[0] for row in rows} - {"", self.inbox}

    def _bury_dead(self, address: str, stand: Stand, inboxes: Iterable[str]) -> Stand | None:
        dead = [inbox for inbox in inboxes if not self._lives(inbox)]
        if not dead:
            return stand
        rows: list[Row] = []
        for inbox in dead:
            rows += self.db.execute(
                "SELECT token, weight FROM claim WHERE turnstile = ? AND inbox = ?", (address, inbox)
            ).fetchall()
        return self._remove(address, stand, rows)

    # -- telling

    def _want(self, address: str, stand: Stand) -> Stand:
        """Tell the admitted, once each, that somebody asked for what they hold."""
        if stand.wanted >= stand.frontier:
            return stand
        for claim_id, inbox in self.db.execute(
            "SELECT id, inbox FROM claim WHERE turnstile = ? AND token > ? AND token <= ?",
            (address, stand.wanted, stand.frontier),
        ):
            self._signal(inbox, Signal(model.WANTED, claim_id))
        return self._update(address, stand._replace(wanted=stand.frontier))

    def _announce(self, address: str, stand: Stand) -> None:
        if stand.announces:
            signal = Signal(model.CHANGED, address[len(self.prefix) :])
            for (inbox,) in self.db.execute("SELECT inbox FROM watch WHERE turnstile = ?", (address,)):
                self._signal(inbox, signal)

    def _signal(self, inbox: str, signal: Signal) -> None:
        if inbox:
            self.outbox.setdefault(inbox, []).append(signal)

    # -- rows

    def _update(self, address: str, stand: Stand) -> Stand:
        self.db.execute(
            "UPDATE turnstile SET load = ?, frontier = ?, wanted = ? WHERE address = ?",
            (stand.load, stand.frontier, stand.wanted, address),
        )
        return stand

    def _next_token(self) -> int:
        (last,) = self.db.execute("SELECT last_token FROM meta").fetchone()
        token = rule.next_token(last, self.tokens_us())
        self.db.execute("UPDATE meta SET last_token = ?", (token,))
        return token

    def _outcome(self, address: str, claim_id: str) -> bool | None:
        """What the tombstone of this id says; None where there is none."""
        row = self.db.execute(
            "SELECT was_there FROM tombstone WHERE turnstile = ? AND id = ? AND until > ?",
            (address, claim_id, self.now),
        ).fetchone()
        return None if row is None else bool(row[0])

    def _dig(self, address: str, claim_id: str, *, was_there: bool) -> None:
        old = self.db.execute("SELECT turnstile, id FROM tombstone WHERE until <= ? LIMIT 64", (self.now,)).fetchall()
        self.db.executemany("DELETE FROM tombstone WHERE turnstile = ? AND id = ?", old)
        self.db.execute(
            "INSERT OR REPLACE INTO tombstone VALUES (?, ?, ?, ?)",
            (address, claim_id, self.now + TOMBSTONE_S, was_there),
        )
