"""What many threads write to one ZooKeeper connection goes out once, in order, and whole."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import pytest

pytest.importorskip("kazoo")

from holdfast.engines.zookeeper.connection import Buffered, Slot
from holdfast.engines.zookeeper.kazoo import new_client
from holdfast.engines.zookeeper.target import target_at
from holdfast.engines.zookeeper.wire import Sync


def test_what_was_half_written_is_completed_once_and_nobody_writes_in_between() -> None:
    ours, theirs = socket.socketpair()
    connection = new_client(target_at("zookeeper://127.0.0.1"))._connection
    connection._read_sock, connection._write_sock = socket.socketpair()
    sock: Any = Buffered(ours)
    connection._socket, connection._xid, connection._open = sock, 0, True
    inside, go_on = threading.Event(), threading.Event()

    def narrow(data: bytes) -> int:
        """Has no room for all, and is slow."""
        inside.set()
        assert go_on.wait(10)
        sock.send = ours.send
        return ours.send(data[:7])

    sock.send = narrow
    asked: list[Any] = [(Sync("/"), Slot(lambda index, reply: None, 0))] * 3
    posts = threading.Thread(target=connection.post, args=(asked,))
    posts.start()
    assert inside.wait(10)
    flushes = threading.Thread(target=connection._write_rest, args=(10.0,))  # as the connection's thread does
    flushes.start()
    flushes.join(0.2)
    go_on.set()
    posts.join(10)
    flushes.join(10)
    connection.post(asked[:1])
    connection._send_request(10.0, 10.0)
    sent = theirs.recv(1 << 16)
    (size,) = struct.unpack_from(">i", sent)
    xids = [struct.unpack_from(">i", sent, at + 4)[0] for at in range(0, len(sent), size + 4)]
    assert xids == [1, 2, 3, 4]
    assert [xid for _, _, xid in connection.client._pending] == xids
    for one in (ours, theirs, connection._read_sock, connection._write_sock):
        one.close()
