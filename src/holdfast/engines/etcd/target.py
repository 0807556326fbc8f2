"""Which etcd, as whom, over what: from a URL."""

from __future__ import annotations

import platform
import ssl
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from ...errors import Misuse

OPTIONS = ("ca", "cert", "key", "key_password", "verify")
PORT = 2379


class Target(NamedTuple):
    """The members of a cluster, and how to connect to one. ``password`` and ``tls`` hold the secrets."""

    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str
    tls: ssl.SSLContext | None

    def __repr__(self) -> str:
        return f"<etcd at {self.where}>"

    @property
    def where(self) -> str:
        return ",".join(map(name_of, self.hosts))

    @property
    def identity(self) -> str:
        # an address that means another server on another machine does not identify one
        local = any(host in ("localhost", "127.0.0.1", "::1") for host, _ in self.hosts)
        return f"etcd:{platform.node() + ':' if local else ''}{','.join(sorted(map(name_of, self.hosts)))}"

    @property
    def who(self) -> str:
        """Whose permissions these are, for messages."""
        return f"user {self.user}" if self.user else "anonymous users"


def name_of(host: tuple[str, int]) -> str:
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def target_at(url: str) -> Target:
    """``etcd://[user:password@]host[:port],…[?option=…]``; ``etcds://`` for TLS."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    if "@" in query:  # a password that was cut short at its ?: no part of it is taken for a host and shown
        raise Misuse(f"{scheme}:// has an @ after its hosts: write it as %40, and in a password / ? @ as %2F %3F %40")
    login, at, rest = rest.rpartition("@")
    hosts, _, path = rest.partition("/")
    said = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := said.keys() - set(OPTIONS):
        raise Misuse(f"{scheme}:// knows no option {', '.join(sorted(unknown))}; known: {', '.join(OPTIONS)}")
    if path:
        raise Misuse(f"{scheme}://host1,host2 has no path: give a namespace= to be apart from others")
    user, colon, password = login.partition(":")
    if at and not (user and colon):
        raise Misuse(f"{scheme}:// takes user:password before the @; in a password write / ? @ as %2F %3F %40")
    if scheme == "etcd" and said:
        raise Misuse(f"{', '.join(sorted(said))} is for TLS: etcds://")
    tls = _tls(said) if scheme == "etcds" else None
    return Target(_hosts(hosts, scheme), unquote(user), unquote(password), tls)


def _hosts(text: str, scheme: str) -> tuple[tuple[str, int], ...]:
    hosts: list[tuple[str, int]] = []
    for host in map(str.strip, text.split(",")):
        name, colon, port = host.rpartition(":")
        if not colon or host.endswith("]"):
            name, port = host, str(PORT)
        bare = name.removeprefix("[").removesuffix("]")
        digits = port.isascii() and port.isdigit()
        if not bare or (":" in bare) != name.startswith("[") or not digits or not 0 < int(port) < 65536:
            raise Misuse(f"{scheme}://host:port,host:port names each host with a port or none, not {host!r}")
        if (bare, int(port)) not in hosts:
            hosts.append((bare, int(port)))
    return tuple(hosts)


def _tls(said: dict[str, str]) -> ssl.SSLContext:
    verify = said.get("verify", "yes")
    if verify not in ("yes", "no"):
        raise Misuse(f"verify is yes or no, not {verify!r}")
    if "cert" not in said and said.keys() & {"key", "key_password"}:
        raise Misuse("key and key_password belong to a cert=")
    try:
        context = ssl.create_default_context(cafile=said.get("ca"))
        if "cert" in said:
            context.load_cert_chain(said["cert"], said.get("key"), said.get("key_password"))
        context.set_alpn_protocols(["h2"])
    except (OSError, ssl.SSLError) as error:
        raise Misuse(f"etcds:// could not read its ca, cert or key: {error}") from None
    if verify == "no":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
