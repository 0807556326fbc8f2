"""Connections by libpq: made within a time, or taken over from what a user's function made; and waiting for sockets."""

from __future__ import annotations

import select
import time
from typing import Any

import psycopg
from psycopg import pq

from ...errors import HoldfastError, Misuse, Unavailable
from . import errors
from .target import Postgres


def dialled(target: Postgres, timeout_s: float) -> Any:
    """A new connection of libpq's to the first host that will do."""
    started = time.monotonic()
    attempts = target.attempts()
    trouble: HoldfastError | None = None
    for number, conninfo in enumerate(attempts):
        left_s = started + timeout_s - time.monotonic()
        until = time.monotonic() + max(0.05, left_s / (len(attempts) - number))
        pg: Any = pq.PGconn.connect_start(conninfo)
        try:
            while True:
                if pg.status == pq.ConnStatus.BAD:
                    raise psycopg.OperationalError(pg.get_error_message())
                step = pg.connect_poll()
                if step == pq.PollingStatus.OK:
                    return pg
                if step == pq.PollingStatus.FAILED:
                    raise psycopg.OperationalError(pg.get_error_message())
                await_socket(pg.socket, until, writes=step == pq.PollingStatus.WRITING)
        except (psycopg.Error, TimeoutError) as error:
            pg.finish()
            text = "it did not answer" if isinstance(error, TimeoutError) else str(error)
            trouble = errors.not_connected(text, target.where, time.monotonic() - started)
        except BaseException:
            pg.finish()
            raise
    assert trouble is not None
    raise trouble


def adopted(made: Any) -> Any:
    """libpq's connection in one that the user's function made for us."""
    if not isinstance(made, psycopg.Connection | psycopg.AsyncConnection):
        raise Misuse(f"the function that makes connections returned {type(made).__name__}, not a psycopg connection")
    pg: Any = made.pgconn
    if pg.status != pq.ConnStatus.OK:
        raise Unavailable("the function that makes connections returned a closed one")
    if pg.transaction_status != pq.TransactionStatus.IDLE or pg.pipeline_status != pq.PipelineStatus.OFF:
        raise Misuse(
            "the function that makes connections returned one that is in use: holdfast never joins your transactions; "
            "let it make a new connection each time"
        )
    return pg


def wait_for(until: float, *sockets: int, writes: bool = False) -> set[int]:
    """Those of the sockets that may be read (or, with ``writes``, written); none once the time is over."""
    left_s = max(0.0, until - time.monotonic())
    if not hasattr(select, "poll"):
        reads, writable, _ = select.select(sockets, sockets if writes else [], [], left_s)
        return {*reads, *writable}
    poll = select.poll()
    for socket in sockets:
        poll.register(socket, select.POLLIN | (select.POLLOUT if writes else 0))
    return {socket for socket, _ in poll.poll(left_s * 1000)}


def await_socket(socket: int, until: float, writes: bool = False) -> None:
    """Until the socket is ready; raises TimeoutError."""
    if not wait_for(until, socket, writes=writes):
        raise TimeoutError
