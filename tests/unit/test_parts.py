"""Claims: a pipeline is loaded whole or not at all; libraries fill gaps at random and say so in a log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import svd_toys as toys
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from vdmini_core.errors import ModelError
from vdmini_core.models import parts, registry
from vdmini_core.models.pipeline_dir import read_index
from vdmini_core.models.registry import load_pipeline, load_settings, save_pipeline
from vdmini_core.teacher.dit_architecture import build_dit_pipeline
from vdmini_core.teacher.text_architecture import build_text_pipeline


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


def test_a_tokenizer_without_words_is_refused(tmp_path: Path) -> None:
    pipeline = build_text_pipeline(0)
    save_pipeline(pipeline, tmp_path, None)
    load_pipeline(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer has no vocabulary"):
        load_pipeline(tmp_path)


def test_words_from_elsewhere_do_not_come_into_what_is_saved(tmp_path: Path) -> None:
    """transformers reads `vocab` wherever it lies, and writes it beside the student."""
    save_pipeline(build_text_pipeline(0), tmp_path / "model", None)
    tokenizer = tmp_path / "model" / "tokenizer"
    (tmp_path / "private.json").write_text('{"SECRET": 0, "<|endoftext|>": 1}')
    edit(tokenizer / "tokenizer_config.json", vocab=str(tmp_path / "private.json"))
    with pytest.raises(ModelError, match="asks for code or files from elsewhere"):
        load_pipeline(tmp_path / "model")


def test_the_hub_is_not_asked_while_a_pipeline_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository's name in place of a config, as if nobody had looked at it."""
    asked = []

    def ask(*given: Any, **__: Any) -> None:
        asked.append(given)
        raise OSError("no network in tests")

    monkeypatch.setattr(registry, "check_directory", read_index)
    monkeypatch.setattr(parts, "demand_filled", lambda *_: None)
    monkeypatch.setattr("socket.getaddrinfo", ask)
    (folder / "unet" / "config.json").write_text('"owner/model"')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_pipeline(folder)
    assert not asked


def test_the_hub_is_there_again_afterwards_whichever_thread_is_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    first, second = parts.readable(folder), parts.readable(folder)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert constants.HF_HUB_OFFLINE
    second.__exit__(None, None, None)
    assert not constants.HF_HUB_OFFLINE


def test_tables_larger_than_the_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are held to their file; tables of positions are made, and are as large as the config says."""
    save_pipeline(build_dit_pipeline(0), tmp_path, None)
    load_pipeline(tmp_path)
    monkeypatch.setattr(parts, "TABLES", 2**16)
    edit(tmp_path / "transformer" / "config.json", rope_max_seq_len=2**16)
    with pytest.raises(ModelError, match="not those of its config"):
        load_pipeline(tmp_path)


def test_settings_of_configs_that_make_no_model_are_refused(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="make no model"):
        load_settings(folder)
