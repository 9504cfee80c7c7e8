"""Claims: recorded data come back from cache or remote; lists that lead elsewhere are refused first."""

from __future__ import annotations

import hashlib
import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from tasks.project import dump_yaml
from tasks.recorded_data import bring_back, recorded_output
from tasks.versioning import init_repository
from vdmini_core.errors import VDMiniError


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


def test_what_dvc_recorded_comes_back(home: Path, tmp_path: Path) -> None:
    made = home / "artifacts" / "prepare"
    (made / "deep").mkdir(parents=True)
    (made / "a").write_text("a")
    (made / "deep" / "b").write_text("b")
    stages = {"prepare": {"cmd": "true", "outs": ["artifacts/prepare"]}}
    (home / "dvc.yaml").write_text(dump_yaml({"stages": stages}))
    with chdir(home), Repo(str(home)) as repo:
        repo.commit("prepare", force=True)
        repo.push()
    md5 = recorded_output(home / "dvc.lock", "prepare")
    assert md5 is not None and recorded_output(home / "dvc.lock", "teacher") is None
    for place in ("cached", "from-the-remote"):
        bring_back(home, md5, tmp_path / place)
        assert (tmp_path / place / "a").read_text() + (tmp_path / place / "deep" / "b").read_text() == "ab"
        for path in (home / ".dvc" / "cache" / "files").rglob("*"):
            if path.is_file() and place == "cached" and path.name != md5[2:]:
                path.unlink()  # the list stays, its files go
    with pytest.raises(VDMiniError, match="DVC has no data"):
        bring_back(home, "0" * 32 + ".dir", tmp_path / "none")


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
