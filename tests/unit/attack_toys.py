"""Payloads that leave a file behind where they are run, and models of a few bytes to put them in."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

INDEX: dict[str, Any] = {
    "_class_name": "StableVideoDiffusionPipeline",
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
}
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}
CONFIGS = {"scheduler": "scheduler_config.json", "feature_extractor": "preprocessor_config.json"}


class Malice:
    """Unpickled it makes the file `canary` in the working folder."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch canary",)


def safetensors(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    """A file of that header, JSON-able or bytes, which may lie about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


ONE = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


def pipeline_folder(folder: Path) -> Path:
    """A directory that passes for a pipeline as long as nothing is loaded."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    for part in INDEX:
        if part != "_class_name":
            (folder / part).mkdir()
            (folder / part / CONFIGS.get(part, "config.json")).write_text("{}")
    for part, stem in WEIGHTS.items():
        safetensors(folder / part / f"{stem}.safetensors", ONE, bytes(4))
    return folder
