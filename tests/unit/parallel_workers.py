"""What two workers do in `test_parallel`, each in a process of its own that knows pytest's paths alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from recovery_toys import toy_batches, toy_params, toy_step
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.distillation.sharded_state import load_sharded, save_sharded
from vdmini_core.distillation.workers import average_over
from vdmini_core.params import DistillParams

STEPS, SAVED = 20, 2
Rows = list[dict[str, float]]


def gentle(**changes: object) -> DistillParams:
    """Small steps: Adam moves a weight whose gradient is rounding as far as any other."""
    small = {"learning_rate": 1e-5, "head_learning_rate": 1e-5, "lambda_adversarial": 0.5}
    return toy_params(**{"steps": STEPS, **small, **changes})


@contextmanager
def group(store: Path, rank: int, world: int) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        yield init_device_mesh("cpu", (world,))
    finally:
        dist.destroy_process_group()


def whole(world: int = 1) -> RecoveryStep:
    return toy_step(gentle(), shallow=True, average=average_over(world))


def sharded(mesh: DeviceMesh, student_seed: int = 1, **changes: object) -> RecoveryStep:
    params = gentle(parallel="fsdp2", **changes)
    return toy_step(params, student_seed, True, average=average_over(mesh.size()), mesh=mesh)


def go(step: RecoveryStep, until: int, rank: int = 0, world: int = 1) -> Rows:
    batches = toy_batches(2)
    return [step.step(batches.batch(i, rank, world)) for i in range(step.step_count, until)]


def save(step: RecoveryStep, folder: Path, rank: int) -> None:
    rest = save_sharded(step, folder)
    if rank == 0:
        torch.save(rest, folder / "rest.pt")


def resumed(mesh: DeviceMesh, folder: Path) -> RecoveryStep:
    step = sharded(mesh, student_seed=9)
    load_sharded(step, folder, torch.load(folder / "rest.pt", weights_only=True))
    return step


def worker(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with group(folder / "store", rank, world) as mesh:
        told = {"ddp": go(whole(world), STEPS, rank, world)}
        step = sharded(mesh)
        rows = go(step, SAVED, rank, world)
        save(step, folder / "by-two", rank)
        told["fsdp2"] = rows + go(step, STEPS, rank, world)
        model = step.recovered()
        told["one_to_two"] = go(resumed(mesh, folder / "by-one"), 2 * SAVED, rank, world)
    if rank == 0:
        torch.save(model.state_dict(), folder / "recovered.pt")
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
