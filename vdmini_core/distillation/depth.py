"""How deep the recovery goes: nothing is trained, low-rank adapters are, or every weight.

Adapters (LoRA, arXiv 2106.09685) come from `peft`, which is imported only where they are asked for. They
are merged into the weights when the student is exported: it is of the same class as without them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vdmini_core.errors import TrainingError
from vdmini_core.models.dit.table import ARCHITECTURES
from vdmini_core.params import DistillParams
from vdmini_core.pruning.plan import Plan

Depth = Literal["none", "lora", "full"]
LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)
U_NET_BLOCKS = ("down_blocks", "mid_block", "up_blocks")
PAYS = 0.5  # an adapter with more than this share of its layer's weights saves too little


def depth_for(params: DistillParams, plan: Plan) -> Depth:
    """What `distill.depth` means for a cut; `auto` looks at how much of the teacher is gone.

    The larger of the shares of parameters and of operations counts: either alone says that work is missing
    which the layers that stay have to take over.
    """
    if params.depth != "auto":
        return params.depth
    removed = 1 - min(plan.params_ratio, plan.flops_ratio)
    if removed < params.auto_lora_from:
        return "none"
    return "lora" if removed < params.auto_full_from else "full"


def open_student(student: nn.Module, params: DistillParams, seed: int) -> nn.Module:
    """Let those weights learn that the depth says, in place: all of them, or new adapters.

    Adapters start as nothing (B is 0), A is drawn from `seed`: every worker has the same.

    Raises:
        TrainingError: for a depth at which nothing is trained, or `auto`, which needs a plan (`depth_for`).
    """
    if params.depth == "full":
        return student.requires_grad_(True)
    if params.depth != "lora":
        raise TrainingError(
            "there is nothing to train", expected="depth lora or full", found=f"depth {params.depth}"
        )
    _adapt(student, params, seed)
    return student


def load_recovered(student: nn.Module, state: Mapping[str, Any], params: DistillParams) -> None:
    """Fill a freshly cut student from a checkpoint, averaged weights first, adapters merged into it.

    Args:
        student: as `prune` left it; changed in place, its class and tensor names stay.
        state: `RecoveryStep.state_dict()`.
        params: the depth that the checkpoint was trained at.
    """
    tuner = _adapt(student, params, 0) if params.depth == "lora" else None
    student.load_state_dict({**state["student"], **state["ema"]["tensors"]})
    if tuner is not None:
        tuner.merge_and_unload()


def merged_weights(student: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a student with adapters as those of one without: W + alpha / rank * B A under its own name.

    Args:
        student: with adapters beside its layers; left as it is.
        state: weights of that form, such as the averaged ones.
    """
    from peft.tuners.lora import LoraLayer

    whole = copy.deepcopy(student)
    whole.load_state_dict(state)
    merged = {
        name.replace(".base_layer.", "."): t for name, t in whole.state_dict().items() if ".lora_" not in name
    }
    for path, layer in whole.named_modules():
        if isinstance(layer, LoraLayer):
            adapted: Any = layer
            merged[f"{path}.weight"] = adapted.get_base_layer().weight + adapted.get_delta_weight("default")
    return {name: tensor.detach() for name, tensor in merged.items()}


def adapted_layers(student: nn.Module, rank: int) -> list[str]:
    """Paths of the linear and convolution layers on which an adapter of this rank pays.

    Those of the blocks: the way in and out and the embeddings are small.
    """
    transformer = ARCHITECTURES.get(type(student).__name__)
    blocks = tuple(stack.path for stack in transformer.stacks) if transformer else U_NET_BLOCKS
    return [
        path
        for path, layer in student.named_modules()
        if path.startswith(tuple(f"{block}." for block in blocks))
        and isinstance(layer, LAYERS)
        and rank * (layer.weight[0].numel() + layer.weight.shape[0]) <= PAYS * layer.weight.numel()
    ]


def trained_parameters(model: nn.Module) -> int:
    """Parameters that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _adapt(student: nn.Module, params: DistillParams, seed: int) -> Any:
    """Put adapters beside the layers and freeze all else; peft's tuner, which can merge them."""
    from peft import LoraConfig, LoraModel

    layers = adapted_layers(student, params.lora_rank)
    if not layers:
        raise TrainingError(
            f"no layer of this student is large enough for adapters of rank {params.lora_rank}",
            fix="lower distill.lora_rank, or set distill.depth=full",
        )
    config = LoraConfig(r=params.lora_rank, lora_alpha=params.lora_alpha, target_modules=layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LoraModel(student, config, "default")
