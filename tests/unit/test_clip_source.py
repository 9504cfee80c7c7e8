"""Clips larger than memory: order, chunks, sets that are joined, derived and kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vdmini_core.data.clip_source import (
    CHUNK,
    ClipSource,
    as_source,
    joined,
    kept_clips,
    parts,
    stored_clips,
)
from vdmini_core.data.clips import clips_path, save_clips
from vdmini_core.errors import DataError
from vdmini_core.metrics import frechet_distance, load_extractor
from vdmini_core.metrics.comparison import compare_rows, repeat_first_frame, significant
from vdmini_core.metrics.ground_truth import sprite_errors
from vdmini_core.metrics.paired import perceptual_distance, ssim
from vdmini_core.metrics.protocol import Protocol

COUNT = 2 * CHUNK + 1


def noise(count: int, seed: int = 0, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("count", [0, 1, 2, CHUNK, CHUNK + 1, CHUNK + 2, COUNT])
def test_chunks_hold_every_clip_once_in_order_and_none_alone(count: int) -> None:
    clips = noise(count, side=1)
    chunks = list(as_source(clips).chunks())
    assert torch.equal(torch.cat([clips[:0], *chunks]), clips)
    assert all(len(chunk) > 1 for chunk in chunks) or count == 1
    assert all(part.start % CHUNK == 0 for part in parts(count))  # batches are those of the whole set


def test_sets_on_disk_are_read_joined_and_derived(tmp_path: Path) -> None:
    first, second = noise(5), noise(4, seed=1)
    for name, clips in (("test", first), ("train", second)):
        save_clips(tmp_path, name, clips, clips.shape)
    both = joined(stored_clips(tmp_path, "test", 3), stored_clips(tmp_path, "train"))
    whole = torch.cat([first[:3], second])
    assert both.shape == whole.shape
    assert torch.equal(both[:], whole)
    assert torch.equal(both[2:5], whole[2:5])
    assert torch.equal(both.read([6, 0, 3]), whole[[6, 0, 3]])
    assert torch.equal(both.derived(repeat_first_frame)[1:6], repeat_first_frame(whole[1:6]))
    assert len(both[7:]) == len(stored_clips(tmp_path, "test", 3)[3:]) == 0
    with pytest.raises(DataError, match="no validation clips"):
        stored_clips(tmp_path, "validation")
    save_file({"clips": first.float() * float("nan")}, clips_path(tmp_path, "validation"))
    with pytest.raises(DataError, match=r"clips-validation\.safetensors holds no clips\n.*\n  found: F32"):
        stored_clips(tmp_path, "validation")


def test_a_set_is_kept_whole_and_made_once(tmp_path: Path) -> None:
    clips = noise(5)

    def batches(most: int) -> Iterator[Tensor]:
        yield from clips[:most].split(2)

    with pytest.raises(DataError, match="do not fit"):
        kept_clips(tmp_path, "row", batches(4), 5)
    kept = kept_clips(tmp_path, "row", batches(5), 5)  # what was left unfinished is not taken for the set
    assert torch.equal(kept[:], clips)
    again = kept_clips(tmp_path, "row", iter(()), 5)
    assert torch.equal(again[:], clips)


def test_a_comparison_of_many_clips_holds_few_and_gives_the_figures_of_the_whole_sets() -> None:
    most = []

    def watched(clips: Tensor) -> ClipSource:
        def read(indices: Sequence[int]) -> Tensor:
            most.append(len(indices))
            return clips[list(indices)]

        return ClipSource(tuple(clips.shape), read)

    real, teacher, other = (noise(COUNT, seed) for seed in range(3))
    truth = {
        "sprite_count": np.ones(COUNT, int),
        "sprite_centres": np.random.default_rng(0).uniform(6, 10, (COUNT, 1, 3, 2)),
        "sprite_visible": np.ones((COUNT, 1, 3), bool),
        "sprite_radii": np.full((COUNT, 1), 3.0),
    }
    extract = load_extractor("motion")
    chosen = tuple(range(0, COUNT, 2))
    rows = {"real": watched(real), "teacher": watched(teacher)}
    found = compare_rows(
        rows,
        watched(other),
        0,
        truth=truth,
        protocol=Protocol(load_extractor("content"), chosen, 2, 2, 4.0, (12, 12)),
    )["rows"]
    assert max(most) == CHUNK + 1
    for key, measure in (("ssim_teacher", ssim), ("perceptual_teacher", perceptual_distance)):
        assert found["real"][key] == significant(float(measure(real, teacher).mean()))
    errors = sprite_errors(teacher.numpy(), real.numpy(), truth)
    assert found["teacher"]["trajectory_error"] == significant(float(np.mean(errors["trajectory_error"])))
    distance = frechet_distance(extract(teacher), extract(real))
    assert found["teacher"]["motion_real"] == significant(distance)
    see = Protocol(extract, chosen, 2, 2, 4.0, (12, 12)).see
    content = load_extractor("content")
    distance = frechet_distance(*(content(see(clips[list(chosen)])) for clips in (teacher, real)))
    assert found["teacher"]["content_real"] == significant(distance)
