"""Where the embedded engine's file may stand, and what it refuses to touch."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from holdfast.engines.sqlite import clock
from holdfast.engines.sqlite.engine import SqliteEngine, default_path
from holdfast.engines.sqlite.file import NETWORK, file_system
from holdfast.errors import Misuse, Unavailable
from holdfast.model import Claim, State, Turnstile

LOCK = Turnstile("lock", "x", 1)


def ping(path: Path) -> None:
    engine = SqliteEngine(path)
    link = engine.blocking_link()
    try:
        link.call(engine.ping(), 2.0)
    finally:
        link.close()


def test_making_an_engine_touches_nothing(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "deep" / "holdfast.db")
    engine.blocking_link()
    engine.enter(LOCK, Claim("c", 1, 1.0), False)
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_for_the_user_alone(tmp_path: Path) -> None:
    ping(tmp_path / "a" / "b" / "holdfast.db")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0
    assert (tmp_path / "a" / "b" / "holdfast.db-live").stat().st_mode & 0o077 == 0


def test_urls_name_a_file_or_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert SqliteEngine.from_url("sqlite:///tmp/a%20b.db").path == Path("/tmp/a b.db")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert SqliteEngine.from_url("sqlite://").path == default_path() == tmp_path / "holdfast" / "holdfast.db"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_path() == Path.home() / ".local/state/holdfast/holdfast.db"


@pytest.mark.parametrize("url", ["sqlite://file.db", "sqlite:///", "sqlite:///:memory:", "sqlite:///a.db?mode=ro"])
def test_a_url_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(Misuse):
        SqliteEngine.from_url(url)


def test_a_file_of_another_program_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    foreign = tmp_path / "other.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = foreign.read_bytes()
    with pytest.raises(Misuse, match="another program"):
        ping(foreign)
    assert foreign.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("buy milk\n" * 200)
    with pytest.raises(Misuse, match="damaged or of another program"):
        ping(text)
    assert text.read_text() == "buy milk\n" * 200


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.db"
    ping(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + os.urandom(len(whole) - 100))
    with pytest.raises(Misuse, match="damaged"):
        ping(path)


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.db"
    ping(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Misuse, match="layout 99"):
        ping(path)


def test_an_empty_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.db"
    path.touch()
    ping(path)
    assert path.stat().st_size > 0


def test_a_folder_or_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="is a folder"):
        ping(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(Misuse, match="cannot be made"):
        ping(tmp_path / "file" / "holdfast.db")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the superuser may write anywhere
    with pytest.raises(Misuse, match="cannot be written"):
        ping(tmp_path / "holdfast.db")


def test_the_file_system_is_the_last_one_mounted_nearest_above() -> None:
    mounts = (
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        "23 22 0:50 / /home rw - nfs4 server:/home rw\n"
        "24 23 0:51 / /home/me/my\\040disk rw master:1 - xfs /dev/sdb rw\n"
        "25 22 0:52 / /home rw - cifs //server/home rw\n"
    )
    assert file_system("/var/x.db", mounts) == "ext4"
    assert file_system("/home/me/x.db", mounts) == "cifs"
    assert file_system("/home/me/my disk/x.db", mounts) == "xfs"
    assert file_system("/homeless/x.db", mounts) == "ext4"
    assert {"nfs4", "cifs"} <= NETWORK
    assert not {"ext4", "xfs", "overlay", "tmpfs"} & NETWORK


def test_after_a_reboot_nobody_of_before_holds_anything_and_tokens_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SqliteEngine(tmp_path / "holdfast.db")
    link = engine.blocking_link()
    before = link.call(engine.enter(LOCK, Claim("before", 1, 86400.0), False), 5.0)
    monkeypatch.setattr(clock, "boot_id", lambda: "another boot")
    engine.tokens_us = lambda: 0.0
    after = engine.blocking_link()
    standing = after.call(engine.enter(LOCK, Claim("after", 1, 1.0), True), 5.0)
    assert standing.state is State.ADMITTED
    assert standing.token > before.token
    after.close()
    link.close()


def test_tokens_rise_though_the_clock_is_stepped_back_and_the_turnstile_was_empty(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "holdfast.db")
    tokens: list[int] = []
    for step, wall_us in enumerate((5e15, 4e15, 0.0, 5e15 + 2)):
        engine.tokens_us = lambda wall_us=wall_us: wall_us  # type: ignore[misc]
        link = engine.blocking_link()
        tokens.append(link.call(engine.enter(LOCK, Claim(str(step), 1, 9.0), False), 5.0).token)
        link.call(engine.leave(LOCK, str(step), False), 5.0)
        link.close()
    assert tokens == sorted(set(tokens))
    assert tokens[0] == 5 * 10**15


def test_a_file_that_was_removed_under_us_is_made_anew_and_its_claims_are_gone(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "holdfast.db")
    link = engine.blocking_link()
    claim = Claim("mine", 1, 60.0, link.inbox)
    link.call(engine.enter(LOCK, claim, False), 5.0)
    for file in tmp_path.glob("holdfast.db*"):
        if file.is_file():
            file.unlink()
    link._core._store._look_at = 0.0  # not to wait for the next regular look
    (request,) = engine.renew([(LOCK, claim)])
    assert link.call(request, 5.0)["mine"].state is State.GONE
    link.close()


def test_a_closed_link_serves_no_more(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "holdfast.db")
    link = engine.blocking_link()
    link.call(engine.ping(), 5.0)
    link.close()
    with pytest.raises(Unavailable, match="closed"):
        link.call(engine.ping(), 5.0)


def test_namespaces_do_not_see_each_other(tmp_path: Path) -> None:
    one, other = (SqliteEngine(tmp_path / "holdfast.db", namespace) for namespace in ("a", "a:lock"))
    for engine in (one, other):
        link = engine.blocking_link()
        assert link.call(engine.enter(LOCK, Claim("c", 1, 60.0), True), 5.0).state is State.ADMITTED
        assert len(link.call(engine.list(""), 5.0)) == 1
        link.close()
    assert one.identity != other.identity
