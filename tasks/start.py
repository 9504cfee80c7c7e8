"""Part of `teacher`: an earlier student that is cut further.

`profile`, `plan` and `prune` see it in the teacher's place; recovery and evaluation keep the teacher.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.models import START
from tasks.s3_folders import local_path
from tasks.stage import StageJob
from vdmini_core.artifacts import read_json
from vdmini_core.errors import ModelError
from vdmini_core.foreign import demand_inside

if TYPE_CHECKING:
    from torch import nn

KINDS = (".json", ".safetensors")  # nothing else comes along
FIX = "name the folder `artifacts/distill/student` of a run with this teacher"


def keep_start(job: StageJob, teacher: nn.Module) -> dict[str, int]:
    """Copy denoiser and plan of the student in `teacher.start`, where there is one.

    Returns:
        Metric `start_params`; nothing where the teacher itself is cut.

    Raises:
        ModelError: for a folder without a student, a student of another teacher, or one that was changed.
    """
    from vdmini_core.models.denoiser import COMPONENTS, load_denoiser
    from vdmini_core.models.registry import architecture, fingerprint

    source, out = local_path(job.root, job.params.teacher.start), job.out / START
    if _is_empty(source):
        return {}
    if not (source / "plan.json").is_file():
        raise ModelError("`teacher.start` holds no student", expected="plan.json", found=str(source), fix=FIX)
    plan = read_json(source / "plan.json")
    if plan.get("teacher_fingerprint") not in (fingerprint(teacher), architecture(teacher)):
        raise ModelError(
            "the student in `teacher.start` is of another teacher",
            expected=f"fingerprint {fingerprint(teacher)}",
            found=str(plan.get("teacher_fingerprint")),
            fix=FIX,
        )
    parameters = sum(parameter.numel() for parameter in load_denoiser(source).parameters())
    if parameters != plan.get("expected_params"):
        raise ModelError(
            "the student in `teacher.start` is not the one of its plan",
            expected=f"{plan.get('expected_params')} parameters",
            found=str(parameters),
            fix=FIX,
        )
    kept = [Path(name) for name in COMPONENTS if (source / name).is_dir()]
    files = (path for name in kept for path in (source / name).rglob("*") if path.is_file())
    found = [path for path in files if path.suffix in KINDS]
    demand_inside(source, [*kept, Path("plan.json"), *(path.relative_to(source) for path in found)])
    for path in found:
        target = out / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copyfile(source / "plan.json", out / "plan.json")
    return {"start_params": parameters}


def _is_empty(folder: Path) -> bool:
    """Whether nobody has put anything there; projects of earlier versions lack the folder."""
    return not folder.is_dir() or {path.name for path in folder.iterdir()} <= {"README.md"}
