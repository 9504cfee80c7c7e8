"""The command `vdmini progressive`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdmini_core.artifacts import read_json
from vdmini_core.printing import print_json, print_rows

if TYPE_CHECKING:
    from tasks.rounds import Round

StepsOption = Annotated[int, typer.Option(min=1, max=9, help="rounds; each ends with a registered student")]
COLUMNS = ("name", "params_ratio", "flops_ratio", "fvd_teacher", "mse_teacher", "version")


def run_progressive(folder: Path, steps: int, force: bool, as_json: bool) -> None:
    """Run the rounds of the project in `folder` and say what came out."""
    from flows.console import RunConsole
    from flows.own_server import start_own_server
    from flows.quiet import quiet_servers

    quiet_servers()
    from flows.progressive import progressive

    start_own_server()

    def begin(step: Round) -> None:
        typer.echo(f"round {step.number} of {step.count}, {step.size}: {step.folder}", err=True)

    _, page = progressive(
        root=str(folder), steps=steps, force=force, listen=RunConsole(folder).listen, begin=begin
    )
    students: list[dict[str, Any]] = read_json(page.with_name("students.json"))
    if as_json:
        print_json({"students": students, "report": str(page)})
        return
    print_rows(
        [{k: row[k] for k in COLUMNS} | {"denoiser speed": row["speedup"].get("unet")} for row in students],
        "Students",
    )
    typer.echo(f"report: {page}")
