"""What `prepare` remembers of each video: bytes of main memory, for `docs/scale.md`.

python benchmarks/prepare_memory.py [--videos 20000 60000]

`ingest_folder` with a stand-in for the file tree and for the decoding processes, whose answers are those of
small videos with one clip each: what is left is the account of files, splits, order and index. Peak resident
memory of a fresh process for each number of videos; the slope between them is what a video costs. No claim: a
figure to reckon with. The result is `benchmarks/results/prepare_memory-DATE.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.data import ingest
from vdmini_core.data.discovery import Found
from vdmini_core.params import PrepareParams

RESULTS = Path(__file__).parent / "results"
FRAMES, SIDE = 2, 16
FACTS = {
    "source_fps": 23.976,
    "source_frames": 173,
    "width": 1920,
    "height": 1080,
    "rotation": 0,
    "codec": "h264",
    "container": "mov",
}


class Answers:
    """Instead of the decoding processes: every video is good, and has one clip."""

    def __init__(self, raw: Path) -> None:
        self._raw = raw

    def probe(self, file: Found) -> dict[str, Any]:
        return {"runs": [[0, 48]], "ticks": 50, "duration_s": 7.2, **FACTS, "raw": self._raw}

    def decode(self, file: Found, starts: list[int]) -> dict[str, Any]:
        raw = Path(str(self._raw))  # a path of its own for each video, as there
        return {"starts": [0], "rejected": {}, "decoder": "decord", "raw": raw}


def peak(videos: int) -> int:
    """Bytes at most of this process, for so many videos."""
    with tempfile.TemporaryDirectory() as folder:
        out, work = Path(folder) / "out", Path(folder) / "work"
        out.mkdir()
        work.mkdir()
        raw = work / "one.raw"
        raw.write_bytes(bytes(FRAMES * SIDE * SIDE * 3))
        ingest.discover = lambda root: [  # type: ignore[assignment]
            Found(
                root / f"part_{n % 186}/{n:09d}_0.mp4", f"part_{n % 186}/{n:09d}_0.mp4", "candidate", "", n, n
            )
            for n in range(videos)
        ]
        ingest.CachedDecoder = lambda pool, work, params: Answers(raw)  # type: ignore[assignment,misc]
        ingest.read_captions = lambda *_: {}  # type: ignore[assignment]
        params = PrepareParams.model_validate(
            {
                "source": "folder",
                "frames": FRAMES,
                "height": SIDE,
                "width": SIDE,
                "max_clips_per_video": 1,
                "clips": {"train": videos, "validation": 64, "test": 64},
            }
        )
        ingest.ingest_folder(Path(folder), out, work, params, 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=int, nargs=2, default=[20_000, 60_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(peak(arguments.one)))
        return
    peaks = {}
    for videos in arguments.videos:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(videos)], check=True, capture_output=True, text=True
        )
        peaks[videos] = int(done.stdout.splitlines()[-1])
    few, many = arguments.videos
    slope = (peaks[many] - peaks[few]) / (many - few)
    result = {
        "libraries": library_versions(),
        "peak_bytes": {str(videos): value for videos, value in peaks.items()},
        "bytes_per_video": round(slope),
    }
    print(result)
    write_json(RESULTS / f"prepare_memory-{datetime.date.today().isoformat()}.json", result)


if __name__ == "__main__":
    main()
