"""The frame every stage runs in: typed params in, whole outputs out, a manifest, one MLflow run.

Both drivers (`dvc repro` and the Prefect flow) and the command line come through `run_stage`, so that
they cannot disagree on a byte.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tasks.monitor import Monitor, QuietMonitor
from vdmini_core.artifacts import (
    MANIFEST,
    clear_leftovers,
    code_version,
    digest_of,
    read_json,
    sha256_file,
    staged_output,
    write_json,
    write_manifest,
)
from vdmini_core.errors import VDMiniError
from vdmini_core.params import Params, load_params, section_dict


@dataclass(frozen=True)
class StageSpec:
    """What a stage reads: earlier stages, and sections of `params.yaml`."""

    name: str
    after: tuple[str, ...]
    sections: tuple[str, ...]
    says: str


STAGES: dict[str, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec("prepare", (), ("base", "prepare"), "videos -> clips of one shape"),
        StageSpec(
            "teacher", ("prepare",), ("base", "prepare", "teacher", "sampling"), "the pretrained pipeline"
        ),
        StageSpec(
            "profile", ("prepare", "teacher"), ("base", "sampling", "profile"), "sensitivity of every unit"
        ),
        StageSpec("plan", ("prepare", "teacher", "profile"), ("base", "sampling", "plan"), "what to remove"),
        StageSpec("prune", ("teacher", "plan"), ("base", "prune"), "surgery"),
        StageSpec(
            "distill",
            ("prepare", "teacher", "prune"),
            ("base", "sampling", "distill"),
            "ICMD recovery on Ray",
        ),
        StageSpec(
            "evaluate",
            ("prepare", "teacher", "prune", "distill"),
            ("base", "prepare", "sampling", "evaluate"),
            "quality, motion, speed",
        ),
        StageSpec(
            "report",
            ("prepare", "teacher", "profile", "plan", "prune", "distill", "evaluate"),
            ("base", "report"),
            "the page people look at",
        ),
        StageSpec(
            "register",
            ("teacher", "plan", "distill", "evaluate"),
            ("base", "register"),
            "the student in the MLflow registry",
        ),
        StageSpec("promote", ("evaluate", "register"), ("base", "register", "promote"), "the gate"),
    )
}
# Parameters that say how a stage is carried out and not what it makes, as far as rounding goes: a run that a
# kill or a failure has ended goes on from its scratch with others of these.
CARRIED_OUT: dict[str, tuple[str, ...]] = {
    "distill": (
        *("workers", "min_workers", "max_failures", "rollbacks", "checkpoint_every"),
        *("accumulation", "activation_checkpointing", "encode_workers", "keep_latents"),
    )
}
# Stages whose latencies others read: without them they are run again rather than restored.
TIMED = ("profile", "evaluate")
# What DVC owns; register and promote act on the outside world and depend on the champion of the day.
REPRODUCIBLE = tuple(name for name in STAGES if name not in ("register", "promote"))


@dataclass(frozen=True)
class StageJob:
    """One stage's job.

    Attributes:
        root: project folder with `params.yaml`, `dvc.yaml` and `artifacts/`.
        params: all parameters.
        out: temporary directory for the outputs; it becomes `artifacts/<stage>` when the stage is done.
        work: scratch that survives a kill and is removed after success: checkpoints go here.
        monitor: live metrics and notes.
    """

    root: Path
    params: Params
    out: Path
    work: Path
    monitor: Monitor

    def artifact(self, stage: str) -> Path:
        """Finished outputs of an earlier stage."""
        return self.root / "artifacts" / stage

    def worker_threads(self, workers: int) -> int:
        """Torch threads of each of `workers` processes that share what the stage may use."""
        return max(1, self.params.base.threads // workers)

    def path(self, text: str) -> Path:
        """A path of `params.yaml`, relative ones against the project folder."""
        path = Path(text).expanduser()
        return path if path.is_absolute() else self.root / path


@dataclass(frozen=True)
class StageOutcome:
    """What a stage hands to its frame besides files.

    Attributes:
        metrics: for the manifest and MLflow; must not depend on time or host.
        charts: files relative to `out`, shown on the run pages.
        timing: what varies from run to run; written to `timing.json`.
        table: rows to show.
        title: what the table shows.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    charts: tuple[str, ...] = ()
    timing: dict[str, Any] | None = None
    table: list[dict[str, Any]] | None = None
    title: str = ""


@dataclass(frozen=True)
class StageResult:
    """A finished stage as its caller sees it."""

    stage: str
    out: Path
    outcome: StageOutcome
    notes: tuple[str, ...]
    seconds: float


class StageTracker(Protocol):
    """Opens the run page of a stage (MLflow in production, nothing in unit tests)."""

    def __call__(self, stage: str, params: dict[str, Any]) -> Any:
        """A context manager yielding an object with `monitor`, `describe()` and `finish(out, outcome)`."""
        ...


def upstream_digests(root: Path, stage: str) -> dict[str, str]:
    """Manifest digest of every stage that `stage` reads.

    Raises:
        VDMiniError: naming the first stage that has not run.
    """
    digests = {}
    for earlier in STAGES[stage].after:
        manifest = root / "artifacts" / earlier / MANIFEST
        if not manifest.is_file():
            raise VDMiniError(
                f"`{stage}` needs the outputs of `{earlier}`, which are not there",
                expected=f"artifacts/{earlier}/{MANIFEST}",
                found="nothing",
                fix="`vdmini run` makes what is missing, in order",
            )
        digests[earlier] = sha256_file(manifest)
    return digests


def stage_params(params: Params, stage: str) -> dict[str, Any]:
    """The sections a stage reads, as plain data."""
    return {name: section_dict(params, name) for name in STAGES[stage].sections}


def run_stage(
    stage: str, root: Path, tracker: StageTracker | None = None, *, keep_work: bool = False
) -> StageResult:
    """Run one stage in `root` and leave its outputs whole in `artifacts/<stage>`.

    Args:
        stage: one of `STAGES`.
        root: project folder.
        tracker: opens the run page; None outside MLflow.
        keep_work: leave the scratch folder: the caller clears it once the result is recorded, so that a
            kill in between costs nothing.

    Raises:
        VDMiniError: for every mistake the user can mend; earlier outputs stay as they were.
    """
    root = root.resolve()
    with stage_lock(root):
        result = _run_locked(stage, root, tracker)
        if not keep_work:
            clear_work(root, stage)
    return result


def clear_work(root: Path, stage: str) -> None:
    """Remove a finished stage's scratch."""
    shutil.rmtree(root / ".vdmini" / "work" / stage, ignore_errors=True)


def clear_finished(root: Path, stage: str) -> None:
    """Remove what a kill has left beside a stage that is up to date: its scratch, and halves of outputs.

    Scratch of other parameters stays: a run with them goes on from it.
    """
    clear_leftovers(root / "artifacts" / stage)
    sections = stage_params(load_params(root / "params.yaml"), stage)
    with suppress(VDMiniError):  # what it was made from is not there: so no run can go on from its scratch
        work = _work_folder(root, stage, upstream_digests(root, stage), sections)
        shutil.rmtree(work, ignore_errors=True)
    with suppress(OSError):  # it is not there, or holds the scratch of others
        (root / ".vdmini" / "work" / stage).rmdir()


def _work_folder(root: Path, stage: str, inputs: dict[str, str], sections: dict[str, Any]) -> Path:
    made_by = dict(sections)
    if stage in CARRIED_OUT:
        own = sections[stage]
        made_by[stage] = {name: own[name] for name in own if name not in CARRIED_OUT[stage]}
    key = digest_of({"stage": stage, "inputs": inputs, "params": made_by, "code": code_version()})
    return root / ".vdmini" / "work" / stage / key[:16]


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """What libraries put into the temporary folder lies in the scratch, and goes with it after a kill."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


_held: set[Path] = set()


@contextmanager
def stage_lock(root: Path) -> Iterator[None]:
    """One stage at a time in one folder, whichever driver runs it; a second one waits and says so.

    The lock is the kernel's (`flock`): it dies with its process, so a kill leaves nothing to clean up.
    """
    if root in _held:
        yield
        return
    folder = root / ".vdmini"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stage.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write("another run is at work in this project: waiting for it\n")
            fcntl.flock(handle, fcntl.LOCK_EX)
        _held.add(root)
        try:
            yield
        finally:
            _held.discard(root)


def _run_locked(stage: str, root: Path, tracker: StageTracker | None) -> StageResult:
    params = load_params(root / "params.yaml")
    inputs, sections = upstream_digests(root, stage), stage_params(params, stage)
    work = _work_folder(root, stage, inputs, sections)
    work.mkdir(parents=True, exist_ok=True)
    run = importlib.import_module(f"tasks.{stage}").run
    prepare_process(params)
    started = time.perf_counter()
    with _tracked(tracker, stage, sections) as page:
        with staged_output(root / "artifacts" / stage) as out:
            job = StageJob(root, params, out, work, page.monitor)
            outcome: StageOutcome = run(job)
            seconds = time.perf_counter() - started
            write_json(out / "run.json", _run_facts(stage, seconds, page.describe()))
            if outcome.timing is not None:
                write_json(out / "timing.json", outcome.timing)
            write_manifest(
                out,
                stage=stage,
                inputs=inputs,
                params=sections,
                seed=params.base.seed,
                metrics=outcome.metrics,
            )
        keep_timing(root, stage)
        with temporary_files_in(work):  # MLflow writes a text there before it sends it
            page.finish(root / "artifacts" / stage, outcome)
    return StageResult(stage, root / "artifacts" / stage, outcome, tuple(page.notes), seconds)


def keep_timing(root: Path, stage: str) -> None:
    """Keep a copy of `timing.json`, which DVC does not: outputs that come back from its cache lack it."""
    out = root / "artifacts" / stage
    if (out / "timing.json").is_file():
        kept = _kept_timing(root, stage)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / "timing.json", kept)


def restore_timing(root: Path, stage: str) -> bool:
    """Put the kept `timing.json` back; False where a timed stage has none."""
    kept, target = _kept_timing(root, stage), root / "artifacts" / stage / "timing.json"
    if kept.is_file():
        shutil.copyfile(kept, target)
    return target.is_file() or stage not in TIMED


def _kept_timing(root: Path, stage: str) -> Path:
    digest = sha256_file(root / "artifacts" / stage / MANIFEST)
    return root / ".vdmini" / "timing" / f"{stage}-{digest[:16]}.json"


def prepare_process(params: Params) -> None:
    """Seed every generator and fix the number of threads: bytes depend on both."""
    import numpy as np
    import torch

    random.seed(params.base.seed)
    np.random.seed(params.base.seed)
    torch.manual_seed(params.base.seed)
    torch.set_num_threads(params.base.threads)


def _run_facts(stage: str, seconds: float, page: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": stage,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "host": platform.node(),
        "driver": os.environ.get("VDMINI_DRIVER", "dvc" if "DVC_STAGE" in os.environ else "cli"),
        **page,
    }


class _NoPage:
    def __init__(self) -> None:
        self.monitor = QuietMonitor()

    @property
    def notes(self) -> list[str]:
        return self.monitor.notes

    def describe(self) -> dict[str, Any]:
        return {}

    def finish(self, out: Path, outcome: StageOutcome) -> None:
        """Nothing to finish without a tracker."""


@contextmanager
def _tracked(tracker: StageTracker | None, stage: str, sections: dict[str, Any]) -> Iterator[Any]:
    if tracker is None:
        yield _NoPage()
        return
    with tracker(stage, sections) as page:
        yield page


def finished(root: Path, stage: str) -> dict[str, Any]:
    """The manifest of a finished stage."""
    manifest: dict[str, Any] = read_json(root / "artifacts" / stage / MANIFEST)
    return manifest


StageRunner = Callable[[str, Path], StageResult]
