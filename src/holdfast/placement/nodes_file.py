"""Nodes files: who the nodes are, written by people. A mistake is told with its line and column.

Three forms, by the file's ending: ``.toml``, ``.json`` (what `to_dict` gave), and otherwise one node a line.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn, cast

from ..errors import HoldfastError, Misuse
from ..model import check_name
from .base import Node, Placement
from .registry import ALGORITHMS, from_dict, make

SHOWN = 40
"""How much of a list of names a message repeats."""

_COMMENT = re.compile(r"(?<!\S)#.*")
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


class Described(NamedTuple):
    """Nodes in the order they were written, and what else the file says: ``algorithm``, ``hash``, its own options."""

    nodes: dict[str, Node]
    options: dict[str, Any]


class Text:
    """A text that knows its name, to say where in it something is wrong."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    def wrong(self, at: int | None, what: str) -> NoReturn:
        """Raise `Misuse` for what stands at this index (None: somewhere)."""
        if at is None:
            raise Misuse(f"{self.name}: {what}")
        line, column = self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at)
        raise Misuse(f"{self.name}:{line}:{column}: {what}")


def load(given: str | os.PathLike[str], **options: Any) -> Placement:
    """The placement that a nodes file describes, or names given as ``a,b,c``. ``options`` count more than the file's.

    Raises `Misuse`, also for a file that cannot be read, and `Unsupported` for what the algorithm cannot do.
    """
    path = os.fspath(given)
    named = "," not in path or os.path.exists(path)
    source = path if named else repr(path if len(path) <= SHOWN else f"{path[:SHOWN]}…")
    wanted = {name: value for name, value in options.items() if value is not None}
    try:
        if not named:
            described = read_names(Text(source, path))
        elif path.endswith(".json"):
            placement = from_dict(_json(Text(path, _read(path))))
            if not wanted:
                return placement
            same = wanted.get("algorithm", placement.algorithm) == placement.algorithm
            own = {option: getattr(placement, option) for option in placement.options} if same else {}
            described = Described(
                dict(placement.nodes), {"algorithm": placement.algorithm, "hash": placement.hash, **own}
            )
        else:
            text = Text(path, _read(path))
            described = read_toml(text) if path.endswith(".toml") else read_lines(text)
        said = {"algorithm": "ring", **described.options, **wanted}
        return make(said.pop("algorithm"), described.nodes, **said)
    except HoldfastError as wrong:
        if str(wrong).startswith(source):
            raise
        raise type(wrong)(f"{source}: {wrong}") from None


def read_names(text: Text) -> Described:
    """``a,b,c``. A comma at the end is allowed, so that one node can be given, too."""
    nodes: dict[str, Node] = {}
    at = 0
    for part in text.text.removesuffix(",").split(","):
        name = part.strip()
        if not name:
            text.wrong(at, "there is no name between two commas")
        _add(text, nodes, name, Node(), at + part.index(name))
        at += len(part) + 1
    return Described(nodes, {})


def read_lines(text: Text) -> Described:
    """One node a line: its name, and if need be ``weight=2`` and ``zone=eu-1``. ``#`` begins a comment."""
    nodes: dict[str, Node] = {}
    at = 0
    for line in text.text.split("\n"):
        words = [(word[0], at + word.start()) for word in re.finditer(r"\S+", _COMMENT.sub("", line))]
        at += len(line) + 1
        if not words:
            continue
        (name, start), *rest = words
        if "," in name:
            text.wrong(start, f"one node a line, not {name!r} (a name with a comma in it needs a .toml file)")
        _add(text, nodes, name, _node_of_words(text, name, rest), start)
    if not nodes:
        text.wrong(None, "no nodes: give one name a line")
    return Described(nodes, {})


def _node_of_words(text: Text, name: str, words: Iterable[tuple[str, int]]) -> Node:
    said: dict[str, tuple[str, int]] = {}
    for word, start in words:
        key, equals, value = word.partition("=")
        if key not in ("weight", "zone") or not equals:
            text.wrong(start, f"after a name come weight=… and zone=…, not {word!r} (a name with spaces: a .toml file)")
        if key in said:
            text.wrong(start, f"{key} is there twice for node {name!r}")
        said[key] = (value, start + len(key) + 1)
    weight = 1.0
    if "weight" in said:
        written, start = said["weight"]
        try:
            weight = float(written)
        except ValueError:
            text.wrong(start, f"the weight of node {name!r} is a number, not {written!r}")
        _check_weight(text, name, weight, start)
    zone = None
    if "zone" in said:
        zone, start = said["zone"]
        _check_zone(text, zone, start)
    return Node(weight, zone)


def read_toml(text: Text) -> Described:
    """``nodes``: a list of names, or a table from names to weights or ``{weight = 2, zone = "eu-1"}``; and options."""
    try:
        data = tomllib.loads(text.text)
    except tomllib.TOMLDecodeError as wrong:
        place = _TOML_PLACE.search(str(wrong))
        line, column = (place[1], place[2]) if place else (None, None)
        at = _index(text.text, int(line), int(column)) if line and column else len(text.text.rstrip())
        text.wrong(at, _TOML_PLACE.sub("", str(wrong)))
    if "nodes" not in data:
        text.wrong(None, 'there is no list or table "nodes"')
    written = data.pop("nodes")
    nodes: dict[str, Node] = {}
    if isinstance(written, list):
        start = _find_key(text.text, "nodes")
        for name in cast(list[object], written):
            if not isinstance(name, str):
                text.wrong(start, f"a node's name is text, not {name!r}")
            _add(text, nodes, name, Node(), _find(text.text, name, start, nth=name in nodes))
    elif isinstance(written, dict):
        table = _find_key(text.text, "nodes")
        for name, value in cast(dict[str, Any], written).items():
            start = _find_key(text.text, name, table)
            _add(text, nodes, name, _node_of_toml(text, name, value, start), start)
    else:
        text.wrong(_find_key(text.text, "nodes"), f"nodes is a list of names or a table, not {written!r}")
    if not nodes:
        text.wrong(_find_key(text.text, "nodes"), "there are no nodes")
    for option, value in data.items():
        _check_option(text, data.get("algorithm", "ring"), option, value)
    return Described(nodes, data)


def _node_of_toml(text: Text, name: str, value: Any, at: int | None) -> Node:
    if not isinstance(value, dict):
        return Node(_toml_weight(text, name, value, at))
    fields = cast(dict[str, Any], value)
    for field in fields:
        if field not in ("weight", "zone"):
            hint = f' (a name with dots is quoted: "{name}.{field}")' if isinstance(fields[field], dict) else ""
            text.wrong(_find_key(text.text, field, at), f"a node has weight and zone, not {field!r}{hint}")
    weight = 1.0
    if "weight" in fields:
        weight = _toml_weight(text, name, fields["weight"], _find_key(text.text, "weight", at))
    zone = fields.get("zone")
    if zone is not None:
        _check_zone(text, zone, _find_key(text.text, "zone", at))
    return Node(weight, zone)


def _toml_weight(text: Text, name: str, value: object, at: int | None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text.wrong(at, f"the weight of node {name!r} is a number, not {value!r}")
    try:
        weight = float(value)
    except OverflowError:
        weight = math.inf
    _check_weight(text, name, weight, at)
    return weight


def _check_weight(text: Text, name: str, weight: float, at: int | None) -> None:
    if not 0 < weight < math.inf:
        text.wrong(at, f"the weight of node {name!r} is above 0 and finite, not {weight}")


def _check_zone(text: Text, zone: object, at: int | None) -> None:
    try:
        check_name(zone, "zone")
    except Misuse as wrong:
        text.wrong(at, str(wrong))


def _check_option(text: Text, algorithm: object, option: str, value: object) -> None:
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        text.wrong(_find_key(text.text, "algorithm"), f"no algorithm is called {algorithm!r}; known: {known}")
    allowed = ("nodes", "algorithm", "hash", *ALGORITHMS[algorithm].options)
    if option not in allowed:
        told = f"{option!r} is unknown; with the algorithm {algorithm} there are {', '.join(allowed)}"
        text.wrong(_find_key(text.text, option), told)
    if isinstance(value, dict | list):
        text.wrong(_find_key(text.text, option), f"{option} is one value, not {value!r}")


def _add(text: Text, nodes: dict[str, Node], name: str, node: Node, at: int | None) -> None:
    try:
        check_name(name, "node name")
    except Misuse as wrong:
        text.wrong(at, str(wrong))
    if name in nodes:
        text.wrong(at, f"the node {name!r} is there twice; a heavier node has a weight")
    nodes[name] = node


def _find_key(text: str, key: str, after: int | None = None) -> int | None:
    """Where ``key`` stands as a key of TOML behind that index: a node may be called as a zone is, or an option."""
    return _find(text, key, 0 if after is None else after + 1, behind=r"""(?=["']?[ \t]*[=.\]])""")


def _find(text: str, word: str, start: int | None = 0, nth: int = 0, behind: str = "") -> int | None:
    """Where ``word`` stands as a key or a string of TOML, comments left aside. (tomllib does not tell.)"""
    masked = re.sub(r"(?m)(?<!\S)#.*$", lambda found: " " * len(found[0]), text)
    pattern = rf"(?<![\w-]){re.escape(word)}(?![\w-])" if word else "\"\"|''"
    found = list(re.compile(pattern + behind).finditer(masked, start or 0))
    return found[nth].start() if nth < len(found) else None


def _index(text: str, line: int, column: int) -> int:
    at = 0
    for _ in range(line - 1):
        at = text.index("\n", at) + 1
    return at + column - 1


def _json(text: Text) -> Mapping[str, Any]:
    try:
        data: Any = json.loads(text.text)
    except json.JSONDecodeError as wrong:
        text.wrong(wrong.pos, wrong.msg)
    return cast(Mapping[str, Any], data)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise Misuse(f"{path}: there is no such file (names are given as a,b,c; one alone as {path},)") from None
    except OSError as trouble:
        raise Misuse(f"{path}: {trouble.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        text = Text(path, data[: wrong.start].decode("utf-8-sig"))
        text.wrong(len(text.text), "this is not UTF-8 from here on")
