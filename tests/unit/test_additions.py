"""Videos that come later: old files keep their bytes, nothing is known twice, a fresh run gives the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.new_videos import register_addition
from tasks.project import dump_yaml, start_from
from tasks.stage import StageResult, run_stage
from vdmini_core.artifacts import read_json, tree_digests
from vdmini_core.data.clip_source import stored_clips
from vdmini_core.data.prompts import load_captions
from vdmini_core.data.video import write_mp4
from vdmini_core.errors import DataError
from vdmini_core.params import Params, load_params


def film(path: Path, seed: int, clips: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    write_mp4(path, np.stack([np.roll(picture, (n, 2 * n), (0, 1)) for n in range(2 * clips)]), 8)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    for number in range(12):
        film(tmp_path / "films" / f"{number:02d}.mp4", number)
    prepare: dict[str, Any] = {
        "source": "folder",
        "videos": "../films",
        "frames": 2,
        "height": 16,
        "width": 16,
        "clips": {"train": 8, "validation": 4, "test": 4},
        "workers": 1,
    }
    few = {"profile": {"clips": 4}, "evaluate": {"clips": 2}}
    values = Params.model_validate({"prepare": prepare, **few}).model_dump(mode="json", by_alias=True)
    (root / "params.yaml").write_text(dump_yaml(values))
    return root


def prepared(root: Path) -> tuple[StageResult, dict[str, str]]:
    result = run_stage("prepare", root)
    return result, tree_digests(result.out)


def test_a_later_folder_joins_the_training_split(project: Path, tmp_path: Path) -> None:
    _, before = prepared(project)
    later = tmp_path / "later"
    film(later / "a.mp4", 100).with_suffix(".txt").write_text("a rolling picture")
    film(later / "b.mp4", 101)
    shutil.copyfile(tmp_path / "films" / "03.mp4", later / "known.mp4")
    lines = register_addition(project, str(later))
    assert "left out  known.mp4: the same bytes as 03.mp4" in lines
    first, after = prepared(project)
    assert any("What was prepared before stays" in note for note in first.notes)

    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {
        "clips-train-00001.safetensors",
        "clips-train.index.json",
        "prompts-train.jsonl",
        "index.json",
        "sources.json",
    }
    assert before.keys() <= after.keys() and len(stored_clips(first.out, "train")) == 8 + 4
    index = read_json(first.out / "index.json")
    new = [entry for entry in index["train"] if entry.get("addition") == 1]
    assert [entry["clip"] for entry in new] == [8, 9, 10, 11]
    [told] = index["additions"]
    assert told["shards"] == ["clips-train-00001.safetensors"] and told["clips"] == 4
    captions = load_captions(first.out, "train")
    assert {c.source: c.prompt for c in captions[8:]} == {
        f"{told['list']}/a.mp4": "a rolling picture",
        f"{told['list']}/b.mp4": None,
    }

    # the same folder again, with one more and nothing else that is new
    film(later / "c.mp4", 102)
    assert "1 new video, " in "\n".join(register_addition(project, str(later)))
    _, last = prepared(project)
    same = after.keys() - {name for name in after if not name.startswith("clips-") or "index" in name}
    assert {name: last[name] for name in same} == {name: after[name] for name in same}
    assert last.keys() - after.keys() == {"clips-train-00002.safetensors"}
    params = (project / "params.yaml").read_bytes()
    assert register_addition(project, str(later))[-1] == f"nothing new in {later}"
    assert (project / "params.yaml").read_bytes() == params

    # what came in three steps is what a fresh run makes, also in a workspace of the project
    shutil.rmtree(project / "artifacts")
    fresh, digests = prepared(project)
    assert digests == last and not any("stays" in note for note in fresh.notes)
    space = project / "workspaces" / "other"
    space.mkdir(parents=True)
    shutil.copyfile(project / "params.yaml", space / "params.yaml")
    start_from(space, project)
    lists = load_params(space / "params.yaml").prepare.additions
    assert len(lists) == 2 and all((space / text).is_file() for text in lists)


def test_what_was_added_must_stay_what_it_was(project: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    film(later / "a.mp4", 100)
    register_addition(project, str(later))
    film(later / "a.mp4", 101)
    with pytest.raises(DataError, match=r"(?s)are not what they were.*a\.mp4 has other bytes"):
        run_stage("prepare", project)
    [text] = load_params(project / "params.yaml").prepare.additions
    (project / text).write_text((project / text).read_text().replace("later", "other"))
    with pytest.raises(DataError, match="is not the list that was written"):
        run_stage("prepare", project)
    (project / text).unlink()
    with pytest.raises(DataError, match="a list of added videos is missing"):
        run_stage("prepare", project)


def test_outputs_that_cannot_be_trusted_are_made_anew(project: Path, tmp_path: Path) -> None:
    result, before = prepared(project)
    register_addition(project, str(film(tmp_path / "later" / "a.mp4", 100).parent))
    (result.out / "clips-test.safetensors").write_bytes(b"damaged")
    again, after = prepared(project)
    assert not any("stays" in note for note in again.notes)
    assert after["clips-test.safetensors"] == before["clips-test.safetensors"]


def test_the_project_itself_is_no_folder_of_videos(project: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains this project"):
        register_addition(project, str(tmp_path))
