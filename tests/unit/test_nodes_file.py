"""Nodes files say who the nodes are; a mistake in one is told with its line and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Misuse, Unsupported
from holdfast.placement import HashRing, Node
from holdfast.placement.nodes_file import load
from holdfast.placement.registry import ALGORITHMS, make

TOML = """\
# The cache fleet.
points = 200
hash = "md5"

[nodes]
cache-1 = {}
cache-2 = 2.5
"10.0.0.7:11211" = { weight = 2, zone = "eu-1" }

[nodes."cache 4"]   # names with spaces are quoted
zone = "eu-2"
"""
LINES = """\
# The cache fleet.
cache-1

cache-2 weight=2.5\t# a bigger one
  10.0.0.7:11211   zone=eu-1 weight=2
node#4 zone=eu-2\r
"""


def written(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_toml_file_has_nodes_with_weights_and_zones_and_the_algorithms_options(tmp_path: Path) -> None:
    ring = load(written(tmp_path, "nodes.toml", TOML))
    assert isinstance(ring, HashRing)
    assert (ring.points, ring.hash) == (200, "md5")
    assert dict(ring.nodes) == {
        "10.0.0.7:11211": Node(2, "eu-1"),
        "cache 4": Node(1, "eu-2"),
        "cache-1": Node(),
        "cache-2": Node(2.5),
    }


def test_a_file_of_lines_has_nodes_with_weights_and_zones(tmp_path: Path) -> None:
    ring = load(written(tmp_path, "nodes", b"\xef\xbb\xbf" + LINES.encode()))
    assert dict(ring.nodes) == {
        "10.0.0.7:11211": Node(2, "eu-1"),
        "cache-1": Node(),
        "cache-2": Node(2.5),
        "node#4": Node(1, "eu-2"),
    }


def test_names_can_be_given_at_once_and_a_list_in_toml_is_enough(tmp_path: Path) -> None:
    expected = HashRing(["a", "b", "c"]).fingerprint()
    assert load("a, b,c").fingerprint() == expected
    assert load(written(tmp_path, "n.toml", 'nodes = ["a", "b", "c"]')).fingerprint() == expected
    assert list(load("a,").nodes) == ["a"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_to_dict_gave_is_a_nodes_file(algorithm: str, tmp_path: Path) -> None:
    placement = make(algorithm, ["c", "a", "b"])
    file = written(tmp_path, "nodes.json", json.dumps(placement.to_dict()))
    assert load(file).fingerprint() == placement.fingerprint()
    assert load(file, algorithm="rendezvous", hash="xxh64").algorithm == "rendezvous"


def test_the_order_of_a_file_is_the_order_of_the_nodes_where_that_counts(tmp_path: Path) -> None:
    expected = make("jump", ["c", "a", "b"])
    for name, text in (
        ("n.toml", 'algorithm = "jump"\nnodes = ["c", "a", "b"]'),
        ("n2.toml", 'algorithm = "jump"\n[nodes]\nc = {}\na = {}\nb = {}'),
        ("n.txt", "c\na\nb\n"),
    ):
        assert load(written(tmp_path, name, text), algorithm="jump").fingerprint() == expected.fingerprint()


def test_options_count_more_than_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "nodes.toml", 'points = 200\nnodes = ["a"]')
    ring = load(file, points=50, hash="md5", algorithm=None)
    assert isinstance(ring, HashRing)
    assert (ring.points, ring.hash) == (50, "md5")
    dumped = written(tmp_path, "ring.json", json.dumps(ring.to_dict()))
    again = load(dumped, points=60)
    assert isinstance(again, HashRing)
    assert (again.points, again.hash) == (60, "md5")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("n.toml", "points = 160\nnodes = [\n  'a'\n  'b'\n]", "{}:4:3: "),
        ("n.toml", "[nodes]\na = 1\nb = = 2\n", "{}:3:5: Invalid value"),
        ("n.toml", "[nodes]\na = 1\na = 2\n", "{}:3:6: Cannot overwrite"),
        ("n.toml", "nodes = ['a'", "{}:1:13: "),
        (
            "n.toml",
            "# ponts\nponts = 160\nnodes = ['a']",
            "{}:2:1: 'ponts' is unknown; with the algorithm ring there are",
        ),
        ("n.toml", "nodes = ['a']\ntable_size = 7", "{}:2:1: 'table_size' is unknown"),
        ("n.toml", "nodes = ['a']\nalgorithm = 'rung'", "{}:2:1: no algorithm is called 'rung'; known: ring"),
        ("n.toml", "nodes = ['a']\nalgorithm = 7", "{}:2:1: no algorithm is called 7"),
        ("n.toml", "nodes = ['a']\npoints = 0", "{}: points is a whole number"),
        ("n.toml", "nodes = ['a']\nhash = 'crc'", "{}: no hash is called 'crc'"),
        ("n.toml", "nodes = ['a']\nhash = ['md5']", "{}:2:1: hash is one value"),
        ("n.toml", "nodes = ['a', 'b',\n  'a']", "{}:2:4: the node 'a' is there twice"),
        ("n.toml", "nodes = ['a', 2]", "{}:1:1: a node's name is text, not 2"),
        ("n.toml", "nodes = ['a', '']", "{}:1:15: a node name has 1 to 512 bytes"),
        ("n.toml", "nodes = 'a'", "{}:1:1: nodes is a list of names or a table, not 'a'"),
        ("n.toml", "nodes = []", "{}:1:1: there are no nodes"),
        ("n.toml", "node = ['a']", "{}: there is no list or table"),
        ("n.toml", "[nodes]\na = 1\nb = { wieght = 2 }", "{}:3:7: a node has weight and zone, not 'wieght'"),
        ("n.toml", "[nodes]\nb = 1\ndb.example.com = 2", "{}:3:4: a node has weight and zone, not 'example' (a name"),
        ("n.toml", "[nodes]\na = 1\nb = { weight = 'x' }", "{}:3:7: the weight of node 'b' is a number, not 'x'"),
        ("n.toml", "[nodes]\na = true", "{}:2:1: the weight of node 'a' is a number, not True"),
        ("n.toml", "[nodes]\na = 1\nb.weight = 0", "{}:3:3: the weight of node 'b' is above 0 and finite, not 0.0"),
        ("n.toml", "[nodes]\na = -1", "{}:2:1: the weight of node 'a' is above 0"),
        ("n.toml", "[nodes]\na = nan", "{}:2:1: the weight of node 'a' is above 0 and finite, not nan"),
        ("n.toml", f"[nodes]\na = 1{'0' * 400}", "{}:2:1: the weight of node 'a' is above 0 and finite, not inf"),
        ("n.toml", "algorithm = 'ring'\npoints = 9\n[nodes]\nring = -1", "{}:4:1: the weight of node 'ring'"),
        ("n.toml", "points = 9\n[nodes]\na = { zone = 'b' }\npoints = 0", "{}:4:1: the weight of node 'points'"),
        ("n.toml", '[nodes]\na = { zone = "b" }\n"b" = { weight = 0 }', "{}:3:9: the weight of node 'b'"),
        ("n.toml", "[nodes]\na = { zone = 'weight' }\nweight = { weight = 0 }", "{}:3:12: the weight of node 'weight'"),
        ("n.toml", "[nodes]\na = { zone = 3 }", "{}:2:7: a zone is text, not int"),
        ("n.toml", "[nodes]\na = 1e9", "{}: the weight 1e+09 of node 'a'"),
        ("n.txt", "a\n\nb weight=two # x\n", "{}:3:10: the weight of node 'b' is a number, not 'two'"),
        ("n.txt", "a\nb weight=inf", "{}:2:10: the weight of node 'b' is above 0 and finite, not inf"),
        ("n.txt", "a\nb weight=0", "{}:2:10: the weight of node 'b' is above 0"),
        ("n.txt", "a\nb weight=1 weight=2", "{}:2:12: weight is there twice"),
        ("n.txt", "a\n  b zone=", "{}:2:10: a zone has 1 to 512 bytes"),
        ("n.txt", "a\nb wieght=2", "{}:2:3: after a name come weight=… and zone=…, not 'wieght=2'"),
        ("n.txt", "a\nmy node", "{}:2:4: after a name"),
        ("n.txt", "a, b, c", "{}:1:1: one node a line, not 'a,'"),
        ("n.txt", "a\nb\n a", "{}:3:2: the node 'a' is there twice"),
        ("n.txt", f"a\n{'x' * 600}", "{}:2:1: a node name has 1 to 512 bytes"),
        ("n.txt", "# nobody\n\n", "{}: no nodes"),
        ("n.txt", b"a\nb\xffc\n", "{}:2:2: this is not UTF-8"),
        ("n.json", '{"version": 1,\n "nodes" {}}', "{}:2:10: Expecting ':' delimiter"),
        ("n.json", '{"version": 1}', "{}: its data lacks algorithm"),
        ("n.json", "[]", "{}: its data is a mapping"),
    ],
)
def test_a_mistake_is_told_with_its_file_line_and_column(
    name: str, text: str | bytes, told: str, tmp_path: Path
) -> None:
    file = written(tmp_path, name, text)
    with pytest.raises(Misuse) as wrong:
        load(file)
    assert str(wrong.value).startswith(told.format(file))
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("a,,b", "'a,,b':1:3: there is no name between two commas"),
        (",", "',':1:1: there is no name"),
        ("a,b,a", "'a,b,a':1:5: the node 'a' is there twice"),
        ("/no/such/file", "/no/such/file: there is no such file (names are given as a,b,c"),
        ("", ": there is no such file"),
        ("/", "/: Is a directory"),
    ],
)
def test_names_that_make_no_sense_are_refused(given: str, told: str) -> None:
    with pytest.raises(Misuse) as wrong:
        load(given)
    assert str(wrong.value).startswith(told)


def test_what_an_algorithm_cannot_do_is_told_with_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "n.txt", "a\nb weight=2")
    with pytest.raises(Unsupported, match=f"^{file}: Jump knows no weights"):
        load(file, algorithm="jump")
    with pytest.raises(Misuse, match="knows no option points"):
        load("a,b", algorithm="jump", points=3)


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="ab=[]{}'\"\n.#, weightzon1")), st.sampled_from(["toml", "txt", "json"]))
def test_any_text_is_a_nodes_file_or_refused(tmp_path_factory: Any, text: str, ending: str) -> None:
    file = tmp_path_factory.mktemp("any") / f"n.{ending}"
    file.write_bytes(text.encode(errors="surrogatepass"))
    try:
        load(file)
    except (Misuse, Unsupported) as wrong:
        told = str(wrong)
    else:
        return
    assert told.startswith(str(file))
