"""The video U-Nets of diffusers whose blocks are ModelScope's, by the door that transformers pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.model_matrix import UNETS
from vdmini_core.distillation.feature_taps import feature_taps
from vdmini_core.distillation.losses import icd_loss
from vdmini_core.errors import ModelError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.calls import example_call
from vdmini_core.models.denoiser import load_denoiser
from vdmini_core.models.flops import total_flops
from vdmini_core.models.unet_family import UNetFamily

FAMILY = UNetFamily()
SIZE = SamplingSettings(2, 8, 8, 8.0, 1, latent_scale=2)
TINY = {
    "block_out_channels": (16, 16),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "norm_num_groups": 8,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}
INNER = ["D.1", "M", "U.0"]
CLASSES = {"UNet3DConditionModel": "UNet3DPrunedModel", "I2VGenXLUNet": "I2VGenXLPrunedUNet"}


def tiny(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**TINY)
        for parameter in model.parameters():  # nothing stays at zero
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def answer(model: Any) -> Tensor:
    found: Tensor = example_call(model, SIZE)(model)
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_a_video_u_net_is_cut_learns_and_comes_back(name: str, tmp_path: Path) -> None:
    teacher = tiny(name)
    units = FAMILY.units(teacher, SIZE, "temporal")
    assert {"D.0.pair.1", "D.0.pair.1.temporal", "M", "U.1.pair.2"} <= {unit.name for unit in units}
    with torch.no_grad():
        whole = answer(teacher)
        for unit in ("D.0.pair.1", "M", "U.1.pair.1.temporal"):
            with FAMILY.bypass(teacher, unit, "removed"):
                bypassed = answer(teacher)
            student: Any = FAMILY.prune(teacher, [unit])
            # removed in place and removed by surgery is the same, bit by bit
            assert torch.equal(answer(student), bypassed) and not torch.equal(bypassed, whole)
        assert torch.equal(answer(teacher), whole)
        assert answer(FAMILY.prune(teacher, INNER)).isfinite().all()

    # what a cut saves is exact
    removed = ["D.0.pair.1", *INNER, "U.1.pair.1"]
    outline = FAMILY.outline(teacher, removed)
    cuts = {cut.name: cut for cut in FAMILY.cuts(teacher, SIZE)}
    saved = [cuts[unit] for unit in ("D.0.pair.1", "inner", "U.1.pair.1")]
    assert total_flops(outline.model, SIZE) == total_flops(teacher, SIZE) - sum(cut.flops for cut in saved)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (outline.model, teacher)]
    assert sizes[0] == sizes[1] - sum(cut.parameters for cut in saved)

    # one step of recovery: features of matching pairs, frame by frame, and the teacher's answer
    student = FAMILY.prune(teacher, removed)
    pairs = [(path, outline.layer_map[path]) for path in FAMILY.feature_points(student).values()]
    student.requires_grad_(True)
    with torch.no_grad(), feature_taps(teacher, [theirs for _, theirs in pairs]) as of_teacher:
        target = answer(teacher)
    with feature_taps(student, [ours for ours, _ in pairs]) as of_student:
        made = answer(student)
    ours, theirs = zip(*((of_student[a], of_teacher[b]) for a, b in pairs), strict=True)
    assert all(feature.shape[0] == SIZE.frames for feature in ours)
    loss = icd_loss(ours, theirs, normalise=True) + (made - target).square().mean()
    loss.backward()
    torch.optim.SGD(student.parameters(), lr=1e-3).step()
    student.requires_grad_(False)
    with torch.no_grad():
        assert not torch.equal(answer(student), made)

    # what is saved comes back exactly, with what it lacks in its own config
    student.save_pretrained(tmp_path)
    loaded: Any = load_denoiser(tmp_path)
    assert type(loaded).__name__ == CLASSES[name] and list(loaded.config.removed_units) == removed
    with torch.no_grad():
        assert torch.equal(answer(loaded), answer(student))
    again = FAMILY.prune(loaded, ["U.1.pair.2"])  # and can be cut further
    assert {*again.config.removed_units} == {*removed, "U.1.pair.2"}


OF_IMAGES_OR_SOUND = {
    "AudioLDM2UNet2DConditionModel",
    "DreamLiteUNetModel",
    "Kandinsky3UNet",
    "StableCascadeUNet",
    "UNet1DModel",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNetControlNetXSModel",
}


def test_every_u_net_of_diffusers_is_spoken_of() -> None:
    exported = {
        name
        for name in dir(diffusers)
        if "UNet" in name and isinstance(getattr(diffusers, name), type) and "Pipeline" not in name
    }
    assert exported == {*UNETS, *OF_IMAGES_OR_SOUND}


def test_a_u_net_with_motion_modules_is_refused(tmp_path: Path) -> None:
    blocks = {
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    }
    sizes = {"block_out_channels": (16, 16), "norm_num_groups": 8, "cross_attention_dim": 8}
    heads = {"num_attention_heads": 2, "motion_num_attention_heads": 2}
    diffusers.UNetMotionModel(**blocks, **sizes, **heads).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="class that is not supported") as caught:
        load_denoiser(tmp_path)
    assert "found: UNetMotionModel" in str(caught.value)
