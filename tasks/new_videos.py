"""`vdmini prepare --add`: what is new in a folder becomes a list of the project, named in `params.yaml`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tasks.project import change_params
from tasks.s3_folders import local_path
from vdmini_core.data.additions import new_videos, read_addition, write_addition
from vdmini_core.errors import DataError
from vdmini_core.params import load_params

FOLDER = "additions"


def register_addition(root: Path, source: str) -> list[str]:
    """List the new videos of a folder as an addition of the project, and name the list in `params.yaml`.

    Args:
        root: project folder.
        source: the folder, or an `s3://` address, as typed.

    Returns:
        Lines on what was found. Where nothing is new, nothing is written.

    Raises:
        DataError: when there is no such folder, no video in it, or when it holds the project.
    """
    params = load_params(root / "params.yaml").prepare
    earlier = [read_addition(root / text) for text in params.additions]
    folder = local_path(Path(), source)
    if root.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            "the folder of new videos contains this project",
            found=source,
            fix="keep videos in a folder of their own",
        )
    base = local_path(root, params.videos) if params.source == "folder" else None
    fresh, left_out = new_videos(folder, base, earlier, params.captions)
    lines = [f"left out  {name}: {reason}" for name, reason in list(left_out.items())[:20]]
    lines += [f"left out  and {len(left_out) - 20} more"] if len(left_out) > 20 else []
    if not fresh:
        return [*lines, f"nothing new in {source}"]
    directory = (root / FOLDER).resolve()
    place = source if "://" in source else os.path.relpath(folder.resolve(), directory)
    path = write_addition(directory, len(earlier) + 1, place, fresh)
    names = json.dumps([*params.additions, f"{FOLDER}/{path.name}"])
    changes = change_params(root, assignments=(f"prepare.additions={names}",))
    return [
        *lines,
        f"{len(fresh)} new video{'s' * (len(fresh) > 1)}, listed in {FOLDER}/{path.name}",
        *changes,
    ]
