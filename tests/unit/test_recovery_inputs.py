"""What the recovery trains on: the same numbers wherever, whenever and in whatever company they are made."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from tasks.encoding import EncodeSpec, ShardEncoder, crew_size
from tasks.recovery_worker import RecoverySpec, build
from tests.unit.recovery_toys import ToyFamily, toy_batches, toy_data
from vdmini_core.artifacts import tree_digests
from vdmini_core.data.clip_source import ClipSource, stored_clips
from vdmini_core.data.clips import save_clips
from vdmini_core.distillation import latents as stored
from vdmini_core.distillation.ahead import BatchesAhead
from vdmini_core.distillation.data import RecoveryBatch, RecoveryBatches, RecoveryData, seed_of
from vdmini_core.distillation.encoding import ClipEncoder, EncodedClips
from vdmini_core.distillation.latents import StoredLatents, precompute, shard_path
from vdmini_core.errors import DataError
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.registry import family_of, load_pipeline, load_settings, save_pipeline
from vdmini_core.params import DistillParams
from vdmini_core.teacher.architecture import build_pipeline

COUNT = 11  # two shards, the second one not full


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small noise clips, a random nano teacher that samples in one step, and latents."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "prepare").mkdir()
    pipeline = build_pipeline("nano", 0)
    save_pipeline(pipeline, root / "teacher", None)
    small = {"frames": 2, "height": 16, "width": 16, "noise_aug_strength": 0.1}
    settings = replace(load_settings(root / "teacher"), steps=1, guidance=1.0, **small)  # type: ignore[arg-type]
    save_pipeline(pipeline, root / "teacher", settings)
    noise = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (COUNT, 2, 16, 16, 3), dtype=torch.uint8, generator=noise)
    save_clips(root / "prepare", "train", clips, clips.shape)
    precompute(encoder_of(root), clips_of(root), root / "latents", "these")
    return root


@cache
def encoder_of(project: Path) -> ClipEncoder:
    pipeline = load_pipeline(project / "teacher")
    settings = load_settings(project / "teacher", pipeline)
    return ClipEncoder(family_of(pipeline), pipeline, settings, seed=5)


def clips_of(project: Path) -> ClipSource:
    return stored_clips(project / "prepare", "train")


def same(a: RecoveryData | RecoveryBatch, b: RecoveryData | RecoveryBatch) -> bool:
    plain = [{k: v for k, v in vars(x).items() if isinstance(v, torch.Tensor)} for x in (a, b)]
    tensors = [found | x.conditions.tensors for found, x in zip(plain, (a, b), strict=True)]
    return tensors[0].keys() == tensors[1].keys() and all(
        torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items()
    )


def test_a_clip_is_encoded_alike_in_any_company(project: Path) -> None:
    encoder, clips = encoder_of(project), clips_of(project)
    alone = encoder.encode(clips, [3])
    among = encoder.encode(clips, [9, 0, 3, 3])
    for place in (2, 3):
        assert same(alone, among.rows(torch.tensor([place])))
    assert alone.latents.dtype == torch.float32
    other = replace(encoder, seed=6).encode(clips, [3])  # the seed counts where noise is added
    assert torch.equal(other.latents, alone.latents)
    images = (other.conditions.tensors["image_latents"], alone.conditions.tensors["image_latents"])
    assert not torch.equal(*images)


def test_it_is_what_the_family_makes_of_a_whole_batch(project: Path) -> None:
    encoder, clips = encoder_of(project), clips_of(project)
    found = encoder.encode(clips, range(4))
    latents = encoder.family.encode_clips(encoder.pipeline, clips[0:4])
    seeds = [seed_of(5, "conditions", index) for index in range(4)]
    inputs = ClipInputs(clips[0:4][:, 0])
    given = encoder.family.conditions(encoder.pipeline, inputs, encoder.settings, seeds)
    torch.testing.assert_close(found.latents, latents, atol=1e-5, rtol=1e-5)
    for name, tensor in given.tensors.items():
        torch.testing.assert_close(found.conditions.tensors[name], tensor, atol=1e-5, rtol=1e-5)


def test_prompts_go_with_their_clips(project: Path) -> None:
    class Listening:
        def conditions(self, pipeline: Any, inputs: ClipInputs, settings: Any, seed: Any) -> Any:
            assert inputs.first_frames is not None
            heard.append((inputs.prompts, int(inputs.first_frames[0, 0, 0, 0])))
            return real.family.conditions(pipeline, inputs, settings, seed)

        def encode_clips(self, pipeline: Any, clips: Tensor) -> Tensor:
            return real.family.encode_clips(pipeline, clips)

    heard: list[Any] = []
    real, clips = encoder_of(project), clips_of(project)
    prompts = [f"clip {index}" for index in range(COUNT)]
    replace(real, family=Listening(), prompts=prompts).encode(clips, [7, 2])  # type: ignore[arg-type]
    assert heard == [((f"clip {i}",), int(clips[i : i + 1][0, 0, 0, 0, 0])) for i in (7, 2)]


def test_stored_rows_are_those_made_on_the_way(project: Path) -> None:
    latents, videos = StoredLatents(project / "latents"), EncodedClips(encoder_of(project), clips_of(project))
    assert len(latents) == len(videos) == COUNT
    index = torch.tensor([10, 0, 8, 7, 0])  # both shards, their ends, one clip twice
    assert same(latents.rows(index), videos.rows(index))


def test_batches_are_those_of_data_in_memory(project: Path) -> None:
    latents = StoredLatents(project / "latents")
    family, settings = family_of(project / "teacher"), load_settings(project / "teacher")
    held = latents.rows(torch.arange(COUNT))
    from_disk, from_memory = (
        RecoveryBatches(source, family, settings, 4, 3, dropout=0.5) for source in (latents, held)
    )
    for step in range(4):  # more than an epoch
        assert same(from_disk.batch(step, 1, 2), from_memory.batch(step, 1, 2))


def spec_of(project: Path, inputs: str) -> RecoverySpec:
    params = DistillParams.model_validate({"inputs": inputs, "steps": 20, "batch_size": 1, "workers": 1})
    return RecoverySpec(
        teacher=str(project / "teacher"),
        student=str(project / "teacher"),
        prepared=str(project / "prepare"),
        latents=str(project / "latents"),
        work=str(project),
        feature_pairs=[["down_blocks.0", "down_blocks.0"]],
        settings=asdict(load_settings(project / "teacher")),
        params=params.model_dump(mode="json"),
        seed=5,
        threads=1,
    )


def test_recovery_from_videos_is_that_from_latents(project: Path) -> None:
    """As the workers build it, all terms, with batches from another thread: the first twenty losses."""
    built = [build(spec_of(project, inputs), torch.device("cpu")) for inputs in ("latents", "videos")]
    (one, latents), (other, videos) = built
    assert isinstance(latents.data, StoredLatents) and isinstance(videos.data, EncodedClips)
    losses = []
    with BatchesAhead(videos, 20) as ahead:
        for step in range(20):
            a, b = latents.batch(step), ahead.batch(step)
            assert same(a, b)
            losses.append((one.step(a)["total"], other.step(b)["total"]))
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in losses) and losses[19] != losses[0]


def test_a_killed_run_goes_on_with_the_shards_that_are_missing(project: Path, tmp_path: Path) -> None:
    """The second shard is torn off in the middle of its writing."""

    class Killed(ClipEncoder):
        def encode(self, clips: ClipSource, indices: Any) -> RecoveryData:
            if 8 in indices:
                (tmp_path / ".latents-000008.safetensors.0123.tmp").write_bytes(b"torn")
                raise KeyboardInterrupt
            return super().encode(clips, indices)

    encoder, clips = encoder_of(project), clips_of(project)
    with pytest.raises(KeyboardInterrupt):
        precompute(Killed(**vars(encoder)), clips, tmp_path, "these")
    with pytest.raises(DataError, match="not complete"):
        StoredLatents(tmp_path)
    before = shard_path(tmp_path, 0).stat()
    precompute(encoder, clips, tmp_path, "these")
    after = shard_path(tmp_path, 0).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert tree_digests(tmp_path) == tree_digests(project / "latents")  # and nothing torn is left


def test_a_worker_of_ray_data_makes_the_same_shard(project: Path, tmp_path: Path) -> None:
    """Its part without Ray around it; `tests/flows/test_encoding.py` has both."""
    settings = asdict(load_settings(project / "teacher"))
    spec = EncodeSpec(str(project / "teacher"), str(project / "prepare"), settings, 5, "cpu", 1)
    threads = torch.get_num_threads()
    try:
        assert ShardEncoder(spec, str(tmp_path))({"start": np.array([8])})["start"] == [8]
    finally:
        torch.set_num_threads(threads)
    assert shard_path(tmp_path, 8).read_bytes() == shard_path(project / "latents", 8).read_bytes()


def test_shards_of_something_else_are_refused(project: Path) -> None:
    with pytest.raises(DataError, match="other clips or another teacher"):
        precompute(encoder_of(project), clips_of(project), project / "latents", "others")


def test_a_broken_shard_is_named(project: Path, tmp_path: Path) -> None:
    for path in (project / "latents").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard_path(tmp_path, 8).write_bytes(b"short")
    latents = StoredLatents(tmp_path)
    latents.rows(torch.tensor([7]))
    with pytest.raises(DataError, match=r"latents-000008.safetensors cannot be read"):
        latents.rows(torch.tensor([8]))


def test_reading_takes_the_same_memory_for_any_number_of_clips(tmp_path: Path) -> None:
    """160 MB in 160 shards of 8 clips: no more than those that are open may be in memory."""
    data = RecoveryData(torch.zeros(8, 4, 4, 32, 64), toy_data().conditions.select(torch.zeros(8).long()))

    class Zeros(ClipEncoder):
        def encode(self, clips: ClipSource, indices: Any) -> RecoveryData:
            return data

    source = ClipSource((8 * 160, 1, 1, 1, 3), lambda indices: torch.zeros(0))
    precompute(Zeros(None, None, None, 0), source, tmp_path, "zeros")  # type: ignore[arg-type]
    latents = StoredLatents(tmp_path)
    latents.rows(torch.tensor([0]))
    before = psutil.Process().memory_info().rss
    for index in range(len(latents)):
        latents.rows(torch.tensor([index]))
    assert psutil.Process().memory_info().rss - before < 40e6
    assert len(latents._open) == stored.OPEN_SHARDS


def test_the_next_batch_is_begun_before_it_is_asked_for_and_none_behind_the_end() -> None:
    seen: dict[int, str] = {}
    begun = threading.Event()

    class Watched(RecoveryBatches):
        def batch(self, step: int, rank: int = 0, world: int = 1) -> RecoveryBatch:
            seen[step] = threading.current_thread().name
            if step == 1:
                begun.set()
            return super().batch(step, rank, world)

    with BatchesAhead(Watched(**vars(toy_batches())), stop=3) as ahead:
        ahead.batch(0)
        assert begun.wait(10)
        ahead.batch(1), ahead.batch(2)
    assert sorted(seen) == [0, 1, 2] and all(name.startswith("batches") for name in seen.values())
    ahead.waited_s[:] = [9.0, 0.5, 0.5]
    assert ahead.waiting([9.0]) == {} and ahead.waiting([9.5, 4.0, 6.0]) == {"data_wait_percent": 10.0}


def test_batches_ahead_are_the_same_in_any_order() -> None:
    """Back to an earlier step, several parts a step: a wrong guess costs time alone."""
    plain = toy_batches(batch_size=4)
    with BatchesAhead(plain, stop=9) as ahead:
        for step, rank, world in (
            (0, 0, 2),
            (0, 1, 2),
            (1, 0, 2),
            (1, 1, 2),
            (0, 0, 2),
            (5, 0, 1),
            (6, 0, 1),
        ):
            assert same(ahead.batch(step, rank, world), plain.batch(step, rank, world))


def test_an_error_in_the_thread_reaches_the_step_it_belongs_to() -> None:
    class Broken(RecoveryBatches):
        def batch(self, step: int, rank: int = 0, world: int = 1) -> RecoveryBatch:
            if step == 1:
                raise DataError("a shard is gone")
            return super().batch(step, rank, world)

    assert isinstance(toy_batches().family, ToyFamily)
    with BatchesAhead(Broken(**vars(toy_batches())), stop=3) as ahead:
        ahead.batch(0)
        with pytest.raises(DataError, match="a shard is gone"):
            ahead.batch(1)


def test_where_the_line_lies() -> None:
    assert [crew_size(0, 100), crew_size(1, 100), crew_size(4, 3)] == [0, 0, 0]
    assert [crew_size(2, 4), crew_size(4, 4), crew_size(4, 100)] == [2, 2, 4]
