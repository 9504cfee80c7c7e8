"""VideoMAE (Tong et al. 2022, arXiv 2203.12602) through `transformers`: content-debiased FVD's network.

Features are the last hidden states averaged over places and time, with the final norm that the weights
bring: per token where the model has one (`layernorm`), on the average where it was fine-tuned with mean
pooling (`fc_norm`), none where the weights hold neither. The passport says which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdmini_core.artifacts import digest_of, read_json, sha256_file
from vdmini_core.errors import DataError
from vdmini_core.metrics.clips import as_unit_floats
from vdmini_core.metrics.extractor import Network, dtype_of

# What every published VideoMAE was trained with, where the directory does not say.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_videomae(
    device: torch.device | str, weights: str | Path | None = None, dtype: str = "float32"
) -> Network:
    """VideoMAE of a local directory or the hub; see `load_extractor`.

    Raises:
        DataError: without weights, or when they are not those of a VideoMAE.
    """
    if weights is None:
        raise DataError("`videomae` needs weights", expected="a directory or hub name of a VideoMAE model")
    kind = dtype_of(dtype)
    encoder, norm, layer = _load(weights)
    encoder.to(device=device, dtype=kind)
    norm.to(device=device, dtype=kind)
    mean, spread = (values.to(device) for values in _statistics(Path(weights)))
    side, frames = int(encoder.config.image_size), int(encoder.config.num_frames)

    def prepare(videos_BTHWC: Tensor) -> Tensor:
        unit = (as_unit_floats(videos_BTHWC) - mean) / spread
        images = unit.flatten(0, 1).permute(0, 3, 1, 2)
        images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
        return images.reshape(-1, frames, 3, side, side)

    def features(clips_BTCHW: Tensor) -> Tensor:
        return norm(encoder(clips_BTCHW.to(kind)).last_hidden_state.mean(dim=1))

    identity = {
        **_names(weights, encoder),
        "layer": layer,
        "resize": f"to [0, 1], normalised, both sides to {side} (bilinear, antialiased)",
        "normalisation": f"mean {_numbers(mean)}, sd {_numbers(spread)}",
        "dtype": dtype,
    }
    return Network(int(encoder.config.hidden_size), prepare, features, identity, frames=frames)


def _load(weights: str | Path) -> tuple[Any, Any, str]:
    """The encoder, the norm of its average, and what the features are in words."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

    where = str(weights)
    try:
        pooled = VideoMAEConfig.from_pretrained(where).use_mean_pooling
        kind: Any = VideoMAEForVideoClassification if pooled else VideoMAEModel
        model, facts = kind.from_pretrained(where, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{weights} is no VideoMAE model",
            found=str(error).split("\n")[0],
            fix="give a folder with config.json and model.safetensors",
        ) from error
    # `transformers` draws at random what a file lacks, with no more than a warning.
    lacking = sorted(k for k in facts["missing_keys"] if not k.startswith(("classifier.", "fc_norm.")))
    if lacking:
        found = f"{len(lacking)} missing: {', '.join(lacking[:3])}"
        raise DataError(
            f"{weights} lacks weights of a VideoMAE model", found=found, fix="download the whole folder again"
        )
    model = model.eval().requires_grad_(False)
    if not pooled:
        return model, torch.nn.Identity(), "last hidden states, final norm, mean over places and time"
    if any(k.startswith("fc_norm.") for k in facts["missing_keys"]):
        return model.videomae, torch.nn.Identity(), "last hidden states, no norm, mean over places and time"
    return model.videomae, model.fc_norm, "last hidden states, mean over places and time, final norm"


def _statistics(directory: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the colours that the weights expect, each (3,)."""
    processor = directory / "preprocessor_config.json"
    facts = read_json(processor) if processor.is_file() else {}
    mean, spread = facts.get("image_mean", IMAGENET_MEAN), facts.get("image_std", IMAGENET_STD)
    return torch.tensor(mean), torch.tensor(spread)


def _names(weights: str | Path, encoder: Any) -> dict[str, Any]:
    """The weights as a passport names them: by their bytes, or by name and revision on the hub."""
    files = sorted(Path(weights).glob("model*.safetensors"))
    if not files:
        return {"weights_sha256": None, "weights": f"{weights} at {encoder.config._commit_hash}"}
    digests = {path.name: sha256_file(path) for path in files}
    return {"weights_sha256": digests[files[0].name] if len(files) == 1 else digest_of(digests)}


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.tolist())
