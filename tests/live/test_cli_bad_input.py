"""What people get wrong on the command line: each is one clear line and the right exit code; nothing held is lost."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Commands
from servers import RedisServer, free_port

import holdfast

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.name == "nt", reason="the commands here are a Unix's")]

CMD = ("--", "touch", "ran")
EACH = ("--", "touch", "ran", "{}")

WRONG_CALLS: list[tuple[tuple[str, ...], int, str]] = [
    # names
    (("run", "", *CMD), 2, "1 to 512 bytes"),
    (("run", "x" * 513, *CMD), 2, "this one has 513"),
    (("run", "\udcff", *CMD), 2, "surrogate"),
    (("run", "y", "--namespace", "n" * 513, *CMD), 2, "namespace"),
    (("each", "", *EACH), 2, "a job has 1 to 512 bytes"),
    (("each", "\udcff", *EACH), 2, "the job"),
    # times
    (("run", "y", "--ttl", "0", *CMD), 2, "ttl_s is 0.01 seconds or more on sqlite"),
    (("run", "y", "--ttl", "0.001", *CMD), 2, "ttl_s"),
    (("run", "y", "--ttl", "-1", *CMD), 2, "ttl_s"),
    (("run", "y", "--ttl", "nan", *CMD), 2, "ttl_s"),
    (("run", "y", "--ttl", "inf", *CMD), 2, "ttl_s"),
    (("run", "y", "--ttl", "soon", *CMD), 2, "'soon' is not a valid float"),
    (("run", "y", "--timeout", "-1", *CMD), 2, "timeout_s"),
    (("run", "y", "--timeout", "nan", *CMD), 2, "timeout_s"),
    (("run", "y", "--grace", "-1", *CMD), 2, "grace_s"),
    (("run", "y", "--grace", "nan", *CMD), 2, "grace_s"),
    (("run", "y", "--grace", "inf", *CMD), 2, "grace_s"),
    (("each", "j", "--ttl", "nan", *EACH), 2, "ttl_s"),
    # numbers
    (("each", "j", "--workers", "1000000", *EACH), 2, "1<=x<=1024"),
    (("each", "j", "--workers", "many", *EACH), 2, "workers"),
    (("each", "j", "--partitions", "0", *EACH), 2, "partitions"),
    (("each", "j", "--batch", "0", *EACH), 2, "batch"),
    (("each", "j", "--retry", "-1", *EACH), 2, "retry"),
    (("evict", "x", "--token", "first"), 2, "'first' is not a valid integer"),
    # CMD
    (("run", "y"), 2, "Missing argument 'CMD...'"),
    (("run",), 2, "holdfast run --help shows how"),
    (("run", "y", "--", "no-such-command"), 127, "no-such-command"),
    (("run", "y", "--", "."), 126, "."),
    (("each", "j", "--", "touch", "ran"), 2, "CMD needs {}"),
    (("each", "j", "--", "no-such-command", "{}"), 127, "no-such-command: command not found"),
    # input
    (("each", "j", "--input", ".", *EACH), 2, "directory"),
    (("each", "j", "--input", "missing", *EACH), 2, "missing"),
    # verbs, options, engines
    (("stat",), 2, "No such command 'stat'"),
    (("status", "--jsno"), 2, "--jsno"),
    (("status", "--engine", "redsi://localhost"), 2, "no engine is called 'redsi'; known: memory:// sqlite:///path"),
    (("status", "--engine", "localhost:6379"), 2, "is not a URL"),
    (("status", "--engine", "/tmp/x.db"), 2, "is not a URL"),
    (("status", "--engine", ""), 2, "is not a URL"),
    (("status", "--engine", "sqlite://relative.db"), 2, "absolute path"),
    (("status", "--engine", "sqlite:///x%00.db"), 2, "NUL"),
    (("status", "--engine", "sqlite:///dev/null"), 2, "takes the path of a file"),
    (("run", "y", "--engine", "memory://", *CMD), 2, "the memory engine reaches one process"),
    (("status", "--engine", "redis://[::1"), 2, "redis-py does not take"),
    (("status", "--engine", "redis://h/?no_such_option=1"), 2, "no_such_option"),
    (("demo", "--engine", "redsi://localhost"), 2, "no engine is called 'redsi'"),
]


@pytest.fixture
def on(sqlite_url: str, tmp_path: Path) -> Iterator[Commands]:
    """Commands on an engine where ``x`` is held, and stays so whatever they do."""
    commands = Commands(tmp_path, sqlite_url)
    with holdfast.connect(sqlite_url) as client, client.lock("x") as lease:
        yield commands
        assert client.lock("x").try_acquire() is None
        lease.release()  # raises if it was lost
        assert not (commands.folder / "ran").exists()
    commands.close()


@pytest.mark.parametrize(("arguments", "code", "says"), WRONG_CALLS, ids=lambda value: ascii(value)[:60])
def test_a_wrong_call_is_one_clear_line(on: Commands, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = on.run(*arguments, lines="one\n")
    assert (done.code, done.out) == (code, "")
    assert done.complaint.startswith("holdfast: ")
    assert says in done.complaint
    assert done.err.count("\n") <= 2  # the engine, and this


def test_an_input_that_cannot_be_read_is_one_clear_line(on: Commands) -> None:
    source = "/proc/self/mem"
    if not os.path.exists(source):
        pytest.skip("needs a file that opens and cannot be read")
    done = on.run("each", "j", "--input", source, *EACH)
    assert (done.code, done.complaint) == (1, "holdfast: the input cannot be read: Input/output error")


def test_a_machine_that_starts_no_more_threads_is_one_clear_line(on: Commands) -> None:
    """And the member goes, instead of waiting for workers that are not there."""
    script = (
        "import sys, threading\n"
        "start = threading.Thread.start\n"
        "def refuse(thread):\n"
        "    if thread.name == 'holdfast-each-1': raise RuntimeError(\"can't start new thread\")\n"
        "    start(thread)\n"
        "threading.Thread.start = refuse\n"
        "from holdfast.cli import main; main()"
    )
    command = [sys.executable, "-c", script, "each", "j", "--workers", "2", "--", "true", "{}"]
    done = subprocess.run(command, input="a\n", capture_output=True, text=True, check=False, env=on.environment,
                          timeout=40)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("use fewer --workers")
    assert "Traceback" not in done.stderr


# -- files that are no good


def a_folder(path: Path) -> None:
    path.mkdir()


def another_programs(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def a_text(path: Path) -> None:
    path.write_text("buy milk\n" * 200)


def a_later_layout(path: Path) -> None:
    with holdfast.connect(f"sqlite://{path}") as client:
        client.ping()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def in_the_way(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (a_folder, "is a folder"),
        (another_programs, "of another program"),
        (a_text, "damaged or of another program"),
        (a_later_layout, "layout 99"),
        (in_the_way, "cannot be made"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_file_that_is_no_good_is_one_clear_line(tmp_path: Path, spoil: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "engine" / "holdfast.db"
    path.parent.mkdir()
    spoil(path)
    commands = Commands(tmp_path, f"sqlite://{path}")
    for arguments in (("run", "x", *CMD), ("each", "j", *EACH), ("status",), ("evict", "x")):
        done = commands.run(*arguments, lines="one\n")
        assert (done.code, done.out) == (2, "")
        assert says in done.complaint
        assert str(path) in done.complaint
    assert not (tmp_path / "ran").exists()


def test_a_state_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    commands = Commands(tmp_path, None)
    commands.environment |= {"XDG_STATE_HOME": str(tmp_path / "state")}
    done = commands.run("run", "x", *CMD)
    assert done.code == 2
    assert "name another file (sqlite:///path)" in done.complaint


# -- servers that cannot or will not


@pytest.fixture
def on_redis(redis_server: RedisServer, tmp_path: Path) -> Iterator[Commands]:
    """Commands on a Redis that refuses them, where ``x`` is held and stays so."""
    commands = Commands(tmp_path, redis_server.url)
    with holdfast.connect(redis_server.url) as client, client.lock("x") as lease:
        yield commands
        redis_server.command("REPLICAOF", "NO", "ONE")
        assert client.lock("x").try_acquire() is None
        lease.release()  # raises if it was lost
    commands.close()


def test_a_server_that_does_not_serve_is_69_with_how_long_it_was_tried(
    on_redis: Commands, redis_server: RedisServer
) -> None:
    def greet(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

    redis_server.command("REPLICAOF", "127.0.0.1", str(free_port()))
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=greet, args=(other,), daemon=True).start()
        says = {
            free_port(): "no connection to Redis at 127.0.0.1:",
            silent.getsockname()[1]: "no connection to Redis at 127.0.0.1:",
            other.getsockname()[1]: "Redis",
            redis_server.port: "read-only replica",
        }
        calls = [("run", "y", "--timeout", "0", *CMD), ("run", "y", *CMD), ("each", "j", "--input", "lines", *EACH),
                 ("evict", "x"), ("status",)]  # fmt: skip
        (on_redis.folder / "lines").write_text("one\n")
        started = {(port, call): on_redis.start(*call, env={**on_redis.environment, "HOLDFAST_URL": f"redis://127.0.0.1:{port}"})
                   for port in says for call in calls if port != redis_server.port or call[0] == "run"}  # fmt: skip
        for (port, _), process in started.items():
            done = on_redis.ended(process)
            assert (done.code, done.out) == (69, "")
            assert says[port] in done.complaint
            assert re.search(r"tried \d+ times in \d\.\d s", done.complaint)
            assert done.err.count("\n") == 2
        other.shutdown(socket.SHUT_RDWR)
    assert not (on_redis.folder / "ran").exists()


def test_what_a_client_library_logs_is_not_added_to_the_one_line(on_redis: Commands) -> None:
    pytest.importorskip("kazoo")
    done = on_redis.run("status", "--engine", f"zookeeper://127.0.0.1:{free_port()}")
    assert done.code == 69
    assert len(done.err.splitlines()) == 2  # the engine, the error
    assert "no session with ZooKeeper" in done.complaint


def test_a_wrong_password_is_said_at_once(on_redis: Commands, redis_server: RedisServer) -> None:
    address = f"127.0.0.1:{redis_server.port}"
    redis_server.command("ACL", "SETUSER", "app", "reset", "on", ">s3cret", "+@all", "~*", "&*")
    for url in (f"redis://app:wr0ng@{address}", f"redis://nobody:wr0ng@{address}"):
        done = on_redis.run("run", "y", "--engine", url, *CMD)
        assert (done.code, done.out) == (2, "")
        assert "refused the user or password" in done.complaint
        assert "wr0ng" not in done.err
    assert on_redis.run("run", "y", "--engine", f"redis://app:s3cret@{address}", "--", "true").code == 0


def test_a_user_who_may_not_is_told_what_is_needed(on_redis: Commands, redis_server: RedisServer) -> None:
    redis_server.command("ACL", "SETUSER", "app", "reset", "on", ">s3cret", "+ping", "~*", "&*")
    on_redis.environment["HOLDFAST_URL"] = f"redis://app:s3cret@127.0.0.1:{redis_server.port}"
    for arguments in (("run", "y", *CMD), ("status",), ("evict", "x"), ("each", "j", *EACH)):
        done = on_redis.run(*arguments, lines="one\n")
        assert (done.code, done.out) == (2, "")
        assert "forbids what holdfast needs" in done.complaint
        assert "+evalsha" in done.complaint
