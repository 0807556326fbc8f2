"""A change of nodes, and what it moves, in a few words."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Placement
from .plan import Plan, Step


def in_words(before: Placement, after: Placement, plan: Plan) -> str:
    """A change and what it moves, in a sentence or three."""
    old, new = before.nodes, after.nodes
    came, gone = [name for name in new if name not in old], [name for name in old if name not in new]
    other = [name for name in new if name in old and new[name].weight != old[name].weight]
    zones = [name for name in new if name in old and new[name].zone != old[name].zone]
    said = [_who(names, *verbs) for names, verbs in (
        (came, ("joins", "join")), (gone, ("leaves", "leave")),
        (other, ("has another weight", "have another weight")), (zones, ("is in another zone", "are in another zone")),
    ) if names]  # fmt: skip
    unit = "keys" if plan.replicas == 1 else "copies"
    told = f"{'; '.join(said)}. " if said else "No node changes. "
    if not plan.steps:
        return f"{told}Nothing moves."
    told += f"{percent(plan.moved)} of the {unit} move"
    sources, targets = {loser(step) for step in plan.steps}, {step.target for step in plan.steps}
    if len(targets) == 1:
        told += f", all to {min(targets)}"
    if len(sources) == 1:
        told += f", all from {min(sources)}"
    told += f"; {plan.ideal:.1%} would if shares followed the weights exactly. "
    changed = {*came, *gone, *other, *zones}
    idle = sum(step.size for step in plan.steps
               if step.target not in changed and loser(step) not in changed)  # fmt: skip
    if not idle:
        return told + "Nothing moves between nodes that did not change."
    part = idle / sum(step.size for step in plan.steps)
    return told + f"{percent(part)} of that is between nodes that did not change."


def percent(part: float) -> str:
    return f"{part:.1%}" if part >= 0.0005 or not part else "under 0.1%"


def _who(names: Sequence[str], one: str, many: str) -> str:
    if len(names) == 1:
        return f"{names[0]} {one}"
    if len(names) <= 3:
        return f"{', '.join(names[:-1])} and {names[-1]} {many}"
    return f"{len(names)} nodes {many}"


def loser(step: Step) -> str:
    """Whose share becomes smaller; where there is one copy more than before, who it is copied from."""
    return step.source if step.drop is None else step.drop
