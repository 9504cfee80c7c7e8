"""`make check`: params.yaml, the profiles and dvc.yaml say what the code can run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from tasks.project import profile_values
from tasks.stage import REPRODUCIBLE, STAGES
from tests import error_catalogue, model_matrix
from vdmini_core.errors import VDMiniError
from vdmini_core.params import Params, parse_params

ROOT = Path(__file__).resolve().parent.parent


def committed_params() -> Params:
    """The project's own `params.yaml`: as committed, for a run may have edited the file since."""
    shown = subprocess.run(
        ["git", "show", "HEAD:./params.yaml"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    text = shown.stdout if shown.returncode == 0 else (ROOT / "params.yaml").read_text()
    return parse_params(YAML(typ="safe").load(text), "params.yaml")


def problems() -> list[str]:
    found: list[str] = []
    try:
        if committed_params() != Params():
            found.append("params.yaml differs from the typed defaults (the embedded default is both)")
    except VDMiniError as error:
        found.append(str(error))
    for path in sorted((ROOT / "profiles").glob("*.yaml")):
        try:
            parse_params(profile_values(ROOT, path.stem), path.name)
        except VDMiniError as error:
            found.append(str(error))
    for page, maker in ((model_matrix, "tests.model_matrix"), (error_catalogue, "tests.error_catalogue")):
        if page.PAGE.read_text(encoding="utf-8") != page.written():
            found.append(f"docs/{page.PAGE.name} is behind the code: `python -m {maker}`")
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
    found += [f"dvc.yaml {name}: {dep} does not exist" for dep in missing]
    return found + [
        f"dvc.yaml {name}: runs {path}, which is no dependency" for path in _undeclared(name, stage)
    ]


# A change there cannot change an output: how errors read, how progress looks, what is re-exported.
NO_EFFECT = {"vdmini_core/errors.py", "vdmini_core/progress.py"}


def _undeclared(name: str, stage: dict) -> list[str]:
    """Source files that the stage imports, directly or not, and that `dvc.yaml` does not name."""
    seen: set[Path] = set()
    todo = [ROOT / "tasks" / f"{name}.py"]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += [found for module in _imports(path) if (found := _file_of(module))]
    files = {path.relative_to(ROOT).as_posix() for path in seen if path.name != "__init__.py"} - NO_EFFECT
    return sorted(f for f in files if not any(f == dep or f.startswith(f"{dep}/") for dep in stage["deps"]))


def _imports(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module for module in modules if module.split(".")[0] in ("vdmini_core", "tasks")}


def _file_of(module: str) -> Path | None:
    base = ROOT / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


if __name__ == "__main__":
    report = problems()
    print("\n".join(report) if report else "params.yaml, profiles and dvc.yaml fit the code")
    sys.exit(bool(report))
