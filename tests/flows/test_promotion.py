"""Claims about moving aliases: one champion at a time, nothing lost in a kill, back in one command."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.tracking import MlflowClient

from tasks import promote
from tasks.decision_report import FORCED_TAG, keep_report, readable
from tasks.promote import _question, promote_candidate
from tasks.promotion_history import Move, account, history, move_champion
from tasks.register import _point_at
from tasks.registry import ROLLED_BACK_TAG, version_by_alias
from tasks.registry_lock import PREFIX, Turn, turn_of
from tasks.rollback import roll_back
from tests.flows.promotion_race import ROUNDS, RULES, die_at_work, promote_in_step
from tests.unit.test_gate import measured
from vdmini_core.artifacts import write_json
from vdmini_core.errors import ModelError, VDMiniError
from vdmini_core.params import Params, PromoteParams


def add_version(client: MlflowClient, fvd: float, run_id: str | None = None, **changes: Any) -> str:
    """A registered version with the evidence of a student, and no files."""
    made = measured(fvd - 0.1, fvd + 0.1)
    evidence = {"metrics": made.metrics, "speedup": 1.5, "passport": made.passport} | changes
    tags = {"vdmini.evidence": json.dumps(evidence), "vdmini.checks": '{"unsafe": [], "generates": true}'}
    tags |= {"vdmini.teacher": "f00d", "vdmini.plan_sha256": "91a4", "vdmini.data": "da7a"}
    tags |= {"vdmini.code": "c0de"}
    return str(client.create_model_version("toy", "s3://nowhere/student", run_id, tags=tags).version)


def set_candidate(client: MlflowClient, version: str, alias: str = "candidate") -> None:
    client.set_registered_model_alias("toy", alias, version)


def champion(client: MlflowClient, alias: str = "champion") -> str | None:
    found = version_by_alias(client, "toy", alias)
    return None if found is None else str(found.version)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one model and no version: to lay out the tables of a new one takes MLflow seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").create_registered_model("toy")
    return path


@pytest.fixture
def client(empty_store: Path, tmp_path: Path) -> MlflowClient:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")


def race(uri: str, counter: Path, rounds: int = ROUNDS) -> None:
    """Two processes: both ask for the same seat, each with a better student of its own."""
    counter.write_text("0")
    client = MlflowClient(uri)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(3), context.Queue()
    racers = [
        context.Process(target=promote_in_step, args=(uri, alias, counter, barrier, answers, rounds))
        for alias in ("left", "right")
    ]
    for racer in racers:
        racer.start()
    fvd = 1000.0
    for number in range(rounds):
        before = champion(client)
        # Equally good: whoever comes first wins, the other one must have been judged against the winner.
        mine = [add_version(client, fvd - number) for _ in racers]
        for alias, version in zip(("left", "right"), mine, strict=True):
            set_candidate(client, version, alias)
        barrier.wait(timeout=300)
        barrier.wait(timeout=300)
        assert sorted(answers.get(timeout=60) for _ in racers) == ["keep", "promote"]
        assert champion(client) in mine
        assert champion(client, "previous") == before
    for racer in racers:
        racer.join(timeout=60)
        assert racer.exitcode == 0
    assert counter.read_text() == str(2 * rounds)
    moves = history(client, "toy")
    assert [move.number for move in moves] == list(range(1, rounds + 1))
    assert [move.before for move in moves] == [None, *(move.after for move in moves[:-1])]
    assert {move.state for move in moves} == {"done"}
    assert not [tag for tag in client.get_registered_model("toy").tags if tag.startswith(PREFIX)]


def test_two_promotions_at_once_give_one_champion_and_a_whole_history(
    client: MlflowClient, tmp_path: Path
) -> None:
    race(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "counter", rounds=5)  # 20 on the servers


def test_the_turn_of_a_killed_process_ends_with_it(client: MlflowClient, tmp_path: Path) -> None:
    dead = multiprocessing.get_context("spawn").Process(
        target=die_at_work, args=(f"sqlite:///{tmp_path / 'mlflow.db'}",)
    )
    dead.start()
    dead.join(timeout=60)
    assert [tag for tag in client.get_registered_model("toy").tags if tag.startswith(PREFIX)]
    started = time.monotonic()
    with turn_of(client, "toy"):
        assert time.monotonic() - started < 10  # no lease to wait for: it was a process of this machine


def test_one_of_another_machine_is_passed_over_after_its_lease(client: MlflowClient) -> None:
    lost = {"number": 1, "beat": 7, "owner": "elsewhere/0:1:2"}
    client.set_registered_model_tag("toy", PREFIX + "0", json.dumps(lost))
    with pytest.raises(VDMiniError, match="for too long"), turn_of(client, "toy", patience_s=0.2):
        pass
    started = time.monotonic()
    with turn_of(client, "toy", lease_s=0.5):
        assert time.monotonic() - started >= 0.5


def test_whoever_slept_through_the_lease_writes_nothing_more(client: MlflowClient) -> None:
    version = add_version(client, 9.0)
    with turn_of(client, "toy", lease_s=0.5) as turn:
        time.sleep(0.3)
        with pytest.raises(VDMiniError, match="lost the turn"):
            move_champion(turn, "promote", "champion", None, version, "better")
    assert history(client, "toy") == [] and champion(client) is None
    with turn_of(client, "toy") as turn:
        client.delete_registered_model_tag("toy", turn.key)  # as another one does who counts it as lost
        with pytest.raises(VDMiniError, match="lost the turn"):
            turn.check()


class Killed(BaseException):
    """Stands for SIGKILL between two writes."""


@pytest.mark.parametrize("survived", range(6))
def test_a_move_that_was_begun_is_finished_by_the_next_one(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    first, second = add_version(client, 9.0), add_version(client, 8.0)
    set_candidate(client, first)
    promote_candidate(client, "toy", "candidate", RULES)
    set_candidate(client, second)
    checks, check = [0], Turn.check

    def dying(turn: Turn) -> None:
        checks[0] += 1
        if checks[0] > survived:
            raise Killed
        check(turn)

    monkeypatch.setattr(Turn, "check", dying)
    if survived < 5:  # one before each of the five writes
        with pytest.raises(Killed):
            promote_candidate(client, "toy", "candidate", RULES)
    monkeypatch.setattr(Turn, "check", check)
    _, decision, _ = promote_candidate(client, "toy", "candidate", RULES)
    assert decision.promoted and champion(client) == second and champion(client, "previous") == first
    assert [(m.before, m.after, m.state) for m in history(client, "toy")] == [
        (None, first, "done"),
        (first, second, "done"),
    ]


def test_a_rollback_is_one_call_recorded_and_not_undone_by_the_gate(client: MlflowClient) -> None:
    first, second = add_version(client, 9.0), add_version(client, 8.0)
    for version in (first, second):
        set_candidate(client, version)
        assert promote_candidate(client, "toy", "candidate", RULES)[1].promoted
    move = roll_back(client, "toy", "champion", "green frames")
    assert (move.before, move.after, champion(client), champion(client, "previous")) == (
        *(second, first),
        *(first, second),
    )
    assert "green frames" in client.get_model_version("toy", second).description
    assert "green frames" in client.get_model_version("toy", first).description
    _, decision, _ = promote_candidate(client, "toy", "candidate", RULES)
    assert not decision.promoted and "rolled back: green frames" in decision.reasons[0]
    assert roll_back(client, "toy", "champion", "it was the player").after == second
    assert ROLLED_BACK_TAG not in client.get_model_version("toy", second).tags
    assert [(m.action, m.after) for m in history(client, "toy")] == [
        *(("promote", first), ("promote", second)),
        *(("rollback", first), ("rollback", second)),
    ]


def test_no_way_back_to_files_that_are_not_as_registered(client: MlflowClient) -> None:
    first, second = add_version(client, 9.0), add_version(client, 8.0)
    for version in (first, second):
        set_candidate(client, version)
        promote_candidate(client, "toy", "candidate", RULES)

    def look(version: Any) -> None:
        assert str(version.version) == first
        raise ModelError("it does not hold the files that were registered")

    with pytest.raises(ModelError, match="does not hold"):
        roll_back(client, "toy", "champion", "green frames", look)
    assert (champion(client), champion(client, "previous")) == (second, first)
    assert len(history(client, "toy")) == 2
    assert ROLLED_BACK_TAG not in client.get_model_version("toy", second).tags


def test_files_that_keep_a_candidate_out_are_recorded_and_asked_about_again(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = add_version(client, 8.0)
    set_candidate(client, number)
    params = Params.model_validate({"register": {"name": "toy"}})
    set_candidate(client, add_version(client, 7.0))  # another one asks by now: it is not to be blamed
    error = ModelError("its files are others", fix="look who changed it")
    promote._record_refusal(client, params, number, error)
    assert "vdmini.decision" not in client.get_model_version("toy", "2").tags
    set_candidate(client, number)
    told = json.loads(client.get_model_version("toy", number).tags["vdmini.decision"])
    assert told["outcome"] == "keep" and "its files are others" in told["reasons"][0]
    monkeypatch.setattr(promote, "connect", lambda _: client)
    (tmp_path / "params.yaml").write_text("register: {name: toy}\n")
    (tmp_path / "artifacts" / "promote").mkdir(parents=True)
    write_json(tmp_path / "artifacts" / "promote" / "manifest.json", {})
    assert not promote.is_current(tmp_path)
    del told["files"]  # an answer that facts gave stands as long as they do
    told |= _question(params.promote, client.get_model_version("toy", number), None)
    client.set_model_version_tag("toy", number, "vdmini.decision", json.dumps(told))
    assert promote.is_current(tmp_path)


def test_without_a_version_before_there_is_no_way_back(client: MlflowClient) -> None:
    with pytest.raises(VDMiniError, match="has no `champion`"):
        roll_back(client, "toy", "champion", "")
    set_candidate(client, add_version(client, 9.0))
    promote_candidate(client, "toy", "candidate", RULES)
    with pytest.raises(VDMiniError, match="no version to go back to"):
        roll_back(client, "toy", "champion", "")
    assert champion(client) == "1" and len(history(client, "toy")) == 1


def test_no_way_back_to_what_never_was_champion(client: MlflowClient) -> None:
    set_candidate(client, add_version(client, 8.0))
    promote_candidate(client, "toy", "candidate", RULES)
    set_candidate(client, add_version(client, 800.0), "previous")
    with pytest.raises(VDMiniError, match="never was `champion`"):
        roll_back(client, "toy", "champion", "")
    assert champion(client) == "1"


def test_register_moves_no_alias_that_the_gate_gives(client: MlflowClient) -> None:
    set_candidate(client, add_version(client, 8.0))
    promote_candidate(client, "toy", "candidate", PromoteParams(alias="best"))
    worse = add_version(client, 800.0)
    with pytest.raises(VDMiniError, match="`best` of `toy` is given by the gate"):
        _point_at(client, "toy", "best", worse)
    _point_at(client, "toy", "candidate", worse)
    assert (champion(client, "best"), champion(client, "candidate")) == ("1", worse)


def test_an_answer_from_in_between_is_not_that_there_is_no_champion(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a proxy's page: MLflow's client makes `RESOURCE_DOES_NOT_EXIST` of any 404."""
    assert champion(client) is None and version_by_alias(client, "nobody", "champion") is None
    text = "API request to endpoint /x failed with error code 404 != 200. Response body: '404 Not Found'"

    def answer(name: str) -> Any:
        raise MlflowException(text, RESOURCE_DOES_NOT_EXIST)

    monkeypatch.setattr(client, "get_registered_model", answer)
    with pytest.raises(MlflowException, match="404"):
        champion(client)


def test_a_version_whose_files_nobody_looked_at_is_not_promoted(client: MlflowClient) -> None:
    """The gate was to keep the candidate out when its files would have been fetched; another one came."""
    set_candidate(client, add_version(client, 8.0))
    with pytest.raises(VDMiniError, match="became candidate meanwhile"):
        promote_candidate(client, "toy", "candidate", RULES, looked_at="")
    assert champion(client) is None


def test_a_forced_promotion_leaves_a_mark(client: MlflowClient) -> None:
    run_id = client.create_run("0").info.run_id
    first, worse = add_version(client, 8.0), add_version(client, 19.0, run_id)
    for version, reason in ((first, None), (worse, "demo on Friday")):
        set_candidate(client, version)
        made, decision, record = promote_candidate(client, "toy", "candidate", RULES, reason)
        assert decision.promoted
    version = client.get_model_version("toy", worse)
    assert json.loads(version.tags[FORCED_TAG])["reason"] == "demo on Friday"
    assert "promoted against the gate: demo on Friday" in version.description
    assert [(m.action, m.reason) for m in history(client, "toy")][1] == ("force", "demo on Friday")
    assert keep_report(client, made, record) == []
    assert {f.path for f in client.list_artifacts(run_id, "decision")} == {
        "decision/decision.json",
        "decision/decision.txt",
    }
    text = readable(record)
    assert "forced: demo on Friday" in text and "- overruled: fvd_real 19 is worse" in text


def test_who_asks_is_the_servers_account_before_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "worker")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert account() == "worker"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert account() == "ada (as worker)"


def test_a_champion_by_another_name_keeps_its_own_previous_version(client: MlflowClient) -> None:
    other = PromoteParams(alias="champion-2", min_gain=0.0)
    for fvd in (9.0, 8.0):
        set_candidate(client, add_version(client, fvd))
        promote_candidate(client, "toy", "candidate", other)
    assert (champion(client, "champion-2"), champion(client, "champion-2-previous")) == ("2", "1")
    assert champion(client) is None and champion(client, "previous") is None
    assert all(isinstance(move, Move) and move.alias == "champion-2" for move in history(client, "toy"))


def test_a_version_that_was_mended_is_asked_about_again(client: MlflowClient) -> None:
    """A refusal says `register --force`: what that changes is no decided question any more."""
    number = add_version(client, 10.0)
    asked = _question(RULES, client.get_model_version("toy", number), None)
    assert _question(RULES, client.get_model_version("toy", number), None) == asked
    client.set_model_version_tag("toy", number, "vdmini.checks", '{"unsafe": [], "generates": "no"}')
    assert _question(RULES, client.get_model_version("toy", number), None) != asked
