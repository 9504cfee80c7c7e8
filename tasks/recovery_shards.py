"""Checkpoints of a recovery in parts: every worker sends its own, Ray puts them into one folder."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from torch import nn

from tasks.loss_curve import LossCurve
from tasks.recovery_checkpoints import load_state, save_checkpoint
from vdmini_core.distillation.depth import load_recovered
from vdmini_core.distillation.guards import History
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.distillation.sharded_state import averaged_weights, load_sharded, save_sharded
from vdmini_core.params import DistillParams

SHARDS = "shards"


def write_parts(
    recovery: RecoveryStep, curve: LossCurve, rank: int, history: History, best: Path | None, folder: Path
) -> None:
    """Write this worker's parts; all workers call it.

    The list of sizes that makes a checkpoint complete names the files of all workers: a folder that lacks
    what one of them was still sending does not count.
    """
    rest = save_sharded(recovery, folder / SHARDS)
    sizes = {f"{SHARDS}/{path.name}": path.stat().st_size for path in (folder / SHARDS).iterdir()}
    everyone: list[dict[str, int]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, sizes)
    if rank == 0:
        parts = {name: count for each in everyone for name, count in each.items()}
        save_checkpoint(rest, curve, folder, history, parts, best)


def restore(recovery: RecoveryStep, folder: Path) -> None:
    """Go on from a checkpoint, in parts or whole; the workers may be more or fewer than those that wrote it.

    Raises:
        TrainingError: when it belongs to another run.
    """
    state = load_state(folder)
    if (folder / SHARDS).is_dir():
        load_sharded(recovery, folder / SHARDS, state)
    else:
        recovery.load_state_dict(state)


def load_averaged(folder: Path, student: nn.Module, params: DistillParams) -> None:
    """Fill a freshly cut student with the averaged weights of a checkpoint, in parts or whole."""
    if (folder / SHARDS).is_dir():
        student.load_state_dict(averaged_weights(folder / SHARDS, student))
    else:
        load_recovered(student, load_state(folder), params)
