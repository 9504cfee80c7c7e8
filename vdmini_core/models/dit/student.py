"""From a transformer and removed layers to the student: the stock class, smaller numbers in its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.errors import PlanError
from vdmini_core.models.base import Student
from vdmini_core.models.dit.layers import Layer, canonical_layers, layers_of, stack_length
from vdmini_core.models.dit.stacks import Stack
from vdmini_core.models.dit.table import architecture_of
from vdmini_core.models.pruned_unet import build_on_meta


def build_student(teacher: Any, names: Iterable[str], weights: bool = True) -> Student:
    """Cut `names` out of a copy of `teacher`.

    Args:
        teacher: any class of the table, cut already or not; it is not changed.
        names: units to remove.
        weights: False gives the student on the meta device.

    Raises:
        PlanError: unknown units, units that have to stay, or a cut that the class cannot express.
    """
    removed = canonical_layers(teacher, names)
    gone = [layer for layer in layers_of(teacher) if layer.name in removed]
    student = build_on_meta(type(teacher), cut_config(teacher, gone))
    layer_map = _layer_map(teacher, gone, student)
    _check_layers(teacher, student, layer_map)
    if weights:
        _copy_weights(teacher, student, layer_map)
    return Student(student, layer_map, removed)


def config_of(denoiser: Any) -> dict[str, Any]:
    """Constructor arguments of a denoiser."""
    return {key: value for key, value in denoiser.config.items() if not key.startswith("_")}


def cut_config(teacher: Any, gone: Iterable[Layer]) -> dict[str, Any]:
    """The teacher's config with every number of layers, and every list of them, cut in step."""
    config = config_of(teacher)
    for stack in architecture_of(teacher).stacks:
        indices = [index for layer in gone if layer.stack == stack for index in layer.indices]
        count = stack_length(teacher, stack)
        if not indices:
            continue
        if stack.count == stack.named:
            kept = [number for i, number in enumerate(config[stack.count]) if i not in indices]
            config[stack.count] = kept
            continue
        config[stack.count] = count - len(indices)
        for key in stack.first:
            if config[key] >= 0:
                config[key] -= sum(index < config[key] for index in indices)
        for key in stack.last:
            config[key] -= sum(index >= count - config[key] for index in indices)
        if stack.named is not None:
            config[stack.named] = [n - sum(index < n for index in indices) for n in config[stack.named]]
    return config


def group_of(name: str, stacked: Iterable[str]) -> str:
    """The map's prefix of a weight: its layer where it is in a list of `stacked`, else its top module."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in stacked else parts[0]


def _lists(denoiser: Any) -> list[str]:
    stacks: tuple[Stack, ...] = architecture_of(denoiser).stacks
    return [path for stack in stacks for path in (stack.path, *stack.beside)]


def _layer_map(teacher: Any, gone: Iterable[Layer], student: nn.Module) -> dict[str, str]:
    """Student module path -> teacher module path, for every weight, in the order of the state dict."""
    stacked = _lists(teacher)
    lost = {path for layer in gone for path in layer.modules}
    kept: dict[str, list[str]] = {}
    for path in stacked:
        count = len(getattr(teacher, path, ()))
        kept[path] = [f"{path}.{i}" for i in range(count) if f"{path}.{i}" not in lost]
    found = {}
    for name in student.state_dict():
        group = group_of(name, stacked)
        path, _, index = group.partition(".")
        found[group] = kept[path][int(index)] if index else group
    return found


def _check_layers(teacher: nn.Module, student: nn.Module, layer_map: Mapping[str, str]) -> None:
    """Refuse where the class builds another layer at a place than the one that is to come there."""
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for model in (student, teacher)
    ]
    ours, theirs = (_by_group(shape, layer_map) for shape in shapes)
    for path, origin in layer_map.items():
        kinds = [
            type(model.get_submodule(p)) for model, p in ((student, path), (teacher, origin)) if "." in p
        ]
        if ours[path] != theirs.get(origin) or len(set(kinds)) > 1:
            raise PlanError(
                f"the class cannot take {origin} for its {path}",
                expected="a layer of the same make",
                found="another one: this class numbers its layers in a way that is not known here",
                fix="leave out the units before it",
            )


def _by_group(
    shapes: Mapping[str, tuple[int, ...]], layer_map: Mapping[str, str]
) -> dict[str, dict[str, tuple[int, ...]]]:
    stacked = {path.partition(".")[0] for path in layer_map if "." in path}
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        group = group_of(name, stacked)
        found.setdefault(group, {})[name.removeprefix(group)] = shape
    return found


def _copy_weights(teacher: nn.Module, student: nn.Module, layer_map: Mapping[str, str]) -> None:
    """Give the (meta) student its own copies of the teacher's weights, and of what the class makes itself."""
    stacked = {path.partition(".")[0] for path in layer_map if "." in path}
    source, state = teacher.state_dict(), {}
    for name in student.state_dict():
        group = group_of(name, stacked)
        state[name] = source[layer_map[group] + name.removeprefix(group)].detach().clone()
    student.load_state_dict(state, strict=True, assign=True)
    origins = {n: p.requires_grad for n, p in teacher.named_parameters()}
    for name, parameter in student.named_parameters():
        group = group_of(name, stacked)
        parameter.requires_grad_(origins[layer_map[group] + name.removeprefix(group)])
    modules = dict(teacher.named_modules())
    for name, module in student.named_modules():
        group = group_of(name, stacked) if name else ""
        origin = modules.get(layer_map.get(group, group) + name.removeprefix(group))
        if origin is not None:
            _copy_unsaved(origin, module)


def _copy_unsaved(origin: nn.Module, module: nn.Module) -> None:
    """Buffers and plain tensors that no state dict holds (frequencies of positions and the like)."""
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_meta:
            module._buffers[name] = _copied(origin._buffers[name])
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor) and value.is_meta:
            setattr(module, name, _copied(getattr(origin, name)))


def _copied(tensor: Any) -> Any:
    return tensor.detach().clone() if isinstance(tensor, torch.Tensor) else tensor
