"""reproduce: make a registered version again from its recipe, and compare with what was recorded."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tasks.foreign_versions import (
    demand_own_source,
    demand_own_student,
    demand_plain_version,
    read_recipe,
)
from tasks.project import OWN_PATHS, SHARED_PATHS, change_params, lay_out
from tasks.recipe import COMPARED, FOLDER
from tasks.recorded_data import bring_back, recorded_output
from tasks.recorded_videos import videos_are_gone
from tasks.registry import PROVENANCE_TAGS, STUDENT_TAG, student_identity, version_by_alias
from tasks.stage import MANIFEST, finished, run_stage
from tasks.tracking import connect, fetch_model, project_home, tracking_uri
from vdmini_core.artifacts import code_version, digest_of, library_versions, sha256_file, tree_digests
from vdmini_core.errors import VDMiniError
from vdmini_core.params import load_params


@dataclass(frozen=True)
class Reproduction:
    """What came of it.

    Attributes:
        model, version: which registered version.
        differences: `stage/file: what is different`, empty where every hash is equal.
        remarks: what is not as it was then: code, libraries.
        compared: how many files.
        folder: the project it was made in, while it is kept.
    """

    model: str
    version: str
    differences: tuple[str, ...]
    remarks: tuple[str, ...]
    compared: int
    folder: Path

    @property
    def equal(self) -> bool:
        """True where every output has the recorded hash."""
        return not self.differences


def reproduce(
    root: Path,
    uri: str,
    *,
    videos: Path | None = None,
    listen: Callable[[str], None] = lambda line: None,
) -> Reproduction:
    """Lay out a project with a version's data, parameters and plan, run it, compare.

    The project lies in `.vdmini/reproduce/` of `root` and starts empty but for checkpoints of a killed
    attempt; no cache is asked, so that everything is computed again. Only clips whose videos are not there
    any more are taken from DVC's cache or remote. It stops at the first stage that differs: what follows
    rests on it. At the end the registered student is fetched and compared, too.

    Args:
        root: project folder: its tracking store is asked, its relative paths are meant.
        uri: `models:/NAME@alias` or `models:/NAME/3`.
        videos: where the videos are now, if not where they were.
        listen: told one line per stage.

    Raises:
        VDMiniError: for an unknown version, one without a recipe, or data that are not there.
    """
    client = connect(root)
    version = find_version(client, uri)
    name, number = str(version.name), str(version.version)
    folder = root / ".vdmini" / "reproduce" / f"{name}-{number}"
    recipe = lay_out_version(root, folder, version, videos, recorded=True)
    expected: Mapping[str, Mapping[str, str]] = recipe["outputs"]
    differences: list[str] = []
    compared = 0
    brought = (folder / "artifacts" / "prepare").is_dir()
    for stage in COMPARED:
        if stage == "prepare" and brought:
            listen("prepare: its videos are not there; the clips were taken from DVC, not made again")
            found = tree_digests(folder / "artifacts" / stage)
            found = {name: digest for name, digest in found.items() if name != MANIFEST}
        else:
            run_stage(stage, folder)
            found = finished(folder, stage)["outputs"]
        differences = [f"{stage}/{line}" for line in compare(expected[stage], found)]
        compared += len(expected[stage])
        listen(f"{stage}: {'different' if differences else f'{len(found)} files equal'}")
        if differences:
            break
    if not differences:
        differences = _against_the_registered(root, folder, version)
        listen(f"the registered student: {'different' if differences else 'equal'}")
    remarks = (*["the clips are those that DVC kept: the videos are not there"] * brought, *_remarks(recipe))
    result = Reproduction(name, number, tuple(differences), remarks, compared, folder)
    if result.equal:
        shutil.rmtree(folder)
    return result


def _against_the_registered(root: Path, folder: Path, version: ModelVersion) -> list[str]:
    """The recipe's hashes are told by a file on a server: what counts is the student that is served."""
    if student_identity(folder) != version.tags.get(STUDENT_TAG):
        return [f"the student and its metrics are not those of the tag {STUDENT_TAG}"]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        back = fetch_model(root, demand_own_source(version), Path(place))
        registered = tree_digests(demand_own_student(back, version))
    made = tree_digests(folder / "artifacts" / "distill" / "student")
    return [f"registered student/{line}" for line in compare(registered, made)]


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version a `models:/` address names.

    Raises:
        VDMiniError: for another address, or one that leads nowhere.
    """
    match = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))", uri)
    if match is None:
        raise VDMiniError(
            f"{uri!r} names no registered version", expected="models:/NAME@champion or models:/NAME/3"
        )
    name, alias, number = match.groups()
    try:
        version = client.get_model_version(name, number) if number else version_by_alias(client, name, alias)
    except MlflowException:
        version = None
    if version is None:
        raise VDMiniError(
            f"there is no {uri}",
            found="nothing of that name in this registry",
            fix="`--root` names the project, MLFLOW_TRACKING_URI the server",
        )
    demand_plain_version(version, name)
    return version


def compare(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Files that are missing, new, or of another hash; one line each."""
    lines = []
    for name in sorted({*expected, *found}):
        then, now = expected.get(name), found.get(name)
        if then is None:
            lines.append(f"{name}: was not there")
        elif now is None:
            lines.append(f"{name}: is missing")
        elif then != now:
            lines.append(f"{name}: {now[:12]}, recorded {then[:12]}")
    return lines


def lay_out_version(
    root: Path, folder: Path, version: ModelVersion, videos: Path | None, *, recorded: bool = False
) -> dict[str, Any]:
    """A project with the version's parameters and plan; scratch of a killed attempt stays.

    Args:
        root: project folder: its tracking store is asked, its relative paths are meant.
        folder: of the new project.
        version: which one.
        videos: where the videos are now, if not where they were.
        recorded: where they are not, bring the clips that DVC recorded to `artifacts/prepare`.

    Returns:
        The recipe.

    Raises:
        VDMiniError: for a version without a recipe or with another one's, or data that are nowhere.
    """
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    lay_out(folder)
    recipe = fetch_recipe(root, folder, version)
    kept = folder / FOLDER
    shutil.copyfile(kept / "params.yaml", folder / "params.yaml")
    shutil.copytree(kept / "plan", folder / "artifacts" / "plan")
    _check_tags(version, recipe, folder)
    md5 = recorded_output(kept / "dvc.lock", "prepare") if recorded and videos is None else None
    if brought := md5 is not None and videos_are_gone(root, load_params(folder / "params.yaml").prepare):
        bring_back(project_home(root), str(md5), folder / "artifacts" / "prepare")
    change_params(folder, assignments=tuple(_paths(root, folder, recipe, videos, brought)))
    return recipe


def fetch_recipe(root: Path, folder: Path, version: ModelVersion) -> dict[str, Any]:
    """Bring the version's recipe to `folder`/recipe and read it.

    Raises:
        VDMiniError: for a version without one, or one that `register` did not write.
    """
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        mlflow.artifacts.download_artifacts(
            run_id=version.run_id,
            artifact_path=FOLDER,
            dst_path=str(target.parent),
            tracking_uri=tracking_uri(root),
        )
    except (MlflowException, OSError) as error:
        raise VDMiniError(
            f"version {version.version} of `{version.name}` has no recipe",
            expected=f"`{FOLDER}/` among the artifacts of its run",
            found=str(error).splitlines()[0],
            fix="`vdmini register --force` in the project that made it",
        ) from None
    try:
        return read_recipe(target)
    except VDMiniError:
        shutil.rmtree(target)
        raise


def _check_tags(version: ModelVersion, recipe: Mapping[str, Any], folder: Path) -> None:
    """The recipe is a file on a server: it must be the one that the version was registered with.

    Raises:
        VDMiniError: where the two tell different stories.
    """
    lock = folder / FOLDER / "dvc.lock"
    told = {
        **recipe["provenance"],
        "plan": sha256_file(folder / "artifacts" / "plan" / "plan.json"),
        "data": digest_of(recipe["outputs"]["prepare"]),
        "dvc_lock": sha256_file(lock) if lock.is_file() else "none",
    }
    wrong = [key for key, tag in PROVENANCE_TAGS.items() if told.get(key) != version.tags.get(tag)]
    if wrong:
        raise VDMiniError(
            f"the recipe of version {version.version} is not that of its tags",
            expected="what was recorded at its registration",
            found=f"another {', '.join(wrong)}",
            fix="look who changed the artifacts of its run or its tags on MLflow",
        )


def _paths(
    root: Path, folder: Path, recipe: Mapping[str, Any], videos: Path | None, brought: bool
) -> list[str]:
    """Folders as they are reached from the new project; those that do not exist keep their words."""
    values = load_params(folder / "params.yaml").model_dump(mode="json", by_alias=True)
    lists = [str((root / text).resolve()) for text in values["prepare"]["additions"]]
    assignments = [f"prepare.additions={json.dumps(lists)}"] if lists else []
    for key in (*SHARED_PATHS, *OWN_PATHS):
        value: Any = values
        for part in key.split("."):
            value = value[part]
        if key == "prepare.videos" and recipe["data"]["source"] == "folder":
            if brought or (videos is None and "://" in value):
                continue
            place = videos if videos is not None else root / Path(value).expanduser()
            if not place.is_dir():
                raise VDMiniError(
                    "the videos of this version are not there",
                    expected=f"data version {recipe['data']['version'][:12]}",
                    found=f"no folder {value} in the project",
                    fix="`dvc pull` where DVC tracks them, or `--videos DIR`",
                )
            assignments.append(f"{key}={json.dumps(str(place.resolve()))}")
        elif isinstance(value, str) and (root / Path(value).expanduser()).exists():
            assignments.append(f"{key}={json.dumps(str((root / Path(value).expanduser()).resolve()))}")
    return assignments


def _remarks(recipe: Mapping[str, Any]) -> list[str]:
    found = []
    if digest_of(code_version()) != recipe["provenance"]["code"]:
        found.append("this is not the code that made the version")
    then, now = recipe["libraries"], library_versions()
    found += [
        f"{name} {now.get(name)}, then {then[name]}" for name in sorted(then) if then[name] != now.get(name)
    ]
    return found
