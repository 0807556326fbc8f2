"""A fresh engine of each kind that several processes can share, for the tests of ``each`` and ``demo``."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'engine.db'}"
    else:
        with redis_server(tmp_path) as server:
            yield server


@contextlib.contextmanager
def redis_server(folder: Path) -> Generator[str]:
    if SERVER is None:
        pytest.skip("no redis-server here")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = subprocess.Popen([SERVER, *options], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while not listens(port):
            assert time.monotonic() < end
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
