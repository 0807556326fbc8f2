"""Which ZooKeeper, as whom, and how long its sessions last: from a URL, or from a client that the user already has."""

from __future__ import annotations

import math
import platform
from importlib import import_module
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from ...core.recipe import DEFAULT_TTL_S
from ...errors import Misuse

security: Any = import_module("kazoo.security")

OPTIONS = ("ttl_s", "session_timeout_s", "acl", "ca", "cert", "key", "key_password", "verify")
SHORTEST_TTL_S = 0.1


class Target(NamedTuple):
    """An ensemble and how to connect to it. ``options`` are `KazooClient`'s; they hold the secrets."""

    hosts: str
    chroot: str
    session_timeout_s: float
    acl: list[Any]
    options: dict[str, Any]

    @property
    def ttl_s(self) -> float:
        return ttl_within(self.session_timeout_s)

    @property
    def silence_s(self) -> float:
        """After how long without any answer a connection is given up for another, in time for the leases on it."""
        return min(2.0, self.session_timeout_s / 10)

    @property
    def where(self) -> str:
        return f"{self.hosts}{self.chroot}"

    @property
    def identity(self) -> str:
        hosts = sorted(self.hosts.split(","))
        # an address that means another server on another machine does not identify one
        local = any(host.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]") for host in hosts)
        return f"zookeeper:{platform.node() + ':' if local else ''}{','.join(hosts)}{self.chroot}"

    @property
    def who(self) -> str:
        """Whose permissions these are, for messages."""
        names = [credential.partition(":")[0] for _, credential in self.options.get("auth_data", ())]
        return f"user {', '.join(names)}" if names else "anonymous users"


def session_for(ttl_s: float) -> float:
    """How long a session must last to back leases of ``ttl_s``: half as long again, and 1.5 s.

    Whether a session lives is decided by the leader. It counts from what it last heard of us, and that is older than
    the request that it confirms: we speak every third of the timeout at least, and a follower passes on who spoke once
    in half a tick (a second).
    """
    return 1.5 * ttl_s + 1.5


def ttl_within(session_timeout_s: float) -> float:
    return round((session_timeout_s - 1.5) / 1.5, 3)


def target_at(url: str) -> Target:
    """``zookeeper://[user:password@]host[:port],…[/chroot][?option=…]``; ``zookeepers://`` for TLS."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    before, _, path = rest.partition("/")
    login, at, hosts = before.rpartition("@")
    if "@" in path + query:  # a password that was cut short at its / or ?: no part of it is taken for a host and shown
        raise Misuse(f"{scheme}:// has an @ after its hosts: write it as %40, and in a password / ? @ as %2F %3F %40")
    said = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := said.keys() - set(OPTIONS):
        raise Misuse(f"{scheme}:// knows no option {', '.join(sorted(unknown))}; known: {', '.join(OPTIONS)}")
    options: dict[str, Any] = {}
    if at:
        user, colon, password = login.partition(":")
        if not (user and colon):
            raise Misuse(f"{scheme}:// takes user:password before the @; in a password write / ? @ as %2F %3F %40")
        options["auth_data"] = [("digest", f"{unquote(user)}:{unquote(password)}")]
    if scheme == "zookeepers":
        names = {"ca": "ca", "cert": "certfile", "key": "keyfile", "key_password": "keyfile_password"}
        options |= {names[name]: value for name, value in said.items() if name in names}
        checked = _choice(said, "verify", {"yes": True, "no": False}, "yes")
        options |= {"use_ssl": True, "verify_certs": checked, "check_hostname": checked}
    elif tls := said.keys() & {"ca", "cert", "key", "key_password", "verify"}:
        raise Misuse(f"{', '.join(sorted(tls))} is for TLS: zookeepers://")
    acls = {"open": security.OPEN_ACL_UNSAFE, "creator": security.CREATOR_ALL_ACL}
    acl = _choice(said, "acl", acls, "creator" if at else "open")
    return Target(_hosts(hosts, scheme), _chroot(path), _session_timeout_s(said), acl, options)


def target_of(client: Any) -> Target:
    """The settings of a client object. The session is ours, so that nobody else ends it."""
    names = ("keyfile", "keyfile_password", "certfile", "ca", "use_ssl", "verify_certs", "check_hostname")
    options = {name: getattr(client, name) for name in names}
    options |= {"auth_data": list(client.auth_data), "randomize_hosts": client.randomize_hosts}
    options["sasl_options"] = client._connection.sasl_options
    hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in client.hosts)
    session_timeout_s = _long_enough(client._session_timeout / 1000)
    return Target(hosts, client.chroot, session_timeout_s, client.default_acl or security.OPEN_ACL_UNSAFE, options)


def _hosts(text: str, scheme: str) -> str:
    hosts = [host.strip() for host in text.split(",")]
    for number, host in enumerate(hosts):
        name, colon, port = host.rpartition(":")
        if not colon or host.endswith("]"):
            name, port = host, "2181"
        bare = name.removeprefix("[").removesuffix("]")
        if not bare or (":" in bare) != name.startswith("[") or not port.isdigit() or not 0 < int(port) < 65536:
            raise Misuse(f"{scheme}://host:port,host:port/chroot names each host with a port or none, not {host!r}")
        hosts[number] = f"{name}:{port}"
    return ",".join(hosts)


def _chroot(path: str) -> str:
    parts = [unquote(part) for part in path.split("/") if part]
    if any(part in (".", "..") or "\0" in part for part in parts):
        raise Misuse(f"the chroot /{path} is no path in ZooKeeper")
    return "".join(f"/{part}" for part in parts)


def _session_timeout_s(said: dict[str, str]) -> float:
    if "session_timeout_s" in said:
        if "ttl_s" in said:
            raise Misuse("ttl_s and session_timeout_s say the same: give one of them")
        return _long_enough(_seconds(said, "session_timeout_s"))
    ttl_s = _seconds(said, "ttl_s") if "ttl_s" in said else DEFAULT_TTL_S
    return _long_enough(session_for(ttl_s))


def _long_enough(session_timeout_s: float) -> float:
    if ttl_within(session_timeout_s) < SHORTEST_TTL_S:
        raise Misuse(
            f"a session of {session_timeout_s:g} s backs no leases: it takes {session_for(SHORTEST_TTL_S):g} s or "
            f"more, for a ttl_s of {SHORTEST_TTL_S:g} or more"
        )
    return session_timeout_s


def _seconds(said: dict[str, str], name: str) -> float:
    try:
        seconds = float(said[name])
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 86_400:
        raise Misuse(f"{name} is a number of seconds, less than a day, not {said[name]!r}")
    return seconds


def _choice(said: dict[str, str], name: str, choices: dict[str, Any], default: str) -> Any:
    chosen = said.get(name, default)
    if chosen not in choices:
        raise Misuse(f"{name} is {' or '.join(choices)}, not {chosen!r}")
    return choices[chosen]
