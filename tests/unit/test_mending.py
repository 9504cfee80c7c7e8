"""Claims: what a kill cuts off in DVC's own files is put right; what is whole, or a person's, stays."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from dvc.repo import Repo

from tasks.mending import mend
from tasks.versioning import init_repository
from vdmini_core.errors import VDMiniError

LOCK = """schema: '2.0'
stages:
  one:
    cmd: touch out
    deps:
    - path: input
      hash: md5
      md5: d41d8cd98f00b204e9800998ecf8427e
      size: 0
    outs:
    - path: artifacts/out
      hash: md5
      md5: d41d8cd98f00b204e9800998ecf8427e
      size: 0
"""


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    init_repository(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages:\n  one:\n    cmd: touch out\n    outs: [artifacts/out]\n")
    (tmp_path / "dvc.lock").write_text(LOCK)
    (tmp_path / ".dvc" / "tmp").mkdir(exist_ok=True)
    return Repo(str(tmp_path))


def test_a_repository_is_laid_out_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".dvc.999999999.tmp" / ".dvc").mkdir(parents=True)  # a process was killed here before

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tasks.versioning.configure", full)
        with pytest.raises(VDMiniError, match="the disk is full"):
            init_repository(tmp_path)
    assert list(tmp_path.iterdir()) == []
    init_repository(tmp_path)
    assert [path.name for path in tmp_path.glob(".dvc*") if path.is_dir()] == [".dvc"]
    assert "analytics" in (tmp_path / ".dvc" / "config").read_text()


def test_a_lock_file_cut_off_anywhere_can_be_read_or_is_removed(repo: Repo) -> None:
    path, removed = Path(repo.root_dir) / "dvc.lock", 0
    assert mend(repo) == []
    for length in range(0, len(LOCK), 7):
        path.write_text(LOCK[:length])
        done = mend(repo)
        assert path.is_file() == (not done)
        removed += len(done)
        assert mend(repo) == []
        repo.stage.load_one(str(Path(repo.root_dir) / "dvc.yaml"), "one")
        repo._reset()
    assert removed > 0


def test_a_conflict_of_git_is_left_to_a_person(repo: Repo) -> None:
    path = Path(repo.root_dir) / "dvc.lock"
    path.write_text(f"<<<<<<< HEAD\n{LOCK}=======\n{LOCK}>>>>>>> other\n")
    assert mend(repo) == []
    assert path.is_file()


def test_a_file_that_somebody_is_writing_is_left_to_them(repo: Repo) -> None:
    path = Path(repo.root_dir) / "dvc.lock"
    path.write_text(LOCK[:30])
    with Repo(repo.root_dir).lock:
        assert mend(repo) == []
    assert path.is_file()
    assert len(mend(repo)) == 1


@pytest.mark.parametrize("text", ["", '{"write": {"/a"', "[]", '{"write": {"/a": {"cmd": "x"}}}'])
def test_a_list_of_processes_that_is_none_is_removed(repo: Repo, text: str) -> None:
    path = Path(repo.tmp_dir) / "rwlock"
    path.write_text(text)
    assert len(mend(repo)) == 1
    assert not path.exists()


def test_who_was_there_before_the_list_stays_in_it(repo: Repo) -> None:
    path = Path(repo.tmp_dir) / "rwlock"
    me, first = {"pid": os.getpid(), "cmd": "dvc repro"}, {"pid": 1, "cmd": "dvc commit"}
    gone = {"pid": 999_999_999, "cmd": "dvc checkout"}
    text = json.dumps({"write": {"/a": me, "/b": first}, "read": {"/a": [me, first], "/c": [me]}})
    path.write_text(text)
    assert mend(repo) == []
    assert path.read_text() == text
    before_us = psutil.Process(1).create_time() + 1  # our number was another's then
    os.utime(path, (before_us, before_us))
    assert len(mend(repo)) == 1
    assert json.loads(path.read_text()) == {"write": {"/b": first}, "read": {"/a": [first]}}
    path.write_text(json.dumps({"write": {"/a": gone, "/b": me}}))
    assert len(mend(repo)) == 1
    assert json.loads(path.read_text()) == {"write": {"/b": me}, "read": {}}


def test_copies_that_were_begun_are_removed_and_nothing_else(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = Path(repo.root_dir), Path(repo.cache.local.path)
    copy = "." + "x" * 22 + ".tmp"
    mine, theirs = root / "artifacts" / "out" / copy, cache / "d4" / copy
    run = cache.parents[1] / "runs" / "1e" / ("1e" + "0" * 62) / ("a" * 64 + copy)  # by its target's name
    kept = [root / "artifacts" / "out" / "data", cache / "d4" / "1d8cd98f00b204e9800998ecf8427e"]
    kept.append(root / "artifacts" / ".out.1-ab.tmp")
    kept.append(run.with_name("a" * 64))
    for path in (mine, theirs, run, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert mend(repo) == []
    assert not mine.exists()
    assert theirs.exists() and run.exists(), "another workspace may be copying into the cache they share"
    now: Callable[[], float] = time.time
    monkeypatch.setattr("tasks.mending.time.time", lambda: now() + 3601)
    assert mend(repo) == []
    assert not theirs.exists() and not run.exists()
    assert all(path.exists() for path in kept)


def test_an_empty_folder_of_the_run_cache_goes_a_full_one_stays(repo: Repo) -> None:
    """As a kill between the two leaves it; DVC would fail on it for ever."""
    runs = Path(repo.cache.local.path).parents[1] / "runs" / "ab"
    empty, fresh, full = (runs / name for name in ("abc", "abd", "abe"))
    for folder in (empty, fresh, full):
        folder.mkdir(parents=True)
    (full / "entry").touch()
    for folder in (empty, full):
        os.utime(folder, (time.time() - 60, time.time() - 60))
    (told,) = mend(repo)
    assert "left empty by a kill" in told
    assert sorted(path.name for path in runs.iterdir()) == ["abd", "abe"] and (full / "entry").exists()
