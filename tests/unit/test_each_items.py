"""Items of a job: what a line is, who it is, where it belongs, and how many of them are held at once."""

import io
import random
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Misuse
from holdfast.fleet.each_input import Input, Print
from holdfast.fleet.each_items import LINE_BYTES, Item, blocks, bounds, item, pack, runs, unpack

LINES = st.lists(st.binary(max_size=12).map(lambda line: line.translate(None, b"\n\r\0")), max_size=40)


def items_of(given: Input) -> list[Item]:
    return list(given.but((), 0, 1))


def found(lines: list[bytes]) -> list[tuple[bytes, int]]:
    return sorted((one.line, one.occurrence) for one in items_of(Input(lines)))


def test_an_item_is_a_line_and_its_how_many_th_occurrence() -> None:
    items = items_of(Input(io.BytesIO(b"a\nb\na\na\n")))
    assert sorted((one.line, one.occurrence) for one in items) == [(b"a", 1), (b"a", 2), (b"a", 3), (b"b", 1)]
    assert len({one.id for one in items}) == 4
    assert all(one.id == item(one.line, one.occurrence).id for one in items)


def test_empty_lines_are_none_and_a_last_line_needs_no_newline() -> None:
    assert found([b"\n", b"  \n", b"\r\n", b"x"]) == [(b"  ", 1), (b"x", 1)]
    assert not Input([b"\n"])
    assert Input([b"x"])


def test_a_line_keeps_bytes_that_are_no_utf8() -> None:
    (one,) = items_of(Input([b"\xff caf\xe9\n"]))
    assert one.line == b"\xff caf\xe9"
    assert one.text.encode(errors="surrogateescape") == one.line


@pytest.mark.parametrize(("line", "says"), [(b"b\0c\n", "NUL"), (b"b" * (LINE_BYTES + 1), r"262,145 bytes.*at most")])
def test_a_line_that_no_argument_can_carry_is_refused_with_its_number(line: bytes, says: str) -> None:
    with pytest.raises(Misuse, match=f"line 2 .*{says}"):
        Input([b"a\n", line])


def test_identities_never_change_between_releases() -> None:
    assert item(b"a", 1).id == "c3d62058829ee955e767acef648a45bc"
    first, last = bounds(48, 64)
    assert first <= bytes.fromhex(item(b"a", 1).id) <= last


def test_a_line_is_never_taken_for_another_line_with_a_number() -> None:
    assert item(b"1 a", 1).id != item(b"a", 11).id
    assert item(b" a", 1).id != item(b"a", 1).id


@given(LINES)
def test_the_same_input_in_any_order_has_the_same_items_and_print(lines: list[bytes]) -> None:
    mine, theirs = Input(lines), Input(random.sample(lines, len(lines)))
    assert items_of(mine) == items_of(theirs)
    assert mine.prints(3) == theirs.prints(3)


@given(LINES, st.data())
def test_a_print_is_extended_by_what_is_added(lines: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(lines)))
    ids = [bytes.fromhex(one.id) for one in items_of(Input(lines))]
    assert Print().plus(ids[:at]).plus(ids[at:]) == Input(lines).prints(1)[0]


@given(LINES, st.integers(1, 9))
def test_every_item_belongs_to_one_partition(lines: list[bytes], partitions: int) -> None:
    given_ = Input(lines)
    shares = [list(given_.but((), number, partitions)) for number in range(partitions)]
    assert [one for share in shares for one in share] == items_of(given_)
    assert [one.items for one in given_.prints(partitions)] == [len(share) for share in shares]


@given(st.integers(1, 1 << 14))
def test_partitions_cut_all_identities_into_equal_runs(partitions: int) -> None:
    ends = [bounds(number, partitions) for number in {0, partitions // 2, partitions - 1}]
    assert min(first for first, _ in ends) == bytes(16)
    assert max(last for _, last in ends) == b"\xff" * 16
    sizes = [int.from_bytes(last, "big") - int.from_bytes(first, "big") for first, last in ends]
    assert max(sizes) - min(sizes) <= 1


def test_what_is_there_already_is_left_out() -> None:
    given_ = Input([b"a\n", b"b\n", b"c\n", b"c\n"])
    there = [bytes.fromhex(item(line, 1).id) for line in (b"a", b"c", b"other")]
    assert sorted((one.line, one.occurrence) for one in given_.but(there, 0, 1)) == [(b"b", 1), (b"c", 2)]
    assert len(list(given_.but((), 0, 1))) == 4  # it forgot what was there the last time


@given(
    st.lists(
        st.tuples(st.binary(min_size=1).map(lambda x: x.translate(None, b"\n\0") or b"x"), st.integers(1, 10**9)),
        min_size=1,
    )
)
def test_what_is_packed_is_unpacked(lines: list[tuple[bytes, int]]) -> None:
    items = [item(line, occurrence, 7) for line, occurrence in lines]
    assert unpack(pack(items), 7) == items


def test_blocks_are_bounded_in_number_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item(b"%06d" % number, 1) for number in range(10)] + [item(b"x" * 100, 1)]
    monkeypatch.setattr("holdfast.fleet.each_items.BLOCK_BYTES", 18)
    assert [one for block in blocks(items) for one in block] == items
    assert [len(block) for block in blocks(items)] == [3, 3, 3, 1, 1]
    monkeypatch.setattr("holdfast.fleet.each_items.BLOCK_BYTES", 10_000)
    assert [len(run) for run in runs(items, lambda one: len(one.line), 4)] == [4, 4, 3]


def test_input_is_on_disk_and_not_in_memory() -> None:
    def lines() -> Iterator[bytes]:
        for number in range(60_000):
            yield b"a line of some length, number %d\n" % (number % 50_000)

    tracemalloc.start()
    try:
        given_ = Input(lines())
        assert sum(one.items for one in given_.prints(64)) == 60_000
        assert sum(len(list(given_.but((), number, 64))) for number in range(64)) == 60_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # a list of them would take 10 MB
    finally:
        tracemalloc.stop()
