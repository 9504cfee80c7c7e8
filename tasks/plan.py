"""`plan`: what to remove, as immutable data bound to the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.stage import StageJob, StageOutcome
from vdmini_core.artifacts import read_json
from vdmini_core.errors import PlanError
from vdmini_core.pruning.plan import VAE_DECODER_PLAN, Plan

if TYPE_CHECKING:
    from vdmini_core.models.base import SamplingSettings


def run(job: StageJob) -> StageOutcome:
    """Make the plan of `plan.recipe` and draw it on the denoiser."""
    from tasks.models import START, in_half, load_base
    from tasks.plan_trials import Trials, draw_frontier
    from vdmini_core.pruning.compose import budgets_left
    from vdmini_core.pruning.recipes import make_plan
    from vdmini_core.report.charts import plan_figure

    # the plan is bound to the weights in float32; where others sample, these need not be on the GPU
    pipeline, family, settings = load_base(job, "cpu" if in_half(job) else None)
    denoiser = getattr(pipeline, family.denoiser_name)
    sensitivity = read_json(job.artifact("profile") / "sensitivity.json")
    units = family.units(denoiser, settings)
    decoder = plan_vae_decoder(job, pipeline.vae, settings)  # refuses what cannot be cut before anything runs
    trials = Trials(job, pipeline, family, settings, int(sensitivity["clips"]))
    earlier = job.artifact("teacher") / START / "plan.json"
    params = budgets_left(job.params.plan, Plan.load(earlier)) if earlier.is_file() else job.params.plan
    plan = make_plan(
        params,
        family,
        denoiser,
        units,
        sensitivity,
        settings,
        job.params.base.seed,
        timing=read_timing(job),
        # they are tried by the paired error, so only what was solved by it is ranked again
        evaluate=trials.damage if job.params.plan.metric == "paired" else None,
    )
    plan.save(job.out / "plan.json")
    pictures = ("plan.svg", "plan.png")
    for chart in pictures:
        plan_figure(plan.to_dict(), [unit.to_dict() for unit in units], job.out / chart)
    charts = (*pictures, *draw_frontier(job, plan, units, sensitivity, trials))
    for note in plan.notes:
        job.monitor.note(f"plan: {note}")
    return StageOutcome(
        metrics={
            "recipe": plan.recipe,
            "removed": ", ".join(plan.removed),
            "removed_units": len(plan.removed),
            "narrowed_layers": len(plan.channels),
            "params_ratio": round(plan.params_ratio, 6),
            "flops_ratio": round(plan.flops_ratio, 6),
            **decoder,
        },
        charts=charts,
        table=[
            {"": "teacher", "params": plan.teacher_params, "GFLOP": round(plan.teacher_flops / 1e9, 3)},
            {"": "student", "params": plan.expected_params, "GFLOP": round(plan.expected_flops / 1e9, 3)},
        ],
        title=f"Plan `{plan.recipe}` removes {_what(plan)}",
    )


def _what(plan: Plan) -> str:
    narrowed = f"inner channels of {len(plan.channels)} layers" if plan.channels else ""
    return " and ".join(part for part in (", ".join(plan.removed), narrowed) if part) or "nothing"


def plan_vae_decoder(job: StageJob, vae: Any, settings: SamplingSettings) -> dict[str, float]:
    """Write `vae_decoder.json` where `plan.vae_decoder` asks for it; its ratios for the manifest."""
    from vdmini_core.pruning.vae_decoder import plan_decoder

    recipe = job.params.plan.vae_decoder
    if recipe == "none":
        return {}
    plan = plan_decoder(vae, settings, recipe)
    plan.save(job.out / VAE_DECODER_PLAN)
    ratios = {
        "vae_decoder_params_ratio": round(plan.expected_params / plan.teacher_params, 6),
        "vae_decoder_flops_ratio": round(plan.expected_flops / plan.teacher_flops, 6),
    }
    job.monitor.note(f"plan: {plan.describe()}")
    return ratios


def read_timing(job: StageJob) -> dict[str, Any] | None:
    """The frozen timing file that `plan.timing` names, under `timing/` of the project.

    Raises:
        PlanError: when it is not there.
    """
    name = job.params.plan.timing
    if name is None:
        return None
    for path in (job.root / "timing" / name, job.root / "timing" / f"{name}.json", job.root / name):
        if path.is_file():
            timing: dict[str, Any] = read_json(path)
            return timing
    raise PlanError(
        f"there is no frozen timing file {name}",
        expected=str(Path("timing") / name),
        fix="profile, then copy artifacts/profile/timing.json there",
    )
