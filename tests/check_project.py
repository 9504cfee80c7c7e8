"""`make check`: params.yaml, the profiles and dvc.yaml say what the code can run."""

from __future__ import annotations

import sys
from pathlib import Path

from ruamel.yaml import YAML

from tasks.project import profile_values
from tasks.stage import REPRODUCIBLE, STAGES
from vdmini_core.errors import VDMiniError
from vdmini_core.params import Params, load_params, parse_params

ROOT = Path(__file__).resolve().parent.parent


def problems() -> list[str]:
    found: list[str] = []
    try:
        if load_params(ROOT / "params.yaml") != Params():
            found.append("params.yaml differs from the typed defaults (the embedded default is both)")
    except VDMiniError as error:
        found.append(str(error))
    for path in sorted((ROOT / "profiles").glob("*.yaml")):
        try:
            parse_params(profile_values(ROOT, path.stem), path.name)
        except VDMiniError as error:
            found.append(str(error))
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    if tuple(stages) != REPRODUCIBLE:
        found.append(f"dvc.yaml has stages {tuple(stages)}, the code has {REPRODUCIBLE}")
    for name, stage in stages.items():
        found += _stage_problems(name, stage)
    return found


def _stage_problems(name: str, stage: dict) -> list[str]:
    found = []
    spec = STAGES[name]
    if tuple(stage["params"]) != spec.sections:
        found.append(f"dvc.yaml {name}: params {stage['params']}, the code reads {spec.sections}")
    upstream = tuple(dep.split("/")[1] for dep in stage["deps"] if dep.startswith("artifacts/"))
    if upstream != spec.after:
        found.append(f"dvc.yaml {name}: depends on {upstream}, the code reads {spec.after}")
    if stage["cmd"] != f"vdmini {name}" or stage["outs"] != [f"artifacts/{name}"]:
        found.append(f"dvc.yaml {name}: one word everywhere: `vdmini {name}`, artifacts/{name}")
    missing = [
        dep for dep in stage["deps"] if not dep.startswith(("artifacts/", "$")) and not (ROOT / dep).exists()
    ]
    return found + [f"dvc.yaml {name}: {dep} does not exist" for dep in missing]


if __name__ == "__main__":
    report = problems()
    print("\n".join(report) if report else "params.yaml, profiles and dvc.yaml fit the code")
    sys.exit(bool(report))
