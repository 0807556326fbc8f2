"""Where a PostgreSQL is and how to connect to it: a URL, a pool's settings, or a function that makes connections."""

from __future__ import annotations

import inspect
import os
import platform
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ...errors import Misuse, Unsupported

SCHEMA = "holdfast"
OWN = ("schema", "listen_url", "ends_with_connection")
"""Options of a URL that are ours and not libpq's."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class Postgres:
    """A PostgreSQL for `holdfast.connect`, with options that a pool or a function cannot carry.

    ``source`` is a URL, a ``psycopg_pool`` pool (of which only the settings are used: the connections are ours), or a
    function that returns a new ``psycopg`` connection each time it is called. ``listen_url`` reaches the same database
    past a transaction pooler; ``schema`` is where our tables stand; with ``ends_with_connection`` a claim ends as soon
    as the server sees its client's connection gone, which also a short break of the network does.
    """

    def __init__(
        self, source: Any, *, schema: str = SCHEMA, listen_url: str | None = None, ends_with_connection: bool = False
    ) -> None:
        if isinstance(source, str):
            source, own = _split(source)
            schema = own.get("schema", schema)
            listen_url = own.get("listen_url", listen_url)
            ends_with_connection = _truth(own.get("ends_with_connection", str(ends_with_connection)))
        if not _IDENTIFIER.fullmatch(schema) or schema.lower().startswith("pg_"):
            raise Misuse(f"schema= is a plain name (letters, digits, _; at most 63, not pg_…), not {schema!r}")
        self.schema = schema
        self.ends_with_connection = ends_with_connection
        self.make: Callable[[], Any] | None = None
        self._conninfo: Callable[[], Mapping[str, Any]]
        if isinstance(source, str):
            given = checked(source)
            self._conninfo = lambda: given
        elif hasattr(source, "conninfo") and hasattr(source, "kwargs"):
            self._conninfo = lambda: _of_pool(source)
            given = {} if callable(source.conninfo) or callable(source.kwargs) else _of_pool(source)
        elif isinstance(source, psycopg.Connection | psycopg.AsyncConnection):
            raise Misuse(
                "holdfast needs connections of its own, never one with your transactions on it: give a URL, a pool, or "
                "a function that makes connections (lambda: psycopg.connect(...))"
            )
        elif callable(source):
            self.make = source
            given = {}
        else:
            raise Misuse(f"a PostgreSQL is a URL, a psycopg pool or a function, not {type(source).__name__}")
        self.where = _where(given)
        self.identity = _identity(given, source) + f"#{schema}"
        self.listener = self if listen_url is None else Postgres(listen_url, schema=schema)
        self.listens_elsewhere = listen_url is not None
        self.polls = False  # found out: no signals reach us, so those who wait look often

    @property
    def is_asynchronous(self) -> bool:
        return self.make is not None and inspect.iscoroutinefunction(self.make)

    def attempts(self) -> list[bytes]:
        """What libpq takes, one per host: each gets its share of the time, however silent the others are."""
        params = dict(self._conninfo())
        params.setdefault("fallback_application_name", "holdfast")
        params.pop("connect_timeout", None)  # calls bring their own
        names = [name for name in ("host", "hostaddr", "port") if params.get(name)]
        lists = {name: str(params[name]).split(",") for name in names}
        count = max([1, *(len(lists[name]) for name in names if name != "port")])
        made: list[bytes] = []
        for number in range(count):
            for name, values in lists.items():
                params[name] = values[number] if len(values) > 1 else values[0]
            made.append(make_conninfo("", **params).encode())
        return made


def checked(url: str) -> dict[str, Any]:
    """The settings in a URL, where libpq takes it and no part of a password went astray."""
    try:
        params = conninfo_to_dict(url)
    except psycopg.Error as error:
        # nothing is repeated but an option's name: a part of a password may have been taken for something else
        said, query = " ".join(str(error).split()), url.partition("?")[2]
        why = f": {said}" if "invalid URI query parameter" in said and "@" not in query and "%40" not in query else ""
        raise Misuse(f"libpq does not take this postgresql:// URL{why or '; ' + _PASSWORD}") from None
    hosts, ports = str(params.get("host", "")).split(","), str(params.get("port", "")).split(",")
    if any("@" in host for host in hosts) or not all(port == "" or port.isdecimal() for port in ports):
        raise Misuse(f"its host or port is none; {_PASSWORD}")
    if len(ports) > 1 and len(ports) != len(hosts):
        raise Misuse(f"{len(hosts)} hosts and {len(ports)} ports: give one port, or one for each host")
    return dict(params)


_PASSWORD = "in a password write / ? # @ : [ ] % as %2F %3F %23 %40 %3A %5B %5D %25"


def _split(url: str) -> tuple[str, dict[str, str]]:
    """The URL that is libpq's, and the options that are ours."""
    login = re.match(r"\w*://[^@/]*@", url)  # in which a ? is one of its own, as libpq has it
    base, mark, query = url[login.end() if login else 0 :].partition("?")
    if not mark:
        return url, {}
    base = (login[0] if login else "") + base
    own: dict[str, str] = {}
    rest: list[str] = []  # as they were written: libpq is stricter than Python about what a % may stand before
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name in OWN:
            own[name] = unquote(value)
        else:
            rest.append(pair)
    return base + ("?" + "&".join(rest) if rest else ""), own


def _truth(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise Misuse(f"ends_with_connection= is true or false, not {text!r}")


def _of_pool(pool: Any) -> dict[str, Any]:
    conninfo: Any = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
    options: Any = (pool.kwargs() if callable(pool.kwargs) else pool.kwargs) or {}
    if inspect.isawaitable(conninfo) or inspect.isawaitable(options):
        raise Unsupported("the settings of this pool are made by a coroutine: give holdfast a function that connects")
    try:
        params = conninfo_to_dict(conninfo)
    except psycopg.Error:
        raise Misuse("libpq does not take the conninfo of this pool") from None
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    return {**params, **{name: value for name, value in options.items() if name in known}}


def _where(params: Mapping[str, Any]) -> str:
    host = params.get("host") or params.get("hostaddr") or os.environ.get("PGHOST") or "localhost"
    port = params.get("port") or os.environ.get("PGPORT") or "5432"
    return ",".join(
        f"{one}:{(ports[number] if len(ports) > 1 else ports[0]) or 5432}"
        for ports in [str(port).split(",")]
        for number, one in enumerate(str(host).split(","))
    )


def _identity(params: Mapping[str, Any], source: Any) -> str:
    if not params and not isinstance(source, str):
        return f"postgres:{secrets.token_hex(8)}"  # only the function knows where it leads
    where = _where(params)
    hosts = [place.rpartition(":")[0] for place in where.split(",")]
    local = any(host in ("localhost", "127.0.0.1", "::1") or host.startswith(("/", "@")) for host in hosts)
    database = params.get("dbname") or os.environ.get("PGDATABASE") or params.get("user") or ""
    return f"postgres:{platform.node() + ':' if local else ''}{where}/{unquote(str(database))}"
