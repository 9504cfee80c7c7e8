"""Claims about runs among servers that fail: what waits, what is left out, what is told, what is once."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from mlflow.exceptions import MlflowException, RestException

from flows import notices
from flows.compress import worth_retrying
from flows.gpu_slots import slots_for, slots_of
from flows.pages import Pages
from flows.profile_workspace import workspace_of
from flows.server_rules import SILENCE, zombie_rule
from flows.time_limits import HOURS, flow_seconds
from flows.webhook_address import ALLOW_LOCAL
from tasks import once as once_module
from tasks.fresh_data import new_videos, seed_of, this_week
from tasks.once import once
from tasks.rescore import judge
from tasks.stage import StageOutcome, StageResult
from vdmini_core.artifacts import sha256_file, write_json
from vdmini_core.errors import DataError, OutsideError, ParamsError, VDMiniError
from vdmini_core.params import parse_params

PARAMS = parse_params({"register": {"name": "toy"}, "distill": {"workers": 2, "batch_size": 4}})


class Receiver(HTTPServer):
    """A webhook that answers by a list of codes, then 200, and keeps what it got."""

    def __init__(self, codes: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.codes, self.got = codes, list[dict[str, Any]]()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.codes.pop(0) if self.server.codes else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[int]], Receiver]]:
    started = []
    monkeypatch.setattr(notices, "PAUSES_S", (0.0, 0.0, 0.0))

    def start(codes: list[int]) -> Receiver:
        server = Receiver(codes)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(ALLOW_LOCAL, "1")
        monkeypatch.setenv(notices.WEBHOOK, f"http://127.0.0.1:{server.server_address[1]}/canary-token")
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_notice_is_sent_again_where_the_receiver_failed(receiver: Callable[[list[int]], Receiver]) -> None:
    server = receiver([503, 429])
    assert notices.notify("rolled-back", "toy: version 1 again", version="1")
    assert len(server.got) == 3
    assert server.got[-1] == {"text": "toy: version 1 again", "event": "rolled-back", "version": "1"}


def test_a_notice_that_nobody_takes_stops_nothing_and_does_not_tell_the_address(
    receiver: Callable[[list[int]], Receiver],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = receiver([404])
    assert not notices.notify("promoted", "x") and len(server.got) == 1
    for address in ("file:///etc/canary-token", "http://127.0.0.1:9/canary-token", "http://[canary-token"):
        monkeypatch.setenv(notices.WEBHOOK, address)
        assert not notices.notify("promoted", "x")
    monkeypatch.delenv(notices.WEBHOOK)
    assert not notices.notify("promoted", "x")
    said = capsys.readouterr().err
    assert said.count("not delivered") == 4 and "canary" not in said


def test_promotions_and_failures_are_told_refusals_are_not(receiver: Callable[[list[int]], Receiver]) -> None:
    server = receiver([])
    for outcome in ("keep", "promote"):
        made = StageOutcome({"outcome": outcome}, timing={"version": "7"})
        notices.promoted(PARAMS, StageResult("promote", Path(), made, (f"{outcome}: faster",), 1.0))
    flow_run = SimpleNamespace(name="red-fox", id="1234")
    state = SimpleNamespace(name="TimedOut", message="Scope timed out\n  secret details")
    notices.run_failed(SimpleNamespace(name="compress"), flow_run, state)
    first, second = server.got
    assert first["event"] == "promoted" and first["version"] == "7" and first["reasons"] == ["faster"]
    assert second["text"] == "compress run red-fox: TimedOut: Scope timed out"


def test_a_page_is_tried_again_then_left_out_and_nothing_waits_twice() -> None:
    tries = []

    def away(value: int) -> int:
        tries.append(value)
        if len(tries) < 3 or value < 0:
            raise httpx.ConnectError("refused")
        return value

    pages = Pages(pauses_s=(0.0, 0.0))
    assert pages.put(away, 5) == 5 and len(tries) == 3
    assert pages.put(away, -1) is None and len(tries) == 6
    assert pages.put(away, -1) is None and len(tries) == 7, "given up: asked once"
    with pytest.raises(ValueError, match="ours"):
        pages.put(_mistake)


def _mistake() -> None:
    raise ValueError("ours")


def test_what_the_outside_broke_is_tried_again_mistakes_are_not() -> None:
    def retried(error: Exception) -> bool:
        def result() -> None:
            raise error

        return worth_retrying(None, None, SimpleNamespace(result=result))

    assert retried(OutsideError("lost the turn")) and retried(ConnectionError())
    assert not retried(VDMiniError("no such profile")) and not retried(DataError("too few clips"))


def lost_answer() -> MlflowException:
    return MlflowException("API request failed with exception: Remote end closed connection")


def refusal() -> RestException:
    return RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no"})


def test_what_was_made_although_the_answer_was_lost_is_not_made_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(once_module, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    made: list[str] = []

    def send() -> str:
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0", "the client itself sends it once"
        made.append("version")
        raise lost_answer()

    def look() -> str | None:
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
        return made[0] if made else None

    assert once(send, look) == "version" and len(made) == 1
    tries: list[int] = []

    def late() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "x"})
        return len(tries)

    assert once(late, lambda: None) == 3
    tries.clear()
    with pytest.raises(RestException):
        once(lambda: _raise(refusal(), tries), lambda: None)
    assert len(tries) == 1, "what is refused stays refused"
    tries.clear()
    with pytest.raises(MlflowException):
        once(lambda: _raise(lost_answer(), tries), lambda: None)
    assert len(tries) == 3


def _raise(error: Exception, tries: list[int]) -> str:
    tries.append(1)
    raise error


def test_slots_are_held_for_gpus_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slots_of("distill", parse_params({"base": {"device": "cpu"}})) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = {stage: slots_of(stage, PARAMS) for stage in ("prepare", "teacher", "distill", "evaluate")}
    assert found == {"prepare": 0, "teacher": 1, "distill": 1, "evaluate": 1}, "two workers share one GPU"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert slots_of("distill", PARAMS) == 2, "one each on a cluster"
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with slots_for("distill", PARAMS):  # no server: nothing to ask
        pass


def test_time_limits_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flow_seconds(2) == 7200
    monkeypatch.setenv(HOURS, "0.5")
    assert flow_seconds(2) == 1800
    for wrong in ("soon", "0", "-1", "nan", "inf"):
        monkeypatch.setenv(HOURS, wrong)
        with pytest.raises(ParamsError, match="a number above 0"):
            flow_seconds(2)


def test_the_rule_against_zombies_waits_longer_than_a_server_is_away() -> None:
    rule = json.loads(zombie_rule(webhook_id="6f2b8f9a-3f0e-4e1b-9a63-0f4f3f1f0c11").model_dump_json())
    crash, call = rule["actions"]
    assert (crash["type"], crash["state"], call["type"]) == (
        "change-flow-run-state",
        "CRASHED",
        "call-webhook",
    )
    assert json.loads(call["payload"])["event"] == "run-lost"
    trigger = rule["trigger"]
    assert trigger["posture"] == "Proactive" and trigger["after"] == ["prefect.flow-run.heartbeat"]
    assert {"prefect.flow-run.heartbeat", "prefect.flow-run.Completed"} <= set(trigger["expect"])
    assert SILENCE.total_seconds() >= 4 * 180  # of Prefect's heartbeats


@pytest.mark.parametrize(
    ("fresh", "low", "high", "verdict"),
    [
        (10.0, 8.0, 12.0, "within"),
        (12.0, 8.0, 12.0, "within"),
        (12.1, 8.0, 12.0, "fell"),
        (7.9, 8.0, 12.0, "better"),
        (10.4, None, None, "within"),  # the tolerance alone
        (10.6, None, None, "fell"),
        (9.4, None, None, "better"),
    ],
)
def test_a_score_is_held_against_the_recorded_interval(
    fresh: float, low: float | None, high: float | None, verdict: str
) -> None:
    assert judge(fresh, 10.0, low, high, 0.05) == verdict


def test_a_week_is_a_seed() -> None:
    assert seed_of("2026-W48") == 202648 and seed_of(this_week()) > 202600
    for wrong in ("2026-48", "2026-W54", "2026-W00", "W48", ""):
        with pytest.raises(ParamsError, match="ISO week"):
            seed_of(wrong)


def test_videos_the_version_had_are_no_fresh_data(tmp_path: Path) -> None:
    root, videos = tmp_path / "proj", tmp_path / "videos"
    (videos / "a").mkdir(parents=True)
    for name, size in (("old.mp4", 10), ("a/old.mp4", 11)):
        (videos / name).write_bytes(b"x" * size)
    (videos / "captions.csv").write_text("file,prompt\n")
    kept = root / "artifacts" / "prepare" / "sources.json"
    kept.parent.mkdir(parents=True)
    write_json(kept, [{"path": n, "bytes": (videos / n).stat().st_size} for n in ("old.mp4", "a/old.mp4")])
    recipe = {"outputs": {"prepare": {"sources.json": sha256_file(kept)}}}
    client: Any = SimpleNamespace(
        search_runs=lambda *a, **k: [], get_experiment_by_name=lambda name: SimpleNamespace(experiment_id="1")
    )
    with pytest.raises(DataError, match="no new videos"):
        new_videos(root, client, recipe, videos, tmp_path / "fresh")
    (videos / "renamed.mp4").write_bytes(b"x" * 10)
    (videos / "new.mp4").write_bytes(b"x" * 12)
    (videos / "new.txt").write_text("a ball")
    out = new_videos(root, client, recipe, videos, tmp_path / "fresh")
    assert sorted(path.name for path in out.rglob("*")) == ["captions.csv", "new.mp4", "new.txt"]
    kept.write_text("[]")  # the project went on to other data
    with pytest.raises(DataError, match="not known which videos"):
        new_videos(root, client, recipe, videos, tmp_path / "fresh")


def test_a_deployment_that_only_looks_makes_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(VDMiniError, match="`mini` has not been run"):
        workspace_of(tmp_path, "mini")
    assert not list(tmp_path.iterdir())
    assert workspace_of(tmp_path, None) == tmp_path
