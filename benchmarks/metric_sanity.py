"""Claims: the shipped extractors rise with damage, and content and motion are told apart.

python benchmarks/metric_sanity.py                       # held-out procedural clips, with all claims
python benchmarks/metric_sanity.py --videos FOLDER       # clips cut from videos: the table alone

Writes `benchmarks/results/metric_sanity-DATE[-videos].json` and a chart beside it. No times are claimed.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.data.procedural import GENERATOR_VERSION, ProceduralSpec, render_clip, split_seeds
from vdmini_core.data.video import fit, read_video, write_mp4
from vdmini_core.metrics import load_extractor
from vdmini_core.metrics.distortions import freeze, static_noise
from vdmini_core.metrics.extractors import EXTRACTORS
from vdmini_core.metrics.ground_truth import sprite_errors
from vdmini_core.metrics.paired import (
    paired_mse,
    paired_permutation_test,
    perceptual_distance,
    psnr,
    ssim,
    temporal_difference_error,
)
from vdmini_core.metrics.sanity import damaged_sets, sanity_table
from vdmini_core.metrics.uncertainty import frechet_with_interval, noise_floor
from vdmini_core.progress import track
from vdmini_core.report.figures import PALETTE, house_style, plain_numbers, save

RESULTS = Path(__file__).parent / "results"
FRAMES, LONG, SIDE = 8, 24, 64
TRIED, REFERENCE = 96, 192
PAIRED = 256
JUDGED = 64  # clips whose sprites are looked for
SPLITS = 20
PLACES = 3  # crops of a wide video
ROUNDING = 1e-9  # a rank correlation of 0.9 comes out as 0.8999999999999998
HELD_OUT_SEED = 11  # of the held-out clips: no seed that training or the default run uses


def procedural(count: int, frames: int = LONG) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Held-out films and their truth, padded to two sprites."""
    clips = [
        render_clip(ProceduralSpec(frames=frames), seed)
        for seed in track(split_seeds("test", count, HELD_OUT_SEED), "drawing clips", count, "clip")
    ]
    truth = {"sprite_count": np.array([len(c.truth["sprite_radii"]) for c in clips])}
    for name in ("sprite_centres", "sprite_visible", "sprite_radii"):
        first = clips[0].truth[name]
        out = np.zeros((count, 2, *first.shape[1:]), first.dtype)
        for index, clip in enumerate(clips):
            out[index, : len(clip.truth[name])] = clip.truth[name]
        truth[name] = out[:, :, :FRAMES] if out.ndim > 2 else out
    return torch.from_numpy(np.stack([clip.frames for clip in clips])), truth


def from_videos(folder: Path, frames: int, step: int) -> Tensor:
    """Films (n, frames, SIDE, SIDE, 3) at the videos' own rate, one every `step` frames.

    A few videos give many of them only because each is seen at the left, in the middle and at the right:
    the films are not independent. A video that is too short is named and left out.
    """
    films = []
    for path in sorted(folder.iterdir()):
        whole, info = read_video(path)
        width = max(SIDE, round(SIDE * info.width / info.height))
        small = np.stack([fit(frame, SIDE, width) for frame in whole])
        starts = range(0, len(small) - frames + 1, step)
        print(f"{path.name}: {len(small)} frames, {len(starts) * PLACES} films")
        for start in starts:
            for left in np.linspace(0, width - SIDE, PLACES).astype(int):
                films.append(small[start : start + frames, :, left : left + SIDE])
    return torch.from_numpy(np.stack(films))


def tables(films: Tensor, tried: int) -> dict[str, Any]:
    """The suite for every shipped extractor; damage is drawn once and seen by all."""
    clean, reference = films[:tried, :FRAMES], films[tried:, :FRAMES]
    sets = list(damaged_sets(films[:tried], FRAMES))
    result = {}
    for name in track(EXTRACTORS, "extractors", len(EXTRACTORS), "extractor"):
        result[name] = sanity_table(load_extractor(name), sets, clean, reference)
    return result


def agreement(films: Tensor, truth: dict[str, np.ndarray], table: dict[str, Any]) -> dict[str, Any]:
    """Rank correlation of `content` and `motion` over all damaged sets with the known truth's errors."""
    real = films[:JUDGED, :FRAMES]
    known = {name: values[:JUDGED] for name, values in truth.items()}
    errors = []
    for damage, clips in track(damaged_sets(films[:JUDGED], FRAMES), "truth", 32, "damage"):
        made = (clips * 255).round().to(torch.uint8)
        found = sprite_errors(made.numpy(), real.numpy(), known)
        means = {name: float(np.nanmean(values)) for name, values in found.items()}
        errors.append({"kind": damage.kind, "damage": damage.name, "strength": damage.strength, **means})
    distances = {name: [d for row in table[name]["rows"] for d in row["distances"]] for name in table}
    rank = {
        extractor: {
            measure: float(spearmanr([e[measure] for e in errors], distances[extractor])[0])
            for measure in ("trajectory_error", "colour_error", "shape_error")
        }
        for extractor in table
    }
    return {"spearman_with_truth": rank, "errors": errors}


def told_apart(films: Tensor) -> dict[str, Any]:
    """p values of the paired metrics: damaged then encoded, against encoded, both held to the original."""
    real = films[:PAIRED, :FRAMES]
    plain = encoded(real)
    unit = real.float() / 255
    noisy = static_noise(unit, 0.02, torch.Generator().manual_seed(0))
    frozen = unit.clone()
    frozen[::4] = freeze(unit[::4], 0.25, torch.Generator())
    result: dict[str, Any] = {"n": len(real)}
    for name, clips in (("noise sd 0.02 on every clip", noisy), ("last quarter frozen in every 4th", frozen)):
        made = encoded((clips * 255).round().to(torch.uint8))
        result[name] = {
            measure.__name__: paired_permutation_test(measure(made, real), measure(plain, real))
            for measure in (paired_mse, psnr, ssim, temporal_difference_error, perceptual_distance)
        }
    return result


def encoded(clips: Tensor) -> Tensor:
    """The clips after our own mp4 encoder and decord: what any pipeline does to them anyway."""
    from decord import VideoReader, cpu

    out = torch.empty_like(clips)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for index, clip in enumerate(clips):
            write_mp4(path, clip.numpy(), 8)
            out[index] = torch.from_numpy(VideoReader(str(path), ctx=cpu(0))[:].asnumpy())
    return out


def coverage(films: Tensor) -> dict[str, Any]:
    """How often the interval of one random split into halves covers the noise floor."""
    clips = films[:, :FRAMES]
    result = {}
    for name in EXTRACTORS:
        features = load_extractor(name)(clips)
        half, rng = len(features) // 2, np.random.default_rng(1)
        floor = noise_floor(features, half, seed=2, repeats=64).mean
        covered = 0
        for split in range(SPLITS):
            order = rng.permutation(len(features))
            found = frechet_with_interval(features[order[:half]], features[order[half : 2 * half]], split)
            covered += found.low <= floor <= found.high
        result[name] = {"floor": floor, "n": half, "covered": covered, "splits": SPLITS}
    return result


def verdicts(result: dict[str, Any], videos: bool) -> dict[str, Any]:
    """The claims with their figures; the table of a few videos is no claim."""
    checks: dict[str, tuple[Any, Any]] = {} if videos else _of_tables(result)
    if "coverage" in result:
        least = min(row["covered"] for row in result["coverage"].values())
        checks["interval covers the floor >= 17 of 20"] = (least, least >= 17)
    if "told_apart" in result:
        best = [min(v.values()) for v in result["told_apart"].values() if isinstance(v, dict)]
        checks["small damage told apart, p < 0.01"] = (max(best), max(best) < 0.01)
    return {name: {"found": found, "holds": bool(holds)} for name, (found, holds) in checks.items()}


def _of_tables(result: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    ranks = [row["spearman"] for row in result["tables"]["embedded"]["rows"]]
    content, motion = (result["tables"][name]["median_reaction"] for name in ("content", "motion"))
    return {
        "embedded: least Spearman >= 0.9": (min(ranks), min(ranks) >= 0.9 - ROUNDING),
        "embedded: mean Spearman >= 0.97": (float(np.mean(ranks)), np.mean(ranks) >= 0.97 - ROUNDING),
        "content reacts to content >= 3x": (content, content["content"] >= 3 * max(content["motion"], 0)),
        "motion reacts to motion >= 3x": (motion, motion["motion"] >= 3 * max(motion["content"], 0)),
    }


def chart(result: dict[str, Any], path: Path) -> None:
    """Reaction of each extractor to every damage at its four strengths."""
    with house_style():
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        axes_of = figure.subplots(len(EXTRACTORS), 1, sharex=True)
        for axes, name in zip(axes_of, EXTRACTORS, strict=True):
            table = result["tables"][name]
            for place, row in enumerate(table["rows"]):
                heights = [max(value, 0.1) for value in row["reactions"]]
                positions = place + np.array([-0.3, -0.1, 0.1, 0.3])
                axes.bar(positions, heights, 0.17, color=PALETTE[row["kind"]], alpha=0.9)
            axes.axhspan(0.1, 2, color=PALETTE["grid"], alpha=0.6, lw=0)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(plain_numbers())
            axes.set_ylim(0.1)
            axes.set_title(f"{name}: distance above the noise floor, in its standard deviations")
        labels = [
            f"{row['damage']}\n{row['strengths'][0]:g} to {row['strengths'][-1]:g}" for row in table["rows"]
        ]
        axes_of[-1].set_xticks(range(len(labels)), labels)
        figure.supxlabel(
            "content damage (green) and motion damage (orange), weakest first; grey: within two deviations",
            fontsize=9,
        )
        save(figure, path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, help="clips from these videos instead of procedural ones")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    today = datetime.date.today().isoformat()
    result: dict[str, Any] = {
        "date": today,
        "frames": FRAMES,
        "size": [SIDE, SIDE],
        "libraries": library_versions(),
    }
    if arguments.videos:
        films = from_videos(arguments.videos, LONG, FRAMES)
        tried = len(films) // 3
        result |= {
            "source": "clips cut from a folder of videos",
            "tried": tried,
            "reference": len(films) - tried,
        }
        result["tables"] = tables(
            films[torch.randperm(len(films), generator=torch.Generator().manual_seed(0))], tried
        )
        short = from_videos(arguments.videos, FRAMES, FRAMES)
        result["told_apart"] = told_apart(short)
        result["coverage"] = coverage(short)
        name = f"metric_sanity-{today}-videos"
    else:
        films, truth = procedural(TRIED + REFERENCE)
        result |= {
            "source": "procedural, level normal, test split, seed 11",
            "generator_version": GENERATOR_VERSION,
        }
        result |= {"tried": TRIED, "reference": REFERENCE, "tables": tables(films, TRIED)}
        result["agreement"] = agreement(films, truth, result["tables"])
        result["told_apart"] = told_apart(films)
        result["coverage"] = coverage(films)
        name = f"metric_sanity-{today}"
    result["verdicts"] = verdicts(result, arguments.videos is not None)
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", result)
    chart(result, RESULTS / f"{name}.png")
    for name, table in result["tables"].items() if arguments.videos else ():
        for row in table["rows"]:
            reactions = ", ".join(f"{value:.1f}" for value in row["reactions"])
            print(f"{name}: {row['kind']}, {row['damage']}: {reactions} deviations above the floor")
    for claim, verdict in result["verdicts"].items():
        print("holds" if verdict["holds"] else "FAILS", claim, verdict["found"])


if __name__ == "__main__":
    main()
