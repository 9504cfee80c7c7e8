"""Claims: the same Fréchet video distance as `cd-fvd` 0.1.1 on the same arrays, sooner and in less memory.

python benchmarks/fvd_against_cdfvd.py [--clips 32] [--repeats 5]

`cd-fvd` goes into a folder of the benchmark's own (`.bench/`, kept), beside it a stand-in for `torchvision`,
which `cd-fvd` imports and this path never calls (there is no CPU build of it everywhere). Weights are random,
made from a seed: I3D does the same work whatever they are. Repeats take turns, so that drift hits both;
memory is the peak of a process that does nothing else. The result is
`benchmarks/results/fvd_against_cdfvd-DATE.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
OTHER = HERE.parent / ".bench" / "cd-fvd-0.1.1"
RESULTS = HERE / "results"
FRAMES, SIDE, THREADS, BATCH = 16, 128, 2, 4
PAUSE_S = 0.2
N, D = 2048, 400
STAND_IN = {
    "torchvision/__init__.py": "from . import transforms\n",
    "torchvision/transforms.py": "",
    "torchvision/datasets/__init__.py": "",
    "torchvision/datasets/video_utils.py": "class VideoClips:\n    pass\n",
}


def install() -> None:
    """`cd-fvd` and the one thing it needs that we do not have, without touching our environment."""
    if (OTHER / "cdfvd").is_dir():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(OTHER)]
    subprocess.run([*command, "--no-build-isolation", "cd-fvd==0.1.1", "einops"], check=True)
    for name, text in STAND_IN.items():
        path = OTHER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def random_weights(path: Path) -> None:
    """An I3D state dict that keeps activations in a sane range, as a plain `.pt`."""
    import torch

    from vdmini_core.metrics.i3d import expected_shapes

    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in expected_shapes().items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 5:
            values *= (2 / float(np.prod(shape[1:]))) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            values = 1 + 0.1 * values.abs()
        else:
            values *= 0.1
        state[name] = values
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    torch.save(state, path)


def clips_of(count: int, seed: int) -> np.ndarray:
    """Procedural clips uint8 (count, 16, 128, 128, 3)."""
    from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds

    return render_clips(ProceduralSpec(FRAMES, SIDE, SIDE), split_seeds("test", count, seed))


def ours(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Our features of uint8 clips."""
    import torch

    from vdmini_core.metrics import load_extractor

    extract = load_extractor("i3d", weights=weights, convention="cdfvd", batch_size=BATCH)
    return lambda clips: extract(torch.from_numpy(clips))


def theirs(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Features by its own function of its own package."""
    from cdfvd import fvd

    scorer = fvd.cdfvd("i3d", ckpt_path=str(weights), device="cpu", n_real="full", n_fake="full")

    def extract(clips: np.ndarray) -> np.ndarray:
        stats = fvd.FeatureStats(capture_all=True, capture_mean_cov=False)
        fvd.get_i3d_logits(stats, scorer.model, clips, batchsize=BATCH, device="cpu")
        return np.concatenate(stats.all_features)

    return extract


def distance_theirs(real: np.ndarray, made: np.ndarray) -> float:
    """Covariance and distance from features, by its functions."""
    from cdfvd import fvd

    scorer = fvd.cdfvd.__new__(fvd.cdfvd)
    sides = []
    for features in (made, real):
        stats = fvd.FeatureStats(capture_mean_cov=True)
        stats.append(features)
        sides.append(stats)
    return float(scorer.compute_fvd_from_stats(*sides))


def timed(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every function, taking turns after one warm-up each.

    Threads of BLAS go on spinning for a moment after their work: a pause keeps one's from costing the other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and how many times as fast ours is, per turn."""
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        **{f"{name}_median_s": round(statistics.median(values), 4) for name, values in seconds.items()},
        "times_as_fast": round(statistics.median(ratios), 3),
        "times_as_fast_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def compare(weights: Path, count: int, repeats: int) -> dict[str, Any]:
    """Equality and speed, both in this process."""
    import torch

    from vdmini_core.metrics import frechet_distance

    torch.set_num_threads(THREADS)
    real, made = clips_of(count, 0), clips_of(count, 1)
    mine, its = ours(weights), theirs(weights)
    features = {"ours": (mine(real), mine(made)), "theirs": (its(real), its(made))}
    difference = max(float(np.abs(a - b).max()) for a, b in zip(*features.values(), strict=True))
    distances = {
        "ours": frechet_distance(*features["ours"], ddof=0),
        "theirs": distance_theirs(*features["theirs"]),
    }
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(D, D)) / np.sqrt(D)
    a, b = ((rng.normal(size=(N, D)) @ mixing + shift).astype(np.float32) for shift in (0.0, 0.1))
    large = {"ours": frechet_distance(a, b, ddof=0), "theirs": distance_theirs(a, b)}
    return {
        "largest_feature_difference": difference,
        "distance_of_clips": distances,
        "distance_of_2048x400": large,
        "relative_difference": {
            "clips": abs(distances["ours"] / distances["theirs"] - 1),
            "2048x400": abs(large["ours"] / large["theirs"] - 1),
        },
        "distance_from_features": summary(
            timed(
                {"ours": lambda: frechet_distance(a, b, ddof=0), "theirs": lambda: distance_theirs(a, b)},
                2 * repeats,
            )
        ),
        "feature_extraction": summary(
            timed({"ours": lambda: mine(real), "theirs": lambda: its(real)}, repeats)
        ),
    }


def memory(which: str, weights: Path, count: int) -> dict[str, float]:
    """Peak resident memory of a process that extracts features with one implementation."""
    import torch

    torch.set_num_threads(THREADS)
    clips = clips_of(count, 0)
    extract = {"ours": ours, "theirs": theirs}[which](weights)
    extract(clips)
    return {"peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


def from_files(weights: Path, count: int) -> dict[str, float]:
    """Our whole way from mp4 files to features."""
    import torch

    from vdmini_core.data.video import write_mp4
    from vdmini_core.metrics.folder import Settings, folder_stats

    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        for index, clip in enumerate(clips_of(count, 0)):
            write_mp4(Path(folder) / f"{index}.mp4", clip, 8.0)
        options = {"weights": str(weights), "convention": "cdfvd"}
        settings = Settings("i3d", options, FRAMES, fps=8.0, size=(SIDE, SIDE))
        started = time.perf_counter()
        folder_stats(Path(folder), settings)
        return {"clips_per_second": round(count / (time.perf_counter() - started), 3)}


def in_process(part: str, weights: Path, count: int, repeats: int) -> Any:
    """Run a part of the benchmark in a process of its own; its last line of output is the result."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(OTHER)])}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(THREADS))
    command = [sys.executable, __file__, "--part", part, "--weights", str(weights)]
    command += ["--clips", str(count), "--repeats", str(repeats)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def verdicts(result: dict[str, Any]) -> dict[str, Any]:
    """The claims with their figures."""
    peak = {name: result["memory"][name]["peak_mib"] for name in ("ours", "theirs")}
    checks = {
        "same distance to 1e-4": (
            result["relative_difference"],
            max(result["relative_difference"].values()) < 1e-4,
        ),
        "distance from features at least 3x as fast": _at_least(result["distance_from_features"], 3),
        "feature extraction at least as fast": _at_least(result["feature_extraction"], 1),
        "feature extraction 1.5x as fast (aim)": _at_least(result["feature_extraction"], 1.5),
        "peak memory lower": (peak, peak["ours"] < peak["theirs"]),
    }
    return {name: {"found": found, "holds": bool(holds)} for name, (found, holds) in checks.items()}


def _at_least(row: dict[str, Any], least: float) -> tuple[float, bool]:
    return row["times_as_fast"], row["times_as_fast"] >= least


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        given = (arguments.weights, arguments.clips)
        parts: dict[str, Callable[[], Any]] = {
            "compare": lambda: compare(*given, arguments.repeats),
            "ours": lambda: memory("ours", *given),
            "theirs": lambda: memory("theirs", *given),
            "files": lambda: from_files(*given),
        }
        print(json.dumps(parts[arguments.part]()))
        return
    install()
    from vdmini_core.artifacts import library_versions, write_json
    from vdmini_core.metrics.i3d_extractor import MOST_CLIPS_ON_CPU
    from vdmini_core.metrics.speed import device_name

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "i3d.pt"
        random_weights(weights)
        given = (weights, arguments.clips, arguments.repeats)
        result = in_process("compare", *given)
        result["memory"] = {name: in_process(name, *given) for name in ("ours", "theirs")}
        result["from_mp4_files"] = in_process("files", *given)
    today = datetime.date.today().isoformat()
    result |= {
        "date": today,
        "settings": {
            "clips": arguments.clips, "frames": FRAMES, "size": [SIDE, SIDE],
            "batch": {"theirs": BATCH, "ours": min(BATCH, MOST_CLIPS_ON_CPU)},
            "threads": THREADS, "repeats": arguments.repeats, "dtype": "float32",
        },
        "hardware": device_name(),
        "libraries": library_versions(),
        "verdicts": verdicts(result),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    whole = arguments.clips >= 32 and arguments.repeats >= 5
    write_json(RESULTS / f"fvd_against_cdfvd-{today}{'' if whole else '-trial'}.json", result)
    for claim, verdict in result["verdicts"].items():
        print("holds" if verdict["holds"] else "FAILS", claim, verdict["found"])


if __name__ == "__main__":
    main()
