"""State of a recovery in parts: every worker writes its own into safetensors files, in parts of any size.

The format is that of torch's distributed checkpoints with safetensors for its files: where a part belongs is
in the file's header, so that another number of workers can read it. What is small and whole on every worker
(numbers, the discriminator's heads and their optimiser) is handed back to the caller.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from vdmini_core.distillation.loss_watch import LossWatch
from vdmini_core.errors import TrainingError

if TYPE_CHECKING:
    from vdmini_core.distillation.recovery_step import RecoveryStep

STUDENT, EMA, MOMENT = "student.", "ema.", "optimizer."


def save_sharded(recovery: RecoveryStep, folder: Path) -> dict[str, Any]:
    """Write this worker's parts into `folder`, its own or one for all; every worker calls it.

    Returns:
        The rest of the state, the same on every worker, safe for `torch.load(weights_only=True)`.
    """
    tensors = _named_tensors(recovery)
    for key in _moments(recovery):
        tensors |= _moment(recovery, key)
    folder.mkdir(parents=True, exist_ok=True)
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    heads = recovery.head_optimizer
    return {
        "step": recovery.step_count,
        "loss_watch": asdict(recovery.loss_watch),
        "ema_updates": recovery.ema.updates,
        "moments": _moments(recovery),
        "optimizer_steps": [_steps(recovery, parameter) for parameter in recovery.student.parameters()],
        "heads": recovery.heads.state_dict(),
        "head_optimizer": heads.state_dict() if heads is not None else None,
    }


def load_sharded(recovery: RecoveryStep, folder: Path, rest: dict[str, Any]) -> None:
    """Go on where `save_sharded` was called, on any number of workers; all of them call it.

    Args:
        recovery: a fresh step, sharded or not.
        folder: with the parts of all workers.
        rest: what `save_sharded` handed back.

    Raises:
        TrainingError: when the state belongs to another student or other loss terms.
    """
    try:
        parameters = list(recovery.student.parameters())
        for parameter, steps in zip(parameters, rest["optimizer_steps"], strict=True):
            moments = {key: torch.zeros_like(parameter) for key in rest["moments"]}
            step = torch.tensor(float(steps), device=parameter.device)
            recovery.optimizer.state[parameter] = {"step": step, **moments} if steps else {}
        tensors = _named_tensors(recovery)
        for key in rest["moments"]:
            tensors |= _moment(recovery, key)
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
        recovery.heads.load_state_dict(rest["heads"])
        if recovery.head_optimizer is not None:
            recovery.head_optimizer.load_state_dict(rest["head_optimizer"])
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, dcp.CheckpointException) as error:
        raise TrainingError(
            "the checkpoint belongs to another run",
            found=str(error).split("\n")[0],
            fix="delete the stage's scratch folder under .vdmini/work and start again",
        ) from error
    recovery.ema.updates = rest["ema_updates"]
    recovery.step_count, recovery.loss_watch = rest["step"], LossWatch(**rest["loss_watch"])


def averaged_weights(folder: Path, student: nn.Module) -> dict[str, Tensor]:
    """The averaged weights from the parts in `folder`, whole, for a student of that shape; in one process."""
    weights = {name: torch.empty_like(tensor, device="cpu") for name, tensor in student.state_dict().items()}
    names = {name for name, _ in student.named_parameters()}
    wanted = {(EMA if name in names else STUDENT) + name: tensor for name, tensor in weights.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as was asked for
        dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return weights


def _named_tensors(recovery: RecoveryStep) -> dict[str, Any]:
    student = {STUDENT + name: tensor for name, tensor in recovery.student.state_dict().items()}
    return student | {EMA + name: tensor for name, tensor in recovery.ema.tensors.items()}


def _moments(recovery: RecoveryStep) -> list[str]:
    """Names of the optimiser's tensors that have the shape of a parameter; none before the first step."""
    states = recovery.optimizer.state.values()
    return sorted({key for state in states for key, value in state.items() if isinstance(value, DTensor)})


def _moment(recovery: RecoveryStep, key: str) -> dict[str, Any]:
    states = recovery.optimizer.state
    return {
        f"{MOMENT}{key}.{name}": states[parameter][key]
        for name, parameter in recovery.student.named_parameters()
        if key in states[parameter]
    }


def _steps(recovery: RecoveryStep, parameter: nn.Parameter) -> int:
    return int(recovery.optimizer.state[parameter].get("step", 0))
