"""What every command prints with: JSON alone, or tables; and the check of `--device`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vdmini_core.errors import DataError

JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


def print_json(data: Any) -> None:
    """JSON to standard output, nothing else."""
    sys.stdout.write(json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n")


def print_rows(rows: list[dict[str, Any]], title: str = "", console: Console | None = None) -> None:
    """A table with one column per key; text as it is, never read as markup."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for name in columns:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    console = console or Console()
    if not console.is_terminal:
        # A pipe has no width: do not fold what a file can hold.
        console.width = max(console.width, 140)
    console.print(table, markup=False)


def _cell(value: Any) -> Any:
    from rich.text import Text

    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return Text(str(value))


def check_device(device: str) -> None:
    """Refuse a device that is not here.

    Raises:
        DataError: for a GPU that is missing, or another word than cpu or cuda.
    """
    import torch

    if (device.startswith("cuda") and not torch.cuda.is_available()) or device.split(":")[0] not in (
        "cpu",
        "cuda",
    ):
        raise DataError(f"there is no device {device!r} here", expected="cpu, or cuda with a GPU")
