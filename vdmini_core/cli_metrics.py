"""Commands on folders of videos: `fvd` and `fvd-stats`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdmini_core.printing import JsonOption, check_device, print_json, print_rows

if TYPE_CHECKING:
    from vdmini_core.metrics.folder import Settings

ExtractorOption = Annotated[
    str | None, typer.Option(help="embedded (default), content, motion, i3d, videomae")
]
WeightsOption = Annotated[str | None, typer.Option(help="of the extractor: a path or an address")]
ShaOption = Annotated[
    str | None, typer.Option("--sha256", help="of the weights file; another one is refused")
]
ConventionOption = Annotated[str | None, typer.Option(help="of i3d: videogpt, styleganv, cdfvd")]
LayerOption = Annotated[str | None, typer.Option(help="of i3d: logits, pooled")]
EpsilonOption = Annotated[float | None, typer.Option(help="of i3d's batch norms: 1e-5 (default), 1e-3")]
FramesOption = Annotated[int | None, typer.Option(min=2, help="of a clip; default 16")]
SizeOption = Annotated[
    str | None,
    typer.Option(metavar="N|WxH", help="scale the short side, crop the centre; default: as the files are"),
]
FpsOption = Annotated[
    float | None, typer.Option(help="sample by time; default: consecutive frames of files of one rate")
]
StrideOption = Annotated[int | None, typer.Option(min=1, help="every how many frames, whatever the rate")]
NumberOption = Annotated[int | None, typer.Option("--n", min=2, help="clips of each side; default: all")]
PerVideoOption = Annotated[int, typer.Option(min=1, help="clips of a video, from its start, no overlap")]
SeedOption = Annotated[int, typer.Option(help="which videos --n takes; groups of the interval and the floor")]
SkipOption = Annotated[bool, typer.Option("--skip-bad", help="list files that cannot be used and go on")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="of torch; default: its own choice")]
WorkersOption = Annotated[int, typer.Option(min=1, help="decoding processes")]
_SIDE = "folder of videos, or statistics written by fvd-stats"


def fvd(
    real: Annotated[Path, typer.Argument(help=_SIDE)],
    generated: Annotated[Path, typer.Argument(help=_SIDE)],
    extractor: ExtractorOption = None,
    weights: WeightsOption = None,
    sha256: ShaOption = None,
    convention: ConventionOption = None,
    layer: LayerOption = None,
    bn_eps: EpsilonOption = None,
    frames: FramesOption = None,
    size: SizeOption = None,
    fps: FpsOption = None,
    stride: StrideOption = None,
    n: NumberOption = None,
    clips_per_video: PerVideoOption = 1,
    seed: SeedOption = 0,
    skip_bad: SkipOption = False,
    floor: Annotated[
        bool, typer.Option(help="with --n: read n more real clips for a noise floor at the same n")
    ] = True,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    workers: WorkersOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Fréchet video distance of two folders of videos, with interval, noise floor and passport.

    What is not given follows saved statistics of the other side: extractor and its options, frames, and the
    size and rate that were asked for when they were made. Sizes and rates of the files themselves must be
    the same. Weights are always given; they must be those of the saved side.
    """
    settings = _settings(**{key: value for key, value in locals().items() if key in _OF_SETTINGS})
    from vdmini_core.metrics.folder_distance import folder_distance

    found = folder_distance(real, generated, settings, with_floor=floor).to_json()
    if as_json:
        print_json(found)
        return
    low_high, noise = found["interval"], found["noise_floor"]
    rows = [
        {"measure": "Fréchet distance", "value": f"{found['value']:.6g}"},
        {
            "measure": "95 % interval",
            "value": " – ".join(f"{x:.6g}" for x in low_high) if low_high else "none",
        },
        {"measure": "noise floor, real against real", "value": _floor_text(noise)},
        {"measure": "clips, real and generated", "value": " and ".join(map(str, found["n"].values()))},
    ]
    print_rows(rows, title=f"{real} against {generated}")
    _print_passport(found["passport"])
    _print_remarks(found["notes"], found["skipped"])


def fvd_stats(
    folder: Annotated[Path, typer.Argument(help="folder of videos")],
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write (.safetensors)")],
    extractor: ExtractorOption = None,
    weights: WeightsOption = None,
    sha256: ShaOption = None,
    convention: ConventionOption = None,
    layer: LayerOption = None,
    bn_eps: EpsilonOption = None,
    frames: FramesOption = None,
    size: SizeOption = None,
    fps: FpsOption = None,
    stride: StrideOption = None,
    n: NumberOption = None,
    clips_per_video: PerVideoOption = 1,
    seed: SeedOption = 0,
    skip_bad: SkipOption = False,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    workers: WorkersOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Statistics of a folder of videos for `fvd`, so that the real side is read once; constant memory."""
    settings = _settings(**{key: value for key, value in locals().items() if key in _OF_SETTINGS})
    from vdmini_core.metrics.folder import folder_stats
    from vdmini_core.metrics.saved_stats import Saved, checked_output, save_stats

    checked_output(output)
    measured = folder_stats(folder, settings)
    save_stats(Saved(measured.stats, measured.passport, settings.asked()), output)
    facts: dict[str, Any] = {
        "file": str(output),
        "n": measured.stats.n,
        "passport": measured.passport.to_json(),
        "skipped": dict(measured.skipped),
    }
    if as_json:
        print_json(facts)
        return
    _print_passport(facts["passport"])
    _print_remarks([], facts["skipped"])
    typer.echo(f"{output}: statistics of {measured.stats.n} clips, {measured.passport.dim} features")


_OF_EXTRACTOR = ("weights", "sha256", "convention", "layer", "bn_eps")
_OF_SETTINGS = frozenset(
    {*_OF_EXTRACTOR, "extractor", "frames", "size", "fps", "stride", "n", "clips_per_video", "seed",
     "skip_bad", "device", "workers", "threads"}
)  # fmt: skip


def _settings(*, size: str | None, threads: int | None, device: str, **given: Any) -> Settings:
    """The options of both commands as one object; threads and device are seen to at once."""
    if given["fps"] is not None and given["stride"] is not None:
        raise typer.BadParameter("--fps samples by time, --stride counts frames: give one of them")
    if given["fps"] is not None and not given["fps"] > 0:
        raise typer.BadParameter("--fps must be above 0")
    shape = _shape(size)
    import torch

    from vdmini_core.metrics.folder import Settings

    check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    options = {key: given.pop(key) for key in _OF_EXTRACTOR}
    options = {key: value for key, value in options.items() if value is not None}
    return Settings(size=shape, device=device, options=options, **given)


def _shape(text: str | None) -> tuple[int, int] | None:
    """`128` or `1024x576` (width x height) -> (height, width)."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    width = int(found[1]) if found else 0
    height = int(found[2] or found[1]) if found else 0
    if min(width, height) < 8:
        raise typer.BadParameter(f"--size {text}: give pixels as N or WIDTHxHEIGHT, at least 8")
    return height, width


def _floor_text(floor: dict[str, Any] | None) -> str:
    return f"{floor['mean']:.4g} ± {floor['sd']:.2g} (n = {floor['n']})" if floor else "none"


def _print_passport(passport: dict[str, Any]) -> None:
    rows = []
    for key, value in passport.items():
        if key == "size":
            rows.append({"passport": "size (width x height)", "value": f"{value[1]} x {value[0]}"})
        elif isinstance(value, dict):
            rows += [{"passport": f"{key}: {name}", "value": _text(item)} for name, item in value.items()]
        else:
            rows.append({"passport": key, "value": _text(value)})
    print_rows(rows)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _print_remarks(notes: list[str], skipped: dict[str, str]) -> None:
    for note in notes:
        typer.echo(f"note: {note}")
    for path, reason in skipped.items():
        typer.echo(f"not used: {path}: {reason}")
