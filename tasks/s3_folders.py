"""Folders in S3, which every path of a project may name: brought to this machine, later only what is new."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tasks.s3 import S3Error, bucket_and_key, download, is_s3, new_client
from vdmini_core.artifacts import cache_folder, digest_of
from vdmini_core.errors import DataError
from vdmini_core.foreign import is_plain_name
from vdmini_core.progress import track

FILES_AT_ONCE = 8
_SAME_S = 1e-3  # the object's time is given to the file: another one means that it was changed here
_FIX = "`aws s3 ls` with the same AWS_* variables shows what is there"


@dataclass(frozen=True)
class StoredObject:
    """An object below an address: its name seen from there, tag, size in bytes, time in seconds."""

    name: str
    tag: str
    size: int
    modified: float


def local_path(base: Path, text: str) -> Path:
    """Where a path of a project lies on this machine; what is named `s3://` is brought first.

    Args:
        base: relative paths are seen from there.
        text: a path, or `s3://bucket/folder`.

    Raises:
        DataError: when an S3 folder is empty or cannot be brought.
    """
    return mirror(text) if is_s3(text) else base / Path(text).expanduser()


def mirror(address: str) -> Path:
    """Bring a folder of S3 into the cache (`VDMINI_CACHE`); what is there already is not fetched again.

    A killed call goes on. Files that are gone in the store go here as well.

    Raises:
        DataError: when there is nothing, or it cannot be fetched.
    """
    try:
        client = new_client()
        bucket, prefix = _place(address)
        objects = list(objects_below(client, bucket, prefix))
        if not objects:
            raise S3Error("there is nothing")
        # Two stores may have buckets of one name.
        store = cache_folder() / "s3" / digest_of(str(client.meta.endpoint_url))[:12]
        folder = store / bucket / prefix
        with _ledger(store / f"{digest_of([bucket, prefix])[:32]}.jsonl") as ledger:
            _bring(client, f"s3://{bucket}/{prefix}".rstrip("/"), objects, folder, ledger)
    except OSError as error:
        raise DataError(
            f"the folder {address} cannot be brought here",
            expected="objects below this address, and leave to read them",
            found=str(error),
            fix=_FIX,
        ) from error
    return folder


def demand_objects(address: str) -> None:
    """Refuse an S3 folder that is empty or cannot be listed, before any work starts.

    Raises:
        DataError: saying what the store said.
    """
    try:
        bucket, prefix = _place(address)
        if next(objects_below(new_client(), bucket, prefix), None) is None:
            raise S3Error("there is nothing")
    except OSError as error:
        raise DataError(
            f"the folder {address} cannot be read",
            expected="objects below this address, and leave to read them",
            found=str(error),
            fix=_FIX,
        ) from error


def _place(address: str) -> tuple[str, str]:
    """Bucket and prefix, which also name the folder in the cache: none may lead out of it."""
    bucket, prefix = bucket_and_key(address.rstrip("/"))
    if not all(is_plain_name(part) for part in (bucket, *(prefix.split("/") if prefix else ()))):
        raise S3Error(f"{address!r} cannot be a folder below the cache")
    return bucket, prefix


def objects_below(client: Any, bucket: str, prefix: str) -> Iterator[StoredObject]:
    """What lies below a prefix, page by page.

    Raises:
        S3Error: when it cannot be listed, or a key would lead out of a folder.
    """
    start = f"{prefix}/" if prefix else ""
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
            for row in page.get("Contents", ()):
                name = row["Key"].removeprefix(start)
                if not name or name.endswith("/"):
                    continue  # what consoles put there to show a folder
                if not all(is_plain_name(part) for part in name.split("/")):
                    raise S3Error(f"the object {row['Key']!r} cannot be a file below a folder")
                yield StoredObject(name, str(row["ETag"]), int(row["Size"]), row["LastModified"].timestamp())
    except (BotoCoreError, ClientError) as error:
        raise S3Error(str(error)) from error


class _Ledger:
    """What was brought: name -> tag, a line each, so that a kill costs no more than the last."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.tags: dict[str, str] = {}
        handle.seek(0)
        for line in handle.read().split("\n"):
            try:
                name, tag = json.loads(line)
            except ValueError:
                continue  # the end, or a torn line
            self.tags[name] = tag

    def note(self, name: str, tag: str) -> None:
        """A file is there."""
        self._handle.write("\n" + json.dumps([name, tag]))
        self._handle.flush()


@contextmanager
def _ledger(path: Path) -> Iterator[_Ledger]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # a second run waits and finds all there
        yield _Ledger(handle)


def _bring(client: Any, address: str, objects: list[StoredObject], folder: Path, ledger: _Ledger) -> None:
    missing = [item for item in objects if not _is_there(item, folder, ledger)]

    def fetch(item: StoredObject) -> StoredObject:
        target = folder / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        download(client, f"{address}/{item.name}", target)
        os.utime(target, (item.modified, item.modified))  # decoded clips are kept under the file's time
        return item

    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        made = threads.map(fetch, missing)
        try:
            for item in track(made, f"fetching {address}", len(missing), "file") if missing else ():
                ledger.note(item.name, item.tag)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    wanted = {folder / item.name for item in objects}
    for path in folder.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()


def _is_there(item: StoredObject, folder: Path, ledger: _Ledger) -> bool:
    path = folder / item.name
    if ledger.tags.get(item.name) != item.tag or not path.is_file():
        return False
    facts = path.stat()
    return facts.st_size == item.size and abs(facts.st_mtime - item.modified) < _SAME_S
