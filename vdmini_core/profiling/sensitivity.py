"""Sensitivity: what becomes of the teacher's samples when one unit is removed or replaced (paper Fig. 1).

Noise and conditions are the same for every unit, so all that differs is the unit. Reported per variant:
the Fréchet distance to the teacher's own samples (`fvd`), its content part (single frames) and motion part
(`content`, `motion`), each with an interval, and `paired_mse`, the mean squared error of the sampled
latents, which needs few clips because noise and conditions are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor, nn

from vdmini_core.models.base import Conditions, Family, SamplingSettings, Unit, Variant
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.profiling.sharing import Trace, recorded, replayed, start_of

Extractors = Mapping[str, Callable[[Tensor], NDArray[np.float32]]]
# Extractor -> name of its distance in the table.
COLUMNS = {"embedded": "fvd", "content": "content", "motion": "motion"}


@dataclass(frozen=True)
class ProfileInputs:
    """What every unit is tried on, and what the whole teacher makes of it.

    Attributes:
        noise: unit noise (B, F, C, h, w).
        conditions: of the same B clips.
        latents: the teacher's samples (B, F, C, h, w).
        clips: the first of them decoded, uint8 (D <= B, F, H, W, 3).
        settings: how they were sampled.
        batch_size: clips sampled at once.
        seed: of noise, of re-initialised weights and of the intervals.
    """

    noise: Tensor
    conditions: Conditions
    latents: Tensor
    clips: Tensor
    settings: SamplingSettings
    batch_size: int
    seed: int

    def rows(self, start: int, stop: int) -> ProfileInputs:
        """The same for clips `start` to `stop` alone."""
        return replace(
            self,
            noise=self.noise[start:stop],
            conditions=self.conditions.slice(start, stop),
            latents=self.latents[start:stop],
            clips=self.clips[start:stop],
        )

    def save(self, path: Path) -> None:
        """Write the tensors; settings, batch size and seed come from the params again."""
        tensors = {name: getattr(self, name) for name in ("noise", "latents", "clips")}
        tensors |= {f"conditions.{name}": tensor for name, tensor in self.conditions.tensors.items()}
        partial = path.with_suffix(".tmp")
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial)
        partial.replace(path)

    @classmethod
    def load(
        cls, path: Path, settings: SamplingSettings, batch_size: int, seed: int, device: str
    ) -> ProfileInputs:
        """What `save` wrote."""
        with safe_open(path, framework="pt") as shard:
            tensors = {name: shard.get_tensor(name) for name in sorted(shard.keys())}
        prefix = "conditions."
        conditions = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        return cls(
            noise=tensors["noise"].to(device),
            conditions=Conditions(conditions).to(device),
            latents=tensors["latents"].to(device),
            clips=tensors["clips"],
            settings=settings,
            batch_size=batch_size,
            seed=seed,
        )


def prepare_inputs(
    pipeline: Any,
    family: Family,
    clips_BFHWC: Tensor,
    settings: SamplingSettings,
    seed: int,
    batch_size: int = 8,
    decoded: int | None = None,
    prompts: Sequence[str] | None = None,
) -> ProfileInputs:
    """Noise, conditions and the teacher's own samples for clips uint8 (B, F, H, W, 3).

    Args:
        prompts: of the clips, for a teacher that needs them.
        decoded: how many of the samples to decode; all by default. Paired errors need none.
    """
    denoiser = getattr(pipeline, family.denoiser_name)
    seeds = [seed + i for i in range(len(clips_BFHWC))]
    given = ClipInputs(clips_BFHWC[:, 0], None if prompts is None else tuple(prompts))
    conditions = family.conditions(pipeline, given, settings, seeds)
    noise = family.noise(denoiser, settings, seeds)
    latents = sample_all(pipeline, family, denoiser, noise, conditions, settings, batch_size)
    clips = family.decode_latents(pipeline, latents[:decoded], settings)
    return ProfileInputs(noise, conditions, latents, clips, settings, batch_size, seed)


def sample_all(
    pipeline: Any,
    family: Family,
    denoiser: nn.Module,
    noise: Tensor,
    conditions: Conditions,
    settings: SamplingSettings,
    batch_size: int,
    around: Callable[[int], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Samples (B, F, C, h, w) of all clips, `batch_size` at a time, batch i within `around(i)`."""
    parts = []
    for index, start in enumerate(range(0, len(noise), batch_size)):
        stop = start + batch_size
        rows = conditions.slice(start, stop)
        with around(index):
            parts.append(family.sample(pipeline, denoiser, noise[start:stop], rows, settings))
    return torch.cat(parts)


def record_shared(pipeline: Any, family: Family, inputs: ProfileInputs, most_bytes: int) -> list[Trace]:
    """What the whole teacher computes on each batch, for `profile_unit` to go on from.

    Args:
        most_bytes: memory to use; from the first batch that does not fit on, all are computed whole.
    """
    denoiser = getattr(pipeline, family.denoiser_name)
    points = family.trace_points(denoiser)
    traces: list[Trace] = []
    for start in range(0, len(inputs.noise), inputs.batch_size):
        stop = start + inputs.batch_size
        left = most_bytes - sum(trace.size for trace in traces)
        with recorded(denoiser, points, left) as trace:
            rows = inputs.conditions.slice(start, stop)
            family.sample(pipeline, denoiser, inputs.noise[start:stop], rows, inputs.settings)
        if not trace.whole:
            break
        traces.append(trace)
    return traces


def profile_unit(
    pipeline: Any,
    family: Family,
    unit: str,
    variant: Variant,
    inputs: ProfileInputs,
    extractors: Extractors,
    teacher_features: Mapping[str, NDArray[np.float32]] | None = None,
    traces: Sequence[Trace] = (),
) -> dict[str, float]:
    """Damage when `unit` is removed or replaced; the model is as before afterwards.

    Args:
        extractors: name -> features of clips (n, F, H, W, 3); `embedded`, `content`, `motion`.
        teacher_features: of `inputs.clips`, where they are known already.
        traces: of the first batches (`record_shared`): there only what follows the unit is computed.

    Returns:
        `fvd`, `content`, `motion`, `paired_mse`, each with `_low` and `_high`.
    """
    latents = unit_latents(pipeline, family, unit, variant, inputs, traces)
    clips = family.decode_latents(pipeline, latents, inputs.settings)
    return damage(latents, clips, inputs, extractors, teacher_features)


def unit_latents(
    pipeline: Any,
    family: Family,
    unit: str,
    variant: Variant,
    inputs: ProfileInputs,
    traces: Sequence[Trace] = (),
) -> Tensor:
    """Samples (B, F, C, h, w) with `unit` removed or replaced; arguments as in `profile_unit`."""
    denoiser = getattr(pipeline, family.denoiser_name)
    points = family.trace_points(denoiser)
    units = family.units(denoiser, inputs.settings, "temporal")
    modules = next((known.modules for known in units if known.name == unit), ())
    start = start_of(points, modules)

    def shared(batch: int) -> AbstractContextManager[None]:
        return replayed(denoiser, points, start, traces[batch]) if batch < len(traces) else nullcontext()

    noise, conditions = inputs.noise, inputs.conditions
    with family.bypass(denoiser, unit, variant, inputs.seed):
        return sample_all(
            pipeline, family, denoiser, noise, conditions, inputs.settings, inputs.batch_size, shared
        )


def damage(
    latents: Tensor,
    clips: Tensor,
    inputs: ProfileInputs,
    extractors: Extractors,
    teacher_features: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, float]:
    """Distances of samples to the teacher's of the same conditions, as `profile_unit` returns them."""
    from vdmini_core.metrics import frechet_with_interval

    row: dict[str, float] = {}
    for name, extract in extractors.items():
        theirs = extract(inputs.clips) if teacher_features is None else teacher_features[name]
        result = frechet_with_interval(extract(clips), theirs, inputs.seed, paired=True)
        row |= _interval(COLUMNS[name], result.value, result.low, result.high)
    return row | paired_damage(latents, inputs.latents)


def paired_damage(latents: Tensor, teacher_latents: Tensor) -> dict[str, float]:
    """`paired_mse` with its 95 % interval over clips (Student's t), for latents (B, F, C, h, w)."""
    return paired_interval(clip_errors(latents, teacher_latents))


def clip_errors(latents: Tensor, teacher_latents: Tensor) -> list[float]:
    """Mean squared error of each clip's latents (B, F, C, h, w)."""
    errors = (latents.double() - teacher_latents.double()).square().flatten(1).mean(1)
    return [float(error) for error in errors]


def paired_interval(errors: Sequence[float]) -> dict[str, float]:
    """`paired_mse` of the clips' errors with its 95 % interval (Student's t)."""
    mean, reach = float(np.mean(errors)), 0.0
    if len(errors) > 1:
        reach = float(stats.sem(errors)) * float(stats.t.ppf(0.975, len(errors) - 1))
    return _interval("paired_mse", mean, max(0.0, mean - reach), mean + reach)


def noise_floor(
    pipeline: Any,
    family: Family,
    inputs: ProfileInputs,
    extractors: Extractors,
    teacher_features: Mapping[str, NDArray[np.float32]],
) -> dict[str, float]:
    """What the same figures show when nothing but the noise differs: the whole teacher on other seeds."""
    denoiser = getattr(pipeline, family.denoiser_name)
    seeds = [2**31 + inputs.seed + i for i in range(len(inputs.noise))]
    noise = family.noise(denoiser, inputs.settings, seeds)
    latents = sample_all(
        pipeline, family, denoiser, noise, inputs.conditions, inputs.settings, inputs.batch_size
    )
    clips = family.decode_latents(pipeline, latents, inputs.settings)
    return damage(latents, clips, inputs, extractors, teacher_features)


def assemble(
    units: Sequence[Unit],
    results: Mapping[tuple[str, str], Mapping[str, float]],
    floor: Mapping[str, float],
    teacher_fingerprint: str,
    clips: int,
    seed: int,
) -> dict[str, Any]:
    """The table `sensitivity.json`: a row per unit in the order the data meets them, all variants inside."""
    rows = []
    for unit in units:
        row = unit.to_dict()
        row |= {variant: dict(found) for (name, variant), found in results.items() if name == unit.name}
        rows.append(row)
    return {
        "units": rows,
        "noise_floor": dict(floor),
        "teacher_fingerprint": teacher_fingerprint,
        "clips": clips,
        "seed": seed,
    }


def _interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    """Six significant digits: the last bits of float arithmetic are nobody's finding."""
    found = {name: value, f"{name}_low": low, f"{name}_high": high}
    return {key: float(f"{number:.6g}") for key, number in found.items()}
