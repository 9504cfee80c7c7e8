"""Claims: what a workspace or a registered version rests on stays, in cache and bucket; the rest can go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest
from dvc.repo import Repo
from mlflow.tracking import MlflowClient

from tasks.project import read_yaml
from tasks.registry import PROVENANCE_TAGS, STUDENT_TAG
from tasks.tracking import connect, experiment_id
from tasks.unused_data import collect_unused
from tasks.versioning import init_repository
from vdmini_core.artifacts import sha256_file
from vdmini_core.errors import VDMiniError


def make(root: Path, text: str) -> Path:
    """Let DVC's stage in `root` make two files of this text; returns its `dvc.lock`."""
    (root / "text").write_text(text)
    command = "mkdir out && cp text out/a && (cat text && echo more) > out/b"
    (root / "dvc.yaml").write_text(
        json.dumps({"stages": {"make": {"cmd": command, "deps": ["text"], "outs": ["out"]}}})
    )
    with chdir(root), Repo(str(root)) as repo:  # DVC looks for its files in the current directory
        repo.reproduce()
    return root / "dvc.lock"


def register(root: Path, lock: Path) -> str:
    """A version with the recipe that `vdmini register` would keep on its run, as far as it matters here."""
    client = connect(root)
    run = client.create_run(experiment_id(client, root)).info.run_id
    provenance = {"teacher": "f00d", "plan": "91a4", "data": "da7a", "dvc_lock": "10c4", "code": "c0de"}
    recipe = {
        "data": {"source": "procedural", "videos": None, "videos_md5": None, "version": "da7a"},
        "provenance": provenance | {"git_commit": "c0de" * 10},
        "libraries": {"torch": "2"},
        "outputs": {"prepare": {"clips": "0a"}},
    }
    client.log_text(run, json.dumps(recipe), "recipe/recipe.json")
    client.log_text(run, "base: {seed: 0}\n", "recipe/params.yaml")
    client.log_artifact(run, str(lock), "recipe")
    tags = {STUDENT_TAG: "5", PROVENANCE_TAGS["dvc_lock"]: sha256_file(lock)}
    version = client.create_model_version("toy", "runs:/x/student", run, tags=tags)
    return str(version.version)


@dataclass
class Project:
    """Four contents: of a registered version, of a workspace, of now, and one that nothing rests on."""

    root: Path
    client: MlflowClient
    bucket: Path
    objects: dict[str, set[str]]

    def there(self, folder: Path) -> set[str]:
        return {
            name
            for name, hashes in self.objects.items()
            if all((folder / "files" / "md5" / md5[:2] / md5[2:]).is_file() for md5 in hashes)
        }


def cached(root: Path) -> set[str]:
    files = (root / ".dvc" / "cache" / "files" / "md5").glob("*/*")
    return {path.parent.name + path.name for path in files}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Made once, as it takes seconds: the tests stand in the order in which they take from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield lay_out(tmp_path_factory.mktemp("unused"))


def lay_out(folder: Path) -> Project:
    root, bucket = folder / "proj", folder / "bucket"
    root.mkdir()
    init_repository(root)
    client = connect(root)
    client.create_registered_model("toy")
    objects: dict[str, set[str]] = {}
    with Repo(str(root)) as repo, repo.config.edit() as config:
        config["core"]["remote"] = "here"
        config["remote"] = {"here": {"url": str(bucket)}}

    def content(name: str, folder: Path = root) -> Path:
        before = cached(root)
        lock = make(folder, name)
        if folder == root:
            with chdir(root), Repo(str(root)) as repo:
                repo.push(remote="here")
        objects[name] = cached(root) - before
        assert len(objects[name]) == 3
        return lock

    register(root, content("registered"))
    content("forgotten")
    workspace = root / "workspaces" / "other"
    workspace.mkdir(parents=True)
    init_repository(workspace, root / ".dvc" / "cache")
    content("workspace", workspace)
    content("now")
    return Project(root, client, bucket, objects)


@pytest.mark.parametrize("spoilt", ["recipe", "lock", "another lock", "bucket", "hash"])
def test_where_it_cannot_be_told_what_is_in_use_nothing_goes(
    project: Project, tmp_path: Path, spoilt: str
) -> None:
    lock, remote, number = project.root / "dvc.lock", "here", None
    if spoilt == "recipe":
        number, expected = register(project.root, lock), "has no recipe"
        run = str(project.client.get_model_version("toy", number).run_id)
        shutil.rmtree(next((project.root / "mlruns").rglob(run)) / "artifacts" / "recipe")
    elif spoilt.endswith("lock"):
        number, expected = register(project.root, lock), "not that of its tags"
        run = str(project.client.get_model_version("toy", number).run_id)
        kept = next((project.root / "mlruns").rglob(run)) / "artifacts" / "recipe" / "dvc.lock"
        kept.unlink() if spoilt == "lock" else kept.write_text("stages: {}\n")
    elif spoilt == "bucket":
        remote, expected = "elsewhere", "elsewhere"
    else:
        (out,) = read_yaml(lock)["stages"]["make"]["outs"]
        changed = {"stages": {"make": {"outs": [{**out, "md5": "../../etc"}]}}}
        (tmp_path / "dvc.lock").write_text(json.dumps(changed))
        number, expected = register(project.root, tmp_path / "dvc.lock"), "not as DVC writes it"
    with pytest.raises(VDMiniError, match=expected):
        collect_unused(project.root, cloud=True, remote=remote, remove=True)
    assert project.there(project.root / ".dvc" / "cache") == project.there(project.bucket) | {"workspace"}
    assert project.there(project.bucket) == {"registered", "forgotten", "now"}
    if number is not None:
        project.client.delete_model_version("toy", number)


def test_only_what_nothing_rests_on_goes_and_only_when_told(project: Project) -> None:
    names = set(project.objects)
    found = collect_unused(project.root, cloud=True)
    assert (found.local, found.remote, found.kept_versions) == (3, 3, ("toy/1",))
    assert found.local_bytes > 0 and len(found.kept_projects) == 2
    assert project.there(project.root / ".dvc" / "cache") == names, "it only looked"
    assert collect_unused(project.root, cloud=True, remove=True) == found
    assert project.there(project.root / ".dvc" / "cache") == names - {"forgotten"}
    assert project.there(project.bucket) == {"registered", "now"}
    assert collect_unused(project.root, cloud=True).local == 0


def test_a_version_known_from_the_bucket_alone_keeps_its_data_there(project: Project) -> None:
    for md5 in project.objects["registered"]:
        (project.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).unlink()
    assert collect_unused(project.root, cloud=True, remove=True).remote == 0
    assert project.there(project.bucket) == {"registered", "now"}


def test_a_version_that_is_taken_out_of_the_registry_keeps_nothing(project: Project) -> None:
    project.client.delete_model_version("toy", "1")
    asked_in_a_workspace = project.root / "workspaces" / "other"
    assert collect_unused(asked_in_a_workspace, cloud=True, remove=True).remote == 3
    assert project.there(project.root / ".dvc" / "cache") == {"now", "workspace"}
    assert project.there(project.bucket) == {"now"}
