"""How likely is it that one who has been silent for so long is dead? A phi-accrual failure detector. Pure, no clock.

After Hayashibara, Défago, Yared and Katayama (2004), as Akka and Cassandra have it: what is learned of the intervals
between heartbeats says how unlikely a silence is. phi is that on a scale without end: at phi = 3 one healthy
member in a thousand would be silent for as long. Who asks chooses from which phi on to suspect.

A heartbeat here is the renewal of a lease, as others see it: of what remains there is suddenly more. All that is told
by the engine's clock, so that one who looks late, because it was paused itself, suspects nobody for that.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import NormalDist

from ..errors import Misuse

THRESHOLD = 8.0
"""From this phi on a member is suspect, if nobody says otherwise. Akka and Cassandra have the same."""

WINDOW = 100
"""How many of the last intervals count: eight minutes with leases of 15 s. Old habits of a machine tell little."""

LEAST_DEVIATION = 0.1
"""Intervals are taken to vary by this share of their mean at least. Ours hardly vary while all is well, so that without
it a renewal that was tried twice would be suspect; with it, and the threshold above, one may come later by half."""

LEAST_DEVIATION_S = 0.02
"""And by this at least: a system's scheduler alone makes short ones vary."""

EXPECTED_SHARE = 1 / 3
"""After how much of a lease its renewal is expected, before anything was learned of this one: see `renewer`."""

TOO_LONG = 0.75
"""Who looks again only after this share of an interval may have missed a heartbeat, and learns nothing from it."""

MOST_PHI = 300.0
"""As far as floating point goes."""

_NORMAL = NormalDist()


def check_threshold(threshold: float) -> float:
    """Give it back if it may be one, else raise `Misuse`."""
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not number or not 0.5 <= threshold <= 100:
        raise Misuse(f"threshold is a phi from 0.5 to 100 (8 by default), not {threshold!r}")
    return threshold


def deviations(phi: float) -> float:
    """How many standard deviations above its mean a normal variable has this phi."""
    return -_NORMAL.inv_cdf(10**-phi)


class Detector:
    """What was learned of one member's intervals.

    They are taken to be normal, as in Akka. An exponential, as in Cassandra, fits gossip; for heartbeats as regular as
    renewals it would suspect nobody before the sixth is missing, long after the lease is over.
    """

    __slots__ = ("_intervals", "deviation_s", "mean_s")

    def __init__(self, expected_s: float) -> None:
        """``expected_s``: the interval before anything was learned. It counts as the first one."""
        self._intervals: deque[float] = deque(maxlen=WINDOW)
        self.learn(expected_s)

    def learn(self, interval_s: float) -> None:
        self._intervals.append(interval_s)
        count = len(self._intervals)
        self.mean_s = sum(self._intervals) / count
        variance = sum((one - self.mean_s) ** 2 for one in self._intervals) / count
        self.deviation_s = max(math.sqrt(variance), LEAST_DEVIATION * self.mean_s, LEAST_DEVIATION_S)

    def phi(self, silent_s: float) -> float:
        """-log10 of the chance that a healthy member is silent for as long, or longer."""
        chance = math.erfc((silent_s - self.mean_s) / self.deviation_s / math.sqrt(2)) / 2
        return -math.log10(max(chance, 10**-MOST_PHI))

    def silence_s(self, phi: float) -> float:
        """For how long a member is silent when its phi has become this."""
        return self.mean_s + deviations(phi) * self.deviation_s


class Pulse:
    """One member's heartbeats, as far as looks tell: how much of its lease remained, and at which time of ours."""

    __slots__ = ("_threshold", "beat_end", "detector", "length_s", "looked_at", "remaining_s")

    def __init__(self, remaining_s: float, now: float, threshold: float = THRESHOLD) -> None:
        self._threshold = threshold
        self.length_s = remaining_s
        """Of the lease, which no look says: the most that was ever left of it."""
        self.detector = Detector(remaining_s * EXPECTED_SHARE)
        self.remaining_s, self.looked_at = remaining_s, now
        self.beat_end = now + remaining_s  # when the lease would have ended without the next renewal

    def look(self, remaining_s: float, now: float) -> None:
        """Another look. A renewal moves the lease's end by just the time since the one before."""
        gap_s, end = now - self.looked_at, now + remaining_s
        rose = remaining_s - self.remaining_s > self.detector.mean_s / 4
        longer, self.length_s = remaining_s > 1.1 * self.length_s, max(self.length_s, remaining_s)
        self.remaining_s, self.looked_at = remaining_s, now
        if longer:  # what we took for its length was what was left of it when we came
            self.detector, self.beat_end = Detector(remaining_s * EXPECTED_SHARE), end
        elif gap_s > TOO_LONG * self.detector.mean_s:
            self.beat_end = end
        elif rose:
            interval_s, self.beat_end = end - self.beat_end, end
            most_s = self.detector.silence_s(self._threshold)  # being ill once is no habit; being ill often is one
            self.detector.learn(min(max(interval_s, 0.0), most_s))
        else:
            self.beat_end = min(self.beat_end, end)  # an answer that came late made it seem later

    @property
    def silent_s(self) -> float:
        """For how long it had been silent at the last look."""
        return max(0.0, self.length_s - self.remaining_s)

    @property
    def phi(self) -> float:
        return self.detector.phi(self.silent_s)

    @property
    def suspect_in_s(self) -> float:
        """How long after the last look it is suspect, if it goes on being silent; 0 or less: it is."""
        return self.detector.silence_s(self._threshold) - self.silent_s
