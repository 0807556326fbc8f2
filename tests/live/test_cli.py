"""What all verbs of the command have in common, and ``status`` and ``evict``, as a user meets them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import PROGRAM, Commands
from servers import eventually

import holdfast

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.name == "nt", reason="the commands here are a Unix's")]

SHELL_PROGRAM = shlex.join(PROGRAM)
VERBS = ("run", "each", "status", "watch", "evict", "demo", "bench")


@pytest.fixture
def on(url: str, tmp_path: Path) -> Iterator[Commands]:
    """Commands on any engine."""
    commands = Commands(tmp_path, url)
    yield commands
    commands.close()


@pytest.fixture
def on_sqlite(sqlite_url: str, tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path, sqlite_url)
    yield commands
    commands.close()


@pytest.fixture
def client(on: Commands) -> Iterator[holdfast.sync.Client]:
    """Somebody else on the same engine."""
    with holdfast.connect(on.environment["HOLDFAST_URL"], owner="other:1") as client:
        yield client


# -- help


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_teaches_by_example(on_sqlite: Commands, verb: str) -> None:
    done = on_sqlite.run(*filter(None, [verb]), "--help")
    assert (done.code, done.err) == (0, "")
    assert f"\n    holdfast {verb or 'run'}" in done.out
    assert max(map(len, done.out.splitlines())) <= 120


def test_without_a_verb_the_help_is_an_error(on_sqlite: Commands) -> None:
    done = on_sqlite.run()
    assert (done.code, done.out) == (2, "")
    assert all(f"  {verb} " in done.err for verb in VERBS)


def test_it_says_its_version(on_sqlite: Commands) -> None:
    assert on_sqlite.run("--version").out == f"holdfast, version {holdfast.__version__}\n"


@pytest.mark.parametrize(("module", "extra"), [("click", "cli"), ("rich", "cli"), ("redis", "redis")])
def test_without_an_extra_one_line_says_what_to_install(tmp_path: Path, module: str, extra: str) -> None:
    blocked = f"import sys; sys.modules[{module!r}] = None; from holdfast.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", blocked, "status", "--engine", "redis://localhost"],
                          capture_output=True, text=True, check=False, cwd=tmp_path)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("holdfast: ")
    assert done.stderr.endswith(f"pip install 'holdfast[{extra}]'\n")
    assert done.stderr.count("\n") == 1


# -- which engine


@pytest.mark.parametrize("verb", [("run", "x", "--", "true"), ("each", "j", "--", "true", "{}"), ("status",),
                                  ("evict", "x")], ids=lambda verb: verb[0])  # fmt: skip
def test_the_first_line_on_stderr_says_engine_and_scope(on: Commands, verb: tuple[str, ...]) -> None:
    url = on.environment["HOLDFAST_URL"]
    first = on.run(*verb).err.splitlines()[0]
    assert first == f"holdfast: {url} ({'machine' if url.startswith('sqlite') else 'fleet'})"


def test_an_engine_on_the_command_line_comes_before_the_environments(on_sqlite: Commands) -> None:
    other = f"sqlite://{on_sqlite.folder}/other.db"
    assert on_sqlite.run("status", "--engine", other).err == f"holdfast: {other} (machine)\n"


def test_without_a_name_it_is_the_embedded_engine_in_the_users_state_folder(tmp_path: Path) -> None:
    commands = Commands(tmp_path, None)
    commands.environment |= {"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}
    done = commands.run("run", "x", "--", "true")
    assert (done.code, done.err) == (0, "holdfast: the embedded engine (machine)\n")
    assert list(tmp_path.rglob("holdfast/holdfast.db"))


def test_namespaces_do_not_see_each_other(on: Commands) -> None:
    cmd = ("--", sys.executable, "-m", "holdfast", "status", "--json", "--namespace")
    assert json.loads(on.run("run", "x", "--namespace", "a", *cmd, "b").out)["locks"] == []
    assert [one["name"] for one in json.loads(on.run("run", "x", "--namespace", "a", *cmd, "a").out)["locks"]] == ["x"]


ODD_URLS = (
    "redis://user:s3cret@127.0.0.1:1",
    "redis://127.0.0.1:1/0?password=s3cret",
    "redis://user:s3cret/x@127.0.0.1:1",
    "redis://user:1#s3cret@127.0.0.1",
    "redis://user:s3cret?x@127.0.0.1:1",
    "redis://user:s3cret@127.0.0.1:port",
    "redis://[user:s3cret@127.0.0.1",
    "redis://user:s3cret@127.0.0.1:1/?nonsense=1",
    "rediss://user:s3cret@127.0.0.1:1/?ssl_password=s3cret",
    "radish://user:s3cret@127.0.0.1",
    "user:s3cret@127.0.0.1",
)


def test_a_password_is_never_printed(on_sqlite: Commands) -> None:
    for process in [on_sqlite.start("status", "--engine", url) for url in ODD_URLS]:
        done = on_sqlite.ended(process)
        assert done.code in (2, 69)
        assert "Traceback" not in done.err
        assert "s3cret" not in done.out + done.err


# -- status and evict


def test_status_is_a_table_for_people_and_json_for_programs(on: Commands, client: holdfast.sync.Client) -> None:
    assert on.status() == []
    assert on.run("status").out == "nobody holds anything\n"
    with client.lock("invoice:42") as lease, client.semaphore("gpu", 4, weight=3).acquire():
        table = on.run("status")
        assert table.code == 0
        title, columns, *rows = [line.split() for line in table.out.splitlines()]
        assert (title, columns[:4]) == (["locks"], ["kind", "name", "who", "state"])
        assert [row[:4] for row in rows] == [["lock", "invoice:42", "other:1", "holds"],
                                             ["semaphore", "gpu", "other:1", "holds"]]  # fmt: skip
        assert rows[0][-1] == str(lease.token)
        lock, semaphore = on.status()
        (claim,) = lock["claims"]
        assert (claim["owner"], claim["token"], claim["admitted"]) == ("other:1", lease.token, True)
        assert 0 < claim["remaining_s"] <= 15
        assert (semaphore["capacity"], semaphore["holders"], semaphore["claims"][0]["weight"]) == (4, 1, 3)


def test_status_takes_the_start_of_a_name_or_of_its_address(on: Commands, client: holdfast.sync.Client) -> None:
    with client.lock("invoice:42"), client.lock("report"), client.semaphore("invoices", 2).acquire():
        assert {one["name"] for one in on.status("invoice")} == {"invoice:42", "invoices"}
        assert {one["name"] for one in on.status("lock:")} == {"invoice:42", "report"}
        assert on.status("nobody") == []
        assert "'nobody'" in on.run("status", "nobody").out


def test_names_and_owners_do_nothing_to_a_terminal(on: Commands) -> None:
    name = "a\nb\x1b[31m\t{}*é"
    with holdfast.connect(on.environment["HOLDFAST_URL"], owner="evil\x1b[2J") as client:
        client.lock(name).acquire()
        assert on.status()[0]["name"] == name
        table = on.run("status")
        assert "\x1b" not in table.out
        assert len(table.out.splitlines()) == 3
        evicted = on.run("evict", name)
        assert (evicted.code, evicted.out.count("\n")) == (0, 1)
        assert "\x1b" not in evicted.out
        refused = on.run("evict", name)
        assert (refused.code, refused.err.count("\n")) == (1, 2)
        assert "\x1b" not in refused.err
    evicting = f'{SHELL_PROGRAM} evict "$HOLDFAST_NAME"; exec sleep 30'
    lost = on.run("run", name, "--ttl", "1", "--", "sh", "-c", evicting)
    assert lost.code == 76
    assert "\x1b" not in lost.out + lost.err


def test_status_is_readable_where_the_terminal_knows_ascii_only(on_sqlite: Commands) -> None:
    on_sqlite.environment |= {"PYTHONIOENCODING": "ascii"}
    done = on_sqlite.run("run", "häß", "--", sys.executable, "-m", "holdfast", "status")
    assert done.code == 0
    assert r"h\xe4\xdf" in done.out


def test_evict_drops_who_holds_and_admits_the_next(on: Commands, client: holdfast.sync.Client) -> None:
    lost = threading.Event()
    first = client.lock("x", ttl_s=1).acquire()
    first.on_lost(lost.set)
    waiter = on.start("run", "x", "--", "true")
    eventually(lambda: on.waiting("x") == 1)
    done = on.run("evict", "x")
    assert (done.code, done.out) == (0, f"evicted other:1 (token {first.token})\n")
    assert on.ended(waiter).code == 0
    assert lost.wait(20)
    with pytest.raises(holdfast.LeaseLost):
        first.release()


def test_evict_takes_a_token_or_all(on: Commands, client: holdfast.sync.Client) -> None:
    permits = [client.semaphore("gpu", 3).acquire() for _ in range(3)]
    where = ("gpu", "--kind", "semaphore")
    assert on.run("evict", *where, "--token", "1").code == 1
    assert on.run("evict", *where, "--token", "0").code == 1
    assert on.run("evict", *where, "--token", str(permits[1].token)).code == 0
    assert [claim["token"] for claim in on.status()[0]["claims"]] == [permits[0].token, permits[2].token]
    holder = client.lock("x").acquire()
    waiters = [on.start("run", "x", "--ttl", "2", "--", "touch", "ran") for _ in range(2)]
    eventually(lambda: on.waiting("x") == 2)
    done = on.run("evict", "x", "--all")
    assert (done.code, done.out.count("evicted")) == (0, 3)
    assert done.out.splitlines()[-1] == f"evicted other:1 (token {holder.token})"
    assert [on.ended(waiter).code for waiter in waiters] == [0, 0]  # they queued again
    for lease in (permits[1], holder):
        with pytest.raises(holdfast.LeaseLost):
            lease.release()
    permits[0].release()
    permits[2].release()


def test_evicting_nobody_is_1_and_touches_no_other(on: Commands, client: holdfast.sync.Client) -> None:
    with client.lock("x") as lease, client.lock("xy"):
        for arguments in (("nobody",), ("x", "--kind", "semaphore"), ("x", "--token", "7"), ("",)):
            done = on.run("evict", *arguments)
            assert (done.code, done.out) == (1, "")
            assert done.complaint.startswith("holdfast: nobody holds ")
        lease.ensure_held()
        assert len(on.status()) == 2


# -- streams


def test_only_results_go_to_stdout(on_sqlite: Commands) -> None:
    done = on_sqlite.run("run", "x", "--", "sh", "-c", "echo out; echo err >&2")
    assert done.out == "out\n"
    assert done.err.splitlines()[-1] == "err"
    done = on_sqlite.run("each", "j", "--json", "--", "true", "{}", lines="a\nb\n")
    assert json.loads(done.out)["done"] == 2
    assert on_sqlite.run("evict", "x").out == ""


def test_progress_is_shown_on_a_terminal_only(on_sqlite: Commands) -> None:
    import pty

    each = ("each", "j", "--again", "--workers", "1", "--", "sleep", "0.2", "{}")
    piped = on_sqlite.run(*each, lines="0.3\n0.4\n")
    assert "\x1b" not in piped.err
    assert "running here" not in piped.err
    ours, theirs = pty.openpty()
    shown = bytearray()
    reader = threading.Thread(target=_read_all, args=(ours, shown), daemon=True)
    reader.start()
    done = on_sqlite.run(*each, lines="0.3\n0.4\n", stderr=theirs)
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    assert (done.code, done.out) == (0, "")
    assert b" running here" in shown


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("verb", "code"),
    [("status", 0), ("status --json", 0), ("run x -- true", 0), ("run x -- sh -c 'exit 7'", 7), ("evict x", 1),
     ("each j --input lines -- true {}", 0)],
)  # fmt: skip
def test_closed_streams_change_nothing(on_sqlite: Commands, verb: str, code: int, closed: str) -> None:
    (on_sqlite.folder / "lines").write_text("a\nb\n")
    shell = f"{SHELL_PROGRAM} {verb} {closed}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, cwd=on_sqlite.folder,
                          env=on_sqlite.environment)  # fmt: skip
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_cmd_finds_a_closed_stream_closed_and_no_file_of_ours_in_its_place(on_sqlite: Commands) -> None:
    shell = f"{SHELL_PROGRAM} run x -- sh -c 'test ! -e /dev/fd/0' <&-"
    assert subprocess.run(["sh", "-c", shell], check=False, env=on_sqlite.environment).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line(on_sqlite: Commands) -> None:
    with open("/dev/full", "wb") as full:
        done = on_sqlite.run("status", "--json", stdout=full)
    assert done.code == 1
    assert done.complaint == "holdfast: input or output: No space left on device"


def test_a_reader_that_has_gone_is_no_error_message(on_sqlite: Commands) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = on_sqlite.run("status", stdout=writing)
    os.close(writing)
    assert done.code == 1
    assert done.err.count("\n") == 1


def _read_all(fd: int, into: bytearray) -> None:
    try:
        while piece := os.read(fd, 4096):
            into.extend(piece)
    except OSError:
        pass  # the other end is closed
