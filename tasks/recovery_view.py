"""The driver's side of a recovery that shows itself: held-out clips, live figures, videos, what is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.recovery_watch import (
    HISTORY,
    INPUTS,
    SAMPLES,
    STARTS,
    export_student,
    student_folder,
    weights_file,
)
from tasks.stage import StageJob
from vdmini_core.artifacts import read_json, write_json
from vdmini_core.distillation.discriminator import BLIND
from vdmini_core.distillation.guards import History, film_name

if TYPE_CHECKING:
    from torch import nn

    from vdmini_core.distillation.depth import Depth


def prepare_held_out(job: StageJob) -> None:
    """The teacher's samples on validation clips, where students will be shown or measured; made once."""
    from tasks.models import load_teacher, prompts_of, sampling_dtype
    from vdmini_core.data.clips import load_clips
    from vdmini_core.profiling.sensitivity import prepare_inputs

    params, path = job.params.distill, job.work / INPUTS
    count = max(params.sample_clips, params.validate_clips if params.validate_every else 0)
    if not count or path.is_file():
        return
    clips = load_clips(job.artifact("prepare"), "validation", count)
    if len(clips) < count:
        job.monitor.note(f"distill looks at the {len(clips)} validation clips there are")
    pipeline, family, settings = load_teacher(job, dtype=sampling_dtype(job))
    prompts = prompts_of(job, family, "validation", len(clips))
    batch, seed = job.params.sampling.batch_size, job.params.base.seed
    prepare_inputs(pipeline, family, clips, settings, seed, batch, prompts=prompts).save(path)


class LiveView:
    """Tells the monitor what rank 0 has written since the last look."""

    def __init__(self, job: StageJob) -> None:
        self._job, self._shown = job, set[str]()
        self._history = History()
        (job.work / HISTORY).unlink(missing_ok=True)

    def forward(self, last: int) -> int:
        """Forward new videos, validations and rollbacks; `last` seen step, or where a rollback leads to."""
        monitor, work = self._job.monitor, self._job.work
        for film in sorted((work / SAMPLES).glob("step-*.mp4")):
            if film.name not in self._shown:
                monitor.picture(film)
                self._shown.add(film.name)
        if not (work / HISTORY).is_file():
            return last
        history = History(**read_json(work / HISTORY))
        measured = {row["step"] for row in self._history.validations}
        for row in history.validations:
            if row["step"] not in measured:
                values = {f"validation/{name}": value for name, value in row.items() if name != "step"}
                monitor.metrics(values, row["step"])
        known = len(self._history.rollbacks)
        for count, event in enumerate(history.rollbacks[known:], known + 1):
            monitor.metrics({"rollbacks": count, "rate_scale": event["rate_scale"]}, event["step"])
            last = min(last, event["back_to"])
            later = film_name(event["back_to"] + 1, 0)  # what was shown since is shown anew
            self._shown = {name for name in self._shown if name < later}
        if history.sight and not self._history.sight and max(history.sight) < BLIND:
            share = f"{100 * max(history.sight):.2g} %"
            monitor.note(
                f"the discriminator's features change by {share} when a clip is exchanged for noise: this "
                "teacher's encoder does not look at what it would judge, and L_MCA can teach little "
                "(lambda_mca=0 and lambda_adversarial=0 save its time)"
            )
        self._history = history
        return last


def note_restarts(job: StageJob) -> None:
    """Say how often workers were lost and came back, as their own record tells."""
    path = job.work / STARTS
    starts = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if len(starts) > 1:
        times = "time" if len(starts) == 2 else "times"
        steps = ", ".join(str(start["step"]) for start in starts[1:])
        job.monitor.note(
            f"distill lost workers and started them again {len(starts) - 1} {times}, from step {steps}"
        )


def bring_best_back(job: StageJob, checkpoint: Path, depth: Depth) -> None:
    """Write the best student so far as a pipeline directory again where only its checkpoint came here."""
    from safetensors.torch import load_file

    from tasks.recovery_checkpoints import BEST, step_of
    from tasks.recovery_shards import load_averaged
    from vdmini_core.models.denoiser import load_denoiser

    params = job.params.distill
    step = read_history(checkpoint).best(params.select_by) if params.select == "best" else None
    if step is None or student_folder(job.work, step).is_dir():
        return
    source = job.artifact("prune") / "student"
    if step == step_of(checkpoint):
        denoiser = load_denoiser(source)
        load_averaged(checkpoint, denoiser, params.model_copy(update={"depth": depth}))
        weights = denoiser.state_dict()
    else:
        weights = load_file(checkpoint / BEST)
    export_student(weights, source.resolve(), student_folder(job.work, step))


def load_kept(job: StageJob, history: History, denoiser: nn.Module) -> int:
    """Put the weights that `distill.select` keeps into `denoiser`, which holds the last ones; their step."""
    from safetensors.torch import load_file

    step = history.kept(job.params.distill)
    if step != history.saved:
        denoiser.load_state_dict(load_file(weights_file(student_folder(job.work, step))))
        job.monitor.note(f"distill keeps the student of step {step}, the best of those measured")
    return step


def write_evidence(job: StageJob, history: History, denoiser: nn.Module, step: int) -> None:
    """Videos, validations and rollbacks into the stage's outputs; the kept student is always shown."""
    from tasks.models import device_of, load_teacher, sampling_dtype
    from vdmini_core.distillation.validation import Examiner
    from vdmini_core.profiling.sensitivity import ProfileInputs

    if history.told():
        job.monitor.note(f"distill {history.told()}")
        write_json(job.out / "rollbacks.json", history.rollbacks)
    if history.validations:
        lines = "".join(json.dumps(row) + "\n" for row in history.validations)
        (job.out / "validation.jsonl").write_text(lines, encoding="utf-8")
    params, films = job.params.distill, job.work / SAMPLES
    if not params.sample_clips:
        return
    if not (films / film_name(step, 0)).is_file():
        pipeline, family, settings = load_teacher(job, "cpu", sampling_dtype(job))
        sampling = (job.params.sampling.batch_size, job.params.base.seed)
        inputs = ProfileInputs.load(job.work / INPUTS, settings, *sampling, "cpu")
        examiner = Examiner(pipeline, family, inputs, device_of(job))
        for film in examiner.write_films(_sampled(job, denoiser), params.sample_clips, films, step):
            job.monitor.picture(film)
    shutil.copytree(films, job.out / SAMPLES, ignore=shutil.ignore_patterns(".*"))


def _sampled(job: StageJob, denoiser: nn.Module) -> nn.Module:
    """The student in `sampling.precision`; rounded, it is a copy, for `denoiser` is what will be saved."""
    from tasks.models import in_half, sampling_dtype
    from vdmini_core.models.denoiser import load_denoiser

    if not in_half(job):
        return denoiser
    copy = load_denoiser(job.artifact("prune") / "student", dtype=sampling_dtype(job))
    copy.load_state_dict(denoiser.state_dict())
    return copy


def kept_metrics(history: History, step: int) -> dict[str, float]:
    """Which student was kept, how often the run was rolled back, and the kept student's measures."""
    measured = next((row for row in history.validations if row["step"] == step), {})
    found = {f"validation.{name}": value for name, value in measured.items() if name != "step"}
    sight = {"mca_sight": max(history.sight)} if history.sight else {}
    return {"kept_step": step, "rollbacks": len(history.rollbacks), **sight, **found}


def read_history(checkpoint: Path) -> History:
    """The history as of a checkpoint."""
    return History(**read_json(checkpoint / HISTORY))
