"""PostgreSQL with its disk, for which our entering waits, since it survives a crash; an advisory lock does not.

Free locks only: among many processes it would be the disk that is measured.
"""

from __future__ import annotations

from postgres_server import PostgresServer

from . import Peer, postgres, served

LATE = "?options=-csynchronous_commit%3Doff"
"""What a user may put in the URL: the last moments before a crash may then be lost."""


def _peer(name: str) -> Peer:
    return postgres.ENGINE.peer(name)._replace(use="pair")


def _late(url: str) -> object:
    return _peer("holdfast").make(url + LATE)


ENGINE = postgres.ENGINE._replace(
    name="postgres_disk",
    title="PostgreSQL, with the disk",
    counter=None,
    serve=lambda: served(lambda folder: PostgresServer(folder, fsync=True)),
    peers=(
        *(_peer(name) for name in ("floor", "holdfast", "holdfast.aio")),
        _peer("holdfast")._replace(name="holdfast, synchronous_commit = off", make=_late),
        _peer("advisory lock"),
    ),
)
