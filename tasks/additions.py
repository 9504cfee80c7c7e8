"""Part of `prepare`: videos that came later. Their lists are files of the project, named in `params.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.s3_folders import local_path
from tasks.stage import StageJob, finished
from vdmini_core.artifacts import (
    MANIFEST,
    VOLATILE,
    code_version,
    digest_of,
    library_versions,
    read_json,
    sha256_file,
)
from vdmini_core.data.additions import Addition, read_addition
from vdmini_core.data.discovery import every_file
from vdmini_core.data.shards import same_file
from vdmini_core.errors import DataError
from vdmini_core.params import section_dict

SEEN = "videos_seen"  # in timing.json: names, sizes and times of the videos that the clips were made from


def listed_additions(job: StageJob) -> list[tuple[Addition, Path]]:
    """The additions of `params.yaml`, in order, each with the folder its videos are in.

    Raises:
        DataError: for a list that is missing or was changed, or lists out of order.
    """
    found = []
    for number, text in enumerate(job.params.prepare.additions, 1):
        path = job.path(text)
        addition = read_addition(path)
        if addition.number != number:
            raise DataError(
                "the lists of prepare.additions are not in order",
                expected=f"number {number}",
                found=addition.label,
                fix="`vdmini prepare --add DIR` adds to their end; take away from the end alone",
            )
        found.append((addition, local_path(path.parent, addition.folder)))
    return found


def stamp_of_videos(job: StageJob) -> str:
    """Names, sizes and times of the videos of `prepare.videos` as one hash; what resumption trusts in too."""
    if job.params.prepare.source != "folder":
        return ""
    files = every_file(local_path(job.root, job.params.prepare.videos))
    return digest_of([[file.name, file.size, file.modified_ns] for file in files])


def reuse_outputs(job: StageJob, stamp: str) -> int | None:
    """Give the outputs of an earlier run, which lacked the last additions, to this one.

    Only where code, libraries, parameters and videos are the same and every file has the hash of its
    manifest: then they are what this run would make.

    Args:
        job: of `prepare`.
        stamp: `stamp_of_videos`.

    Returns:
        How many additions are in them; None where they cannot be used.
    """
    last = job.root / "artifacts" / "prepare"
    if not (last / MANIFEST).is_file() or not (last / "timing.json").is_file():
        return None
    manifest = finished(job.root, "prepare")
    before, now = (
        _sections(manifest["params"]),
        _sections({s: section_dict(job.params, s) for s in _SECTIONS}),
    )
    done, wanted = before.pop("additions"), now.pop("additions")
    if (
        before != now
        or len(done) >= len(wanted)
        or wanted[: len(done)] != done
        or manifest["code"] != code_version()
        or manifest["libraries"] != library_versions()
        or read_json(last / "timing.json").get(SEEN) != stamp
        or not _whole(last, manifest["outputs"])
    ):
        return None
    for name in manifest["outputs"]:
        (job.out / name).parent.mkdir(parents=True, exist_ok=True)
        same_file(last / name, job.out / name)
    return len(done)


_SECTIONS = ("base", "prepare")


def _sections(params: dict[str, Any]) -> dict[str, Any]:
    prepare = dict(params["prepare"])
    additions: Sequence[str] = list(prepare.pop("additions", []))
    return {"base": params["base"], "prepare": prepare, "additions": additions}


def _whole(folder: Path, digests: dict[str, str]) -> bool:
    there = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in VOLATILE | {MANIFEST}
    }
    return there.keys() == digests.keys() and all(
        sha256_file(path) == digests[name] for name, path in there.items()
    )
