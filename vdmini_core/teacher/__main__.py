"""Train and ship a teacher of our own.

python -m vdmini_core.teacher train-vae  --size mini --seed 0 --steps 1200 --out DIR
python -m vdmini_core.teacher train-unet --size mini --seed 0 --steps 2000 --out DIR
python -m vdmini_core.teacher export     --size mini --seed 0 --out DIR --to PIPELINE_DIR
python -m vdmini_core.teacher pictures   --pipeline PIPELINE_DIR --to FOLDER

Each training command can be stopped at any time and continues from DIR when started again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPVisionModelWithProjection

from vdmini_core.artifacts import read_json
from vdmini_core.data.procedural import ProceduralSpec
from vdmini_core.errors import ModelError
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.pipeline_dir import check_directory
from vdmini_core.teacher import loop
from vdmini_core.teacher.architecture import ARCHITECTURES, build_pipeline
from vdmini_core.teacher.export import EARLIER_RECORD, RECORD, export_pipeline, load_exported
from vdmini_core.teacher.measure import interleaved, write_strips
from vdmini_core.teacher.recipe import ProceduralData, train_autoencoder, train_generator
from vdmini_core.teacher.training import TrainConfig
from vdmini_core.teacher.vae_start import start_from_patches
from vdmini_core.teacher.vae_training import VaeTrainConfig


def spec_of(size: str) -> ProceduralSpec:
    """The clips a teacher of this size is trained on (its autoencoder: the hard ones, which show more)."""
    architecture = ARCHITECTURES[size]
    return ProceduralSpec(architecture.frames, architecture.height, architecture.width)


def note_command(arguments: argparse.Namespace) -> None:
    """Keep what was run, for the record that `export` writes; folders apart."""
    told = {k: v for k, v in vars(arguments).items() if k not in ("run", "out", "to", "threads", "command")}
    if told.get("start_from"):
        told["start_from"] = "EARLIER_DIR"
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in sorted(told.items())
        if value is not None and value is not False
    ]
    line = " ".join(["python -m vdmini_core.teacher", arguments.command, *words, "--out DIR"])
    if "steps" in told:
        line += f"  # on {device_name(getattr(arguments, 'device', 'cpu'))}, torch {torch.__version__}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "commands.txt").open("a") as handle:
        handle.write(line + "\n")


def show(row: dict[str, Any]) -> None:
    """One line of progress."""
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def command_train_vae(arguments: argparse.Namespace) -> None:
    """Train the autoencoder and write it to OUT/vae."""
    pipeline = build_pipeline(arguments.size, arguments.seed)
    config = VaeTrainConfig(steps=arguments.steps, seed=arguments.seed)
    show(train_autoencoder(pipeline, data_of(arguments), config, arguments.out, show))


def data_of(arguments: argparse.Namespace) -> ProceduralData:
    """The clips of a command."""
    return ProceduralData(spec_of(arguments.size), arguments.seed, getattr(arguments, "clips", 2000))


def pipeline_with_vae(arguments: argparse.Namespace) -> StableVideoDiffusionPipeline:
    """A fresh pipeline with the autoencoder of `train-vae`; until that is done, with its start.

    The start has the same encoder, so both trainings may run side by side.
    """
    pipeline = build_pipeline(arguments.size, arguments.seed)
    trained = arguments.out / "vae"
    if trained.exists():
        pipeline.register_modules(
            vae=AutoencoderKLTemporalDecoder.from_pretrained(trained, use_safetensors=True).eval()
        )
    else:
        start_from_patches(pipeline.vae, data_of(arguments).basis(pipeline.vae))
    return pipeline


def command_train_unet(arguments: argparse.Namespace) -> None:
    """Train the U-Net on the autoencoder's latents and write it to OUT/unet."""
    earlier = arguments.start_from
    if earlier is None:
        pipeline = pipeline_with_vae(arguments)
    else:
        pipeline = go_on_from(earlier, arguments)
    config = TrainConfig(
        steps=arguments.steps,
        window_steps=arguments.window_steps,
        quiet_steps=arguments.quiet_steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        ema_decay=arguments.ema_decay,
        noised_share=arguments.noised_share,
        bf16=arguments.bf16,
        device=arguments.device,
        workers=arguments.workers,
        # A run that goes on from others must see other clips; the data set stays that of the seed.
        seed=arguments.seed + earlier_runs(arguments.out),
    )

    def pictures(step: int, real: Any, made: Any) -> None:
        write_strips(arguments.out / f"strips-{step:05d}.png", interleaved(real, made))

    fresh = earlier is None
    show(train_generator(pipeline, data_of(arguments), config, arguments.out, show, pictures, fresh))
    pipeline.unet.save_pretrained(arguments.out / "unet")


def go_on_from(earlier: Path, arguments: argparse.Namespace) -> StableVideoDiffusionPipeline:
    """The pipeline to train on; its record, VAE and image encoder go to OUT for `export`.

    Raises:
        ModelError: when it is none, or of another size.
    """
    check_directory(earlier)
    pipeline = load_exported(earlier)
    wanted = build_pipeline(arguments.size, arguments.seed)
    for part in ("unet", "vae", "image_encoder"):
        shapes = [[tuple(p.shape) for p in getattr(pipe, part).parameters()] for pipe in (wanted, pipeline)]
        if shapes[0] != shapes[1]:
            problem = f"the {part} of {earlier} is not of size {arguments.size}"
            raise ModelError(problem, fix="give its --size")
    for part in ("vae", "image_encoder"):
        shutil.rmtree(arguments.out / part, ignore_errors=True)
        loop.save_whole(arguments.out / part, getattr(pipeline, part).save_pretrained)
    if (earlier / RECORD).is_file():
        shutil.copy(earlier / RECORD, arguments.out / EARLIER_RECORD)
    return pipeline


def earlier_runs(out: Path) -> int:
    """U-Net runs that the teacher went through which this one goes on from."""
    path = out / EARLIER_RECORD
    return sum(name.startswith("unet") for name in read_json(path)["runs"]) if path.is_file() else 0


def command_export(arguments: argparse.Namespace) -> None:
    """Write the pipeline with what `train-vae` and `train-unet` left in OUT."""
    pipeline = pipeline_with_vae(arguments)
    encoder = arguments.out / "image_encoder"
    if encoder.exists():
        own = CLIPVisionModelWithProjection.from_pretrained(encoder, use_safetensors=True)
        pipeline.register_modules(image_encoder=own.eval())
    trained = UNetSpatioTemporalConditionModel.from_pretrained(arguments.out / "unet", use_safetensors=True)
    pipeline.register_modules(unet=trained.eval())
    show(export_pipeline(pipeline, arguments.size, arguments.out, arguments.to))


def command_pictures(arguments: argparse.Namespace) -> None:
    """Write the pictures of `docs/teacher.md`."""
    from vdmini_core.teacher.pictures import make_pictures

    show(make_pictures(arguments.pipeline, arguments.to))


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
    vae.add_argument("--clips", type=int, default=2000, help="training clips rendered")
    unet = commands.add_parser("train-unet", help="train the U-Net")
    unet.set_defaults(run=command_train_unet)
    unet.add_argument("--window-steps", type=int, default=800, help="first steps, on small windows")
    unet.add_argument(
        "--quiet-steps",
        type=int,
        default=1700,
        help="first steps, frames told apart by D.2's second pair alone",
    )
    unet.add_argument("--start-from", type=Path, help="go on from the U-Net of this pipeline directory")
    unet.add_argument("--batch-size", type=int, default=TrainConfig.batch_size, help="whole clips a step")
    unet.add_argument("--learning-rate", type=float, default=TrainConfig.learning_rate, help="at its peak")
    unet.add_argument("--ema-decay", type=float, default=TrainConfig.ema_decay, help="of averaged weights")
    unet.add_argument(
        "--noised-share",
        type=float,
        default=TrainConfig.noised_share,
        help="clips that start from a drawn noise level in place of pure noise",
    )
    unet.add_argument("--device", default=TrainConfig.device, help="cpu or cuda")
    unet.add_argument("--bf16", action="store_true", help="train in bfloat16, weights in float32")
    unet.add_argument("--workers", type=int, default=TrainConfig.workers, help="processes that draw clips")
    export = commands.add_parser("export", help="write the pipeline directory")
    export.set_defaults(run=command_export)
    export.add_argument("--to", type=Path, required=True)
    for command, steps in ((vae, 1200), (unet, 2000), (export, 0)):
        command.add_argument("--size", choices=sorted(ARCHITECTURES), default="mini")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", type=Path, required=True, help="working folder with the checkpoints")
        command.add_argument("--threads", type=int, default=1)
        if steps:
            command.add_argument("--steps", type=int, default=steps)
    pictures = commands.add_parser("pictures", help="contact sheet, strips of samples, what cuts do")
    pictures.set_defaults(run=command_pictures, threads=1)
    pictures.add_argument("--pipeline", type=Path, required=True, help="an exported pipeline directory")
    pictures.add_argument("--to", type=Path, required=True, help="folder for the pictures")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.command != "pictures":
        note_command(arguments)
    if getattr(arguments, "device", "cpu").startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32, as the GPU's convolutions already do
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
    arguments.run(arguments)


if __name__ == "__main__":
    main()
