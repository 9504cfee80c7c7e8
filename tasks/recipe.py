"""The recipe of a registered version: all that `vdmini reproduce` needs to make it again, kept on its run.

recipe/params.yaml    every parameter, defaults written out
recipe/plan/          the plan as it was carried out
recipe/dvc.lock       what DVC recorded
recipe/recipe.json    where the data are, code and libraries, hash of every output
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from tasks.project import dump_yaml, read_yaml
from tasks.provenance import provenance
from tasks.stage import finished
from vdmini_core.artifacts import write_json
from vdmini_core.params import load_params

FOLDER = "recipe"
# What is run again and compared. `profile` and `plan` are not: a budget in milliseconds depends on the
# machine of the day, so the plan is taken as it was; nor is the report, a view of the rest.
COMPARED = ("prepare", "teacher", "prune", "distill", "evaluate")


def keep_recipe(client: MlflowClient, run_id: str, root: Path) -> None:
    """Put the recipe of the project's student on the run of its version."""
    with tempfile.TemporaryDirectory() as folder:
        write_recipe(root, Path(folder) / FOLDER)
        client.log_artifacts(run_id, str(Path(folder) / FOLDER), FOLDER)


def write_recipe(root: Path, folder: Path) -> None:
    """Write the recipe of the student in `root` to a new folder."""
    (folder / "plan").mkdir(parents=True)
    params = load_params(root / "params.yaml")
    values = params.model_dump(mode="json", by_alias=True)
    (folder / "params.yaml").write_text(dump_yaml(values), encoding="utf-8")
    for path in sorted((root / "artifacts" / "plan").glob("*.json")):
        if path.name != "run.json":
            shutil.copyfile(path, folder / "plan" / path.name)
    if (root / "dvc.lock").is_file():
        shutil.copyfile(root / "dvc.lock", folder / "dvc.lock")
    last = finished(root, "evaluate")
    write_json(
        folder / "recipe.json",
        {
            "data": {
                "source": params.prepare.source,
                "videos": params.prepare.videos if params.prepare.source == "folder" else None,
                "videos_md5": _locked_videos(root, params.prepare.videos),
                "version": provenance(root)["data"],
            },
            "provenance": provenance(root),
            "libraries": last["libraries"],
            "outputs": {stage: finished(root, stage)["outputs"] for stage in COMPARED},
        },
    )


def _locked_videos(root: Path, videos: str) -> str | None:
    """DVC's hash of the folder of videos, where it recorded one."""
    if not (root / "dvc.lock").is_file():
        return None
    stages: dict[str, Any] = read_yaml(root / "dvc.lock").get("stages", {})
    deps = stages.get("prepare", {}).get("deps", [])
    return next((dep.get("md5") for dep in deps if dep.get("path") == videos), None)
