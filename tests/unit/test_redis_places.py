"""What the URLs of Redis on more than one server say, and how a cluster's map is used."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("redis")

from holdfast.engines import engine_for
from holdfast.engines.redis.places import Acks, Cluster, Sentinels, acks_in, place_at
from holdfast.engines.redis.slots import Slots, routed, slot_of
from holdfast.engines.redis.wire import Eval, Refusal, bulk
from holdfast.errors import Misuse, Unavailable

A, B, C = ("a", 1), ("b", 2), ("c", 3)


def test_a_sentinel_url_names_hosts_service_database_and_logins() -> None:
    url = "redis+sentinel://app:p%40ss@h1,h2:7,[::1]:8/main/3?sentinel_password=other&socket_timeout=4"
    place = place_at(url, asynchronous=False)
    assert isinstance(place, Sentinels)
    assert [one.where for one in place.sentinels] == ["h1:26379", "h2:7", "::1:8"]
    assert (place.service, place.primary.options["db"]) == ("main", 3)
    assert (place.primary.options["username"], place.primary.options["password"]) == ("app", "p@ss")
    assert {one.options["password"] for one in place.sentinels} == {"other"}
    assert place.primary.options["socket_timeout"] == 4
    assert not {"p@ss", "other"} & set(place.identity.split(":"))


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_tls_is_asked_for_by_the_scheme(scheme: str, asynchronous: bool) -> None:
    sentinels = place_at(f"{scheme}+sentinel://h/main", asynchronous)
    cluster = place_at(f"{scheme}+cluster://h", asynchronous)
    assert isinstance(sentinels, Sentinels)
    assert isinstance(cluster, Cluster)
    kinds = {sentinels.primary.kind, sentinels.sentinels[0].kind, cluster.node.kind}
    assert [kind.__name__ for kind in kinds] == ["SSLConnection"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://h1,h2", "names no service"),
        ("redis+sentinel://h1/main/one", "database is a number"),
        ("redis+sentinel://h1,:9/main", "hosts"),
        ("redis+cluster://h1:port", "hosts"),
        ("redis+cluster://h1/1", "one database"),
        ("redis+cluster://h1?no_such_option=1", "redis-py does not take"),
        ("redis://h1?wait_replicas=0", "wait_replicas"),
        ("redis://h1?wait_replicas=1&wait_timeout_s=soon", "wait_timeout_s"),
    ],
)
def test_a_url_that_cannot_be_read_says_why(url: str, says: str) -> None:
    with pytest.raises(Misuse, match=says):
        engine_for(url)


def test_what_is_said_of_replicas_is_taken_out_of_the_url() -> None:
    assert acks_in("redis://h/1?a=b&wait_replicas=2&wait_timeout_s=0.5") == ("redis://h/1?a=b", Acks(2, 0.5))
    assert acks_in("redis://h/1") == ("redis://h/1", None)


def call(name: str) -> Eval:
    return Eval(None, 1, bulk("1") + bulk(f"holdfast:{{{name}}}:h"))  # type: ignore[arg-type]


def test_slots_are_those_that_redis_computes() -> None:
    assert slot_of(call("123456789")) == 0x31C3  # the specification's own example
    assert slot_of(call("foo")) == 12182


def learned(*owners: Any) -> Slots:
    """A map on which each node has as many slots."""
    slots = Slots(Cluster((A,), None, ""))  # type: ignore[arg-type]
    share = 16384 // len(owners)
    slots.learn([[n * share, (n + 1) * share - 1, [host.encode(), port]] for n, (host, port) in enumerate(owners)], A)
    return slots


def test_a_redirection_is_followed_and_remembered() -> None:
    slots, body = learned(A), call("foo")
    talk = routed(slots, [body])
    assert [errand.node for errand in next(talk)] == [A]
    assert [errand.node for errand in talk.send([[Refusal("MOVED 12182 b:2")]])] == [B]
    with pytest.raises(StopIteration) as done:
        talk.send([[7]])
    assert done.value.value == [7]
    assert slots.owner(12182) == B


def test_redirections_without_end_are_unavailable() -> None:
    talk = routed(learned(A), [call("foo")])
    next(talk)
    for _ in range(4):
        talk.send([[Refusal("MOVED 12182 b:2")]])
    with pytest.raises(StopIteration) as done:
        talk.send([[Refusal("MOVED 12182 b:2")]])
    (reply,) = done.value.value
    assert isinstance(reply, Unavailable)
    assert "from node to node" in str(reply)


def test_what_is_asked_together_goes_to_each_node_and_comes_back_in_order() -> None:
    bodies = [call(name) for name in ("foo", "bar", "foo", "123456789")]
    talk = routed(learned(A, B, C), bodies)
    errands = next(talk)
    assert sum(len(errand.bodies) for errand in errands) == 4
    with pytest.raises(StopIteration) as done:
        talk.send([[slot_of(body) for body in errand.bodies] for errand in errands])
    assert done.value.value == [slot_of(body) for body in bodies]
