"""`convert FORMAT CHECKPOINT OUT`: original checkpoints of other projects -> pipeline directories."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vdmini_core.errors import ModelError
from vdmini_core.printing import JsonOption, print_json

FormatArgument = Annotated[str, typer.Argument(metavar="FORMAT", help="videocrafter2 or t2v-turbo-v2")]
CheckpointArgument = Annotated[
    Path, typer.Argument(help=".safetensors, or .ckpt or .pt of tensors alone", exists=True, dir_okay=False)
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="new directory")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="JSON",
        help="the original U-Net's constructor arguments, where they are not the published ones",
        exists=True,
        dir_okay=False,
    ),
]
BaseOption = Annotated[
    Path | None,
    typer.Option(
        metavar="CHECKPOINT",
        help="VideoCrafter2 checkpoint that gives VAE and text encoder to a U-Net alone",
        exists=True,
        dir_okay=False,
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="the CLIP tokenizer's files, which no checkpoint holds (Stable Diffusion's `tokenizer/`)",
        exists=True,
        file_okay=False,
    ),
]
DtypeOption = Annotated[str, typer.Option(help="of the weights written: float32, float16, bfloat16")]


def convert(
    kind: FormatArgument,
    checkpoint: CheckpointArgument,
    output: OutArgument,
    config: ConfigOption = None,
    base: BaseOption = None,
    tokenizer: TokenizerOption = None,
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Convert an original VideoCrafter2 or T2V-Turbo-v2 checkpoint into a pipeline directory.

    A checkpoint that holds the U-Net alone (T2V-Turbo-v2's) gives OUT/unet and OUT/scheduler; with --base
    it becomes a whole pipeline. Nothing in a checkpoint is run, and OUT appears whole or not at all.
    """
    from vdmini_core.convert.unet_config import PUBLISHED
    from vdmini_core.convert.videocrafter import convert_videocrafter

    if kind not in PUBLISHED:
        raise typer.BadParameter(f"FORMAT is {' or '.join(PUBLISHED)}, not {kind!r}")
    arguments = None if config is None else _read_arguments(config)
    made = convert_videocrafter(
        kind, checkpoint, output, config=arguments, base=base, tokenizer=tokenizer, dtype=dtype
    )
    if as_json:
        print_json(asdict(made))
        return
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    counts = ", ".join(f"{name} {count:,} parameters" for name, count in made.parameters.items())
    typer.echo(f"{made.output}: {counts}; {made.files} files, {made.bytes / 1e6:,.1f} MB")


def _read_arguments(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, too
        raise ModelError(
            f"--config: {path.name} is not JSON",
            found=str(error),
            fix="give the config.json or model_index.json of the checkpoint's own pipeline",
        ) from None
    if not isinstance(data, dict):
        raise ModelError(
            f"--config: {path.name} is not a config", expected="a JSON object", found=repr(data)[:80]
        )
    return data
