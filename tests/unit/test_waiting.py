"""Waiting: what a signal says is not missed, whoever else makes signals flow."""

from __future__ import annotations

from typing import Any

import pytest

import holdfast


def test_a_turn_that_came_while_another_thread_made_signals_flow_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    with holdfast.connect("memory://shared") as other, holdfast.connect("memory://shared") as client:
        lease = other.lock("x").acquire()
        session = client.session
        listen = session.world.listen

        async def listen_late(*args: Any) -> bool:
            lease.release()  # and its signal finds nobody
            assert await listen(*args)  # another thread is quicker to listen
            assert not await listen(*args)
            return False

        monkeypatch.setattr(session.world, "listen", listen_late)
        client.lock("x", ttl_s=60.0).acquire(timeout_s=10).release()
