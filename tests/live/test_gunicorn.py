"""An application server that makes its client, and even takes a lock, before it forks: ``gunicorn --preload``."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from onlooker import Onlooker
from servers import eventually, free_port

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

APP = """
import json, os
import holdfast

hf = holdfast.connect(os.environ["ENGINE"])
boot = hf.lock("boot", ttl_s=3.0).acquire()  # by the master, for as long as it lives


def app(environ, start_response):
    with hf.lock("counter", timeout_s=20) as lease:
        cell = hf.cell("count").open(lease)
        count = int(cell.value or 0)
        cell.put(str(count + 1).encode())
    start_response("200 OK", [("Content-Type", "application/json")])
    seen = {"count": count, "pid": os.getpid(), "inbox": hf.session.world.inbox, "boot": boot.state}
    return [json.dumps(seen).encode()]
"""


class Gunicorn:
    """Three workers under one master."""

    def __init__(self, folder: Path, url: str, *options: str) -> None:
        (folder / "preloaded.py").write_text(APP)
        self.port = free_port()
        command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "3", "--bind", f"127.0.0.1:{self.port}",
                   "--graceful-timeout", "10", *options, "preloaded:app"]  # fmt: skip
        self.log = (folder / "gunicorn.log").open("w+")
        environment = {**os.environ, "ENGINE": url, "HOME": str(folder)}  # newer ones put a socket there
        self.master = subprocess.Popen(command, cwd=folder, env=environment, stdout=self.log, stderr=self.log)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            self.get()
            return True
        assert self.master.poll() is None, "it did not start"
        return False

    def get(self, _: int = 0) -> dict[str, Any]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", "/")
            response = connection.getresponse()
            assert response.status == 200
            answer: dict[str, Any] = json.loads(response.read())
            return answer

    def close(self) -> None:
        if self.master.poll() is None:
            self.master.terminate()
            self.master.wait(30)
        self.log.close()


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[..., Gunicorn]]:
    started: list[Gunicorn] = []

    def start(*options: str) -> Gunicorn:
        started.append(Gunicorn(tmp_path, url, *options))
        eventually(started[-1].answers, 40)
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.parametrize(
    "workers",
    [["--worker-class", "sync"], ["--worker-class", "gthread", "--threads", "3"], ["--worker-class", "gevent"]],
)
def test_workers_of_a_preloaded_application_take_turns_and_the_master_keeps_its_lock(
    url: str, start: Callable[..., Gunicorn], onlooker: Callable[[str], Onlooker], workers: list[str]
) -> None:
    gunicorn, view = start(*workers), onlooker(url)
    (boot,) = view.holders("boot")
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(gunicorn.get, range(60))]
        os.kill(answers[0]["pid"], signal.SIGKILL)  # the master forks another, in the middle of its life
        answers += pool.map(gunicorn.get, range(20))
    counts = sorted(answer["count"] for answer in answers)
    assert counts == list(range(counts[0], counts[0] + 80))  # each saw the one before it, and no two the same
    served = {(answer["pid"], answer["inbox"]) for answer in answers}
    assert len(served) == len({pid for pid, _ in served}) == len({inbox for _, inbox in served}) > 1
    assert {answer["boot"] for answer in answers} == {"LOST"}  # in each worker
    ends_s = view.claims("boot")[0].remaining_s
    eventually(lambda: view.claims("boot")[0].remaining_s > ends_s)  # the master still renews it
    assert view.holders("boot") == [boot]
    gunicorn.close()
    assert gunicorn.master.returncode == 0
    assert view.claims("boot") == ()  # given back as the master ended
