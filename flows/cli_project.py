"""What the commands of a project share: their options, its folder, and one stage run in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks.stage import REPRODUCIBLE
from vdmini_core.errors import VDMiniError
from vdmini_core.printing import print_json

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


def project_folder(
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


def run_one(stage: str, root: Path, force: bool, as_json: bool) -> None:
    """Run one stage of the project in `root` and show what came of it; `force`: though it is up to date."""
    with pipeline_extra():
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


class pipeline_extra:
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
