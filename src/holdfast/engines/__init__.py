"""Engines: where turnstiles and cells live. A client library is imported only when its engine is asked for."""

from __future__ import annotations

import importlib
import logging
import os
import re
from typing import Any, cast

from ..contract import Engine, Scope
from ..errors import Misuse, Unsupported
from ..model import check_name

REDIS_SCHEMES = ("redis", "rediss", "valkey", "valkeys")
REDIS_DEPLOYMENTS = ("", "+sentinel", "+cluster")
ZOOKEEPER_SCHEMES = ("zookeeper", "zookeepers")
ETCD_SCHEMES = ("etcd", "etcds")
POSTGRES_SCHEMES = ("postgresql", "postgres")
KNOWN = (
    "memory:// sqlite:///path redis:// rediss:// valkey:// valkeys:// unix:// redis+sentinel:// redis+cluster:// "
    "redis+quorum:// zookeeper:// zookeepers:// etcd:// etcds:// postgresql://"
)


log = logging.getLogger("holdfast.engine")


def named(target: Any) -> Any:
    """``target``, else HOLDFAST_URL, else the embedded default."""
    return target if target is not None else os.environ.get("HOLDFAST_URL") or "sqlite://"


def resolve(target: Any, namespace: str, scope: Scope | None) -> Engine:
    """The engine that is `named`, if it reaches as far as ``scope``."""
    if target is None and not os.environ.get("HOLDFAST_URL") and scope in (None, "machine", "process"):
        log.warning("no engine was named (connect(url) or HOLDFAST_URL): using the embedded one, for this machine only")
    engine = engine_for(named(target), namespace)
    reach = ("process", "machine", "fleet")
    if scope is not None and scope not in reach:
        raise Misuse(f"scope is one of {', '.join(reach)}, not {scope!r}")
    has = engine.capabilities.scope
    if scope is not None and reach.index(has) < reach.index(scope):
        raise Unsupported(
            f"the {engine.capabilities.engine} engine reaches one {has}, this asks for a {scope}: name a server"
        )
    return engine


def engine_for(target: Any, namespace: str = "") -> Engine:
    """The engine that a URL or a user's own client names. Does no I/O.

    Raises `Misuse` for a URL of no known engine, `Unsupported` where its extra is not installed.
    """
    if namespace:
        check_name(namespace, "namespace")
    if not isinstance(target, str):
        if type(target).__module__.split(".")[0] in ("redis", "valkey"):
            return cast(Engine, _load("redis").RedisEngine(target, namespace))
        if any(kind.__module__ == "kazoo.client" for kind in type(target).__mro__):
            return cast(Engine, _load("zookeeper").ZooKeeperEngine(target, namespace))
        ours = type(target).__module__ == f"{__name__}.postgres.target"
        if ours or type(target).__module__.startswith("psycopg") or callable(target):
            return cast(Engine, _load("postgres").PostgresEngine(target, namespace))
        raise Misuse(
            f"connect() takes a URL ({KNOWN}), a Redis client, a KazooClient, a psycopg pool or a function that makes "
            f"psycopg connections, not {type(target).__name__}"
        )
    scheme, mark, rest = target.partition("://")
    if not mark:
        raise Misuse(f"{without_password(target)!r} is not a URL; known: {KNOWN}")
    if scheme == "memory":
        from .memory import shared

        return shared(rest, namespace)
    if scheme == "sqlite":
        return cast(Engine, _load("sqlite").SqliteEngine.from_url(target, namespace))
    kind, plus, deployment = scheme.partition("+")
    if scheme == "unix" or (kind in REDIS_SCHEMES and plus + deployment in REDIS_DEPLOYMENTS):
        return cast(Engine, _load("redis").RedisEngine(target, namespace))
    if deployment == "quorum" and kind in REDIS_SCHEMES:
        return cast(Engine, _load("quorum").QuorumEngine(target, namespace))
    if scheme in ZOOKEEPER_SCHEMES:
        return cast(Engine, _load("zookeeper").ZooKeeperEngine(target, namespace))
    if scheme in ETCD_SCHEMES:
        return cast(Engine, _load("etcd").EtcdEngine(target, namespace))
    if scheme in POSTGRES_SCHEMES:
        return cast(Engine, _load("postgres").PostgresEngine(target, namespace))
    raise Misuse(f"no engine is called {scheme!r}; known: {KNOWN}")


def without_password(url: str) -> str:
    """The URL as people may see it, also where it is no good one: rather too much is hidden than too little."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    user, at, host = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    masked = scheme + mark + name + (":***" if colon else "") + at + host
    return re.sub(r"((?:\w*passw\w*|listen_url)=)[^&#]*", r"\1***", masked)


def _load(engine: str) -> Any:
    try:
        return importlib.import_module(f".{engine}.engine", __name__)
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.startswith("holdfast"):
            raise
        raise Unsupported(
            f"the {engine} engine needs the package {missing.name}: pip install 'holdfast[{engine}]'"
        ) from missing
