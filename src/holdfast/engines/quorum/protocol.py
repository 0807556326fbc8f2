"""How a majority decides: who holds, under which token, and when a node that lost its memory counts again. No I/O.

Each operation is a *talk*: a generator that yields rounds (what to ask of which node, and when it has heard enough),
is sent the replies, and returns the outcome. The blocking link, the asyncio link and the model check drive the same
talks. The proof that tokens rise stands in docs/quorum.md; what a node does is scripts.py.

A reply is a node's own, an exception (it was not reached, or it refused), or None: not heard before the round was
over. ``Q`` is a node that sits out: it neither grants nor counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported
from ...model import NEVER_S, Standing, State

T = TypeVar("T")

Replies = Sequence[Any]

SPLIT_S = 0.03
"""At most this long, at random, pauses who shared the nodes with others so that nobody got a majority."""

POLL_S = 0.25
"""The first waiter looks about this often, the others ever less: signals may be lost, or name different waiters."""

ADMIT_S = 0.15
"""How long a call asks around for nodes that sit out, before it goes on without them."""

SITTING_OUT = b"Q"


class Round(NamedTuple):
    """One parallel round trip: what to ask, by node, whether the replies so far are enough to go on, and how long it
    may take of the time that its talk has."""

    bodies: Mapping[int, Any]
    enough: Callable[[Replies], bool]
    within_s: float = NEVER_S


Talk = Generator[Round, Replies, T]


def at_once(replies: Replies) -> bool:
    """Enough for what is sent and not waited for."""
    return True


def heard_from(asked: Iterable[int]) -> Callable[[Replies], bool]:
    """Enough once each of these has answered, or surely does not."""
    nodes = tuple(asked)

    def enough(replies: Replies) -> bool:
        return not open_for(replies, nodes)

    return enough


def _is_list(reply: Any) -> bool:
    return type(reply) is list


def parts(reply: Any) -> list[Any]:
    """A reply that is a list; an empty one where it is something else."""
    items: list[Any] = reply if _is_list(reply) else []
    return items


def majority(size: int) -> int:
    return size // 2 + 1


def is_answer(reply: Any) -> bool:
    return reply is not None and reply != SITTING_OUT and not isinstance(reply, Exception)


def answers(replies: Replies) -> int:
    return sum(map(is_answer, replies))


def open_for(replies: Replies, asked: Iterable[int]) -> int:
    """How many of the asked may still answer."""
    return sum(replies[node] is None for node in asked)


def need_majority(what: str, replies: Replies) -> None:
    """Raise where fewer than a majority have answered, with what each of the others said."""
    if answers(replies) < majority(len(replies)):
        raise no_majority(what, replies)


def no_majority(what: str, replies: Replies) -> HoldfastError:
    refusals = [reply for reply in replies if isinstance(reply, (Misuse, Unsupported))]
    if len(refusals) > len(replies) - majority(len(replies)):
        return refusals[0]
    said = list(dict.fromkeys(str(reply) for reply in replies if isinstance(reply, Exception)))
    resting = sum(reply == SITTING_OUT for reply in replies)
    if resting:
        said.append(f"{resting} lost their memory and sit out the longest lease")
    if silent := sum(reply is None for reply in replies):
        said.append(f"{silent} did not answer in time")
    kind = OutcomeUnknown if silent or any(isinstance(reply, OutcomeUnknown) for reply in replies) else Unavailable
    return kind(f"{answers(replies)} of {len(replies)} nodes served {what}, a majority must: {'; '.join(said)}")


def acks(replies: Replies) -> int:
    return sum(reply == 1 for reply in replies)


def everywhere(size: int, body: Any) -> dict[int, Any]:
    return dict.fromkeys(range(size), body)


# -- taking


class Asks(Protocol):
    """What one attempt of one claim asks of a node."""

    @property
    def take(self) -> Any:
        """Grant: ``G number wanted`` newly, ``H …`` if it has it already; else ``W left_ms place``, or ``B``."""
        ...

    @property
    def undo(self) -> Any:
        """Give back what this very attempt has, and wait again if it waits."""
        ...

    def mark(self, number: int) -> Any:
        """Raise the counter and the claim's number, if this very attempt still holds: ``1``, else ``0``."""
        ...


def granted(replies: Replies) -> dict[int, int]:
    """The numbers that nodes gave to this claim."""
    found: dict[int, int] = {}
    for node, reply in enumerate(replies):
        if type(reply) is bytes and reply[:1] in (b"G", b"H"):
            found[node] = int(reply[2:].split(b" ")[0])
    return found


def agreed(numbers: Iterable[int], size: int) -> int | None:
    """The highest number, if a majority returned just that: any later majority meets it there."""
    numbers = list(numbers)
    highest = max(numbers, default=0)
    return highest if numbers.count(highest) >= majority(size) else None


def is_decided(replies: Replies) -> bool:
    """A majority granted, or none can any more and it is known why."""
    size = len(replies)
    numbers = granted(replies)
    if len(numbers) >= majority(size):
        return True
    may_come = open_for(replies, range(size))
    if len(numbers) + may_come >= majority(size):
        return False
    return answers(replies) >= majority(size) or answers(replies) + may_come < majority(size)


def take(size: int, asks: Asks, waits: bool, random: Callable[[], float]) -> Talk[Standing]:
    """Try once to hold: grant, agree on the token, or give everything back."""
    replies = yield Round(everywhere(size, asks.take), is_decided)
    numbers, answered = granted(replies), answers(replies)
    if len(numbers) >= majority(size):
        token = agreed(numbers.values(), size)
        if token is None:
            token = yield from write_back(size, asks, max(numbers.values()))
        if token is not None:
            wanted = any(replies[node][-2:] == b" 1" for node in numbers)
            return Standing(State.ADMITTED, token, wanted)
        replies = [None if node in numbers else reply for node, reply in enumerate(replies)]
    # unlock everywhere: also where a grant may still be on its way
    doubtful = [node for node, reply in enumerate(replies) if reply is None or node in numbers]
    doubtful += [node for node, reply in enumerate(replies) if isinstance(reply, OutcomeUnknown)]
    if doubtful:
        sure = [node for node in doubtful if node in numbers]
        yield Round(dict.fromkeys(doubtful, asks.undo), heard_from(sure))
    if sum(reply == b"B" for reply in replies) > size - majority(size):
        return Standing(State.BURIED)
    if answered < majority(size):
        raise no_majority("enter", replies)
    if not waits:
        return Standing(State.BUSY)
    return Standing(State.WAITING, look_in_s=look_in_s(replies, random))


def write_back(size: int, asks: Asks, highest: int) -> Talk[int | None]:
    """Before holding under the highest number, have it stand on a majority on which this attempt still holds."""

    def enough(replies: Replies) -> bool:
        return acks(replies) >= majority(size) or acks(replies) + open_for(replies, range(size)) < majority(size)

    replies = yield Round(everywhere(size, asks.mark(highest)), enough)
    return highest if acks(replies) >= majority(size) else None


def look_in_s(replies: Replies, random: Callable[[], float]) -> float:
    """When a waiter should try again: when a majority may be free, or a signal may have been missed."""
    size = len(replies)
    left_s, place = [0.0] * (size - answers(replies)), 0
    for reply in replies:
        if type(reply) is bytes and reply[:1] == b"W":
            _, left_ms, at = reply.split(b" ")
            left_s.append(int(left_ms) / 1000)
            place = max(place, int(at))
        elif is_answer(reply):
            left_s.append(0.0)
    free_in_s = sorted(left_s)[majority(size) - 1]
    if free_in_s <= 0:  # it is as good as free: several tried at once, and each got a part
        return random() * SPLIT_S
    return min(free_in_s + random() * SPLIT_S * (1 + place), POLL_S * (1 + place) * (0.5 + random()))


# -- giving back


def leave(size: int, body: Any) -> Talk[bool]:
    """Go everywhere; True unless a majority says that the claim was not there."""

    def enough(replies: Replies) -> bool:
        there, gone = (sum(reply == outcome for reply in replies) for outcome in (1, 0))
        if max(there, gone) >= majority(size):
            return True
        return answers(replies) + open_for(replies, range(size)) < majority(size)

    replies = yield Round(everywhere(size, body), enough)
    need_majority("leave", replies)
    gone: int = sum(reply == 0 for reply in replies)
    return gone < majority(size)


# -- renewing


class Kept(Protocol):
    """What a renewal asks of a node to give a claim back to it that it lost."""

    def regrant(self, token: int, strict: bool) -> Any:
        """Only together with the token: ``1`` where nobody can have been granted a later one, else ``0``."""
        ...


def renew(size: int, body: Any, claims: Sequence[tuple[str, Kept, int]]) -> Talk[dict[str, Standing]]:
    """Extend what stands: each claim's id, how to ask for it again, and its token, 0 where that is not known here.

    By claim id; who is not in the outcome is not known, since too few answered. A node answers for each claim
    ``H number wanted``, ``W left_ms place``, or ``- free 0``.
    """

    def enough(replies: Replies) -> bool:
        if answers(replies) + open_for(replies, range(size)) < majority(size):
            return True
        if answers(replies) < majority(size):
            return False
        return all(_is_settled(_votes(replies, at)) for at in range(len(claims)))

    replies = yield Round(everywhere(size, body), enough)
    need_majority("renew", replies)
    found: dict[str, Standing] = {}
    for at, (id, kept, token) in enumerate(claims):
        standing = yield from _renewed(_votes(replies, at), kept, token)
        if standing is not None:
            found[id] = standing
    if not found:
        raise Unavailable("too few nodes answered to say whether the lease stands")
    return found


def _votes(replies: Replies, at: int) -> list[Any]:
    """What each node says of one claim, in three words."""
    return [reply.split(b" ")[3 * at : 3 * at + 3] if is_answer(reply) else reply for reply in replies]


def _held(votes: Replies) -> dict[int, int]:
    return {node: int(parts(vote)[1]) for node, vote in enumerate(votes) if parts(vote)[:1] == [b"H"]}


def _is_settled(votes: Replies) -> bool:
    size, numbers = len(votes), _held(votes)
    if _common(numbers, size):
        return True
    return len(numbers) + open_for(votes, range(size)) < majority(size) or None not in votes


def _common(numbers: Mapping[int, int], size: int) -> int:
    """The number that a majority has, which is the claim's token; 0 where there is none.

    What a single node has may come from a request of ours that arrived late, when others had been there.
    """
    counts = Counter(numbers.values())
    return next((number for number, count in counts.items() if count >= majority(size)), 0)


def _renewed(votes: Replies, kept: Kept, token: int) -> Talk[Standing | None]:
    size, numbers = len(votes), _held(votes)
    free = [node for node, vote in enumerate(votes) if parts(vote)[:2] == [b"-", b"1"]]
    wanted = any(votes[node][2] == b"1" for node in numbers)
    if common := _common(numbers, size):
        behind = [node for node, number in numbers.items() if number < common]
        if free or behind:  # nobody can be ahead of us: let more nodes know
            yield Round(dict.fromkeys(free + behind, kept.regrant(common, strict=False)), at_once)
        return Standing(State.ADMITTED, common, wanted)
    unknown = size - answers(votes)
    waits = [parts(vote) for vote in votes if parts(vote)[:1] == [b"W"]]
    if waits and not numbers:
        return Standing(State.WAITING, look_in_s=min(int(vote[1]) for vote in waits) / 1000 or SPLIT_S)
    same = [node for node, number in numbers.items() if number == token]
    if same:
        spare = free + [node for node, number in numbers.items() if number < token]
        if len(same) + len(spare) >= majority(size):

            def enough(heard: Replies) -> bool:
                return len(same) + acks(heard) >= majority(size) or not open_for(heard, spare)

            heard = yield Round(dict.fromkeys(spare, kept.regrant(token, strict=True)), enough)
            if len(same) + acks(heard) >= majority(size):
                return Standing(State.ADMITTED, token, wanted)
            unknown += sum(not is_answer(heard[node]) for node in spare)
            same += [node for node in spare if heard[node] == 1]
    return Standing(State.GONE) if len(same) + unknown < majority(size) else None


# -- the nodes themselves


def tell(what: str, size: int, body: Any) -> Talk[None]:
    """Have a majority do it."""

    def enough(replies: Replies) -> bool:
        heard = answers(replies)
        return heard >= majority(size) or heard + open_for(replies, range(size)) < majority(size)

    need_majority(what, (yield Round(everywhere(size, body), enough)))


class NodeState(NamedTuple):
    """What a node says of itself. ``since``: when the loss of its memory was first noticed, as it wrote it down."""

    counts: bool
    highest: int
    longest_ms: float
    since: bytes
    noticed_ms_ago: float

    @classmethod
    def of(cls, reply: Sequence[Any]) -> NodeState:
        counts, highest, longest_ms, since, noticed_ms_ago = reply
        return cls(counts == 1, int(highest), float(longest_ms), since, float(noticed_ms_ago))


class Admits(Protocol):
    @property
    def state(self) -> Any: ...

    def admit(self, since: bytes, highest: int, longest_ms: float, whole: bool) -> Any: ...


def admit(size: int, asks: Admits, known_ms: float) -> Talk[None]:
    """Let nodes that lost their memory count again: once all leases that they may have forgotten are over, and with
    the highest number that a majority has given out. Where a majority knows nothing, the quorum is new."""

    def enough(replies: Replies) -> bool:
        counts = [parts(reply)[0] == 1 for reply in replies if parts(reply)]
        return None not in replies or (counts.count(True) >= majority(size) and False in counts)

    replies = yield Round(everywhere(size, asks.state), enough, ADMIT_S)
    states = {node: NodeState.of(parts(reply)) for node, reply in enumerate(replies) if parts(reply)}
    sure = [state for state in states.values() if state.counts]
    forgot = {node: state for node, state in states.items() if not state.counts}
    if not forgot or len(states) < majority(size):
        return
    if len(sure) < majority(size) and size - len(forgot) >= majority(size):
        return  # a majority may know, and could not be asked
    told = sure if len(sure) >= majority(size) else list(states.values())
    highest = max(state.highest for state in told)
    longest_ms = max(known_ms, *(state.longest_ms for state in told))
    whole = highest == 0  # nothing was ever here that could be missing
    ready = {
        node: asks.admit(state.since, highest, longest_ms, whole)
        for node, state in forgot.items()
        if state.noticed_ms_ago >= longest_ms * 1.02
    }
    if ready:
        yield Round(ready, heard_from(ready), ADMIT_S)
