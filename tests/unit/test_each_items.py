"""Items of a job: what a line is, who it is, and where it belongs."""

import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Misuse
from holdfast.fleet.each_items import by_partition, chunks, digest, item, pack, partition_of, read_items, unpack

LINES = st.lists(st.binary(max_size=12).map(lambda line: line.translate(None, b"\n\r\0")), max_size=40)


def test_an_item_is_a_line_and_its_how_many_th_occurrence() -> None:
    found = read_items(io.BytesIO(b"a\nb\na\n"))
    assert [(one.line, one.occurrence) for one in found] == [(b"a", 1), (b"b", 1), (b"a", 2)]
    assert len({one.id for one in found}) == 3


def test_empty_lines_are_none_and_a_last_line_needs_no_newline() -> None:
    assert [one.line for one in read_items([b"\n", b"  \n", b"\r\n", b"x"])] == [b"  ", b"x"]


def test_a_line_keeps_bytes_that_are_no_utf8() -> None:
    (one,) = read_items([b"\xff caf\xe9\n"])
    assert one.line == b"\xff caf\xe9"
    assert one.text.encode(errors="surrogateescape") == one.line


def test_a_line_that_no_argument_can_carry_is_refused_with_its_number() -> None:
    with pytest.raises(Misuse, match=r"line 2 .*NUL"):
        read_items([b"a\n", b"b\0c\n"])


def test_identities_never_change_between_releases() -> None:
    assert item(b"a", 1).id == "c3d62058829ee955e767acef648a45bc"
    assert partition_of(item(b"a", 1).id, 64) == 60


def test_a_line_is_never_taken_for_another_line_with_a_number() -> None:
    assert item(b"1 a", 1).id != item(b"a", 11).id
    assert item(b" a", 1).id != item(b"a", 1).id


@given(LINES)
def test_the_same_input_in_any_order_has_the_same_items_and_digest(lines: list[bytes]) -> None:
    shuffled = random.sample(lines, len(lines))
    mine, theirs = read_items(lines), read_items(shuffled)
    assert {one.id for one in mine} == {one.id for one in theirs}
    assert digest(one.id for one in mine) == digest(one.id for one in theirs)


@given(LINES, st.integers(1, 9))
def test_every_item_belongs_to_one_partition(lines: list[bytes], partitions: int) -> None:
    found = read_items(lines)
    shares = by_partition(found, partitions)
    assert sorted(one.id for share in shares.values() for one in share) == sorted(one.id for one in found)
    assert all(partition_of(one.id, partitions) == at for at, share in shares.items() for one in share)


@given(st.binary().map(lambda line: line.translate(None, b"\n\0")), st.integers(1, 10**9))
def test_what_is_packed_is_unpacked(line: bytes, occurrence: int) -> None:
    one = item(line, occurrence)
    assert unpack(one.id, pack(one)) == one


def test_chunks_are_bounded_in_number_and_size() -> None:
    found = read_items([b"%06d\n" % number for number in range(10)] + [b"x" * 100 + b"\n"])
    runs = list(chunks(found, 4, 18))
    assert [one for run in runs for one in run] == found
    assert [len(run) for run in runs] == [3, 3, 3, 1, 1]
    assert [len(run) for run in chunks(found, 4, 10_000)] == [4, 4, 3]
