"""Hand-over to VBench: suites read, names given, videos written, a folder checked as VBench looks things up.

VBench (Huang et al., CVPR 2024; https://github.com/Vchitect/VBench) is not installed here: it scores a flat
folder of `<prompt>-<index>.mp4` in its own environment. Its rules, read from commit 45e79ec:

- a name is the prompt as it stands, `-`, the index, the suffix; the index is stripped again by `-\\d+$`;
- the suffix it looks for is that of whichever entry the folder lists first: nothing but videos may lie there;
- five videos a prompt, 25 where `temporal_flickering` is scored from text (its filter keeps five still ones);
- VBench-I2V takes the first frame `image_name` from `crop/<ratio>`; with prompts of one's own
  (`--mode=custom_input`) the image is `<prompt>.jpg`, `.jpeg` or `.png`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from vdmini_core.data.video import write_mp4
from vdmini_core.errors import DataError
from vdmini_core.metrics.vbench_suite import Entry, find_images, image_folder, read_suite
from vdmini_core.progress import progress_bar

Kind = Literal["i2v", "t2v"]
SEEDS = 5
FLICKERING_TIMES = 5  # as many times the videos, of which VBench's filter keeps the still ones
CRF = 10  # the quality that VBench-I2V's own sampling code writes with


@dataclass(frozen=True)
class Video:
    """One video of a suite: its file name, and what it is made from.

    Attributes:
        name: file name, `<prompt>-<index>.mp4`.
        prompt: text of the suite.
        index: number of the video among those of its prompt, from 0.
        seed: of its noise, a function of base seed, prompt and index alone.
        image: first frame; None for text-to-video.
    """

    name: str
    prompt: str
    index: int
    seed: int
    image: Path | None


Generate = Callable[[Sequence[Video]], Tensor]


@dataclass(frozen=True)
class FolderCheck:
    """What VBench would not find, and what does not belong there; both sorted."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Nothing is missing and nothing is in the way."""
        return not self.missing and not self.extra


def video_name(prompt: str, index: int) -> str:
    """The file name VBench looks for."""
    return f"{prompt}-{index}.mp4"


def video_seed(base_seed: int, prompt: str, index: int) -> int:
    """48 bits that depend on nothing but the arguments: a longer suite leaves earlier videos as they were."""
    digest = hashlib.sha256(f"{base_seed}\0{index}\0{prompt}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big")


def plan_videos(
    kind: Kind,
    suite_file: Path,
    *,
    images: Path | None = None,
    size: tuple[int, int] | None = None,
    seeds: int = SEEDS,
    base_seed: int = 0,
) -> list[Video]:
    """Every video of a suite, in the suite's order.

    Args:
        kind: `i2v` (VBench-I2V) or `t2v` (VBench).
        suite_file: VBench's full_info JSON, or a text file with one prompt a line.
        images: for `i2v`, a folder of first frames, or one that holds folders by ratio (`1-1`, `16-9`).
        size: height and width of the videos, which picks the ratio.
        seeds: videos a prompt.
        base_seed: of `video_seed`.

    Raises:
        DataError: for a suite, an image or a name that cannot be used.
    """
    entries = read_suite(suite_file, kind)
    frames: Iterable[Path | None] = [None] * len(entries)
    if kind == "i2v":
        if images is None:
            raise DataError("VBench-I2V needs first frames", expected="a folder of images", found="none")
        frames = find_images(image_folder(images, size), entries)
    return [
        Video(video_name(entry.prompt, i), entry.prompt, i, video_seed(base_seed, entry.prompt, i), frame)
        for entry, frame in zip(entries, frames, strict=True)
        for i in range(videos_per_prompt(entry, kind, seeds))
    ]


def videos_per_prompt(entry: Entry, kind: Kind, seeds: int = SEEDS) -> int:
    """How many videos VBench wants of a prompt, where it wants `seeds` of an ordinary one."""
    return seeds * (FLICKERING_TIMES if kind == "t2v" and "temporal_flickering" in entry.dimensions else 1)


def write_suite(
    videos: Sequence[Video], generate: Generate, out: Path, *, fps: float, batch_size: int = 1
) -> int:
    """Write what is missing of a suite; a killed call goes on where it stopped, video by video.

    Batches are always the same ones, so that a video does not depend on what was there before. The caller
    gives every model, and every change of how it samples, a folder of its own.

    Args:
        videos: as of `plan_videos`.
        generate: some videos (at most `batch_size`) -> clips uint8 (n, F, H, W, 3).
        out: the folder, made where it is missing; only whole videos ever lie in it.
        fps: frames per second.
        batch_size: videos generated at once.

    Returns:
        How many were written.

    Raises:
        DataError: before anything is generated, for a name that the file system cannot hold.
    """
    out.mkdir(parents=True, exist_ok=True)
    check_names(videos, out)
    # Beside the folder, not in it: VBench takes the suffix of any entry for that of the videos.
    partial = out.parent / f".partial-{out.name}.mp4"
    there = _names(out)
    written = 0
    with progress_bar(f"VBench videos: {out.name}", len(videos), "video") as bar:
        for start in range(0, len(videos), batch_size):
            batch = videos[start : start + batch_size]
            if any(video.name not in there for video in batch):
                for video, clip in zip(batch, generate(batch), strict=True):
                    if video.name not in there:
                        write_mp4(partial, clip.numpy(), fps, CRF)
                        partial.replace(out / video.name)
                        written += 1
            bar.update(len(batch))
    return written


def check_names(videos: Sequence[Video], folder: Path) -> None:
    """Refuse prompts that cannot be file names here: VBench looks for the prompt itself and nothing else.

    Raises:
        DataError: naming the first prompt, for a slash, a zero byte, text that is no Unicode, or length.
    """
    limit = os.pathconf(folder, "PC_NAME_MAX")
    for video in videos:
        try:
            length = len(video.name.encode())
        except UnicodeEncodeError:
            length = limit + 1
        if "/" in video.name or "\0" in video.name or length > limit:
            raise DataError(
                "a prompt of the suite cannot be a file name, and VBench looks for that very name",
                expected=f"no `/`, no zero byte, valid Unicode, at most {limit} bytes with `-<index>.mp4`",
                found=ascii(video.name if len(video.name) < 120 else video.name[:117] + "..."),
                fix="leave the prompt out of the suite file, or shorten it",
            )


def check_folder(folder: Path, videos: Sequence[Video]) -> FolderCheck:
    """Compare a folder with its suite as VBench would look its files up."""
    there = _names(folder)
    wanted = {video.name for video in videos}
    return FolderCheck(tuple(sorted(wanted - there)), tuple(sorted(there - wanted)))


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
