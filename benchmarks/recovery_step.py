"""Claims: a step of the recovery costs at most 10 % more than its parts, and never waits for its data.

python benchmarks/recovery_step.py [--rounds 12] [--clips 1]

The shipped teacher and its student by the paper's plan, whole steps of `RecoveryStep` with batches drawn as
a worker draws them, against its parts alone, in turns in one process: the teacher's forward pass, the
student's forward and backward pass with its losses, the discriminator (its passes over fake and real clips,
the way back to the fake, the heads), gradient clipping with optimiser and moving average, and the batch.
Claimed are medians of ratios within a round: whole step over the sum of its parts, and the batch over the
whole step. Then steps in a row as a worker takes them, by the clock on the wall: latents in files, the next
batch made in a thread beside the present step; claimed is the share of time spent waiting for batches. The
result is `benchmarks/results/recovery_step-DATE.json`.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.bundled import bundled_teacher_path
from vdmini_core.data.clip_source import as_source
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.distillation.ahead import BatchesAhead
from vdmini_core.distillation.cost.batch import meta_batch
from vdmini_core.distillation.data import RecoveryBatch, RecoveryBatches, RecoveryData
from vdmini_core.distillation.encoding import ClipEncoder
from vdmini_core.distillation.feature_taps import feature_taps
from vdmini_core.distillation.latents import StoredLatents, precompute
from vdmini_core.distillation.losses import (
    icd_loss,
    mca_discriminator_loss,
    mca_generator_loss,
    task_reconstruction,
)
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.base import Conditions
from vdmini_core.models.inspect import load_architecture
from vdmini_core.models.registry import family_of, load_pipeline, load_settings
from vdmini_core.params import DistillParams, PlanParams
from vdmini_core.pruning.recipes import make_plan

RESULTS = Path(__file__).parent / "results"
OVERHEAD, WAIT = 0.10, 0.02
PARTS = ("teacher", "student", "discriminator", "optimiser", "data")


def setting(clips: int) -> tuple[RecoveryStep, RecoveryBatches]:
    """Step and batches of the shipped teacher, on latents of noise."""
    folder = bundled_teacher_path("mini")
    family, on_meta, _, settings = load_architecture(folder)
    teacher: Any = UNetSpatioTemporalConditionModel.from_pretrained(folder, subfolder="unet")
    units = family.units(on_meta, settings)
    plan = make_plan(PlanParams(recipe="paper"), family, on_meta, units, None, settings, 0)
    shapes = meta_batch(family, on_meta, settings, 8 * clips)
    torch.manual_seed(0)
    given = {name: torch.rand(t.shape) for name, t in shapes.conditions.tensors.items()}
    data = RecoveryData(torch.randn(shapes.clean_BFChw.shape), Conditions(given))
    batches = RecoveryBatches(data, family, settings, clips, seed=0)
    params = DistillParams(batch_size=clips, workers=1, learning_rate=1e-6)
    student = family.prune(teacher, plan.removed)
    step = RecoveryStep(family, student, teacher, plan.feature_pairs, params, batches.batch(0))
    return step, batches


class Parts:
    """What a step consists of, each part on inputs made beforehand."""

    def __init__(self, step: RecoveryStep, batches: RecoveryBatches) -> None:
        self.step, self.batches, self.number = step, batches, 0
        self.batch = batches.batch(0)
        self.real, self.teacher_feats = self._teacher()
        with torch.no_grad():
            self.fake = self._denoise(step.student)
        step.step(self.batch)  # optimisers have their state, parameters their gradients

    def _denoise(self, model: Any) -> Tensor:
        batch: RecoveryBatch = self.batch
        given = (batch.noisy_BFChw, batch.sigma_B, batch.conditions)
        return self.step.family.denoise(model, *given).float()

    def _teacher(self) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad(), feature_taps(self.step.teacher, [t for _, t in self.step.pairs]) as found:
            real = self._denoise(self.step.teacher)
        return real, [found[t] for _, t in self.step.pairs]

    def teacher(self) -> None:
        """Its forward pass with taps."""
        self._teacher()

    def student(self) -> None:
        """Forward with taps, task and ICD losses, backward."""
        step, params = self.step, self.step.params
        step.optimizer.zero_grad(set_to_none=True)
        with feature_taps(step.student, [s for s, _ in step.pairs]) as found:
            fake = self._denoise(step.student)
        pairs = [found[s] for s, _ in step.pairs]
        loss = params.lambda_icd * icd_loss(pairs, self.teacher_feats, params.icd_normalise)
        for name, target in (("reconstruction", self.batch.clean_BFChw), ("teacher", self.real)):
            weight = step.task_weights[name]
            loss = loss + weight * task_reconstruction(fake, target, self.batch.sigma_B, step.weighting)
        loss.backward()

    def discriminator(self) -> None:
        """Encoder on fake, with the way back to it, and on real; heads for both sides."""
        step, sigma = self.step, self.batch.renoise_sigma_B
        heads: Any = step.heads["mca"]
        fake = self.fake.detach().requires_grad_()
        fake_feats = step._encode(self.batch, fake)
        with torch.no_grad():
            real_feats = step._encode(self.batch, self.real)
        heads.requires_grad_(False)
        mca_generator_loss(heads(fake_feats, sigma), step.params.mca_generator).backward()
        heads.requires_grad_(True)
        step.head_optimizer.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        judged = heads([feature.detach() for feature in fake_feats], sigma)
        mca_discriminator_loss(judged, heads(real_feats, sigma)).backward()

    def optimiser(self) -> None:
        """Clipping, both optimisers, moving average."""
        step = self.step
        for module in (step.student, step.heads):
            torch.nn.utils.clip_grad_norm_(module.parameters(), step.params.max_grad_norm)
        step.optimizer.step()
        step.head_optimizer.step()  # type: ignore[union-attr]
        step.ema.update(step.student)

    def data(self) -> None:
        """The batch of the next step."""
        self.number += 1
        self.batches.batch(self.number)

    def whole(self) -> None:
        """What a worker does for one step."""
        self.number += 1
        self.step.step(self.batches.batch(self.number))


def clock(call: Callable[[], None]) -> float:
    """Milliseconds of processor time, which other processes on the machine do not add to."""
    began = time.process_time()
    call()
    return 1e3 * (time.process_time() - began)


def waiting(step: RecoveryStep, clips: int, steps: int) -> float:
    """Share of the time of `steps` steps that went by until their batches were there."""
    folder = bundled_teacher_path("mini")
    family, settings = family_of(folder), load_settings(folder)
    encoder = ClipEncoder(family, load_pipeline(folder, "cpu"), settings, 0)
    spec = ProceduralSpec(settings.frames, settings.height, settings.width)
    source = as_source(torch.from_numpy(render_clips(spec, split_seeds("train", 2 * clips + 6, 0))))
    with tempfile.TemporaryDirectory() as made:
        with torch.no_grad():
            precompute(encoder, source, Path(made), "benchmark")
        batches = RecoveryBatches(StoredLatents(Path(made)), family, settings, clips, seed=0)
        spent = []
        with BatchesAhead(batches, steps) as ahead:
            for number in range(steps):
                began = time.perf_counter()
                step.step(ahead.batch(number))
                spent.append(time.perf_counter() - began)
        return ahead.waiting(spent)["data_wait_percent"] / 100


def run(clips: int, rounds: int) -> dict[str, Any]:
    """Every part and the whole step in turns, in a rotating order."""
    step, batches = setting(clips)
    parts = Parts(step, batches)
    names = (*PARTS, "whole")
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + 1):
        turn = index % len(names)
        for name in (*names[turn:], *names[:turn]):
            if name == "optimiser":
                parts.student()  # gradients as they are in a step
            took = clock(getattr(parts, name))
            if index:  # the first round warms up
                times[name].append(took)
    medians = {name: round(statistics.median(found), 2) for name, found in times.items()}
    # in a round all parts meet the same machine: the ratio is of one round, its median over rounds
    ratios = [w / sum(times[p][i] for p in PARTS) for i, w in enumerate(times["whole"])]
    waits = [d / w for d, w in zip(times["data"], times["whole"], strict=True)]
    return {
        "ms": medians,
        "share": {name: round(medians[name] / sum(medians[p] for p in PARTS), 4) for name in PARTS},
        "whole / parts": round(statistics.median(ratios), 4),
        "whole / parts, quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)],
        "data / whole": round(statistics.median(waits), 5),
        "waited": round(waiting(step, clips, 2 * rounds), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--clips", type=int, default=1)
    arguments = parser.parse_args()
    found = run(arguments.clips, arguments.rounds)
    over, wait = found["whole / parts"] - 1, found["data / whole"]
    verdicts = {
        f"a step costs at most {OVERHEAD:.0%} more than its parts": {
            "holds": over <= OVERHEAD,
            "found": round(over, 4),
        },
        f"the batch takes at most {WAIT:.0%} of a step": {"holds": wait <= WAIT, "found": wait},
        f"steps wait for their batches at most {WAIT:.0%} of the time": {
            "holds": found["waited"] <= WAIT,
            "found": found["waited"],
        },
    }
    result = found | {
        "verdicts": verdicts,
        "settings": vars(arguments)
        | {
            "teacher": "mini",
            "threads": torch.get_num_threads(),
            "clock": "processor's; of waiting the wall's",
        },
        "hardware": device_name(),
        "libraries": library_versions(),
    }
    path = RESULTS / f"recovery_step-{datetime.date.today().isoformat()}.json"
    write_json(path, result)
    for claim, verdict in verdicts.items():
        print("holds" if verdict["holds"] else "FAILS", claim, verdict["found"])
    print(path)


if __name__ == "__main__":
    main()
