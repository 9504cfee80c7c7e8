"""Bring an output back that DVC recorded, from its cache or its bucket, into a folder of its own."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import cast

from dvc_data.hashfile import load
from dvc_data.hashfile.checkout import CheckoutError, checkout
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.transfer import transfer
from dvc_data.hashfile.tree import ObjectFormatError, Tree
from dvc_objects.fs.local import LocalFileSystem

from tasks.project import read_yaml
from tasks.versioning import Versions, told_plainly
from vdmini_core.errors import VDMiniError

_HASH, _FOLDER_HASH = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{32}\.dir")

# What DVC raises over a list that it has not written.
_NO_LIST = (ObjectFormatError, AssertionError, AttributeError, KeyError, TypeError, ValueError)


def recorded_output(lock: Path, stage: str) -> str | None:
    """DVC's hash of a stage's folder of outputs in a `dvc.lock`; None where it holds none.

    The file may come from a server: what is no hash of DVC's is none.
    """
    if not lock.is_file():
        return None
    try:
        outputs = read_yaml(lock)["stages"][stage]["outs"]
        found = next(out["md5"] for out in outputs if out["path"] == f"artifacts/{stage}")
    except (KeyError, TypeError, AttributeError, StopIteration):
        return None
    return found if isinstance(found, str) and _FOLDER_HASH.fullmatch(found) else None


def bring_back(home: Path, md5: str, target: Path) -> None:
    """Write the folder that DVC knows by this hash to `target`.

    Args:
        home: project whose cache is asked, then its default remote.
        md5: DVC's hash of a folder, `.dir` at its end.
        target: a folder that is not there yet; its files are copies, not links into the cache.

    Raises:
        VDMiniError: where neither has all of it, or the bucket cannot be reached.
    """
    wanted = HashInfo("md5", md5)
    with told_plainly("bring recorded data back"):
        repo = Versions(home).repo
        cache = repo.cache.local
        _drop_damaged(cache, wanted)
        if not _whole(cache, wanted):
            remote = repo.cloud.get_remote_odb(None, "fetch", hash_name="md5")
            if not remote.exists(md5):
                raise _not_there(md5, f"neither the cache of {home.name} nor its remote has it")
            _plain_list(remote, wanted)
            transfer(remote, cache, {wanted}, shallow=False)  # as it lies there, damaged or not
            _drop_damaged(cache, wanted)
            if not _whole(cache, wanted):
                raise _not_there(md5, "its remote lacks files of it, or holds damaged ones")
        target.parent.mkdir(parents=True, exist_ok=True)
        cache.cache_types = ["copy"]  # what is run again may write there
        try:
            checkout(str(target), LocalFileSystem(), _plain_list(cache, wanted), cache, quiet=True)
        except CheckoutError as error:
            raise _not_there(
                md5, f"damaged: {', '.join(Path(path).name for path in error.paths[:3])}"
            ) from None


def _not_there(md5: str, found: str) -> VDMiniError:
    return VDMiniError(
        f"DVC does not have all of the data {md5[:12]}",
        expected="every file of it, in the project's cache or its remote",
        found=found,
        fix="`dvc push` where the version was made, or `vdmini reproduce --videos DIR`",
    )


def _drop_damaged(cache: HashFileDB, wanted: HashInfo) -> None:
    """Remove from the cache what is not what its name says: the remote is asked for it then."""
    path = Path(cache.oid_to_path(str(wanted.value)))
    if not path.is_file():
        return
    if _md5(path) != str(wanted.value).removesuffix(".dir"):
        path.unlink()
        return
    for _, _, info in _plain_list(cache, wanted):
        part = Path(cache.oid_to_path(str(info.value)))
        if part.is_file() and _md5(part) != str(info.value):
            part.unlink()


def _md5(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _whole(cache: HashFileDB, wanted: HashInfo) -> bool:
    if not cache.exists(str(wanted.value)):
        return False
    return all(cache.exists(str(info.value)) for _, _, info in _plain_list(cache, wanted))


def _plain_list(store: HashFileDB, wanted: HashInfo) -> Tree:
    """The list of a folder's files, which may come from a bucket: none may lead out of folder or cache.

    Raises:
        VDMiniError: for one that DVC has not written.
    """
    try:
        found = cast(Tree, load(store, wanted))
        rows = [(key, str(info.value)) for key, _, info in found]
    except _NO_LIST:
        rows = [((), "no list of files")]
    for key, md5 in rows:
        inside = key and not any(part in ("", ".", "..") or "\0" in part for part in key)
        if not (inside and _HASH.fullmatch(md5)):
            raise VDMiniError(
                f"DVC's list of the data {str(wanted.value)[:12]} is not as DVC writes it",
                expected="names within the folder, and an md5 for each",
                found=repr(("/".join(key), md5))[:120],
                fix="look who writes to the cache and its remote",
            )
    return found
