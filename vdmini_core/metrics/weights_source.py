"""Weights that a user names by path or https address: fetched once, checked, read without running code."""

from __future__ import annotations

import re
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor

from vdmini_core.artifacts import cache_folder, is_safetensors, sha256_file, unreadable
from vdmini_core.errors import DataError, VDMiniError
from vdmini_core.foreign import demand_header, demand_held, demand_stored
from vdmini_core.progress import progress_bar

TIMEOUT_S = 60.0
# Several times the largest metric network: an answer without end fills the disk otherwise.
MAX_BYTES = 16 * 2**30


def locate(location: str | Path, sha256: str | None = None) -> Path:
    """A local file for a path or https address.

    Args:
        location: path, or https address (then `sha256` is needed: what comes from outside is checked).
        sha256: of the file, 64 hex digits.

    Raises:
        DataError: when it is missing, cannot be fetched, or has another sha256.
    """
    text = str(location)
    scheme = urlparse(text).scheme if "://" in text else ""
    if scheme:
        path = _fetched(text, scheme, sha256)
    else:
        path = Path(location)
        if not path.is_file():
            raise DataError("the weights do not exist", expected="a file", found=text)
    if sha256 is not None:
        fix = "check the sha256, or delete that file if it is a damaged copy"
        _demand_sha256(path, sha256, "the weights are other ones", f"in {path}", fix)
    return path


def _demand_sha256(path: Path, sha256: str, problem: str, where: str, fix: str) -> None:
    found = sha256_file(path)
    if found != sha256.lower():
        raise DataError(problem, expected=f"sha256 {sha256}", found=f"{found} {where}", fix=fix)


def _fetched(address: str, scheme: str, sha256: str | None) -> Path:
    if scheme == "s3":
        raise DataError(
            "weights are not read from S3 here",
            expected="a path, or an https address with its sha256",
            found=address,
            fix="get a path with `tasks.weights.resolve_weights`, copy the file with `aws s3 cp`, or give a "
            "presigned https address",
        )
    if scheme != "https":
        raise DataError("weights come by https", expected="a path, or https://", found=address)
    return cached(address, sha256, lambda target: _download(address, target))


def cached(address: str, sha256: str | None, fetch: Callable[[Path], None]) -> Path:
    """The file with this sha256 in the cache, fetched when it is not there.

    Args:
        address: where it comes from, for messages.
        sha256: of the file; nothing else ever gets its place.
        fetch: writes it to a path; OSError when it cannot.

    Raises:
        DataError: without a sha256, when it cannot be fetched, or when what came has another sha256.
    """
    if sha256 is None:
        raise DataError("weights from outside need their sha256", found=address, fix="give sha256")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DataError("this is no sha256", expected="64 hex digits", found=sha256[:80])
    folder = cache_folder() / "weights"
    target = folder / sha256.lower()
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as scratch:
        part = Path(scratch) / "weights"
        try:
            fetch(part)
        except OSError as error:
            raise DataError(
                "the weights cannot be fetched",
                found=f"{address}: {error}",
                fix="look at address and network, or give a file",
            ) from error
        fix = "check address and sha256; nothing was kept"
        _demand_sha256(part, sha256, "the weights that came are other ones", f"from {address}", fix)
        part.replace(target)
    return target


class _HttpsAlone(urllib.request.HTTPRedirectHandler):
    """Follows redirections as long as they stay encrypted."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlparse(newurl).scheme != "https":
            raise DataError("weights come by https", expected="https all the way", found=newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(address: str, target: Path) -> None:
    opener = urllib.request.build_opener(_HttpsAlone)
    with opener.open(address, timeout=TIMEOUT_S) as answer, target.open("wb") as file:
        size = int(answer.headers.get("Content-Length") or 0) or None
        with progress_bar("weights", size, "B") as bar:
            while block := answer.read(2**20):
                file.write(block)
                bar.update(len(block))
                if file.tell() > MAX_BYTES:
                    raise DataError(
                        "the weights do not end",
                        expected=f"at most {MAX_BYTES / 2**30:.0f} GiB",
                        found=f"{address}: more",
                        fix="download the file yourself and give its path, where it is right",
                    )


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` or `.pt` file; nothing in it is run.

    Raises:
        DataError: when it is none, or a TorchScript archive.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(2)
        if is_safetensors(path) or (head != b"PK" and head[:1] != b"\x80"):
            demand_header(path)
            return load_file(path)
        if head == b"PK" and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
            raise DataError(
                f"{path.name} is a TorchScript program, not a state dict",
                fix="load it with torch.jit where you trust it and save its state_dict() as safetensors",
            )
        if zipfile.is_zipfile(path):
            demand_stored(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except VDMiniError:
        raise
    except Exception as error:  # bytes from outside: the readers raise whatever comes of them
        raise DataError(
            f"{path.name} cannot be read as weights",
            expected="a state dict as .safetensors or .pt (weights_only)",
            found=unreadable(error),
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(
            f"{path.name} holds no state dict",
            found=type(state).__name__,
            fix="give a file of tensors by name",
        )
    demand_held(path, state)
    return state
