"""One loader for every family's denoiser; what it does not know it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import svd_toys
import torch
from diffusers import UNet2DModel, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file
from videocrafter_toys import tiny_unet

from vdmini_core.bundled import bundled_teacher_path
from vdmini_core.errors import ModelError
from vdmini_core.models import load_denoiser


def test_only_known_denoisers_are_loaded(tmp_path):
    with pytest.raises(ModelError, match=r"there is no denoiser[\s\S]*no such directory"):
        load_denoiser(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"unet/ or transformer/[\s\S]*a file in place of a folder"):
        load_denoiser(tmp_path / "file")
    UNet2DModel(
        block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    ).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"class that is not supported[\s\S]*UNet2DModel"):
        load_denoiser(tmp_path / "other")
    tiny_unet().save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({k: v for k, v in state.items() if k != "conv_out.bias"}, weights)
    with pytest.raises(ModelError, match=r"not those of its config.json[\s\S]*1 missing: conv_out.bias"):
        load_denoiser(tmp_path / "cut")
    save_file(state | {"conv_out.bias": torch.ones(5)}, weights)
    with pytest.raises(ModelError, match=r"conv_out\.bias|not those of"):
        load_denoiser(tmp_path / "cut")
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    for change, why in (
        ({"_class_name": ["UNet3DFpsConditionModel"]}, "class that is not supported"),
        ({"inner_widths": {"nowhere": 8}}, r"inner_widths[\s\S]*nowhere: no such module"),
        ({"inner_widths": {"conv_in": 8}}, r"inner_widths[\s\S]*conv_in: this has no inner channels"),
        ({"inner_widths": [8]}, "cannot be loaded"),
        ({"norm_num_groups": 0}, "cannot be loaded"),
    ):
        (tmp_path / "cut" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=why):
            load_denoiser(tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text(json.dumps(config))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="pickled weights only"):
        load_denoiser(tmp_path / "cut")


def test_the_loader_knows_every_family(tmp_path):
    stock = svd_toys.tiny_unet()
    for name, unet in (
        ("stock", stock),
        ("pruned", svd_toys.FAMILY.prune(stock, svd_toys.FAMILY.paper_cut(stock))),
    ):
        unet.save_pretrained(tmp_path / name)
        again = load_denoiser(tmp_path / name)
        assert type(again) is type(unet) and not any(p.requires_grad for p in again.parameters())
        given = svd_toys.inputs()
        assert torch.equal(svd_toys.forward(again, given), svd_toys.forward(unet, given))
    assert type(load_denoiser(bundled_teacher_path("mini"))).__name__ == "UNetSpatioTemporalConditionModel"
    half = load_denoiser(tmp_path / "stock", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_mapped_weights_take_no_memory_of_the_process(tmp_path: Path) -> None:
    """Processes of one machine share the file's pages; a copy is what `load_denoiser` otherwise makes."""
    small = {"block_out_channels": (64, 128), "num_attention_heads": (2, 4), "cross_attention_dim": 64}
    blocks = {
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    }
    UNetSpatioTemporalConditionModel(**small, **blocks, layers_per_block=2).to(
        torch.bfloat16
    ).save_pretrained(tmp_path / "unet")
    size = sum(path.stat().st_size for path in (tmp_path / "unet").glob("*.safetensors"))
    probe = (
        "import re, sys\n"
        "from vdmini_core.models import load_denoiser\n"
        "import diffusers.models.unets.unet_spatio_temporal_condition\n"
        "told = lambda: open('/proc/self/status').read()\n"
        "own = lambda: 1024 * int(re.search(r'RssAnon:\\s+(\\d+)', told())[1])\n"
        "load_denoiser(sys.argv[1], mapped=True); before = own()\n"
        "kept = [load_denoiser(sys.argv[1], mapped=sys.argv[2] == '1') for _ in range(3)]\n"
        "print((own() - before) // 3)"
    )
    taken = {}
    for mapped in "10":
        command = [sys.executable, "-c", probe, str(tmp_path), mapped]
        taken[mapped] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert taken["1"] < 0.3 * size and taken["0"] > 1.5 * size, (taken, size)


def test_mapped_weights_are_asked_for_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as they are stored"):
        load_denoiser(tmp_path, dtype=torch.bfloat16, mapped=True)
