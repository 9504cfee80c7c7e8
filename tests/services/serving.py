"""A server process for one test, and what a served model answers."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.flows.conftest import environment
from vdmini_core.data.video import read_video


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: list[str], health: str, folder: Path, **extra: str) -> Iterator[None]:
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(**extra), stdout=log, stderr=log)
        try:
            _wait_for(health, process, folder / "server.log")
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def post(url: str, data: dict) -> list[dict]:
    request = urllib.request.Request(url, json.dumps(data).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def videos_served(uri: str, store: str, folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """What `mlflow models serve` answers to posted rows: a video each, base64."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", uri]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", url.rsplit(":", 1)[1]]
    with server(command, f"{url}/health", folder, MLFLOW_TRACKING_URI=store):
        answer: Any = post(f"{url}/invocations", {"dataframe_records": rows})
    return [row["video"] for row in answer["predictions"]]


def frames_of(mp4: str, path: Path) -> tuple[int, ...]:
    """Shape of a posted video, read as any player reads it."""
    path.write_bytes(base64.b64decode(mp4))
    return read_video(path)[0].shape
