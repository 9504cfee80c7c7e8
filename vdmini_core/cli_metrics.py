"""Commands that measure folders of videos: `fvd`, `fvd-stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vdmini_core.cli import JsonOption, print_json, print_rows
from vdmini_core.errors import DataError

ExtractorOption = Annotated[str, typer.Option(help="embedded, content, motion, i3d, videomae")]
WeightsOption = Annotated[str | None, typer.Option(help="of i3d or videomae: path, or https address (i3d)")]
Sha256Option = Annotated[str | None, typer.Option(help="of the weights file")]
ConventionOption = Annotated[str | None, typer.Option(help="of i3d: videogpt, styleganv, cdfvd")]
LayerOption = Annotated[str | None, typer.Option(help="of i3d: logits, pooled")]
EpsOption = Annotated[float | None, typer.Option(help="BatchNorm epsilon of i3d; the field's FVD has 1e-5")]
FramesOption = Annotated[int, typer.Option(min=1, help="frames a clip")]
FpsOption = Annotated[float | None, typer.Option(min=0.01, help="sampled by time; default: the files' own")]
SizeOption = Annotated[str | None, typer.Option(help="HEIGHTxWIDTH or one side; default: the files' own")]
CountOption = Annotated[int | None, typer.Option("--n", min=2, help="clips a side; default: all")]
SeedOption = Annotated[int, typer.Option(help="which videos, and of the interval")]
SkipOption = Annotated[bool, typer.Option("--skip-bad", help="leave files out that give no clip")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda")]


def fvd(
    real: Annotated[Path, typer.Argument(help="folder of videos, or statistics of `fvd-stats`")],
    generated: Annotated[Path, typer.Argument(help="folder of videos, or statistics of `fvd-stats`")],
    extractor: ExtractorOption = "embedded",
    weights: WeightsOption = None,
    sha256: Sha256Option = None,
    convention: ConventionOption = None,
    layer: LayerOption = None,
    bn_eps: EpsOption = None,
    frames: FramesOption = 16,
    fps: FpsOption = None,
    size: SizeOption = None,
    n: CountOption = None,
    seed: SeedOption = 0,
    skip_bad: SkipOption = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Fréchet video distance of two folders, with interval, noise floor and what it depends on."""
    from vdmini_core.metrics.folder import Reading, compare_sides, read_side

    extract = _extractor(extractor, device, weights, sha256, convention, layer, bn_eps)
    reading = Reading(frames, fps, _size(size), n, seed, skip_bad)
    sides = [read_side(source, extract, reading) for source in (real, generated)]
    result = compare_sides(sides[0], sides[1], seed)
    result["skipped"] = {"real": sides[0].skipped, "generated": sides[1].skipped}
    if as_json:
        print_json(result)
        return
    print_rows([_summary(result, extractor)], title="Fréchet video distance")
    print_rows(
        [{"": key, "value": value} for key, value in _flat(result["passport"]).items()], title="Passport"
    )
    for line in (*sides[0].skipped, *sides[1].skipped):
        typer.echo(f"left out: {line}", err=True)
    if result["low"] is None:
        typer.echo("no interval: saved statistics do not tell single clips apart", err=True)


def fvd_stats(
    folder: Annotated[Path, typer.Argument(help="folder of videos")],
    output: Annotated[Path, typer.Option("-o", "--output", help="statistics to write (.safetensors)")],
    extractor: ExtractorOption = "embedded",
    weights: WeightsOption = None,
    sha256: Sha256Option = None,
    convention: ConventionOption = None,
    layer: LayerOption = None,
    bn_eps: EpsOption = None,
    frames: FramesOption = 16,
    fps: FpsOption = None,
    size: SizeOption = None,
    n: CountOption = None,
    seed: SeedOption = 0,
    skip_bad: SkipOption = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Mean and covariance of a folder's features, to be used as one side of `fvd` again and again."""
    from vdmini_core.metrics.folder import Reading, folder_statistics
    from vdmini_core.metrics.frechet import GaussianStats

    if output.suffix != ".safetensors" or not output.resolve().parent.is_dir():
        raise DataError("the statistics go into a .safetensors file of an existing folder", found=str(output))
    extract = _extractor(extractor, device, weights, sha256, convention, layer, bn_eps)
    side = folder_statistics(folder, extract, Reading(frames, fps, _size(size), n, seed, skip_bad))
    assert isinstance(side.data, GaussianStats)
    side.data.save(output, side.passport)
    told = {"output": str(output), "clips": side.clips, "passport": side.passport, "skipped": side.skipped}
    if as_json:
        print_json(told)
    else:
        typer.echo(f"{output}: {side.clips} clips, {len(side.skipped)} files left out")


def _extractor(name: str, device: str, *options: Any) -> Any:
    from vdmini_core.metrics import load_extractor

    names = ("weights", "sha256", "convention", "layer", "bn_eps")
    given = {k: v for k, v in zip(names, options, strict=True) if v is not None}
    return load_extractor(name, device=device, **given)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) >= 8 for part in parts):
        raise typer.BadParameter(f"{text!r} is no size: give HEIGHTxWIDTH or one side", param_hint="--size")
    return int(parts[0]), int(parts[-1])


def _summary(result: dict[str, Any], extractor: str) -> dict[str, Any]:
    floor = result["noise_floor"] or {}
    clips = result["passport"]["clips"]
    return {
        "extractor": extractor,
        "distance": result["value"],
        "low": result["low"],
        "high": result["high"],
        "floor (real halves)": floor.get("mean"),
        "floor sd": floor.get("sd"),
        "real clips": clips["real"],
        "generated clips": clips["generated"],
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
