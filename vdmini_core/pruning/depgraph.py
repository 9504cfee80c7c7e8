"""Baseline `depgraph`: channel pruning with the dependency graph of Torch-Pruning (Fang et al. 2023).

Torch-Pruning finds which weights share a channel and how much each channel counts (L2 norm of its group,
relative to the group's mean). It cannot trace the whole U-Net: it loses the channels of concatenated skips
behind the reshapes between space and time. So every resnet and feed-forward network is traced by itself, and
its inner channels are what can go; residual streams keep their width, as recovery by features needs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import TemporalResnetBlock
from torch import Tensor, nn

from vdmini_core.errors import PlanError
from vdmini_core.models.base import Cut, SamplingSettings
from vdmini_core.models.flops import denoiser_flops
from vdmini_core.models.narrow import InnerWidth, groups_of, inner_widths

Channels = dict[str, tuple[int, ...]]


def channel_steps(denoiser: Any, settings: SamplingSettings) -> list[Cut]:
    """What may go, step by step: the n-th cut of a place named `path:n`, all of a place alike in cost.

    The last step of a place stays. Costs are exact and add up: everything inside grows with the width.
    """
    flops = denoiser_flops(denoiser, settings)
    steps = []
    for place in inner_widths(denoiser):
        module = denoiser.get_submodule(place.path)
        inside = [f"{place.path}.{name}" for name in _layers_inside(module)]
        parameters = _parameters_per_channel(module) * place.step
        operations = sum(flops[path] for path in inside) * place.step // place.width
        count = place.width // place.step - 1
        steps += [Cut(f"{place.path}:{n}", (), parameters, operations) for n in range(count)]
    return steps


def step_scores(denoiser: nn.Module) -> dict[str, float]:
    """Mean importance of the channels of every step, `path:n`; within a place the least important go first.

    Raises:
        PlanError: without weights, or without Torch-Pruning.
    """
    if next(denoiser.parameters()).is_meta:
        raise PlanError(
            "recipe: depgraph needs weights",
            found="a config alone",
            fix="give a teacher with weights, or recipe: paper",
        )
    scores = {}
    for place in inner_widths(denoiser):
        values = channel_importance(denoiser.get_submodule(place.path))
        order = _removal_order(place, values)
        for n in range(place.width // place.step - 1):
            chosen = order[n * place.step : (n + 1) * place.step]
            scores[f"{place.path}:{n}"] = float(values[chosen].mean())
    return scores


def kept_channels(denoiser: nn.Module, chosen: Sequence[str]) -> Channels:
    """Inner channels that stay, ascending, of every place some step of which is chosen."""
    counts: dict[str, int] = {}
    for name in chosen:
        path = name.rpartition(":")[0]
        counts[path] = counts.get(path, 0) + 1
    kept = {}
    for place in inner_widths(denoiser):
        if place.path in counts:
            order = _removal_order(place, channel_importance(denoiser.get_submodule(place.path)))
            kept[place.path] = tuple(sorted(order[counts[place.path] * place.step :]))
    return kept


def channel_importance(module: nn.Module) -> Tensor:
    """L2 importance (width,) of the inner channels of a resnet or feed-forward network, mean one.

    Raises:
        PlanError: without Torch-Pruning.
    """
    try:
        import torch_pruning as tp
    except ImportError:
        raise PlanError(
            "recipe: depgraph needs Torch-Pruning", fix='pip install "torch-pruning>=1.6"'
        ) from None
    own = copy.deepcopy(module).float().cpu().requires_grad_(True)
    with torch.enable_grad():  # it reads the graph of the backward pass
        graph = tp.DependencyGraph().build_dependency(own, example_inputs=_example(own))
    if isinstance(own, FeedForward):
        # Its second half reads the channels: seen from there, value and gate of a channel are one.
        group = graph.get_pruning_group(
            own.net[2], tp.prune_linear_in_channels, idxs=list(range(own.net[2].in_features))
        )
    else:
        first: Any = own.conv1
        group = graph.get_pruning_group(
            first, tp.prune_conv_out_channels, idxs=list(range(first.out_channels))
        )
    importance: Tensor = tp.importance.GroupMagnitudeImportance(p=2, normalizer="mean")(group)
    return importance.detach()


def _removal_order(place: InnerWidth, importance: Tensor) -> list[int]:
    """All channels, the first to go first; each step takes one channel of every normalisation group."""
    by_group = [sorted(group, key=lambda c: (float(importance[c]), c)) for group in groups_of(place)]
    return [group[n] for n in range(place.width // place.groups) for group in by_group]


def _layers_inside(module: nn.Module) -> tuple[str, ...]:
    """The layers whose operations grow with the inner width."""
    if isinstance(module, FeedForward):
        return ("net.0.proj", "net.2")
    own = ("conv1", "conv2")
    return own if module.time_emb_proj is None else (*own, "time_emb_proj")


def _parameters_per_channel(module: Any) -> int:
    if isinstance(module, FeedForward):
        first, second = module.net[0].proj, module.net[2]
        gates = first.out_features // second.in_features
        return int(gates * (first.in_features + 1) + second.out_features)
    weights = (module.conv1.weight[0].numel(), 1, 2, module.conv2.weight[:, 0].numel())
    embedded = 0 if module.time_emb_proj is None else module.time_emb_proj.in_features + 1
    return int(sum(weights) + embedded)


def _example(module: Any) -> Mapping[str, Tensor]:
    """Small inputs by argument name."""
    if isinstance(module, FeedForward):
        return {"hidden_states": torch.randn(1, 2, module.net[0].proj.in_features)}
    temporal = isinstance(module, TemporalResnetBlock)
    frames = (2,) if temporal else ()
    example = {"input_tensor": torch.randn(1, module.in_channels, *frames, 4, 4)}
    embedding = module.time_emb_proj
    width = 1 if embedding is None else embedding.in_features
    example["temb"] = torch.randn(1, *frames, width)
    return example
