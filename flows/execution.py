"""One execution of the pipeline in one project folder: who may run, what is stale, where it is recorded."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flows.notices import promoted
from tasks import promote as promote_stage
from tasks import register as register_stage
from tasks.project import refresh_code_mark
from tasks.s3_folders import demand_objects
from tasks.stage import (
    REPRODUCIBLE,
    TIMED,
    StageResult,
    clear_finished,
    clear_work,
    finished,
    restore_timing,
    run_stage,
    stage_lock,
    stage_params,
)
from tasks.tracking import MLflowTracker
from tasks.versioning import ProjectBusy, Versions
from vdmini_core.errors import VDMiniError
from vdmini_core.params import Params, TeacherParams, load_params

Fate = Literal["ran", "restored", "up to date"]
BUSY_S, BUSY_LOOK_S = 24 * 3600.0, 2.0


@dataclass(frozen=True)
class StageReport:
    """What became of a stage in this execution."""

    stage: str
    fate: Fate
    seconds: float
    result: StageResult | None = None


@dataclass
class Execution:
    """The state a flow hands from stage to stage; the folder holds everything that lasts.

    Attributes:
        root: project folder.
        force: run also what is up to date.
        listen: told (stage, event) as stages start and end.
        holding: gives what a stage that really runs holds meanwhile.
        reports: what became of the stages so far.
        run_name: of the MLflow parent run.
    """

    root: Path
    force: bool = False
    listen: Callable[[str, str], None] = lambda stage, event: None
    holding: Callable[[str, Params], AbstractContextManager[None]] = lambda stage, params: nullcontext()
    reports: list[StageReport] = field(default_factory=list)
    run_name: str = "vdmini"
    _told_busy: bool = False

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self.params: Params = load_params(self.root / "params.yaml")
        check_outside_inputs(self.root, self.params)
        refresh_code_mark(self.root)
        self.versions = Versions(self.root)
        self._tracker: MLflowTracker | None = None

    @property
    def tracker(self) -> MLflowTracker:
        """MLflow, opened when the first stage needs it."""
        if self._tracker is None:
            self._tracker = MLflowTracker(self.root, self.run_name, keep_open=True)
        return self._tracker

    def stage(self, name: str) -> StageReport:
        """Bring one stage up to date and say what it took."""
        self.listen(name, "start")
        started = time.perf_counter()
        fate, result = self._in_turn(name)
        if name == "promote" and result is not None:
            promoted(self.params, result)
        report = StageReport(name, fate, time.perf_counter() - started, result)
        self.reports.append(report)
        self.listen(name, fate)
        return report

    def _in_turn(self, name: str) -> tuple[Fate, StageResult | None]:
        """Alone in the project: with other runs by our own lock, with `dvc repro` by waiting for it.

        DVC holds a stage's files while its command waits for our lock, so ours is given back meanwhile.
        What the other one has made by then is up to date.

        Raises:
            VDMiniError: where DVC is busy for longer than `BUSY_S`.
        """
        until = time.monotonic() + BUSY_S
        while True:
            try:
                with stage_lock(self.root):
                    return self._bring_up_to_date(name)
            except ProjectBusy as busy:
                if time.monotonic() > until:
                    raise
                if not self._told_busy:
                    sys.stderr.write(f"{busy.problem}: waiting for it\n")
                    self._told_busy = True
            time.sleep(BUSY_LOOK_S)

    def _bring_up_to_date(self, name: str) -> tuple[Fate, StageResult | None]:
        if not self.force and self._current(name) and self._has_timing(name):
            clear_finished(self.root, name)
            return "up to date", None
        if name in REPRODUCIBLE and not self.force and self._restore(name):
            clear_finished(self.root, name)
            return "restored", None
        ours = self.versions.holding(name) if name in REPRODUCIBLE else nullcontext()
        with ours, self.holding(name, self.params):
            result = run_stage(name, self.root, self.tracker, keep_work=True)
        if name in REPRODUCIBLE:
            self._refuse_changed_params(name)
            self.versions.record(name)
        clear_work(self.root, name)
        return "ran", result

    def _has_timing(self, name: str) -> bool:
        # `dvc repro` may have brought the outputs back from its cache, which lacks it.
        there = (self.root / "artifacts" / name / "timing.json").is_file()
        return there or name not in TIMED or restore_timing(self.root, name)

    def _restore(self, name: str) -> bool:
        return self.versions.restore(name) and restore_timing(self.root, name)

    def _refuse_changed_params(self, name: str) -> None:
        """DVC would record the file as it is now: it must say what the stage ran with."""
        used = finished(self.root, name)["params"]
        if stage_params(load_params(self.root / "params.yaml"), name) != used:
            raise VDMiniError(
                f"params.yaml was changed while `{name}` ran: its result is not recorded",
                expected="the parameters it started with",
                fix="run again: what depends on the change is made anew",
            )

    def _current(self, name: str) -> bool:
        rules = self.params.register_
        if name == "register":
            return register_stage.is_current(self.root, rules.name, rules.alias)
        if name == "promote":
            return promote_stage.is_current(self.root)
        return self.versions.is_current(name)

    @contextmanager
    def parent_run(self, name: str) -> Iterator[None]:
        """One MLflow parent run around the stages, opened when the first stage really runs."""
        self.run_name = name
        ok = False
        try:
            yield
            ok = True
        finally:
            if self._tracker is not None:
                self._tracker.finish(ok)
            elif any(report.stage == "register" for report in self.reports):
                # Nothing had to run, so no run was opened, which closes those of killed processes.
                MLflowTracker(self.root).close_abandoned()


def check_outside_inputs(root: Path, params: Params) -> None:
    """Refuse folders that are not there before any work starts.

    Raises:
        VDMiniError: naming the parameter, the folder and the way out.
    """
    for key, value, flag in (
        ("prepare.videos", params.prepare.videos, "--videos DIR"),
        ("teacher.path", params.teacher.path, "--set teacher.path=DIR"),
        ("teacher.start", params.teacher.start, "--set teacher.start=DIR"),
        ("evaluate.vbench.results", params.evaluate.vbench.results, "--set evaluate.vbench.results=DIR"),
    ):
        if value.startswith("s3://"):
            demand_objects(value)
            continue
        folder = root / Path(value).expanduser()
        if key == "prepare.videos" and folder.is_dir():
            check_hashable(folder, root)
        if not folder.is_dir() and (key, value) != ("teacher.start", TeacherParams().start):
            raise VDMiniError(
                f"`{key}` names a folder that is not there",
                found=str(folder),
                fix=f"correct it with `{flag}`",
            )


def check_hashable(folder: Path, root: Path) -> None:
    """Refuse what DVC, which hashes the whole folder to see what is new, would stumble over or hang on.

    Raises:
        VDMiniError: naming the entries.
    """
    if root.is_relative_to(folder.resolve()):
        raise VDMiniError(
            "the folder of videos contains this project",
            found=str(folder),
            fix="keep videos in a folder of their own",
        )
    odd = []
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        plain = stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and path.is_file())
        if not plain or os.fsencode(path.name).decode("utf-8", "replace").find("\ufffd") >= 0:
            odd.append(str(path.relative_to(folder)).encode("utf-8", "replace").decode())
    if odd:
        raise VDMiniError(
            "the folder of videos holds entries that cannot be versioned",
            expected="files and folders with UTF-8 names; no links to folders or to nothing, no pipes",
            found=", ".join(sorted(odd)[:10]) + (f" and {len(odd) - 10} more" if len(odd) > 10 else ""),
            fix="remove or rename them, or copy what links point at into the folder",
        )
