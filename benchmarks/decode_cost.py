"""What a video costs `prepare` at the sizes of the profiles: processor seconds, for `docs/scale.md`.

python benchmarks/decode_cost.py [--seconds 7.2] [--turns 3]

A textured picture that pans, as H.264 of 1080p and 720p at 24 frames per second, is probed and decoded by the
very functions of the decoding process, here and one after the other: processor seconds, which a busy machine
changes little, of the smallest of some turns. One clip a video and three. No claim: a figure to reckon with.
The result is `benchmarks/results/decode_cost-DATE.json`.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.data.decode_worker import decode_file, probe_file
from vdmini_core.data.sampling import spread, starts_in

RESULTS = Path(__file__).parent / "results"
FPS = 24
SOURCES = {"1080p": (1080, 1920), "720p": (720, 1280)}
PROFILES = {
    "svd-i2v": {"frames": 14, "height": 576, "width": 1024, "fps": 7.0},
    "t2v-turbo-v2": {"frames": 16, "height": 320, "width": 512, "fps": 16.0},
}


def make_source(path: Path, size: tuple[int, int], frames: int) -> None:
    """Noise of several scales, which pans by two pixels a frame."""
    random, (height, width) = np.random.default_rng(0), size
    wide = width + 2 * frames
    picture = np.zeros((height, wide, 3), np.float32)
    for scale, weight in ((4, 0.15), (16, 0.3), (96, 0.55)):
        coarse = random.integers(0, 256, (height // scale + 1, wide // scale + 1, 3), np.uint8)
        picture += weight * np.asarray(Image.fromarray(coarse).resize((wide, height)), np.float32)
    still = picture.astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23", "threads": "1"}
        for n in range(frames):
            shown = np.ascontiguousarray(still[:, 2 * n : 2 * n + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())


def processor_seconds(work: Callable[[], Any], turns: int) -> float:
    """The least of some turns."""
    best = float("inf")
    for _ in range(turns):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return round(best, 3)


def cost(source: Path, shape: dict[str, Any], scratch: Path, turns: int) -> dict[str, float]:
    """Of one look at the video, and of decoding one clip of it and three."""
    request = {**shape, "path": str(source), "min_motion": 0.5, "out": str(scratch / "clips.raw")}
    starts = starts_in(probe_file(request)["runs"], shape["frames"])
    found = {"probe": processor_seconds(lambda: probe_file(request), turns)}
    for clips in (1, 3):
        chosen = spread(starts, clips)
        if len(chosen) == clips:
            found[f"decode {clips}"] = processor_seconds(
                partial(decode_file, {**request, "starts": chosen}), turns
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=7.2, help="of a video")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SOURCES.items():
            source = Path(folder) / f"{name}.mp4"
            make_source(source, size, round(FPS * arguments.seconds))
            rows[name] = {"bytes": source.stat().st_size}
            rows[name] |= {
                p: cost(source, shape, Path(folder), arguments.turns) for p, shape in PROFILES.items()
            }
            print(name, rows[name], flush=True)
    result = {
        "hardware": {"processor": platform.processor() or platform.machine(), "threads": 1},
        "libraries": library_versions(),
        "settings": {
            "seconds": arguments.seconds,
            "fps": FPS,
            "turns": arguments.turns,
            "profiles": PROFILES,
        },
        "processor_seconds": rows,
    }
    target = RESULTS / f"decode_cost-{datetime.date.today().isoformat()}.json"
    write_json(target, result)
    print(target)


if __name__ == "__main__":
    main()
