"""What a model consists of, from its configs alone: units, parameters, FLOPs; no weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from torch import nn

from vdmini_core.errors import ModelError
from vdmini_core.models.base import Family, SamplingSettings
from vdmini_core.models.flops import decoder_flops, denoiser_flops
from vdmini_core.models.pipeline_dir import SVD_PARTS, check_class, read_config, read_index
from vdmini_core.models.pruned_unet import UNetSpatioTemporalPrunedModel, build_on_meta
from vdmini_core.models.pruned_vae import AutoencoderKLTemporalPrunedDecoder
from vdmini_core.models.registry import (
    default_settings,
    family_of,
    fingerprint,
    load_settings,
)
from vdmini_core.params import Granularity

# stabilityai/stable-video-diffusion-img2vid: what its configs say beside the classes' defaults.
BUILT_IN: dict[str, dict[str, dict[str, Any]]] = {
    "stable-video-diffusion": {
        "unet": {"num_frames": 14, "sample_size": 96},
        "vae": {
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "layers_per_block": 2,
            "latent_channels": 4,
            "sample_size": 768,
        },
    }
}


def load_architecture(
    directory_or_name: Path | str,
) -> tuple[Family, nn.Module, nn.Module, SamplingSettings]:
    """Family, U-Net and VAE on the meta device, and sampling settings, of a directory or a built-in name.

    Raises:
        ModelError: no such directory or name, or a class that is not supported.
    """
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

    name = str(directory_or_name)
    if name in BUILT_IN and Path(name).is_dir():
        raise ModelError(
            f"{name} is the name of a built-in architecture and of a folder here",
            fix=f"write ./{name} for the folder, or go elsewhere for the architecture",
        )
    if name in BUILT_IN:
        configs = BUILT_IN[name]
        unet = build_on_meta(UNetSpatioTemporalConditionModel, configs["unet"])
        vae = build_on_meta(AutoencoderKLTemporalDecoder, configs["vae"])
        settings = default_settings(dict(unet.config), dict(vae.config))  # type: ignore[arg-type]
        return family_of_class("StableVideoDiffusionPipeline"), unet, vae, settings
    directory = Path(directory_or_name)
    if not directory.is_dir():
        raise ModelError(
            f"there is no model {name}",
            expected=f"a pipeline directory, or {', '.join(BUILT_IN)}",
            found="no such directory",
        )
    index = read_index(directory)
    for part in ("unet", "vae"):
        check_class(part, index.get(part), SVD_PARTS[part][0])
    pruned = index["unet"][1] == UNetSpatioTemporalPrunedModel.__name__
    unet_class = UNetSpatioTemporalPrunedModel if pruned else UNetSpatioTemporalConditionModel
    unet = build_on_meta(unet_class, read_config(directory / "unet" / "config.json"))
    cut = index["vae"][1] == AutoencoderKLTemporalPrunedDecoder.__name__
    vae_class: Any = AutoencoderKLTemporalPrunedDecoder if cut else AutoencoderKLTemporalDecoder
    vae = build_on_meta(vae_class, read_config(directory / "vae" / "config.json"))
    return family_of(directory), unet, vae, load_settings(directory)


def family_of_class(name: str) -> Family:
    """The family registered for a pipeline class name."""
    return family_of(type(name, (), {})())


def inspect_model(
    directory_or_name: Path | str, settings: SamplingSettings | None = None, granularity: str = "both"
) -> dict[str, Any]:
    """Units with parameters and FLOPs of a pipeline directory or of a built-in architecture.

    Args:
        directory_or_name: pipeline directory, or `stable-video-diffusion` for the real full-size model.
        settings: size to count FLOPs at; the model's own where None.
        granularity: which units: `pair`, `block`, `both`, or `temporal`, both and temporal sub-layers.

    Returns:
        JSON-able: `name`, `family`, `denoiser` (`class`, `parameters`, `flops`, `fingerprint`), `units`,
        `vae_decoder` (`parameters`, `flops`), `settings`.

    Raises:
        ModelError: no such model, one that is not supported, or another granularity.
    """
    if granularity not in get_args(Granularity):
        raise ModelError(
            "there is no such granularity", expected=", ".join(get_args(Granularity)), found=granularity
        )
    family, unet, vae, own = load_architecture(directory_or_name)
    used = settings or own
    decoder: Any = vae.decoder
    return {
        "name": Path(directory_or_name).name,
        "family": family.name,
        "denoiser": {
            "class": type(unet).__name__,
            "parameters": _size(unet),
            "flops": denoiser_flops(unet, used)[""],
            "fingerprint": fingerprint(unet),
        },
        "units": [unit.to_dict() for unit in family.units(unet, used, granularity)],
        "vae_decoder": {"parameters": _size(decoder), "flops": decoder_flops(vae, used)[""]},
        "settings": {
            "frames": used.frames,
            "height": used.height,
            "width": used.width,
            "fps": used.fps,
            "steps": used.steps,
            "guidance": used.guidance,
        },
    }


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
