"""One object of an S3 store, fetched in parts: a killed download goes on, what arrives is checked.

Credentials, region and endpoint (MinIO, Ceph and the like) come from boto3's own chain alone:
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, profiles, roles.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from urllib3.exceptions import HTTPError

from vdmini_core.artifacts import sha256_file

PART_BYTES = 16 * 2**20
PARTS_AT_ONCE = 4
TRIES = 5  # of a part, beyond what botocore retries itself: it does not know of an answer that ends early
_FIRST_PAUSE_S = 0.2
_PASSING = {"500", "502", "503", "504", "InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown"}

Result = TypeVar("Result")


class S3Error(OSError):
    """What the store said, or what was wrong with what it sent."""


def is_s3(text: str | Path) -> bool:
    """Whether this is an S3 address rather than a path."""
    return str(text).startswith("s3://")


def bucket_and_key(address: str) -> tuple[str, str]:
    """The two parts of `s3://bucket/key`; the key may be empty.

    Raises:
        S3Error: without a bucket.
    """
    match = re.fullmatch(r"s3://([^/]+)/?(.*)", address, re.DOTALL)
    if match is None:
        raise S3Error(f"{address} is no address: s3://bucket/key")
    return match[1], match[2]


def new_client() -> Any:
    """A client of the store; threads may share it.

    Raises:
        S3Error: for settings that boto3 refuses.
    """
    # Some stores send the whole object's sum with a part of it, which botocore then holds against the part;
    # `download` checks the whole.
    settings = Config(response_checksum_validation="when_required")
    return _told(lambda: boto3.Session().client("s3", config=settings))


def download(client: Any, address: str, target: Path) -> None:
    """Fetch one object; `target` appears when it is whole and checked.

    Ranges that a killed call brought are kept beside `target` and not fetched again, as long as the object is
    the same one. The bytes must have the SHA-256, MD5 (the ETag, of the object or of its parts) or CRC-32
    that the store knows of them; where it knows none, their number is all that is checked.

    Raises:
        S3Error: when it cannot be fetched, is changed meanwhile, or arrives damaged (nothing is kept then).
    """
    bucket, key = bucket_and_key(address)
    facts = _told(lambda: client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED"))
    size, tag = int(facts["ContentLength"]), str(facts["ETag"])
    if size > (free := shutil.disk_usage(target.parent).free):
        raise S3Error(f"{address} says it has {size:,} bytes, {free:,} are free here")
    part, state = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.state")
    done = _state_of(part, state, tag, size)
    todo = [number for number in range(-(-size // PART_BYTES)) if number not in done]
    lock = threading.Lock()

    def fetch(number: int) -> None:
        first = number * PART_BYTES
        last = min(size, first + PART_BYTES) - 1
        data = _range(client, {"Bucket": bucket, "Key": key, "IfMatch": tag}, first, last)
        os.pwrite(descriptor, data, first)
        with lock, state.open("a") as lines:
            lines.write(f"{number}\n")

    descriptor = os.open(part, os.O_RDWR)
    try:
        with ThreadPoolExecutor(PARTS_AT_ONCE) as threads:
            futures = [threads.submit(fetch, number) for number in todo]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
    finally:
        os.close(descriptor)
    wrong = _fault(client, bucket, key, facts, part)
    state.unlink()
    if wrong:
        part.unlink()
        raise S3Error(f"{address} arrived damaged: {wrong}")
    part.replace(target)


def _state_of(part: Path, state: Path, tag: str, size: int) -> set[int]:
    """Ranges that are there already; otherwise the file is begun."""
    if part.is_file() and state.is_file() and part.stat().st_size == size:
        head, *lines = state.read_text().split("\n")
        if head == tag:
            return {int(line) for line in lines[:-1] if line.isdigit()}  # the last one may be torn
    state.unlink(missing_ok=True)
    with part.open("wb") as file:
        file.truncate(size)
    state.write_text(f"{tag}\n")
    return set()


def _range(client: Any, place: dict[str, str], first: int, last: int) -> bytes:
    pause = _FIRST_PAUSE_S
    for attempt in range(1, TRIES + 1):
        try:
            body = client.get_object(**place, Range=f"bytes={first}-{last}")["Body"]
            data: bytes = body.read()
            if len(data) == last - first + 1:
                return data
            problem: Exception = S3Error(f"{len(data)} bytes came of {last - first + 1}")
        except ClientError as error:
            problem = error
            code = str(error.response.get("Error", {}).get("Code"))
            if code in ("412", "PreconditionFailed"):
                raise S3Error("it was changed while it was fetched: run again") from error
            if code not in _PASSING:
                raise S3Error(str(error)) from error
        except (BotoCoreError, HTTPError, OSError) as error:
            problem = error
        if attempt < TRIES:
            time.sleep(pause * (1 + random.random()))  # not all workers at once
            pause *= 2
    raise S3Error(f"after {TRIES} tries: {problem}") from problem


def _fault(client: Any, bucket: str, key: str, facts: dict[str, Any], path: Path) -> str:
    """How the bytes differ from what the store says of them, or nothing."""
    sha256, crc32 = str(facts.get("ChecksumSHA256", "-")), str(facts.get("ChecksumCRC32", "-"))
    if "-" not in sha256:  # else of the parts
        return _differs("SHA-256", base64.b64encode(bytes.fromhex(sha256_file(path))).decode(), sha256)
    # With a key of the store's the ETag is no sum of these bytes.
    hidden = (
        str(facts.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in facts
    )
    match = None if hidden else re.fullmatch(r'"?([0-9a-f]{32})(?:-(\d+))?"?', str(facts["ETag"]))
    if match is None:
        whole = "-" not in crc32 and facts.get("ChecksumType") != "COMPOSITE"
        return _differs("CRC-32", _crc32(path), crc32) if whole else ""
    length = None
    if match[2]:
        try:
            length = int(client.head_object(Bucket=bucket, Key=key, PartNumber=1)["ContentLength"])
        except (BotoCoreError, ClientError):
            return ""  # a store that does not say how it was cut
        if -(-path.stat().st_size // length) != int(match[2]):
            return ""
    return _differs("MD5", _md5(path, length), match[1])


def _differs(kind: str, found: str, told: str) -> str:
    return "" if found == told else f"{kind} {found}, the store says {told}"


def _crc32(path: Path) -> str:
    found = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            found = zlib.crc32(block, found)
    return base64.b64encode(found.to_bytes(4, "big")).decode()


def _md5(path: Path, part_bytes: int | None) -> str:
    with path.open("rb") as file:
        if part_bytes is None:
            return hashlib.file_digest(file, "md5").hexdigest()
        sums = b""
        while block := file.read(part_bytes):
            sums += hashlib.md5(block, usedforsecurity=False).digest()
        return hashlib.md5(sums, usedforsecurity=False).hexdigest()


def _told(ask: Callable[[], Result]) -> Result:
    try:
        return ask()
    except (BotoCoreError, ClientError, HTTPClientError, ValueError) as error:
        raise S3Error(str(error)) from error
