"""rescore: measure a registered version again on clips it has never seen, and compare with what was recorded.

The clips are drawn by a seed of the week, or are videos that came since; the student is the one in the
registry, the teacher and the pruned student are made as `reproduce` makes them. All models are sampled and
measured by stage `evaluate`, in a project of its own below `.vdmini/rescore/`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from pydantic import TypeAdapter, ValidationError

from tasks.foreign_versions import demand_own_source, demand_own_student
from tasks.fresh_data import new_videos, seed_of, this_week
from tasks.gate import row
from tasks.project import change_params
from tasks.registry import EVIDENCE_TAG, PROVENANCE_TAGS, candidate_of
from tasks.registry_lock import turn_of
from tasks.reproduce import fetch_recipe, find_version, lay_out_version
from tasks.s3_folders import local_path
from tasks.stage import finished, run_stage, stage_lock, stage_params
from tasks.tracking import MLflowTracker, connect, fetch_model
from vdmini_core.artifacts import read_json, sha256_file, staged_output, write_manifest
from vdmini_core.data.splits import MINIMUM
from vdmini_core.errors import DataError, ModelError, VDMiniError
from vdmini_core.metrics.passport import Passport, require_comparable
from vdmini_core.params import is_number, load_params

TAG = "vdmini.rescored."  # and the week
RUN_NAME = "evaluate-registered"
MEASURE = "fvd_real"
Verdict = Literal["within", "better", "fell"]


@dataclass(frozen=True)
class Rescore:
    """What came of it.

    Attributes:
        model, version, week: which one, and by which week's clips.
        fvd_real, low, high: distance to the fresh clips and its interval, None for fewer than 3 clips.
        recorded, recorded_low, recorded_high: what the version was registered with.
        teacher: distance of the teacher to the same clips.
        clips: how many.
        verdict: `fell` where the distance lies above the recorded interval.
        run_id: MLflow run with all figures.
    """

    model: str
    version: str
    week: str
    fvd_real: float
    low: float | None
    high: float | None
    recorded: float
    recorded_low: float | None
    recorded_high: float | None
    teacher: float | None
    clips: int
    verdict: Verdict
    run_id: str = ""

    @property
    def text(self) -> str:
        """One sentence for people."""
        then = _interval(self.recorded, self.recorded_low, self.recorded_high)
        now = _interval(self.fvd_real, self.low, self.high)
        found = {"within": "as recorded", "better": "better than recorded", "fell": "worse than recorded"}
        return (
            f"{self.model} version {self.version}, {self.week}: {found[self.verdict]}: {now} against {then}"
        )


def _interval(value: float, low: float | None, high: float | None) -> str:
    return f"{MEASURE} {value:.4g}" + ("" if low is None or high is None else f" ({low:.4g} to {high:.4g})")


def judge(fresh: float, recorded: float, low: float | None, high: float | None, tolerance: float) -> Verdict:
    """Where a distance on fresh clips stands to the recorded one; smaller is better.

    Args:
        fresh, recorded: the distances.
        low, high: interval of the recorded one; None where it has none.
        tolerance: relative difference that counts as equal then.
    """
    floor = recorded / (1 + tolerance) if low is None else low
    ceiling = recorded * (1 + tolerance) if high is None else high
    if fresh > ceiling:
        return "fell"
    return "better" if fresh < floor else "within"


def rescore(
    root: Path,
    uri: str,
    *,
    week: str | None = None,
    videos: Path | None = None,
    force: bool = False,
    tell: Callable[[Rescore], None] = lambda result: None,
) -> Rescore:
    """Measure a registered version on fresh clips and keep the result with it.

    A week's result is made once: another call, or one at the same time, gets what is there.

    Args:
        root: project folder: its tracking store is asked, its relative paths are meant.
        uri: `models:/NAME@alias` or `models:/NAME/3`.
        week: ISO week whose number is the seed of procedural clips; this week where None.
        videos: where its videos are now, for versions made from a folder.
        force: measure again what was measured.
        tell: called with a result that is new, and not with one that was there.

    Raises:
        DataError: where there is nothing new, or too little to be compared.
        VDMiniError: for an unknown version, one without a recipe, or another teacher.
    """
    root, week = root.resolve(), week or this_week()
    seed, client = seed_of(week), connect(root)
    home = root / ".vdmini" / "rescore"
    with stage_lock(home):
        version = find_version(client, uri)
        if not force and (told := _told(version.tags.get(TAG + week))) is not None:
            return told
        folder = home / f"{version.name}-{version.version}-{week}"
        _lay_out(root, client, folder, version, videos)
        _prepare(folder, seed)
        _bring_teacher(root, folder, version)
        run_stage("prune", folder)
        _bring_student(root, folder, version)
        run_stage("evaluate", folder)
        measured = _compare(folder, version, week)
        kept = _keep(root, folder, version, measured)
        result = _settle(client, version, kept, force)
        shutil.rmtree(folder)
    if result is kept:
        tell(result)
    return result


def _settle(client: MlflowClient, version: ModelVersion, mine: Rescore, force: bool) -> Rescore:
    """The week's one result: mine, or that of another machine (the stage's lock is this one's), the first.

    Mine keeps its run on MLflow, marked as second, whatever it says: figures are not thrown away.
    """
    name, number = str(version.name), str(version.version)
    with turn_of(client, name) as turn:
        newest = find_version(client, f"models:/{name}/{number}")
        others = None if force else _told(newest.tags.get(TAG + mine.week))
        turn.check()
        if others is not None:
            client.set_tag(mine.run_id, "vdmini.second_to", others.run_id)
            return others
        client.set_model_version_tag(name, number, TAG + mine.week, json.dumps(asdict(mine)))
    return mine


def _told(tag: str | None) -> Rescore | None:
    """A week's result; None where there is none, or a tag that this module did not write."""
    try:
        return TypeAdapter(Rescore).validate_json(tag or "", strict=True)
    except ValidationError:
        return None


def _lay_out(
    root: Path, client: MlflowClient, folder: Path, version: ModelVersion, videos: Path | None
) -> None:
    """A project like the version's, but for its clips."""
    recipe = fetch_recipe(root, folder, version)
    if recipe["data"]["source"] == "folder":
        place = videos or local_path(root, recipe["data"]["videos"])
        if not place.is_dir():
            raise DataError(
                "the videos of this version are not there", found=str(place), fix="`--videos DIR`"
            )
        videos = new_videos(root, client, recipe, place.resolve(), folder / "fresh")
    lay_out_version(root, folder, version, videos)
    params = load_params(folder / "params.yaml")
    # What another tool found out about the clips of then is nothing of this.
    nothing = json.dumps(str(folder / "vbench"))
    changes = ["evaluate.vbench.suite=", f"evaluate.vbench.results={nothing}"]
    changes.append(f"prepare.clips.train={MINIMUM['train']}")
    wanted = max(params.evaluate.clips, params.profile.clips)
    changes += [f"prepare.clips.{split}={wanted}" for split in ("validation", "test")]
    change_params(folder, assignments=tuple(changes))


def _prepare(folder: Path, seed: int) -> None:
    """The clips, procedural ones by `seed`; no other stage sees it, for some teachers are made by theirs."""
    params = load_params(folder / "params.yaml")
    if params.prepare.source == "procedural":
        change_params(folder, assignments=(f"base.seed={seed}",))
    run_stage("prepare", folder)
    change_params(folder, assignments=(f"base.seed={params.base.seed}",))


def _bring_teacher(root: Path, folder: Path, version: ModelVersion) -> None:
    """The version's teacher: made by its stage, or the project's own where it was trained there.

    Raises:
        VDMiniError: where that is another one.
    """
    source = load_params(folder / "params.yaml").teacher.source
    if source == "train":  # on other clips it would become another one
        own = root / "artifacts" / "teacher"
        if own.is_dir():
            (folder / "artifacts" / "teacher").symlink_to(own, target_is_directory=True)
    else:
        run_stage("teacher", folder)
    wanted = version.tags.get(PROVENANCE_TAGS["teacher"])
    there = (folder / "artifacts" / "teacher" / "manifest.json").is_file()
    found = finished(folder, "teacher")["metrics"].get("fingerprint") if there else "none"
    if found != wanted:
        raise VDMiniError(
            f"the teacher of version {version.version} is not here",
            expected=f"fingerprint {wanted}",
            found=str(found),
            fix="run it in the project that made the version, with its teacher in place",
        )


def _bring_student(root: Path, folder: Path, version: ModelVersion) -> None:
    """The registered files, in the place of those that `distill` would make."""
    fetched = folder / "registered"
    shutil.rmtree(fetched, ignore_errors=True)
    back = fetch_model(root, demand_own_source(version), fetched)
    try:
        student = demand_own_student(back, version)
    except ModelError:
        shutil.rmtree(fetched)
        raise
    params = load_params(folder / "params.yaml")
    with staged_output(folder / "artifacts" / "distill") as out:
        shutil.move(student, out / "student")
        sections = stage_params(params, "distill")
        write_manifest(out, stage="distill", inputs={}, params=sections, seed=params.base.seed, metrics={})


def _compare(folder: Path, version: ModelVersion, week: str) -> Rescore:
    """Hold the fresh figures against the recorded ones.

    Raises:
        DataError: where they were measured differently: other passports but for the clips themselves; and
            for a version without a distance to hold them against.
    """
    then = candidate_of(version)
    theirs = row(then.metrics, "recovered")
    if not is_number(theirs.get(MEASURE)):
        raise DataError(
            f"version {version.version} of `{version.name}` has no recorded {MEASURE}",
            expected=f"a number in its tag {EVIDENCE_TAG}",
            found=repr(theirs.get(MEASURE))[:80],
            fix="`vdmini register --force` in the project that made it, or look who changed its tags",
        )
    now = read_json(folder / "artifacts" / "evaluate" / "metrics.json")
    old = Passport.from_json(then.passport.get("fvd"), "the version's passport")
    new = Passport.from_json(now["passport"]["fvd"])
    # Other clips are the point; all else must be equal.
    alike = replace(new, real=replace(new.real, data=old.real.data))
    require_comparable(alike, old, names=("fresh clips", "the recorded score"))
    if new.real.data == old.real.data:
        raise DataError("these clips are those it was registered with", expected="fresh ones", found=week)
    ours = now["recovered"]
    low, high = _bounds(theirs)
    rules = load_params(folder / "params.yaml").promote
    return Rescore(
        model=str(version.name),
        version=str(version.version),
        week=week,
        fvd_real=ours[MEASURE],
        low=_bounds(ours)[0],
        high=_bounds(ours)[1],
        recorded=theirs[MEASURE],
        recorded_low=low,
        recorded_high=high,
        teacher=now["teacher"].get(MEASURE),
        clips=now["clips"],
        verdict=judge(ours[MEASURE], theirs[MEASURE], low, high, rules.max_fvd_regression),
    )


def _bounds(figures: Mapping[str, Any]) -> tuple[float | None, float | None]:
    low, high = figures.get(f"{MEASURE}_low"), figures.get(f"{MEASURE}_high")
    return (low, high) if is_number(low) and is_number(high) else (None, None)


def _keep(root: Path, folder: Path, version: ModelVersion, result: Rescore) -> Rescore:
    """Put the figures on a run of their own and on the version's logged model."""
    tracker, out = MLflowTracker(root, RUN_NAME), folder / "artifacts" / "evaluate"
    client, name, number = tracker.client, str(version.name), str(version.version)
    told = {"vdmini.model": name, "vdmini.model_version": number, "vdmini.week": result.week}
    run_id = tracker.open_parent(RUN_NAME, told | {"vdmini.verdict": result.verdict})
    ok = False
    try:
        digest = sha256_file(folder / "artifacts" / "prepare" / "clips-test.safetensors")
        client.log_batch(run_id, params=[Param("week", result.week), Param("clips_sha256", digest)])
        metrics = finished(folder, "evaluate")["metrics"]
        numbers = {key: float(value) for key, value in metrics.items() if is_number(value)}
        client.log_batch(run_id, metrics=[Metric(key, value, _now(), 0) for key, value in numbers.items()])
        kind, _, model_id = str(version.source).partition(":/")
        if kind == "models":  # as `register` writes it; a version in a database names no `model_id` itself
            client.log_metric(run_id, f"fresh_{MEASURE}", result.fvd_real, model_id=model_id)
        client.log_artifact(run_id, str(out / "metrics.json"))
        if (out / "videos").is_dir():
            client.log_artifacts(run_id, str(out / "videos"), "videos")
        result = replace(result, run_id=run_id)
        ok = True
    finally:
        tracker.close(run_id, ok)
    return result


def _now() -> int:
    return int(time.time() * 1000)
