"""What a model consists of, from its configs alone: units, parameters, FLOPs; no weights are read."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import nn

from vdmini_core.errors import ModelError
from vdmini_core.foreign import demand_few_layers
from vdmini_core.models.base import Family, SamplingSettings
from vdmini_core.models.flops import decoder_flops, denoiser_flops
from vdmini_core.models.pipeline_dir import (
    INDEX,
    PIPELINES,
    check_class,
    denoiser_part,
    found_at,
    read_config,
    read_index,
)
from vdmini_core.models.pruned_unet import build_on_meta
from vdmini_core.models.registry import (
    default_settings,
    family_of,
    fingerprint,
    from_configs,
    load_settings,
)
from vdmini_core.params import Granularity

# What the configs of the published models say beside the classes' defaults: first the pipeline's class.
STABLE_DIFFUSION_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEMPORAL_VAE = {**STABLE_DIFFUSION_VAE, "sample_size": 768}
FRAME_VAE = {**STABLE_DIFFUSION_VAE, "up_block_types": ["UpDecoderBlock2D"] * 4}
SVD_INDEX: dict[str, Any] = {
    "_class_name": "StableVideoDiffusionPipeline",
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}
WAN_INDEX: dict[str, Any] = {
    "_class_name": "WanPipeline",
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
COGVIDEOX_INDEX: dict[str, Any] = {
    "_class_name": "CogVideoXPipeline",
    "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLCogVideoX"],
}
BUILT_IN: dict[str, dict[str, dict[str, Any]]] = {
    "stable-video-diffusion": {  # stabilityai/stable-video-diffusion-img2vid
        "index": SVD_INDEX,
        "unet": {"num_frames": 14, "sample_size": 96},
        "vae": TEMPORAL_VAE,
    },
    "stable-video-diffusion-xt": {  # stabilityai/stable-video-diffusion-img2vid-xt: the same network
        "index": SVD_INDEX,
        "unet": {"num_frames": 25, "sample_size": 96},
        "vae": TEMPORAL_VAE,
    },
    "videocrafter2": {
        "index": {
            "_class_name": "VideoCrafterPipeline",
            "unet": ["vdmini_core", "UNet3DFpsConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet": {},
        "vae": FRAME_VAE,
    },
    "t2v-turbo-v2": {
        "index": {
            "_class_name": "VideoCrafterPipeline",
            "unet": ["vdmini_core", "UNet3DFpsConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet": {"time_cond_proj_dim": 256, "motion_cond_proj_dim": 256},
        "vae": FRAME_VAE,
    },
    "hunyuan-video": {  # hunyuanvideo-community/HunyuanVideo; its configs are the classes' defaults
        "index": {
            "_class_name": "HunyuanVideoPipeline",
            "transformer": ["diffusers", "HunyuanVideoTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
        },
        "transformer": {"num_layers": 20, "num_single_layers": 40, "text_embed_dim": 4096},
        "vae": {},
        "scheduler": {"shift": 7.0},
    },
    "wan2.1-t2v-1.3b": {  # Wan-AI/Wan2.1-T2V-1.3B-Diffusers
        "index": WAN_INDEX,
        "transformer": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        "vae": {},
        "scheduler": {"flow_shift": 3.0},
    },
    "cogvideox-2b": {  # THUDM/CogVideoX-2b; its configs are the classes' defaults
        "index": COGVIDEOX_INDEX,
        "transformer": {},
        "vae": {},
        "scheduler": {"snr_shift_scale": 3.0},
    },
    "cogvideox-5b": {  # THUDM/CogVideoX-5b
        "index": COGVIDEOX_INDEX,
        "transformer": {
            "num_attention_heads": 48,
            "num_layers": 42,
            "use_rotary_positional_embeddings": True,
        },
        "vae": {"scaling_factor": 0.7},
        "scheduler": {"snr_shift_scale": 1.0},
    },
    "ltx-video": {  # Lightricks/LTX-Video; its configs are the classes' defaults
        "index": {
            "_class_name": "LTXPipeline",
            "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLLTXVideo"],
        },
        "transformer": {},
        "vae": {},
        "scheduler": {
            "use_dynamic_shifting": True,
            "base_image_seq_len": 1024,
            "max_image_seq_len": 4096,
            "base_shift": 0.95,
            "max_shift": 2.05,
        },
    },
    "wan2.1-t2v-14b": {  # Wan-AI/Wan2.1-T2V-14B-Diffusers; the class's defaults
        "index": WAN_INDEX,
        "transformer": {},
        "vae": {},
        "scheduler": {"flow_shift": 3.0},
    },
}


def load_architecture(
    directory_or_name: Path | str,
) -> tuple[Family, nn.Module, nn.Module, SamplingSettings]:
    """Family, denoiser and VAE on the meta device, and sampling settings, of a directory or a built-in name.

    Raises:
        ModelError: no such directory or name, or a class that is not supported.
    """
    name = str(directory_or_name)
    if name in BUILT_IN and Path(name).is_dir():
        raise ModelError(
            f"{name} is the name of a built-in architecture and of a folder here",
            fix=f"write ./{name} for the folder, or go elsewhere for the architecture",
        )
    if name in BUILT_IN:
        configs = BUILT_IN[name]
        parts = (denoiser_part(configs["index"]), "vae")
        denoiser, vae = (_on_meta(configs["index"], part, configs[part]) for part in parts)
        settings = default_settings(_config(denoiser), _config(vae), configs.get("scheduler"))
        return family_of_class(str(configs["index"]["_class_name"])), denoiser, vae, settings
    directory = Path(directory_or_name)
    if not directory.is_dir():
        raise ModelError(
            f"there is no model {name}",
            expected=f"a pipeline directory, or {', '.join(BUILT_IN)}",
            found=found_at(directory, INDEX),
        )
    with from_configs(directory):
        index = read_index(directory)
        parts = (denoiser_part(index), "vae")
        for part in parts:
            check_class(part, index.get(part), PIPELINES[index["_class_name"]][part][0])
        configs = {part: read_config(directory / part / "config.json") for part in parts}
        denoiser, vae = (_on_meta(index, part, configs[part]) for part in parts)
        return family_of(directory), denoiser, vae, load_settings(directory)


def _on_meta(index: Mapping[str, Any], part: str, config: Mapping[str, Any]) -> nn.Module:
    """A part without memory, of the class that the index names."""
    library, name = index[part]
    demand_few_layers(config, f"{part}/config.json")
    return build_on_meta(getattr(importlib.import_module(library), name), config)


def family_of_class(name: str) -> Family:
    """The family registered for a pipeline class name."""
    return family_of(type(name, (), {})())


def inspect_model(
    directory_or_name: Path | str, settings: SamplingSettings | None = None, granularity: str = "both"
) -> dict[str, Any]:
    """Units with parameters and FLOPs of a pipeline directory or of a built-in architecture.

    Args:
        directory_or_name: pipeline directory, or the name of a real full-size model (`BUILT_IN`).
        settings: size to count FLOPs at; the model's own where None.
        granularity: which units: `pair`, `block`, `both`, or `temporal`, both and temporal sub-layers.

    Returns:
        JSON-able: `name`, `family`, `denoiser` (`class`, `parameters`, `flops`, `fingerprint`), `units`,
        `vae_decoder` (`parameters`, `flops`; None where they cannot be counted), `settings`.

    Raises:
        ModelError: no such model, one that is not supported, or another granularity.
    """
    if granularity not in get_args(Granularity):
        raise ModelError(
            "there is no such granularity", expected=", ".join(get_args(Granularity)), found=granularity
        )
    family, unet, vae, own = load_architecture(directory_or_name)
    with from_configs(directory_or_name):
        return _counted(Path(directory_or_name).name, family, unet, vae, settings or own, granularity)


def _counted(
    name: str, family: Family, unet: nn.Module, vae: Any, used: SamplingSettings, granularity: str
) -> dict[str, Any]:
    decoder: Any = vae.decoder
    return {
        "name": name,
        "family": family.name,
        "denoiser": {
            "class": type(unet).__name__,
            "parameters": _size(unet),
            "flops": denoiser_flops(unet, used)[""],
            "fingerprint": fingerprint(unet),
        },
        "units": [unit.to_dict() for unit in family.units(unet, used, granularity)],
        "vae_decoder": {"parameters": _size(decoder), "flops": _decoder_flops(vae, used)},
        "settings": {
            "frames": used.frames,
            "height": used.height,
            "width": used.width,
            "fps": used.fps,
            "steps": used.steps,
            "guidance": used.guidance,
        },
    }


def _config(model: Any) -> dict[str, Any]:
    return dict(model.config)


def _decoder_flops(vae: Any, settings: SamplingSettings) -> int | None:
    try:
        return decoder_flops(vae, settings)[""]
    except ModelError:
        return None


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
