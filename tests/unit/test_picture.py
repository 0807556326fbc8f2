"""Pictures are well-formed, name every node, and show what moves in true proportion."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.placement import HashRing, Node
from holdfast.placement.balance import balance, counted
from holdfast.placement.base import Placement
from holdfast.placement.moves import CIRCLE
from holdfast.placement.picture import ROWS, SLICES, _sliced, _spans, apart, change_picture, picture
from holdfast.placement.plan import Plan
from holdfast.placement.registry import ALGORITHMS, make
from holdfast.placement.svg import WIDTH, fitted, text_width, wrapped
from holdfast.placement.words import in_words

SVG = "{http://www.w3.org/2000/svg}"


def fleet(n: int) -> list[str]:
    return [f"cache-{index:03}" for index in range(n)]


def texts(svg: str) -> list[str]:
    """What is to be read at once (titles show on hovering)."""
    found = [element.find(f"{SVG}title") for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    whole = ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    hovers = [(title.text or "") if title is not None else "" for title in found]
    return [text.removeprefix(hover) for text, hover in zip(whole, hovers, strict=True)]


def hovers(svg: str) -> str:
    return "\n".join(title.text or "" for title in ElementTree.fromstring(svg).iter(f"{SVG}title"))


def changed(algorithm: str, n: int) -> tuple[Placement, Placement, Plan]:
    before = make(algorithm, fleet(n))
    after = before.copy()
    after.add_node("new")
    return before, after, before.plan(after, keys=None if algorithm == "ring" else range(5000))


def assert_no_two_texts_overlap(svg: str) -> None:
    boxes: list[tuple[float, float, float, float, str]] = []
    for element in ElementTree.fromstring(svg).iter(f"{SVG}text"):
        title = element.find(f"{SVG}title")
        text = "".join(element.itertext()).removeprefix((title.text or "") if title is not None else "")
        kind = element.get("class", "")
        size = 34 if "big" in kind else 20 if "title" in kind else 11 if "small" in kind else 13
        width = text_width(text, size)
        x, y = float(element.get("x", "")), float(element.get("y", ""))
        left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[element.get("text-anchor", "start")] * width
        assert left >= 0, f"{text!r} begins outside"
        assert left + width <= WIDTH, f"{text!r} ends outside"
        boxes.append((left, left + width, y - size * 0.75, y + size * 0.2, text))
    for index, (left, right, top, bottom, text) in enumerate(boxes):
        for left2, right2, top2, bottom2, text2 in boxes[:index]:
            apart = right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
            assert apart, f"{text!r} lies over {text2!r}"


@pytest.mark.parametrize("n", [1, 3, 10, 40])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_node_is_named_and_no_text_lies_over_another(algorithm: str, n: int) -> None:
    placement = make(algorithm, fleet(n))
    svg = picture(placement)
    assert set(fleet(n)) <= set(texts(svg))
    assert_no_two_texts_overlap(svg)
    assert 1_000 < len(svg) < 150_000


@pytest.mark.parametrize("n", [1, 3, 10, 39])
@pytest.mark.parametrize("algorithm", ["ring", "rendezvous", "maglev"])
def test_a_change_names_every_node_and_says_in_words_what_moves(algorithm: str, n: int) -> None:
    before, after, plan = changed(algorithm, n)
    svg = change_picture(before, after, plan)
    shown = texts(svg)
    assert {*fleet(n), "new"} <= set(shown)
    assert in_words(before, after, plan) in " ".join(shown)
    assert_no_two_texts_overlap(svg)
    assert len(svg) < 150_000


@pytest.mark.parametrize("n", [41, 300])
def test_of_more_nodes_than_fit_the_others_are_summed_up(n: int) -> None:
    before, after, plan = changed("ring", n)
    for svg, rest in ((picture(before), n - ROWS + 1), (change_picture(before, after, plan), n + 1 - ROWS + 1)):
        shown = texts(svg)
        assert f"{rest} others" in shown
        assert_no_two_texts_overlap(svg)
        assert len(svg) < 150_000
    assert "new" in texts(change_picture(before, after, plan)), "who changed most is among those that are shown"


def test_long_names_are_cut_where_they_stay_apart_and_are_whole_on_hovering() -> None:
    names = [f"cache-{index}.eu-west-1.compute.example.com:11211" for index in range(40)]
    ring = HashRing(names)
    after = ring.copy()
    after.add_node("x" * 512)
    for svg in (picture(ring), change_picture(ring, after, ring.plan(after))):
        cut = [text for text in texts(svg) if text.startswith("cache-")]
        assert len(cut) == len(set(cut)) >= 38
        assert_no_two_texts_overlap(svg)
        assert sum(name in hovers(svg) for name in names) >= 38


ZONED = st.dictionaries(
    st.text(min_size=1, max_size=8), st.sampled_from([None, "eu\x00", "<zone>"]), min_size=2, max_size=ROWS
)


@settings(deadline=None)
@given(ZONED)
def test_any_name_makes_a_well_formed_picture(zones: dict[str, str | None]) -> None:
    before = HashRing({name: Node(1, zone) for name, zone in zones.items()}, points=4)
    after = before.copy()
    after.remove_node(min(zones))
    for svg in (
        picture(before),
        change_picture(before, after, before.plan(after)),
        change_picture(before, after, before.plan(after, keys=range(99))),
    ):
        ElementTree.fromstring(svg)
        assert "\x00" not in svg
        shown = hovers(svg)
        assert all(name in shown for name in zones if name.isprintable())


def test_names_are_text_and_no_markup() -> None:
    svg = picture(HashRing(['<script>"&', "b"]))
    assert '<script>"&' in texts(svg)
    assert "<script>" not in svg


# What is drawn is true.


def test_the_ring_is_drawn_with_each_nodes_arcs_where_they_are() -> None:
    ring = HashRing(["a", "b"], points=4)
    arcs = ring.arcs()
    spans = _spans((last, names[0]) for last, names in arcs)
    for name in "ab":
        size = sum(stop - start for start, stop in spans[name])
        assert size == pytest.approx(balance(ring).loads[name].share)
    whole = sorted(span for found in spans.values() for span in found)
    assert whole[0][0] == 0
    assert whole[-1][1] == 1
    assert all(one[1] == two[0] for one, two in pairwise(whole))


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(0, 10))
def test_slices_of_many_arcs_keep_even_the_smallest_shares(n: int, seed: int) -> None:
    names = [f"{seed}-{index}" for index in range(n)]
    ring = HashRing({name: 0.05 if index == 0 else 1.0 for index, name in enumerate(names)}, points=2000)
    arcs = [(last, owners[0]) for last, owners in ring.arcs()]
    drawn: dict[str, int] = {}
    end = -1
    for last, name in _sliced(arcs):
        drawn[name] = drawn.get(name, 0) + last - end
        end = last
    assert end == CIRCLE - 1
    for name, load in balance(ring).loads.items():
        assert drawn.get(name, 0) / CIRCLE == pytest.approx(load.share, abs=2 / SLICES)


def test_a_change_colours_what_moves_and_nothing_else() -> None:
    before, after, plan = changed("ring", 4)
    svg = change_picture(before, after, plan)
    coloured = re.findall(r"<title>(\S+) (gives|gets)</title>", svg)
    assert {name for name, verb in coloured if verb == "gets"} == {"new"}
    assert {name for name, verb in coloured if verb == "gives"} == set(fleet(4))
    same = before.plan(before)
    assert not re.findall(r"<title>\S+ (?:gives|gets)</title>", change_picture(before, before, same))


def test_a_flow_has_a_ribbon_for_each_pair_as_thick_as_its_share() -> None:
    before, after, plan = changed("rendezvous", 3)
    svg = change_picture(before, after, plan)
    for (source, target), share in plan.shares().items():
        assert f"<title>{source} → {target}: {share:.2%}</title>" in svg


def test_given_counts_are_what_is_drawn() -> None:
    ring = HashRing(["a", "b"])
    svg = picture(ring, counted(ring, {"a": 3, "b": 1}))
    assert "75.0%" in texts(svg)
    assert "25.0%" in texts(svg)


# Words.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ring: ring.add_node("d"), r"d joins\. .*, all to d; 25\.0% would .* Nothing moves between nodes that"),
        (lambda ring: ring.remove_node("a"), r"a leaves\. .*, all from a; 33\.3% would"),
        (lambda ring: ring.set_weight("a", 2), r"a has another weight\. .*, all to a; 16\.7% would"),
        (lambda ring: [ring.add_node(name) for name in "de"], r"d and e join\. "),
        (lambda ring: [ring.add_node(name) for name in "defgh"], r"5 nodes join\. "),
        (lambda ring: [ring.add_node("d"), ring.remove_node("a")], r"d joins; a leaves\. "),
        (lambda ring: None, r"No node changes\. Nothing moves\."),
    ],
)
def test_a_change_is_told_in_words(change: object, said: str) -> None:
    before = HashRing(["a", "b", "c"])
    after = before.copy()
    assert callable(change)
    change(after)
    assert re.match(said, in_words(before, after, before.plan(after)))


def test_what_moves_in_vain_is_told() -> None:
    before, after, plan = changed("maglev", 10)
    told = in_words(before, after, plan)
    assert "of that is between nodes that did not change" in told


# Fitting.


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=5, unique=True), st.floats(20, 300))
def test_fitted_names_fit(names: list[str], width: float) -> None:
    for name, shown in fitted(names, width).items():
        assert text_width(shown) <= width or shown == "…"
        assert shown == name or "…" in shown
        if text_width(name) <= width:
            assert shown == name


@settings(deadline=None)
@given(st.text(), st.floats(30, 300))
def test_wrapped_lines_fit_and_lose_no_word(text: str, width: float) -> None:
    lines = wrapped(text, width)
    assert all(text_width(line) <= width or line == "…" for line in lines)
    if all(text_width(word) <= width for word in text.split(" ")):
        assert " ".join(lines).split() == text.split()


@settings(deadline=None)
@given(st.lists(st.floats(0, 400), max_size=12).map(sorted))
def test_labels_stand_apart_and_inside(places: list[float]) -> None:
    found = apart(places, 14, 0, 400)
    assert all(two - one >= 14 - 1e-9 for one, two in pairwise(found))
    assert all(-1e-9 <= place <= 400 for place in found)
