"""Weights of metric networks that lie in S3: brought into the cache that the core shares."""

from __future__ import annotations

from pathlib import Path

from tasks.s3 import download, is_s3, new_client
from vdmini_core.artifacts import cache_folder, digest_of
from vdmini_core.metrics.weights_source import cached, locate


def resolve_weights(location: str | Path, sha256: str | None = None) -> Path:
    """A local file for a path, an https or an s3 address.

    A download that was killed goes on. For credentials and endpoints see `tasks.s3`.

    Args:
        location: path, https address, or `s3://bucket/key`.
        sha256: of the file; addresses need it.

    Raises:
        DataError: when the file is missing, cannot be fetched, or has another sha256.
    """
    text = str(location)
    if not is_s3(text):
        return locate(location, sha256)
    return locate(cached(text, sha256, lambda target: _download(text, target)), sha256)


def _download(address: str, target: Path) -> None:
    # Beside the cache, so that a killed download goes on: `target` is a temporary place.
    whole = cache_folder() / "partial" / digest_of(address)[:32]
    whole.parent.mkdir(parents=True, exist_ok=True)
    download(new_client(), address, whole)
    whole.replace(target)
