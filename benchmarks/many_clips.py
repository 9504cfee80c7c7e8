"""Claim: 200,000 clips go through `prepare`, DVC, S3 and back in less than 2 GB, in a few dozen objects.

python benchmarks/many_clips.py [--clips 200000] [--videos 2000] [--folder .bench/many_clips]

Tiny clips (2 frames of 16 x 16) of real .mp4 files go through the stage itself: probing, splits, decoding in
killable processes, shards. `prepare` is killed half-way, once while it decodes, and started again. Then DVC
records the outputs and pushes them to a local S3 server (rclone), outputs and cache are deleted, pulled, and
every clip is read again and compared; last, a row of latents is made of each and read. Every step is a
process of its own; its memory is the kernel's high-water mark of the largest process of the step. Speeds are
of small clips on a machine that may be busy: context, no claim. The result is
`benchmarks/results/many_clips-DATE.json`.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdmini_core.artifacts import library_versions, read_json, write_json
from vdmini_core.data.clip_source import ClipSource, stored_clips
from vdmini_core.data.clips import SPLITS
from vdmini_core.data.video import write_mp4
from vdmini_core.distillation.data import RecoveryData
from vdmini_core.distillation.encoding import ClipEncoder
from vdmini_core.distillation.latents import StoredLatents, precompute
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.base import Conditions

RESULTS = Path(__file__).parent / "results"
MOST_BYTES, MOST_OBJECTS = 2e9, 100
SIDE, FRAMES, FPS = 16, 2, 8.0
HELD_OUT = 32  # clips of validation and of test


def make_videos(folder: Path, clips: int, videos: int) -> dict[str, Any]:
    """Real files, each with an equal share of the clips and a few over: noise that moves, other in each."""
    share = -(-(clips + 4 * HELD_OUT) * 26 // 25 // videos)
    (folder / "films").mkdir(parents=True, exist_ok=True)
    for number in range(videos):
        path = folder / "films" / f"{number:06d}.mp4"
        if not path.exists():
            picture = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
            picture = np.kron(picture, np.ones((SIDE // 4, SIDE // 4, 1), np.uint8))
            frames = [np.roll(picture, (frame, 2 * frame), (0, 1)) for frame in range(share * FRAMES)]
            write_mp4(path.with_suffix(".part"), np.stack(frames), FPS)
            path.with_suffix(".part").rename(path)
    return {"videos": videos, "clips_per_video": share, "bytes": _size(folder / "films")[1]}


def lay_out_project(folder: Path, clips: int, endpoint: str) -> None:
    """A project of the package's own making, with a remote on the server."""
    from tasks.project import change_params, lay_out
    from tasks.versioning import init_repository

    root = folder / "project"
    lay_out(root)
    init_repository(root)
    settings = {
        "base.threads": 1,
        "prepare.frames": FRAMES,
        "prepare.height": SIDE,
        "prepare.width": SIDE,
        "prepare.fps": FPS,
        "prepare.max_clips_per_video": 1_000_000,
        "prepare.clips.train": clips,
        "prepare.clips.validation": HELD_OUT,
        "prepare.clips.test": HELD_OUT,
    }
    given = tuple(f"{key}={value}" for key, value in settings.items())
    change_params(root, videos=folder / "films", assignments=given)
    (root / ".dvc" / "config.local").write_text(
        f"['remote \"s3\"']\n    url = s3://dvc/many\n    endpointurl = {endpoint}\n"
        "    access_key_id = user\n    secret_access_key = secret\n[core]\n    remote = s3\n"
    )


def prepare(root: Path) -> dict[str, Any]:
    """The stage itself, without a tracking server."""
    from tasks.stage import run_stage

    outcome = run_stage("prepare", root, keep_work=True).outcome
    return {name: value for name, value in outcome.metrics.items() if name.startswith(("clips", "files"))}


def record(root: Path) -> dict[str, Any]:
    """What `dvc add` does to a stage's outputs: hash them, and put them in the cache."""
    from tasks.versioning import Versions

    Versions(root).record("prepare")
    return {}


def reload(root: Path) -> dict[str, Any]:
    """Read every clip; their bytes as one hash."""
    found: dict[str, Any] = {}
    for split in SPLITS:
        digest, clips = hashlib.sha256(), stored_clips(root / "artifacts" / "prepare", split)
        for chunk in clips.chunks():
            digest.update(chunk.numpy().tobytes())
        found[split] = {"clips": len(clips), "sha256": digest.hexdigest()}
    return found


class _Means(ClipEncoder):
    """Stands for a teacher: the sequence of shards is looked at, not what is in them."""

    def encode(self, clips: ClipSource, indices: Sequence[int]) -> RecoveryData:
        pixels = torch.cat([clips.read([index]) for index in indices]).float()
        return RecoveryData(pixels.mean((2, 3), keepdim=True), Conditions({"first": pixels[:, 0]}))


def latents(root: Path) -> dict[str, Any]:
    """Shards of latents of every training clip, made and read."""
    clips = stored_clips(root / "artifacts" / "prepare", "train")
    folder = root.parent / "latents"
    shutil.rmtree(folder, ignore_errors=True)
    precompute(_Means(None, None, None, 0), clips, folder, "means")  # type: ignore[arg-type]
    stored = StoredLatents(folder)
    for start in range(0, len(stored), 16):
        stored.rows(torch.arange(start, min(start + 16, len(stored))))
    files, size = _size(folder)
    return {"clips": len(stored), "files": files, "bytes": size}


STEPS = {step.__name__: step for step in (prepare, record, reload, latents)}


def measured(command: list[str], root: Path, kill_at: int | None = None) -> dict[str, Any]:
    """Run a command, or kill it when so many videos are decoded: seconds, memory, what it answers."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE)
    if kill_at is not None:
        while sum(1 for _ in (root / ".vdmini").rglob("*.raw")) < kill_at:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    said = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and kill_at is None:
        raise SystemExit(f"{command} failed:\n{said}")
    row = {"seconds": round(time.perf_counter() - started, 1), "peak_bytes": used.ru_maxrss * 1024}
    return row | ({} if kill_at is not None else {"answer": said})


def step(name: str, root: Path, kill_at: int | None = None) -> dict[str, Any]:
    """One of `STEPS` in a process of its own."""
    row = measured([sys.executable, __file__, "--step", name, "--folder", str(root)], root, kill_at)
    if "answer" in row:
        row["answer"] = json.loads(row["answer"].splitlines()[-1])
    return row


def dvc(name: str, root: Path) -> dict[str, Any]:
    """One command of DVC in a process of its own."""
    row = measured([sys.executable, "-m", "dvc", name, "-q", "prepare"], root)
    return {key: row[key] for key in ("seconds", "peak_bytes")}


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """rclone's S3 server over a folder with a bucket `dvc`."""
    (folder / "dvc").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    rclone = str(Path(sys.executable).with_name("rclone"))
    command = [rclone, "serve", "s3", str(folder), "--addr", address, "--auth-key", "user,secret"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(address.split(":")[1]))) == 0:
                    break
            time.sleep(0.2)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _size(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def story(folder: Path, clips: int, videos: int) -> dict[str, Any]:
    """All steps, in order."""
    for name in ("project", "s3", "latents"):
        shutil.rmtree(folder / name, ignore_errors=True)
    root, found = folder / "project", {}
    started = time.perf_counter()
    found["videos"] = make_videos(folder, clips, videos)
    found["videos"]["seconds"] = round(time.perf_counter() - started, 1)
    with s3_server(folder / "s3") as endpoint:
        lay_out_project(folder, clips, endpoint)
        found["prepare_killed"] = step("prepare", root, videos // 2)
        found["prepare_killed"]["files_in_scratch"] = _size(root / ".vdmini")[0]
        found["prepare"] = step("prepare", root)
        shutil.rmtree(root / ".vdmini" / "work")
        found["outputs"] = dict(zip(("files", "bytes"), _size(root / "artifacts" / "prepare"), strict=True))
        found["reload_before"] = step("reload", root)
        found["record"] = step("record", root)
        found["push"] = dvc("push", root)
        found["objects"] = dict(zip(("files", "bytes"), _size(folder / "s3" / "dvc" / "many"), strict=True))
        for path in (root / "artifacts", root / ".dvc" / "cache"):
            shutil.rmtree(path)
        found["pull"] = dvc("pull", root)
        found["reload"] = step("reload", root)
        found["latents"] = step("latents", root)
    return found


def claims(found: dict[str, Any]) -> dict[str, bool]:
    """What must hold."""
    peaks = [row["peak_bytes"] for row in found.values() if "peak_bytes" in row]
    return {
        "no step needs 2 GB": max(peaks) < MOST_BYTES,
        "pulled clips are those that were pushed": found["reload"]["answer"]
        == found["reload_before"]["answer"],
        "objects do not follow the number of clips": found["objects"]["files"] < MOST_OBJECTS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=200_000)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path(".bench/many_clips"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments.folder)))
        return
    folder = arguments.folder.resolve()
    found = story(folder, arguments.clips, arguments.videos)
    bytes_of = arguments.clips * FRAMES * SIDE * SIDE * 3
    result = {
        "claims": claims(found),
        "settings": {
            "clips": arguments.clips,
            "clip": [FRAMES, SIDE, SIDE, 3],
            "bytes_of_train": bytes_of,
            "videos": arguments.videos,
            "decoding_processes": 2,
        },
        "hardware": {
            "processor": device_name("cpu"),
            "cores": os.cpu_count(),
            "load_at_end": round(os.getloadavg()[2], 2),
        },
        "libraries": library_versions(),
        "steps": found,
    }
    target = RESULTS / f"many_clips-{datetime.date.today().isoformat()}.json"
    write_json(target, result)
    for name, holds in read_json(target)["claims"].items():
        print(f"{'holds' if holds else 'FAILS'}  {name}")
    print(target)


if __name__ == "__main__":
    main()
