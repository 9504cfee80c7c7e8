"""Families by pipeline class, and the one door through which pipelines are loaded and saved."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from vdmini_core.artifacts import write_json
from vdmini_core.errors import ModelError, VDMiniError
from vdmini_core.models.base import Family, SamplingSettings
from vdmini_core.models.dit.defaults import flow_settings
from vdmini_core.models.parts import load_part, readable
from vdmini_core.models.pipeline_dir import (
    PIPELINES,
    check_directory,
    denoiser_part,
    is_absent,
    read_config,
    read_index,
)

SETTINGS = "vdmini.json"
# Pipeline class -> the module that registers its family, imported on first use.
FAMILY_MODULES = {
    "StableVideoDiffusionPipeline": "vdmini_core.models.svd",
    "VideoCrafterPipeline": "vdmini_core.models.videocrafter",
    "WanPipeline": "vdmini_core.models.dit.wan",
    "HunyuanVideoPipeline": "vdmini_core.models.dit.hunyuan_video",
    "CogVideoXPipeline": "vdmini_core.models.dit.cogvideox",
    "LTXPipeline": "vdmini_core.models.dit.ltx",
}
# As the originals' own scripts sample: VideoCrafter2, and T2V-Turbo-v2, whose U-Net is told the guidance.
TEXT_SIZE = {"frames": 16, "height": 320, "width": 512}
VIDEOCRAFTER2_DEFAULTS = {**TEXT_SIZE, "fps": 28.0, "steps": 50, "guidance": 12.0}
TURBO_DEFAULTS = {**TEXT_SIZE, "fps": 16.0, "steps": 8, "guidance": 7.5}
SVD_DEFAULTS = {"frames": 14, "height": 576, "width": 1024, "fps": 7.0, "steps": 25, "guidance": 3.0}

Cls = TypeVar("Cls", bound=type)
_families: dict[str, Family] = {}


def register_family(pipeline_class_name: str) -> Callable[[Cls], Cls]:
    """Class decorator: this family serves pipelines of that class name."""

    def register(cls: Cls) -> Cls:
        if pipeline_class_name in _families:
            raise ValueError(f"a family is already registered for {pipeline_class_name}")
        _families[pipeline_class_name] = cls()
        return cls

    return register


def family_of(pipeline_or_dir: Any) -> Family:
    """The family of a loaded pipeline, or of a pipeline directory (its `model_index.json` alone is read).

    Raises:
        ModelError: when no family is registered for the class.
    """
    if isinstance(pipeline_or_dir, str | Path):
        name = read_index(Path(pipeline_or_dir))["_class_name"]
    else:
        name = type(pipeline_or_dir).__name__
    if name not in _families and name in FAMILY_MODULES:
        importlib.import_module(FAMILY_MODULES[name])
    if name not in _families:
        raise ModelError(f"no family knows {name}", expected=" or ".join(FAMILY_MODULES), found=name)
    return _families[name]


def load_pipeline(
    directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """Load a pipeline directory for inference: safetensors only, known classes only, frozen, in eval mode.

    Raises:
        ModelError: when the directory is incomplete, unsafe or of an unknown class.
    """
    import diffusers

    import vdmini_core

    directory = Path(directory)
    index = check_directory(directory)
    with quiet_libraries(), readable(directory):  # diffusers imports a class when it is asked for
        library: Any = diffusers if hasattr(diffusers, index["_class_name"]) else vdmini_core
        pipeline = getattr(library, index["_class_name"]).from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **_networks(directory, index, dtype),
        )
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.to(device).eval().requires_grad_(False)
            own_memory(part)
    return pipeline


def _networks(directory: Path, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, nn.Module]:
    """The parts that have weights; in the denoiser's file nothing may be left over."""
    found = {}
    for part, (_, (_, stem)) in PIPELINES[index["_class_name"]].items():
        if stem is None or is_absent(index, part):
            continue
        library, name = index[part]
        cls = getattr(importlib.import_module(library), name)
        exact = part == denoiser_part(index)
        found[part] = load_part(directory / part, cls, stem, dtype, exact=exact)
    return found


def own_memory(part: nn.Module) -> None:
    """Copy tensors out of the mapped file.

    They lie there at odd addresses, for which the CPU takes other code paths: the same weights would give
    outputs that differ in the last bits.
    """
    for tensor in (*part.parameters(), *part.buffers()):
        tensor.data = tensor.data.clone()


def save_pipeline(pipeline: Any, directory: Path, settings: SamplingSettings | None) -> None:
    """Write a pipeline directory, weights as safetensors; `vdmini.json` where settings are given."""
    with quiet_libraries():
        pipeline.save_pretrained(directory, safe_serialization=True)
    for path in sorted(Path(directory).rglob("*.json")):
        _forget_origin(path)
    if settings is not None:
        save_settings(Path(directory), settings)


def save_settings(directory: Path, settings: SamplingSettings) -> None:
    """Write `vdmini.json`: the stock call's argument names (`guidance` for `max_guidance_scale`)."""
    write_json(
        directory / SETTINGS,
        {
            "num_frames": settings.frames,
            "height": settings.height,
            "width": settings.width,
            "fps": settings.fps,
            "motion_bucket_id": settings.motion_bucket_id,
            "noise_aug_strength": settings.noise_aug_strength,
            "num_inference_steps": settings.steps,
            "guidance": settings.guidance,
            "decode_chunk_size": settings.decode_chunk_size,
        },
    )


def load_settings(directory: Path, pipeline: Any = None) -> SamplingSettings:
    """How the pipeline wants to be sampled: its `vdmini.json` over the defaults of its configs.

    Without the file: 14 frames of 576x1024 at 7 fps, 25 steps, guidance 1 to 3 for the real model's size;
    frames and size from the U-Net's config for a smaller one.

    Args:
        directory: pipeline directory.
        pipeline: loaded pipeline; None reads the configs from the directory.

    Raises:
        ModelError: the configs make no model, or a value of `vdmini.json` is wrong.
    """
    directory = Path(directory)
    if pipeline is not None:
        settings = pipeline_settings(pipeline)
    else:
        name = denoiser_part(read_index(directory))
        denoiser, vae = (read_config(directory / part / "config.json") for part in (name, "vae"))
        scheduler = read_config(directory / "scheduler" / "scheduler_config.json")
        with from_configs(directory):
            settings = default_settings(denoiser, vae, scheduler)
    path = directory / SETTINGS
    return merge_settings(settings, read_config(path)) if path.is_file() else settings


@contextmanager
def from_configs(name: Path | str) -> Iterator[None]:
    """Configs are anyone's, and classes raise whatever comes of them: said as one error.

    Raises:
        ModelError: with what was raised.
    """
    try:
        yield
    except VDMiniError:
        raise
    except Exception as error:
        raise ModelError(
            f"the configs in {name} make no model",
            expected="configs as the model's class writes them",
            found=f"{type(error).__name__}: {error}".split("\n")[0][:200],
            fix="download them again; if it stays so, they are not those of these classes",
        ) from error


def pipeline_settings(pipeline: Any) -> SamplingSettings:
    """Sampling settings from the configs of a loaded pipeline's parts."""
    denoiser = getattr(pipeline, family_of(pipeline).denoiser_name)
    return default_settings(dict(denoiser.config), dict(pipeline.vae.config), dict(pipeline.scheduler.config))


def default_settings(
    unet: dict[str, Any], vae: dict[str, Any], scheduler: dict[str, Any] | None = None
) -> SamplingSettings:
    """Sampling settings from the configs of denoiser, VAE and scheduler alone."""
    if (found := flow_settings(vae, scheduler or {}, unet)) is not None:
        return found
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    if "motion_cond_proj_dim" in unet:
        rescaled = unet.get("time_cond_proj_dim") is None
        text = VIDEOCRAFTER2_DEFAULTS if rescaled else TURBO_DEFAULTS
        return SamplingSettings(**text, latent_scale=scale, rescaled_schedule=rescaled)  # type: ignore[arg-type]
    defaults: dict[str, Any] = dict(SVD_DEFAULTS)
    size: Any = unet.get("sample_size")
    real = size is None or size == 96  # the published checkpoints say 96 and sample 72x128
    if not real:
        height, width = (size, size) if isinstance(size, int) else size
        defaults |= {"frames": unet["num_frames"], "height": height * scale, "width": width * scale}
    elif unet.get("num_frames") == 25 and size == 96:
        defaults["frames"] = 25  # the XT checkpoint
    return SamplingSettings(**defaults, latent_scale=scale, decode_chunk_size=min(defaults["frames"], 14))


def merge_settings(settings: SamplingSettings, data: dict[str, Any]) -> SamplingSettings:
    """Settings with what a `vdmini.json` says laid over them.

    Raises:
        ModelError: for a value that is no number, or beyond what any model takes.
    """
    names: dict[str, tuple[str, type, float, float]] = {
        "num_frames": ("frames", int, 1, 10_000),
        "height": ("height", int, 1, 16_384),
        "width": ("width", int, 1, 16_384),
        "fps": ("fps", float, 1e-3, 1000),
        "motion_bucket_id": ("motion_bucket_id", int, 0, 10_000),
        "noise_aug_strength": ("noise_aug_strength", float, 0, 1000),
        "num_inference_steps": ("steps", int, 1, 10_000),
        "max_guidance_scale": ("guidance", float, 0, 1000),
        "guidance": ("guidance", float, 0, 1000),
        "decode_chunk_size": ("decode_chunk_size", int, 1, 10_000),
    }
    found: dict[str, Any] = {}
    for key, (field, kind, least, most) in names.items():
        value = data.get(key)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            raise ModelError(
                f"{SETTINGS}: `{key}` is wrong",
                expected=f"a number from {least:g} to {most:g}",
                found=repr(value)[:80],
                fix=f"correct it in {SETTINGS} of the pipeline directory",
            )
        found[field] = kind(value)
    return replace(settings, **found)


def fingerprint(denoiser: Any) -> str:
    """What a plan is bound to: sha256 over class, config, tensor names and bytes.

    A model on the meta device has no bytes: its fingerprint is `architecture(denoiser)`.
    """
    if next(denoiser.parameters()).is_meta:
        return architecture(denoiser)
    digest = hashlib.sha256(architecture(denoiser).encode())
    for name, tensor in sorted(denoiser.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def architecture(denoiser: Any) -> str:
    """`architecture:` and a sha256 over class, config, tensor names and shapes: the same for any weights.

    `num_frames` and `sample_size` are defaults of sampling and change no layer: they are left out.
    """
    left_out = ("num_frames", "sample_size")
    config = {k: v for k, v in denoiser.config.items() if not k.startswith("_") and k not in left_out}
    shapes = {name: list(tensor.shape) for name, tensor in denoiser.state_dict().items()}
    text = json.dumps([type(denoiser).__name__, config, shapes], sort_keys=True)
    return "architecture:" + hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and hints while a few parts load; the libraries' own settings come back afterwards."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    active = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    verbosity = of_transformers.get_verbosity()
    of_transformers.set_verbosity_error()  # it asks for torchvision, which nothing here needs
    try:
        yield
    finally:
        of_transformers.set_verbosity(verbosity)
        for library, on in zip(libraries, active, strict=True):
            if on:
                library.enable_progress_bar()


def _forget_origin(path: Path) -> None:
    """Drop `_name_or_path`, where diffusers keeps the path a part was loaded from: bytes must not hold it."""
    config = read_config(path)
    if config.pop("_name_or_path", None) is not None:
        write_json(path, config)
