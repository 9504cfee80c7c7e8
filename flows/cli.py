"""`vdmini`: the stages, the run, and the tools. The door that may see every room.

Heavy libraries are imported by the command that needs them, so that `--help` is instant.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli_progressive import StepsOption, run_progressive
from flows.cli_registry import (
    evaluate_registered_command,
    gc_command,
    promote_command,
    reproduce_command,
    rollback_command,
)
from flows.cli_services import app as services_app
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
from tasks.stage import REPRODUCIBLE, STAGES
from vdmini_core.cli import CORE_COMMANDS, new_app, run_app
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
from vdmini_core.errors import VDMiniError
from vdmini_core.printing import JsonOption, print_json

app = new_app("Compress video diffusion models: profile, plan, prune, recover with ICMD, evaluate, register.")

SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="edit params.yaml, e.g. plan.max_params_ratio=0.75")]  # fmt: skip  # noqa: E501
ProfileOption = Annotated[
    str | None, typer.Option(help="start from a ready parameter set (profiles/NAME.yaml)")
]


def _videos_folder(text: str | None) -> str | None:
    if text is not None and "://" not in text and not Path(text).is_dir():
        raise typer.BadParameter(f"Directory '{text}' does not exist.")
    return text


VideosOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="folder of your own videos, or s3://BUCKET/FOLDER", callback=_videos_folder
    ),
]
WorkspaceOption = Annotated[
    str | None, typer.Option(help="run in workspaces/NAME with parameters of its own")
]
ForceOption = Annotated[bool, typer.Option("--force", help="run also what is up to date")]
RootOption = Annotated[Path, typer.Option("--root", help="project folder", exists=True, file_okay=False)]


def _project(
    root: Path, workspace: str | None, profile: str | None, videos: str | None, assignments: list[str] | None
) -> Path:
    """The folder to run in, with its parameters edited in the open."""
    from flows.execution import check_hashable
    from tasks.project import change_params, lay_out, workspace_folder
    from tasks.versioning import init_repository

    root, new = root.resolve(), False
    if workspace is not None:
        home, root = root, workspace_folder(root, workspace)
        new = not root.exists()
        if not (root / ".dvc").is_dir():
            lay_out(root, like=home)
            init_repository(root, shared_cache=home / ".dvc" / "cache")
            typer.echo(f"workspace {workspace}: {root}", err=True)
    if videos is not None and "://" not in videos:
        check_hashable(Path(videos), root)
    if profile or videos or assignments:
        try:
            changes = change_params(
                root, profile=profile, videos=videos, assignments=tuple(assignments or ())
            )
        except VDMiniError:
            if new:  # nothing but what was just laid out
                shutil.rmtree(root)
            raise
        for line in changes:
            typer.echo(f"params.yaml  {line}", err=True)
    return root


@app.command("run")
def run(
    profile: ProfileOption = None,
    assignments: SetOption = None,
    videos: VideosOption = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Run the whole story (the Prefect flow); stages that are up to date are skipped."""
    if dry_run:
        _only_wet({"--workspace": workspace, "--force": force})
        _dry_run(root.resolve(), profile, videos, assignments, as_json)
        return
    with _pipeline_extra():
        from flows.console import RunConsole
        from flows.quiet import quiet_servers

        folder = _project(root, workspace, profile, videos, assignments)
        quiet_servers()
        from flows.compress import compress

        console = RunConsole(folder)
        reports = compress(root=str(folder), force=force, listen=console.listen)
    summary = console.summary(reports)
    print_json(summary) if as_json else console.show(summary)


def _dry_run(
    root: Path, profile: str | None, videos: str | None, assignments: list[str] | None, as_json: bool
) -> None:
    """Say what a run would do, need and cost; what is missing is no failure."""
    from tasks.dry_run import examine_run, is_complete, to_rows
    from tasks.project import preview_params
    from vdmini_core.printing import print_rows

    params = preview_params(root, profile=profile, videos=videos, assignments=tuple(assignments or ()))
    steps = examine_run(root, params)
    if as_json:
        print_json({"ready": is_complete(steps), "steps": to_rows(steps)})
        return
    print_rows(to_rows(steps), title="What a run would do")
    typer.echo(
        "ready to run"
        if is_complete(steps)
        else "some things are missing; the last column says how to get them"
    )


def _only_wet(options: Mapping[str, object]) -> None:
    """Refuse options that mean nothing in a dry run."""
    if wrong := ", ".join(name for name, value in options.items() if value):
        raise typer.BadParameter(f"{wrong}: not with --dry-run")


@app.command("progressive")
def progressive(
    steps: StepsOption = 3,
    profile: ProfileOption = None,
    assignments: SetOption = None,
    videos: VideosOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Several students from one run: prune a little, recover, profile again, to the budget of the plan.

    The rounds are workspaces (workspaces/round-1, ...); a killed run goes on where it stopped.
    """
    with _pipeline_extra():
        run_progressive(_project(root, None, profile, videos, assignments), steps, force, as_json)


def _stage_command(stage: str) -> Callable[..., None]:
    def command(
        assignments: SetOption = None,
        profile: ProfileOption = None,
        workspace: WorkspaceOption = None,
        force: ForceOption = False,
        as_json: JsonOption = False,
        root: RootOption = Path(),
    ) -> None:
        with _pipeline_extra():
            _run_one(stage, _project(root, workspace, profile, None, assignments), force, as_json)

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
    with _pipeline_extra():
        folder = _project(root, workspace, profile, videos, assignments)
        if add is not None:
            from tasks.new_videos import register_addition

            for line in register_addition(folder, add):
                typer.echo(line, err=True)
        _run_one("prepare", folder, force, as_json)


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
    with _pipeline_extra():
        _run_one("teacher", _project(root, workspace, profile, None, assignments), force, as_json)


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
    with _pipeline_extra():
        folder = _project(root, workspace, profile, None, [*(assignments or []), *given])
        _run_one("plan", folder, force, as_json)


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
        with _pipeline_extra():
            _run_one("distill", _project(root, workspace, profile, None, assignments), force, as_json)
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


def _run_one(stage: str, root: Path, force: bool, as_json: bool) -> None:
    with _pipeline_extra():
        from flows.console import show_stage
        from flows.quiet import quiet_servers

        quiet_servers()
        if "DVC_STAGE" in os.environ and stage in REPRODUCIBLE:
            # `dvc repro` runs us: it knows what is stale and records the result itself.
            from tasks.stage import run_stage
            from tasks.tracking import MLflowTracker

            result = run_stage(stage, root, MLflowTracker(root))
            show_stage(result, as_json)
            return
        from flows.execution import Execution

        execution = Execution(root, force=force)
        with execution.parent_run(f"vdmini-{stage}"):
            report = execution.stage(stage)
    if report.result is not None:
        show_stage(report.result, as_json)
    elif as_json:
        print_json({"stage": stage, "fate": report.fate})
    else:
        typer.echo(f"{stage}: {report.fate} (artifacts/{stage})")


class _pipeline_extra:
    """Turns a missing extra into an error that says how to install it."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in {
            "prefect", "ray", "mlflow", "dvc", "boto3", "psutil", "pandas",
        }:  # fmt: skip
            raise VDMiniError(
                f"this command needs {error.name}, which is not installed",
                fix='pip install "vdmini[pipeline]"; `python -m vdmini_core` offers what the core does',
            ) from None


@app.command("init")
def init(folder: Annotated[Path, typer.Argument(help="new project folder")]) -> None:
    """Lay out a project: dvc.yaml, params.yaml, profiles."""
    with _pipeline_extra():
        from tasks.project import lay_out
        from tasks.versioning import init_repository

        lay_out(folder)
        init_repository(folder)
    typer.echo(f"{folder}: ready. Next: cd {folder} && vdmini run --profile nano")


@app.command("doctor")
def doctor(as_json: JsonOption = False, root: RootOption = Path()) -> None:
    """Check installation, project and services, and say how to mend what is wrong."""
    from flows.doctor import examine
    from vdmini_core.printing import print_rows

    findings = examine(root.resolve())
    print_json(findings) if as_json else print_rows(findings)
    if any(finding["state"] == "broken" for finding in findings):
        raise typer.Exit(1)


_OWN_COMMANDS: dict[str, Callable[..., None]] = {
    "prepare": _prepare_command,
    "teacher": _teacher_command,
    "plan": _plan_command,
    "distill": _distill_command,
    "promote": promote_command,
}
for _name in STAGES:
    app.command(_name)(_OWN_COMMANDS.get(_name) or _stage_command(_name))
app.command("rollback")(rollback_command)
app.command("gc")(gc_command)
app.command("reproduce")(reproduce_command)
app.command("evaluate-registered")(evaluate_registered_command)
app.add_typer(services_app, name="services")
for _name, _function in CORE_COMMANDS.items():
    if _name not in STAGES:
        app.command(_name)(_function)


def main() -> None:
    """Entry point of `vdmini`."""
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
