"""PostgreSQL, and pgbouncer before it."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import psycopg
from servers import Server, eventually, missing


def binary(name: str) -> str:
    """A program of the newest PostgreSQL here: Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return str(found[-1]) if found else shutil.which(name) or missing("postgresql")


def as_user() -> Any:
    """Neither will run as root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def new_folder() -> Path:
    """That the server's user may reach and nobody else; pytest's are for the user who runs it."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-pg-"))
    if who := as_user():
        os.chown(folder, who["user"], who["group"])
    return folder


@functools.cache
def template() -> Path:
    """A fresh data folder, to be copied: making one takes a second or two."""
    folder = new_folder()
    options = ["-A", "trust", "-U", "postgres", "-N", "-E", "UTF8", "--locale=C", "--wal-segsize=1"]
    subprocess.run(
        [binary("initdb"), "-D", str(folder / "data"), *options], check=True, stdout=subprocess.DEVNULL, **as_user()
    )
    return folder / "data"


def forget_template() -> None:
    if template.cache_info().currsize:
        shutil.rmtree(template().parent)
        template.cache_clear()


class PostgresServer(Server):
    """One server. It keeps its data over restarts; ``settings`` go to its command line."""

    patience_s = 45.0

    def __init__(self, folder: Path, *settings: str, fsync: bool = False, data: Path | None = None) -> None:
        super().__init__(folder)
        self.settings = (f"fsync={'on' if fsync else 'off'}", *settings)
        self.home = new_folder()
        self.data = self.home / "data"
        subprocess.run(["cp", "-a", "--reflink=auto", str(data or template()), str(self.data)], check=True, **as_user())

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def argv(self) -> list[str]:
        settings = [
            f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.home}",
            "shared_buffers=16MB", "max_connections=100", *self.settings,
        ]  # fmt: skip
        return [binary("postgres"), "-D", str(self.data), *(word for one in settings for word in ("-c", one))]

    def launch(self) -> None:
        with (self.folder / "log").open("ab") as log:
            who = as_user()
            self.process = subprocess.Popen(
                self.argv(), cwd=self.home, stdout=log, stderr=log, user=who.get("user"), group=who.get("group"),
                extra_groups=who.get("extra_groups"),
            )  # fmt: skip

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False

    def sql(self, text: str, *values: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """One statement over a connection of its own."""
        url = f"postgresql://postgres@127.0.0.1:{self.port}/{database}"
        writes = "-c default_transaction_read_only=off"
        with psycopg.connect(url, autocommit=True, connect_timeout=10, options=writes) as connection:
            done = connection.execute(text.encode(), values or None)
            return done.fetchall() if done.description else []

    def empty(self, schema: str = "holdfast") -> None:
        """Leave the schema, if there is one, without a row."""
        tables = self.sql("SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename <> 'meta'", schema)
        names = ", ".join(f'"{schema}".{name}' for (name,) in tables)
        for attempt in range(10):
            try:
                if tables:
                    self.sql(f"TRUNCATE {names}")
                return
            except psycopg.errors.DeadlockDetected:  # with what a client of the last test still gives back
                if attempt == 9:
                    raise

    def new_data(self) -> None:
        """Lose everything: the next start finds an empty disk."""
        shutil.rmtree(self.data)
        subprocess.run(["cp", "-a", str(template()), str(self.data)], check=True, **as_user())

    # -- the server is a family of processes

    def family(self) -> list[int]:
        assert self.process is not None
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def _signal(self, number: int) -> None:
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            family = self.family()
            self._signal(signal.SIGKILL)
            super()._end()
            for pid in family:  # the next start wants none of them left
                eventually(lambda pid=pid: not alive(pid))
        super()._end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        shutil.rmtree(self.home, ignore_errors=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


class PgBouncer(Server):
    """A pooler before ``server``, in ``mode`` transaction, session or statement."""

    def __init__(self, folder: Path, server: PostgresServer, mode: str = "transaction") -> None:
        super().__init__(folder)
        self.server = server
        self.mode = mode
        self.home = new_folder()

    @property
    def bare_url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def url(self) -> str:
        """With a way past it for signals."""
        return f"{self.bare_url}?listen_url={quote(self.server.url, safe='')}"

    def argv(self) -> list[str]:
        pooler = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer") or missing("pgbouncer")
        (self.home / "users").write_text('"postgres" ""\n')
        (self.home / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={self.server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {self.home}/users\n"
            f"pool_mode = {self.mode}\ndefault_pool_size = 3\nserver_login_retry = 0.1\n"
        )
        for name in ("users", "ini"):
            (self.home / name).chmod(0o644)
        return [pooler, str(self.home / "ini")]

    def launch(self) -> None:
        with (self.folder / "log").open("ab") as log:
            who = as_user()
            self.process = subprocess.Popen(
                self.argv(), cwd=self.home, stdout=log, stderr=log, user=who.get("user"), group=who.get("group"),
                extra_groups=who.get("extra_groups"),
            )  # fmt: skip

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.bare_url, connect_timeout=5, autocommit=True):
                return True
        except psycopg.OperationalError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        shutil.rmtree(self.home, ignore_errors=True)
