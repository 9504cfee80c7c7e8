"""Shards of clips: bounded in size, one sequence to their readers, resumed after a kill, added to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vdmini_core.artifacts import read_json, sha256_file, write_json
from vdmini_core.data import shards
from vdmini_core.data.clip_source import ClipSource, kept_clips, stored_clips
from vdmini_core.data.clips import clip_count, load_clips
from vdmini_core.data.shards import Kept, add_clips, clips_path, index_path, save_clips, split_digest
from vdmini_core.distillation import latents
from vdmini_core.distillation.data import RecoveryData
from vdmini_core.distillation.encoding import ClipEncoder
from vdmini_core.distillation.latents import shard_clips
from vdmini_core.errors import DataError
from vdmini_core.models.base import Conditions

CLIPS = np.random.default_rng(0).integers(0, 255, (8, 2, 16, 16, 3), np.uint8)
ONE = CLIPS[0].size


@pytest.fixture(autouse=True)
def three_to_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 3 * ONE + 1)


def save(folder: Path, clips: Any = CLIPS, kept: Kept | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_clips(folder, "train", iter(clips), CLIPS.shape, kept)
    return folder


def test_several_files_are_one_sequence(tmp_path: Path) -> None:
    save(tmp_path)
    names = ["clips-train.safetensors", "clips-train-00001.safetensors", "clips-train-00002.safetensors"]
    assert [row["file"] for row in read_json(index_path(tmp_path, "train"))["shards"]] == names
    sizes = [clips_path(tmp_path, "train", number).stat().st_size for number in range(3)]
    assert all(size < 3 * ONE + 200 for size in sizes) and clip_count(tmp_path, "train") == 8
    source = stored_clips(tmp_path, "train")
    assert torch.equal(source[:], torch.from_numpy(CLIPS))
    assert torch.equal(source.read([7, 0, 3, 2]), torch.from_numpy(CLIPS[[7, 0, 3, 2]]))
    assert source.read([]).shape == (0, *CLIPS.shape[1:])
    for limit in (None, 0, 2, 3, 4, 9):
        assert np.array_equal(load_clips(tmp_path, "train", limit).numpy(), CLIPS[:limit])
    digest = split_digest(tmp_path, "train")
    clips_path(tmp_path, "train", 1).unlink()
    assert torch.equal(source[:3], torch.from_numpy(CLIPS[:3]))
    with pytest.raises(DataError, match=r"clips-train-00001\.safetensors is missing"):
        source.read([4])
    save(tmp_path)
    assert split_digest(tmp_path, "train") == digest != sha256_file(clips_path(tmp_path, "train"))
    write_json(index_path(tmp_path, "train"), {"shards": [{"file": 1}]})
    with pytest.raises(DataError, match="is no index of clips"):
        stored_clips(tmp_path, "train")


@pytest.mark.parametrize("count", [7, 9])
def test_too_few_or_too_many_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError, match="clips of train do not fit"):
        save(tmp_path, np.concatenate([CLIPS, CLIPS])[:count])


def test_one_shard_has_no_index(tmp_path: Path) -> None:
    save_clips(tmp_path, "test", iter(CLIPS[:3]), (3, *CLIPS.shape[1:]))
    assert [path.name for path in tmp_path.iterdir()] == ["clips-test.safetensors"]
    assert split_digest(tmp_path, "test") == sha256_file(clips_path(tmp_path, "test"))


def test_a_killed_run_goes_on_with_equal_bytes(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole")
    work = tmp_path / "work"
    work.mkdir()
    kept = Kept(work, [str(number) for number in range(8)])

    def killed() -> Iterator[Any]:
        yield from CLIPS[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "torn", killed(), kept)
    # What was finished is not made again: the first three may be anything now.
    again = save(tmp_path / "again", [np.zeros_like(CLIPS[0])] * 3 + list(CLIPS[3:]), kept)
    assert [p.read_bytes() for p in sorted(again.iterdir())] == [
        p.read_bytes() for p in sorted(whole.iterdir())
    ]
    other = Kept(work, ["other"] + [str(number) for number in range(1, 8)])
    changed = save(tmp_path / "changed", [CLIPS[1], *CLIPS[1:]], other)
    assert np.array_equal(load_clips(changed, "train").numpy()[0], CLIPS[1])


def test_added_clips_come_in_files_of_their_own(tmp_path: Path) -> None:
    save_clips(tmp_path, "train", iter(CLIPS[:2]), (2, *CLIPS.shape[1:]))
    before = sha256_file(clips_path(tmp_path, "train"))
    new = add_clips(tmp_path, "train", iter(CLIPS[2:6]), (4, *CLIPS.shape[1:]), addition=1)
    new += add_clips(tmp_path, "train", iter(CLIPS[6:]), (2, *CLIPS.shape[1:]), addition=2)
    assert new == [f"clips-train-0000{number}.safetensors" for number in (1, 2, 3)]
    assert sha256_file(clips_path(tmp_path, "train")) == before
    assert torch.equal(stored_clips(tmp_path, "train")[:], torch.from_numpy(CLIPS))
    rows = read_json(index_path(tmp_path, "train"))["shards"]
    assert [(row["clips"], row.get("addition")) for row in rows] == [(2, None), (3, 1), (1, 1), (2, 2)]
    with pytest.raises(DataError, match="another shape"):
        add_clips(tmp_path, "train", iter(CLIPS), (1, 3, 16, 16, 3))


def test_a_generated_set_is_kept_in_shards_too(tmp_path: Path) -> None:
    clips = torch.from_numpy(CLIPS)
    assert torch.equal(kept_clips(tmp_path, "student", iter(clips.split(3)), 8)[:], clips)
    assert torch.equal(kept_clips(tmp_path, "student", iter(()), 8)[:], clips)
    assert not list((tmp_path / "partial").iterdir())


def test_latents_lie_in_files_whose_number_and_size_are_bounded() -> None:
    for shape, clips in {
        (128, 8, 64, 64, 3): 8,
        (200_000, 2, 16, 16, 3): 196,
        (1_000_000, 14, 576, 1024, 3): 10,
        (1_000_000, 129, 720, 1280, 3): 8,
    }.items():
        assert shard_clips(shape) == clips, shape


def test_large_shards_of_latents_are_read_by_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Numbers(ClipEncoder):
        def encode(self, clips: ClipSource, indices: Sequence[int]) -> RecoveryData:
            return RecoveryData(clips.read(indices).float(), Conditions({}))

    monkeypatch.setattr(latents, "MANY_SHARDS", 2)
    source = ClipSource((25, 1, 1, 1, 1), lambda part: torch.tensor(part).reshape(-1, 1, 1, 1, 1))
    latents.precompute(Numbers(None, None, None, 0), source, tmp_path, "numbers")  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("latents-*.safetensors"))) == 2
    asked = torch.tensor([24, 0, 12, 13])
    assert torch.equal(latents.StoredLatents(tmp_path).rows(asked).latents.flatten(), asked.float())
