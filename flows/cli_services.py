"""`vdmini services start | stop | status`: the team's servers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vdmini_core.errors import VDMiniError
from vdmini_core.printing import JsonOption, print_json, print_rows

app = typer.Typer(
    no_args_is_help=True,
    help="PostgreSQL, S3, MLflow, Prefect and two Ray nodes on this machine, without Docker or root.",
)
RootOption = Annotated[Path, typer.Option("--root", help="project folder", exists=True, file_okay=False)]


@app.command("start")
def start_command(root: RootOption = Path()) -> None:
    """Start what does not run, in order; returns when all of them answer."""
    from flows.services.control import start
    from flows.services.setup import services_home

    setup = start(services_home(root), lambda line: typer.echo(line, err=True))
    shown = setup.env_file.relative_to(root.resolve())
    typer.echo(f"MLflow {setup.url('mlflow')}  Prefect {setup.url('prefect')}")
    typer.echo(f"to use them: set -a; . {shown}; set +a    or: make demo SETTINGS=team")
    typer.echo(f"accounts and passwords: {shown}    logs: {shown.parent / 'logs'}")


@app.command("stop")
def stop_command(root: RootOption = Path()) -> None:
    """Stop them in the opposite order; data and passwords stay."""
    from flows.services.control import stop
    from flows.services.setup import services_home

    if not stop(services_home(root), lambda line: typer.echo(line, err=True)):
        typer.echo("no services run here")


@app.command("status")
def status_command(as_json: JsonOption = False, root: RootOption = Path()) -> None:
    """Sign in at each of them; exit 1 where one does not answer."""
    from flows.services.findings import set_up_here

    rows = set_up_here(root)
    if not rows:
        raise VDMiniError("no services were set up here", fix="make services, or vdmini services start")
    print_json(rows) if as_json else print_rows(rows)
    if any(row["state"] != "ok" for row in rows):
        raise typer.Exit(1)
