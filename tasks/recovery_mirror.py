"""Checkpoints of a recovery in S3 as well, so that another machine goes on where this one died.

`VDMINI_CHECKPOINTS=s3://bucket/folder` asks for it. It is the driver that copies: whole checkpoints, from the
run's storage, while the next steps run. The file that makes a checkpoint whole goes last, so what is torn
in the store does not count there either. Where the store is away the training goes on, and the next
checkpoint is tried again.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from tasks.recovery_checkpoints import COMPLETE, is_complete, newest_checkpoint
from tasks.s3 import S3Error, bucket_and_key, download, is_s3, new_client
from tasks.s3_folders import StoredObject, objects_below
from vdmini_core.errors import TrainingError

CHECKPOINTS = "VDMINI_CHECKPOINTS"
KEPT = 2
LOOK_S = 2.0


def checkpoint_mirror(key: str, storage: Path, note: Callable[[str], None]) -> CheckpointMirror | None:
    """The mirror that the environment asks for.

    Args:
        key: of the run: the same inputs, parameters and code have the same one on every machine.
        storage: the run's folder of checkpoints here.
        note: takes a sentence for the run's page.

    Raises:
        TrainingError: for an address that is none, or a store that does not answer, before any training.
    """
    address = os.environ.get(CHECKPOINTS)
    return CheckpointMirror(address, key, storage, note) if address else None


class CheckpointMirror:
    """The newest checkpoints of one run below `address/key`."""

    def __init__(self, address: str, key: str, storage: Path, note: Callable[[str], None]) -> None:
        self.storage, self._note = storage, note
        self._sent: str | None = None
        self._failed = False
        try:
            if not is_s3(address):
                raise S3Error(f"{address} is no address: s3://bucket/folder")
            self._bucket, folder = bucket_and_key(address.rstrip("/"))
            self._prefix = f"{folder}/{key}".lstrip("/")
            self._client: Any = new_client()
            self._stored()
        except OSError as error:
            raise TrainingError(
                "checkpoints cannot be kept where they are asked to be",
                expected=f"{CHECKPOINTS}=s3://bucket/folder, and leave to list, read, write and delete there",
                found=str(error),
                fix=f"mend the address or the AWS_* variables, or unset {CHECKPOINTS}",
            ) from error

    def fetch(self) -> Path | None:
        """Bring the newest whole checkpoint where there is none as new here.

        Returns:
            Its folder in the run's storage; None where nothing was brought.

        Raises:
            TrainingError: when it cannot be brought, rather than begin a long training anew.
        """
        try:
            stored = self._stored()
            newest, here = max(_whole(stored), default=""), newest_checkpoint(self.storage)
            if not newest or (here is not None and here.name >= newest):
                return None
            coming = self.storage / f".{newest}.coming"  # ranges of a killed call are gone on with
            for item in stored[newest]:
                target = coming / item.name.removeprefix(f"{newest}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                download(self._client, f"s3://{self._bucket}/{self._prefix}/{item.name}", target)
            if not is_complete(coming):
                shutil.rmtree(coming)
                raise S3Error(f"{newest} is not whole there")
        except OSError as error:
            raise TrainingError(
                "the last checkpoint could not be brought from S3",
                found=str(error),
                fix=f"run again when the store answers, or unset {CHECKPOINTS} to begin anew",
            ) from error
        target = self.storage / newest
        shutil.rmtree(target, ignore_errors=True)  # a torn one of the same step
        coming.replace(target)
        self._note(f"{newest} came from s3://{self._bucket}/{self._prefix}")
        return target

    @contextmanager
    def running(self) -> Iterator[None]:
        """Checkpoints that appear within are sent, the last one before this ends."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(LOOK_S):
                self.send()

        thread = threading.Thread(target=look, name="checkpoints-to-s3", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.send()

    def send(self) -> bool:
        """Send the newest whole checkpoint once; older and torn ones there go. False where it failed."""
        found = newest_checkpoint(self.storage)
        if found is None or found.name == self._sent:
            return True
        try:
            began = time.perf_counter()
            for path in self._files(found):
                self._client.upload_file(str(path), self._bucket, self._key(found, path))
            stored = self._stored()
            kept = sorted(_whole(stored))[-KEPT:]
            # A torn one goes as well, which a kill left and a later one overtook.
            for name in sorted(name for name in stored if name < found.name and name not in kept):
                for item in sorted(stored[name], key=lambda item: not item.name.endswith(COMPLETE)):
                    self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}/{item.name}")
        except FileNotFoundError:
            return True  # Ray has removed it meanwhile: there is a newer one
        except (OSError, Boto3Error, BotoCoreError, ClientError) as error:
            if not self._failed:
                self._note(
                    f"a checkpoint did not reach S3, which is tried again: {str(error).splitlines()[0]}"
                )
            self._failed = True
            return False
        if self._sent is None:
            self._note(f"checkpoints go to S3 too, the first in {time.perf_counter() - began:.1f} s")
        self._sent = found.name
        return True

    def _files(self, folder: Path) -> list[Path]:
        """What makes it whole last."""
        return sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.name == COMPLETE, p))

    def _key(self, folder: Path, path: Path) -> str:
        return f"{self._prefix}/{folder.name}/{path.relative_to(folder).as_posix()}"

    def _stored(self) -> dict[str, list[StoredObject]]:
        """Objects of the checkpoints in the store, whole or torn, by the checkpoints' names."""
        found: dict[str, list[StoredObject]] = {}
        for item in objects_below(self._client, self._bucket, self._prefix):
            found.setdefault(item.name.split("/")[0], []).append(item)
        return found


def _whole(stored: dict[str, list[StoredObject]]) -> list[str]:
    """Names of those of which the last file is there."""
    return [name for name, items in stored.items() if f"{name}/{COMPLETE}" in {item.name for item in items}]
