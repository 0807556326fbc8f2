"""The failure detector: what phi is, what it learns of, and whom it suspects when."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast import Misuse
from holdfast.core.health import LEAST_DEVIATION_S, WINDOW, Detector, Pulse, check_threshold, deviations
from holdfast.core.roster import Member, MemberEvent, Roster
from holdfast.model import ClaimView

TTL_S = 15.0


def regular(mean_s: float = 5.0, times: int = 20) -> Detector:
    detector = Detector(mean_s)
    for _ in range(times):
        detector.learn(mean_s)
    return detector


@pytest.mark.parametrize(
    ("above", "phi"),  # standard deviations, and -log10 of what is left of a normal distribution there
    [(-3.0, 0.000587), (0.0, 0.301030), (1.0, 0.799546), (2.0, 1.643013), (3.0, 2.869699), (5.0, 6.542645),
     (5.612001, 8.0), (10.0, 23.118053), (20.0, 88.560099)],
)  # fmt: skip
def test_phi_is_the_logarithm_of_how_unlikely_a_silence_is(above: float, phi: float) -> None:
    detector = regular(5.0)
    assert detector.deviation_s == 0.5
    assert detector.phi(5.0 + above * 0.5) == pytest.approx(phi, abs=1e-5)
    if above > 0:
        assert detector.silence_s(phi) == pytest.approx(5.0 + above * 0.5, abs=1e-4)
        assert deviations(phi) == pytest.approx(above, abs=1e-4)


def test_phi_rises_with_silence_and_never_overflows() -> None:
    detector = Detector(0.3)
    phis = [detector.phi(tenth / 10) for tenth in range(100)]
    assert phis == sorted(phis)
    assert phis[0] < 0.01
    assert detector.phi(1e12) == 300


def test_what_varies_more_is_suspected_later() -> None:
    rng = random.Random(1)
    calm, wild = Detector(5.0), Detector(5.0)
    for _ in range(WINDOW):
        calm.learn(5.0)
        wild.learn(rng.gauss(5.0, 1.5))
    assert calm.silence_s(8) == pytest.approx(7.8, abs=0.01)
    assert 12 < wild.silence_s(8) < 15
    assert calm.phi(8.0) > 8 > 4 > wild.phi(8.0)


def test_old_intervals_are_forgotten() -> None:
    detector = Detector(5.0)
    for _ in range(WINDOW):
        detector.learn(1.0)
    assert (detector.mean_s, detector.deviation_s) == (1.0, 0.1)
    assert Detector(0.03).deviation_s == LEAST_DEVIATION_S


@pytest.mark.parametrize("wrong", [0, 0.4, -1, 101, float("nan"), "8", None, True])
def test_a_threshold_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(Misuse, match="threshold"):
        check_threshold(wrong)
    assert check_threshold(0.5) == 0.5


class Life:
    """A member that renews every so often, looked at whenever the roster asks for it."""

    def __init__(self, ttl_s: float = TTL_S, threshold: float = 8.0, *, beats: bool = True, now: float = 0.0) -> None:
        self.ttl_s, self.now = ttl_s, now
        self.roster = Roster(threshold, beats)
        self.renewed_at, self.next_at = 0.0, ttl_s / 3
        self.delays: Iterator[float] = itertools.repeat(0.0)
        self.stopped = False
        self.events: list[tuple[float, str]] = []
        self.looks = 0
        self.look_at = 0.0
        self.look()

    def look(self) -> None:
        while not self.stopped and self.next_at <= self.now:
            self.renewed_at, self.next_at = self.next_at, self.next_at + self.ttl_s / 3 + next(self.delays)
        left_s = self.renewed_at + self.ttl_s - self.now
        claims = [ClaimView("a", 1, 0, True, "host:1", b"", 0.0, left_s)] if left_s > 0 else []
        self.events += [(self.now, event.kind) for event in self.roster.see(claims, self.now)]
        self.looks += 1
        self.look_at = self.now + min(5.0, self.roster.look_in_s) + 0.01

    def live(self, seconds: float) -> None:
        until = self.now + seconds
        while self.look_at <= until:
            self.now = self.look_at
            self.look()
        self.now = until

    def die(self) -> None:
        self.stopped = True

    def resume(self) -> None:
        self.stopped, self.next_at = False, self.now

    @property
    def kinds(self) -> list[str]:
        return [kind for _, kind in self.events]


@pytest.mark.parametrize("ttl_s", [1.0, 3.0, 15.0, 60.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_a_member_that_died_is_suspect_halfway_through_its_lease_and_then_gone(ttl_s: float, share: float) -> None:
    life = Life(ttl_s)
    life.live(20 * ttl_s + share * ttl_s / 3)
    died_at = life.now
    life.die()
    life.live(2 * ttl_s)
    (_, joined), (suspect_at, suspect), (gone_at, gone) = life.events
    assert (joined, suspect, gone) == ("JOINED", "SUSPECT", "GONE")
    assert suspect_at - life.renewed_at == pytest.approx(0.52 * ttl_s, abs=0.01 * ttl_s + 0.05)
    assert died_at < suspect_at < died_at + 0.53 * ttl_s + 0.05
    assert gone_at - life.renewed_at == pytest.approx(ttl_s, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ttl_s", [1.0, 3.0, 15.0])
def test_renewals_late_by_as_much_as_a_loaded_machine_makes_them_suspect_nobody(ttl_s: float, seed: int) -> None:
    rng = random.Random(seed)
    life = Life(ttl_s, now=rng.uniform(0, ttl_s / 3))
    life.delays = iter(lambda: rng.uniform(-ttl_s / 12, 0.25 * ttl_s / 3), None)  # early in company, late by a retry
    life.live(2000 * ttl_s)
    assert life.kinds == ["JOINED"]
    assert life.looks < 2000 * 3 * 3


@pytest.mark.parametrize("first_look", [0.0, 0.1, 0.2, 0.3, 0.33])
def test_who_joins_or_is_met_in_the_middle_of_an_interval_is_not_suspect(first_look: float) -> None:
    for ttl_s, late in itertools.product((1.0, 15.0), (-0.1, 0.0, 0.1)):
        life = Life(ttl_s, now=first_look * ttl_s)
        life.delays = itertools.repeat(late * ttl_s / 3)
        life.live(30 * ttl_s)
        assert life.kinds == ["JOINED"], (ttl_s, late)


def test_a_member_that_was_paused_is_alive_again_and_as_easy_to_suspect_as_before() -> None:
    life = Life()
    life.live(100)
    before = life.roster._known["a"].pulse
    assert before is not None
    usual_s = before.detector.silence_s(8)
    for _ in range(20):
        life.die()
        life.live(9.5)
        life.resume()
        life.live(500)
    assert life.kinds == ["JOINED", *["SUSPECT", "ALIVE"] * 20]
    assert before.detector.silence_s(8) == pytest.approx(usual_s, rel=0.1)


def test_a_member_whose_habits_are_slower_than_its_lease_would_have_it_is_not_suspect_for_ever() -> None:
    life = Life(threshold=1)
    life.delays = itertools.repeat(1.0)
    life.live(3000)
    assert 2 <= len(life.events) < 100
    told = len(life.events)
    life.live(3000)
    assert len(life.events) == told


def test_one_met_when_it_was_nearly_gone_is_measured_anew_when_it_comes_back() -> None:
    life = Life(now=14.0)
    life.events.clear()
    life.roster = Roster(8.0, beats=True)
    life.renewed_at = 0.0
    life.die()
    life.look()
    life.live(0.9)
    life.resume()
    life.live(600)
    assert life.kinds == ["JOINED", "SUSPECT", "ALIVE"]
    pulse = life.roster._known["a"].pulse
    assert pulse is not None
    assert pulse.detector.silence_s(8) == pytest.approx(7.8, abs=0.5)


def test_a_watcher_that_was_paused_itself_suspects_nobody_and_learns_nothing() -> None:
    life = Life()
    life.live(100)
    pulse = life.roster._known["a"].pulse
    assert pulse is not None
    usual_s = pulse.detector.silence_s(8)
    for pause_s in (4.9, 7.0, 12.0, 100.0, 100_000.0):
        life.now += pause_s
        life.look()
        life.live(50)
    assert life.kinds == ["JOINED"]
    assert pulse.detector.silence_s(8) == pytest.approx(usual_s, rel=0.05)


def test_answers_that_come_late_are_no_heartbeats() -> None:
    pulse = Pulse(15.0, 0.0)
    for at, late_s in [(1.0, 0.0), (2.0, 1.5), (4.0, 0.0), (4.5, 0.3)]:
        pulse.look(15.0 - at, at + late_s)
    assert (pulse.silent_s, pulse.detector.mean_s, pulse.detector.deviation_s) == (4.5, 5.0, 0.5)
    pulse.look(14.9, 5.1)
    assert pulse.detector.mean_s == pytest.approx(5.0, abs=0.01)


def test_whole_seconds_and_a_length_that_is_cut_off_as_on_etcd_suspect_nobody_who_lives() -> None:
    for ttl_s in (2, 3, 4, 5, 10, 15, 30, 60):
        granted_s = -(-5 * ttl_s // 4)
        roster, kinds = Roster(8.0, beats=True), []
        renewed_at, now = 0.0, 0.0

        def see(until: float) -> None:
            nonlocal now
            while now < until:
                left_s = granted_s - (now - renewed_at)  # noqa: B023
                claim = ClaimView("a", 1, 0, True, "", b"", 0.0, min(ttl_s, int(left_s)))  # noqa: B023
                claims = [claim] if left_s > 0 else []
                kinds.extend(event.kind for event in roster.see(claims, now))  # noqa: B023
                now += max(0.02, min(5.0, roster.look_in_s)) + 0.01  # noqa: B023

        for _ in range(200):
            see(renewed_at + ttl_s / 3)
            renewed_at += ttl_s / 3
        assert kinds == ["JOINED"], ttl_s
        see(renewed_at + 2 * ttl_s)
        assert kinds[-1] == "GONE"
        assert "SUSPECT" in kinds or ttl_s < 5, ttl_s


def test_where_renewals_do_not_show_a_member_is_alive_until_it_is_gone() -> None:
    life = Life(beats=False)
    life.live(103)
    life.die()
    life.live(11)
    assert (life.roster.view.state_of("a"), life.roster.view.phi("a")) == ("ALIVE", 0.0)
    life.live(10)
    assert life.kinds == ["JOINED", "GONE"]


def test_who_left_and_who_is_gone_are_told_apart_by_what_was_left_of_the_lease() -> None:
    def claim(id: str, left_s: float) -> ClaimView:
        return ClaimView(id, ord(id), 0, True, f"host:{id}", id.encode(), 0.0, left_s)

    roster = Roster(8.0, beats=True)
    members = {id: Member(id, f"host:{id}", id.encode(), ord(id)) for id in "abc"}
    assert roster.see([claim("a", 15), claim("b", 2)], 0.0) == [
        MemberEvent("JOINED", members["a"]),
        MemberEvent("JOINED", members["b"]),
    ]
    told = roster.see([claim("c", 15)], 2.05)
    assert told == [
        MemberEvent("LEFT", members["a"]),
        MemberEvent("GONE", members["b"]),
        MemberEvent("JOINED", members["c"]),
    ]
    view = roster.view
    assert (view.alive, view.suspects, view.looked_at) == ((members["c"],), (), 2.05)
    assert [view.state_of(members[id]) for id in "abc"] == ["GONE", "GONE", "ALIVE"]
    assert view.phi("a") == 300
    roster.see([], 3.0)
    assert view.alive == (members["c"],), "a view never changes"


def test_one_look_serves_all_members_and_comes_soon_enough_for_the_shortest_lease() -> None:
    roster = Roster(8.0, beats=True)
    roster.see([ClaimView(str(n), n, 0, True, "", b"", 0.0, 60.0) for n in range(50)], 0.0)
    assert roster.look_in_s == pytest.approx(10)
    roster.see([ClaimView("0", 0, 0, True, "", b"", 0.0, 55.0), ClaimView("x", 99, 0, True, "", b"", 0.0, 3.0)], 5.0)
    assert roster.look_in_s == pytest.approx(0.5)
