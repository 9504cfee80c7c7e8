"""A whole artifacts tree with plausible numbers and small real videos, without running a single stage."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import av
import numpy as np
from safetensors.numpy import save_file

BLOCKS = {"D.0": 2, "D.1": 2, "D.2": 2, "D.3": 2, "M": 0, "U.0": 3, "U.1": 3, "U.2": 3, "U.3": 3}
REMOVED = ["D.0.pair.1", "D.1.pair.1", "D.3", "M", "U.0", "U.2.pair.1", "U.3.pair.1"]
PARAMETERS = {"D.0": 250_000, "D.1": 900_000, "D.2": 1_400_000, "D.3": 1_100_000, "M": 1_500_000}
PARAMETERS |= {"U.0": 1_300_000, "U.1": 1_700_000, "U.2": 1_000_000, "U.3": 300_000}


def _damage(rng: random.Random, size: float, motion: float) -> dict[str, float]:
    fvd = size * rng.uniform(0.7, 1.4)
    split = {"content": fvd * (1 - motion) * 0.6, "motion": fvd * motion * 0.4, "paired_mse": fvd / 4000}
    return {"fvd": fvd, "fvd_low": fvd * 0.86, "fvd_high": fvd * 1.17} | split


def _unit(rng: random.Random, name: str, kind: str, parameters: int, damage: float) -> dict[str, Any]:
    deep = 0.7 if name[:3] in ("D.2", "D.3", "U.0", "U.1") or name == "M" else 0.3
    fixed = kind == "pair" and name in ("D.1.pair.0", "U.2.pair.0")
    return {
        "name": name,
        "kind": kind,
        "parameters": parameters,
        "flops": int(parameters * 900 * (3 if deep < 0.5 else 1)),
        "removable": not fixed,
        "reason": "its channels change" if fixed else "",
        "removed": _damage(rng, damage, deep),
        "replaced": _damage(rng, damage * 1.3, deep),
    }


def sensitivity() -> dict[str, Any]:
    rng = random.Random(7)
    units = []
    for block, pairs in BLOCKS.items():
        heavy = 90 if block in ("D.2", "U.1", "U.3") else 30
        for pair in range(pairs):
            size = PARAMETERS[block] // pairs
            units.append(_unit(rng, f"{block}.pair.{pair}", "pair", size, heavy / (pair + 1)))
        units.append(_unit(rng, block, "block", PARAMETERS[block], heavy * 2.5))
    floor = {"fvd": 4.1, "content": 1.3, "motion": 0.9, "paired_mse": 0.0}
    return {"units": units, "noise_floor": floor, "teacher_fingerprint": "ab" * 32, "clips": 32, "seed": 0}


def plan() -> dict[str, Any]:
    return {
        "recipe": "auto",
        "removed": REMOVED,
        "teacher_fingerprint": "ab" * 32,
        "family": "svd",
        "teacher_params": 9_450_000,
        "teacher_flops": 20_300_000_000,
        "expected_params": 5_100_000,
        "expected_flops": 13_800_000_000,
        "layer_map": {},
        "feature_pairs": [],
        "notes": ["kept flops 0.68 <= 0.69"],
    }


def losses(steps: int = 200) -> list[dict[str, float]]:
    rng = random.Random(3)
    rows = []
    for step in range(steps):
        fade = math.exp(-step / 60)
        icd, task = 0.9 * fade + 0.2 + rng.gauss(0, 0.03), 0.5 * fade + 0.06 + rng.gauss(0, 0.015)
        generator, critic = -0.2 + 0.4 * fade + rng.gauss(0, 0.1), 2 - 0.6 * (1 - fade) + rng.gauss(0, 0.1)
        row = {
            "step": step,
            "total": task + 0.1 * icd + generator,
            "task": task,
            "icd": icd,
            "mca_generator": generator,
        }
        rows.append(
            row | {"mca_discriminator": critic, "grad_norm": 1 + 4 * fade, "lr": 3e-4 * min(1, step / 10)}
        )
    return rows


def metrics() -> dict[str, Any]:
    model = {"params": 9_450_000, "flops": 20_300_000_000}
    student = {"params": 5_100_000, "flops": 13_800_000_000}

    def row(real: float, teacher: float | None, mse: float | None) -> dict[str, Any]:
        out: dict[str, Any] = {"fvd_real": real, "fvd_real_low": real * 0.9, "fvd_real_high": real * 1.1}
        out |= {"content_real": real * 0.4, "motion_real": real * 0.3, "psnr": 31.0 - real / 20}
        if teacher is not None:
            out |= {
                "fvd_teacher": teacher,
                "fvd_teacher_low": teacher * 0.88,
                "fvd_teacher_high": teacher * 1.13,
            }
            out |= {"mse_teacher": mse, "content_teacher": teacher * 0.5, "motion_teacher": teacher * 0.35}
        return out

    return {
        "teacher": row(58.0, None, None) | model,
        "pruned": row(241.0, 214.0, 0.0311) | student,
        "recovered": row(83.0, 37.0, 0.0042) | student,
        "repeat_first_frame": row(190.0, 173.0, 0.0287),
        "real": row(0.0, 58.0, 0.0120),
        "params_ratio": 0.5397,
        "flops_ratio": 0.6798,
    }


def timing() -> dict[str, Any]:
    def times(unet: float) -> dict[str, float]:
        return {"unet": unet, "vae_decoder": 41.0, "end_to_end": unet + 52.0}

    latency = {"teacher": times(118.2), "pruned": times(79.9), "recovered": times(80.4)}
    return {
        "latency_ms": latency,
        "peak_memory_bytes": {row: {"unet": 12_600_000, "end_to_end": 48_300_000} for row in latency},
        "speedup": {"unet": 1.47, "vae_decoder": 1.0, "end_to_end": 1.29},
        "device": "cpu, 2 threads",
    }


def clip(number: int, quality: float, frames: int = 8, size: int = 64) -> np.ndarray:
    """A disc that moves over a striped ground, blurred and damped by `quality` below 1."""
    rng = np.random.default_rng(number)
    grid_y, grid_x = np.mgrid[:size, :size]
    hue, angle = rng.uniform(60, 220, 3), rng.uniform(0, 2 * math.pi)
    ground = (np.sin(grid_x / 5 + number)[..., None] * 25 + rng.uniform(70, 150, 3)).clip(0, 255)
    out = []
    for frame in range(frames):
        reach = frame * 3.0 * quality
        x, y = size / 2 + reach * math.cos(angle), size / 2 + reach * math.sin(angle)
        disc = np.clip((9 - np.hypot(grid_x - x, grid_y - y)) / (1 + 6 * (1 - quality)), 0, 1)[..., None]
        out.append(ground * (1 - disc) + hue * disc)
    return np.clip(np.stack(out), 0, 255).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, fps: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def sources(hostile: str = "") -> list[dict[str, Any]]:
    rows = [
        {"path": f"good/film_{i}.mp4", "status": "used", "clips": 12 + i, "decoder": "decord"}
        for i in range(5)
    ]
    rows.append(
        {"path": "hard/corrupted.mp4", "status": "quarantined", "reason": "moov atom not found", "clips": 0}
    )
    rows.append(
        {"path": "hard/still.mp4", "status": "quarantined", "reason": "static: mean change 0.02", "clips": 0}
    )
    rows.append({"path": "hard/notes.txt", "status": "skipped", "reason": "not a video", "clips": 0})
    if hostile:
        rows.append({"path": hostile, "status": "quarantined", "reason": hostile, "clips": 0})
    return rows


def _json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, sort_keys=True), encoding="utf-8")


def manifest(stage: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "inputs": {"artifacts/prepare": "1f" * 32},
        "params": {"base": {"seed": 0, "threads": 1}, stage: {"source": "bundled", "bundled": "mini"}},
        "seed": 0,
        "code": {"version": "0.1.0", "digest": "cd" * 32},
        "libraries": {"torch": "2.6.0", "diffusers": "0.42.1", "numpy": "2.0.1"},
        "metrics": {"example": 1.5},
        "outputs": {f"{stage}.bin": "ef" * 32, "nested/data.json": "01" * 32},
    }


def build(root: Path, *, clips: int = 3, hostile: str = "") -> Path:
    """Write the whole tree below `root/artifacts` and return that folder."""
    artifacts = root / "artifacts"
    for stage in ("prepare", "teacher", "profile", "plan", "prune", "distill", "evaluate"):
        _json(artifacts / stage / "manifest.json", manifest(stage))
    _json(artifacts / "prepare/sources.json", sources(hostile))
    index = [
        {"clip": i, "source": f"good/film_{i % 5}.mp4", "start_s": i / 2, "source_fps": 24.0}
        for i in range(8)
    ]
    _json(artifacts / "prepare/index.json", {"train": index, "validation": index[:4], "test": index[:4]})
    train = np.stack([clip(i, 1.0) for i in range(8)])
    for split, some in (("train", train), ("validation", train[:4]), ("test", train[:4])):
        save_file({"clips": some}, artifacts / f"prepare/clips-{split}.safetensors")
    _json(artifacts / "profile/sensitivity.json", sensitivity())
    _json(artifacts / "plan/plan.json", plan())
    lines = "".join(json.dumps(row) + "\n" for row in losses())
    (artifacts / "distill/losses.jsonl").write_text(lines, encoding="utf-8")
    _json(artifacts / "evaluate/metrics.json", metrics())
    _json(artifacts / "evaluate/timing.json", timing())
    qualities = {"real": 1.0, "teacher": 0.96, "pruned": 0.35, "recovered": 0.88}
    for name, quality in qualities.items():
        for number in range(clips):
            write_video(artifacts / f"evaluate/videos/{name}/clip-{number:02d}.mp4", clip(number, quality))
    return artifacts
