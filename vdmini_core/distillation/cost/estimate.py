"""The bill of a recovery: does it fit, how long does it take, what does it cost, what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from vdmini_core.distillation.cost.devices import GIB, Device
from vdmini_core.distillation.cost.rehearsal import Choices, Footprint, rehearse
from vdmini_core.errors import ModelError, TrainingError
from vdmini_core.models.base import Family, SamplingSettings
from vdmini_core.params import DistillParams
from vdmini_core.pruning.plan import Plan

# A worker before its models: Python, PyTorch, diffusers, Ray on a CPU; context and workspaces on a GPU.
PROCESS_BYTES = {"cpu": int(0.6 * GIB), "cuda": int(0.8 * GIB)}
LASTING = ("teacher", "student", "average of the student (EMA)", "optimiser", "heads and their optimiser")
OPTIMISER_TRAFFIC = 44  # bytes moved per learned float32 parameter: clip, AdamW (p, m, v), EMA


@dataclass(frozen=True)
class Case:
    """A recovery to be judged; models on the meta device."""

    family: Family
    teacher: nn.Module
    plan: Plan
    params: DistillParams
    settings: SamplingSettings
    choices: Choices

    def footprint(self, kind: Any) -> Footprint:
        """One worker's memory and operations on a device of this kind."""
        student = self.family.outline(self.teacher, self.plan.removed, self.plan.channels).model
        return rehearse(
            self.family,
            self.teacher,
            student,
            self.plan.feature_pairs,
            self.params,
            self.settings,
            self.choices,
            kind,
        )


@dataclass(frozen=True)
class Estimate:
    """What a recovery needs and costs; everything estimated, nothing measured but perhaps the speed.

    Attributes:
        footprint: of a worker.
        process: bytes of a worker before its models.
        there: bytes a worker has; None where it is not known.
        step_s: seconds of a step, without waiting for others; None without a speed.
        steps: of the whole recovery.
        devices: that are paid for.
        price_per_hour: of one device.
    """

    choices: Choices
    settings: SamplingSettings
    device: Device
    footprint: Footprint
    process: int
    there: int | None
    step_s: float | None
    steps: int
    devices: int
    price_per_hour: float | None

    @property
    def need(self) -> int:
        """Bytes of a worker."""
        return self.footprint.peak + self.process

    @property
    def fits(self) -> bool:
        """Whether a worker has that much; True where it is not known how much it has."""
        return self.there is None or self.need <= self.there

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: `memory` (bytes of a worker), `flops` (a worker's step), `time`, `device`, `choices`."""
        hours = None if self.step_s is None else self.step_s * self.steps / 3600
        device_hours = None if hours is None else hours * self.devices
        price = None
        if device_hours is not None and self.price_per_hour is not None:
            price = device_hours * self.price_per_hour
        return {
            "what": "an estimate, not a measurement",
            "choices": asdict(self.choices) | {"clips_at_a_time": self.choices.clips},
            "clip": {k: getattr(self.settings, k) for k in ("frames", "height", "width")},
            "memory": {
                "parts": self.footprint.parts | {"process": self.process},
                "worker": self.need,
                "there": self.there,
                "fits": self.fits,
                "peak_falls_into": self.footprint.phase,
            },
            "flops": self.footprint.flops | {"step": sum(self.footprint.flops.values())},
            "learned_parameters": self.footprint.learned,
            "device": {
                "name": self.device.name,
                "tflops": self.device.flops_per_s / 1e12 or None,
                "speed_from": self.device.source,
            },
            "time": {
                "step_s": self.step_s,
                "steps": self.steps,
                "hours": hours,
                "devices": self.devices,
                "device_hours": device_hours,
                "price": price,
            },
        }


def estimate(
    case: Case, device: Device, *, per_device: int = 1, price_per_hour: float | None = None
) -> Estimate:
    """Judge a case on a device.

    Args:
        case: models, plan and choices.
        device: speed and memory of one device.
        per_device: workers that share one.
        price_per_hour: of one device, in any currency.
    """
    found = case.footprint(device.kind)
    there = None if device.memory is None else device.memory // per_device
    step_s = None
    if device.flops_per_s:
        step_s = per_device * sum(found.flops.values()) / device.flops_per_s
        if device.bytes_per_s:
            step_s += OPTIMISER_TRAFFIC * found.learned / device.bytes_per_s
    return Estimate(
        case.choices,
        case.settings,
        device,
        found,
        PROCESS_BYTES[device.kind],
        there,
        step_s,
        case.params.steps,
        -(-case.choices.workers // per_device),
        price_per_hour,
    )


def ways_to_fit(case: Case, found: Estimate, per_device: int = 1, most: int = 3) -> list[tuple[str, int]]:
    """Changes that would make a case fit, mildest first: what to set, and the bytes a worker needs then."""
    fitting: list[tuple[str, int]] = []
    device, least = found.device, found.process + sum(found.footprint.parts[name] for name in LASTING)
    for text, changed, share in _changes(case, device, per_device):
        if not changed.choices.sharded and device.memory is not None and least > device.memory // share:
            continue  # the networks alone do not fit
        try:
            need = changed.footprint(device.kind).peak + PROCESS_BYTES[device.kind]
        except ModelError:  # this student cannot be checkpointed
            continue
        if device.memory is not None and need <= device.memory // share:
            fitting.append((text, need))
        if len(fitting) == most:
            break
    return fitting


def _changes(case: Case, device: Device, per_device: int) -> Sequence[tuple[str, Case, int]]:
    """What may be tried, as settings that this version knows, with the workers a device then has."""
    had, known = case.choices, type(case.params).model_fields
    found: list[tuple[str, Case, int]] = []

    def add(
        choices: Choices, settings: SamplingSettings | None = None, clip: str = "", share: int = 0
    ) -> None:
        changed = replace(case, choices=choices, settings=settings or case.settings)
        found.append((" ".join(filter(None, [clip, _said(had, choices)])), changed, share or per_device))

    gradual: list[Choices] = []
    if not had.bf16:
        gradual.append(replace(had, bf16=True))
    if had.clips > 1 and "accumulation" in known:
        gradual.append(replace(had, accumulation=had.batch // had.workers))
    elif had.clips > 1:
        gradual.append(replace(had, batch=had.workers))
    if not had.checkpointing and "activation_checkpointing" in known:
        gradual.append(replace(had, checkpointing=True))
    joined = had
    for choices in gradual:
        add(choices)
        joined = replace(joined, **{k: v for k, v in asdict(choices).items() if v != getattr(had, k)})
    if len(gradual) > 1:
        add(joined)
    if device.kind == "cpu" and had.workers > 1:
        add(replace(joined, workers=1, batch=1, accumulation=1), share=1)
    if device.kind == "cuda" and "parallel" in known:
        for workers in (2, 4, 8, 16):
            if workers > had.workers or not had.sharded:
                batch = -(-had.batch // workers) * workers  # a worker has whole clips, one at a time
                spread = replace(joined, workers=workers, batch=batch, accumulation=batch // workers)
                add(replace(spread, sharded=True), share=1)
    for settings, text in _smaller_clips(case.settings):
        add(joined, settings, text)
    return found


def _said(had: Choices, now: Choices) -> str:
    """All that has to be set to come from one to the other; what is not said is not counted."""
    words = {
        "sharded": "distill.parallel=fsdp2",
        "workers": f"distill.workers={now.workers}",
        "batch": f"distill.batch_size={now.batch}",
        "bf16": "distill.precision=bf16",
        "accumulation": f"distill.accumulation={now.accumulation}",
        "checkpointing": "distill.activation_checkpointing=true",
    }
    return " ".join(word for name, word in words.items() if getattr(now, name) != getattr(had, name))


def _smaller_clips(settings: SamplingSettings) -> Sequence[tuple[SamplingSettings, str]]:
    """Half and a quarter of the frames, which stay what the model can make, then of the size."""
    found: list[tuple[SamplingSettings, str]] = []
    for part in (2, 4):
        frames = (settings.frames // part - 1) // settings.frame_scale * settings.frame_scale + 1
        if 1 < frames < settings.frames:
            found.append((replace(settings, frames=frames), f"prepare.frames={frames}"))
    for part in (2, 4):
        height, width = (max(64, side // part // 64 * 64) for side in (settings.height, settings.width))
        if height < settings.height or width < settings.width:
            small = replace(settings, height=height, width=width)
            found.append((small, f"prepare.height={height} prepare.width={width}"))
    return found


def as_options(text: str) -> str:
    """A way out as options of `vdmini distill --dry-run`: clips by --frames and --size, all else by --set."""
    given = dict(word.rstrip(",").split("=", 1) for word in text.split() if "=" in word)
    frames, height, width = (given.pop(f"prepare.{name}", "") for name in ("frames", "height", "width"))
    clip = [f"--frames {frames}"] if frames else []
    clip += [f"--size {height}x{width}"] if height else []
    return " ".join([*clip, *(f"--set {name}={value}" for name, value in given.items())])


def refuse_unless_fits(
    case: Case, found: Estimate, per_device: int = 1, say: Callable[[str], str] = str
) -> None:
    """Stop before anything is launched.

    Args:
        case: what is judged.
        found: by `estimate`.
        per_device: workers that share a device.
        say: how a way out is written for the command at hand.

    Raises:
        TrainingError: when a worker needs more memory than there is, saying what would make it fit.
    """
    if found.fits or found.there is None:
        return
    ways = ways_to_fit(case, found, per_device)
    listed = "; or ".join(f"{say(text)} ({need / GIB:.1f} GiB)" for text, need in ways)
    activations = found.footprint.parts["activations"]
    raise TrainingError(
        "the recovery does not fit into the memory of a worker",
        expected=f"at most {found.there / GIB:.1f} GiB ({found.device.name}, {per_device} worker"
        f"{'s' if per_device > 1 else ''} to each)",
        found=f"{found.need / GIB:.1f} GiB, {activations / GIB:.1f} of it activations",
        fix=listed or "no option makes it fit: cut more, use smaller clips or a larger device",
    )
