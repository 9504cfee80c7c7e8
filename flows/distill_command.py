"""`vdmini distill`, and what it would cost: `--dry-run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from vdmini_core.errors import DataError
from vdmini_core.printing import print_json, print_rows

DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="print memory, time and cost; start nothing; exit 1 where it cannot fit"),
]
TeacherOption = Annotated[
    str | None,
    typer.Option(
        help="with --dry-run: pipeline directory or built-in name; none: the profile's or project's"
    ),
]
PlanOption = Annotated[
    Path | None, typer.Option("--plan", help="with --dry-run: plan.json", exists=True, dir_okay=False)
]
FramesOption = Annotated[int | None, typer.Option(min=1, help="with --dry-run: frames of a clip")]
SizeOption = Annotated[str | None, typer.Option(metavar="HxW", help="with --dry-run: pixels of a clip")]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="with --dry-run: h100, h200, a100-80gb, rtx4090 ...; none: this machine, measured"),
]
TflopsOption = Annotated[
    float | None,
    typer.Option(min=1e-6, help="with --dry-run: TFLOP/s a device reaches, in place of a measurement"),
]
UtilisationOption = Annotated[
    float | None, typer.Option(help="with --dry-run and --device: share of its dense peak; default 0.2")
]
MemoryOption = Annotated[float | None, typer.Option(min=0.01, help="with --dry-run: GiB of a device")]
PriceOption = Annotated[float | None, typer.Option(min=0, help="with --dry-run: of one device")]


def dry_run(
    root: Path,
    assignments: list[str] | None,
    profile: str | None,
    as_json: bool,
    *,
    teacher: str | None,
    plan: Path | None,
    frames: int | None,
    size: str | None,
    device: str | None,
    device_tflops: float | None,
    utilisation: float | None,
    memory_gib: float | None,
    price_per_hour: float | None,
) -> None:
    """Print the estimate; raise where the recovery cannot fit.

    Raises:
        TrainingError: when a worker needs more memory than there is.
    """
    from tasks.dry_run_step import count_of
    from tasks.project import preview_params, template_folder
    from tasks.recovery_cost import NOTHING_LEARNS, workers_per_device
    from tasks.recovery_dry_run import Wanted, wanted_case
    from vdmini_core.distillation.cost.estimate import as_options, estimate, refuse_unless_fits

    # outside a project the defaults
    folder = root if (root / "params.yaml").is_file() else template_folder()
    given = tuple(assignments or ())
    params = preview_params(folder, profile=profile, assignments=given)
    wanted = Wanted(teacher, plan, frames, _size(size), profile, given)
    case, teacher, note = wanted_case(root, params, wanted)
    if case.params.depth == "none":
        told = f"distill.depth {params.distill.depth}: {NOTHING_LEARNS}"
        print_json({"teacher": teacher, "plan": case.plan.recipe, "note": told}) if as_json else typer.echo(
            told
        )
        return
    steps = (
        f"{count_of(case.params.steps, 'step')}, from {f'profile {profile}' if profile else 'params.yaml'}"
    )
    if any(text.startswith("distill.steps=") for text in given):
        steps = f"{count_of(case.params.steps, 'step')}, as set"
    where = _device(case, params, device, device_tflops, utilisation, memory_gib)
    devices = case.choices.workers if device or where.name == "given" else None  # named: a GPU for each
    share = workers_per_device(where.kind, case.choices.workers, devices)
    found = estimate(case, where, per_device=share, price_per_hour=price_per_hour)
    if as_json:
        print_json(found.to_dict() | {"teacher": teacher, "plan": case.plan.recipe, "note": note})
    else:
        _show(found, case, steps, note)
    refuse_unless_fits(case, found, share, as_options)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise DataError("--size cannot be read", expected="HEIGHTxWIDTH, as 576x1024", found=text) from None
    if height <= 0 or width <= 0:
        raise DataError("--size cannot be read", expected="pixels above 0, as 576x1024", found=text)
    return height, width


def _device(
    case: Any,
    params: Any,
    name: str | None,
    tflops: float | None,
    utilisation: float | None,
    memory_gib: float | None,
) -> Any:
    """A named device, one whose speed is given, or this one, measured."""
    import torch

    from tasks.recovery_dry_run import with_memory
    from vdmini_core.distillation.cost.devices import (
        UTILISATION,
        Device,
        device_here,
        known_device,
        measure_speed,
    )

    if utilisation is not None and (name is None or tflops is not None):
        raise DataError(
            "--utilisation is of a named device's peak", expected="--device without --device-tflops"
        )
    if name is not None:
        known = known_device(name, case.choices.bf16, utilisation or UTILISATION)
        if tflops is not None:
            known = Device(known.name, "cuda", tflops * 1e12, known.memory, known.bytes_per_s, "given")
        return with_memory(known, memory_gib)
    cuda = torch.cuda.is_available() and params.base.device != "cpu"
    kind = "cuda" if cuda else "cpu"
    if tflops is not None and memory_gib is not None:
        return with_memory(Device("given", "cuda", tflops * 1e12, None, 0.0, "given"), memory_gib)
    if tflops is not None:
        return device_here(kind, tflops * 1e12, "given")
    # as a worker runs, with its share of the threads; workers on a CPU are added up to the speed of all of it
    threads, workers = params.base.threads, case.choices.workers
    torch.set_num_threads(max(1, threads // workers))
    speed = measure_speed(case.teacher, case.settings, kind)
    if speed and kind == "cpu":
        speed *= min(threads, workers)
    source = (
        "the teacher's forward pass, measured here" if speed else "too large to be measured here: --device"
    )
    return with_memory(device_here(kind, speed, source), memory_gib)


def _show(found: Any, case: Any, *notes: str) -> None:
    from tasks.dry_run_step import count_of
    from tasks.recovery_dry_run import bill, rows_of, settings_text, work_rows

    console, choices = Console(highlight=False), found.choices
    print_rows(rows_of(found), "Recovery: an estimate", console)
    print_rows(work_rows(found), console=console)
    print_rows([bill(found)], f"{found.device.name}: {found.device.source}", console)
    lines = [
        settings_text(case.settings, case.plan),
        f"{count_of(choices.batch, 'clip')} a step, {count_of(choices.workers, 'worker')}, "
        f"{choices.clips} at a time each",
        f"the peak falls into: {found.footprint.phase}",
        *notes,
    ]
    for line in filter(None, lines):
        console.print(Text(line))
    if found.there is not None and found.fits:
        share = found.need / found.there
        console.print(Text(f"fits: {share:.0%} of the {found.there / 2**30:.1f} GiB that a worker has"))
