"""Checkpoints and configs that cannot be converted: refused, nothing run, nothing left behind."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from videocrafter_toys import ARGUMENTS, TURBO, original_unet, tiny_unet, unet_file

from vdmini_core.convert.checkpoint import UNET
from vdmini_core.convert.videocrafter import convert_videocrafter
from vdmini_core.errors import ModelError
from vdmini_core.models import load_denoiser

NO_GUIDANCE = {"time_cond_proj_dim": None, "motion_cond_proj_dim": None}


class Malice:
    def __reduce__(self):
        return os.system, ("touch executed",)


def damaged(kind, folder):
    """A file that must be refused, and what the refusal says."""
    path = folder / f"{kind}.ckpt"
    if kind in ("malice", "bare malice"):
        path.write_bytes(
            pickle.dumps({"state_dict": Malice()}, protocol=2)
        ) if kind == "bare malice" else torch.save(
            {"state_dict": {"time_embed.0.weight": torch.ones(1)}, "callbacks": Malice()}, path
        )
    elif kind == "object":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "text":
        path.write_text("to be downloaded by hand\n")
    elif kind == "module of others":
        torch.save({"module": {"model.of.another.kind.weight": torch.ones(1)}}, path)
    elif kind == "noise":
        path.write_bytes(bytes(range(256)) * 9)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "numbers":
        torch.save({"state_dict": {"time_embed.0.weight": 3}}, path)
    elif kind == "cut zip":
        torch.save(original_unet(tiny_unet()), path)
        path.write_bytes(path.read_bytes()[:-4000])
    elif kind == "cut safetensors":
        path = unet_file(path.with_suffix(".safetensors"))
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "lacking":
        path = unet_file(path.with_suffix(".safetensors"), drop="output_blocks.3.2.proj_out.bias")
    elif kind == "of another model":
        path = unet_file(path.with_suffix(".safetensors"), kind="t2v-turbo-v2")
    elif kind == "with more":
        path = unet_file(path.with_suffix(".safetensors"), **{"input_blocks.9.0.op.bias": torch.ones(1)})
    elif kind == "whole numbers":
        path = unet_file(path.with_suffix(".safetensors"), **{"out.2.bias": torch.ones(4, dtype=torch.int8)})
    elif kind == "infinite":
        path = unet_file(path.with_suffix(".safetensors"), **{"out.2.bias": torch.full((4,), float("inf"))})
    elif kind == "sparse":
        torch.save({"time_embed.0.weight": torch.ones(2, 2).to_sparse()}, path)
    elif kind == "without values":
        torch.save({"time_embed.0.weight": torch.ones(2, 2, device="meta")}, path)
    elif kind.startswith("schedule"):
        schedule = {"scalar": torch.tensor(1.0), "empty": torch.ones(0), "whole": torch.arange(1000)}
        stored = {"alphas_cumprod": schedule[kind.split()[1]]}
        torch.save({UNET + "time_embed.0.bias": torch.ones(1)} | stored, path)
    else:
        torch.save({UNET + "time_embed.0.bias": torch.ones(1), "strange.weight": torch.ones(1)}, path)
    return path


REFUSED = {
    "malice": r"nothing in it was run[\s\S]*an object of `posix.system`",
    "bare malice": r"nothing in it was run[\s\S]*an object of `posix.system`",
    "object": r"nothing in it was run[\s\S]*an object of `torch.nn.modules.linear.Linear`",
    "text": r"cannot be read[\s\S]*no checkpoint",
    "module of others": "1 others, such as model.of.another.kind.weight",
    "noise": "cannot be read",
    "empty": "cannot be read",
    "numbers": "holds no weights",
    "cut zip": "cannot be read",
    "cut safetensors": "cannot be read",
    "lacking": r"1 missing: up_blocks.1.temp_attentions.1.proj_out.bias[\s\S]*cut off",
    "of another model": "use `convert t2v-turbo-v2`",
    "with more": r"1 without a place: input_blocks.9.0.op.bias",
    "infinite": r"not finite[\s\S]*conv_out.bias",
    "whole numbers": r"1 not floating point: conv_out.bias of torch.int8[\s\S]*quantised",
    "sparse": r"not converted[\s\S]*time_embed.0.weight, torch.sparse_coo",
    "without values": r"not converted[\s\S]*on meta",
    "schedule scalar": r"another noise schedule[\s\S]*of shape \(\)",
    "schedule empty": r"another noise schedule[\s\S]*of shape \(0,\)",
    "schedule whole": r"another noise schedule[\s\S]*torch.int64",
    "strange": "1 others, such as strange.weight",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_wrong_checkpoint_is_refused_and_nothing_is_left(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = damaged(kind, tmp_path)
    with pytest.raises(ModelError, match=REFUSED[kind]) as refusal:
        convert_videocrafter("videocrafter2", path, tmp_path / "out", config=ARGUMENTS)
    assert "Re-running" not in str(refusal.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("kind", "of", "arguments", "why"),
    [
        ("t2v-turbo-v2", "videocrafter2", TURBO, "use `convert videocrafter2`"),
        ("t2v-turbo-v2", "t2v-turbo-v2", TURBO | {"motion_cond_proj_dim": None}, "told the motion guidance"),
        ("videocrafter2", "t2v-turbo-v2", TURBO, "use `convert t2v-turbo-v2`"),
        ("t2v-turbo-v2", "videocrafter2", ARGUMENTS | NO_GUIDANCE, "use `convert videocrafter2`"),
    ],
)
def test_another_kind_of_unet_is_named(kind, of, arguments, why, tmp_path):
    path = unet_file(tmp_path / "unet.safetensors", of)
    with pytest.raises(ModelError, match=why):
        convert_videocrafter(kind, path, tmp_path / "out", config=arguments)


def test_a_turbo_unet_without_motion_guidance_says_so(tmp_path):
    path = tmp_path / "unet.safetensors"
    state = original_unet(tiny_unet("t2v-turbo-v2"))
    gone = ("motion_cond_proj.weight", "combine_proj.weight")
    save_file({k: v.contiguous() for k, v in state.items() if k not in gone}, path)
    with pytest.raises(ModelError, match='"motion_cond_proj_dim": null'):
        convert_videocrafter("t2v-turbo-v2", path, tmp_path / "out", config=TURBO)
    convert_videocrafter(
        "t2v-turbo-v2", path, tmp_path / "out", config=TURBO | {"motion_cond_proj_dim": None}
    )
    assert load_denoiser(tmp_path / "out").config.motion_cond_proj_dim is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"num_res_blocks": 2}, r"missing[\s\S]*--config"),
        ({"model_channels": 64}, r"of another shape[\s\S]*--config"),
        ({"model_channels": 33}, "multiple of 32"),
        ({"model_channels": "32"}, "whole number"),
        ({"model_channels": 32 * 10**9}, "from 1 to 65536"),
        ({"num_res_blocks": 10**6}, "from 1 to 64"),
        ({"channel_mult": [1, 10**4]}, "at most 65536 channels"),
        ({"channel_mult": 4}, "a list of whole numbers"),
        ({"attention_resolutions": [8]}, r"factors out of \[1, 2\]"),
        ({"num_head_channels": 48}, "a divisor"),
        ({"use_causal_attention": True}, "the only structure that is converted"),
        ({"use_relative_position": True}, "the only structure that is converted"),
        ({"modelchannels": 32}, "did you mean `model_channels`"),
        ({"time_cond_proj_dim": 8}, "use `convert t2v-turbo-v2`"),
        ({"motion_cond_proj_dim": 8}, "use `convert t2v-turbo-v2`"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, why, tmp_path):
    path = unet_file(tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match=why):
        convert_videocrafter("videocrafter2", path, tmp_path / "out", config=ARGUMENTS | changes)
    assert not (tmp_path / "out").exists()
