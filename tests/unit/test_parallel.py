"""Two workers do what one does: averaged or in parts, and from each other's checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import parallel_workers as work
import pytest
import torch
import torch.multiprocessing as mp
from recovery_toys import toy_unet

from vdmini_core.distillation.sharded_state import averaged_weights
from vdmini_core.distillation.sharding import blocks_of, shard_student, shard_teacher, skeleton_of
from vdmini_core.errors import TrainingError
from vdmini_core.models import load_denoiser

LOSSES = (
    *("total", "task", "icd", "mca_generator", "mca_discriminator"),
    *("adversarial_generator", "adversarial_discriminator"),
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All curves: `alone` is one process without workers, the rest is named in `parallel_workers`."""
    folder = tmp_path_factory.mktemp("parallel")
    step = work.whole()
    rows = {"alone": work.go(step, work.STEPS)}
    with work.group(folder / "store-one", 0, 1) as mesh:
        one = work.sharded(mesh)
        rows["one_in_parts"] = work.go(one, work.SAVED)
        work.save(one, folder / "by-one", 0)
    mp.spawn(work.worker, (2, folder), nprocs=2)
    with work.group(folder / "store-again", 0, 1) as mesh:
        rows["two_to_one"] = work.go(work.resumed(mesh, folder / "by-two"), 2 * work.SAVED)
    first, second = (json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2))
    assert first == second  # every worker knows the same numbers
    return {**rows, **first, "folder": folder, "recovered": step.recovered().state_dict()}


def close(found: work.Rows, wanted: work.Rows) -> None:
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        for name in LOSSES:
            assert a[name] == pytest.approx(b[name], abs=1e-4), (index, name)
    # Adam and clipping hide a gradient of another scale, its norm does not
    norms = [[row["grad_norm"] for row in rows[:2]] for rows in (found, wanted)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.timeout(300)
def test_two_averaging_workers_follow_one_process(told: dict[str, Any]) -> None:
    close(told["ddp"], told["alone"])
    assert len(told["ddp"]) == 20


@pytest.mark.timeout(300)
def test_two_workers_in_parts_follow_two_averaging_ones(told: dict[str, Any]) -> None:
    close(told["fsdp2"], told["ddp"])
    close(told["one_in_parts"], told["alone"][: work.SAVED])


@pytest.mark.timeout(300)
def test_parts_of_two_workers_are_read_by_one_and_the_other_way(told: dict[str, Any]) -> None:
    wanted = told["alone"][work.SAVED : 2 * work.SAVED]
    close(told["two_to_one"], wanted)
    close(told["one_to_two"], wanted)


@pytest.mark.timeout(300)
def test_the_whole_student_comes_out_of_the_parts(told: dict[str, Any]) -> None:
    """Gathered by the workers, and read from their files without any."""
    folder = told["folder"]
    gathered = torch.load(folder / "recovered.pt", weights_only=True)
    assert gathered.keys() == told["recovered"].keys()
    began = toy_unet(1, levels=2).state_dict()  # ten times what may differ was learned
    assert (
        max((gathered[name] - began[name]).abs().max() for name in began) > 5e-5
    )  # ten times what may differ
    for name, tensor in gathered.items():
        torch.testing.assert_close(tensor, told["recovered"][name], rtol=0, atol=5e-6)
    student = toy_unet(5, levels=2)
    one, two = (averaged_weights(folder / name, student) for name in ("by-one", "by-two"))
    assert one.keys() == gathered.keys()
    assert not torch.equal(one["conv_in.weight"], gathered["conv_in.weight"])
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=5e-6)


def test_both_workers_write_and_nothing_is_written_twice(told: dict[str, Any]) -> None:
    one, two = (sorted((told["folder"] / name).glob("*.safetensors")) for name in ("by-one", "by-two"))
    assert (len(one), len(two)) == (1, 2)
    sizes = [path.stat().st_size for path in two]
    assert max(sizes) < 0.7 * one[0].stat().st_size
    assert sum(sizes) == pytest.approx(one[0].stat().st_size, rel=0.1)


def test_blocks_are_the_members_of_the_models_lists() -> None:
    assert blocks_of(toy_unet(levels=2)) == [
        *("down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1", "mid_block"),
    ]


def test_a_pass_may_not_end_inside_a_block() -> None:
    with pytest.raises(TrainingError, match=r"inside a block, at `down_blocks.0.attentions.0`"):
        shard_teacher(toy_unet(levels=2), None, "fp32", ["down_blocks.0.attentions.0"])  # type: ignore[arg-type]


def test_a_skeleton_has_names_and_shapes_and_no_weights() -> None:
    unet = toy_unet(levels=2)
    bare = skeleton_of(unet)
    assert all(parameter.is_meta for parameter in bare.parameters())
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (unet, bare)]
    assert shapes[0] == shapes[1] and not any(p.is_meta for p in unet.parameters())


def test_a_whole_state_is_not_taken_for_parts(tmp_path: Path) -> None:
    step = work.whole()
    with pytest.raises(TrainingError, match="another run"):
        work.load_sharded(step, tmp_path, step.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_taken_from_weights_that_lie_in_their_file(dtype: torch.dtype, tmp_path: Path) -> None:
    """As from memory, bit for bit, in float32; and nothing keeps the whole."""
    toy_unet(3, levels=2).to(dtype).save_pretrained(tmp_path / "unet")
    inputs = {
        "sample": torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor(0.5),
        "encoder_hidden_states": torch.ones(1, 1, toy_unet(3, levels=2).config.cross_attention_dim),
        "added_time_ids": torch.ones(1, 3),
    }
    with work.group(tmp_path / "store", 0, 1) as mesh, torch.no_grad():
        found = []
        for mapped in (True, False):
            teacher, student = (load_denoiser(tmp_path, mapped=mapped) for _ in range(2))
            assert {p.dtype for p in student.parameters()} == {dtype if mapped else torch.float32}
            shard_teacher(teacher, mesh, "fp32")
            shard_student(student, mesh, "fp32")
            for model in (teacher, student):
                assert {p.dtype for p in model.parameters()} == {torch.float32}
                found.append(model(**inputs, return_dict=False)[0])
        assert all(torch.equal(found[0], other) for other in found[1:])
