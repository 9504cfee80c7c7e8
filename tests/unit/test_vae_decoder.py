"""Compression of the temporal VAE decoder: budgets at full size, predictions that come true, exact copies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from vae_toys import SMALL, decoded, plan_of, tiny_vae

from flows.cli import app
from vdmini_core.errors import PlanError
from vdmini_core.models.inspect import load_architecture
from vdmini_core.models.pruned_vae import AutoencoderKLTemporalPrunedDecoder
from vdmini_core.pruning.vae_decoder import (
    DecoderPlan,
    DecoderRecipe,
    estimated_flops,
    plan_decoder,
    prune_decoder,
)


@pytest.mark.parametrize(("recipe", "fewer"), [("paper", 3.3), ("light", 5.0)])
def test_full_size_meets_the_paper(recipe: DecoderRecipe, fewer: float) -> None:
    _, _, vae, size = load_architecture("stable-video-diffusion")
    plan = plan_decoder(vae, size, recipe)
    assert plan.teacher_params == 63_579_183
    assert plan.teacher_flops == pytest.approx(97.2e12, rel=0.01)
    assert plan.expected_params == {"paper": 20_239_083, "light": 12_241_832}[recipe] < 39.2e6
    assert plan.teacher_flops / plan.expected_flops >= fewer
    assert not plan.mid_block and plan.layers[-1] == 1


def test_nothing_removed_is_the_teacher_bit_by_bit() -> None:
    vae = tiny_vae()
    student = prune_decoder(vae, plan_of(vae, (96, 96, 64), (2, 2, 2), True))
    assert torch.equal(decoded(student), decoded(vae))


def test_channels_that_carry_nothing_go_first() -> None:
    vae = tiny_vae((64, 64))
    resnet = vae.decoder.up_blocks[0].resnets[0].spatial_res_block
    with torch.no_grad():
        for tensor in (resnet.conv1.weight, resnet.conv1.bias, resnet.norm2.weight, resnet.norm2.bias):
            tensor[::2] = 0  # every other inner channel is never made ...
        resnet.conv2.weight[:, ::2] = 0  # ... and never read
    student: Any = prune_decoder(vae, plan_of(vae, (32, 32), (2, 2), False))
    kept = student.decoder.up_blocks[0].resnets[0].spatial_res_block
    assert torch.equal(kept.norm2.weight, resnet.norm2.weight[1::2])
    assert torch.equal(kept.conv1.bias, resnet.conv1.bias[1::2])


def test_streams_lose_dead_channels_and_a_new_shortcut_hands_the_kept_ones_on() -> None:
    """The second up block's stream is narrowed where the teacher has no shortcut."""
    vae = tiny_vae((64, 64))
    decoder = vae.decoder
    up = decoder.up_blocks[0].upsamplers[0].conv
    with torch.no_grad():
        for tensor in (up.weight, up.bias):
            tensor[1::2] = 0
        for resnet in decoder.up_blocks[1].resnets:
            for part in (resnet.spatial_res_block, resnet.temporal_res_block):
                part.conv2.weight[1::2] = 0
                part.conv2.bias[1::2] = 0
                part.conv1.weight[:, 1::2] = 0
        decoder.conv_out.weight[:, 1::2] = 0
    student: Any = prune_decoder(vae, plan_of(vae, (64, 32), (2, 2), False))
    even = torch.arange(0, 64, 2)
    assert torch.equal(student.decoder.conv_out.weight, decoder.conv_out.weight[:, even])
    assert torch.equal(student.decoder.conv_norm_out.bias, decoder.conv_norm_out.bias[even])
    shortcut = student.decoder.up_blocks[1].resnets[0].spatial_res_block.conv_shortcut
    assert torch.equal(shortcut.weight[:, :, 0, 0], torch.eye(64)[even])
    assert not shortcut.bias.any()
    # the up-sampler keeps its width, so its weights are the teacher's
    assert torch.equal(student.decoder.up_blocks[0].upsamplers[0].conv.weight, up.weight)


@given(
    widths=st.sampled_from([(64, 64), (96, 64), (64, 96, 96), (32, 64, 64)]),
    layers=st.integers(1, 2),
    data=st.data(),
)
@settings(max_examples=12, deadline=None)
def test_any_plan_gives_the_predicted_decoder(widths: tuple[int, ...], layers: int, data: Any) -> None:
    vae = tiny_vae(widths, layers)
    outward = tuple(reversed(widths))
    channels: list[int] = []
    for level, width in enumerate(outward):
        choices = list(range(32, width + 1, 32))
        if level and outward[level - 1] != width:
            choices = [c for c in choices if c != channels[-1]]
        elif level:
            choices = [c for c in choices if c <= channels[-1]]
        assume(choices)
        channels.append(data.draw(st.sampled_from(choices)))
    kept = tuple(data.draw(st.integers(1, layers + 1)) for _ in outward)
    inner = tuple(data.draw(st.sampled_from(range(32, width + 1, 32))) for width in channels)
    plan = plan_of(vae, tuple(channels), kept, False, inner)
    student = prune_decoder(vae, plan)
    out = decoded(student)
    side = 4 * 2 ** (len(widths) - 1)
    assert out.shape == (2, 3, side, side) and bool(torch.isfinite(out).all())
    latent = (4, *SMALL.latent_size, SMALL.frames)
    assert estimated_flops(plan.channels, plan.layers, latent, inner) == plan.expected_flops


def test_streams_that_carry_absolute_values_stay_and_resnets_give() -> None:
    """Three channels a normalisation group or more, where the teacher has them."""
    vae = tiny_vae((96, 64, 96))
    plan = plan_decoder(vae, SMALL, "paper")
    assert plan.channels == (96, 64, 96) and plan.inner_channels < plan.channels
    assert plan.teacher_flops / plan.expected_flops >= 3.37
    assert "inside resnets" in plan.describe()
    student: Any = prune_decoder(vae, plan)
    kept = student.decoder.up_blocks[0].resnets[0].temporal_res_block
    assert kept.conv1.out_channels == kept.conv2.in_channels == plan.inner_channels[0]
    assert kept.conv2.out_channels == 96


def test_saved_and_loaded_it_repeats_its_output(tmp_path: Path) -> None:
    vae = tiny_vae()
    student = prune_decoder(vae, plan_of(vae, (96, 64, 32), (2, 1, 1), False, (64, 64, 32)))
    student.save_pretrained(tmp_path)
    again = AutoencoderKLTemporalPrunedDecoder.from_pretrained(tmp_path).eval()
    for parameter in again.parameters():  # out of the mapped file, into aligned memory
        parameter.data = parameter.data.clone()
    assert torch.equal(decoded(again), decoded(student))
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(vae.encode(image).latent_dist.mean, again.encode(image).latent_dist.mean)


def test_a_plan_survives_its_file_and_refuses_another_decoder(tmp_path: Path) -> None:
    vae = tiny_vae()
    plan = plan_of(vae, (96, 64, 32), (2, 1, 1), False)
    plan.save(tmp_path / "plan.json")
    assert DecoderPlan.load(tmp_path / "plan.json") == plan
    with pytest.raises(PlanError, match="another decoder"):
        prune_decoder(tiny_vae((64, 64)), plan)
    with pytest.raises(PlanError, match="not what the plan expects"):
        prune_decoder(vae, dataclasses.replace(plan, expected_params=plan.expected_params + 1))
    edits: list[dict[str, Any]] = [
        {"channels": (96, 48, 32)},
        {"layers": (2, 9, 1)},
        {"inner_channels": (96, 96, 32)},
        {"mid_block": True, "channels": (64, 32, 64)},
    ]
    for edited in edits:
        with pytest.raises(PlanError, match="does not fit the decoder"):
            prune_decoder(vae, dataclasses.replace(plan, **edited))
    (tmp_path / "plan.json").write_text('{"recipe": "paper"}')
    with pytest.raises(PlanError, match="not a plan"):
        DecoderPlan.load(tmp_path / "plan.json")


def test_the_command_prints_both_plans() -> None:
    arguments = ["plan", "stable-video-diffusion", "--recipe", "paper", "--vae-decoder", "light", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["expected_params"] == 939_884_186
    assert printed["vae_decoder"]["expected_flops"] * 5 <= printed["vae_decoder"]["teacher_flops"]
    told = CliRunner().invoke(app, arguments[:-1]).stdout
    assert "VAE decoder: 512, 512, 256, 128 channels to" in told


def test_what_cannot_be_planned_is_refused_with_the_reason() -> None:
    vae = tiny_vae()
    with pytest.raises(PlanError, match="unknown recipe"):
        plan_decoder(vae, SMALL, "tiny")
    narrow = tiny_vae((32, 32))
    with pytest.raises(PlanError, match="no widths"):
        plan_decoder(narrow, dataclasses.replace(SMALL, latent_scale=2), "light")
    student = prune_decoder(vae, plan_of(vae, (96, 64, 32), (2, 1, 1), False))
    with pytest.raises(PlanError, match="stock temporal decoder"):
        plan_decoder(student, SMALL, "paper")
