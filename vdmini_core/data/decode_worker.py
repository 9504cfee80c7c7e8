"""The process that touches untrusted video files: `python -m vdmini_core.data.decode_worker`.

It reads one JSON request a line and answers one JSON line. It may crash, hang or run out of memory: the
parent (`decode_pool`) kills and replaces it. It imports the decoders, numpy and Pillow, no torch.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vdmini_core.data.readers import AvReader, DecordReader, Reader
from vdmini_core.data.sampling import MAX_REPEATS, MAX_TICKS, clip_frames, clip_runs, tick_count
from vdmini_core.data.video import Frames, VideoInfo, fit, plain, read_info
from vdmini_core.errors import DataError

Request = dict[str, Any]
Reply = dict[str, Any]
MEMORY_BYTES = 4 * 2**30  # address space: a header that claims a giant picture fails here
MAX_DISAGREEMENT = 6.0  # mean absolute difference (0-255) at which two decoders showed different frames
_ORPHAN_GRACE_S = 10


def probe_file(request: Request) -> Reply:
    """Time line of a file: the runs of ticks at which a clip may start, and facts for the record.

    Args:
        request: `path`, `frames`, and `fps` or `stride`.

    Raises:
        DataError: when no clip can start anywhere, with the reason.
    """
    info = read_info(Path(request["path"]))
    frames, seconds = request["frames"], float(info.times[-1])
    times, fps = _clock(info, request)
    ticks = tick_count(times, fps)
    if ticks > MAX_TICKS:
        raise DataError("its time stamps are damaged (they span weeks)")
    if ticks < frames and "stride" in request:
        span = (frames - 1) * request["stride"] + 1
        raise DataError(f"too short: {len(times)} frames, a clip of {frames} spans {span}")
    if ticks < frames:
        raise DataError(
            f"too short: {seconds:.2f} s in {len(info.times)} frames, "
            f"a clip of {frames} frames at {fps:g} per second spans {(frames - 1) / fps:.2f} s"
        )
    runs = clip_runs(times, frames, fps)
    if not runs:
        raise DataError(
            f"too slow: {info.fps:.2f} frames per second, most frames of a clip at {fps:g} would be repeats"
        )
    return {"runs": runs, "ticks": ticks, "duration_s": round(seconds, 6), **_facts(info)}


def decode_file(request: Request) -> Reply:
    """Decode clips of a file into a raw file of uint8 (clips, frames, height, width, 3).

    Args:
        request: `path`, `out` (raw file to write), `starts` (rising ticks), `frames`, `fps` or `stride`,
            `height`, `width`, `min_motion`, and `max_repeats` (optional).

    Returns:
        `starts` of the clips that were kept, in order; `rejected`, a count per reason; `decoder`.

    Raises:
        DataError: when neither decoder reads the file.
    """
    info = read_info(Path(request["path"]))
    times, fps = _clock(info, request)
    wanted = [clip_frames(times, start, request["frames"], fps) for start in request["starts"]]
    checks = sorted({int(wanted[0][0]), int(wanted[-1][-1])})
    reference = [
        _fitted(image, info, request) for image in AvReader(Path(request["path"]), info).frames(checks)
    ]
    if info.floats:  # decord gives 8 bits, in which NaN cannot be seen
        return _write_clips(AvReader(Path(request["path"]), info), info, wanted, request)
    try:
        reader: Reader = DecordReader(Path(request["path"]), info)
        _compare(reader, checks, reference, info, request)
        return _write_clips(reader, info, wanted, request)
    except Exception:  # decord raises whatever it likes; the second decoder has the last word
        return _write_clips(AvReader(Path(request["path"]), info), info, wanted, request)


def _clock(info: VideoInfo, request: Request) -> tuple[NDArray[np.float64], float]:
    """The time line and the rate to sample it at; a `stride` counts frames and knows no seconds."""
    if "stride" in request:
        return np.arange(len(info.times), dtype=np.float64), 1 / request["stride"]
    return info.times, request["fps"]


def _fitted(image: Frames, info: VideoInfo, request: Request) -> Frames:
    return fit(image, request["height"], request["width"], info.aspect)


def _compare(
    reader: Reader, checks: list[int], reference: list[Frames], info: VideoInfo, request: Request
) -> None:
    """Refuse a decoder that shows other frames than PyAV: unrotated, shifted after a seek, garbled."""
    for image, other in zip(reader.frames(checks), reference, strict=True):
        if image.shape[:2] != (info.height, info.width):
            raise DataError("decord shows the frame in another orientation")
        if np.abs(_fitted(image, info, request).astype(np.int16) - other).mean() > MAX_DISAGREEMENT:
            raise DataError("decord shows another frame")


def _write_clips(reader: Reader, info: VideoInfo, wanted: list[Any], request: Request) -> Reply:
    rejected: Counter[str] = Counter()
    kept: list[int] = []
    cache: dict[int, Frames] = {}
    with Path(request["out"]).open("wb") as out:
        for start, indices in zip(request["starts"], wanted, strict=True):
            missing = sorted({int(i) for i in indices} - cache.keys())
            fresh = {
                i: _fitted(f, info, request) for i, f in zip(missing, reader.frames(missing), strict=True)
            }
            # Overlapping clips share frames: only what the last clip showed is kept.
            cache = {int(i): fresh[i] if i in fresh else cache[i] for i in indices}
            clip = np.stack([cache[int(i)] for i in indices])
            reason = _fault(clip, request["min_motion"], request.get("max_repeats", MAX_REPEATS))
            if reason:
                rejected[reason] += 1
            else:
                out.write(clip.tobytes())
                kept.append(start)
    return {"starts": kept, "rejected": dict(rejected), "decoder": reader.name}


def _fault(clip: Frames, min_motion: float, max_repeats: float) -> str:
    """Why a clip is of no use, or nothing."""
    change = np.abs(np.diff(clip.astype(np.int16), axis=0)).mean((1, 2, 3))
    if change.mean() < min_motion:
        return f"static: frames change by less than min_motion {min_motion:g}"
    if (change == 0).mean() > max_repeats:
        return "most frames repeat the one before"
    return ""


def _facts(info: VideoInfo) -> Reply:
    return {
        "source_fps": round(info.fps, 4),
        "source_frames": len(info.times),
        "width": info.width,
        "height": info.height,
        "rotation": info.rotation,
        "codec": info.codec,
        "container": info.container,
    }


def answer(request: Request) -> Reply:
    """Do what a request asks; whatever goes wrong becomes an `error` in plain words."""
    # The default action of the alarm ends the process even inside a hung C call, should the parent be gone.
    signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + _ORPHAN_GRACE_S)
    try:
        return {"probe": probe_file, "decode": decode_file}[request["op"]](request)
    except DataError as error:
        return {"error": error.problem}
    except MemoryError:
        return {"error": f"decoding it needs more than {MEMORY_BYTES // 2**30} GiB of memory"}
    except Exception as error:  # decoders raise anything, and no file may end the run
        return {"error": f"damaged, or of a kind no decoder here reads ({plain(error)})"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _own_channel() -> BinaryIO:
    """Keep standard output for replies alone: what libraries print there, or on standard error, is lost."""
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    return channel


def main() -> None:
    """Serve requests until standard input ends."""
    import av
    import decord  # noqa: F401  a missing decoder shows at the start, not as a quarantine of every file

    av.logging.set_level(None)
    channel = _own_channel()
    _limit_memory()
    channel.write(b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        channel.write(json.dumps(answer(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main()
