"""Claims: recorded data come back from cache or remote; lists that lead elsewhere are refused first."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from tasks.project import dump_yaml
from tasks.recorded_data import bring_back, recorded_output
from tasks.recorded_videos import videos_are_gone
from tasks.versioning import init_repository
from vdmini_core.errors import VDMiniError
from vdmini_core.params import PrepareParams


@pytest.fixture
def home(tmp_path: Path) -> Path:
    root = tmp_path / "home"
    root.mkdir()
    init_repository(root)
    with Repo(str(root)) as repo, repo.config.edit() as config:
        config["core"]["remote"] = "here"
        config["remote"] = {"here": {"url": str(tmp_path / "bucket")}}
    return root


def put(store: Path, content: bytes, ending: str = "") -> str:
    """Content under its hash, as DVC keeps it."""
    md5 = hashlib.md5(content).hexdigest()
    place = store / "files" / "md5" / md5[:2] / (md5[2:] + ending)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return md5 + ending


def listed(store: Path, rows: Any) -> str:
    return put(store, json.dumps(rows).encode(), ".dir")


@pytest.fixture
def md5(home: Path) -> str:
    """Of a folder of two files that DVC recorded and pushed."""
    made = home / "artifacts" / "prepare"
    (made / "deep").mkdir(parents=True)
    (made / "a").write_text("a")
    (made / "deep" / "b").write_text("b")
    stages = {"prepare": {"cmd": "true", "outs": ["artifacts/prepare"]}}
    (home / "dvc.yaml").write_text(dump_yaml({"stages": stages}))
    with chdir(home), Repo(str(home)) as repo:
        repo.commit("prepare", force=True)
        repo.push()
    found = recorded_output(home / "dvc.lock", "prepare")
    assert found is not None and recorded_output(home / "dvc.lock", "teacher") is None
    return found


def spoil(store: Path, md5: str, how: str) -> None:
    """The list or one file of a store: gone, or cut short though it is closed to writing."""
    listed = store / "files" / "md5" / md5[:2] / md5[2:]
    single = hashlib.md5(b"b").hexdigest()
    path = listed if "list" in how else store / "files" / "md5" / single[:2] / single[2:]
    if "gone" in how:
        path.unlink()
        return
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    path.chmod(0o444)


@pytest.mark.parametrize("how", ["nothing", "list gone", "list cut", "file gone", "file cut"])
def test_what_dvc_recorded_comes_back_whatever_the_cache_has_lost(
    home: Path, tmp_path: Path, md5: str, how: str
) -> None:
    if how != "nothing":
        spoil(home / ".dvc" / "cache", md5, how)
    bring_back(home, md5, tmp_path / "back")
    assert (tmp_path / "back" / "a").read_text() + (tmp_path / "back" / "deep" / "b").read_text() == "ab"


@pytest.mark.parametrize("how", ["list gone", "list cut", "file gone", "file cut"])
def test_what_the_remote_has_lost_is_told(home: Path, tmp_path: Path, md5: str, how: str) -> None:
    shutil.rmtree(home / ".dvc" / "cache" / "files")
    spoil(tmp_path / "bucket", md5, how)
    for _ in range(2):  # and told again, not taken for whole
        with pytest.raises(VDMiniError, match=r"does not have all of|not as DVC writes it"):
            bring_back(home, md5, tmp_path / "back")


@pytest.mark.parametrize(
    "rows",
    [
        [{"md5": "MD5", "relpath": "../escaped"}],
        [{"md5": "MD5", "relpath": "/escaped"}],
        [{"md5": "MD5", "relpath": "a/../../escaped"}],
        [{"md5": "../../../secret", "relpath": "a"}],
        [{"md5": "MD5"}],
        [{"relpath": "a"}],
        ["a"],
        [[]],
        {"md5": "MD5"},
        7,
    ],
    ids=lambda rows: json.dumps(rows),
)
@pytest.mark.parametrize("where", ["cache", "bucket"])
def test_a_list_that_leads_elsewhere_is_refused(home: Path, tmp_path: Path, rows: Any, where: str) -> None:
    store = home / ".dvc" / "cache" if where == "cache" else tmp_path / "bucket"
    md5 = put(store, b"text")
    folder = listed(store, json.loads(json.dumps(rows).replace("MD5", md5)))
    before = {path for path in tmp_path.rglob("*") if "bucket" not in path.parts and ".dvc" not in path.parts}
    with pytest.raises(VDMiniError, match="not as DVC writes it"):
        bring_back(home, folder, tmp_path / "in" / "prepare")
    after = {path for path in tmp_path.rglob("*") if "bucket" not in path.parts and ".dvc" not in path.parts}
    assert after == before


@pytest.mark.parametrize("md5", ["../../x.dir", "0" * 32, "0" * 31 + "..dir", 7, None, ["0" * 32 + ".dir"]])
def test_a_lock_that_names_no_folder_of_dvcs_names_none(tmp_path: Path, md5: Any) -> None:
    outs = [{"path": "artifacts/prepare", "md5": md5}]
    (tmp_path / "dvc.lock").write_text(dump_yaml({"stages": {"prepare": {"outs": outs}}}))
    assert recorded_output(tmp_path / "dvc.lock", "prepare") is None


@pytest.mark.parametrize(
    "text", ["", "7", "stages: 7", "stages: {prepare: 7}", "stages: {prepare: {outs: 7}}"]
)
def test_a_lock_that_is_none_names_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    assert recorded_output(tmp_path / "dvc.lock", "prepare") is None


def test_videos_are_gone_when_any_place_of_theirs_holds_none(tmp_path: Path) -> None:
    films, more, lists = tmp_path / "films", tmp_path / "more", tmp_path / "additions"
    for folder in (films / "deep", more, lists):
        folder.mkdir(parents=True)
    (films / "deep" / "a.MP4").touch()
    (more / "b.webm").touch()
    text = json.dumps({"folder": "../more", "videos": []})
    path = lists / f"0001-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    path.write_text(text)
    params = PrepareParams(source="folder", videos="films", additions=[f"additions/{path.name}"])
    assert not videos_are_gone(tmp_path, params)
    assert not videos_are_gone(tmp_path, PrepareParams(source="procedural", videos="nowhere"))
    (more / "b.webm").rename(more / "b.txt")
    assert videos_are_gone(tmp_path, params), "the folder of the addition holds none"
    (more / "b.txt").rename(more / "b.webm")
    path.unlink()
    assert videos_are_gone(tmp_path, params), "the list of the addition is gone"
    assert videos_are_gone(tmp_path, PrepareParams(source="folder", videos="nowhere"))
