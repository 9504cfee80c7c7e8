"""Weights from S3, served by a real server that speaks it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tasks.monitor import QuietMonitor
from tasks.protocol import protocol_extractor
from tasks.stage import StageJob
from tasks.weights import resolve_weights
from tests.services.s3_store import s3_store, settings
from vdmini_core.errors import DataError
from vdmini_core.metrics.i3d import expected_shapes
from vdmini_core.params import parse_params

pytestmark = pytest.mark.services
CONTENT = b"weights" * 1000
ONES = save({name: torch.ones(shape) for name, shape in expected_shapes().items()})
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "models" / "i3d").mkdir(parents=True)
    (folder / "models" / "ones.safetensors").write_bytes(ONES)
    (folder / "models" / "i3d" / "rgb imagenet.pt").write_bytes(CONTENT)
    with s3_store(folder) as address:
        yield address


@pytest.fixture
def account(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in settings(endpoint, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "cache"


def test_fetched_by_bucket_and_key_and_kept(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve_weights("s3://models/i3d/rgb imagenet.pt", DIGEST)
    assert path.read_bytes() == CONTENT and path.is_relative_to(account)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody is there: the cache must do
    assert resolve_weights("s3://models/i3d/rgb imagenet.pt", DIGEST) == path
    assert resolve_weights(path) == path


def test_what_is_refused_leaves_nothing_behind(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "s3://models/i3d/rgb imagenet.pt"
    with pytest.raises(DataError, match="that came are other ones"):
        resolve_weights(address, "0" * 64)
    with pytest.raises(DataError, match="need their sha256"):
        resolve_weights(address)
    with pytest.raises(DataError, match=r"(?s)cannot be fetched.*s3://models/i3d/gone.pt"):
        resolve_weights("s3://models/i3d/gone.pt", DIGEST)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guess")
    with pytest.raises(DataError, match="cannot be fetched"):
        resolve_weights(address, DIGEST)
    assert [path for path in account.rglob("*") if path.is_file()] == []


def test_the_network_of_evaluate_may_lie_in_s3(account: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(ONES).hexdigest()
    fvd = {"extractor": "i3d", "weights": "s3://models/ones.safetensors", "sha256": digest}
    job = StageJob(tmp_path, parse_params({"evaluate": {"fvd": fvd}}), tmp_path, tmp_path, QuietMonitor())
    extract = protocol_extractor(job)
    assert extract is not None and extract.passport()["weights_sha256"] == digest
    assert [path for path in account.rglob("*") if path.is_file()]
