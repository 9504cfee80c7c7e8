"""Checkpoints in a real S3 store: sent whole, brought back on a machine that has none, never torn."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tasks.loss_curve import LossCurve
from tasks.recovery_checkpoints import COMPLETE, LOSSES, is_complete, load_state, save_checkpoint
from tasks.recovery_mirror import CHECKPOINTS, CheckpointMirror, checkpoint_mirror
from tasks.recovery_watch import checkpoint_name
from tests.services.s3_store import s3_store, settings
from vdmini_core.artifacts import tree_digests
from vdmini_core.distillation.guards import History
from vdmini_core.errors import TrainingError

pytestmark = pytest.mark.services
PARTS = {"student": torch.arange(3_000_000, dtype=torch.float32)}  # more than one part of an upload


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "runs").mkdir()
    with s3_store(folder) as address:
        yield folder / "runs", address


@pytest.fixture
def store(bucket: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's checkpoints lie, below a prefix of its own."""
    folder, address = bucket
    asked = {CHECKPOINTS: f"s3://runs/{tmp_path.name}"}
    for name, value in {**settings(address, tmp_path / "cache"), **asked}.items():
        monkeypatch.setenv(name, value)
    return folder / tmp_path.name / "key"


def saved(storage: Path, step: int) -> Path:
    """A whole checkpoint, with a part in a folder of its own as FSDP2 writes them."""
    folder = storage / checkpoint_name(step)
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "0.distcp").write_bytes(b"part")
    curve = LossCurve(storage / "curve.jsonl")
    for i in range(step):
        curve.append({"step": i + 1, "total": 1.0 / (i + 1)})
    save_checkpoint({"step": step, **PARTS}, curve, folder, History(), {"shards/0.distcp": 4})
    return folder


def mirror_of(storage: Path, notes: list[str]) -> CheckpointMirror:
    found = checkpoint_mirror("key", storage, notes.append)
    assert found is not None
    return found


def test_another_machine_goes_on_from_the_last_whole_one(store: Path, tmp_path: Path) -> None:
    here, there, notes = tmp_path / "here", tmp_path / "there", list[str]()
    mirror = mirror_of(here, notes)
    assert mirror.fetch() is None and mirror.send()  # there is nothing yet
    for step in (2, 4, 6):
        last = saved(here, step)
        assert mirror.send()
    assert sorted(path.name for path in store.iterdir()) == [checkpoint_name(4), checkpoint_name(6)]
    # One that was torn on its way: everything but what says that it is whole.
    shutil.copytree(last, store / checkpoint_name(8))
    (store / checkpoint_name(8) / COMPLETE).unlink()
    found = mirror_of(there, notes).fetch()
    assert found == there / checkpoint_name(6) and tree_digests(found) == tree_digests(last)
    assert torch.equal(load_state(found)["student"], PARTS["student"])
    assert mirror_of(there, notes).fetch() is None  # it has it now
    assert [path.name for path in there.iterdir()] == [checkpoint_name(6)]
    assert sum(f"came from s3://runs/{tmp_path.name}/key" in note for note in notes) == 1


def test_a_torn_one_that_was_overtaken_goes(store: Path, tmp_path: Path) -> None:
    """Killed while 4 was sent, and started again from what is on the disk: 6 is the newest whole one then."""
    mirror = mirror_of(tmp_path, [])
    for step in (2, 4):
        saved(tmp_path, step)
        assert mirror.send()
    torn = f"{tmp_path.name}/key/{checkpoint_name(4)}/{COMPLETE}"
    mirror._client.delete_object(Bucket="runs", Key=torn)
    saved(tmp_path, 6)
    assert mirror_of(tmp_path, []).send()
    assert sorted(path.name for path in store.iterdir()) == [checkpoint_name(2), checkpoint_name(6)]


def test_they_go_while_the_run_goes_on_and_the_last_one_at_its_end(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.recovery_mirror.LOOK_S", 0.05)
    mirror = mirror_of(tmp_path / "here", [])
    with mirror.running():
        last = saved(tmp_path / "here", 3)
    assert tree_digests(store / last.name) == tree_digests(last)


def test_a_store_that_is_away_stops_nothing_once_training_runs(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    mirror = mirror_of(tmp_path, notes)
    saved(tmp_path, 1)
    monkeypatch.setattr(mirror, "_bucket", "gone")
    assert not mirror.send() and not mirror.send()
    assert sum("did not reach S3" in note for note in notes) == 1
    monkeypatch.setattr(mirror, "_bucket", "runs")
    assert mirror.send() and is_complete(store / checkpoint_name(1))


def test_what_cannot_work_is_refused_before_training(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, why in (("/data/runs", "no address"), ("s3://nobody-has-this/x", "NoSuchBucket")):
        monkeypatch.setenv(CHECKPOINTS, address)
        with pytest.raises(TrainingError, match=why):
            checkpoint_mirror("key", tmp_path, print)
    monkeypatch.setenv(CHECKPOINTS, f"s3://runs/{tmp_path.name}")
    saved(tmp_path / "here", 2)
    mirror = mirror_of(tmp_path / "here", [])
    mirror.send()
    (store / checkpoint_name(2) / LOSSES).write_text("torn\n")
    with pytest.raises(TrainingError, match="not whole"):
        mirror_of(tmp_path / "there", []).fetch()
    assert not list((tmp_path / "there").iterdir())
    monkeypatch.delenv(CHECKPOINTS)
    assert checkpoint_mirror("key", tmp_path, print) is None
