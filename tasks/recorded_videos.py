"""Whether the videos that a registered version was made from are still where its parameters say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from botocore.exceptions import ClientError

from tasks.s3 import S3Error, bucket_and_key, is_s3, new_client
from tasks.s3_folders import objects_below
from vdmini_core.data.additions import read_addition
from vdmini_core.data.discovery import VIDEO_SUFFIXES
from vdmini_core.errors import DataError
from vdmini_core.params import PrepareParams

_GONE = ("NoSuchBucket", "NoSuchKey", "404")


def videos_are_gone(root: Path, params: PrepareParams) -> bool:
    """True where the folder of videos, a list of additions or the folder of one holds no video any more.

    Args:
        root: the project, which relative paths are of.
        params: of the version; only where `source` is `folder` can anything be gone.

    Raises:
        DataError: where a store cannot be asked, which may hold them still.
    """
    if params.source != "folder":
        return False
    return any(folder is None or not _holds_videos(folder) for folder in _folders(root, params))


def _folders(root: Path, params: PrepareParams) -> Iterator[str | Path | None]:
    """Where the videos are, an address or a path; None for a list of additions that is gone."""
    yield params.videos if is_s3(params.videos) else root / Path(params.videos).expanduser()
    for text in params.additions:
        path = root / text
        if not path.is_file():
            yield None
            continue
        folder = read_addition(path).folder
        yield folder if is_s3(folder) else path.parent / Path(folder).expanduser()


def _holds_videos(folder: str | Path) -> bool:
    """A new project has an empty `videos`, with a word on what belongs there: a video is asked for."""
    if isinstance(folder, Path):
        return any(path.suffix.lower() in VIDEO_SUFFIXES for path in folder.rglob("*"))
    try:
        bucket, key = bucket_and_key(folder.rstrip("/"))
        items = objects_below(new_client(), bucket, key)
        return any(Path(item.name).suffix.lower() in VIDEO_SUFFIXES for item in items)
    except S3Error as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response.get("Error", {}).get("Code") in _GONE:
            return False
        raise DataError(
            "the store of this version's videos does not say whether they are there",
            expected=f"a list of {folder}",
            found=str(error).splitlines()[0],
            fix="look at that address, the AWS_* variables and the network",
        ) from error
