"""Replies that are lost after the server did the work, and requests that come again long after they were answered.

Each operation is asked again under its own id: what counts is what the first try did, and nothing lands twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from proxy import TcpProxy
from redis_live import LiveRedis, Waiter, gone, renewed

from holdfast import Unavailable
from holdfast.engines.redis.engine import RedisEngine
from holdfast.engines.redis.scripts import ENTER, LEAVE, OPEN, PUT, RENEW
from holdfast.hooks import Event
from holdfast.model import Change, Claim, Fence, Turnstile

pytestmark = pytest.mark.live

Connect = Callable[..., Any]


@pytest.fixture(autouse=True)
def _scripts_are_known(server: LiveRedis) -> None:
    """So that what the proxy sees first of an operation is the operation, and not the question for its script."""
    engine = RedisEngine(server.url)
    link: Any = engine.blocking_link()
    turnstile, claim, fence = Turnstile("lock", "first", 1), Claim("id", 1, 1.0), Fence("lock:first", 1, "id", 1)
    requests = [
        engine.enter(turnstile, claim, False),
        *engine.renew([(turnstile, claim)]),
        engine.leave(turnstile, claim.id, False),
        engine.open("first", fence),
        engine.put("first", fence, 1, "op", b"", []),
    ]
    replies = link.call_many(requests, 5.0)
    link.close()
    assert not [reply for reply in replies if isinstance(reply, Exception)]


@pytest.fixture
def steps() -> list[Event]:
    return []


@pytest.fixture
def client(proxy: TcpProxy, connect: Connect, steps: list[Event]) -> Any:
    """Behind the proxy. A try has a second; what is held back for longer is asked again."""
    return connect(proxy.url, patience_s=2.0, hooks=[steps.append])


def kinds(steps: list[Event]) -> list[str]:
    return [step.kind for step in steps if step.kind != "renewed"]


# -- the reply is lost


def test_an_enter_whose_reply_was_lost_gives_the_lease_of_the_first_try(
    server: LiveRedis, proxy: TcpProxy, client: Any
) -> None:
    proxy.swallow_reply_to(ENTER.by_sha)
    lease = client.lock("x").acquire()
    assert b"1 %d " % lease.token in proxy.lost
    assert [claim.token for claim in server.claims("x")] == [lease.token]
    lease.release()
    assert server.claims("x") == ()


def test_a_waiter_whose_reply_was_lost_keeps_the_place_of_the_first_try(
    server: LiveRedis, proxy: TcpProxy, client: Any, connect: Connect
) -> None:
    holder = connect(server.url).lock("x").acquire()
    proxy.swallow_reply_to(ENTER.by_sha)
    waiter = Waiter(server, client, ttl_s=15.0)
    behind = Waiter(server, connect(server.url), ttl_s=15.0)
    assert proxy.happened.wait(20)
    holder.release()
    entered = waiter.entered()
    assert b"2 %d " % entered.token in proxy.lost
    assert server.waiters("x") == 1
    entered.release()
    behind.entered().release()
    assert server.claims("x") == ()


def test_a_refusal_whose_reply_was_lost_is_a_refusal_and_leaves_nothing(
    server: LiveRedis, proxy: TcpProxy, client: Any, connect: Connect
) -> None:
    holder = connect(server.url).lock("x").acquire()
    proxy.swallow_reply_to(ENTER.by_sha)
    assert client.lock("x").try_acquire() is None
    assert proxy.lost
    assert [claim.token for claim in server.claims("x")] == [holder.token]
    holder.release()


def test_a_leave_whose_reply_was_lost_is_a_release_and_no_loss(
    server: LiveRedis, proxy: TcpProxy, client: Any, connect: Connect, steps: list[Event]
) -> None:
    lease = client.lock("x").acquire()
    waiter = Waiter(server, connect(server.url), ttl_s=15.0)
    proxy.swallow_reply_to(LEAVE.by_sha)
    lease.release()
    assert proxy.lost.startswith(b":1")
    assert lease.state == "RELEASED"
    following = waiter.entered()
    assert server.holders("x") == [following.token]
    following.release()
    assert server.claims("x") == ()
    assert [kind for kind in kinds(steps) if kind != "wanted"] == ["held", "released"]


def test_a_renewal_whose_reply_was_lost_costs_nothing(
    server: LiveRedis, proxy: TcpProxy, client: Any, steps: list[Event]
) -> None:
    proxy.swallow_reply_to(RENEW.by_sha)
    lease = client.lock("x", ttl_s=3.0).acquire()
    assert proxy.happened.wait(20)
    assert b"1 %d " % lease.token in proxy.lost
    renewed(lease)
    assert lease.state == "HELD"
    assert server.holders("x") == [lease.token]
    lease.release()
    assert server.claims("x") == ()
    assert kinds(steps) == ["held", "unsure", "released"]


def test_an_open_whose_reply_was_lost_is_one_opening(server: LiveRedis, proxy: TcpProxy, client: Any) -> None:
    lease = client.lock("x").acquire()
    for version in (1, 3):
        proxy.swallow_reply_to(OPEN.by_sha)
        opened = client.cell("ledger").open(lease)
        assert proxy.lost
        proxy.lost = b""
        assert opened.version == version
        opened.put(b"%d" % version)
    assert (server.cell("ledger").version, server.cell("ledger").value) == (4, b"3")
    lease.release()


def test_a_put_whose_reply_was_lost_lands_once_and_tells_what_the_first_try_did(
    server: LiveRedis, proxy: TcpProxy, client: Any
) -> None:
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    proxy.swallow_reply_to(PUT.by_sha)
    created = opened.put(b"one", [Change("entry", b"made", create=True)])
    assert proxy.lost
    assert created == (True,)
    assert opened.version == server.cell("ledger").version == 2
    assert opened.put(b"two", [Change("entry", b"made again", create=True)]) == (False,)
    cell = server.cell("ledger")
    assert (cell.version, cell.value, cell.entries) == (3, b"two", {"entry": b"made"})
    lease.release()


# -- the request is late, and a copy of it was answered meanwhile


def test_a_late_copy_of_an_enter_makes_no_second_claim_and_no_orphan(
    server: LiveRedis, proxy: TcpProxy, client: Any
) -> None:
    proxy.hold_back(ENTER.by_sha)
    lease = client.lock("x").acquire()
    proxy.deliver_held()
    assert [claim.token for claim in server.claims("x")] == [lease.token]
    lease.release()
    proxy.deliver_held()
    assert server.claims("x") == ()


def test_an_enter_that_comes_after_its_owner_gave_up_leaves_no_orphan(
    server: LiveRedis, proxy: TcpProxy, client: Any
) -> None:
    proxy.hold_back(ENTER.by_sha)
    with pytest.raises(Unavailable, match="did not serve enter"):
        client.lock("x").acquire(timeout_s=0.1)
    gone(server, "x")
    client.ping()
    proxy.deliver_held()
    assert server.claims("x") == ()
    client.lock("x").acquire(timeout_s=0.0).release()


def test_a_late_copy_of_a_leave_harms_no_later_holder(server: LiveRedis, proxy: TcpProxy, client: Any) -> None:
    lease = client.lock("x").acquire()
    proxy.hold_back(LEAVE.by_sha)
    lease.release()
    assert proxy.happened.is_set()
    assert server.claims("x") == ()
    following = client.lock("x", ttl_s=3.0).acquire()
    proxy.deliver_held()
    assert server.holders("x") == [following.token]
    renewed(following)
    following.release()
    assert server.claims("x") == ()


def test_a_late_copy_of_a_renewal_extends_no_more_than_what_stands(
    server: LiveRedis, proxy: TcpProxy, client: Any, steps: list[Event]
) -> None:
    proxy.hold_back(RENEW.by_sha)
    lease = client.lock("x", ttl_s=3.0).acquire()
    assert proxy.happened.wait(20)
    renewed(lease)
    proxy.deliver_held()
    assert server.holders("x") == [lease.token]
    assert server.claims("x")[0].remaining_s <= 3.0
    lease.release()
    proxy.deliver_held()
    assert server.claims("x") == ()
    following = client.lock("x").acquire()
    proxy.deliver_held()
    assert server.holders("x") == [following.token]
    following.release()
    assert kinds(steps) == ["held", "unsure", "released", "held", "released"]


def test_a_late_copy_of_an_open_ends_no_opening(server: LiveRedis, proxy: TcpProxy, client: Any) -> None:
    lease = client.lock("x").acquire()
    proxy.hold_back(OPEN.by_sha)
    opened = client.cell("ledger").open(lease)
    assert proxy.happened.is_set()
    opened.put(b"one")
    proxy.deliver_held()
    opened.put(b"two")
    reopened = client.cell("ledger").open(lease)
    proxy.deliver_held()
    reopened.put(b"three")
    assert (reopened.version, server.cell("ledger").version, server.cell("ledger").value) == (5, 5, b"three")
    lease.release()


def test_a_late_copy_of_a_put_writes_over_nothing(
    server: LiveRedis, proxy: TcpProxy, client: Any, connect: Connect
) -> None:
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    proxy.hold_back(PUT.by_sha)
    opened.put(b"one", [Change("entry", b"made", create=True)])
    assert proxy.happened.is_set()
    proxy.deliver_held()  # as the last put, still
    opened.put(b"two", [Change("entry", None)])
    proxy.deliver_held()
    assert (server.cell("ledger").value, server.cell("ledger").entries) == (b"two", {})
    opened.put(b"three")
    lease.release()
    other = connect(server.url)
    following = other.lock("x").acquire()
    after = other.cell("ledger").open(following)
    proxy.deliver_held()
    after.put(b"four")
    proxy.deliver_held()
    assert (server.cell("ledger").value, server.cell("ledger").entries) == (b"four", {})
    following.release()
