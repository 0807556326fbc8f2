"""Redis on more than one server: what their URLs say, and what the client library's own objects for them hold."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

from ...errors import Misuse, Unsupported
from .wire import Target, target_at, target_of

Address = tuple[str, int]

SENTINEL_PORT = 26379
CLUSTER_PORT = 6379


class Sentinels(NamedTuple):
    """Who is asked where the primary of ``service`` is, and how to connect to it."""

    sentinels: tuple[Target, ...]
    service: str
    primary: Target
    identity: str

    @property
    def where(self) -> str:
        return f"service {self.service!r}"


class Cluster(NamedTuple):
    """Nodes to begin with, and how to connect to any other."""

    seeds: tuple[Address, ...]
    node: Target
    identity: str
    remap: Callable[[Address], Address] | None = None

    @property
    def where(self) -> str:
        return f"the cluster of {self.seeds[0][0]}:{self.seeds[0][1]}"


class Acks(NamedTuple):
    """How many replicas are to acknowledge what was written, and for how long that is waited for."""

    replicas: int
    timeout_s: float


def place_at(url: str, asynchronous: bool) -> Target | Sentinels | Cluster:
    """What a URL names. Raises `Misuse` for one that cannot be read."""
    scheme = url.partition("://")[0]
    if scheme.endswith("+sentinel"):
        return _sentinels_at(url, asynchronous)
    if scheme.endswith("+cluster"):
        return _cluster_at(url, asynchronous)
    return target_at(url, asynchronous)


def place_of(client: Any) -> tuple[bool, Target | Sentinels | Cluster]:
    """What a client object of the user's is a client to, and whether it is for asyncio."""
    if any(kind.__name__ == "RedisCluster" for kind in type(client).__mro__):
        return _cluster_of(client)
    asynchronous, target = target_of(client)
    pool = client.connection_pool
    service = getattr(pool, "service_name", None)
    if service is None:
        return asynchronous, target
    if not pool.is_master:
        raise Misuse("this client reads from replicas: locks need Sentinel.master_for(…)")
    sentinels = tuple(target_of(one)[1] for one in pool.sentinel_manager.sentinels)
    # a managed connection would ask the sentinels by itself: take the class that it was made of
    plain = next(kind for kind in target.kind.__mro__ if not _is_managed(kind))
    options = {name: value for name, value in target.options.items() if name != "connection_pool"}
    return asynchronous, _sentinels(sentinels, service, target._replace(kind=plain, options=options))


def acks_in(url: str) -> tuple[str, Acks | None]:
    """The URL without what it says of replicas' acknowledgements, and that."""
    before, mark, query = url.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    said = {name: text for name, text in pairs if name in ("wait_replicas", "wait_timeout_s")}
    if not said:
        return url, None
    rest = [pair for pair in pairs if pair[0] not in said]
    try:
        acks = Acks(int(said.get("wait_replicas", "1")), float(said.get("wait_timeout_s", "1")))
        if not (acks.replicas > 0 and 0 < acks.timeout_s < 3600):
            raise ValueError
    except ValueError:
        raise Misuse("wait_replicas is a number of replicas from 1, wait_timeout_s is seconds above 0") from None
    return before + (mark + urlencode(rest) if rest else ""), acks


def _is_managed(kind: type) -> bool:
    return any(base.__name__ == "SentinelManagedConnection" for base in kind.__mro__)


# -- URLs


class _Parts(NamedTuple):
    hosts: list[Address]
    path: str
    one: Target  # the first host, as a server of its own
    query: dict[str, str]


def _parts(url: str, port: int, asynchronous: bool, form: str, own_options: Sequence[str] = ()) -> _Parts:
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    netloc, _, path = rest.partition("/")
    login, at, hosts = netloc.rpartition("@")
    pairs = parse_qsl(query, keep_blank_values=True)
    own = {name: text for name, text in pairs if name in own_options}
    others = urlencode([pair for pair in pairs if pair[0] not in own])
    addresses = [_address(host, port, form) for host in hosts.split(",")]
    one = target_at(f"{scheme.partition('+')[0]}://{login}{at}localhost?{others}", asynchronous)
    return _Parts(addresses, unquote(path), one, own)


def _address(text: str, default_port: int, form: str) -> Address:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
    if not host or colon not in ("", ":") or (colon and not (port.isdigit() and 0 < int(port) < 65536)):
        raise Misuse(
            f"the hosts of this URL are none: {form}; in a password write / ? # @ : , as %2F %3F %23 %40 %3A %2C"
        )
    return host, int(port) if colon else default_port


def _sentinels_at(url: str, asynchronous: bool) -> Sentinels:
    form = "redis+sentinel://[user:password@]host[:26379],host,…/service[/db]"
    parts = _parts(url, SENTINEL_PORT, asynchronous, form, ("sentinel_username", "sentinel_password"))
    service, _, db = parts.path.partition("/")
    if not service:
        raise Misuse(f"this URL names no service: {form}")
    if db and not db.isdigit():
        raise Misuse(f"the database is a number, not {db!r}: {form}")
    own = {name.removeprefix("sentinel_"): text for name, text in parts.query.items()}
    asked = parts.one._replace(options={**parts.one.options, **own, "db": 0})
    primary = parts.one._replace(options={**parts.one.options, "db": int(db or parts.one.options.get("db") or 0)})
    return _sentinels(tuple(asked.at(*host) for host in parts.hosts), service, primary)


def _sentinels(sentinels: tuple[Target, ...], service: str, primary: Target) -> Sentinels:
    hosts = [(one.options["host"], one.options["port"]) for one in sentinels]
    db = primary.options.get("db") or 0
    return Sentinels(sentinels, service, primary, f"redis+sentinel:{_named(hosts)}/{service}/{db}")


def _cluster_at(url: str, asynchronous: bool) -> Cluster:
    form = "redis+cluster://[user:password@]host[:6379],host,…"
    parts = _parts(url, CLUSTER_PORT, asynchronous, form)
    if parts.path not in ("", "0") or parts.one.options.get("db"):
        raise Misuse(f"a cluster has one database, 0: {form}")
    return Cluster(tuple(parts.hosts), parts.one, f"redis+cluster:{_named(parts.hosts)}")


def _named(hosts: Sequence[Address]) -> str:
    # an address that means another server on another machine does not identify one
    local = any(host in ("localhost", "127.0.0.1", "::1") for host, _ in hosts)
    return (f"{platform.node()}:" if local else "") + ",".join(sorted(f"{host}:{port}" for host, port in hosts))


# -- the user's own cluster client


_OF_A_NODE = (
    "username", "password", "credential_provider", "socket_timeout", "socket_connect_timeout", "socket_keepalive",
    "socket_keepalive_options", "client_name", "driver_info", "lib_name", "lib_version", "socket_read_size",
    "encoding", "encoding_errors",
)  # fmt: skip
"""What a cluster client keeps for its nodes and a connection takes; with TLS, also what begins with ssl_."""


def _cluster_of(client: Any) -> tuple[bool, Cluster]:
    asynchronous = inspect.iscoroutinefunction(getattr(client, "execute_command", None))
    manager = getattr(client, "nodes_manager", None)
    if manager is None:
        raise Unsupported(
            f"this {type(client).__name__} does not say which nodes it knows: give a redis+cluster:// URL"
        )
    nodes = [*manager.startup_nodes.values(), *manager.nodes_cache.values()]
    seeds = tuple(dict.fromkeys((str(node.host), int(node.port)) for node in nodes))
    settings: dict[str, Any] = dict(manager.connection_kwargs)
    kind = settings.get("connection_class")
    tls = settings.get("ssl") or (kind is not None and "SSL" in kind.__name__)
    plain = target_at(f"{'rediss' if tls else 'redis'}://localhost", asynchronous)
    options = {name: value for name, value in settings.items() if name in _OF_A_NODE or (tls and name[:4] == "ssl_")}
    node = plain._replace(options={**plain.options, **options}, keeps=client)
    return asynchronous, Cluster(seeds, node, f"redis+cluster:{_named(seeds)}", manager.address_remap)
