"""VideoCrafter2 and T2V-Turbo-v2: an original checkpoint -> a pipeline directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from vdmini_core.artifacts import staged_output, write_json
from vdmini_core.convert.checkpoint import CheckpointParts, read_checkpoint
from vdmini_core.convert.parts import Part, check_fit, fill, text_part, unet_part, vae_part
from vdmini_core.convert.unet_config import PUBLISHED, unet_config
from vdmini_core.errors import ModelError
from vdmini_core.models.registry import SETTINGS, save_pipeline
from vdmini_core.models.t2v_pipeline import SAMPLING
from vdmini_core.progress import progress_bar

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIZE = {"height": 320, "width": 512}


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        output: the directory.
        parameters: component -> number of parameters.
        files: number of files.
        bytes: their size.
        notes: what the directory lacks.
    """

    output: str
    parameters: dict[str, int]
    files: int
    bytes: int
    notes: tuple[str, ...]


def convert_videocrafter(
    kind: str,
    checkpoint: Path,
    output: Path,
    *,
    config: Mapping[str, Any] | None = None,
    base: Path | None = None,
    tokenizer: Path | None = None,
    dtype: str = "float32",
) -> Converted:
    """Convert a checkpoint; `output` appears whole or not at all.

    Args:
        kind: `videocrafter2` or `t2v-turbo-v2`.
        checkpoint: `.safetensors`, or `.ckpt` or `.pt` of tensors.
        output: new directory. A checkpoint with a U-Net alone gives `unet/` and `scheduler/`.
        config: the original U-Net's constructor arguments where they are not the published ones.
        base: VideoCrafter2 checkpoint that gives VAE and text encoder to a U-Net alone.
        tokenizer: directory of the CLIP tokenizer's files, which no checkpoint holds.
        dtype: of the weights written.

    Raises:
        ModelError: for a checkpoint, config or output that cannot be used; nothing is left behind.
    """
    _check_request(kind, output, dtype)
    ours = unet_config(kind, config or {})
    parts = read_checkpoint(checkpoint)
    _check_schedule(parts)
    models = [unet_part(parts.unet, ours), *_other_parts(parts, base, ours)]
    for part in models:
        check_fit(part)
    if tokenizer is not None and len(models) == 1:
        raise ModelError("--tokenizer belongs to a whole pipeline", found="a U-Net alone", fix="add --base")
    words = None if tokenizer is None else _load_tokenizer(tokenizer, models[-1])
    with progress_bar(
        f"convert {checkpoint.name}", sum(len(part.weights) for part in models), "tensor"
    ) as bar:
        filled = {part.name: fill(part, DTYPES[dtype], bar.update) for part in models}
    frames = (config or {}).get("temporal_length") or PUBLISHED[kind]["temporal_length"]
    try:
        with staged_output(output) as folder:
            notes = _write(folder, kind, filled, words, frames)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{output} cannot be written; nothing was left there",
            found=str(error).strip().split("\n")[0],
            fix="free space, or give a place that can be written to",
        ) from error
    written = [path for path in output.rglob("*") if path.is_file()]
    return Converted(
        output=str(output),
        parameters={name: sum(p.numel() for p in model.parameters()) for name, model in filled.items()},
        files=len(written),
        bytes=sum(path.stat().st_size for path in written),
        notes=notes,
    )


def _check_request(kind: str, output: Path, dtype: str) -> None:
    for what, known, found in (("format", PUBLISHED, kind), ("dtype", DTYPES, dtype)):
        if found not in known:
            raise ModelError(f"there is no {what} {found!r}", expected=" or ".join(known), found=found)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ModelError(
            f"{output} is there already",
            expected="a new directory",
            fix="give another name, or delete it if it is not needed",
        )


def _check_schedule(parts: CheckpointParts) -> None:
    """Refuse a checkpoint that was trained on another noise schedule than the samplers have."""
    from vdmini_core.models.t2v_schedulers import RescaledDDIMScheduler

    scheduler = RescaledDDIMScheduler()
    for name, own in (("alphas_cumprod", scheduler.alphas_cumprod), ("scale_arr", scheduler.scales)):
        stored = parts.schedule.get(name)
        if stored is None:
            continue
        alike = stored.shape == own.shape and stored.is_floating_point()
        # Half precision rounds by 5e-4.
        if not (alike and torch.allclose(stored.float(), own, rtol=0, atol=1e-3)):
            last = f", the last {float(stored[-1]):.4g}" if alike else ""
            raise ModelError(
                f"the checkpoint's `{name}` is of another noise schedule",
                expected="betas from 0.00085 to 0.012, linear in their roots, and a scale from 1 to 0.7",
                found=f"{stored.dtype} of shape {tuple(stored.shape)}{last}",
            )


def _other_parts(parts: CheckpointParts, base: Path | None, config: Mapping[str, Any]) -> list[Part]:
    """VAE and text encoder, of the checkpoint or of the base; none of a U-Net alone."""
    if base is not None:
        if parts.vae or parts.text:
            raise ModelError(
                "--base is for a U-Net alone",
                found="a checkpoint with a VAE or text encoder",
                fix="leave --base away: the checkpoint has its own",
            )
        parts = read_checkpoint(base)
    if not (parts.vae or parts.text) and base is None:
        return []
    for name, state in (("VAE (`first_stage_model`)", parts.vae), ("text encoder", parts.text)):
        if not state:
            raise ModelError(
                f"the checkpoint has no {name}",
                expected="U-Net, VAE and text encoder, or a U-Net alone",
                fix="download it again",
            )
    vae, text = vae_part(parts.vae), text_part(parts.text)
    sizes: Any = (text.model.config, vae.model.config)
    for what, found, wanted in (
        ("text encoder's width", sizes[0].hidden_size, config["cross_attention_dim"]),
        ("VAE's latent channels", sizes[1].latent_channels, config["in_channels"]),
    ):
        if found != wanted:
            raise ModelError(f"the {what} does not fit the U-Net", expected=str(wanted), found=str(found))
    return [vae, text]


def _load_tokenizer(folder: Path, text: Part) -> Any:
    from transformers import CLIPTokenizer

    size: int = text.model.config.vocab_size  # type: ignore[assignment,union-attr]
    problem = f"{folder} is not the text encoder's tokenizer"
    if not folder.is_dir():
        raise ModelError(problem, expected="a directory with vocab.json and merges.txt", found="no directory")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing finer
        raise ModelError(problem, found=str(error).strip().split("\n")[0]) from None
    if len(tokenizer) > size:
        raise ModelError(problem, expected=f"{size} tokens at most", found=f"{len(tokenizer)} tokens")
    return tokenizer


def _write(
    folder: Path, kind: str, models: Mapping[str, nn.Module], tokenizer: Any, frames: int
) -> tuple[str, ...]:
    from vdmini_core.models.t2v_pipeline import VideoCrafterPipeline
    from vdmini_core.models.t2v_schedulers import ConsistencyScheduler, RescaledDDIMScheduler

    scheduler: Any = RescaledDDIMScheduler() if kind == "videocrafter2" else ConsistencyScheduler()
    unet: Any = models["unet"]
    if "vae" not in models:
        unet.save_pretrained(folder / "unet", safe_serialization=True)
        scheduler.save_pretrained(folder / "scheduler")
        return (
            "no VAE and text encoder in the checkpoint: `unet/` and `scheduler/` alone; "
            "for a whole pipeline give --base",
        )
    pipeline = VideoCrafterPipeline(
        vae=models["vae"],
        text_encoder=models["text_encoder"],
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
    )
    save_pipeline(pipeline, folder, None)
    write_json(folder / SETTINGS, {"num_frames": frames, **SIZE, **SAMPLING[kind]})
    if tokenizer is None:
        return ("no tokenizer: give one with --tokenizer, or text embeddings to the pipeline",)
    return ()
