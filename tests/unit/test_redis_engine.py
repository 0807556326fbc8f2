"""The Redis engine against a real server: the same answers as the reference engine, and what only Redis can break."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

redis = pytest.importorskip("redis")

from holdfast.contract import Request  # noqa: E402
from holdfast.engines.memory import MemoryEngine  # noqa: E402
from holdfast.engines.redis.engine import RedisEngine  # noqa: E402
from holdfast.engines.redis.links import RedisLink  # noqa: E402
from holdfast.errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported  # noqa: E402
from holdfast.model import Change, Claim, Fence, Signal, Snapshot, Standing, State, Turnstile  # noqa: E402

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
pytestmark = pytest.mark.skipif(SERVER is None, reason="no redis-server here")

LOCK = Turnstile("lock", "one", 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        assert SERVER is not None
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(
            [SERVER, *options, "--dir", str(self.folder), "--unixsocket", str(self.folder / "r.sock")],
            stdout=subprocess.DEVNULL,
        )
        self.client = redis.Redis(port=self.port)
        until(self.answers)

    def answers(self) -> bool:
        try:
            return self.client.ping()
        except redis.RedisError:
            return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def until(true: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """One that the test may harm."""
    server = Server(tmp_path)
    yield server
    server.stop()


class User:
    """One process's view of an engine."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.link = engine.blocking_link()
        self.signals: list[Signal] = []

    def call(self, request: Request[Any], timeout_s: float = 5.0) -> Any:
        return self.link.call(request, timeout_s)

    def claim(self, id: str, weight: int = 1, ttl_s: float = 30.0) -> Claim:
        return Claim(id, weight, ttl_s, self.link.inbox, "owner", b"pay\0load")

    def enter(self, id: str, turnstile: Turnstile = LOCK, nowait: bool = False, **claim: Any) -> Standing:
        return self.call(self.engine.enter(turnstile, self.claim(id, **claim), nowait))

    def leave(self, id: str, turnstile: Turnstile = LOCK, bury: bool = False) -> bool:
        return self.call(self.engine.leave(turnstile, id, bury))

    def renew(self, *ids: str, turnstile: Turnstile = LOCK, **claim: Any) -> dict[str, Standing]:
        (request,) = self.engine.renew([(turnstile, self.claim(id, **claim)) for id in ids])
        return self.call(request)

    def look(self, turnstile: Turnstile = LOCK) -> Snapshot:
        return self.call(self.engine.look(turnstile))

    def listen(self) -> None:
        self.link.listen(self.signals.append, lambda: self.signals.append(Signal("look again")))


@pytest.fixture
def connect() -> Iterator[Callable[..., User]]:
    users: list[User] = []

    def connect(target: Any, namespace: str = "") -> User:
        users.append(User(RedisEngine(target, namespace)))
        return users[-1]

    yield connect
    for user in users:
        user.link.close()


@pytest.fixture
def user(server: Server, connect: Callable[..., User]) -> User:
    server.client.flushall()
    return connect(server.url)


@pytest.fixture
def own_user(own_server: Server, connect: Callable[..., User]) -> User:
    return connect(own_server.url)


# -- the same as the reference


class Step:
    """One random operation, done on both engines; tokens are compared by their rank."""

    def __init__(self, rng: random.Random, users: tuple[User, User]) -> None:
        self.rng = rng
        self.users = users
        self.ranks: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.turnstiles = [
            Turnstile("lock", "a", 1, announces=True),
            Turnstile("semaphore", "b{}%", 3),
            Turnstile("rw", "c d", 1 << 30),
        ]

    def plain(self, side: int, outcome: Any) -> Any:
        """Without what differs rightly: times, and the tokens' values."""
        if isinstance(outcome, dict):
            return {id: self.plain(side, one) for id, one in outcome.items()}
        if isinstance(outcome, Standing):
            waits_s = -1 if outcome.look_in_s == float("inf") else round(outcome.look_in_s / 5)
            return outcome._replace(token=self.rank(side, outcome.token), look_in_s=waits_s)
        if isinstance(outcome, Snapshot):
            return [view._replace(token=self.rank(side, view.token), age_s=0, remaining_s=0) for view in outcome.claims]
        return outcome

    def rank(self, side: int, token: int) -> int:
        return self.ranks[side].setdefault(token, len(self.ranks[side]))

    def both(self, request: Callable[[User], Request[Any]]) -> None:
        outcomes: list[Any] = []
        for side, user in enumerate(self.users):
            try:
                outcomes.append(self.plain(side, user.call(request(user))))
            except HoldfastError as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1]

    def turnstile(self) -> None:
        rng = self.rng
        turnstile = rng.choice(self.turnstiles)
        id = f"c{rng.randrange(40)}"
        weight = {"rw": rng.choice((1, 1 << 30)), "semaphore": rng.randrange(4)}.get(turnstile.kind, 1)
        kind = rng.choice(("enter", "enter", "nowait", "leave", "leave", "bury", "renew", "look", "list", "capacity"))
        if kind in ("enter", "nowait"):
            self.both(lambda u: u.engine.enter(turnstile, u.claim(id, weight, 50.0), kind == "nowait"))
        elif kind in ("leave", "bury"):
            self.both(lambda u: u.engine.leave(turnstile, id, kind == "bury"))
        elif kind == "renew":
            some = [f"c{n}" for n in rng.sample(range(40), 7)]
            self.both(lambda u: next(iter(u.engine.renew([(turnstile, u.claim(one, 1, 50.0)) for one in some]))))
        elif kind == "look":
            self.both(lambda u: u.engine.look(turnstile))
        elif kind == "list":
            prefix = rng.choice(("", "lock", "semaphore:b{"))
            self.both(lambda u: u.engine.list(prefix))
        else:
            other = Turnstile(turnstile.kind, turnstile.name, turnstile.capacity + 1)
            if self.users[0].look(turnstile).claims:
                self.both(lambda u: u.engine.enter(other, u.claim(id), False))

    def cell(self) -> None:
        rng = self.rng
        name = rng.choice(("offset", "p{3}"))
        fence = Fence(
            rng.choice(("lock:a", "lock:a", "lock:b")), rng.randrange(1, 9), rng.choice("xy"), rng.randrange(1, 3)
        )
        kind = rng.choice(("open", "open", "put", "put", "put", "read", "drop"))
        if kind == "open":
            self.both(lambda u: u.engine.open(name, fence))
        elif kind == "put":
            stands = self.users[0].call(self.users[0].engine.read(name, None))
            opening = getattr(self.users[0].engine.cells.get(name), "fence", fence)
            version = stands.version - rng.choice((0, 0, 0, 1))
            value = rng.choice((None, b"", b"v\r\n%d" % rng.randrange(9)))
            changes = [
                Change(rng.choice(("k", "l", "m é")), rng.choice((None, b"1", b"\0")), rng.random() < 0.5)
                for _ in range(rng.randrange(4))
            ]
            op_id = f"op{rng.randrange(4)} of {opening}"
            self.both(lambda u: u.engine.put(name, opening, version, op_id, value, changes))
        elif kind == "read":
            keys = rng.choice((None, [], ["k", "none"]))
            self.both(lambda u: u.engine.read(name, keys))
        elif rng.random() < 0.2:
            self.both(lambda u: u.engine.drop(name))


@pytest.mark.parametrize("seed", range(6))
def test_it_answers_as_the_reference_engine_does(user: User, seed: int) -> None:
    memory = User(MemoryEngine())
    step = Step(random.Random(seed), (memory, user))
    for _ in range(500):
        step.turnstile()
        step.cell()


def test_the_same_claims_are_signalled_in_the_same_order_as_by_the_reference(user: User) -> None:
    memory = User(MemoryEngine())
    announcing = Turnstile("rw", "loud", 10, announces=True)
    for each in (memory, user):
        each.listen()
        each.link.watch(announcing)
        each.enter("r1", announcing)
        each.enter("r2", announcing)
        each.enter("w", announcing, weight=10)
        each.enter("r3", announcing, nowait=True)
        each.leave("r1", announcing)
        each.leave("r2", announcing)
        each.leave("w", announcing)
    until(lambda: len(user.signals) >= len(memory.signals))

    def of_claims(signals: list[Signal]) -> list[Signal]:
        return [signal for signal in signals if signal.kind != "changed"]

    assert of_claims(user.signals) == of_claims(memory.signals)
    assert len(user.signals) == len(memory.signals)


# -- time


def test_a_lease_that_ended_is_swept_and_the_next_is_admitted_and_told(user: User) -> None:
    user.listen()
    user.enter("gone", ttl_s=0.05)
    waits = user.enter("next")
    assert waits.state is State.WAITING
    assert 0 <= waits.look_in_s <= 0.06
    until(lambda: user.renew("next")["next"].state is State.ADMITTED)
    until(lambda: Signal("admitted", "next") in user.signals)
    assert user.renew("gone")["gone"].state is State.GONE
    assert not user.leave("gone")


def test_keys_vanish_by_themselves_and_the_token_key_last(user: User, server: Server) -> None:
    first = user.enter("forgotten", ttl_s=0.05)
    user.enter("also", ttl_s=0.05)
    until(lambda: len(server.client.keys("holdfast:*")) == 1)
    (key,) = server.client.keys("holdfast:*")
    assert key.endswith(b":t")
    assert 3500 < server.client.ttl(key) <= 3602
    assert user.enter("later").token > first.token


def test_every_key_of_a_used_turnstile_expires(user: User, server: Server) -> None:
    for id in ("a", "b", "c"):
        user.enter(id)
    user.leave("a")
    user.leave("b", bury=True)
    user.renew("c")
    assert all(server.client.pttl(key) > 0 for key in server.client.keys("*"))
    user.leave("c")
    assert {key[-3:] for key in server.client.keys("*")} == {b"}:t", b"x:b"}


def test_a_clock_stepped_back_does_not_lock_for_ever(user: User, server: Server) -> None:
    user.enter("holder", ttl_s=2)
    user.enter("waiter", ttl_s=2)
    future_ms = (time.time() + 86400) * 1000
    keys = {key[-1:]: key for key in server.client.keys("*")}
    server.client.zadd(keys[b"a"], {"holder": future_ms})  # as if a day of the server's clock were taken back
    server.client.zadd(keys[b"e"], {"waiter": future_ms})
    shift = "local s = {cmsgpack.unpack(redis.call('HGET', KEYS[1], 's'))} s[6] = ARGV[1] + 0 "
    shift += "redis.call('HSET', KEYS[1], 's', cmsgpack.pack(unpack(s)))"
    server.client.eval(shift, 1, keys[b"h"], future_ms)
    holder, waiter = user.look().claims
    assert holder.remaining_s <= 2
    assert waiter.remaining_s <= 2


# -- what Redis does to us


def test_a_script_flush_is_survived(user: User, server: Server) -> None:
    user.enter("a")
    server.client.script_flush()
    assert user.leave("a")
    server.client.script_flush()
    requests = [user.engine.enter(LOCK, user.claim(id), False) for id in "bcd"]
    states = [standing.state for standing in user.link.call_many(requests, 5.0)]
    assert states == [State.ADMITTED, State.WAITING, State.WAITING]


def test_leave_and_renew_work_when_memory_is_full_and_enter_says_so(own_user: User, own_server: Server) -> None:
    user, server = own_user, own_server
    for id in ("a", "b", "c"):
        user.enter(id)
    server.client.config_set("maxmemory", "1")
    assert user.renew("a", ttl_s=60.0)["a"].state is State.ADMITTED
    assert user.leave("a", bury=True)
    assert not user.leave("never")
    with pytest.raises(Unavailable, match="out of memory"):
        user.enter("d")
    with pytest.raises(Unavailable, match="out of memory"):
        user.enter("e", Turnstile("lock", "new", 1))
    server.client.config_set("maxmemory", "0")
    assert [(claim.id, claim.admitted) for claim in user.look().claims] == [("b", True), ("c", False)]
    assert not server.client.exists("holdfast:{:lock:new}:a", "holdfast:{:lock:new}:h")


def test_an_unknown_layout_is_refused_and_left_alone(user: User, server: Server) -> None:
    user.enter("a")
    (key,) = server.client.keys("*:h")
    server.client.hset(key, "v", "99")
    for attempt in (
        lambda: user.enter("b"),
        lambda: user.leave("a"),
        user.look,
        lambda: user.call(user.engine.list("")),
    ):
        with pytest.raises(Misuse, match="layout 99"):
            attempt()
    assert user.renew("a")["a"].state is State.GONE
    assert server.client.hget(key, "v") == b"99"


def test_a_server_that_is_not_there_did_nothing(server: Server, connect: Callable[..., User]) -> None:
    user = connect(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="tried for"):
        user.enter("a")
    assert all(isinstance(reply, Unavailable) for reply in user.link.call_many([user.engine.ping()] * 2, 1.0))
    with pytest.raises(Unavailable):
        user.listen()


def test_a_call_is_bounded_by_its_timeout_and_its_outcome_is_unknown(own_user: User, own_server: Server) -> None:
    own_user.call(own_user.engine.ping())
    own_server.client.client_pause(1500)
    started = time.monotonic()
    with pytest.raises(OutcomeUnknown, match="no reply within"):
        own_user.call(own_user.engine.enter(LOCK, own_user.claim("a"), False), 0.1)
    assert time.monotonic() - started < 1.2
    assert own_user.leave("a", bury=True) in (True, False)
    assert own_user.look().claims == ()


def test_a_connection_closed_while_idle_is_replaced_without_a_word(
    user: User, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engines.redis.links.IDLE_S", 0.0)
    user.enter("a")
    server.client.client_kill_filter(_type="normal", skipme=True)
    assert user.leave("a")


def test_a_restarted_server_serves_again_and_tokens_go_on_rising(own_user: User, own_server: Server) -> None:
    user, server = own_user, own_server
    user.listen()
    before = user.enter("a")
    server.stop()
    with pytest.raises((Unavailable, OutcomeUnknown)):
        user.enter("b")
    with pytest.raises(Unavailable):
        user.enter("b")
    server.start()
    until(lambda: Signal("look again") in user.signals)
    after = user.enter("b")
    assert after.state is State.ADMITTED
    assert after.token > before.token
    user.enter("c")
    user.leave("b")
    until(lambda: Signal("admitted", "c") in user.signals)


def test_a_silent_signal_connection_is_found_out(
    own_user: User, own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engines.redis.signals.PING_S", 0.05)
    own_user.listen()
    until(lambda: own_server.client.pubsub_numsub(f"holdfast:{own_user.link.inbox}")[0][1] == 1)
    own_server.client.client_pause(300)
    until(lambda: Signal("look again") in own_user.signals)
    own_user.enter("a")
    own_user.enter("b")
    own_user.leave("a")
    until(lambda: Signal("admitted", "b") in own_user.signals)


def test_an_interrupted_call_leaves_the_link_usable(user: User) -> None:
    user.call(user.engine.ping())
    wire = user.link._idle[0]

    class Interrupting:
        def __getattr__(self, name: str) -> Any:
            return getattr(sock, name)

        def recv(self, size: int) -> bytes:
            raise KeyboardInterrupt

    sock, wire.sock = wire.sock, Interrupting()
    with pytest.raises(KeyboardInterrupt):
        user.enter("a")
    assert user.enter("a").state is State.ADMITTED
    assert user.leave("a")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_abandons_does_not_harm_its_parent(user: User) -> None:
    user.listen()
    user.enter("a")
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            inbox = user.link.inbox
            user.link.abandon()
            user.enter("child")
            user.listen()
            user.link.close()
            code = 0 if user.link.inbox != inbox else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert user.leave("a")
    assert user.leave("child")
    user.enter("b")
    user.enter("c")
    user.leave("b")
    until(lambda: Signal("admitted", "c") in user.signals)
    assert Signal("look again") not in user.signals


# -- who may do what


def with_rights(server: Server, *rules: str) -> str:
    server.client.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", *rules)
    return f"redis://app:secret@127.0.0.1:{server.port}"


ENOUGH = ("+evalsha", "+eval", "+ping", "+scan", "+subscribe", "+unsubscribe", "+publish", "+@connection")
ENOUGH += ("+@hash", "+@sortedset", "+@string", "+@keyspace", "+time", "~holdfast:*", "&holdfast:*")


def test_the_rights_that_the_message_names_are_enough(user: User, server: Server, connect: Callable[..., User]) -> None:
    limited = connect(with_rights(server, *ENOUGH))
    limited.listen()
    limited.enter("a")
    limited.enter("b")
    limited.leave("a")
    limited.link.watch(LOCK)
    until(lambda: Signal("admitted", "b") in limited.signals)
    assert limited.call(limited.engine.list("")) == [LOCK]


@pytest.mark.parametrize("missing", ["-publish", "-subscribe", "resetchannels"])
def test_forbidden_signals_are_one_clear_error(
    user: User, server: Server, missing: str, connect: Callable[..., User]
) -> None:
    limited = connect(with_rights(server, *ENOUGH, missing))
    with pytest.raises(Misuse, match="forbids what holdfast needs"):
        limited.listen()


@pytest.mark.parametrize("missing", ["-evalsha", "-zadd", "resetkeys"])
def test_forbidden_operations_are_one_clear_error(
    user: User, server: Server, missing: str, connect: Callable[..., User]
) -> None:
    limited = connect(with_rights(server, *ENOUGH, missing))
    with pytest.raises(Misuse, match="forbids what holdfast needs"):
        limited.enter("a")


def test_a_wrong_password_and_a_wrong_database_are_misuse(
    user: User, server: Server, connect: Callable[..., User]
) -> None:
    with pytest.raises(Misuse, match="user or password"):
        connect(f"redis://nobody:wrong@127.0.0.1:{server.port}").enter("a")
    with pytest.raises(Misuse, match="no such database"):
        connect(f"{server.url}/99").enter("a")


def test_a_missing_password_is_misuse(own_user: User, own_server: Server, connect: Callable[..., User]) -> None:
    own_server.client.config_set("requirepass", "s3cret")
    with pytest.raises(Misuse, match="user or password"):
        own_user.enter("a")
    assert connect(f"redis://:s3cret@127.0.0.1:{own_server.port}").enter("a").state is State.ADMITTED


def test_a_replica_is_refused_by_name(own_user: User, own_server: Server) -> None:
    own_server.client.replicaof("127.0.0.1", free_port())
    with pytest.raises(Unavailable, match="connect to the primary"):
        own_user.enter("a")
    own_server.client.replicaof("NO", "ONE")
    assert own_user.enter("a").state is State.ADMITTED


# -- targets


def test_databases_namespaces_sockets_and_valkey_urls_reach_what_they_name(
    user: User, server: Server, connect: Callable[..., User]
) -> None:
    user.enter("a")
    assert connect(f"valkey://127.0.0.1:{server.port}").enter("b").state is State.WAITING
    assert connect(f"unix://{server.folder}/r.sock").enter("c").state is State.WAITING
    assert connect(redis.Redis(port=server.port, decode_responses=True)).enter("d").state is State.WAITING
    assert connect(redis.Redis(port=server.port, protocol=3)).enter("e").state is State.WAITING
    assert connect(f"{server.url}/1").enter("a").state is State.ADMITTED
    assert connect(server.url, "other:").enter("a").state is State.ADMITTED


def test_identity_is_shared_by_those_who_share_state_and_tells_no_password(server: Server) -> None:
    same = {RedisEngine(f"redis://u:pw@127.0.0.1:{server.port}/2").identity}
    same.add(RedisEngine(redis.Redis(host="127.0.0.1", port=server.port, db=2)).identity)
    same.add(RedisEngine(redis.asyncio.Redis(host="127.0.0.1", port=server.port, db=2)).identity)
    assert len(same) == 1
    assert "pw" not in same.pop()
    assert RedisEngine(f"{server.url}/1").identity != RedisEngine(f"{server.url}/2").identity


def test_the_wrong_kind_of_client_is_told_where_to_go(server: Server) -> None:
    with pytest.raises(Misuse, match=r"holdfast\.aio\.connect"):
        RedisEngine(redis.asyncio.Redis()).blocking_link()
    with pytest.raises(Misuse, match=r"holdfast\.connect"):
        RedisEngine(redis.Redis()).async_link()
    with pytest.raises(Unsupported, match="object"):
        RedisEngine(object())


@pytest.mark.parametrize("url", ["redis://h/?no_such_option=1", "redis://h:port", "redis://h/?socket_timeout=x"])
def test_an_url_that_redis_py_does_not_take_is_misuse(url: str) -> None:
    with pytest.raises(Misuse, match="redis-py does not take"):
        RedisEngine(url)


# -- asyncio


async def heard(signals: list[Signal], signal: Signal) -> None:
    async with asyncio.timeout(10):
        while signal not in signals:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def run(server: Server, main: Callable[[RedisEngine, Any], Any]) -> None:
    async def whole() -> None:
        engine = RedisEngine(server.url)
        link = engine.async_link()
        try:
            await main(engine, link)
        finally:
            await link.close()

    asyncio.run(whole())


def test_many_tasks_share_a_connection_and_each_gets_its_own_answer(user: User, server: Server) -> None:
    async def main(engine: RedisEngine, link: Any) -> None:
        names = [f"t{n}" for n in range(200)]

        async def one(name: str) -> list[Any]:
            turnstile = Turnstile("lock", name, 1)
            await link.call(engine.enter(turnstile, Claim(f"c-{name}", 1, 5.0), False), 5.0)
            return [claim.id for claim in (await link.call(engine.look(turnstile), 5.0)).claims]

        assert await asyncio.gather(*map(one, names)) == [[f"c-{name}"] for name in names]
        assert sorted(t.name for t in await link.call(engine.list("lock:t"), 5.0)) == sorted(names)

    run(server, main)


def test_a_cancelled_call_disturbs_no_other(own_server: Server) -> None:
    async def main(engine: RedisEngine, link: Any) -> None:
        await link.call(engine.ping(), 5.0)
        own_server.client.client_pause(150)
        calls = [asyncio.ensure_future(link.call(engine.look(Turnstile("lock", str(n), n)), 5.0)) for n in range(9)]
        await asyncio.sleep(0.02)
        for call in calls[::2]:
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert [getattr(one, "name", "cancelled") for one in done] == [
            "cancelled" if n % 2 == 0 else str(n) for n in range(9)
        ]

    run(own_server, main)


def test_asyncio_calls_are_bounded_and_go_on_after_a_restart(own_server: Server) -> None:
    async def main(engine: RedisEngine, link: Any) -> None:
        signals: list[Signal] = []
        await link.listen(signals.append, lambda: signals.append(Signal("look again")))
        await link.call(engine.ping(), 5.0)  # connected: some servers pause the handshake as well
        own_server.client.client_pause(300)
        with pytest.raises(OutcomeUnknown, match="no reply within"):
            await link.call(engine.ping(), 0.05)
        await link.call(engine.ping(), 5.0)
        own_server.stop()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await link.call(engine.ping(), 1.0)
        with pytest.raises(Unavailable, match="tried for"):
            await link.call(engine.ping(), 1.0)
        own_server.start()
        await heard(signals, Signal("look again"))
        for id in ("a", "b"):
            await link.call(engine.enter(LOCK, Claim(id, 1, 5.0, link.inbox), False), 5.0)
        await link.call(engine.leave(LOCK, "a", False), 5.0)
        await heard(signals, Signal("admitted", "b"))

    run(own_server, main)


def test_asyncio_signals_that_are_forbidden_are_one_clear_error(user: User, server: Server) -> None:
    async def main(engine: RedisEngine, link: Any) -> None:
        limited = RedisEngine(with_rights(server, *ENOUGH, "-subscribe")).async_link()
        with pytest.raises(Misuse, match="forbids what holdfast needs"):
            await limited.listen(lambda signal: None, lambda: None)
        await limited.close()

    run(server, main)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_harm_its_parents_event_loop(
    user: User, server: Server, connect: Callable[..., User]
) -> None:
    async def main(engine: RedisEngine, link: Any) -> None:
        signals: list[Signal] = []
        await link.listen(signals.append, lambda: signals.append(Signal("look again")))
        await link.call(engine.enter(LOCK, Claim("a", 1, 5.0, link.inbox), False), 5.0)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                link.abandon()
                connect(server.url).enter("child")
            os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        await link.call(engine.leave(LOCK, "a", False), 5.0)
        await link.call(engine.leave(LOCK, "child", False), 5.0)
        for id in ("b", "c"):
            await link.call(engine.enter(LOCK, Claim(id, 1, 5.0, link.inbox), False), 5.0)
        await link.call(engine.leave(LOCK, "b", False), 5.0)
        await heard(signals, Signal("admitted", "c"))
        assert Signal("look again") not in signals

    run(server, main)


def test_threads_use_one_link_at_once(user: User) -> None:
    turnstile = Turnstile("semaphore", "many", 1000)
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            for n in range(30):
                id = f"{number}.{n}"
                assert user.enter(id, turnstile).state is State.ADMITTED
                assert user.leave(id, turnstile)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert isinstance(user.link, RedisLink)
    assert user.look(turnstile).claims == ()
