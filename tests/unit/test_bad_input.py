"""Bad input to the library on real engines: each is one clear typed error, and nothing that is held is lost."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from servers import RedisServer, free_port

import holdfast
from holdfast import HoldfastError, Misuse, Unavailable, Unsupported
from holdfast.model import Turnstile
from holdfast.worlds.threads import drive

Client = Any


@pytest.fixture
def hf(url: str) -> Iterator[Client]:
    with holdfast.connect(url) as client:
        yield client


def standing(client: Client) -> list[str]:
    session = client.session
    return [turnstile.address for turnstile in drive(session.ask(session.engine.list("")))]


# -- nothing held is lost

BAD_CALLS: list[tuple[str, Callable[[Client], Any], type[Exception]]] = [
    ("an empty name", lambda hf: hf.lock(""), Misuse),
    ("a name too long", lambda hf: hf.lock("x" * 513), Misuse),
    ("half a surrogate pair", lambda hf: hf.lock("\ud800"), Misuse),
    ("a lease of no length", lambda hf: hf.lock("x", ttl_s=0), Misuse),
    ("a lease that ends before", lambda hf: hf.lock("x", ttl_s=-1), Misuse),
    ("a lease shorter than it can keep", lambda hf: hf.lock("x", ttl_s=hf.capabilities.min_ttl_s / 2), Misuse),
    ("a lease of no number", lambda hf: hf.lock("x", ttl_s=float("nan")), Misuse),
    ("a wait before now", lambda hf: hf.lock("x").acquire(timeout_s=-1), Misuse),
    ("a weight above the permits", lambda hf: hf.semaphore("pool", 3, weight=4), Misuse),
    ("other permits", lambda hf: hf.semaphore("pool", 4).acquire(timeout_s=0), Misuse),
    ("other permits, at once", lambda hf: hf.semaphore("pool", 2).try_acquire(), Misuse),
    ("another count of partitions", lambda hf: hf.partitions("share", 5).join(), Misuse),
    ("a nested with", lambda hf: hf.lock("x").__enter__(), Misuse),
    ("what is no lease", lambda hf: hf.cell("x").open("x"), Misuse),
    ("another's cell", lambda hf: hf.cell("x").open(hf.lock("y").acquire()), Misuse),
    ("a permit's cell", lambda hf: hf.cell("pool").open(hf.semaphore("pool", 3).acquire()), Misuse),
    ("a value of no bytes", lambda hf: hf.cell("y").open(hf.lock("y").acquire()).put("text"), Misuse),
    ("a value too large", lambda hf: hf.cell("y").open(hf.lock("y").acquire()).put(TooLarge(hf)), Misuse),
    ("a key of no text", lambda hf: hf.cell("y").open(hf.lock("y").acquire()).set(7, b""), Misuse),
    ("no detached lease", lambda hf: hf.attach("hf1.x"), Misuse),
    ("the release of another", lambda hf: hf.lock("z").release(), Misuse),
    ("foreign words", lambda hf: hf.lock("x", blocking=False), TypeError),
]


class TooLarge(bytes):
    """A value one byte above what the engine keeps, without the memory for it."""

    def __new__(cls, hf: Client) -> Self:
        value = super().__new__(cls)
        value.size = hf.capabilities.max_value_bytes + 1
        return value

    size = 0

    def __len__(self) -> int:
        return self.size


@pytest.mark.parametrize(("call", "error"), [case[1:] for case in BAD_CALLS], ids=[case[0] for case in BAD_CALLS])
def test_a_bad_call_is_refused_and_what_is_held_stays_held(
    hf: Client, call: Callable[[Client], Any], error: type[Exception]
) -> None:
    with hf.lock("x") as lease, hf.semaphore("pool", 3).acquire() as permit, hf.partitions("share", 4).join() as share:
        opened = hf.cell("x").open(lease)
        opened.put(b"before")
        while len(share.owned) < 4:
            assert share.wait_change(20)
        with pytest.raises(error) as caught:
            call(hf)
        assert "\n" not in str(caught.value)
        for held in (lease, permit, *share.owned.values()):
            held.ensure_held()
        assert hf.semaphore("pool", 3).try_acquire() is not None
        opened.put(b"after")
        assert hf.cell("x").read().value == b"after"


# -- names

NAMES = ["{", "}", "%7B", "{}", "a:b", "a b", " a", "a ", "\0", "\n", "\r\n\t\x1b", "*", "?", "[a]", "\\", "'; --", '"',
         "h", "ä", "a\u0308", "🐙", "../x", "/", "#", "é" * 256, "x" * 512]  # fmt: skip


def test_any_text_is_a_name_of_its_own(hf: Client) -> None:
    leases = {name: hf.lock(name).acquire(timeout_s=20) for name in NAMES}  # none waits for another
    assert sorted(standing(hf)) == sorted(f"lock:{name}" for name in NAMES)
    for name, lease in leases.items():
        opened = hf.cell(name).open(lease)
        opened.put(name.encode(), [holdfast.Change(name, b"1")])
    for name, lease in leases.items():
        seen = hf.cell(name).read()
        assert (seen.value, seen.entries) == (name.encode(), {name: b"1"})
        lease.release()
    assert standing(hf) == []


def test_any_text_is_a_namespace_of_its_own(url: str) -> None:
    clients = [holdfast.connect(url, namespace=name) for name in ["", *NAMES]]
    try:
        for client in clients:
            client.lock("x").acquire(timeout_s=20)
        assert all(standing(client) == ["lock:x"] for client in clients)
    finally:
        for client in clients:
            client.close()


# -- servers that cannot or will not


def test_a_server_that_is_not_there_is_unavailable_after_the_callers_patience() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    with holdfast.connect(url, patience_s=0.5) as client:
        for call in (client.ping, client.lock("x").acquire, client.lock("x").try_acquire, client.cell("x").read,
                     client.group("x").members, client.partitions("x", 2).join):  # fmt: skip
            started = time.monotonic()
            with pytest.raises(Unavailable, match=r"tried \d+ times in \d\.\d s.*no connection to Redis at") as caught:
                call()
            assert isinstance(caught.value, ConnectionError)
            assert 0.49 < time.monotonic() - started < 10  # all of its patience


def test_who_may_not_hear_signals_is_told_and_leaves_the_queue(redis_server: RedisServer) -> None:
    rules = ("~*", "&*", "+@all", "-subscribe")
    assert redis_server.command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rules).startswith(b"+OK")
    with (
        holdfast.connect(redis_server.url) as owner,
        holdfast.connect(f"redis://app:pw@127.0.0.1:{redis_server.port}") as limited,
        owner.lock("x") as lease,
    ):
        with pytest.raises(Misuse, match="forbids what holdfast needs"):
            limited.lock("x").acquire(timeout_s=20)
        session = owner.session
        assert drive(session.ask(session.engine.look(Turnstile("lock", "x", 1)))).waiting == ()
        lease.ensure_held()


def test_a_client_that_is_refused_holds_nothing_and_the_next_is_served(redis_server: RedisServer) -> None:
    redis_server.command("CONFIG", "SET", "requirepass", "s3cret")
    with holdfast.connect(redis_server.url) as stranger:
        with pytest.raises(Misuse, match="refused the user or password"):
            stranger.lock("x").acquire()
        assert not stranger.session.renewer.graves  # there is nothing to give back
    with holdfast.connect(f"redis://:s3cret@127.0.0.1:{redis_server.port}") as friend, friend.lock("x", timeout_s=20):
        pass


# -- places where no file may be


def refused(path: Path) -> HoldfastError:
    with holdfast.connect(f"sqlite://{path}", patience_s=1) as client, pytest.raises(HoldfastError) as caught:
        client.lock("x").acquire()
    return caught.value


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="needs /proc")
def test_a_network_file_system_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    read_text = Path.read_text

    def with_a_mount(path: Path, *args: Any, **options: Any) -> str:
        text = read_text(path, *args, **options)
        here = str(tmp_path.resolve()).replace(" ", "\\040")
        return text + f"99 22 0:99 / {here} rw - {kind} server:/share rw\n" if path.name == "mountinfo" else text

    monkeypatch.setattr(Path, "read_text", with_a_mount)
    error = refused(tmp_path / "holdfast.db")
    assert isinstance(error, Unsupported)
    assert f"is on {kind}" in str(error)
    assert "use a local disk" in str(error)
    assert list(tmp_path.iterdir()) == []


def give_up_privileges() -> None:
    """The superuser may write anywhere: on Linux, because of capabilities."""
    libc = ctypes.CDLL(None)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capset(header, none) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to give up privileges")
def test_a_folder_that_this_user_may_not_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                give_up_privileges()
            error = refused(folder / "holdfast.db")
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        said = answer.read()
    assert said.startswith("Misuse: ")
    assert "cannot be written by this user" in said
    assert "name another file" in said
