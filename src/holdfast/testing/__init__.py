"""For your own tests: a client on a fresh memory engine, a clock to turn, leases to lose, an engine to fail.

With pytest the fixtures `hf` (blocking) and `ahf` (asyncio) are there by themselves; elsewhere use `client()` and
`aio_client()`. The guide is docs/testing.md. pytest loads this module in every run, so it loads nothing by itself.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it, without importing typing
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..hooks import Hook
    from .tasks import AsyncFakeClient
    from .threads import FakeClient

__all__ = ["aio_client", "client"]


def client(*, patience_s: float = 5.0, hooks: Sequence[Hook] = ()) -> FakeClient:
    """A blocking client on a memory engine of its own, in a time that stands still until its ``clock`` is turned."""
    from .threads import new_client

    return new_client(patience_s, hooks)


def aio_client(*, patience_s: float = 5.0, hooks: Sequence[Hook] = ()) -> AsyncFakeClient:
    """The same for asyncio. It may be made outside of a running loop."""
    from .tasks import new_client

    return new_client(patience_s, hooks)


try:
    import pytest
except ModuleNotFoundError:
    pass  # the functions above do without it
else:

    @pytest.fixture
    def hf() -> Iterator[FakeClient]:
        """A blocking holdfast client on a memory engine of its own, with a clock to turn."""
        with client() as made:
            yield made

    @pytest.fixture
    def ahf() -> AsyncFakeClient:
        """An asyncio holdfast client on a memory engine of its own, with a clock to turn. Runs in whatever loop."""
        return aio_client()
