"""Stage `prepare`: videos -> clips of one shape, with an account of every file."""

from __future__ import annotations

from typing import Any

from tasks.additions import SEEN, listed_additions, reuse_outputs, stamp_of_videos
from tasks.s3_folders import local_path
from tasks.stage import StageJob, StageOutcome
from vdmini_core.data.accounting import Prepared
from vdmini_core.data.additions import add_videos, prepared_so_far
from vdmini_core.data.clips import SPLITS, contact_sheet, load_clips
from vdmini_core.data.prompts import without_prompt

_SHEET = "contact_sheet.png"
_SHEET_CLIPS = 8


def run(job: StageJob) -> StageOutcome:
    """Make the clips of the three splits from videos or from the procedural generator; add what came later.

    Raises:
        DataError: when the videos give too few clips.
    """
    additions, stamp = listed_additions(job), stamp_of_videos(job)
    done = reuse_outputs(job, stamp)
    if done is None:
        prepared, done = _from_the_start(job), 0
    else:
        prepared = Prepared(*prepared_so_far(job.out), ["What was prepared before stays as it was."])
    for addition, folder in additions[done:]:
        note = add_videos(addition, folder, job.out, job.work, job.params.prepare, job.params.base.seed)
        prepared = Prepared(*prepared_so_far(job.out), [*prepared.notes, note])
    for note in prepared.notes:
        job.monitor.note(note)
    lacking = {split: without_prompt(job.out, split) for split in SPLITS}
    if any(lacking.values()) and sum(map(len, lacking.values())) < sum(prepared.clips.values()):
        # Where nobody wrote any, nobody misses them: a teacher that starts from prompts asks for them.
        names = dict.fromkeys(name for split in SPLITS for name in lacking[split])
        job.monitor.note(f"{len(names)} videos have no caption: {', '.join(map(repr, list(names)[:20]))}")
    (job.out / _SHEET).unlink(missing_ok=True)  # it may be the last output's file as well
    contact_sheet(load_clips(job.out, "test", limit=_SHEET_CLIPS).numpy(), job.out / _SHEET)
    metrics = _metrics(prepared) | {"clips_without_prompt": sum(map(len, lacking.values()))}
    job.monitor.metrics({name: float(value) for name, value in metrics.items()})
    return StageOutcome(
        metrics=metrics,
        charts=(_SHEET,),
        timing={SEEN: stamp},
        table=_table(prepared),
        title="Videos and clips",
    )


def _from_the_start(job: StageJob) -> Prepared:
    params, seed = job.params.prepare, job.params.base.seed
    if params.source == "folder":
        from vdmini_core.data.ingest import ingest_folder

        assert params.videos is not None  # params say so
        return ingest_folder(local_path(job.root, params.videos), job.out, job.work, params, seed)
    from vdmini_core.data.procedural_set import prepare_procedural

    return prepare_procedural(job.out, job.work, params, seed)


def _metrics(prepared: Prepared) -> dict[str, Any]:
    return {
        **{f"clips_{split}": prepared.clips[split] for split in SPLITS},
        "files_found": len(prepared.sources),
        **{f"files_{status}": prepared.count(status) for status in ("used", "quarantined", "skipped")},
    }


def _table(prepared: Prepared, shown: int = 40) -> list[dict[str, Any]]:
    """Clips per split, then the files: those that could not be used first, long lists cut."""
    rows = [{"what": f"{split} clips", "count": prepared.clips[split], "remark": ""} for split in SPLITS]
    for status in ("used", "quarantined", "skipped"):
        rows.append({"what": f"files {status}", "count": prepared.count(status), "remark": ""})
    quarantined = [record for record in prepared.sources if record["status"] == "quarantined"]
    for record in quarantined[:shown]:
        rows.append({"what": record["path"], "count": 0, "remark": record["reason"]})
    return rows
