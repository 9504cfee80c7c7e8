"""Every video transformer that the pinned diffusers exports, through one door: units, student, features."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.dit_toys import CONFIGS, tiny_dit, tiny_maker
from vdmini_core.distillation.discriminator import encoder_points
from vdmini_core.distillation.feature_taps import feature_taps
from vdmini_core.distillation.losses import icd_loss
from vdmini_core.errors import ModelError, PlanError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.dit.arguments import arguments
from vdmini_core.models.dit.counting import dit_flops
from vdmini_core.models.dit.layers import layers_of
from vdmini_core.models.dit.structure import TransformerFamily
from vdmini_core.models.dit.table import ARCHITECTURES
from vdmini_core.models.registry import own_memory

FAMILY = TransformerFamily()
NO_BACKWARD = {"AnyFlowFARTransformer3DModel", "Kandinsky6SRTransformer3DModel"}  # flex attention, on a CPU
CASES = [(name, config) for name, configs in CONFIGS.items() for config in configs]
IDS = [f"{name}-{number}" for name, configs in CONFIGS.items() for number in range(len(configs))]


def tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [] if output is None else [tensor for part in output for tensor in tensors(part)]


def answer(name: str, model: Any) -> list[Tensor]:
    return tensors(model(**arguments(model, tiny_maker(name)), return_dict=False))


def video_transformers() -> set[str]:
    """Classes of diffusers that see clips: by name, or by a forward that takes vision tokens."""
    import diffusers

    found = set()
    for name in (name for name in dir(diffusers) if "Transformer" in name or "DiT" in name):
        cls = getattr(diffusers, name)
        if inspect.isclass(cls) and issubclass(cls, diffusers.ModelMixin):
            sees_clips = "vision_tokens" in inspect.signature(cls.forward).parameters
            if name.endswith("Transformer3DModel") or sees_clips:
                found.add(name)
    return found


def test_the_table_holds_every_video_transformer_of_diffusers() -> None:
    assert video_transformers() == set(ARCHITECTURES) == set(CONFIGS)
    assert len(ARCHITECTURES) >= 30


@pytest.mark.parametrize(("name", "config"), CASES, ids=IDS)
def test_a_class_is_cut_and_its_student_is_stock(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    warnings.simplefilter("ignore")
    teacher = tiny_dit(name, config)
    free = [layer for layer in layers_of(teacher) if not layer.reason]
    with torch.no_grad():
        whole = answer(name, teacher)
        # removed in place and removed by surgery is the same, bit by bit
        student = FAMILY.prune(teacher, [free[0].name])
        with FAMILY.bypass(teacher, free[0].name, "removed"):
            bypassed = answer(name, teacher)
        cut = answer(name, student)
        assert all(torch.equal(a, b) for a, b in zip(cut, bypassed, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(cut, whole, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(answer(name, teacher), whole, strict=True))
        everything = FAMILY.prune(teacher, [layer.name for layer in free])
        assert all(part.isfinite().all() for part in answer(name, everything))
    assert type(student) is type(teacher)

    # one step of recovery: features of matching layers, frame by frame, and the teacher's answer
    outline = FAMILY.outline(teacher, [free[0].name])
    pairs = [(path, outline.layer_map[path]) for path in FAMILY.feature_points(student).values()]
    learns = name not in NO_BACKWARD
    student.requires_grad_(learns)
    with torch.no_grad(), feature_taps(teacher, [theirs for _, theirs in pairs]) as teacher_features:
        target = answer(name, teacher)
    with feature_taps(student, [ours for ours, _ in pairs]) as features:
        made = answer(name, student)
    sides = zip(*((features[ours], teacher_features[theirs]) for ours, theirs in pairs), strict=True)
    loss = icd_loss(*sides, normalise=True)
    loss = loss + torch.stack([(a - b).square().mean() for a, b in zip(made, target, strict=True)]).sum()
    assert loss.isfinite() and loss > 0
    if learns:
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
        before = [parameter.detach().clone() for parameter in student.parameters()]
        loss.backward()
        optimizer.step()
        gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        moved = sum(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
        assert moved > len(before) / 4, "one class has layers for sound, which this call does not use"
    architecture, maker = ARCHITECTURES[name], tiny_maker(name)
    if architecture.layout != "packed":
        shape = features[pairs[0][0]].shape
        assert shape[0] == maker.batch * maker.frames and len(shape) == 4

    # what is saved loads with diffusers alone, exactly
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    own_memory(loaded)  # as `load_pipeline` does: in the mapped file some CPUs take other code paths
    with torch.no_grad():
        ours, theirs = answer(name, student), answer(name, loaded)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


UNCOUNTED = {"AnyFlowFARTransformer3DModel", "HeliosTransformer3DModel", "Kandinsky6SRTransformer3DModel"}


def test_operations_are_counted_but_for_three_classes() -> None:
    refused = set()
    for name, configs in CONFIGS.items():
        teacher, maker = tiny_dit(name, configs[0]), tiny_maker(name)
        settings = SamplingSettings(maker.frames, maker.height, maker.width, 8.0, 1, latent_scale=1)
        try:
            flops = dit_flops(teacher, settings, text_tokens=4)
        except ModelError:
            refused.add(name)
            continue
        layer = next(layer for layer in layers_of(teacher) if not layer.reason)
        assert all(0 < flops[path] < flops[""] for path in layer.modules)
    assert refused == UNCOUNTED


def test_units_that_have_to_stay_say_why_and_cannot_be_cut() -> None:
    reasons = {
        "MochiTransformer3DModel": "layer.3",
        "LatteTransformer3DModel": "layer.0",
        "WanVACETransformer3DModel": "layer.2",
        "MotifVideoTransformer3DModel": "single.3",
        "WanAnimate2Transformer3DModel": "layer.9",
    }
    for name, unit in reasons.items():
        teacher = tiny_dit(name, CONFIGS[name][0])
        layer = next(layer for layer in layers_of(teacher) if layer.name == unit)
        assert layer.reason
        with pytest.raises(PlanError, match="cannot be removed"):
            FAMILY.prune(teacher, [unit])
    with pytest.raises(PlanError, match=r"did you mean `layer\.3`"):
        FAMILY.prune(tiny_dit("WanTransformer3DModel", CONFIGS["WanTransformer3DModel"][0]), ["layers.3"])


def test_lists_in_a_config_are_cut_in_step() -> None:
    vace = tiny_dit("WanVACETransformer3DModel", CONFIGS["WanVACETransformer3DModel"][0])
    student: Any = FAMILY.prune(vace, ["layer.1"])
    assert (student.config.num_layers, student.config.vace_layers) == (3, [0, 1])
    student = FAMILY.prune(vace, ["control.1"])
    assert (student.config.num_layers, student.config.vace_layers) == (4, [0])
    motif = tiny_dit("MotifVideoTransformer3DModel", CONFIGS["MotifVideoTransformer3DModel"][0])
    student = FAMILY.prune(motif, ["single.0", "single.2"])
    assert (student.config.num_single_layers, student.config.num_decoder_layers) == (2, 1)
    easy = tiny_dit("EasyAnimateTransformer3DModel", CONFIGS["EasyAnimateTransformer3DModel"][0])
    student = FAMILY.prune(easy, ["layer.0", "layer.3"])
    assert (student.config.num_layers, student.config.mmdit_layers) == (2, 1)


def test_a_replaced_layer_keeps_its_scale_and_comes_back() -> None:
    name = "WanTransformer3DModel"
    teacher = tiny_dit(name, CONFIGS[name][0])
    with torch.no_grad():
        before = answer(name, teacher)[0]
        with FAMILY.bypass(teacher, "layer.1", "replaced", seed=1):
            one = answer(name, teacher)[0]
        with FAMILY.bypass(teacher, "layer.1", "replaced", seed=1):
            again = answer(name, teacher)[0]
        assert torch.equal(one, again) and not torch.equal(one, before)
        assert torch.equal(answer(name, teacher)[0], before)


def test_tokens_are_put_on_the_grid_of_their_frames() -> None:
    name = "WanTransformer3DModel"
    teacher, maker = tiny_dit(name, CONFIGS[name][0]), tiny_maker(name)
    kept: dict[str, Tensor] = {}
    handle = teacher.blocks[1].register_forward_hook(lambda _m, _a, output: kept.update(tokens=output))
    with torch.no_grad(), feature_taps(teacher, ["blocks.1"]) as features:
        teacher(**arguments(teacher, maker))
    handle.remove()
    feature = features["blocks.1"].unflatten(0, (maker.batch, maker.frames))
    assert feature.shape == (2, 3, 24, 2, 2)
    assert torch.equal(feature[1, 2, :, 1, 0], kept["tokens"][1, 2 * 4 + 2])


def test_the_discriminator_reads_a_few_layers_of_the_first_half() -> None:
    class Eighty(TransformerFamily):
        def feature_points(self, denoiser: Any) -> dict[str, str]:
            return {f"layer.{i}": f"blocks.{i}" for i in range(80)}

    assert encoder_points(Eighty(), torch.nn.Identity()) == (
        "blocks.9",
        "blocks.19",
        "blocks.29",
        "blocks.39",
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["WanTransformer3DModel", "HunyuanVideoTransformer3DModel"])
def test_what_a_cut_saves_is_exact(name: str) -> None:
    teacher, maker = tiny_dit(name, CONFIGS[name][0]), tiny_maker(name)
    settings = SamplingSettings(maker.frames, maker.height, maker.width, 8.0, 1, latent_scale=1)
    cut = FAMILY.cuts(teacher, settings)[-1]
    student = FAMILY.prune(teacher, [cut.name])
    assert dit_flops(student, settings)[""] == dit_flops(teacher, settings)[""] - cut.flops
    sizes = [sum(p.numel() for p in model.parameters()) for model in (student, teacher)]
    assert sizes[0] == sizes[1] - cut.parameters
