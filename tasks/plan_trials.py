"""Part of `plan`: cuts that are really tried, and the frontier they draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from tasks.stage import StageJob
from vdmini_core.artifacts import write_json
from vdmini_core.errors import PlanError
from vdmini_core.models.base import Family, SamplingSettings, Unit
from vdmini_core.progress import track
from vdmini_core.pruning.plan import Plan

MOST_CLIPS = 16  # paired errors need few
FRONTIER = "frontier.json"
CHARTS = ("frontier.svg", "frontier.png")


class Trials:
    """Students of removals, each tried once on the profile's own clips and noise."""

    def __init__(
        self, job: StageJob, pipeline: Any, family: Family, settings: SamplingSettings, clips: int
    ) -> None:
        self.job, self.pipeline, self.family, self.settings = job, pipeline, family, settings
        self.clips = min(clips, MOST_CLIPS)
        self.found: dict[tuple[str, ...], dict[str, float]] = {}
        self._inputs: Any = None
        self._sampler: Any = None

    @property
    def denoiser(self) -> nn.Module:
        """The teacher's."""
        denoiser: nn.Module = getattr(self.pipeline, self.family.denoiser_name)
        return denoiser

    def canonical(self, removed: Sequence[str]) -> tuple[str, ...]:
        """The one spelling of a removal."""
        return self.family.outline(self.denoiser, removed).removed

    def damage(self, removed: Sequence[str]) -> float:
        """Mean squared latent error of the student against the teacher's samples."""
        from vdmini_core.profiling.sensitivity import paired_damage, sample_all

        cut = self.canonical(removed)
        if cut not in self.found:
            inputs, batch_size = self._shared_inputs(), self.job.params.sampling.batch_size
            noise, conditions = inputs.noise, inputs.conditions
            pipeline = self._sampled()
            student = self.family.prune(getattr(pipeline, self.family.denoiser_name), cut)
            latents = sample_all(pipeline, self.family, student, noise, conditions, self.settings, batch_size)
            self.found[cut] = paired_damage(latents, inputs.latents)
        return self.found[cut]["paired_mse"]

    def _sampled(self) -> Any:
        """The pipeline that samples: the plan's own, or one in `sampling.precision` on the device."""
        from tasks.models import in_half, load_base, sampling_dtype

        if self._sampler is None:
            half = in_half(self.job)
            self._sampler = load_base(self.job, dtype=sampling_dtype(self.job))[0] if half else self.pipeline
        return self._sampler

    def _shared_inputs(self) -> Any:
        from tasks.models import prompts_of
        from vdmini_core.data.clips import load_clips
        from vdmini_core.profiling.sensitivity import prepare_inputs

        if self._inputs is None:  # most recipes never ask
            films = load_clips(self.job.artifact("prepare"), "validation", self.clips)
            prompts = prompts_of(self.job, self.family, "validation", self.clips)
            seed, batch_size = self.job.params.base.seed, self.job.params.sampling.batch_size
            self._inputs = prepare_inputs(
                self._sampled(), self.family, films, self.settings, seed, batch_size, 0, prompts
            )
        return self._inputs


def draw_frontier(
    job: StageJob, plan: Plan, units: Sequence[Unit], sensitivity: Any, trials: Trials
) -> tuple[str, ...]:
    """Write `frontier.json` and its pictures: every cut tried, and the solver's best at other sizes.

    A plan that prunes channels is not a cut of units and has no point here.

    Returns:
        Names of the pictures.
    """
    from vdmini_core.pruning.frontier import frontier_cuts
    from vdmini_core.report.charts import frontier_chart

    count, metric = job.params.plan.frontier_points, job.params.plan.metric
    if count == 0:
        return ()
    best = frontier_cuts(trials.family, trials.denoiser, units, sensitivity, trials.settings, metric, count)
    wanted = [*best, *_paper(trials), *([] if plan.channels else [plan.removed])]
    for removed in track(wanted, "plan: frontier", len(wanted), "cut"):
        trials.damage(removed)
    points = _points(plan, trials, {trials.canonical(cut) for cut in best})
    write_json(job.out / FRONTIER, points)
    for chart in CHARTS:
        frontier_chart(points, job.out / chart)
    return CHARTS


def _points(plan: Plan, trials: Trials, best: set[tuple[str, ...]]) -> list[dict[str, Any]]:
    """One row a cut, the largest student first."""
    from vdmini_core.pruning.recipes import describe_plan

    denoiser, settings, family = trials.denoiser, trials.settings, trials.family
    cuts, papers = family.cuts(denoiser, settings), {trials.canonical(cut) for cut in _paper(trials)}
    points = []
    for removed, figures in trials.found.items():
        described = describe_plan("manual", family, denoiser, removed, settings, cuts=cuts)
        points.append(
            {
                "removed": list(removed),
                "chosen": removed == plan.removed and not plan.channels,
                "paper": removed in papers,
                "best": removed in best,
                "params_ratio": round(described.params_ratio, 6),
                "flops_ratio": round(described.flops_ratio, 6),
                **figures,
            }
        )
    return sorted(points, key=lambda point: (-point["flops_ratio"], point["removed"]))


def _paper(trials: Trials) -> Iterable[tuple[str, ...]]:
    """The paper's cut, where the model has one."""
    try:
        return [trials.family.paper_cut(trials.denoiser)]
    except PlanError:
        return []
