"""Writing a trained teacher as a pipeline directory, with `vdmini.json` and its record `TRAINING.json`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import StableVideoDiffusionPipeline
from numpy.typing import NDArray

from vdmini_core.artifacts import library_versions, read_json, sha256_file, write_json
from vdmini_core.data.procedural import GENERATOR_VERSION, ProceduralSpec, render_clips, split_seeds
from vdmini_core.metrics.speed import device_name
from vdmini_core.teacher.architecture import ARCHITECTURES, Size, call_arguments
from vdmini_core.teacher.measure import measure, sample_clips

RECORD = "TRAINING.json"
EARLIER_RECORD = "earlier.json"  # of the teacher that was trained on
SAMPLE_SEED = 7
MEASURED_CLIPS = 32
Split = Literal["train", "validation", "test"]


def export_pipeline(
    pipeline: StableVideoDiffusionPipeline, size: Size, workdir: Path, target: Path
) -> dict[str, Any]:
    """Save the pipeline in float16, the arguments it is made for, and the record of its training."""
    pipeline.to(torch.float16).save_pretrained(target)
    for config in target.rglob("config.json"):  # where the parts were loaded from is nobody's business
        write_json(config, {k: v for k, v in read_json(config).items() if k != "_name_or_path"})
    write_json(target / "vdmini.json", call_arguments(size))
    record = training_record(target, size, workdir)
    write_json(target / RECORD, record)
    return record["sample"]


def training_record(target: Path, size: Size, workdir: Path) -> dict[str, Any]:
    """Commands, data, curve, hashes of the weights and a sample that can be made again."""
    frames = recorded_sample(target, size)
    commands = (workdir / "commands.txt").read_text().splitlines()
    runs = {path.stem: _summary(path) for path in sorted(workdir.glob("*.jsonl"))}
    if (workdir / EARLIER_RECORD).exists():
        earlier = read_json(workdir / EARLIER_RECORD)
        commands = earlier["commands"] + commands
        runs = {
            **earlier["runs"],
            **{
                f"{name}-{sum(n.startswith(name) for n in earlier['runs']) + 1}": run
                for name, run in runs.items()
            },
        }
    return {
        "architecture": size,
        "commands": list(dict.fromkeys(commands)),
        "libraries": library_versions(),
        "measured": measure(
            load_exported(target), _clips(size, "test", MEASURED_CLIPS), call_arguments(size)
        ),
        "data": {"generator_version": GENERATOR_VERSION, "level": "normal", "digest": data_digest(size)},
        "hardware": f"measured on {device_name()}, float32; trained where the commands say",
        "runs": runs,
        "weights_sha256": {
            path.relative_to(target).as_posix(): sha256_file(path)
            for path in sorted(target.rglob("*.safetensors"))
        },
        "sample": {
            "clip_seed": split_seeds("test", 1, 0)[0],
            "noise_seed": SAMPLE_SEED,
            "mean_per_frame": [round(float(frame.mean()), 6) for frame in frames],
            "std_per_frame": [round(float(frame.std()), 6) for frame in frames],
            "tolerance": 1e-3,
        },
    }


def _summary(curve: Path) -> dict[str, Any]:
    """Steps, last loss and every held-out measurement of a loss curve."""
    rows = [json.loads(line) for line in curve.read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    keys = ("step", "mse", "mse_copy", "ratio", "effect")
    return {
        "steps": rows[-1]["step"],
        "loss": [[row["step"], row["loss"]] for row in losses[:: max(1, len(losses) // 20)]],
        "held_out": [{key: row[key] for key in keys} for row in rows if "ratio" in row],
    }


def _clips(size: Size, split: Split, count: int) -> NDArray[np.uint8]:
    architecture = ARCHITECTURES[size]
    spec = ProceduralSpec(architecture.frames, architecture.height, architecture.width)
    return render_clips(spec, split_seeds(split, count, 0))


def data_digest(size: Size) -> str:
    """sha256 of the first eight training clips: what the generator draws today."""
    return hashlib.sha256(_clips(size, "train", 8).tobytes()).hexdigest()


def load_exported(directory: Path) -> StableVideoDiffusionPipeline:
    """The shipped pipeline in float32, which CPUs compute best."""
    pipeline = StableVideoDiffusionPipeline.from_pretrained(
        directory, torch_dtype=torch.float32, use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def recorded_sample(directory: Path, size: Size) -> NDArray[np.float32]:
    """The clip that the weights make of the first test clip: float32 (frames, height, width, 3) in 0..1."""
    return sample_clips(load_exported(directory), _clips(size, "test", 1), call_arguments(size), SAMPLE_SEED)[
        0
    ]
