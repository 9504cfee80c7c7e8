"""Weights that a user names by path or https address: fetched once, checked, read without running code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vdmini_core.artifacts import sha256_file
from vdmini_core.errors import DataError


def cache_folder() -> Path:
    """`VDMINI_CACHE`, else `vdmini` in the user's cache folder."""
    given = os.environ.get("VDMINI_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "vdmini"


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
        found = sha256_file(path)
        if found != sha256.lower():
            raise DataError(
                "the weights are other ones",
                expected=f"sha256 {sha256}",
                found=f"{found} in {path}",
                fix="check the sha256, or delete that file if it is a damaged copy",
            )
    return path


def _fetched(address: str, scheme: str, sha256: str | None) -> Path:
    if scheme == "s3":
        raise DataError(
            "weights are not read from S3",
            expected="a path, or an https address with its sha256",
            found=address,
            fix="copy the file here, e.g. with `aws s3 cp`, or give a presigned https address",
        )
    if scheme != "https":
        raise DataError("weights come by https", expected="a path, or https://", found=address)
    if sha256 is None:
        raise DataError("weights from outside need their sha256", found=address, fix="give sha256")
    target = cache_folder() / "weights" / sha256.lower()
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Downloads beside the target, checks the hash, then renames.
            torch.hub.download_url_to_file(address, str(target), hash_prefix=sha256.lower())
        except (OSError, RuntimeError) as error:
            raise DataError("the weights cannot be fetched", found=f"{address}: {error}") from error
    return target


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` or `.pt` file; nothing in it is run.

    Raises:
        DataError: when it is none, or a TorchScript archive.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(4)
        if head[:2] != b"PK" and head[:1] != b"\x80":
            return load_file(path)
        if head[:2] == b"PK" and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
            raise DataError(
                f"{path.name} is a TorchScript program, not a state dict",
                fix="load it with torch.jit where you trust it and save its state_dict() as safetensors",
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path.name} cannot be read as weights",
            expected="a state dict as .safetensors or .pt (weights_only)",
            found=str(error).split("\n")[0],
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path.name} holds no state dict", found=type(state).__name__)
    return state
