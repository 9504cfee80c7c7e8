"""Commands that need the core alone: `python -m vdmini_core inspect | generate | convert | fvd ...`.

The full command line (`flows/cli.py`) offers the very same functions under `vdmini`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vdmini_core.cli_convert import convert
from vdmini_core.cli_generate import generate
from vdmini_core.cli_metrics import fvd, fvd_stats
from vdmini_core.cli_plan import plan, plan_diff
from vdmini_core.errors import VDMiniError
from vdmini_core.printing import JsonOption, print_json, print_rows
from vdmini_core.storage_errors import storage_error

STOPPED = 130  # by Ctrl-C, as shells have it


def inspect(
    model: Annotated[
        str, typer.Argument(help="pipeline directory, or `stable-video-diffusion`, `videocrafter2`, ...")
    ],
    granularity: Annotated[
        str, typer.Option(help="pair, block, both; temporal: both, and temporal sub-layers")
    ] = "both",
    as_json: JsonOption = False,
) -> None:
    """Print a model's units with parameters and FLOPs; no weights are read."""
    from vdmini_core.models.inspect import inspect_model

    facts = inspect_model(model, granularity=granularity)
    if as_json:
        print_json(facts)
        return
    units = [
        {
            "unit": unit["name"],
            "kind": unit["kind"],
            "parameters": unit["parameters"],
            "GFLOP": unit["flops"] / 1e9,
            "removable": "yes" if unit["removable"] else f"no: {unit['reason']}",
        }
        for unit in facts["units"]
    ]
    print_rows(units, title=str(model))
    print_rows([{"": key, "value": value} for key, value in _flat(facts).items()], title="Totals")


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float | str):
            flat[f"{prefix}{key}"] = f"{value:,}" if isinstance(value, int) else value
    return flat


CORE_COMMANDS: dict[str, Callable[..., None]] = {
    "inspect": inspect,
    "generate": generate,
    "convert": convert,
    "plan": plan,
    "plan-diff": plan_diff,
    "fvd": fvd,
    "fvd-stats": fvd_stats,
}


def new_app(help_text: str) -> typer.Typer:
    """A Typer app in the house style."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_app(app: typer.Typer) -> int:
    """Run a command line: 0 done, 1 failed with a reason, 2 bad arguments; no traceback for user mistakes."""
    # Typer carries its own copy of click, older ones use click itself: take the classes from Typer.
    usage_error: type[typer.BadParameter] = typer.BadParameter.__mro__[1]
    try:
        result = typer.main.get_command(app).main(standalone_mode=False)
        if result == STOPPED:  # what Typer makes of Ctrl-C
            return _say_stopped()
        return result if isinstance(result, int) else 0
    except VDMiniError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except usage_error as error:
        error.show()
        return 2
    except (typer.Abort, KeyboardInterrupt):
        return _say_stopped()
    except BrokenPipeError:
        return 1
    except Exception as error:
        if plain := storage_error(error):
            sys.stderr.write(f"error: {plain}\n")
            return 1
        return _report_unexpected(error)


def _say_stopped() -> int:
    sys.stderr.write("stopped; run the same command again to go on\n")
    return STOPPED


def _report_unexpected(error: Exception) -> int:
    """One line for the person, the whole trace in a file for who mends it."""
    first = str(error).strip().split("\n")[0]
    sys.stderr.write(f"error: unexpected {type(error).__name__}: {first}\n")
    try:
        folder = Path(".vdmini")
        folder.mkdir(exist_ok=True)
        (folder / "last-error.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        sys.stderr.write("  to do: the full trace is in .vdmini/last-error.txt\n")
    except OSError:
        traceback.print_exception(error)
    return 1


def main() -> None:
    """Entry point of `python -m vdmini_core`."""
    app = new_app("VDMini's core: inspect and run compressed video diffusion models.")
    for name, function in CORE_COMMANDS.items():
        app.command(name)(function)
    sys.exit(run_app(app))
