"""`vdmini generate`: a video from an image, a prompt, or both, as the model wants it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdmini_core.errors import DataError, ModelError
from vdmini_core.printing import check_device

if TYPE_CHECKING:
    from vdmini_core.models.base import Family, SamplingSettings
    from vdmini_core.models.inputs import ClipInputs


def generate(
    model: Annotated[Path, typer.Argument(help="pipeline directory (teacher or student)")],
    output: Annotated[Path, typer.Option("-o", "--output", help="video file to write (.mp4)")],
    image: Annotated[Path | None, typer.Option("--image", help="first frame, for image-to-video")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="text, for text-to-video")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the noise: teacher and student agree on it")] = 0,
    frames: Annotated[int | None, typer.Option(min=2, max=1024, help="frames of the video")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="denoising steps")] = None,
    guidance: Annotated[float | None, typer.Option(min=1.0, help="guidance scale, 1 is off")] = None,
    scale: Annotated[int, typer.Option(min=1, max=16, help="enlarge the written video")] = 1,
    device: Annotated[str, typer.Option(help="auto (cuda where there is one), cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (bf16 on a GPU, else fp32), fp32, bf16, fp16")] = "auto",
) -> None:
    """Generate a video from an image or from a prompt.

    What is not given follows the model's own vdmini.json.
    """
    from vdmini_core.data.video import write_mp4
    from vdmini_core.models.frames import check_frames
    from vdmini_core.models.generate import generate as generate_clips
    from vdmini_core.models.precision import choose
    from vdmini_core.models.registry import family_of, load_pipeline, load_settings

    if output.suffix.lower() != ".mp4":
        raise DataError("the output must be an .mp4 file", found=str(output), fix="use -o NAME.mp4")
    if not output.resolve().parent.is_dir():
        raise DataError(
            "the output's folder does not exist",
            found=str(output.parent),
            fix="make it, or name another place",
        )
    device, number = choose(device, dtype)
    check_device(device)
    check_given(family_of(model), image, prompt)
    first = None if image is None else read_image(image)
    pipeline = load_pipeline(model, device, number)
    usual = load_settings(model, pipeline)
    settings = _with_overrides(usual, frames, steps, guidance)
    if settings.frames > usual.frames:
        typer.echo(
            f"note: the model says it makes {usual.frames} frames; {settings.frames} may not hold together",
            err=True,
        )
    check_frames(settings, "--frames" if frames else "the number of frames in vdmini.json")
    video = generate_clips(pipeline, _inputs(first, prompt, settings), [seed], settings)[0].numpy()
    if scale > 1:
        video = video.repeat(scale, axis=1).repeat(scale, axis=2)
    write_mp4(output, video, settings.fps)
    typer.echo(f"{output}: {len(video)} frames of {video.shape[2]}x{video.shape[1]} at {settings.fps:g} fps")


def check_given(family: Family, image: Path | None, prompt: str | None) -> None:
    """Refuse, before anything is loaded, what this model cannot start from.

    Raises:
        ModelError: for an option that is missing, or means nothing to this model.
    """
    options = {"first_frames": "--image FILE", "prompts": "--prompt TEXT"}
    given = {"first_frames": image is not None, "prompts": bool(prompt and prompt.strip())}
    expected = " and ".join(options[need] for need in family.needs)
    for need, option in options.items():
        if given[need] != (need in family.needs):
            name = option.split()[0]
            raise ModelError(
                f"this model needs {name}" if need in family.needs else f"this model takes no {name}",
                expected=f"{expected} (family `{family.name}`)",
                found=" and ".join(options[n].split()[0] for n in options if given[n]) or "neither",
            )


def _with_overrides(
    settings: SamplingSettings, frames: int | None, steps: int | None, guidance: float | None
) -> SamplingSettings:
    given = {"frames": frames, "steps": steps, "guidance": guidance}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(settings, **changes)


def read_image(path: Path) -> Any:
    """A PIL image, upright, in RGB.

    Raises:
        DataError: when there is no file, or it is no image.
    """
    from vdmini_core.data.images import open_image

    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"there is no file {path}", expected="a PNG or JPEG", found=found)
    return open_image(path, str(path))


def _inputs(image: Any, prompt: str | None, settings: SamplingSettings) -> ClipInputs:
    import numpy as np
    import torch
    from PIL import ImageOps

    from vdmini_core.models.inputs import ClipInputs

    first = None
    if image is not None:
        frame = np.asarray(ImageOps.fit(image, (settings.width, settings.height)))
        first = torch.from_numpy(frame.copy())[None]
    return ClipInputs(first, None if prompt is None else (prompt,))
