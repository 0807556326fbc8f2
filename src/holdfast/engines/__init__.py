"""Engines: where turnstiles and cells live. A client library is imported only when its engine is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from ..contract import Engine
from ..errors import Misuse, Unsupported
from ..model import check_name

SCHEMES = {"redis": "redis", "rediss": "redis", "valkey": "redis", "valkeys": "redis", "unix": "redis"}
KNOWN = "memory:// sqlite:///path redis:// rediss:// valkey:// valkeys:// unix://"


def engine_for(target: Any, namespace: str = "") -> Engine:
    """The engine that a URL or a user's own client names. Does no I/O.

    Raises `Misuse` for a URL of no known engine, `Unsupported` where its extra is not installed.
    """
    if namespace:
        check_name(namespace, "namespace")
    if not isinstance(target, str):
        if type(target).__module__.split(".")[0] in ("redis", "valkey"):
            return _load("redis").RedisEngine(target, namespace)
        raise Misuse(f"connect() takes a URL ({KNOWN}) or a Redis client, not {type(target).__name__}")
    scheme, mark, rest = target.partition("://")
    if not mark:
        raise Misuse(f"{target!r} is not a URL; known: {KNOWN}")
    if scheme == "memory":
        from .memory import shared

        return shared(rest, namespace)
    if scheme == "sqlite":
        return _load("sqlite").SqliteEngine.from_url(target, namespace)
    if scheme in SCHEMES:
        return _load(SCHEMES[scheme]).RedisEngine(target, namespace)
    raise Misuse(f"no engine is called {scheme!r}; known: {KNOWN}")


def _load(engine: str) -> Any:
    try:
        return importlib.import_module(f".{engine}", __name__)
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.startswith("holdfast"):
            raise
        raise Unsupported(
            f"the {engine} engine needs the package {missing.name}: pip install 'holdfast[{engine}]'"
        ) from missing
