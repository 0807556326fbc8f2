"""The lab: what it makes of many waits, the pictures it draws, and processes that end with it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from servers import RedisServer, eventually

from holdfast.core.waiting import Queue
from holdfast.errors import HoldfastError
from holdfast.lab.chart import MEASURES, chart, decades, duration, number, percent
from holdfast.lab.contender import HoldfastContender
from holdfast.lab.figures import Contest, jain, percentile
from holdfast.lab.team import Crew, Team
from holdfast.lab.waiting import STRATEGIES, Row, median
from holdfast.lab.worker import HANDOVERS

SVG = "{http://www.w3.org/2000/svg}"


# -- figures


def test_jains_index_is_one_for_equal_shares_and_one_nth_for_one_who_has_all() -> None:
    assert jain([7, 7, 7, 7]) == 1
    assert jain([28, 0, 0, 0]) == 0.25
    assert jain([2, 1]) == pytest.approx(0.9)
    assert jain([0, 0]) == 0


def test_a_percentile_is_a_value_that_was_there() -> None:
    waits = [float(value) for value in range(100, 0, -1)]
    assert [percentile(waits, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 51, 100, 100]


def test_a_contest_is_counted_by_hand_overs_and_not_by_acquisitions() -> None:
    contest = Contest(2.0, 8, 10, [[0.1] * 30, [0.3] * 10], cpu_s=0.5, calls=40)
    assert (contest.handovers_per_s, contest.acquisitions_per_s) == (4, 19)
    assert (contest.calls_per_handover, contest.cpu_per_handover_s) == (4, 0.05)
    assert (contest.wait_s(0.5), contest.wait_s(1.0)) == (0.1, 0.3)
    assert contest.jain == 0.8


def test_of_several_rounds_the_one_in_the_middle_counts_whole() -> None:
    rounds = [rows(["Queue"], [1], handovers_per_s=float(many), jain=many / 10)[0] for many in (7, 1, 4)]
    assert median(rounds) is rounds[2]


# -- the chart


def rows(strategies: Any = STRATEGIES, waiters: Any = (1, 2, 32), **figures: Any) -> list[Row]:
    names = [field.name for field in dataclasses.fields(Row)][2:]
    return [
        Row(strategy, many, **{name: figures.get(name, 0.1 * many + place) for name in names})
        for many in waiters
        for place, strategy in enumerate(strategies)
    ]


def points(picture: str) -> list[tuple[str, float]]:
    """What each mark says when pointed at, and how high it stands (its first coordinate pair)."""
    found = []
    for element in ElementTree.fromstring(picture).iter():
        told = element.find(f"{SVG}title")
        if told is not None and told.text and " waiting: " in told.text:
            where = element.get("cy") or re.split("[ L]", element.get("d", ""))[1]
            found.append((told.text, float(where)))
    return found


def test_a_chart_has_a_mark_for_each_figure_and_says_what_it_is() -> None:
    picture = chart(rows(), "redis, 1 ms inside & <more>")
    told = [text for text, _ in points(picture)]
    assert len(told) == len(MEASURES) * len(STRATEGIES) * 3
    assert "Spin, 32 waiting: 3.2" in told
    texts = [element.text for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    assert "redis, 1 ms inside & <more>" in texts
    assert {*STRATEGIES, *(measure.title for measure in MEASURES)} <= set(texts)


def test_a_chart_needs_nothing_from_elsewhere() -> None:
    picture = chart(rows(), "x").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"http|url\(|href|@import|<script", picture)


@pytest.mark.parametrize("figure", [0.0, 1e-9, 1.0, 1e7])
def test_a_chart_of_any_figures_stays_on_its_paper(figure: float) -> None:
    every: dict[str, Any] = {field.name: figure for field in dataclasses.fields(Row)[2:]} | {"jain": min(figure, 1.0)}
    for waiters in ((1,), (3, 200)):
        picture = chart(rows(waiters=waiters, **every), "x")
        height = float(ElementTree.fromstring(picture).get("height", "0"))
        assert "nan" not in picture
        assert all(0 < y < height for _, y in points(picture))


def test_more_stands_higher_also_above_nothing_at_all() -> None:
    for low, high in ((0.0, 1e-6), (0.0, 5.0), (1e-3, 2e-3), (5.0, 5e5)):
        two = [*rows(["Spin"], [1], handovers_per_s=low), *rows(["Queue"], [1], handovers_per_s=high)]
        (spin, y), (queue, above) = sorted(points(chart(two, "x"))[:2], reverse=True)
        assert (spin[:4], queue[:5]) == ("Spin", "Queue")
        assert above < y, (low, high)


def test_an_axis_has_decades_around_all_values_and_not_too_many() -> None:
    assert decades([3.0, 40.0]) == [1, 10, 100]
    assert decades([0.0, 5.0]) == [0, 1, 10]
    assert decades([10.0]) == [10, 100]
    ticks = decades([1e-6, 1e7])
    assert ticks[0] <= 1e-6
    assert ticks[-1] >= 1e7
    assert len(ticks) <= 8


def test_figures_are_short_enough_for_an_axis() -> None:
    assert [number(value) for value in (0.25, 12.0, 1e3, 1e4, 2.5e6)] == ["0.25", "12", "1k", "10k", "2.5M"]
    assert [duration(value) for value in (1e-5, 1e-3, 0.01, 1.0, 10.0)] == ["10 µs", "1 ms", "10 ms", "1 s", "10 s"]
    assert [percent(value) for value in (0.0001, 0.1, 1.0, 10.0)] == ["0.01 %", "10 %", "100 %", "1,000 %"]


# -- processes


def contender(url: str) -> HoldfastContender:
    return HoldfastContender(url, "", "x", Queue())


class Failing:
    """A lock that fails when it is taken."""

    calls = 0

    def __enter__(self) -> None:
        raise ValueError("no such luck")

    def __exit__(self, *exc: object) -> None: ...

    def close(self) -> None: ...


class Dying(Failing):
    def __enter__(self) -> None:
        os._exit(3)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def hire_all(team: Team, make: Any, then: Callable[[Crew], object] = lambda crew: None) -> list[int]:
    """Let all do something that fails: who they were."""
    started: list[int] = []
    with contextlib.suppress(KeyboardInterrupt), team:
        started += [worker.pid for worker in team._workers]
        with team.hired(len(started), make) as crew:
            then(crew)
    return started


@pytest.mark.parametrize(("make", "says"), [(Failing, "ValueError: no such luck"), (Dying, "ended in the middle")])
def test_what_fails_in_a_worker_is_told_and_ends_the_team(make: Any, says: str) -> None:
    team = Team(2)
    with pytest.raises(HoldfastError, match=says):
        hire_all(team, make)
    assert not any(worker.is_alive() for worker in team._workers)


def test_a_team_ends_also_in_the_middle_of_a_contest(sqlite_url: str) -> None:
    """Its workers hold the lock and wait for it, as we are interrupted."""

    def interrupt(crew: Crew) -> None:
        for pipe in crew._pipes:
            pipe.send(("contest", 0.001))
        eventually(lambda: crew._board[HANDOVERS] > 5, what="they do not contend")
        raise KeyboardInterrupt

    started = hire_all(Team(3), functools.partial(contender, sqlite_url), interrupt)
    assert len(started) == 3
    assert not any(map(is_there, started))


def test_those_who_wait_while_one_holds_all_get_it_after(sqlite_url: str) -> None:
    make = functools.partial(contender, sqlite_url)
    with Team(3) as team, team.hired(3, make) as crew:
        idle = crew.idle(0.2)
        assert idle.calls_per_s == 0
        assert crew.contest(0.2, 0.0).calls > 0


def test_calls_are_the_commands_that_a_redis_is_sent(redis_session: RedisServer, redis_url: str) -> None:
    ours = contender(redis_url)
    with ours:
        pass
    before, calls = commands(redis_session), ours.calls
    for _ in range(50):
        with ours:
            time.sleep(0)
    assert ours.calls - calls == commands(redis_session) - before >= 100
    ours.close()


def commands(server: RedisServer) -> int:
    """How many scripts it was asked to run."""
    said = server.command("INFO", "commandstats").decode()
    return sum(int(count) for count in re.findall(r"cmdstat_(?:eval|evalsha|fcall):calls=(\d+)", said))


def test_the_page_about_waiting_shows_the_chart() -> None:
    docs = Path(__file__).parents[2] / "docs"
    ElementTree.parse(docs / "waiting.svg")
    assert "(waiting.svg)" in (docs / "waiting.md").read_text()
