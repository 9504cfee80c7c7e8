"""Claims: recording a stage leaves its outputs themselves alone, whatever room there is; links on demand."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc.repo import Repo

from tasks.project import dump_yaml
from tasks.versioning import Versions, init_repository


@pytest.fixture
def root(tmp_path: Path) -> Path:
    init_repository(tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("a", "b"):
        (tmp_path / "out" / name).write_text(name * 100)
    stage = {"cmd": "false", "outs": ["out"]}
    (tmp_path / "dvc.yaml").write_text(dump_yaml({"stages": {"make": stage}}))
    return tmp_path


def test_recorded_outputs_stay_the_files_they_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_ino for path in (root / "out").iterdir()}
    # A copy in their place would be lost where there is no room for it.
    monkeypatch.setattr("dvc.output.Output._checkout", lambda *_, **__: pytest.fail("made anew"))
    Versions(root).record("make")
    assert {path: path.stat().st_ino for path in (root / "out").iterdir()} == before
    assert Versions(root).is_current("make")
    assert len(list((root / ".dvc" / "cache" / "files").rglob("*/*"))) >= 3, "both, and their list"


def test_links_are_made_where_they_are_asked_for(root: Path) -> None:
    with Repo(str(root)) as repo, repo.config.edit() as config:
        config["cache"]["type"] = ["hardlink"]
    Versions(root).record("make")
    assert {path.stat().st_nlink for path in (root / "out").iterdir()} == {2}
    assert Versions(root).is_current("make")
