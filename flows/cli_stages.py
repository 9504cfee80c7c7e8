"""The stages' commands: each runs its stage; some have more to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_project import (
    ForceOption,
    ProfileOption,
    RootOption,
    SetOption,
    VideosOption,
    WorkspaceOption,
    pipeline_extra,
    project_folder,
    run_one,
)
from flows.cli_registry import promote_command
from flows.distill_command import (
    DeviceOption,
    DryRunOption,
    FramesOption,
    MemoryOption,
    PlanOption,
    PriceOption,
    SizeOption,
    TeacherOption,
    TflopsOption,
    UtilisationOption,
    dry_run,
)
from tasks.stage import STAGES
from vdmini_core.cli_plan import (
    FlopsRatioOption,
    LatencyRatioOption,
    OutputOption,
    ParamsRatioOption,
    RecipeOption,
    SeedOption,
    SensitivityOption,
    TimingOption,
    UnitOption,
    VaeDecoderOption,
    plan,
)
from vdmini_core.printing import JsonOption


def _stage_command(stage: str) -> Callable[..., None]:
    def command(
        assignments: SetOption = None,
        profile: ProfileOption = None,
        workspace: WorkspaceOption = None,
        force: ForceOption = False,
        as_json: JsonOption = False,
        root: RootOption = Path(),
    ) -> None:
        with pipeline_extra():
            run_one(stage, project_folder(root, workspace, profile, None, assignments), force, as_json)

    command.__doc__ = f"Stage: {STAGES[stage].says}."
    return command


def _prepare_command(
    videos: VideosOption = None,
    add: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="folder of videos that came later, or s3://BUCKET/FOLDER: they join the training split",
        ),
    ] = None,
    assignments: SetOption = None,
    profile: ProfileOption = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Stage: videos -> clips of one shape."""
    with pipeline_extra():
        folder = project_folder(root, workspace, profile, videos, assignments)
        if add is not None:
            from tasks.new_videos import register_addition

            for line in register_addition(folder, add):
                typer.echo(line, err=True)
        run_one("prepare", folder, force, as_json)


def _teacher_command(
    train: Annotated[
        bool, typer.Option("--train", help="train one here (sets teacher.source=train)")
    ] = False,
    assignments: SetOption = None,
    profile: ProfileOption = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Stage: the pretrained pipeline, from the package, a folder, the hub, or trained here.

    A training can be stopped at any time; started again it goes on from its last checkpoint.
    """
    assignments = [*(assignments or []), *(["teacher.source=train"] if train else [])]
    with pipeline_extra():
        run_one("teacher", project_folder(root, workspace, profile, None, assignments), force, as_json)


def _plan_command(
    model: Annotated[
        str | None,
        typer.Argument(help="a pipeline directory or `stable-video-diffusion`; none: the project's teacher"),
    ] = None,
    recipe: RecipeOption = None,
    unit: UnitOption = None,
    max_params_ratio: ParamsRatioOption = None,
    max_flops_ratio: FlopsRatioOption = None,
    max_latency_ratio: LatencyRatioOption = None,
    sensitivity: SensitivityOption = None,
    timing: TimingOption = None,
    seed: SeedOption = None,
    vae_decoder: VaeDecoderOption = None,
    output: OutputOption = None,
    assignments: SetOption = None,
    profile: ProfileOption = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Stage: what to remove. With a model: print what a recipe removes from it, outside any project.

    Without a model, recipe, units and budgets edit params.yaml, as --set does.
    """
    if model is not None:
        project = {"--set": assignments, "--profile": profile, "--workspace": workspace, "--force": force}
        _only_with(False, project | {"--root": root != Path()})
        plan(
            model,
            recipe=recipe,
            unit=unit,
            max_params_ratio=max_params_ratio,
            max_flops_ratio=max_flops_ratio,
            max_latency_ratio=max_latency_ratio,
            sensitivity=sensitivity,
            timing=timing,
            seed=seed,
            vae_decoder=vae_decoder,
            output=output,
            as_json=as_json,
        )
        return
    _only_with(
        True, {"--sensitivity": sensitivity, "--timing": timing, "-o": output, "--seed": seed is not None}
    )
    if any((item.split("=")[0]).startswith("plan.") for item in assignments or ()) and (recipe or unit):
        raise typer.BadParameter("--set plan.* beside --recipe or --unit: say it once")
    edits = {
        "recipe": recipe or ("manual" if unit else None),
        "units": json.dumps(unit) if unit else None,
        "max_params_ratio": max_params_ratio,
        "max_flops_ratio": max_flops_ratio,
        "max_latency_ratio": max_latency_ratio,
        "vae_decoder": vae_decoder,
    }
    given = [f"plan.{key}={value}" for key, value in edits.items() if value is not None]
    with pipeline_extra():
        folder = project_folder(root, workspace, profile, None, [*(assignments or []), *given])
        run_one("plan", folder, force, as_json)


def _distill_command(
    dry: DryRunOption = False,
    teacher: TeacherOption = None,
    plan_file: PlanOption = None,
    frames: FramesOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    device_tflops: TflopsOption = None,
    utilisation: UtilisationOption = None,
    memory_gib: MemoryOption = None,
    price_per_hour: PriceOption = None,
    assignments: SetOption = None,
    profile: ProfileOption = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Stage: ICMD recovery on Ray. With --dry-run: what it needs and costs, and whether it fits."""
    about = {
        "teacher": teacher,
        "plan": plan_file,
        "frames": frames,
        "size": size,
        "device": device,
        "device_tflops": device_tflops,
        "utilisation": utilisation,
        "memory_gib": memory_gib,
        "price_per_hour": price_per_hour,
    }
    if not dry:
        given = [f"--{name.replace('_', '-')}" for name, value in about.items() if value is not None]
        if given:
            raise typer.BadParameter(f"{', '.join(given)}: only with --dry-run")
        with pipeline_extra():
            run_one("distill", project_folder(root, workspace, profile, None, assignments), force, as_json)
        return
    if force:
        raise typer.BadParameter("--force: only without --dry-run")
    from tasks.project import workspace_folder

    folder = root.resolve() if workspace is None else workspace_folder(root.resolve(), workspace)
    dry_run(folder, assignments, profile, as_json, **about)  # type: ignore[arg-type]


def _only_with(project: bool, options: Mapping[str, object]) -> None:
    """Refuse options that mean nothing here."""
    wrong = ", ".join(name for name, value in options.items() if value)
    if wrong:
        raise typer.BadParameter(
            f"{wrong}: only with a MODEL" if project else f"{wrong}: only without a MODEL"
        )


_OWN: dict[str, Callable[..., None]] = {
    "prepare": _prepare_command,
    "teacher": _teacher_command,
    "plan": _plan_command,
    "distill": _distill_command,
    "promote": promote_command,
}


def stage_commands() -> dict[str, Callable[..., None]]:
    """Name of a stage -> its command, in the order of the story."""
    return {stage: _OWN.get(stage) or _stage_command(stage) for stage in STAGES}
