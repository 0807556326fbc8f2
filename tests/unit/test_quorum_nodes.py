"""Addresses that make no quorum, servers that can be no node of one, and nodes as the model check takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import EXCLUSIVE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quorum_model import Node, Rules
from quorum_servers import QuorumServers, url_of
from servers import RedisServer, eventually, free_port

import holdfast
from holdfast import aio
from holdfast.contract import Request
from holdfast.engines import engine_for
from holdfast.engines.quorum.engine import Body, QuorumEngine
from holdfast.engines.quorum.nodes import Nodes, facts_of
from holdfast.engines.quorum.protocol import Round, everywhere, heard_from, majority
from holdfast.engines.quorum.scripts import TAKE
from holdfast.errors import Misuse, Unavailable, Unsupported
from holdfast.model import UNBOUNDED, Claim, State, Turnstile

Three = list[RedisServer]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuorumServers]:
    """Three that sync nothing, for tests that do them no harm."""
    with QuorumServers(tmp_path_factory.mktemp("plain"), count=3) as servers:
        yield servers


@pytest.fixture
def three(plain: QuorumServers) -> Three:
    plain.reset()
    return plain.servers


def take_once(url: str) -> Any:
    """A first call on either face; what went wrong."""
    with holdfast.connect(url, patience_s=2.0) as client:
        lease = client.lock("x").acquire(timeout_s=5)
        lease.release()
        return lease


def take_once_aio(url: str) -> Any:
    async def main() -> Any:
        async with aio.connect(url, patience_s=2.0) as client:
            lease = await client.lock("x").acquire(timeout_s=5)
            await lease.release()
            return lease

    return asyncio.run(main())


BOTH = pytest.mark.parametrize("take", [take_once, take_once_aio], ids=["sync", "aio"])
Take = Callable[[str], Any]


# -- addresses


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+quorum://a:1", "at least 3 nodes"),
        ("redis+quorum://a:1,b:2", "at least 3 nodes"),
        ("redis+quorum://a:1,,b:2", "empty"),
        ("redis+quorum://a:1,b:2,a:1", "named twice"),
        ("redis+quorum://a:1,b:2,c:port", "host or port"),
        ("redis+quorum://a:1,b:2,c:3?nonsense=1", "does not take|nonsense"),
    ],
)
def test_an_address_that_makes_no_quorum_is_refused(url: str, says: str) -> None:
    with pytest.raises(Misuse, match=says):
        holdfast.connect(url)


def test_an_even_number_of_hosts_warns() -> None:
    with pytest.warns(UserWarning, match="4 nodes survives no more losses than one of 3"):
        holdfast.connect("redis+quorum://a,b,c,d").close()


def test_a_password_goes_to_every_node_and_is_never_shown() -> None:
    engine = engine_for("redis+quorum://user:s3cret@a:1,b:2,other:0ther@c:3/2?socket_timeout=1")
    assert isinstance(engine, QuorumEngine)
    told = [(target.options["username"], target.options["password"]) for target in engine._targets]
    assert told == [("user", "s3cret"), ("user", "s3cret"), ("other", "0ther")]
    assert {target.options["db"] for target in engine._targets} == {2}
    assert "s3cret" not in engine.identity
    with pytest.raises(Misuse) as refused:
        engine_for("redis+quorum://user:s3cret@a:1,b:2")
    assert "s3cret" not in str(refused.value)


def test_tls_is_for_every_node() -> None:
    engine = engine_for("rediss+quorum://a,b,c")
    assert isinstance(engine, QuorumEngine)
    assert {target.kind.__name__ for target in engine._targets} == {"SSLConnection"}


def test_the_order_of_the_hosts_does_not_make_another_engine() -> None:
    assert engine_for("redis+quorum://a,b,c").identity == engine_for("redis+quorum://c,a,b").identity


# -- what it lacks is refused when an object is made


def test_what_needs_weights_or_groups_is_refused_at_once() -> None:
    client = holdfast.connect("redis+quorum://a,b,c")
    capabilities = client.capabilities
    assert (capabilities.fair, capabilities.weighted, capabilities.groups) == (False, False, False)
    assert EXCLUSIVE == ("quorum",)
    for make in (
        lambda: client.semaphore("x", permits=2),
        lambda: client.rwlock("x").read(),
        lambda: client.group("x"),
        lambda: client.partitions("x", count=4),
    ):
        with pytest.raises(Unsupported, match="quorum"):
            make()
    client.close()


def test_the_engine_itself_takes_nothing_but_mutexes() -> None:
    engine = engine_for("redis+quorum://a,b,c")
    with pytest.raises(Unsupported, match="exclusive"):
        engine.enter(Turnstile("rwlock", "x", UNBOUNDED), Claim("a", 1, 1.0), nowait=False)


# -- servers that can be no node


@BOTH
def test_two_names_of_one_server_are_refused(three: Three, take: Take) -> None:
    url = f"redis+quorum://127.0.0.1:{three[0].port},localhost:{three[0].port},127.0.0.1:{three[1].port}"
    with pytest.raises(Misuse, match="same server"):
        take(url)


@BOTH
def test_a_replica_is_refused(three: Three, tmp_path: Path, take: Take) -> None:
    replica = RedisServer(tmp_path, "--replicaof", "127.0.0.1", str(three[0].port))
    with replica, pytest.raises(Misuse, match="replica"):
        take(url_of([three[0], three[1], replica]))


@BOTH
def test_a_node_of_a_cluster_is_refused(three: Three, tmp_path: Path, take: Take) -> None:
    node = RedisServer(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with node, pytest.raises(Unsupported, match="cluster"):
        take(url_of([three[0], three[1], node]))


@BOTH
def test_a_refused_password_is_told(three: Three, tmp_path: Path, take: Take) -> None:
    locked = RedisServer(tmp_path, "--requirepass", "s3cret")
    with locked, pytest.raises(Misuse, match="password"):
        take(url_of([three[0], three[1], locked]))


@BOTH
def test_one_host_that_does_not_exist_is_done_without(three: Three, take: Take, caplog: Any) -> None:
    assert take(url_of([three[0].port, three[1].port, free_port()])).token > 0
    assert "left out" in caplog.text


@BOTH
def test_without_a_majority_the_first_call_says_so(three: Three, take: Take) -> None:
    with pytest.raises(Unavailable, match="of 3 nodes served"):
        take(url_of([three[0].port, free_port(), free_port()]))


def test_a_server_that_is_too_old_is_told_which_is_needed() -> None:
    info = b"redis_version:4.0.9\r\nredis_mode:standalone\r\nrole:master\r\nrun_id:abc\r\n"
    with pytest.raises(Unsupported, match=r"Redis 4\.0; a quorum needs 5\.0 or newer"):
        facts_of([info, []], "here")


@BOTH
def test_cells_are_refused_where_a_node_does_not_sync_each_write(three: Three, take: Take) -> None:
    with holdfast.connect(url_of(three)) as client, client.lock("x") as lease:
        with pytest.raises(Unsupported, match="appendfsync always"):
            client.cell("c").open(lease)
        with pytest.raises(Unsupported, match="appendfsync always"):
            client.cell("c").read()


# -- tokens and turns


def test_tokens_rise_from_holder_to_holder_and_from_client_to_client(three: Three) -> None:
    tokens: list[int] = []
    for _ in range(3):
        with holdfast.connect(url_of(three)) as client:
            for _ in range(3):
                with client.lock("x") as lease:
                    tokens.append(lease.token)
    assert tokens == sorted(set(tokens))
    assert tokens[-1] < 2**53


def test_counters_that_differ_are_made_equal_by_the_next_holder(three: Three) -> None:
    with holdfast.connect(url_of(three)) as client:
        with client.lock("x") as lease:
            first = lease.token
        (shard,) = three[0].command("HKEYS", "holdfast:quorum:numbers").split(b"\r\n")[2:3]
        three[1].command("HSET", "holdfast:quorum:numbers", shard.decode(), str(first + 50))
        with client.lock("x") as lease:
            assert lease.token in (first + 1, first + 51)  # by who was heard first
        with client.lock("x") as lease, client.lock("x ", ttl_s=1.0):
            assert lease.token > first
        numbers = [server.command("HGET", "holdfast:quorum:numbers", shard.decode()) for server in three]
        assert len({*numbers}) <= 2


def test_an_unlocked_majority_is_enough_and_a_locked_minority_no_obstacle(three: Three) -> None:
    with holdfast.connect(url_of(three)) as client:
        client.lock("x").acquire().release()
        key = "holdfast:quorum::lock%3Ax:h"
        with client.lock("x", ttl_s=60.0):
            held = three[0].command("DUMP", key)
            assert held.startswith(b"$")
        other = client.lock("x").acquire()
        three[0].command("DEL", key)  # a node that forgot the holder
        assert client.lock("x").try_acquire() is None
        other.ensure_held()
        other.release()


def test_what_a_node_granted_in_vain_is_given_back_though_it_has_forgotten_how(three: Three) -> None:
    key, text = "holdfast:quorum::lock%3Ax:h", TAKE.by_text.decode()
    with holdfast.connect(url_of(three)) as client, holdfast.connect(url_of(three)) as other, client.lock("x"):
        assert other.lock("x").try_acquire() is None
        three[0].command("DEL", key)  # a node that missed the holder
        three[0].command("SCRIPT", "FLUSH")
        three[0].command("SCRIPT", "LOAD", text.split("\r\n", 3)[3][:-2])  # and knows how to grant, and nothing else
        three[0].pause()
        assert other.lock("x", ttl_s=60.0).try_acquire() is None
        three[0].resume()

        def is_given_back() -> bool:
            other.lock("y").acquire().release()  # what came late is read
            return three[0].command("EXISTS", key) == b":0\r\n"

        eventually(is_given_back)


# -- the nodes of the model


STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "mark", "undo", "renew", "regrant", "strict", "expire"]), st.integers(0, 2)),
    max_size=25,
)


class Direct:
    """Asks one node of a real quorum what a client would ask it, and a model of it the same."""

    def __init__(self, url: str, name: str) -> None:
        self.engine = QuorumEngine(url)
        self.link = self.engine.blocking_link()
        self.turnstile = Turnstile("lock", name, 1)
        self.base = 0
        self.numbers = 0

    def ask(self, body: Any) -> list[Any]:
        def talk(nodes: Nodes) -> Any:
            return (yield Round(everywhere(nodes.size, body), heard_from(range(nodes.size))))

        return self.link.call(Request("ask", Body(talk), list), 5.0)

    def attempt(self, who: int) -> Any:
        return self.engine._attempt(self.turnstile, Claim(f"claim {who}", 1, 60.0), who, False)


def test_a_node_of_the_model_answers_as_the_scripts_do(three: Three) -> None:
    names = iter(range(1 << 20))
    url = url_of(three)
    with holdfast.connect(url) as client:
        client.lock("x").acquire().release()  # they count from here on

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(STEPS)
    def agree(steps: list[tuple[str, int]]) -> None:
        direct = Direct(url, f"agree {next(names)}")
        try:
            first = direct.ask(direct.attempt(9).take)[0]
            direct.ask(direct.attempt(9).undo)
            base = int(first.split(b" ")[1])
            model = Node(number=base)
            for step, who in steps:
                attempt = direct.attempt(who)
                number = model.number + who - 1
                if step == "expire":
                    if model.holder >= 0:
                        direct.ask(direct.attempt(model.holder).undo)
                    model = model._replace(holder=-1, held=0)
                    continue
                if step == "take":
                    body, message = attempt.take, ("take",)
                elif step == "mark":
                    body, message = attempt.mark(number), ("mark", number)
                elif step == "undo":
                    continue
                elif step == "renew":
                    (request,) = direct.engine.renew([(direct.turnstile, Claim(f"claim {who}", 1, 60.0))])
                    body, message = next(request.body.talk(Nodes(direct.engine._targets))).bodies[0], ("renew",)
                else:
                    strict = step == "strict"
                    body, message = attempt.regrant(number, strict), ("regrant", number, strict)
                if step == "mark" and number < model.held:
                    continue  # nobody raises to less than it was given
                reply = direct.ask(body)[0]
                model, expected = model.do(who, 0, message, Rules())
                if type(reply) is bytes and reply[:1] == b"W":
                    reply = b"W 1 0"
                if type(reply) is bytes and reply[:1] in (b"G", b"H"):
                    reply = reply[:-1] + b"0"
                assert reply == expected, (step, who, model)
        finally:
            direct.link.close()

    agree()


def test_any_two_majorities_meet() -> None:
    for size in range(3, 10):
        assert 2 * majority(size) > size


def test_what_is_released_is_kept_a_moment_for_who_waited_longest(three: Three) -> None:
    """Else whoever releases and asks again would always be quicker than who is only told."""
    engine = QuorumEngine(url_of(three))
    link = engine.blocking_link()
    turnstiles = (Turnstile("lock", f"turns {number}", 1) for number in range(1 << 20))

    def enter(turnstile: Turnstile, id: str, nowait: bool = False) -> State:
        return link.call(engine.enter(turnstile, Claim(id, 1, 60.0, link.inbox), nowait), 5.0).state

    def renew(turnstile: Turnstile, id: str) -> State:
        (request,) = engine.renew([(turnstile, Claim(id, 1, 60.0, link.inbox))])
        state: State = link.call(request, 5.0)[id].state
        return state

    def is_kept() -> bool:
        one = next(turnstiles)
        assert [enter(one, id) for id in ("a", "b", "c")] == [State.ADMITTED, State.WAITING, State.WAITING]
        link.call(engine.leave(one, "a", False), 5.0)
        if enter(one, "quick", nowait=True) is not State.BUSY:
            return False  # this machine was slower than the moment is long
        assert renew(one, "b") is State.ADMITTED
        link.call(engine.leave(one, "b", False), 5.0)
        eventually(lambda: enter(one, "late", nowait=True) is State.ADMITTED)  # c did not come in its turn
        assert renew(one, "c") is State.WAITING
        return True

    eventually(is_kept)
    link.close()


# -- beside a reference, in whatever order


def test_a_lock_answers_as_a_free_or_a_held_one_in_whatever_order(three: Three) -> None:
    """No queue: who waits gets it when it asks and nobody has it."""
    names = iter(range(1 << 20))

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["enter", "nowait", "leave", "bury", "renew"]), st.sampled_from("abc")),
            max_size=20,
        )
    )
    def agree(steps: list[tuple[str, str]]) -> None:
        engine = QuorumEngine(url_of(three))
        link = engine.blocking_link()
        turnstile = Turnstile("lock", f"beside {next(names)}", 1)
        holder, waiting = "", set[str]()
        stones: dict[str, bool] = {}
        last = 0
        try:
            for step, id in steps:
                claim = Claim(id, 1, 60.0, link.inbox)
                there = id == holder or id in waiting
                if step in ("enter", "nowait"):
                    standing = link.call(engine.enter(turnstile, claim, step == "nowait"), 5.0)
                    refused = State.BUSY if step == "nowait" else State.WAITING
                    if id in stones:
                        assert standing.state is State.BURIED
                    elif holder:
                        assert standing.state is (State.ADMITTED if holder == id else refused)
                    elif waiting - {id}:  # it may be kept for one of those for a moment
                        assert standing.state in (State.ADMITTED, refused)
                    else:
                        assert standing.state is State.ADMITTED
                    if standing.state is State.WAITING:
                        waiting.add(id)
                elif step == "renew":
                    (request,) = engine.renew([(turnstile, claim)])
                    standing = link.call(request, 5.0)[id]
                    if id in waiting and not holder:
                        assert standing.state in (State.ADMITTED, State.WAITING)
                    else:
                        expected = State.ADMITTED if id == holder else State.WAITING if there else State.GONE
                        assert standing.state is expected
                else:
                    left = link.call(engine.leave(turnstile, id, step == "bury"), 5.0)
                    assert left == stones.get(id, there)
                    if id not in stones and (step == "bury" or not there):
                        stones[id] = there
                    waiting.discard(id)
                    if holder == id:
                        holder = ""
                    continue
                if standing.state is State.ADMITTED and holder != id:
                    assert standing.token > last
                    holder, last = id, standing.token
                    waiting.discard(id)
        finally:
            link.close()

    agree()
