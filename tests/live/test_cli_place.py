"""``holdfast place`` and ``holdfast plan`` as people run them: real paths in, answers out, mistakes in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from holdfast.placement import HashRing
from holdfast.placement.nodes_file import load
from holdfast.placement.plan import Plan
from holdfast.placement.registry import ALGORITHMS

PROGRAM = (sys.executable, "-m", "holdfast")
NODES = "a,b,c,d,e"
ODD = [b"plain", b"two words", b" edges ", "häß→🐙".encode(), b"\xff\xfe bad", b"tab\there", b"--", b"plain", b"\rx"]

TOML = """\
[nodes]
cache-1 = { weight = 2, zone = "north" }
cache-2 = { zone = "north" }
cache-3 = { zone = "south" }
"cache 4" = { zone = "south" }
"""


@pytest.fixture(scope="session")
def paths() -> bytes:
    """At least 200,000 keys: the paths of the Python library and of what is installed beside it, each read two ways."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found: set[bytes] = set()
    for folder in sorted(folders):
        for where, _, files in os.walk(os.fsencode(folder)):
            found.update(os.path.join(where, file) for file in files)
    assert len(found) > 1000
    known = sorted(found)
    lines = list(known)
    number = 0
    while len(lines) < 200_000:  # the same library on other machines
        number += 1
        lines += [b"/machines/%d%s" % (number, path) for path in known]
    return b"\n".join(lines) + b"\n"


def run(*arguments: str, keys: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *arguments], input=keys, capture_output=True, timeout=50, check=False)


def answered(*arguments: str, keys: bytes = b"") -> list[bytes]:
    done = run(*arguments, keys=keys)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(keepends=False) if b"\r" not in done.stdout else done.stdout.split(b"\n")[:-1]


def complaints(stderr: bytes) -> list[str]:
    """Lines on stderr, but for the one that says that the kernel in C was not built."""
    return [line for line in stderr.decode().splitlines() if not line.startswith("holdfast: the kernel in C")]


def rows(lines: Sequence[bytes], fields: int) -> list[list[bytes]]:
    """A key may hold tabs; names do not."""
    return [line.rsplit(b"\t", fields) for line in lines]


@pytest.fixture
def toml(tmp_path: Path) -> str:
    file = tmp_path / "nodes.toml"
    file.write_text(TOML)
    return str(file)


# place


def test_every_real_path_gets_its_node_in_the_order_of_the_input(paths: bytes) -> None:
    keys = paths.splitlines()
    found = rows(answered("place", "--nodes", NODES, keys=paths), 1)
    assert [key for key, _ in found] == keys
    assert [name.decode() for _, name in found] == HashRing(NODES.split(",")).locate(keys)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_answers_on_the_command_line_as_in_python(algorithm: str, paths: bytes) -> None:
    some = paths.splitlines()[:2000]
    lines = answered("place", "--nodes", NODES, "--algorithm", algorithm, "--replicas", "2", keys=b"\n".join(some))
    placement = load(NODES, algorithm=algorithm)
    assert rows(lines, 2) == [[key, *(name.encode() for name in placement.get_nodes(key, 2))] for key in some]


def test_keys_are_kept_byte_for_byte_and_empty_lines_are_none() -> None:
    ring = HashRing(NODES.split(","))
    for end in (b"\n", b"\r\n"):
        lines = answered("place", "--nodes", NODES, keys=end.join([*ODD, b"", b"last"]))
        assert rows(lines, 1) == [[key, ring.get_node(key).encode()] for key in [*ODD, b"last"]]
    told = [json.loads(line) for line in answered("place", "--nodes", NODES, "--json", keys=b"\n".join(ODD))]
    assert [os.fsencode(one["key"]) for one in told] == ODD
    assert [one["nodes"] for one in told] == [[name] for name in ring.locate(ODD)]


def test_copies_spread_over_zones_and_stand_ins_come_for_nodes_that_are_down(toml: str, paths: bytes) -> None:
    some = b"\n".join(paths.splitlines()[:3000])
    ring = load(toml)
    for line in answered("place", "--nodes", toml, "--replicas", "2", keys=some):
        _, one, two = line.rsplit(b"\t", 2)
        assert ring.nodes[one.decode()].zone != ring.nodes[two.decode()].zone
    normal = rows(answered("place", "--nodes", toml, keys=some), 1)
    down = rows(answered("place", "--nodes", toml, "--exclude", "cache-1", keys=some), 1)
    for (key, name), (_, stand_in) in zip(normal, down, strict=True):
        assert stand_in != b"cache-1"
        assert stand_in == name or name == b"cache-1"
        assert stand_in.decode() == ring.get_node(key, exclude={"cache-1"})


def test_a_summary_counts_the_keys_and_draws_bars(paths: bytes) -> None:
    counts = Counter(HashRing(NODES.split(",")).locate(paths.splitlines()))
    text = run("place", "--nodes", NODES, "--summary", keys=paths).stdout.decode()
    for name, count in counts.items():
        row = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert f"{count:,}" in row
        assert f"{count / counts.total():.2%}" in row
        assert "█" in row
    told = json.loads(run("place", "--nodes", NODES, "--summary", "--json", keys=paths).stdout)
    assert {node["name"]: node["keys"] for node in told["nodes"]} == counts
    assert told["keys"] == counts.total()
    assert told["fingerprint"] == HashRing(NODES.split(",")).fingerprint()
    fullest = max(counts, key=counts.__getitem__)
    assert told["busiest"]["name"] == fullest
    assert told["busiest"]["times_fair"] == pytest.approx(counts[fullest] / counts.total() * 5)


def test_without_keys_the_summary_has_the_exact_shares(toml: str) -> None:
    told = json.loads(run("place", "--nodes", toml, "--summary", "--json").stdout)
    assert told["shares"] == "exact"
    assert sum(node["share"] for node in told["nodes"]) == pytest.approx(1)
    assert {node["name"]: node["fair"] for node in told["nodes"]}["cache-1"] == pytest.approx(0.4)
    assert run("place", "--nodes", toml).stdout == b"", "no keys, no answers"


@pytest.mark.skipif(os.name == "nt", reason="a terminal of Unix")
@pytest.mark.parametrize("verb", [("place", "--nodes", NODES), ("plan", "--before", "a,b", "--after", "a,b,c")])
def test_a_terminal_is_no_input(verb: tuple[str, ...]) -> None:
    import pty

    ours, theirs = pty.openpty()
    try:
        done = subprocess.run([*PROGRAM, *verb], stdin=theirs, capture_output=True, timeout=50, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert b"%" in done.stdout


def test_a_million_keys_take_seconds(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"".join(b"user:%d\n" % number for number in range(1_000_000)))
    start = time.monotonic()
    with keys.open("rb") as source, (tmp_path / "out").open("wb") as out:
        done = subprocess.run([*PROGRAM, "place", "--nodes", NODES], stdin=source, stdout=out, timeout=50, check=False)
    assert done.returncode == 0
    assert time.monotonic() - start < 40  # on an idle machine well below 2
    with (tmp_path / "out").open("rb") as lines:
        assert sum(1 for _ in lines) == 1_000_000


def test_answers_come_while_keys_still_do() -> None:
    with subprocess.Popen([*PROGRAM, "place", "--nodes", NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as slow:
        assert slow.stdin is not None
        assert slow.stdout is not None
        for key in (b"one", b"two"):
            slow.stdin.write(key + b"\n")
            slow.stdin.flush()
            assert slow.stdout.readline().startswith(key + b"\t")
        slow.stdin.close()
        assert slow.wait(30) == 0


@pytest.mark.skipif(os.name == "nt", reason="pipes of Unix")
@pytest.mark.parametrize("verb", [("place", "--nodes", NODES), ("plan", "--before", NODES, "--after", "a,b")])
def test_a_reader_that_has_seen_enough_ends_it_quietly(verb: tuple[str, ...], paths: bytes, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(paths)
    with (
        keys.open("rb") as source,
        subprocess.Popen([*PROGRAM, *verb], stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"/")
        process.stdout.close()
        assert process.wait(30) in (1, 141)  # as the library of the command line has it, or the shell
        assert complaints(process.stderr.read()) == []


# plan


def test_the_keys_that_move_are_listed_and_only_those(paths: bytes) -> None:
    before, after = HashRing([*"abcd"]), HashRing([*"abcde"])
    keys = paths.splitlines()
    done = run("plan", "--before", "a,b,c,d", "--after", "a,b,c,d,e", keys=paths)
    moved = [
        [key, old.encode(), new.encode()]
        for key, old, new in zip(keys, before.locate(keys), after.locate(keys), strict=True)
        if old != new
    ]
    assert rows(done.stdout.splitlines(), 2) == moved
    assert {new for _, _, new in moved} == {b"e"}
    told = f"holdfast: {len(moved):,} of {len(keys):,} keys move ({len(moved) / len(keys):.1%})"
    assert complaints(done.stderr) == [told]


def test_for_copies_it_says_who_copies_from_whom_and_who_may_forget(toml: str, paths: bytes, tmp_path: Path) -> None:
    keys = paths.splitlines()[:5000]
    fewer = tmp_path / "fewer.toml"
    fewer.write_text(TOML.replace("cache-2 = ", "cache-5 = "))
    before, after = load(toml), load(fewer)
    done = run("plan", "--before", toml, "--after", str(fewer), "--replicas", "2", keys=b"\n".join(keys))
    has = {key: set(before.get_nodes(key, 2)) for key in keys}
    for key, source, target, drop in rows(done.stdout.splitlines(), 3):
        assert source.decode() in has[key]
        has[key].add(target.decode())
        has[key].remove(drop.decode())
    assert has == {key: set(after.get_nodes(key, 2)) for key in keys}


def test_without_keys_the_totals_are_a_table_and_json_is_the_plan() -> None:
    plan = HashRing([*"abc"]).plan(HashRing([*"abcd"]))
    text = run("plan", "--before", "a,b,c", "--after", "a,b,c,d").stdout.decode()
    for (source, target), share in plan.shares().items():
        assert any(line.split()[:3] == [source, target, f"{share:.2%}"] for line in text.splitlines())
    assert "d joins." in text
    assert f"{plan.moved:.1%} of the keys move, all to d; 25.0% would" in text
    told = json.loads(run("plan", "--before", "a,b,c", "--after", "a,b,c,d", "--json").stdout)
    assert Plan.from_dict(told) == plan


def test_json_of_given_keys_lists_those_that_move() -> None:
    done = run("plan", "--before", "a,b,c", "--after", "a,b,c,d", "--json", keys=b"\n".join(ODD))
    expected = HashRing([*"abc"]).plan(HashRing([*"abcd"]), keys=ODD)
    told = Plan.from_dict(json.loads(done.stdout))
    assert (told.keys, told.moved) == (len(ODD), expected.moved)
    assert all(told.covers(key) == expected.covers(key) for key in ODD)


def test_other_algorithms_are_planned_by_keys(paths: bytes) -> None:
    done = run("plan", "--before", "a,b,c", "--after", "a,b,c,d", "--algorithm", "rendezvous", keys=paths[:100_000])
    assert done.returncode == 0
    assert {line.rsplit(b"\t", 1)[1] for line in done.stdout.splitlines()} == {b"d"}
    told = run("plan", "--before", "a,b,c", "--after", "a,b,c,d", "--algorithm", "rendezvous")
    assert told.returncode == 2
    assert b"no ranges" in told.stderr


# Pictures


def test_pictures_are_drawn_with_and_without_keys(paths: bytes, tmp_path: Path) -> None:
    ring, change = ("plan", "--before", "a,b,c", "--after", "a,b,c,d"), ("place", "--nodes", "a,b,c")
    for number, (verb, keys) in enumerate(
        [(ring, b""), (change, b""), (ring, paths[:50_000]), (change, paths[:50_000])]
    ):
        file = tmp_path / f"{number}.svg"
        done = run(*verb, "--svg", str(file), keys=keys)
        assert done.returncode == 0
        assert f"drawn: {file}" in done.stderr.decode()
        assert "d" not in verb or "d joins" in file.read_text("utf-8")
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
        assert bool(keys) == bool(done.stdout) or verb == ring


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("place",), "Missing option '--nodes'"),
        (("place", "--nodes", "no-such-file"), "no-such-file: there is no such file"),
        (("place", "--nodes", "a,a"), "'a,a':1:3: the node 'a' is there twice"),
        (("place", "--nodes", "{bad}"), "{bad}:3:7: a node has weight and zone, not 'wieght'"),
        (("place", "--nodes", "{broken}"), "{broken}:2:5: Invalid value"),
        (("place", "--nodes", "a,b", "--algorithm", "rung"), "no algorithm is called 'rung'"),
        (("place", "--nodes", "a,b", "--hash", "crc"), "no hash is called 'crc'"),
        (("place", "--nodes", "a,b", "--points", "0"), "points is a whole number from 1"),
        (("place", "--nodes", "a,b", "--points", "many"), "'many' is not a valid integer"),
        (("place", "--nodes", "a,b", "--algorithm", "jump", "--points", "3"), "jump knows no option points"),
        (("place", "--nodes", "{weights}", "--algorithm", "jump"), "Jump knows no weights"),
        (("place", "--nodes", "a,b", "--replicas", "3"), "--replicas 3 of 2 nodes"),
        (("place", "--nodes", "a,b", "--replicas", "2", "--exclude", "a"), "--replicas 2 of 1 nodes"),
        (("place", "--nodes", "a,b", "--exclude", "c"), "there is no node 'c'"),
        (("place", "--nodes", "{tab}"), r"the name 'a\tb' has a tab or a newline in it"),
        (("place", "--nodes", "{newer}"), "{newer}: this was written in version 99"),
        (("plan", "--before", "a,b"), "Missing option '--after'"),
        (("plan", "--before", "a,b", "--after", "{points}"), "points is 160 before and 50 after"),
        (
            ("plan", "--before", "a,b", "--after", "a,b", "--replicas", "3"),
            "replicas is a whole number from 1 to the 2",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    files = {
        "bad": "[nodes]\na = 1\nb = { wieght = 2 }\n",
        "broken": "[nodes]\na = = 1\n",
        "weights": "[nodes]\na = 1\nb = 2\n",
        "tab": 'nodes = ["a\\tb", "c"]',
        "points": 'points = 50\nnodes = ["a", "b"]',
        "newer": json.dumps({**HashRing([*"ab"]).to_dict(), "version": 99}),
    }
    where = {name: str(tmp_path / f"{name}{'.json' if name == 'newer' else '.toml'}") for name in files}
    for name, text in files.items():
        Path(where[name]).write_text(text)
    done = run(*(argument.format(**where) for argument in arguments), keys=b"key\n")
    assert done.returncode == 2
    assert done.stdout == b""
    (line,) = complaints(done.stderr)
    assert line.startswith("holdfast: ")
    assert told.format(**where) in line


def test_a_name_that_lines_cannot_show_is_fine_in_json(tmp_path: Path) -> None:
    file = tmp_path / "nodes.toml"
    file.write_text('nodes = ["a\\tb"]')
    (line,) = answered("place", "--nodes", str(file), "--json", keys=b"key")
    assert json.loads(line) == {"key": "key", "nodes": ["a\tb"]}


def test_what_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    done = run("place", "--nodes", "a,b", "--svg", str(tmp_path / "no" / "x.svg"))
    assert done.returncode == 1
    (line,) = complaints(done.stderr)
    assert "No such file" in line


def test_no_engine_is_asked(tmp_path: Path) -> None:
    environment = {**os.environ, "HOLDFAST_URL": "redis://127.0.0.1:1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [*PROGRAM, "place", "--nodes", "a,b"],
        input=b"key\n", env=environment, capture_output=True, timeout=50, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(b"key\t")
    assert complaints(done.stderr) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["place", "plan"])
def test_help_teaches_by_example(verb: str) -> None:
    text = run(verb, "--help").stdout.decode()
    assert f"holdfast {verb} --" in text
    assert "--svg" in text
