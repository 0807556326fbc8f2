"""What `holdfast.testing` promises to users' own tests."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast import AcquireTimeout, Adaptive, Backoff, LeaseLost, Misuse, Poll, Spin, Unavailable, testing
from holdfast.hooks import Event
from holdfast.testing.tasks import AsyncFakeClient
from holdfast.testing.threads import FakeClient

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client() -> Iterator[FakeClient]:
    with testing.client() as made:
        yield made


def run_pytest(tmp_path: Path, text: str, *plugins: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_user.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    options = [option for plugin in ("holdfast.testing", *plugins) for option in ("-p", plugin)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options],
        check=False,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_the_guide_is_a_test_file_that_passes(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "testing.md").read_text()
    blocks = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    done = run_pytest(tmp_path, blocks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{blocks.count('def test_')} passed" in done.stdout


def test_the_fixtures_work_under_the_plugin_of_anyio(tmp_path: Path) -> None:
    text = """
import anyio, pytest, holdfast

pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"

async def test_time_goes_by(ahf):
    async with ahf.lock("x") as lease:
        await ahf.clock.advance(100)
        assert lease.is_held
        with pytest.raises(holdfast.AcquireTimeout):
            await ahf.other().lock("x").acquire(timeout_s=5)
"""
    done = run_pytest(tmp_path, text, "anyio.pytest_plugin")
    assert done.returncode == 0, done.stdout + done.stderr


def test_loading_the_plugin_loads_nothing_of_ours_nor_asyncio() -> None:
    program = """
import sys
import pytest
before = set(sys.modules)
import holdfast.testing
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    ours = {name for name in done.stdout.split() if name.startswith("holdfast")}
    assert ours == {"holdfast", "holdfast.testing"}
    assert "asyncio" not in done.stdout.split()


def test_time_stands_still_by_itself(client: FakeClient) -> None:
    before = client.clock.now()
    with client.lock("x", ttl_s=0.01) as lease:
        time.sleep(0.05)
        assert lease.is_held
    assert client.clock.now() == before


@pytest.mark.parametrize("strategy", [Adaptive(), Spin(), Poll(0.1), Backoff()])
def test_every_strategy_waits_in_fake_time(client: FakeClient, strategy: Poll) -> None:
    client.other().lock("x").acquire()
    before = client.clock.now()
    with pytest.raises(AcquireTimeout):
        client.lock("x", strategy=strategy, timeout_s=2).acquire()
    assert client.clock.now() == pytest.approx(before + 2)


def test_a_holder_that_does_not_renew_is_followed_when_its_time_is_over(client: FakeClient) -> None:
    before = client.clock.now()
    client.other().lock("x", renew=False, ttl_s=15).acquire()
    client.lock("x").acquire(timeout_s=60)
    assert before + 14.5 < client.clock.now() < before + 15.5


def test_renewals_come_at_a_third_of_the_lease() -> None:
    kinds: list[str] = []
    with testing.client(hooks=[lambda event: kinds.append(event.kind)]) as hf, hf.lock("x", ttl_s=15):
        hf.clock.advance(4.9)
        assert kinds == ["held"]
        hf.clock.advance(0.2)
        assert kinds == ["held", "renewed"]
        hf.clock.advance(50)
        assert kinds == ["held"] + ["renewed"] * 11


def test_the_same_test_takes_the_same_steps_every_time() -> None:
    def steps() -> list[tuple[str, str, int, float]]:
        seen: list[tuple[str, str, int, float]] = []
        with testing.client(hooks=[lambda e: seen.append((e.kind, e.turnstile.address, e.token, e.elapsed_s))]) as hf:
            first = hf.lock("a", ttl_s=3).acquire()
            hf.semaphore("b", 2, ttl_s=7).acquire()
            with hf.engine.unavailable(op="renew", times=3):
                hf.clock.advance(20)
            hf.lose(first)
            hf.other().lock("a").acquire()
            hf.clock.advance(20)
        return seen

    assert steps() == steps()


def test_the_clock_turns_whatever_is_collected_meanwhile() -> None:
    """In Pythons with gh-106883, a collection in the middle of a look at the threads' frames never ended."""
    program = """
import gc, threading
from holdfast import testing

class Cycle: ...

with testing.client() as hf:
    hf.lock("x").acquire()
    for threshold in range(1, 80):
        cycle = Cycle()
        cycle.own, cycle.local = cycle, threading.local()
        cycle.local.x = 1
        del cycle
        gc.set_threshold(threshold)
        hf.clock.advance(1)
        gc.set_threshold(700)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)


def test_threads_wake_in_fake_time() -> None:
    gave_up: list[float] = []

    def note(event: Event) -> None:
        if event.kind == "gave_up":
            gave_up.append(hf.clock.now())

    with testing.client(hooks=[note]) as hf:
        hf.lock("x").acquire()
        start = hf.clock.now()

        def wait(timeout_s: float) -> None:
            with pytest.raises(AcquireTimeout):
                hf.lock("x").acquire(timeout_s)

        threads = [threading.Thread(target=wait, args=(timeout_s,)) for timeout_s in (5, 20, 80)]
        for thread in threads:
            thread.start()
        hf.clock.advance(30, waiters=3)
        assert gave_up == [start + 5, start + 20]
        assert threads[2].is_alive()
        hf.clock.advance(50)
        assert gave_up == [start + 5, start + 20, start + 80]
        for thread in threads:
            thread.join()


def test_a_wait_beside_a_busy_thread_gives_it_a_real_moment_first(client: FakeClient) -> None:
    """Else the five seconds would be over before the other thread could let go."""
    other = client.other()
    held = threading.Event()

    def hold() -> None:
        with other.lock("x"):
            held.set()
            time.sleep(0.05)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    before = client.clock.now()
    client.lock("x").acquire(timeout_s=5)
    thread.join()
    assert client.clock.now() == before


def test_closing_ends_the_wait_of_a_forgotten_thread(client: FakeClient) -> None:
    client.lock("x").acquire()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            client.other().lock("x").acquire()
        except Misuse as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    client.clock.advance(0, waiters=1)
    client.close()
    thread.join()
    assert "closed" in str(errors[0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda hf: hf.clock.advance(-1), "forward"),
        (lambda hf: hf.engine.unavailable(op="renw"), "renew"),
        (lambda hf: hf.engine.unavailable(times=0), "times"),
    ],
)
def test_mistakes_in_a_script_are_refused(client: FakeClient, call: Callable[[FakeClient], object], says: str) -> None:
    with pytest.raises(Misuse, match=says):
        call(client)


def test_faults_come_as_often_as_ordered_and_before_or_after_the_deed(client: FakeClient) -> None:
    with client.lock("x") as lease:
        cell = client.cell("c").open(lease)
        client.engine.unavailable(times=1, op="put", done=True)
        assert cell.set("k", b"v", create=True) is True
        client.engine.unavailable(times=1, op="put")
        assert cell.set("k", b"w", create=True) is False
    client.engine.unavailable()
    with pytest.raises(Unavailable):
        client.cell("c").read()
    client.engine.available()
    assert client.cell("c").read().entries == {"k": b"v"}


def asyncio_test(scenario: Callable[[AsyncFakeClient], object]) -> None:
    async def run() -> None:
        async with testing.aio_client() as hf:
            await scenario(hf)  # type: ignore[misc]

    asyncio.run(run())


def test_on_asyncio_tasks_run_while_the_clock_is_turned() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        held = await hf.lock("x").acquire()
        told: list[str] = []
        held.on_lost(lambda: told.append("lost"))
        waiting = asyncio.create_task(hf.other().lock("x").acquire(timeout_s=60))
        await hf.clock.advance(59)
        assert held.wanted
        assert not waiting.done()
        hf.lose(held)
        await hf.clock.advance(0)
        assert told == ["lost"]
        assert (await waiting).token > held.token

    asyncio_test(scenario)


def test_on_asyncio_a_lease_ends_when_the_engine_is_gone_for_its_length() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        lease = await hf.lock("x", ttl_s=15).acquire()
        hf.engine.unavailable()
        await hf.clock.advance(14)
        assert lease.state == "UNSURE"
        await hf.clock.advance(1)
        hf.engine.available()
        with pytest.raises(LeaseLost):
            await lease.release()

    asyncio_test(scenario)


def test_on_asyncio_pauses_between_tries_turn_the_clock() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        hf.engine.unavailable(times=3, op="enter")
        before = hf.clock.now()
        await hf.lock("x").acquire()
        assert hf.clock.now() > before
        hf.engine.unavailable()
        with pytest.raises(Unavailable):
            await hf.lock("y").acquire()
        hf.engine.available()

    asyncio_test(scenario)
