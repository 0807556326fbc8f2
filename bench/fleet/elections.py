"""How long nobody leads: the leader is killed, or resigns, while all others stand for election."""

from __future__ import annotations

import time
from typing import NamedTuple

import holdfast

from .crew import Crew, crew
from .member import NAME
from .places import Place, url_of

KILLS, RESIGNATIONS = 9, 20


class Election(NamedTuple):
    """Seconds until the next led, one for each round."""

    killed: list[float]
    resigned: list[float]


def measure(place: Place, url: str, members: int, kills: int = KILLS, resignations: int = RESIGNATIONS) -> Election:
    where = url_of(url, place.ttl_s)
    with crew("candidate", where, ttl_s=place.ttl_s) as all_, holdfast.connect(where) as hf:
        all_.tell(all_.start(members), "join")
        election = hf.election(NAME, ttl_s=place.ttl_s)

        def ready() -> bool:
            return all_.holder("leader") is not None and len(election.candidates()) == members - 1

        def next_leader(after: float) -> float:
            def found() -> list[float]:
                return [one.start for one in all_.holdings() if one.start > after]

            return float(all_.until(found, "the next leads")[0])

        killed, resigned = [], []
        for _ in range(resignations):
            all_.until(ready, "all stand for election")
            leader = all_.holder("leader")
            assert leader is not None
            leader.say("resign")
            leader.hears("done")
            at = _last_end(all_)
            resigned.append(next_leader(at) - at)
        for number in range(kills):
            all_.until(ready, "all stand for election")
            time.sleep(place.ttl_s * (0.5 + number / kills))  # anywhere between two renewals
            leader = all_.holder("leader")
            assert leader is not None
            at = all_.kill(leader)
            killed.append(next_leader(at) - at)
            all_.tell(all_.start(), "join")
    return Election(killed, resigned)


def _last_end(all_: Crew) -> float:
    return max(one.end for one in all_.holdings() if one.end < float("inf"))
