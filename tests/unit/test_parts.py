"""Claims: a pipeline is loaded whole or not at all; libraries fill gaps at random and say so in a log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import svd_toys as toys
import torch
from safetensors.torch import load_file, save_file

from vdmini_core.errors import ModelError
from vdmini_core.models.registry import load_pipeline, load_settings, save_pipeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pipeline(toys.tiny_pipeline(), tmp_path / "pipeline", toys.SETTINGS)
    return tmp_path / "pipeline"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def more_layers(folder: Path) -> None:
    config = folder / "image_encoder" / "config.json"
    edit(config, num_hidden_layers=json.loads(config.read_text())["num_hidden_layers"] + 1)


def deeper_decoder(folder: Path) -> None:
    edit(folder / "vae" / "config.json", layers_per_block=3)


def narrower(folder: Path) -> None:
    edit(folder / "image_encoder" / "config.json", projection_dim=4)


def lacking(part: str, stem: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / part / f"{stem}.safetensors"
        tensors = load_file(path)
        del tensors[min(tensors)]
        save_file(tensors, path, {"format": "pt"})

    return change


def left_over(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path) | {"another.weight": torch.zeros(1)}, path, {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        more_layers,
        deeper_decoder,
        narrower,
        lacking("unet", "diffusion_pytorch_model"),
        lacking("vae", "diffusion_pytorch_model"),
        lacking("image_encoder", "model"),
        left_over,
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    folder: Path, change: Callable[[Path], None]
) -> None:
    load_pipeline(folder)
    change(folder)
    with pytest.raises(ModelError, match=r"not those of its config|cannot be loaded"):
        load_pipeline(folder)


def test_more_than_a_helper_part_needs_is_left_alone(folder: Path) -> None:
    """Stable Video Diffusion's image encoder comes with buffers that newer libraries do not have."""
    path = folder / "image_encoder" / "model.safetensors"
    save_file(load_file(path) | {"position_ids": torch.zeros(1)}, path, {"format": "pt"})
    load_pipeline(folder)


def test_settings_of_configs_that_make_no_model_are_refused(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="make no model"):
        load_settings(folder)
