"""Numbers not finite, rates far too high, sets that hold one thing: a plain message or finite figures."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recovery_toys import ShallowFamily, toy_batches, toy_params, toy_step
from torch import Tensor, nn
from video_toys import encode, numbered

from vdmini_core.data.clip_source import as_source
from vdmini_core.data.ingest import ingest_folder
from vdmini_core.distillation.data import RecoveryBatch
from vdmini_core.distillation.encoding import ClipEncoder
from vdmini_core.distillation.guards import History
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.errors import DataError, TrainingError
from vdmini_core.metrics import load_extractor
from vdmini_core.metrics.comparison import compare_rows, repeat_first_frame
from vdmini_core.metrics.folder import Settings
from vdmini_core.metrics.folder_distance import folder_distance
from vdmini_core.models.base import Conditions
from vdmini_core.models.registry import family_of, load_settings, save_pipeline
from vdmini_core.params import PrepareParams
from vdmini_core.profiling import sensitivity
from vdmini_core.teacher.architecture import build_pipeline

Break = Callable[[RecoveryStep, RecoveryBatch], RecoveryBatch]


def _spoil(part: nn.Module) -> None:
    """NaN in the gradient of one weight, as a kernel that overflows leaves it."""
    next(p for p in part.parameters() if p.requires_grad).register_hook(lambda grad: grad * math.nan)


def inf_in_latents(step: RecoveryStep, batch: RecoveryBatch) -> RecoveryBatch:
    clean = batch.clean_BFChw.clone()
    clean[0, 0, 0, 0, 0] = math.inf
    return replace(batch, clean_BFChw=clean)


def nan_in_conditions(step: RecoveryStep, batch: RecoveryBatch) -> RecoveryBatch:
    given = {name: tensor.clone() for name, tensor in batch.conditions.tensors.items()}
    given["image_embeds"][0] = math.nan
    return replace(batch, conditions=Conditions(given))


def nan_in_gradient(step: RecoveryStep, batch: RecoveryBatch) -> RecoveryBatch:
    _spoil(step.student)
    return batch


def nan_in_gradient_of_heads(step: RecoveryStep, batch: RecoveryBatch) -> RecoveryBatch:
    _spoil(step.heads)
    return batch


def inf_in_heads(step: RecoveryStep, batch: RecoveryBatch) -> RecoveryBatch:
    with torch.no_grad():
        next(step.heads.parameters()).fill_(math.inf)
    return batch


@pytest.mark.parametrize(
    ("broken", "names", "advice"),
    [
        (inf_in_latents, "total, task", "latents or conditions of its clips"),
        (nan_in_conditions, "total, task", "latents or conditions of its clips"),
        (nan_in_gradient, "grad_norm", "learning_rate"),
        (nan_in_gradient_of_heads, "grad_norm", "learning_rate"),
        (inf_in_heads, "total, mca_generator", "learning_rate"),
    ],
)
def test_a_step_that_is_not_finite_says_where_and_changes_nothing(
    broken: Break, names: str, advice: str
) -> None:
    step, batch = toy_step(toy_params(lambda_icd=0), shallow=True), toy_batches().batch(0)
    batch = broken(step, batch)
    before = [tensor.clone() for part in (step.student, step.heads) for tensor in part.state_dict().values()]
    averaged = {name: tensor.clone() for name, tensor in step.ema.tensors.items()}
    with pytest.raises(TrainingError) as caught:
        step.step(batch)
    assert f"step 1 of the recovery is not finite: {names}" in str(caught.value)
    assert advice in str(caught.value)
    after = [tensor for part in (step.student, step.heads) for tensor in part.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in step.ema.tensors.items())
    assert step.step_count == 0 and not step.optimizer.state


class _Gain(nn.Module):
    """One weight: what it makes of noise of level 700 is off by 700 times its error."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))


class _GainFamily(ShallowFamily):
    def denoise(
        self, denoiser: nn.Module, noisy_BFChw: Tensor, sigma_B: Tensor, conditions: Conditions
    ) -> Tensor:
        return denoiser.gain * noisy_BFChw  # type: ignore[operator]


def test_a_rate_far_too_high_is_stopped_rolled_back_and_told() -> None:
    """As the worker does: back to the beginning at half the rate, until the rollbacks are spent."""
    terms = {"lambda_icd": 0, "lambda_mca": 0, "task_loss": "reconstruction"}
    params = toy_params(learning_rate=0.99, warmup_steps=0, **terms)
    history, batches = History(), toy_batches()
    reasons = []
    with pytest.raises(TrainingError) as caught:
        while True:
            step = RecoveryStep(_GainFamily(), _Gain(), _Gain(), (), params, batches.batch(0))
            step.rate_scale = history.rate_scale
            try:
                for index in range(params.steps):
                    step.step(batches.batch(index))
            except TrainingError as error:
                reasons.append(error.problem)
                history.roll_back(error, step.step_count + 1, params)
            else:
                pytest.fail("nothing went wrong at this rate")
    assert len(reasons) == params.rollbacks + 1
    assert all("diverged at step 2" in reason for reason in reasons)
    said = str(caught.value)
    assert (
        "rolled back 2 times" in said
        and "learning rate x 0.25" in said
        and "lower distill.learning_rate" in said
    )


@pytest.mark.parametrize("level", [None, 0.0])
def test_one_clip_over_and_over_and_black_ones_are_learned_like_any(level: float | None) -> None:
    """A set of one class; black clips, whose latents and first frames hold one value throughout."""
    batch = toy_batches().batch(0)

    def same(tensor: Tensor) -> Tensor:
        return tensor[:1].expand_as(tensor).clone() if level is None else torch.full_like(tensor, level)

    given = {name: same(t) if name == "image_latents" else t for name, t in batch.conditions.tensors.items()}
    clean = same(batch.clean_BFChw)
    batch = replace(batch, clean_BFChw=clean, conditions=Conditions(given))
    step = toy_step(shallow=True)
    for _ in range(3):
        assert all(math.isfinite(value) for value in step.step(batch).values())


def test_a_clip_that_is_encoded_to_nan_is_named_before_a_step_is_made() -> None:
    class Overflowing(ShallowFamily):
        def conditions(self, *_: object) -> Conditions:
            return Conditions({"image_embeds": torch.zeros(1, 1, 16)})

        def encode_clips(self, pipeline: Any, clip_1FHWC: Tensor) -> Tensor:
            return torch.where(clip_1FHWC.float().mean() > 1, math.nan, torch.zeros(1, 4, 4, 8, 8))

    clips = torch.zeros(3, 4, 64, 64, 3, dtype=torch.uint8)
    clips[2] = 255
    encoder = ClipEncoder(Overflowing(), None, toy_batches().settings, 0)  # type: ignore[arg-type]
    encoder.encode(as_source(clips), [0, 1])
    with pytest.raises(DataError, match=r"training clip 2 .* not finite: latents[\s\S]*precision=fp32"):
        encoder.encode(as_source(clips), [0, 1, 2])


@pytest.mark.parametrize("value", [0, 90])
def test_identical_and_black_clips_have_finite_figures(value: int) -> None:
    """Every covariance is zero; the teacher draws black, the student noise, and the other way about."""
    same = torch.full((4, 4, 32, 32, 3), value, dtype=torch.uint8)
    if value:
        same += torch.arange(32, dtype=torch.uint8)[:, None, None]
    noise = torch.randint(0, 256, same.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for teacher, student in ((same, same), (same, noise), (noise, same)):
        rows = {"real": same, "teacher": teacher, "recovered": student, "still": repeat_first_frame(student)}
        found = compare_rows(rows, same, seed=0)
        figures = [
            number
            for row in (*found["rows"].values(), *found["noise_floor"].values())
            for value in row.values()
            for number in (value if isinstance(value, list) else [value])
        ]
        assert all(math.isfinite(number) and number >= 0 for number in figures)
    assert found["noise_floor"]["fvd"]["mean"] == pytest.approx(0, abs=1e-9)


def test_a_unit_is_profiled_on_black_clips() -> None:
    pipeline = build_pipeline("nano", 0)
    family: Any = family_of(pipeline)
    settings = replace(_settings(pipeline), steps=1, guidance=1.0, frames=2, height=16, width=16)
    clips = torch.zeros((4, 2, 16, 16, 3), dtype=torch.uint8)
    inputs = sensitivity.prepare_inputs(pipeline, family, clips, settings, seed=0)
    black = replace(inputs, latents=torch.zeros_like(inputs.latents), clips=torch.zeros_like(inputs.clips))
    extractors = {name: load_extractor(name) for name in sensitivity.COLUMNS}
    unit = family.units(pipeline.unet, settings, "block")[0].name
    for given in (inputs, black):
        row = sensitivity.profile_unit(pipeline, family, unit, "removed", given, extractors)
        assert all(math.isfinite(value) for value in row.values())
        untouched = sensitivity.damage(given.latents, given.clips, given, extractors)
        assert all(abs(value) < 1e-6 for value in untouched.values())


def _settings(pipeline: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        save_pipeline(pipeline, Path(folder) / "p", None)
        return load_settings(Path(folder) / "p")


def _folder(root: Path, frames: np.ndarray, count: int = 4) -> Path:
    """The same pictures in files of other bytes."""
    root.mkdir()
    for number in range(count):
        encode(root / f"{number}.mp4", frames, fps=8, options={"crf": str(18 + number)})
    return root


def test_folders_of_black_and_of_one_video_are_refused_or_measured_plainly(tmp_path: Path) -> None:
    params = PrepareParams.model_validate(
        {"source": "folder", "videos": ".", "height": 32, "width": 32}
        | {"clips": {"train": 8, "validation": 4, "test": 2}}
    )
    black = _folder(tmp_path / "black", np.zeros((32, 48, 48, 3), np.uint8))
    one = _folder(tmp_path / "one", numbered(32, 48))
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"too few clips[\s\S]*static: frames change by less") as caught:
        ingest_folder(black, tmp_path / "out", tmp_path / "work", params, 0)
    assert "prepare.min_motion" in str(caught.value)
    found = ingest_folder(one, tmp_path / "out", tmp_path / "work", params, 0)
    assert found.count("used") == 4
    for real, made in ((black, black), (one, one), (black, one)):
        distance = folder_distance(real, made, Settings(frames=8, size=(32, 32), workers=1)).to_json()
        low, high = distance["interval"]
        assert math.isfinite(distance["value"]) and 0 <= low <= high < math.inf
        assert (distance["value"] < 1e-3) == (real == made)
