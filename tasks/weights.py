"""Weights of metric networks that lie in S3: brought into the cache that the core shares."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from vdmini_core.metrics.weights_source import cached, locate


def resolve_weights(location: str | Path, sha256: str | None = None) -> Path:
    """A local file for a path, an https or an s3 address.

    Credentials, region and endpoint (MinIO, Ceph and the like) come from boto3's own settings:
    `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, profiles.

    Args:
        location: path, https address, or `s3://bucket/key`.
        sha256: of the file; addresses need it.

    Raises:
        DataError: when the file is missing, cannot be fetched, or has another sha256.
    """
    text = str(location)
    if not text.startswith("s3://"):
        return locate(location, sha256)
    return locate(cached(text, sha256, lambda target: _download(text, target)), sha256)


def _download(address: str, target: Path) -> None:
    parts = urlparse(address)
    try:
        boto3.Session().client("s3").download_file(parts.netloc, parts.path.lstrip("/"), str(target))
    except (BotoCoreError, ClientError) as error:
        raise OSError(str(error)) from error
