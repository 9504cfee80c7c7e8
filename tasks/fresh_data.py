"""Clips that a registered version has not seen: procedural of another seed, or videos that came since."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tasks.tracking import experiment_id
from vdmini_core.artifacts import read_json, sha256_file
from vdmini_core.data.discovery import VIDEO_SUFFIXES
from vdmini_core.errors import DataError, ParamsError

SOURCES = "sources.json"


def this_week() -> str:
    """The ISO week of now, UTC: `2026-W48`."""
    return datetime.now(UTC).strftime("%G-W%V")


def seed_of(week: str) -> int:
    """The seed that a week draws by: year and week as one number.

    Raises:
        ParamsError: for text that is no ISO week.
    """
    match = re.fullmatch(r"(\d{4})-W(\d{2})", week)
    if match is None or not 1 <= int(match[2]) <= 53:
        raise ParamsError("no week", expected="an ISO week, as in 2026-W48", found=week)
    return int(match[1] + match[2])


def new_videos(root: Path, client: MlflowClient, recipe: Mapping[str, Any], videos: Path, out: Path) -> Path:
    """A folder of links to the videos that the version's data did not hold, captions beside them.

    Args:
        root: project folder.
        client: of its tracking store.
        recipe: of the version.
        videos: where its videos are now.
        out: folder to make; one that is there is made anew.

    Raises:
        DataError: when it is not known which ones it held, or there are no others.
    """
    held = _held(root, client, recipe)
    sizes = {record.get("bytes") for record in held.values()}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    fresh = 0
    for path in sorted(videos.rglob("*")):
        name, is_video = path.relative_to(videos).as_posix(), path.suffix.lower() in VIDEO_SUFFIXES
        # Equal to the byte in size is taken for one that was renamed: the student may have learned from it.
        if not path.is_file() or (is_video and (name in held or path.stat().st_size in sizes)):
            continue
        fresh += is_video
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).symlink_to(path.resolve())
    if not fresh:
        raise DataError(
            "there are no new videos to measure this version on",
            expected="videos that it was not made and measured with",
            found=f"none in {videos}",
            fix="put some into that folder, or name another one: --videos DIR",
        )
    return out


def _held(root: Path, client: MlflowClient, recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Records of the files that the version's clips came from, by the hash of the list that it kept.

    The list lies in the project as long as its data are those of the version, and on the runs of `prepare`.
    """
    digest = recipe["outputs"]["prepare"][SOURCES]
    here = root / "artifacts" / "prepare" / SOURCES
    if here.is_file() and sha256_file(here) == digest:
        return _records(here)
    runs = client.search_runs(
        [experiment_id(client, root)], "tags.`vdmini.stage` = 'prepare'", ViewType.ALL, max_results=200
    )
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = Path(client.download_artifacts(run.info.run_id, SOURCES, folder))
            except (MlflowException, OSError):  # a run that failed has none
                continue
            if sha256_file(found) == digest:
                return _records(found)
    raise DataError(
        "it is not known which videos this version was made with",
        expected=f"{SOURCES} of its data, in this project or on a run of `prepare`",
        found="lists of other data only",
        fix="run it in the project that made the version",
    )


def _records(path: Path) -> dict[str, dict[str, Any]]:
    return {str(record["path"]): record for record in read_json(path)}
