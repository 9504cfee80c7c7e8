"""FSDP2: weights, gradients, moments and moving average of the student in parts, one part on each worker.

A block is gathered for its own forward and backward pass alone. Gradients are averaged over the workers
where they are scattered, in the backward pass: whoever averages afterwards leaves the student out. The
frozen teacher is in parts too, but has no sharded root, because the discriminator leaves its forward pass
half-way (`encoder_taps`): every block is whole again behind its own hook, and what lies outside of the
blocks (the first and last convolution, the embeddings of time, a few parameters in a hundred) is kept whole.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vdmini_core.errors import TrainingError


def blocks_of(model: nn.Module) -> list[str]:
    """Paths of what is gathered at once: the members of the model's own lists of blocks, and a mid block.

    What has no weights (the placeholders of a cut student) is left out.
    """
    paths: list[str] = []
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            paths += [f"{name}.{index}" for index in range(len(child))]
        elif name == "mid_block":
            paths.append(name)
    return [path for path in paths if next(model.get_submodule(path).parameters(), None) is not None]


def shard_student(student: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """Spread every block and then the root over `mesh`, in place; parameters are float32 `DTensor`s then."""
    _shard_blocks(student, mesh, precision)
    _settle(student, mesh)
    fully_shard(student, mesh=mesh, mp_policy=_policy(precision, mesh.device_type))


def shard_teacher(teacher: nn.Module, mesh: DeviceMesh, precision: str, points: Sequence[str] = ()) -> None:
    """Spread the blocks of a frozen teacher over `mesh`, in place.

    Args:
        teacher: without gradient.
        mesh: one dimension, all workers.
        precision: `fp32`, or `bf16` to gather half the bytes.
        points: where the discriminator reads it; the forward pass may end behind any of them.

    Raises:
        TrainingError: when a point lies within a block, where a pass cannot end.
    """
    inside = [path for path in points if path not in blocks_of(teacher)]
    if inside:
        raise TrainingError(
            f"the discriminator reads the teacher inside a block, at `{inside[0]}`",
            expected="a whole block, one of " + ", ".join(blocks_of(teacher)),
            fix="use distill.parallel=ddp, or distill.lambda_mca=0",
        )
    _shard_blocks(teacher, mesh, precision)
    _settle(teacher, mesh)


def _shard_blocks(model: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    # True of diffusers' blocks, and without effect: no U-Net changes the output of a block in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(.*\) returned a view tensor")
    for path in blocks_of(model):
        block = model.get_submodule(path)
        block.to(device=mesh.device_type, dtype=torch.float32)  # one at a time: the rest may lie in its file
        fully_shard(block, mesh=mesh, mp_policy=_policy(precision, mesh.device_type))


def _settle(model: nn.Module, mesh: DeviceMesh) -> None:
    """Bring what is in no block to the device, in float32 and in memory of its own."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            tensor.data = tensor.data.to(mesh.device_type, dtype, copy=True)


def _policy(precision: str, device: str) -> MixedPrecisionPolicy:
    """Weights travel in bf16 and gradients in fp32; inputs are left to autocast, as on one worker.

    Cast at a block's door, timesteps up to 1000 would lose their last two bits. On a CPU weights travel in
    fp32: autocast does not bring norms into one precision there, and they refuse bf16 weights beside fp32.
    """
    weights = torch.bfloat16 if precision == "bf16" and device != "cpu" else None
    return MixedPrecisionPolicy(param_dtype=weights, reduce_dtype=torch.float32, cast_forward_inputs=False)


def skeleton_of(model: nn.Module) -> nn.Module:
    """The model without its weights (meta device), for a whole copy of one that is in parts."""
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach().to("meta")) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def whole_state(skeleton: nn.Module, tensors: dict[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """The state of `skeleton` with these weights, gathered one by one, on the CPU; every worker calls it.

    Args:
        skeleton: of `skeleton_of`.
        tensors: in parts, by their names in the skeleton.
        keep: False on workers that have no use for it: they take part, and get an empty dictionary.
    """
    gathered = {}
    for name, tensor in tensors.items():
        gathered_one = whole(tensor).detach()  # on the device for no longer than this: the whole may not fit
        if keep:
            gathered[name] = gathered_one.to("cpu", copy=True)
    rest = {name: tensor.cpu() for name, tensor in skeleton.state_dict().items() if not tensor.is_meta}
    return {**rest, **gathered} if keep else {}


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is in parts, gathered; another as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """This worker's part of a tensor, sharing its memory; one that is not in parts as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to `max_norm` together, in parts or not.

    Returns:
        Their norm before, over all parts: the same scalar on every worker.
    """
    parameters = list(parameters)
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm(grads))
    nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], max_norm, norm)
    return norm
