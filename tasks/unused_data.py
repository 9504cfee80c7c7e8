"""gc: remove from DVC's cache and bucket what no project folder and no registered version rests on.

DVC keeps what the projects named to it use now; the other workspaces and the versions in the registry share
the same cache, and `dvc gc` knows nothing of them. Here they are named to it: every workspace, and a project
made for the purpose that holds the recorded outputs of every registered version.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.gc import gc as ogc
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.transfer import transfer
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from tasks.project import dump_yaml, read_yaml
from tasks.recipe import FOLDER
from tasks.registry import PROVENANCE_TAGS, STUDENT_TAG
from tasks.reproduce import fetch_recipe
from tasks.tracking import connect, project_home
from tasks.versioning import Versions, configure, told_plainly
from vdmini_core.artifacts import sha256_file
from vdmini_core.errors import VDMiniError

_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class Unused:
    """What goes, or would go.

    Attributes:
        local: files in the cache on this machine.
        local_bytes: their size.
        remote: files in the bucket; 0 where it was not asked for.
        kept_projects: project folders whose data stay.
        kept_versions: registered versions whose data stay, as NAME/NUMBER.
    """

    local: int
    local_bytes: int
    remote: int
    kept_projects: tuple[Path, ...]
    kept_versions: tuple[str, ...]


def collect_unused(
    root: Path, cloud: bool = False, remote: str | None = None, remove: bool = False
) -> Unused:
    """Look for data that nothing rests on, and remove them where `remove` is set.

    Args:
        root: the project, or a workspace of it.
        cloud: in the bucket as well.
        remote: name of DVC's remote; its default where None.
        remove: False looks only.

    Raises:
        VDMiniError: where what is in use cannot be told in full: nothing is removed then.
    """
    home = project_home(root.resolve())
    own = Versions(home).repo
    workspaces = sorted(path.parent for path in (home / "workspaces").glob("*/.dvc") if path.is_dir())
    versions = list(_own_versions(connect(home)))
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder)
        with told_plainly("name the data of registered versions"):
            configure(Repo.init(folder, no_scm=True), Path(own.cache.local.path).parents[1])
            stores = [own.cache.local]
            if cloud:
                stores.append(own.cloud.get_remote_odb(remote, "gc", hash_name="md5"))
            for number, version in enumerate(versions):
                _name_outputs(_outputs_of(home, version), kept / str(number), stores)
        others = [str(path) for path in (*workspaces, kept)]
        options: dict[str, Any] = {"workspace": True, "repos": others, "cloud": cloud, "remote": remote}
        with told_plainly("tell what is in use"), _paths_told() as paths:
            own.gc(**options, dry=True)
        cache = str(own.cache.local.path)
        here = [Path(path) for path in paths if path.startswith(cache)]
        found = Unused(
            local=len(here),
            local_bytes=sum(path.stat().st_size for path in here if path.is_file()),
            remote=len(paths) - len(here),
            kept_projects=(home, *workspaces),
            kept_versions=tuple(f"{version.name}/{version.version}" for version in versions),
        )
        if remove:
            with told_plainly("remove what is not in use"):
                own.gc(**options)
    return found


def _own_versions(client: MlflowClient) -> Iterator[ModelVersion]:
    """Every version that `vdmini register` made, whatever its alias."""
    token = None
    while True:
        page = client.search_model_versions(max_results=200, page_token=token)
        yield from (version for version in page if STUDENT_TAG in version.tags)
        if not (token := page.token):
            return


def _outputs_of(home: Path, version: ModelVersion) -> list[dict[str, Any]]:
    """What DVC had recorded as outputs, and the folder of videos, when the version was registered."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = fetch_recipe(home, Path(folder), version)
        lock = Path(folder) / FOLDER / "dvc.lock"
        found = sha256_file(lock) if lock.is_file() else "none"
        if found != version.tags.get(PROVENANCE_TAGS["dvc_lock"]):
            raise VDMiniError(
                f"dvc.lock of version {version.version} of `{version.name}` is not that of its tags",
                expected=f"the file of its tag {PROVENANCE_TAGS['dvc_lock']}",
                found="another one" if lock.is_file() else "none",
                fix="look who changed the artifacts of its run or its tags on MLflow",
            )
        stages = read_yaml(lock).get("stages", {}) if lock.is_file() else {}
    outputs = [out for stage in stages.values() for out in stage.get("outs", [])]
    if videos := recipe["data"].get("videos_md5"):
        outputs.append({"path": "videos", "md5": videos})
    for out in outputs:
        if not _HASH.fullmatch(str(out.get("md5"))):
            raise VDMiniError(
                f"dvc.lock of version {version.version} of `{version.name}` is not as DVC writes it",
                expected="an md5 for every output",
                found=repr(out.get("md5"))[:80],
                fix="look who changed the artifacts of its run on MLflow",
            )
    return outputs


def _name_outputs(outputs: list[dict[str, Any]], folder: Path, stores: list[HashFileDB]) -> None:
    """One file of DVC's that holds these outputs, without those that are nowhere any more."""
    there = []
    for out in outputs:
        if (store := next((store for store in stores if store.exists(out["md5"])), None)) is not None:
            there.append(out)
            # What a folder consists of is told by its list, so that comes here.
            if out["md5"].endswith(".dir"):
                transfer(store, stores[0], {HashInfo("md5", out["md5"])}, shallow=True)
    if there:
        folder.mkdir()
        told = [{"md5": out["md5"], "hash": "md5", "path": f"out{n}"} for n, out in enumerate(there)]
        (folder / "kept.dvc").write_text(dump_yaml({"outs": told}), encoding="utf-8")


@contextmanager
def _paths_told() -> Iterator[list[str]]:
    """The paths that DVC names while it collects: its `gc` returns nothing."""
    paths: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (told := record.getMessage()).startswith("Removing "):
                paths.append(told.removeprefix("Removing "))

    source, listening = logging.getLogger(ogc.__module__), Listening()
    level, passes = source.level, source.propagate
    source.addHandler(listening)
    source.setLevel(logging.INFO)
    source.propagate = False
    try:
        yield paths
    finally:
        source.removeHandler(listening)
        source.setLevel(level)
        source.propagate = passes
