"""Objects and folders of a real S3 server: whole, checked, resumed, again only what is new."""

from __future__ import annotations

import hashlib
import io
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError

from flows.execution import check_outside_inputs
from tasks import s3, s3_folders
from tasks.new_videos import register_addition
from tasks.project import change_params, dump_yaml, start_from
from tasks.recorded_videos import videos_are_gone
from tasks.s3 import S3Error, download, new_client
from tasks.s3_folders import local_path, mirror
from tasks.stage import run_stage
from tests.services.s3_store import s3_store, settings
from vdmini_core.artifacts import read_json, tree_digests
from vdmini_core.data.video import write_mp4
from vdmini_core.errors import DataError
from vdmini_core.params import Params, PrepareParams, load_params

pytestmark = pytest.mark.services
CONTENT = np.random.default_rng(0).bytes(10_000)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "data").mkdir()
    with s3_store(folder) as address:
        yield address


@pytest.fixture
def client(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in settings(endpoint, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "PART_BYTES", 1024)
    monkeypatch.setattr(s3, "_FIRST_PAUSE_S", 0.001)
    return new_client()


class Troubled:
    """The client with answers that `trouble` spoils: number of the range, the real answer -> another one."""

    def __init__(self, client: Any, trouble: Any) -> None:
        self._client, self._trouble, self.ranges = client, trouble, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_object(self, **request: Any) -> Any:
        self.ranges += 1
        return self._trouble(self.ranges, lambda: self._client.get_object(**request))


def put(client: Any, key: str, content: bytes = CONTENT) -> str:
    client.put_object(Bucket="data", Key=key, Body=content)
    return f"s3://data/{key}"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_download_goes_on(client: Any, tmp_path: Path) -> None:
    def killed(number: int, answer: Any) -> Any:
        if number > 4:
            raise KeyboardInterrupt
        return answer()

    address, target = put(client, "one"), tmp_path / "one"
    with pytest.raises(KeyboardInterrupt):
        download(Troubled(client, killed), address, target)
    assert left(tmp_path) == [".one.part", ".one.state"]
    again = Troubled(client, lambda number, answer: answer())
    download(again, address, target)
    assert target.read_bytes() == CONTENT and left(tmp_path) == ["one"]
    assert again.ranges == 10 - 4
    target.unlink()

    with pytest.raises(KeyboardInterrupt):
        download(Troubled(client, killed), address, target)
    put(client, "one", CONTENT[::-1])  # what was begun is of no use
    download(client, address, target)
    assert target.read_bytes() == CONTENT[::-1] and left(tmp_path) == ["one"]


def test_every_third_request_refused_every_fifth_cut_short(client: Any, tmp_path: Path) -> None:
    def trouble(number: int, answer: Any) -> Any:
        if number % 3 == 0:
            raise ClientError({"Error": {"Code": "SlowDown"}}, "GetObject")
        if number % 5 == 0:
            return {"Body": io.BytesIO(answer()["Body"].read()[:-1])}
        return answer()

    download(Troubled(client, trouble), put(client, "two"), tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == CONTENT


def test_what_cannot_be_had_or_is_damaged_leaves_nothing(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(number: int, answer: Any) -> Any:
        return {"Body": io.BytesIO(bytes(len(answer()["Body"].read())))}

    with pytest.raises(S3Error, match="arrived damaged: MD5"):
        download(Troubled(client, damaged), put(client, "three"), tmp_path / "three")
    with pytest.raises(S3Error, match="404"):
        download(client, "s3://data/none", tmp_path / "none")
    with pytest.raises(S3Error, match="no address"):
        download(client, "s3://", tmp_path / "none")
    download(client, put(client, "empty", b""), tmp_path / "empty")
    assert left(tmp_path) == ["empty"]
    for address in ("s3://data/no/folder", "s3://nowhere/x"):
        with pytest.raises(DataError, match="cannot be brought here"):
            mirror(address)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guess")
    with pytest.raises(DataError, match="cannot be brought here"):
        mirror("s3://data/three")


def test_whether_the_videos_of_a_version_are_still_in_the_store(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(client, "movies/deep/a.MP4")
    put(client, "words/README.txt")

    def gone(videos: str) -> bool:
        return videos_are_gone(tmp_path, PrepareParams(source="folder", videos=videos))

    assert not gone("s3://data/movies") and not gone("s3://data/movies/")
    assert gone("s3://data/words") and gone("s3://data/movie") and gone("s3://nowhere/movies")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guess")
    with pytest.raises(DataError, match="does not say whether they are there"):
        gone("s3://data/movies")


def test_a_sum_over_parts_is_checked_too(tmp_path: Path) -> None:
    class Cut:
        def head_object(self, **request: Any) -> Any:
            return {"ContentLength": 4096}

    path = tmp_path / "parts"
    path.write_bytes(CONTENT)
    # md5 of the md5 sums of 4096, 4096 and 1808 bytes
    facts = {"ETag": f'"{s3._md5(path, 4096)}-3"'}
    assert s3._md5(path, 4096) != s3._md5(path, None)
    assert s3._fault(Cut(), "data", "parts", facts, path) == ""
    crc32 = {"ETag": '"none"', "ChecksumCRC32": s3._crc32(path)}
    sha256 = {"ETag": facts["ETag"], "ChecksumSHA256": b64encode(hashlib.sha256(CONTENT).digest()).decode()}
    hidden = {**facts, "ServerSideEncryption": "aws:kms"}
    told = [crc32, sha256]
    assert [s3._fault(Cut(), "data", "parts", facts, path) for facts in told] == ["", ""]
    path.write_bytes(CONTENT[::-1])
    for each in told:
        assert "the store says" in s3._fault(Cut(), "data", "parts", each, path)
    assert s3._fault(Cut(), "data", "parts", hidden, path) == ""
    assert "the store says" in s3._fault(Cut(), "data", "parts", facts, path)


def test_a_folder_is_brought_once_and_then_what_is_new(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "deep/b.txt", "deep/c d.txt"):
        put(client, f"folder/{name}", name.encode())
    put(client, "folder-of-others/z.txt")
    folder = mirror("s3://data/folder/")
    assert {path.name: path.read_text() for path in folder.rglob("*.txt")} == {
        "a.txt": "a.txt",
        "b.txt": "deep/b.txt",
        "c d.txt": "deep/c d.txt",
    }
    time = client.head_object(Bucket="data", Key="folder/a.txt")["LastModified"].timestamp()
    assert (folder / "a.txt").stat().st_mtime == pytest.approx(time, abs=1)

    fetched: list[str] = []
    real = download
    monkeypatch.setattr(s3_folders, "download", lambda c, a, t: (fetched.append(a), real(c, a, t)))
    assert mirror("s3://data/folder") == folder and fetched == []
    put(client, "folder/a.txt", b"other")
    put(client, "folder/e.txt", b"new")
    client.delete_object(Bucket="data", Key="folder/deep/b.txt")
    (folder / "deep" / "c d.txt").write_text("damaged here")
    mirror("s3://data/folder")
    assert sorted(fetched) == [f"s3://data/folder/{name}" for name in ("a.txt", "deep/c d.txt", "e.txt")]
    assert (folder / "a.txt").read_text() == "other" and not (folder / "deep" / "b.txt").exists()
    assert local_path(tmp_path, "s3://data/folder") == folder


def test_videos_in_s3_give_the_clips_of_the_same_folder(client: Any, tmp_path: Path) -> None:
    for number in range(7):
        picture = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        part = "later" if number == 6 else "films"
        path = tmp_path / part / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_mp4(path, np.stack([np.roll(picture, (n, 2 * n), (0, 1)) for n in range(16)]), 8)
        put(client, f"{part}/{path.name}", path.read_bytes())
    clips = {"train": 8, "validation": 4, "test": 4}
    prepare = {"frames": 2, "height": 16, "width": 16, "clips": clips, "workers": 1}
    few = {"prepare": prepare, "profile": {"clips": 4}, "evaluate": {"clips": 2}}
    found = []
    for name, films, later in (
        ("near", str(tmp_path / "films"), str(tmp_path / "later")),
        ("far", "s3://data/films", "s3://data/later"),
    ):
        root = tmp_path / name
        root.mkdir()
        values = Params.model_validate(few).model_dump(mode="json", by_alias=True)
        (root / "params.yaml").write_text(dump_yaml(values))
        change_params(root, videos=films)
        register_addition(root, later)
        out = run_stage("prepare", root).out
        clips_of = {k: v for k, v in tree_digests(out).items() if k.startswith("clips-")}
        found.append((clips_of, [row["status"] for row in read_json(out / "sources.json")]))
    assert found[0] == found[1] and len(found[0][0]) == 5

    params = load_params(tmp_path / "far" / "params.yaml")
    assert params.prepare.videos == "s3://data/films"
    start_from(tmp_path / "near", tmp_path / "far")
    assert load_params(tmp_path / "near" / "params.yaml").prepare.videos == "s3://data/films"
    change_params(tmp_path / "far", videos="s3://data/nothing")
    with pytest.raises(DataError, match="cannot be read"):
        check_outside_inputs(tmp_path / "far", load_params(tmp_path / "far" / "params.yaml"))
