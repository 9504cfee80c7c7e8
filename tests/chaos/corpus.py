"""Folders of files that people, machines and transfers have spoilt, drawn from a seed.

Each kind is a function that puts one thing into a folder and says what has to become of it: `use`, `refuse`,
or `any` where both are right as long as the file is accounted for.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.media import FPS, Media, Video, clip, encode, sound
from vdmini_core.data.video import write_mp4

GOOD = 3  # whole videos in every folder, so that clips can be made at all


@dataclass(frozen=True)
class Specimen:
    """One thing in a folder.

    Attributes:
        kind: what was done to it.
        name: relative to the folder, as `discovery` writes names.
        expect: `use`, `refuse` or `any`.
    """

    kind: str
    name: str
    expect: str


@dataclass(frozen=True)
class Place:
    """Where one specimen goes, and what it is drawn from."""

    folder: Path
    outside: Path
    stem: str
    rng: random.Random
    media: Media

    def write(self, suffix: str, data: bytes) -> Path:
        """A regular file."""
        path = self.folder / f"{self.stem}{suffix}"
        path.write_bytes(data)
        return path

    def whole(self) -> tuple[str, bytes]:
        """A video of which no other file holds the same bytes."""
        path = self.outside / f"{self.stem}.whole.mp4"
        write_mp4(path, clip(self.rng.randrange(2**40)), FPS)
        return ".mp4", path.read_bytes()

    def spoil(self, change: Callable[[bytearray, Video], bytes | bytearray]) -> Path:
        """A drawn video, changed."""
        video = self.media.draw(self.rng)
        return self.write(video.suffix, bytes(change(bytearray(video.data), video)))


def _flip(
    data: bytearray, rng: random.Random, count: int, begin: int = 0, end: int | None = None
) -> bytearray:
    for _ in range(count):
        data[rng.randrange(begin, max(begin + 1, min(end or len(data), len(data))))] ^= 1 << rng.randrange(8)
    return data


def _index_of(data: bytes) -> tuple[int, int]:
    """Where the index of the frames lies: sample tables, cues, idx1; the last quarter where none is found."""
    for mark, size in ((b"stbl", 1024), (b"\x1c\x53\xbb\x6b", 256), (b"idx1", 1024), (b"moof", 512)):
        place = data.find(mark)
        if place >= 0:
            return place, place + size
    return 3 * len(data) // 4, len(data)


def truncated(at: Place) -> Path:
    return at.spoil(lambda data, _: data[: at.rng.randrange(1, len(data))])


def few_bits_flipped(at: Place) -> Path:
    return at.spoil(lambda data, _: _flip(data, at.rng, at.rng.randint(1, 8)))


def many_bits_flipped(at: Place) -> Path:
    return at.spoil(lambda data, _: _flip(data, at.rng, max(8, len(data) // at.rng.randint(40, 2000))))


def header_bits_flipped(at: Place) -> Path:
    return at.spoil(lambda data, _: _flip(data, at.rng, at.rng.randint(1, 24), 0, 512))


def index_bits_flipped(at: Place) -> Path:
    return at.spoil(lambda data, _: _flip(data, at.rng, at.rng.randint(1, 24), *_index_of(data)))


def data_bits_flipped(at: Place) -> Path:
    def change(data: bytearray, _: Video) -> bytearray:
        begin = max(data.find(b"mdat"), len(data) // 4)
        return _flip(data, at.rng, at.rng.randint(1, 200), begin, begin + len(data) // 2)

    return at.spoil(change)


def stretch_zeroed(at: Place) -> Path:
    def change(data: bytearray, _: Video) -> bytearray:
        begin, size = at.rng.randrange(len(data)), at.rng.randint(1, 4096)
        size = min(size, len(data) - begin)
        data[begin : begin + size] = bytes(size)
        return data

    return at.spoil(change)


def stretch_repeated(at: Place) -> Path:
    def change(data: bytearray, _: Video) -> bytearray:
        begin, size = at.rng.randrange(len(data)), at.rng.randint(1, 4096)
        return data[: begin + size] + data[begin:]

    return at.spoil(change)


def head_and_foreign_tail(at: Place) -> Path:
    other = at.media.draw(at.rng).data
    return at.spoil(lambda data, _: data[: len(data) // 2] + other[len(other) // 2 :])


def wrong_extension(at: Place) -> Path:
    video = at.media.draw(at.rng)
    others = [s for s in (".mp4", ".mkv", ".avi", ".gif", ".mov", ".webm") if s != video.suffix]
    return at.write(at.rng.choice(others), video.data + at.rng.randbytes(8))


def not_a_video(at: Place) -> Path:
    heads = (
        b"PK\x03\x04",
        b"\x89PNG\r\n\x1a\n",
        b"%PDF-1.7\n",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"<html>",
        b"#EXTM3U\n",
    )
    return at.write(at.rng.choice((".mp4", ".avi", ".MOV")), at.rng.choice(heads) + at.rng.randbytes(2000))


def zero_bytes(at: Place) -> Path:
    return at.write(".mp4", b"")


def random_bytes(at: Place) -> Path:
    suffix = at.rng.choice((".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif", ".m4v"))
    return at.write(suffix, at.rng.randbytes(at.rng.randint(1, 20_000)))


def random_behind_a_magic(at: Place) -> Path:
    suffix, magic = at.rng.choice(
        (
            (".mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"),
            (".mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\0\0\x40\0moov\0\0\0\x6cmvhd"),
            (
                ".mkv",
                b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff",
            ),
            (".avi", b"RIFF\xff\xff\xff\x7fAVI LIST\xc0\0\0\0hdrlavih"),
            (".gif", b"GIF89a\xff\xff\xff\xff\xf7\0\0"),
            (".mov", b"\0\0\0\x01mdat\xff\xff\xff\xff\xff\xff\xff\xff"),
        )
    )
    return at.write(suffix, magic + at.rng.randbytes(at.rng.randint(0, 8000)))


def huge_dimensions(at: Place) -> Path:
    """Giant sizes where an mp4 says them: track header, sample entry, or bits of the codec's own header."""
    data = bytearray(at.media.labelled(at.rng.choice(("h264-mp4", "h264-faststart"))).data)
    side = at.rng.choice((0x7FFF, 0xFFFF, 16384, 16385, 9999, 0))
    entry, track, own = data.index(b"avc1"), data.index(b"tkhd") + 4 + 76, data.index(b"avcC") + 12
    for part in at.rng.sample(("entry", "track", "own"), at.rng.randint(1, 3)):
        if part == "entry":
            data[entry + 28 : entry + 32] = side.to_bytes(2, "big") * 2
        elif part == "track":
            data[track : track + 8] = (side << 16 & 0xFFFFFFFF).to_bytes(4, "big") * 2
        else:
            _flip(data, at.rng, at.rng.randint(1, 12), own, own + 20)
    return at.write(".mp4", bytes(data) + at.rng.randbytes(8))


def huge_gif(at: Place) -> Path:
    """A screen of up to 65535 x 65535 of which a small picture is drawn."""
    data = bytearray(at.media.labelled("animated-gif").data)
    side = at.rng.choice((65535, 20000, 16384, 8192))
    data[6:10] = side.to_bytes(2, "little") * 2
    return at.write(".gif", bytes(data) + at.rng.randbytes(4))


def times_damaged(at: Place) -> Path:
    """Time scale or durations of an mp4 overwritten."""
    data = bytearray(at.media.labelled(at.rng.choice(("h264-mp4", "one-key-frame"))).data)
    scale, deltas = data.index(b"mdhd") + 4 + 12, data.index(b"stts") + 4 + 8
    place = at.rng.choice((scale, deltas, deltas + 4))
    value = at.rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, at.rng.getrandbits(32)))
    data[place : place + 4] = value.to_bytes(4, "big")
    return at.write(".mp4", bytes(data) + at.rng.randbytes(8))


def box_size_damaged(at: Place) -> Path:
    """A box of an mp4 that claims another length."""
    data = bytearray(at.media.labelled("h264-faststart").data)
    names = (b"moov", b"trak", b"stbl", b"stsd", b"stsz", b"stco", b"mdat", b"ftyp")
    place = data.index(at.rng.choice(names)) - 4
    data[place : place + 4] = at.rng.choice(
        (0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFF, at.rng.getrandbits(16))
    ).to_bytes(4, "big")
    return at.write(".mp4", bytes(data))


def one_frame(at: Place) -> Path:
    return at.write(".mp4", encode(at.outside / f"{at.stem}.one.mp4", clip(at.rng.randrange(2**40), 1)))


def variable_rate(at: Place) -> Path:
    steps = [at.rng.choice((0.04, 0.1, 0.125, 0.2)) for _ in range(40)]
    times = [sum(steps[:index]) for index in range(40)]
    frames = clip(at.rng.randrange(2**40), 40)
    return at.write(".mkv", encode(at.outside / f"{at.stem}.vfr.mkv", frames, times=times))


def audio_only(at: Place) -> Path:
    suffix, codec = at.rng.choice(((".mp4", "aac"), (".mkv", "aac")))
    return at.write(suffix, sound(at.outside / f"{at.stem}{suffix}", codec) + at.rng.randbytes(4))


def animated_gif(at: Place) -> Path:
    frames = clip(at.rng.randrange(2**40))
    return at.write(".gif", encode(at.outside / f"{at.stem}.gif", frames, "gif", pixels="rgb8"))


def _labelled(prefix: str) -> Callable[[Place], Path]:
    def put(at: Place) -> Path:
        fitting = [video for video in at.media.videos if video.label.startswith(prefix)]
        video = at.rng.choice(fitting)
        return at.write(video.suffix, video.data + at.rng.randbytes(8))

    return put


def rotated(at: Place) -> Path:
    """The display matrix of a phone held sideways or upside down."""
    data = bytearray(at.media.labelled("h264-mp4").data)
    cos, sin = at.rng.choice(((0, 1), (-1, 0), (0, -1)))
    place = data.index(b"tkhd") + 4 + 40
    matrix = (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    data[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    return at.write(".mp4", bytes(data) + _free(at.rng))


def matrix_damaged(at: Place) -> Path:
    data = bytearray(at.media.labelled("h264-mp4").data)
    place = data.index(b"tkhd") + 4 + 40
    data[place : place + 36] = at.rng.randbytes(36)
    return at.write(".mp4", bytes(data))


def _free(rng: random.Random) -> bytes:
    """An mp4 box that every reader skips: other bytes, the same video."""
    return (16).to_bytes(4, "big") + b"free" + rng.randbytes(8)


def strange_name(at: Place) -> Path:
    suffix, data = at.whole()
    number = at.stem
    name = at.rng.choice(
        (
            f"schön 日本 \N{PILE OF POO} {number}",
            f"two\nlines {number}",
            f"-rf {number}",
            f"--help={number}",
            f" {number} ",
            f"{number}'\"`$(true);&|<>*?[x]",
            f"%05d {number}",
            f"http:{number}",
            f"{number}\t\r\x07\x1b[31m",
            f"e\u0301\u202e{number}",
            f"{number}\\xff",
            number + "x" * (251 - len(number)),
            "日" * 80 + number,
        )
    )
    path = at.folder / f"{name}{suffix}"
    path.write_bytes(data)
    return path


def name_of_no_encoding(at: Place) -> Path:
    path = (
        os.fsencode(at.folder)
        + b"/"
        + at.stem.encode()
        + at.rng.choice((b"\xff", b"\xc3(", b"\xed\xa0\x80"))
        + b".mp4"
    )
    found = Path(os.fsdecode(path))
    found.write_bytes(at.whole()[1])
    return found


def copy_of_another(at: Place) -> Path:
    at.write("-a.mp4", (data := at.whole()[1]))
    return at.write("-b.mp4", data)


def link_out(at: Place) -> Path:
    target = at.outside / f"{at.stem}.target.mp4"
    target.write_bytes(at.whole()[1])
    path = at.folder / f"{at.stem}.mp4"
    path.symlink_to(target)
    return path


def link_nowhere(at: Place) -> Path:
    path = at.folder / f"{at.stem}.mp4"
    path.symlink_to(
        at.rng.choice((f"{at.stem}.mp4", "gone.mp4", f"../{at.stem}/../gone.mp4", "/dev/zero", "/dev/tty"))
    )
    return path


def link_loop(at: Place) -> Path:
    (at.folder / f"{at.stem}.d").mkdir()
    path = at.folder / f"{at.stem}.d" / "back"
    path.symlink_to(at.folder if at.rng.random() < 0.5 else path.parent)
    return path


def pipe(at: Place) -> Path:
    path = at.folder / f"{at.stem}.mp4"
    os.mkfifo(path)
    return path


def unix_socket(at: Place) -> Path:
    path = at.folder / f"{at.stem}.mp4"
    place = os.open(at.folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{place}/{path.name}")  # the whole path may be longer than one can bind
    os.close(place)
    return path


def other_file(at: Place) -> Path:
    return at.write(at.rng.choice((".doc", "", ".mp4.part", ".json")), at.rng.randbytes(20))


def empty_folder(at: Place) -> Path:
    (at.folder / f"{at.stem}.void").mkdir()
    (at.folder / f"{at.stem}.d" / "er").mkdir(parents=True)
    return at.write(".d/er/..mp4", b"")  # a name that is all suffix


def deep_folder(at: Place) -> Path:
    path = at.folder / f"{at.stem}.d"
    path.mkdir()
    where = os.open(path, os.O_RDONLY)
    names = at.rng.choice((["d"] * 1200, ["d" * 70] * 30, ["d" * 250] * 20))
    for name in names:  # by steps, as `tar` would: the whole path may pass the system's limit
        os.mkdir(name, dir_fd=where)
        deeper = os.open(name, os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = deeper
    with os.fdopen(os.open("bottom.mp4", os.O_WRONLY | os.O_CREAT, dir_fd=where), "wb") as file:
        file.write(at.whole()[1])
    os.close(where)
    return path.joinpath(*names, "bottom.mp4")


def closed(folder: Path, outside: Path, media: Media, rng: random.Random) -> list[Specimen]:
    """Files and folders that their owner may not read, among whole videos."""
    folder.mkdir(parents=True)
    outside.mkdir(parents=True)
    planted = []
    for name in (f"good-{number}" for number in range(2 * GOOD)):
        at = Place(folder, outside, name, rng, media)
        planted.append(Specimen("whole", name_in(folder, at.write(*at.whole())), "use"))
    for name in ("shut", "write-only", "executable"):
        at = Place(folder, outside, name, rng, media)
        path = at.write(*at.whole())
        path.chmod({"shut": 0, "write-only": 0o200, "executable": 0o111}[name])
        planted.append(Specimen("file without permission", path.name, "refuse"))
    for name, mode in (("shut.d", 0), ("names-only.d", 0o400), ("pass-only.d", 0o100)):
        inner = folder / name
        inner.mkdir()
        Place(inner, outside, name, rng, media).write(*Place(inner, outside, name, rng, media).whole())
        inner.chmod(mode)
        inside = name if mode != 0o400 else f"{name}/{name}.mp4"
        planted.append(Specimen("folder without permission", inside, "refuse"))
    return planted


KINDS: dict[str, tuple[Callable[[Place], Path], str]] = {
    "truncated": (truncated, "any"),
    "few bits flipped": (few_bits_flipped, "any"),
    "many bits flipped": (many_bits_flipped, "any"),
    "bits of the header flipped": (header_bits_flipped, "any"),
    "bits of the index flipped": (index_bits_flipped, "any"),
    "bits of the data flipped": (data_bits_flipped, "any"),
    "a stretch zeroed": (stretch_zeroed, "any"),
    "a stretch twice": (stretch_repeated, "any"),
    "head and a foreign tail": (head_and_foreign_tail, "any"),
    "wrong extension": (wrong_extension, "any"),
    "no video under a video's name": (not_a_video, "refuse"),
    "zero bytes": (zero_bytes, "refuse"),
    "random bytes": (random_bytes, "refuse"),
    "random bytes behind a magic number": (random_behind_a_magic, "refuse"),
    "huge dimensions": (huge_dimensions, "any"),
    "huge gif": (huge_gif, "any"),
    "time stamps damaged": (times_damaged, "any"),
    "box sizes damaged": (box_size_damaged, "any"),
    "one frame": (one_frame, "refuse"),
    "variable frame rate": (variable_rate, "use"),
    "audio only": (audio_only, "refuse"),
    "animated gif": (animated_gif, "use"),
    "10 bits": (_labelled("ten-bits"), "use"),
    "interlaced": (_labelled("interlaced"), "use"),
    "rotated": (rotated, "use"),
    "rotation damaged": (matrix_damaged, "any"),
    "strange name": (strange_name, "use"),
    "name of no encoding": (name_of_no_encoding, "use"),
    "copy": (copy_of_another, "any"),
    "link out of the folder": (link_out, "use"),
    "link that leads nowhere": (link_nowhere, "refuse"),
    "link loop": (link_loop, "refuse"),
    "pipe": (pipe, "refuse"),
    "socket": (unix_socket, "refuse"),
    "other file": (other_file, "refuse"),
    "empty folder": (empty_folder, "refuse"),
    "deep folders": (deep_folder, "any"),
}
# What spoils bytes comes again and again, for there are many ways; a pipe is a pipe.
_OFTEN = (
    tuple(KINDS)[:9] + ("huge dimensions", "time stamps damaged", "box sizes damaged", "strange name") * 2
)


def name_in(folder: Path, path: Path) -> str:
    """A path as `discovery` names it."""
    return os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")


def plant(folder: Path, outside: Path, media: Media, seed: int, index: int, count: int) -> list[Specimen]:
    """Fill a new folder with `GOOD` whole videos and `count` specimens; every kind comes in turn.

    Args:
        outside: folder for what links point at and what is encoded on the way.
        index: of this folder in the corpus: with `seed` it decides everything.
    """
    rng = random.Random(f"{seed}/{index}")
    folder.mkdir(parents=True)
    outside.mkdir(parents=True)
    planted = []
    for number in range(GOOD):
        at = Place(folder, outside, f"good-{number}", rng, media)
        planted.append(Specimen("whole", name_in(folder, at.write(*at.whole())), "use"))
    turn = (*KINDS, *_OFTEN)
    for number in range(count):
        kind = turn[(index * count + number) % len(turn)]
        make, expect = KINDS[kind]
        path = make(Place(folder, outside, f"{index}-{number}", rng, media))
        planted.append(Specimen(kind, name_in(folder, path), expect))
    return planted
