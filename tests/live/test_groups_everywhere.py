"""Groups with real processes: a member that is stopped, resumed and stopped again; a server that is restarted."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peer import Peer
from redis_live import LiveRedis
from servers import eventually

import holdfast
from holdfast import aio

pytestmark = pytest.mark.live

TTL_S = 4
"""Short, so that the dead are not waited for long; long enough for a busy machine to be no death."""


@pytest.fixture(params=["redis", "sqlite"])
def url(request: pytest.FixtureRequest) -> str:
    value = request.getfixturevalue(f"{request.param}_url")
    assert isinstance(value, str)
    return value


@pytest.fixture
def peers(url: str) -> Iterator[list[Peer]]:
    peers = [Peer("sync", url), Peer("aio", url)]
    yield peers
    for peer in peers:
        peer.close()


def test_a_stopped_member_is_suspect_then_gone_and_the_others_are_alive(url: str, peers: list[Peer]) -> None:
    stopped, other = peers
    other.do("join", "g", "other", TTL_S)
    with holdfast.connect(url) as hf, hf.group("g").health() as health:
        events = hf.group("g").events(timeout_s=30)
        assert next(events).member.payload == b"other"
        stopped.do("join", "g", "stopped", TTL_S)

        def kinds(*until: str) -> list[str]:
            """What is told of the one that is stopped."""
            told: list[str] = []
            for event in events:
                if event.member.payload == b"stopped":
                    told.append(event.kind)
                    if event.kind in until:
                        break
            return told

        def alive() -> list[bytes]:
            return [member.payload for member in health.alive()]

        assert kinds("JOINED") == ["JOINED"]
        eventually(lambda: alive() == [b"other", b"stopped"])
        stopped.signal(signal.SIGSTOP)
        assert kinds("SUSPECT", "GONE", "LEFT")[-1] == "SUSPECT"
        eventually(lambda: alive() == [b"other"])
        stopped.signal(signal.SIGCONT)
        assert kinds("ALIVE", "GONE", "LEFT")[-1] == "ALIVE"
        assert stopped.do("state") == "HELD"
        eventually(lambda: alive() == [b"other", b"stopped"])
        stopped.signal(signal.SIGSTOP)
        *before, last = kinds("GONE", "LEFT")
        assert (before[-1], last) == ("SUSPECT", "GONE")
        eventually(lambda: alive() == [b"other"] and not health.suspects())
        stopped.signal(signal.SIGCONT)
        assert stopped.do("wait_lost", 10.0)
        other.do("release")
        assert next(event for event in events if event.kind == "LEFT").member.payload == b"other"


def test_what_watches_may_be_closed_after_its_client(url: str) -> None:
    with holdfast.connect(url) as hf:
        watching: Any = hf.group("g").watch()
        assert next(watching) == []
        health = hf.group("g").health()
    watching.close()
    health.close()

    async def main() -> None:
        async with aio.connect(url) as ahf:
            events: Any = ahf.group("g").events()
            lease = await ahf.group("g").join()
            assert (await anext(events)).kind == "JOINED"
            health = await ahf.group("g").health()
        await events.aclose()
        health.close()
        assert not lease.is_held

    asyncio.run(main())


def test_a_watch_sees_the_last_state_after_the_server_was_restarted_without_its_data(tmp_path: Path) -> None:
    server, seen = LiveRedis(tmp_path), list[list[bytes]]()
    with holdfast.connect(server.url, patience_s=2) as watching, holdfast.connect(server.url) as hf:
        before = hf.group("g").join(b"before", TTL_S)

        def watch() -> None:
            for members in watching.group("g").watch():
                seen.append([member.payload for member in members])
                if seen[-1] == [b"after", b"last"]:
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        with watching.group("g").health() as health:
            eventually(lambda: seen == [[b"before"]])
            server.kill()
            eventually(lambda: health.age_s > 3)
            assert [member.payload for member in health.alive()] == [b"before"]
            server.start()
            after: Any = hf.group("g").join(b"after", TTL_S)
            last = hf.group("g").join(b"last", TTL_S)
            watcher.join(30)
            assert (seen[0], seen[-1]) == ([b"before"], [b"after", b"last"])
            eventually(lambda: [member.payload for member in health.alive()] == [b"after", b"last"], 20)
        assert before.wait_lost(20)
        after.release()
        last.release()
    server.close()
