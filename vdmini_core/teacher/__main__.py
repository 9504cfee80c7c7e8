"""Train and ship a teacher of our own.

python -m vdmini_core.teacher train-vae  --size mini --seed 0 --steps 900 --out DIR
python -m vdmini_core.teacher train-unet --size mini --seed 0 --steps 1000 --clips 1200 --out DIR
python -m vdmini_core.teacher export     --size mini --seed 0 --out DIR --to PIPELINE_DIR

Each training command can be stopped at any time and continues from DIR when started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, StableVideoDiffusionPipeline
from safetensors.torch import load_file, save_file

from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.data.scene import Level
from vdmini_core.teacher.architecture import ARCHITECTURES, build_pipeline
from vdmini_core.teacher.export import export_pipeline
from vdmini_core.teacher.one_step import LatentClips, encode_clips
from vdmini_core.teacher.training import TrainConfig, train_unet
from vdmini_core.teacher.vae_training import VaeTrainConfig, train_vae


def spec_of(size: str, level: Level = "normal") -> ProceduralSpec:
    """The clips a teacher of this size is trained on (its autoencoder: the hard ones, which show more)."""
    architecture = ARCHITECTURES[size]
    return ProceduralSpec(architecture.frames, architecture.height, architecture.width, level=level)


def note_command(arguments: argparse.Namespace) -> None:
    """Keep what was run, for the record that `export` writes; folders apart."""
    told = {k: v for k, v in vars(arguments).items() if k not in ("run", "out", "to", "threads", "command")}
    words = [f"--{name.replace('_', '-')} {value}" for name, value in sorted(told.items())]
    line = " ".join(["python -m vdmini_core.teacher", arguments.command, *words, "--out DIR"])
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "commands.txt").open("a") as handle:
        handle.write(line + "\n")


def show(row: dict[str, Any]) -> None:
    """One line of progress."""
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def command_train_vae(arguments: argparse.Namespace) -> None:
    """Train the autoencoder and write it to OUT/vae."""
    clips = render_clips(
        spec_of(arguments.size, "hard"), split_seeds("train", arguments.clips, arguments.seed)
    )
    pipeline = build_pipeline(arguments.size, arguments.seed)
    config = VaeTrainConfig(steps=arguments.steps, seed=arguments.seed)
    show(train_vae(pipeline.vae, clips, config, arguments.out, show))
    pipeline.vae.save_pretrained(arguments.out / "vae")


def pipeline_with_vae(arguments: argparse.Namespace) -> StableVideoDiffusionPipeline:
    """A fresh pipeline with the autoencoder of `train-vae`."""
    pipeline = build_pipeline(arguments.size, arguments.seed)
    pipeline.register_modules(vae=AutoencoderKLTemporalDecoder.from_pretrained(arguments.out / "vae").eval())
    return pipeline


def encoded(
    pipeline: StableVideoDiffusionPipeline, arguments: argparse.Namespace, split: Any, count: int
) -> LatentClips:
    """Latents and embeddings of a split, encoded once and kept in OUT."""
    path = arguments.out / f"latents-{split}-{count}.safetensors"
    if not path.exists():
        parts = []
        seeds = split_seeds(split, count, arguments.seed)
        for start in range(0, count, 100):
            parts.append(
                encode_clips(pipeline, render_clips(spec_of(arguments.size), seeds[start : start + 100]))
            )
            show({"encoded": start + len(parts[-1].latents), "of": count})
        joined = {
            "latents": torch.cat([part.latents for part in parts]),
            "embeddings": torch.cat([part.embeddings for part in parts]),
            "weights": parts[0].weights,
        }
        save_file(joined, path)
    return LatentClips(**load_file(path))


def command_train_unet(arguments: argparse.Namespace) -> None:
    """Train the U-Net on the autoencoder's latents and write it to OUT/unet."""
    pipeline = pipeline_with_vae(arguments)
    held_out = encoded(pipeline, arguments, "validation", 32)
    data = encoded(pipeline, arguments, "train", arguments.clips)
    config = TrainConfig(
        steps=arguments.steps,
        deep_steps=arguments.deep_steps,
        shared_steps=arguments.shared_steps,
        focus_step=arguments.focus_step,
        close_step=arguments.close_step,
        seed=arguments.seed,
    )
    show(train_unet(pipeline, data, config, arguments.out, show, held_out))
    pipeline.unet.save_pretrained(arguments.out / "unet")


def command_export(arguments: argparse.Namespace) -> None:
    """Write the pipeline with the averaged weights of the last checkpoint."""
    pipeline = pipeline_with_vae(arguments)
    state = torch.load(arguments.out / "unet.pt", weights_only=True)
    for name, parameter in pipeline.unet.named_parameters():
        parameter.data.copy_(state["average"][name])
    show(export_pipeline(pipeline, arguments.size, arguments.out, arguments.to))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m vdmini_core.teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, dest="command")
    vae = commands.add_parser("train-vae", help="train the autoencoder")
    vae.set_defaults(run=command_train_vae)
    unet = commands.add_parser("train-unet", help="train the U-Net")
    unet.set_defaults(run=command_train_unet)
    unet.add_argument("--deep-steps", type=int, default=0, help="first steps, with closed skips")
    unet.add_argument("--shared-steps", type=int, default=950, help="first steps, one frame in D.0 and D.1")
    unet.add_argument("--focus-step", type=int, default=400, help="step at which motion moves to D.2")
    unet.add_argument(
        "--close-step", type=int, default=500, help="from here only D.2 and U.1 tell frames apart"
    )
    export = commands.add_parser("export", help="write the pipeline directory")
    export.set_defaults(run=command_export)
    export.add_argument("--to", type=Path, required=True)
    for command, steps in ((vae, 900), (unet, 1000), (export, 0)):
        command.add_argument("--size", choices=sorted(ARCHITECTURES), default="mini")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", type=Path, required=True, help="working folder with the checkpoints")
        command.add_argument("--threads", type=int, default=1)
        if steps:
            command.add_argument("--steps", type=int, default=steps)
            command.add_argument("--clips", type=int, default=2000, help="training clips rendered")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    note_command(arguments)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
