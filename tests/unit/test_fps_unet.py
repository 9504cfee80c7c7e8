"""VideoCrafter2's and T2V-Turbo-v2's U-Net against the originals' outputs and against the stock class."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet3DConditionModel
from safetensors.torch import load_file
from videocrafter_toys import tiny_unet

from vdmini_core.convert.videocrafter import convert_videocrafter
from vdmini_core.errors import ModelError
from vdmini_core.models import load_denoiser
from vdmini_core.models.fps_unet import guidance_embedding
from vdmini_core.models.registry import fingerprint

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the original networks' numbers are not beside the checkout"
)
SETS = {
    "videocrafter2": ("videocrafter2", "ab"),
    "videocrafter2_width64_two_levels": ("videocrafter2", "ab"),
    "t2v_turbo_v2": ("t2v-turbo-v2", "abc"),
}


def inputs(seed=0, guidance=False):
    generator = torch.Generator().manual_seed(seed)
    given = {
        "sample": torch.randn(2, 4, 3, 4, 6, generator=generator),
        "timestep": torch.tensor([37, 881]),
        "encoder_hidden_states": torch.randn(2, 5, 64, generator=generator),
    }
    if guidance:
        given |= {"timestep_cond": torch.randn(2, 8, generator=generator)}
        given |= {"motion_cond": torch.randn(2, 8, generator=generator)}
    return given


def stock_of(model, **changes):
    """The stock class with the model's weights, all but those it has no place for."""
    config = {k: v for k, v in model.config.items() if k != "motion_cond_proj_dim"} | changes
    stock = UNet3DConditionModel.from_config(config).eval().requires_grad_(False)
    own = stock.state_dict()
    shared = {k: v for k, v in model.state_dict().items() if k in own and v.shape == own[k].shape}
    stock.load_state_dict(own | shared)
    return stock


@needs_reference
@pytest.mark.parametrize("name", SETS)
def test_the_converted_unet_repeats_the_original(name, tmp_path):
    kind, letters = SETS[name]
    arguments = json.loads((REFERENCE / name / "unet_config.json").read_text())
    stored = load_file(REFERENCE / name / "unet_weights.safetensors")
    made = convert_videocrafter(
        kind, REFERENCE / name / "unet_weights.safetensors", tmp_path / "out", config=arguments
    )
    assert made.parameters == {"unet": sum(tensor.numel() for tensor in stored.values())}
    unet = load_denoiser(tmp_path / "out")
    for letter in letters:
        io = load_file(REFERENCE / name / f"io_{letter}.safetensors")
        with torch.no_grad():
            found = unet(
                io["x"],
                io["timesteps"],
                encoder_hidden_states=io["context"],
                fps=io["fps"],
                timestep_cond=io.get("timestep_cond"),
                motion_cond=io.get("motion_cond"),
            ).sample
        assert found.shape == io["output"].shape
        assert (found - io["output"]).abs().max() <= 3e-5, letter


@needs_reference
def test_guidance_embeddings_are_those_it_was_trained_with():
    numbers = load_file(REFERENCE / "t2v_turbo_v2" / "scheduler.safetensors")
    for width in (256, 512):
        difference = (guidance_embedding(numbers["w"], width) - numbers[f"w_embedding_{width}"]).abs()
        assert difference.max() <= 1e-3
        # The last bit of the original machine's exp shows at a few frequencies, where arguments are large.
        columns = difference.amax(dim=0)
        assert (columns <= 1e-6).sum() >= 0.98 * width
    io = load_file(REFERENCE / "t2v_turbo_v2" / "io_a.safetensors")
    assert (guidance_embedding(io["motion_gs"]) - io["motion_cond"]).abs().max() <= 1e-3


def test_without_frame_rate_and_guidance_it_is_the_stock_class_bit_by_bit():
    model = tiny_unet()
    for parameter in model.fps_embedding.parameters():
        parameter.data.zero_()
    given = inputs()
    assert torch.equal(model(**given, fps=24).sample, stock_of(model)(**given).sample)


def test_one_frame_rate_is_a_bias_of_the_stock_class():
    model, given = tiny_unet(), inputs()
    stock = stock_of(model)
    rate = model.fps_embedding(model.time_proj(torch.tensor([24])))[0]
    stock.time_embedding.linear_2.bias.data += rate
    expected = stock(**given).sample
    assert (model(**given, fps=24).sample - expected).abs().max() < 1e-5
    assert (model(**given, fps=torch.tensor([24, 8])).sample[0] - expected[0]).abs().max() < 1e-5
    assert (model(**given, fps=8).sample - expected).abs().max() > 1e-3


def test_the_motion_branch_folds_into_one_projection():
    model, given = tiny_unet("t2v-turbo-v2"), inputs(guidance=True)
    for parameter in model.fps_embedding.parameters():
        parameter.data.zero_()
    embedding = model.time_embedding
    first, second = embedding.combine_proj.weight.double().chunk(2, dim=1)
    folded = [
        first @ embedding.cond_proj.weight.double(),
        second @ embedding.motion_proj.weight.double(),
    ]
    stock = stock_of(model, time_cond_proj_dim=16)
    stock.time_embedding.cond_proj.weight.data = torch.cat(folded, dim=1).float()
    both = torch.cat([given["timestep_cond"], given["motion_cond"]], dim=1)
    plain = {k: v for k, v in given.items() if not k.endswith("cond")}
    expected = stock(**plain, timestep_cond=both).sample
    assert (model(**given).sample - expected).abs().max() < 1e-5
    # Without motion guidance the second projection is skipped: another function, not the same at zero.
    alone = stock_of(model, time_cond_proj_dim=8)
    expected = alone(**plain, timestep_cond=given["timestep_cond"]).sample
    assert torch.equal(model(**plain, timestep_cond=given["timestep_cond"]).sample, expected)


def test_conditions_that_do_not_fit_are_refused():
    given = inputs(guidance=True)
    with pytest.raises(ModelError, match=r"(?s)`timestep_cond` does not fit.*none"):
        tiny_unet()(**given)
    turbo = tiny_unet("t2v-turbo-v2")
    with pytest.raises(ModelError, match="needs `timestep_cond`"):
        turbo(**{k: v for k, v in given.items() if k != "timestep_cond"})
    with pytest.raises(ModelError, match=r"(?s)`motion_cond` does not fit.*\(batch, 8\)"):
        turbo(**given | {"motion_cond": torch.zeros(2, 9)})
    assert turbo(**inputs(), return_dict=False)[0].shape == (2, 4, 3, 4, 6)


def test_it_is_saved_and_loaded_bit_by_bit(tmp_path):
    model, given = tiny_unet("t2v-turbo-v2"), inputs(guidance=True)
    model.save_pretrained(tmp_path / "unet")
    again = load_denoiser(tmp_path)
    assert type(again) is type(model) and not again.training
    assert torch.equal(again(**given).sample, model(**given).sample)


def test_layers_are_computed_twice_and_the_gradient_is_the_same():
    plain = tiny_unet()
    again = copy.deepcopy(plain)
    again.enable_gradient_checkpointing()
    calls = []
    for path in ("resnets", "temp_convs"):  # on the way in: torch ends the second computation early
        layer = again.get_submodule(f"down_blocks.0.{path}.0")
        first = next(m for m in layer.children() if next(m.parameters(), None) is not None)
        first.register_forward_pre_hook(lambda *_, path=path: calls.append(path))
    copied = copy.deepcopy(again)
    for unet in (plain, again):
        unet.requires_grad_(True)
        unet(**inputs()).sample.square().mean().backward()
    assert calls.count("resnets") == 2 and calls.count("temp_convs") == 2
    for (name, one), two in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    copied.requires_grad_(True)
    copied(**inputs()).sample.mean().backward()  # a copy has layers of its own
    assert copied.get_submodule("down_blocks.0.resnets.0.conv1").weight.grad is not None
    assert fingerprint(again) == fingerprint(plain)
