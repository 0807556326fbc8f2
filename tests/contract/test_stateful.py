"""Random operations on each engine and on the reference side by side: the same answers, in whatever order."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
from engines import ASKING, EXCLUSIVE, SHARED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from servers import eventually

from holdfast.core import turnstile as pure
from holdfast.engines import engine_for
from holdfast.engines.memory import MemoryEngine
from holdfast.errors import Misuse
from holdfast.model import CellReply, Change, Fence, Turnstile

from .conftest import Seat

NAMES = st.sampled_from(["x", "y"])
IDS = st.sampled_from("abcdef")
WEIGHTS = st.sampled_from([0, 1, 1, 2, 3])
TOKENS = st.integers(1, 4)
KEYS = st.sampled_from(["k", "l"])
VALUES = st.one_of(st.none(), st.binary(max_size=3))
runs = itertools.count()


class Beside(RuleBasedStateMachine):
    """Every operation is done twice, on the engine under test and on the model; answers are compared."""

    url: str

    @initialize()
    def start(self) -> None:
        self.pair = [Seat(engine_for(self.url, f"run{next(runs)}"), None), Seat(MemoryEngine(), None)]
        self.weights: dict[tuple[str, str], int] = {}
        self.versions: dict[str, list[int]] = {}

    def both(self, operation: Any) -> list[Any]:
        answers = []
        for seat in self.pair:
            try:
                answers.append(operation(seat))
            except Misuse:
                answers.append(Misuse)
        return answers

    def same(self, operation: Any) -> Any:
        ours, model = self.both(operation)
        assert ours == model
        return ours

    def place(self, name: str) -> Turnstile:
        return Turnstile("semaphore", name, 3)

    @rule(name=NAMES, id=IDS, weight=WEIGHTS, nowait=st.booleans())
    def enter(self, name: str, id: str, weight: int, nowait: bool) -> None:
        weight = self.weights.setdefault((name, id), weight)  # a resend is the same claim
        self.same(lambda seat: seat.enter(self.place(name), seat.claim(id, weight), nowait).state)

    @rule(name=NAMES, id=IDS, bury=st.booleans())
    def leave(self, name: str, id: str, bury: bool) -> None:
        self.same(lambda seat: seat.leave(self.place(name), id, bury))

    @rule(name=NAMES, id=IDS)
    def renew(self, name: str, id: str) -> None:
        def renewed(seat: Seat) -> Any:
            standing = seat.renew(self.place(name), seat.claim(id, self.weights.get((name, id), 1)))
            return standing.state, standing.wanted

        ours, model = self.both(renewed)
        if self.url.startswith(("zookeeper", "etcd")) and not self.pair[1].waiting(self.place(name)):
            assert ours in (model, (model[0], False))  # there, who waited and went is not remembered
        else:
            assert ours == model

    @rule(name=NAMES)
    def other_capacity(self, name: str) -> None:
        self.same(
            lambda seat: (
                seat.enter(Turnstile("semaphore", name, 2), "z", True).state
                if seat.look(self.place(name)).claims
                else None
            )
        )

    @rule(name=NAMES, token=TOKENS, claim=st.sampled_from("pq"), opening=st.integers(1, 2), home=st.sampled_from("st"))
    def open(self, name: str, token: int, claim: str, opening: int, home: str) -> None:
        fence = Fence(f"lock:{home}", token, claim, opening)
        self.same(lambda seat: self.told(seat.open(name, fence)))

    @rule(
        name=NAMES, token=TOKENS, claim=st.sampled_from("pq"), opening=st.integers(1, 2), behind=st.integers(0, 1),
        op=st.sampled_from("12"), value=VALUES, key=KEYS, entry=VALUES, create=st.booleans(),
    )  # fmt: skip
    def put(
        self, name: str, token: int, claim: str, opening: int, behind: int, op: str, value: bytes | None, key: str,
        entry: bytes | None, create: bool,
    ) -> None:  # fmt: skip
        fence = Fence("lock:s", token, claim, opening)
        change = Change(key, entry, create)

        def done(seat: Seat) -> Any:
            return self.told(seat.put(name, fence, seat.read(name).version - behind, op, value, [change]))

        self.same(done)

    @rule(name=NAMES)
    def drop(self, name: str) -> None:
        self.same(lambda seat: seat.call(seat.engine.drop(name)))

    @staticmethod
    def told(reply: CellReply) -> Any:
        return reply if reply.accepted else (reply.foreign, reply.accepted)

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "pair"):
            return
        for name in ("x", "y"):
            self.same(
                lambda seat, name=name: [(c.id, c.weight, c.admitted) for c in seat.look(self.place(name)).claims]
            )
            self.same(lambda seat, name=name: seat.read(name))
        model = self.pair[1].look(self.place("x"))
        weights = [claim.weight for claim in model.claims]
        assert len(model.admitted) == pure.admitted(weights, 3)
        assert [claim.token for claim in model.claims] == sorted({claim.token for claim in model.claims})

    def teardown(self) -> None:
        for seat in getattr(self, "pair", []):
            seat.close()


SETTINGS = settings(
    max_examples=int(os.environ.get("HOLDFAST_EXAMPLES", "60")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("engine", [engine for engine in SHARED if engine not in EXCLUSIVE])
def test_an_engine_answers_as_the_reference_does(engine: str, request: pytest.FixtureRequest) -> None:
    machine = type("Beside", (Beside,), {"url": request.getfixturevalue(f"{engine}_url")})
    run_state_machine_as_test(machine, settings=SETTINGS)


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "enter", "nowait", "leave", "leave"]), st.integers(0, 3), WEIGHTS),
    min_size=15,
    max_size=40,
)


def said(seat: Seat, of: str = "") -> dict[str, list[str]]:
    """What each claim was told, in this order."""
    heard: dict[str, list[str]] = {}
    for signal in list(seat.signals):
        if signal.key.startswith(of):
            heard.setdefault(signal.key, []).append(signal.kind)
    return heard


@pytest.mark.parametrize("engine", [engine for engine in SHARED if engine not in EXCLUSIVE + ASKING])
def test_an_engine_tells_each_claim_what_the_reference_does(engine: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{engine}_url")
    ours, model = Seat(engine_for(url, f"run{next(runs)}"), None), Seat(MemoryEngine(), None)

    @SETTINGS
    @given(STEPS, st.integers(1, 3))
    def tell(steps: list[tuple[str, int, int]], capacity: int) -> None:
        run = f"{next(runs)}."
        place = Turnstile("semaphore", run, capacity)
        for step, (verb, which, weight) in enumerate(steps):
            stand = model.look(place).claims
            for seat in (model, ours):
                if verb != "leave":
                    seat.enter(place, seat.claim(f"{run}{step}", min(weight, capacity)), nowait=verb == "nowait")
                elif stand:
                    seat.leave(place, stand[which % len(stand)].id)
        told = said(model, run)
        eventually(lambda: said(ours, run) == told, 10.0, f"the model was told {told}")

    try:
        for seat in (ours, model):
            seat.listen()
        tell()
        assert said(ours) == said(model)  # and nothing was told late
    finally:
        for seat in (ours, model):
            seat.close()
