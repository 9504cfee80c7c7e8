"""Claim: the mini teacher's VAE decoder, cut as the paper's, paints as well as before after its recovery.

python benchmarks/vae_decoder.py [--recipe paper|light] [--clips 128]

The shipped teacher's decoder is cut, recovered with the default parameters on training clips, and judged on
held-out clips: PSNR against the real frames and against what the whole decoder paints from the same latents.
A run that was stopped goes on from its checkpoint in `.bench/vae_decoder/`. Writes
`benchmarks/results/vae_decoder-RECIPE-DATE.json` and frames side by side. No times are claimed.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.bundled import bundled_teacher_path
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.distillation.decoder_recovery import decode, decoder_quality, recover_decoder
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.registry import load_pipeline, load_settings
from vdmini_core.params import DecoderRecoveryParams
from vdmini_core.progress import track
from vdmini_core.pruning.vae_decoder import plan_decoder, prune_decoder

RESULTS = Path(__file__).parent / "results"
KEPT = Path(__file__).parent.parent / ".bench" / "vae_decoder"
HELD_OUT = 64
ALLOWED_LOSS = 1.0  # dB, for `paper`
SHOWN_CLIPS, SHOWN_FRAMES, ENLARGED = 3, 2, 2


@torch.no_grad()
def painted(vae: Any, teacher: Any, clips_uint8: torch.Tensor) -> torch.Tensor:
    """What a decoder makes of the teacher's latents of clips: uint8 (n, F, H, W, 3)."""
    pixels = clips_uint8.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    latents = teacher.encode(pixels.flatten(0, 1)).latent_dist.mode().unflatten(0, pixels.shape[:2])
    made = ((decode(vae, latents).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return made.permute(0, 1, 3, 4, 2)


def picture(rows: list[torch.Tensor], path: Path) -> None:
    """First and last frames of the first clips, a row a source."""
    lines = []
    for clips in rows:
        frames = clips[:SHOWN_CLIPS, [0, clips.shape[1] - 1][:SHOWN_FRAMES]].numpy()
        lines.append(np.concatenate([frame for clip in frames for frame in clip], axis=1))
    image = Image.fromarray(np.concatenate(lines, axis=0))
    size = (ENLARGED * image.width, ENLARGED * image.height)
    image.resize(size, Image.Resampling.NEAREST).save(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=("paper", "light"), default="paper")
    parser.add_argument("--clips", type=int, default=128, help="training clips")
    arguments = parser.parse_args()
    folder = bundled_teacher_path("mini")
    pipeline = load_pipeline(folder)
    settings, teacher = load_settings(folder, pipeline), pipeline.vae
    spec = ProceduralSpec(settings.frames, settings.height, settings.width)
    train, held_out = (
        torch.from_numpy(render_clips(spec, split_seeds(split, count, 0)))
        for split, count in (("train", arguments.clips), ("validation", HELD_OUT))
    )
    plan = plan_decoder(teacher, settings, arguments.recipe)
    student, params = prune_decoder(teacher, plan), DecoderRecoveryParams()
    print(plan.describe())
    shown = [held_out, painted(teacher, teacher, held_out[:SHOWN_CLIPS])]
    shown.append(painted(student, teacher, held_out[:SHOWN_CLIPS]))
    quality = {
        "teacher": decoder_quality(teacher, teacher, held_out),
        "pruned": decoder_quality(student, teacher, held_out),
    }
    workdir = KEPT / f"{arguments.recipe}-{arguments.clips}"
    workdir.mkdir(parents=True, exist_ok=True)
    bar, done = iter(track(range(params.steps), "recovery", params.steps, "step")), 0

    def on_log(row: dict[str, Any]) -> None:
        nonlocal done
        for _ in range(row["step"] - done):
            next(bar, None)
        done = row["step"]

    rows = recover_decoder(student, teacher, train, params, 0, workdir, on_log)
    quality["recovered"] = decoder_quality(student, teacher, held_out)
    shown.append(painted(student, teacher, held_out[:SHOWN_CLIPS]))
    loss = quality["teacher"]["psnr"] - quality["recovered"]["psnr"]
    fewer = plan.teacher_flops / plan.expected_flops
    claims = {
        "paper": {f"at most {ALLOWED_LOSS:g} dB lost against real frames": (loss <= ALLOWED_LOSS, loss)},
        "light": {},
    }[arguments.recipe]
    least = {"paper": 3.3, "light": 5.0}[arguments.recipe]
    claims[f"at least {least:g} times fewer FLOPs"] = (fewer >= least, fewer)
    result = {
        "plan": plan.describe(),
        "flops_ratio": plan.expected_flops / plan.teacher_flops,
        "params_ratio": plan.expected_params / plan.teacher_params,
        "quality": quality,
        "curve": rows[:: max(1, params.steps // 50)],
        "verdicts": {name: {"holds": bool(holds), "found": found} for name, (holds, found) in claims.items()},
        "settings": vars(arguments) | {"held_out": HELD_OUT, "params": params.model_dump(mode="json")},
        "hardware": device_name(),
        "libraries": library_versions(),
    }
    path = RESULTS / f"vae_decoder-{arguments.recipe}-{datetime.date.today().isoformat()}.json"
    write_json(path, result)
    picture(shown, path.with_suffix(".png"))
    for name, (holds, found) in claims.items():
        print("holds" if holds else "FAILS", name, f"{found:.4g}")
    print("rows of the picture: real, whole decoder, cut, recovered")
    print(path)


if __name__ == "__main__":
    main()
