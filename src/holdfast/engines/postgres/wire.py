"""One connection to PostgreSQL: dialled, looked at, prepared; calls on it are pipelined, each its own transaction.

libpq does the protocol, TLS and authentication; psycopg's layer above it is left out of calls, because a lock is two
round trips and each costs what the server costs and little more.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import pq

from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported
from . import errors
from .dial import adopted, await_socket, dialled, wait_for
from .schema import LOCK_KEY, OLDEST_SERVER, PREPARED, VERSION, Statement, script
from .target import Postgres

ERROR, ABORTED, SYNC = pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED, pq.ExecStatus.PIPELINE_SYNC

SQLSTATE = pq.DiagnosticField.SQLSTATE

READ_COMMITTED = b"BEGIN ISOLATION LEVEL READ COMMITTED"
CATALOG_FIRST = b"SET LOCAL search_path TO pg_catalog"
"""A call is wrapped in these where a pooler's sessions have other defaults, which are not ours to change."""

Call = tuple[Statement, Sequence[bytes | None]]


class Wire:
    """A connection. ``pooled``: it leads through a pooler, so nothing may be left on the server's session."""

    def __init__(self, target: Postgres, timeout_s: float, made: Any = None) -> None:
        """Connect, for ``timeout_s`` at most. ``made`` is what the user's function returned."""
        self.where = target.where
        self.target = target
        self.closed = False
        self.rested_at = 0.0
        self.pooled = False
        self._wraps = False
        self.waits: deque[Any] = deque()
        """Who waits for a reply, in the order of the calls."""
        self._statements: dict[str, bytes] = {}
        self._results: list[Any] = []
        self._owner = made
        until = time.monotonic() + timeout_s
        if not psycopg.capabilities.has_pipeline():
            raise Unsupported("holdfast needs libpq 14 or newer: pip install 'psycopg[binary]'")
        self.pg: Any = adopted(made) if made is not None else dialled(target, timeout_s)
        try:
            self.pg.nonblocking = 1
            self._role, self._database = self.pg.user.decode(), self.pg.db.decode()
            if self.pg.server_version // 10000 < OLDEST_SERVER:
                raise Unsupported(
                    f"holdfast needs PostgreSQL {OLDEST_SERVER} or newer; {self.where} is {self.pg.server_version}"
                )
            self._look(until)
            self.fileno: int = self.pg.socket
        except BaseException:
            self.close()
            raise

    def refused(self, result: Any) -> HoldfastError:
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        text = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
        if state in errors.ENDED or state in errors.VANISHED:
            self.closed = True
        return errors.refused(state, text, self.where, errors.rights(self.target.schema, self._role))

    # -- before it is used

    def _look(self, until: float) -> None:
        """What is at the other end? Refuse what cannot do; make the schema where there is none."""
        schema = self.target.schema
        look = (
            "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery(),"
            " pg_catalog.current_setting('transaction_read_only'),"
            f" pg_catalog.to_regclass('\"{schema}\".meta') IS NOT NULL,"
            " pg_catalog.strpos(pg_catalog.current_setting('search_path'), 'pg_catalog') > 1"
        )
        (found,) = self.ask(look, until)
        pid, recovers, read_only, stands, odd_path = (found.get_value(0, column) for column in range(5))
        self.pooled = int(pid) != self.pg.backend_pid
        self._wraps = self.pooled and odd_path == b"t"
        if recovers == b"t":
            raise errors.read_only(self.where, "it is a standby")
        if read_only == b"on":
            raise errors.read_only(self.where, "default_transaction_read_only is on")
        if self.pooled:
            try:
                self.ask("BEGIN", until)
                self.ask("ROLLBACK", until)
            except HoldfastError as trouble:
                if "statement pooling" in str(trouble):
                    raise errors.statement_pooling(self.where) from None
                raise
        if stands != b"t":
            self._install(until)
        (version,) = self.ask(f'SELECT max(version) FROM "{schema}".meta', until)
        if version.get_value(0, 0) != b"%d" % VERSION:
            raise errors.newer(schema, (version.get_value(0, 0) or b"unknown").decode(), VERSION)

    def prepare(self, until: float) -> None:
        """For calls: from now on they are pipelined."""
        if not self.pooled:
            isolation = "SET search_path TO pg_catalog; SET default_transaction_isolation TO 'read committed'"
            texts = [f"PREPARE holdfast_{one.name} AS {one.text(self.target.schema).decode()}" for one in PREPARED]
            self.ask("; ".join([isolation, *texts]), until)
            self._statements = {one.name: f"holdfast_{one.name}".encode() for one in PREPARED}
        self.pg.enter_pipeline_mode()

    def _install(self, until: float) -> None:
        """Make the schema; of many that come at once, one does."""
        schema = self.target.schema
        self.ask("BEGIN ISOLATION LEVEL READ COMMITTED", until)
        try:
            self.ask(f"SELECT pg_catalog.pg_advisory_xact_lock({LOCK_KEY})", until)
            (found,) = self.ask(
                f"SELECT pg_catalog.to_regclass('\"{schema}\".meta'), pg_catalog.to_regnamespace('\"{schema}\"')", until
            )
            if found.get_value(0, 0) is None:
                if found.get_value(0, 1) is None:
                    self.ask(f'CREATE SCHEMA "{schema}"', until)
                self.ask(script(schema).decode(), until)
            self.ask("COMMIT", until)
        except Misuse as trouble:
            raise errors.may_not_create(schema, self._role, self._database, str(trouble)) from None

    def ask(self, text: str, until: float) -> list[Any]:
        """Plain SQL, before the connection is in use for calls."""
        pg = self.pg
        try:
            pg.send_query(text.encode())
            results: list[Any] = []
            while True:
                while pg.flush():
                    await_socket(pg.socket, until, writes=True)
                while pg.is_busy():
                    await_socket(pg.socket, until)
                    pg.consume_input()
                result = pg.get_result()
                if result is None:
                    return results
                if result.status == ERROR:
                    error = self.refused(result)
                    while (result := pg.get_result()) is not None and pg.status == pq.ConnStatus.OK:
                        pass
                    raise error
                results.append(result)
        except TimeoutError:
            raise Unavailable(f"PostgreSQL at {self.where} did not answer in time") from None
        except psycopg.Error as error:
            raise errors.not_connected(str(error), self.where, 0.0) from None

    # -- calls

    def send(self, call: Call, waiter: Any, wraps: bool) -> None:
        """Put a call on its way; `receive` gives its reply beside ``waiter``."""
        statement, values = call
        try:
            wraps = wraps or self._wraps
            if wraps:
                self.pg.send_query_params(READ_COMMITTED, None)
                self.pg.send_query_params(CATALOG_FIRST, None)
            prepared = self._statements.get(statement.name)
            if prepared is not None:
                self.pg.send_query_prepared(prepared, values, statement.formats, statement.form)
            else:
                text = statement.text(self.target.schema)
                self.pg.send_query_params(text, values, statement.types, statement.formats, statement.form)
            if wraps:
                self.pg.send_query_params(b"COMMIT", None)
            self.waits.append(waiter)
            self.pg.pipeline_sync()
        except psycopg.Error as error:
            self.closed = True
            raise OutcomeUnknown(self._lost(error)) from None

    def receive(self) -> list[tuple[Any, Any]]:
        """What came since: waiters and their results. Raises `OutcomeUnknown` once the connection is lost."""
        done: list[tuple[Any, Any]] = []
        pg = self.pg
        try:
            pg.consume_input()
        except psycopg.Error as error:
            self.closed = True
            if not self._results:
                raise OutcomeUnknown(self._lost(error)) from None
        nothing = False
        while self.waits and not pg.is_busy():
            result = pg.get_result()
            if result is None:
                if nothing:
                    break
                nothing = True
                continue
            nothing = False
            if result.status != SYNC:
                self._results.append(result)
                continue
            done.append((self.waits.popleft(), self._judged()))
        if pg.status != pq.ConnStatus.OK:
            self.closed = True
        return done

    def _judged(self) -> Any:
        """The one result of a call that counts."""
        results, self._results = self._results, []
        for result in results:
            if result.status == ERROR:
                if len(results) > 1:  # it was wrapped, and its transaction still stands open
                    self._roll_back()
                return result
        return results[max(0, len(results) - 2)] if results else OutcomeUnknown(self._lost("no result"))

    def _roll_back(self) -> None:
        self.pg.send_query_params(b"ROLLBACK", None)
        self.waits.append(None)
        self.pg.pipeline_sync()

    def _lost(self, why: object) -> str:
        return f"PostgreSQL at {self.where} may or may not have done it: {' '.join(str(why).split())}"

    def flush(self) -> bool:
        """True once all was handed to the system."""
        try:
            return not self.pg.flush()
        except psycopg.Error as error:
            self.closed = True
            raise OutcomeUnknown(self._lost(error)) from None

    def exchange(self, calls: Sequence[Call], timeout_s: float, wraps: bool) -> list[Any]:
        """Send all and wait for their replies. Where fewer come before it fails, the rest are `OutcomeUnknown`."""
        replies: list[Any] = [None] * len(calls)
        missing = len(calls)
        until = time.monotonic() + timeout_s
        try:
            for number, call in enumerate(calls):
                self.send(call, number, wraps)
            flushed = self.flush()
            while missing:
                await_socket(self.fileno, until, writes=not flushed)
                for waiter, result in self.receive():
                    if waiter is not None:
                        replies[waiter] = result
                        missing -= 1
                if self.closed and missing:
                    raise OutcomeUnknown(self._lost("the server closed the connection"))
                flushed = flushed or self.flush()
        except (OutcomeUnknown, TimeoutError) as error:
            self.close()
            lost = error if isinstance(error, OutcomeUnknown) else self._lost(f"no reply within {timeout_s:.1f} s")
            unknown = lost if isinstance(lost, OutcomeUnknown) else OutcomeUnknown(lost)
            return [unknown if reply is None else reply for reply in replies]
        return replies

    # -- ends

    def is_fresh(self) -> bool:
        """Nothing came while it rested: neither the end of the connection nor what does not belong to a call."""
        return not wait_for(0.0, self.fileno)

    def close(self) -> None:
        self.closed = True
        if getattr(self, "pg", None) is not None:
            self.pg.finish()


_abandoned: list[Wire] = []
"""Kept, so that no destructor in a forked child says goodbye to the server in its parent's name."""


def abandon(wire: Wire) -> None:
    """Let go of a forked child's copy of the socket without a word to the server."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, wire.fileno, inheritable=False)
    os.close(null)
    wire.closed = True
    _abandoned.append(wire)
