"""Registered versions, recipes, S3 listings and parameters of strangers: refused, nothing run or left behind.

`tests/chaos/mutations.py` takes each guard out and sees the test of its name fail.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
import pytest
from attack_toys import ONE, pipeline_folder, safetensors

from tasks import promote, register, reproduce, rescore, s3, s3_folders
from tasks.foreign_versions import LOADED, LOADER, demand_own_student, files_digest
from tasks.gate import Decision
from tasks.monitor import QuietMonitor
from tasks.project import change_params, dump_yaml, lay_out, profile_values, workspace_folder
from tasks.provenance import without_hint_warning
from tasks.recipe import COMPARED
from tasks.registered_files import LOADER_FILE, unlike_ours
from tasks.registry import CHECKS_TAG
from tasks.stage import StageJob
from vdmini_core.errors import DataError, ModelError, ParamsError, VDMiniError
from vdmini_core.params import Params, load_params

TAG = '!!python/object/apply:os.system ["touch canary"]'
VERSION: Any = SimpleNamespace(name="toy", version="3", run_id="r", source="models:/m-1", tags={})


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a payload that runs leaves its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///none.db")
    return tmp_path / "canary"


def served_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A server that hands out a folder; what it was asked for."""
    asked: list[Any] = []

    def fetch(*source: Any, dst_path: str, artifact_path: str = "", **_: Any) -> str:
        asked.append(source or artifact_path)
        target = Path(dst_path) / (artifact_path or folder.name)
        shutil.copytree(folder, target, symlinks=True)
        return str(target)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", fetch)
    return asked


def registered(folder: Path, **flavor: Any) -> Path:
    """A registered model as MLflow keeps it."""
    (folder / "artifacts").mkdir(parents=True)
    pipeline_folder(folder / "artifacts" / "student")
    told = {"loader_module": LOADER, "model_code_path": f"/somewhere/{LOADED}", "code": "code", **flavor}
    (folder / "MLmodel").write_text(dump_yaml({"flavors": {"python_function": told}}))
    (folder / "code").mkdir()
    for module in (folder / "code" / "evil_loader.py", folder / LOADED):
        module.write_text("import os; os.system('touch canary')")
    return folder


def edited_later(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + "\n")


def version_of(folder: Path) -> Any:
    """The version as `register` leaves it."""
    checks = {"unsafe": [], "generates": True, "files": files_digest(folder)}
    return SimpleNamespace(**{**vars(VERSION), "tags": {CHECKS_TAG: json.dumps(checks)}})


def brought(root: Path, version: Any = VERSION) -> Path:
    """`evaluate-registered` as far as the student's place."""
    work = root / "work"
    work.mkdir()
    (work / "params.yaml").write_text(dump_yaml(Params().model_dump(mode="json", by_alias=True)))
    rescore._bring_student(root, work, version)
    return work / "artifacts" / "distill" / "student"


def test_a_registered_student_of_ours_is_brought_and_its_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canary: Path
) -> None:
    folder = registered(tmp_path / "model")
    served_from(folder, monkeypatch)
    assert (brought(tmp_path, version_of(folder)) / "model_index.json").is_file() and not canary.exists()


def add(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(b"\x80\x04.")


@pytest.mark.parametrize(
    ("flavor", "change", "why"),
    [
        ({"loader_module": "evil_loader"}, None, "loaded by code that is not ours"),
        ({"model_code_path": "code/evil_loader.py"}, None, "loaded by code that is not ours"),
        ({"python_model": "python_model.pkl"}, None, "loaded by code that is not ours"),
        ({}, lambda f: (f / "MLmodel").write_text(f"a: {TAG}"), "loaded by code that is not ours"),
        ({}, add("artifacts/student/unet/x.pkl"), "not safe to load"),
        ({}, add("artifacts/student/unet/evil.py"), "not safe to load"),
        ({}, add("artifacts/student/unet/x.safetensors"), "not safe to load"),
        (
            {},
            lambda f: (f / "artifacts/student/unet/link.json").symlink_to("/etc/passwd"),
            "not safe to load",
        ),
        ({}, lambda f: shutil.rmtree(f / "artifacts"), "holds no student"),
    ],
)
def test_a_registered_model_that_is_not_ours_is_refused(
    flavor: dict[str, str],
    change: Callable[[Path], Any] | None,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    canary: Path,
) -> None:
    folder = registered(tmp_path / "model", **flavor)
    if change is not None:
        change(folder)
    served_from(folder, monkeypatch)
    with pytest.raises(ModelError, match=why):
        brought(tmp_path)
    assert not canary.exists() and [path.name for path in (tmp_path / "work").iterdir()] == ["params.yaml"]


CHANGES: dict[str, Callable[[Path], Any]] = {
    "the loader": lambda folder: (folder / LOADED).write_text("import os; os.system('touch other')"),
    "weights": lambda folder: safetensors(
        folder / "artifacts/student/unet/diffusion_pytorch_model.safetensors", ONE, b"evil"
    ),
    "a settings file": lambda folder: (folder / "artifacts/student/unet/config.json").write_text('{"a": 1}'),
    "a requirement": lambda folder: (folder / "requirements.txt").write_text("evil"),
    "a file gone": lambda folder: (folder / "code" / "evil_loader.py").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_file_that_is_not_as_it_was_registered_is_refused(change: str, tmp_path: Path) -> None:
    """Files that are safe in themselves, exchanged by one who may write to the bucket alone."""
    folder = registered(tmp_path / "model")
    version = version_of(folder)
    assert demand_own_student(folder, version) == folder / "artifacts" / "student"
    CHANGES[change](folder)
    with pytest.raises(ModelError, match="does not hold the files that were registered"):
        demand_own_student(folder, version)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What MLflow writes of what `register` tells it; the student is a toy."""
    folder = tmp_path_factory.mktemp("logged")
    student = pipeline_folder(folder / "student")
    with without_hint_warning():
        mlflow.pyfunc.save_model(
            folder / "model",
            python_model=str(LOADER_FILE),
            artifacts={"pipeline": str(student)},
            code_paths=[str(register._core_without_weights(folder))],
            pip_requirements=register._requirements(),
        )
    return folder


def swapped(name: str, old: str, new: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


PUT_THERE: dict[str, Callable[[Path], Any]] = {
    "serving_model.py": edited_later("serving_model.py"),
    "code/vdmini_core/__init__.py": edited_later("code/vdmini_core/__init__.py"),
    "code/sitecustomize.py": add("code/sitecustomize.py"),
    "artifacts/student/unet/config.json": edited_later("artifacts/student/unet/config.json"),
    "artifacts/student/unet/diffusion_pytorch_model.safetensors": lambda folder: safetensors(
        folder / "artifacts/student/unet/diffusion_pytorch_model.safetensors", ONE, b"evil"
    ),
    "requirements.txt": swapped("requirements.txt", "tqdm==", "evil==1 tqdm=="),
    "conda.yaml": swapped("conda.yaml", "- tqdm==", "- evil==1\n  - tqdm=="),
    "python_env.yaml": swapped("python_env.yaml", "- wheel", "- wheel\n- evil==1"),
    "MLmodel": swapped("MLmodel", LOADER, "evil_loader"),
}


@pytest.mark.parametrize("name", PUT_THERE)
def test_files_exchanged_before_their_digest_was_taken_are_seen(
    name: str, logged: Path, tmp_path: Path
) -> None:
    """Between MLflow's upload and our first look: the digest must not bless them."""
    model, ours = tmp_path / "model", (logged / "student", logged / "vdmini_core", register._requirements())
    shutil.copytree(logged / "model", model)
    assert unlike_ours(model, *ours) == ()
    PUT_THERE[name](model)
    assert unlike_ours(model, *ours) == (name,)
    (model / name).unlink()
    assert unlike_ours(model, *ours) == (() if name == "code/sitecustomize.py" else (name,))


@pytest.mark.parametrize("change", ["", *CHANGES])
def test_a_version_whose_files_changed_is_not_taken_for_the_student_that_is_there(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`register` makes a new version then, and leaves the digest of the old one as it was."""
    folder = registered(tmp_path / "model")
    version = version_of(folder)
    if change:
        CHANGES[change](folder)
    served_from(folder, monkeypatch)
    job = StageJob(tmp_path, Params(), tmp_path / "out", tmp_path, QuietMonitor())
    wanted = "does not hold the files that were registered" if change else ""
    assert register._not_as_registered(job, version) == wanted
    assert register._not_as_registered(job, VERSION) == "has no digest of its files"


def test_a_version_without_a_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no digest of its files"):
        demand_own_student(registered(tmp_path / "model"), VERSION)


@pytest.mark.parametrize("name", ["artifacts/student/unet/x.pkl", ""])
def test_files_that_changed_since_they_were_registered_are_not_promoted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canary: Path
) -> None:
    """The tags of the version, which the gate decides by, still say that all is well."""
    folder = registered(tmp_path / "model")
    version = version_of(folder)
    if name:
        add(name)(folder)
    asked = served_from(folder, monkeypatch)
    monkeypatch.setattr(
        promote, "version_by_alias", lambda *given: version if given[2] == "candidate" else None
    )
    monkeypatch.setattr(promote, "_decide", lambda *_: Decision("promote", ("fine",)))
    refused: list[str] = []
    monkeypatch.setattr(promote, "_record_refusal", lambda *given: refused.append(given[2]))
    job = StageJob(tmp_path, Params(), tmp_path / "out", tmp_path, QuietMonitor())
    if name:
        with pytest.raises(ModelError, match="not safe to load"):
            promote._look_at_files(job, None, None)  # type: ignore[arg-type]
    else:
        assert promote._look_at_files(job, None, None) == VERSION.version  # type: ignore[arg-type]
    assert refused == ([VERSION.version] if name else [])
    assert len(asked) == 1 and not canary.exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["model"]


@pytest.mark.parametrize(
    "source",
    ["file:///etc", "/etc", "http://169.254.169.254/", "s3://b/x", "models:/../../etc", "runs:/a/.."],
)
def test_a_version_that_lies_elsewhere_is_not_fetched(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = served_from(registered(tmp_path / "model"), monkeypatch)
    with pytest.raises(VDMiniError, match="was not registered by"):
        brought(tmp_path, SimpleNamespace(**{**vars(VERSION), "source": source}))
    assert not asked


@pytest.mark.parametrize(("name", "number"), [("../../../tmp/x", "3"), ("toy", "../3"), ("other", "3")])
def test_a_servers_answer_is_no_path(name: str, number: str) -> None:
    """Folders are called after it, and emptied before they are filled."""
    answer = SimpleNamespace(name=name, version=number)
    client: Any = SimpleNamespace(get_model_version=lambda *_: answer)
    with pytest.raises(VDMiniError, match="another version than was asked for"):
        reproduce.find_version(client, "models:/toy/3")


def recipe_folder(folder: Path) -> Path:
    (folder / "plan").mkdir(parents=True)
    (folder / "plan" / "plan.json").write_text("{}")
    (folder / "params.yaml").write_text(dump_yaml(Params().model_dump(mode="json", by_alias=True)))
    recipe = {
        "data": {"source": "procedural", "videos": None, "version": "0"},
        "provenance": {"git_commit": "0" * 40},
        "libraries": {"torch": "2"},
        "outputs": {stage: {"a": "0"} for stage in COMPARED},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def edited(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def told(**changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        recipe = json.loads((folder / "recipe.json").read_text())
        (folder / "recipe.json").write_text(json.dumps(recipe | changes))

    return change


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
RECIPES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "object in YAML": (edited("params.yaml", f"base: {TAG}"), "params.yaml is not as"),
    "aliases": (edited("params.yaml", LAUGHS), "params.yaml is not as"),
    "depth": (edited("params.yaml", "a: " + "[" * 500 + "]" * 500), "params.yaml is not as"),
    "size": (edited("params.yaml", "# " + "x" * 2**21), "params.yaml is not as"),
    "code": (edited("plan/evil.py", "import os; os.system('touch canary')"), "holds a file that"),
    "dvc.yaml": (edited("dvc.yaml", "stages: {a: {cmd: touch canary}}"), "holds a file that"),
    "link": (lambda folder: (folder / "plan" / "x.json").symlink_to("/etc/passwd"), "holds a file that"),
    "option for git": (
        told(provenance={"git_commit": "--upload-pack=touch canary"}),
        "recipe.json is not as",
    ),
    "outputs": (told(outputs=[1]), "recipe.json is not as"),
    "libraries": (told(libraries={"torch": {"a": 1}}), "recipe.json is not as"),
    "data": (told(data={"source": "folder", "version": "0", "videos": ["/"]}), "recipe.json is not as"),
    "no JSON": (edited("recipe.json", "[" * 10**5), "not JSON"),
}


@pytest.mark.parametrize("attack", RECIPES)
def test_a_recipe_that_register_did_not_write_is_refused(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canary: Path
) -> None:
    folder = recipe_folder(tmp_path / "recipe")
    served_from(folder, monkeypatch)
    project = tmp_path / "project"
    assert reproduce.fetch_recipe(tmp_path, project, VERSION)["libraries"] == {"torch": "2"}
    change, why = RECIPES[attack]
    change(folder)
    with pytest.raises(VDMiniError, match=why):
        reproduce.fetch_recipe(tmp_path, project, VERSION)
    assert not canary.exists() and not list(project.iterdir())


class Store:
    """A listing of S3, and objects of any size."""

    def __init__(self, *keys: str, size: int = 1) -> None:
        facts = {"ETag": '"0"', "Size": 1, "LastModified": datetime.now(UTC)}
        self.rows = [{"Key": key, **facts} for key in keys]
        self.size, self.asked = size, 0
        self.meta = SimpleNamespace(endpoint_url="https://s3.example")

    def get_paginator(self, _: str) -> Any:
        return self

    def paginate(self, **_: Any) -> list[Any]:
        self.asked += 1
        return [{"Contents": self.rows}]

    def head_object(self, **_: Any) -> dict[str, Any]:
        return {"ContentLength": self.size, "ETag": '"0"'}

    def get_object(self, **_: Any) -> Any:
        raise AssertionError("an object was asked for")


@pytest.mark.parametrize(
    "address", ["s3://b/../../precious", "s3://../x", "s3://b//etc", "s3://b/a/../../.."]
)
def test_an_s3_address_that_leads_out_of_the_cache_is_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is brought is made equal to the store: what else lies there is deleted."""
    monkeypatch.setenv("VDMINI_CACHE", str(tmp_path / "cache"))
    store = Store("x/a.mp4")
    monkeypatch.setattr(s3_folders, "new_client", lambda: store)
    (precious := tmp_path / "cache" / "s3" / "precious").mkdir(parents=True)
    (precious / "mine").touch()
    with pytest.raises(DataError, match="cannot be a folder below the cache"):
        s3_folders.mirror(address)
    with pytest.raises(DataError, match="cannot be a folder below the cache"):
        s3_folders.demand_objects(address)
    assert (precious / "mine").is_file() and not store.asked


@pytest.mark.parametrize("key", ["f/../../evil", "f//etc/evil", "f/a/../../../evil", "f/./evil", "f/a\0b"])
def test_an_s3_key_that_leads_out_of_its_folder_is_refused(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VDMINI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(s3_folders, "new_client", lambda: Store("f/good", key))
    with pytest.raises(DataError, match="cannot be a file below a folder"):
        s3_folders.mirror("s3://b/f")
    assert not list(tmp_path.rglob("*evil*")) and not list(tmp_path.rglob("good"))


def test_an_object_larger_than_the_disk_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(s3.S3Error, match="are free here"):
        s3.download(Store(size=2**60), "s3://b/k", tmp_path / "k")
    assert not list(tmp_path.iterdir())


def test_objects_in_params_and_profiles_are_not_made(tmp_path: Path, canary: Path) -> None:
    lay_out(root := tmp_path / "project")
    path = root / "params.yaml"
    good = path.read_text()
    for key in ("seed", "plan"):
        path.write_text(f"base:\n  seed: {TAG}\n" if key == "seed" else f"plan:\n  units: {TAG}\n")
        bad = path.read_text()
        for use in (load_params, lambda p: change_params(p.parent, assignments=("distill.steps=7",))):
            with pytest.raises(ParamsError, match="is not valid YAML"):
                use(path)
        assert path.read_text() == bad
    path.write_text(good)
    with pytest.raises(ParamsError, match="is not valid YAML"):
        change_params(root, assignments=(f"plan.units={TAG}",))
    (root / "profiles" / "evil.yaml").write_text(f"base: {TAG}\n")
    with pytest.raises(ParamsError, match="is not valid YAML"):
        change_params(root, profile="evil")
    assert not canary.exists() and path.read_text() == good


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "..", "a/b", ""])
def test_names_of_profiles_and_workspaces_are_no_paths(name: str, tmp_path: Path) -> None:
    (tmp_path / "project" / "profiles").mkdir(parents=True)
    (tmp_path / "evil.yaml").write_text("base: {seed: 1}\n")
    with pytest.raises(ParamsError, match="there is no profile"):
        profile_values(tmp_path / "project", name)
    with pytest.raises(VDMiniError, match="cannot be used"):
        workspace_folder(tmp_path, name)
