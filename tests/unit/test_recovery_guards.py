"""A recovery that survives and shows itself: rollbacks and their resume, students kept and chosen. No Ray."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import pytest
import ray.train
import torch
from recovery_toys import toy_batches, toy_params, toy_step, toy_unet
from torch import Tensor

import tasks.recovery_worker as worker
from tasks.monitor import QuietMonitor
from tasks.recovery_checkpoints import BEST, is_complete, load_state, newest_checkpoint, read_rows
from tasks.recovery_stop import STOP, STOPPED, raise_if_stopped
from tasks.recovery_view import bring_best_back, load_kept, read_history
from tasks.recovery_watch import STORAGE, STUDENTS, checkpoint_name, student_folder
from tasks.stage import StageJob
from vdmini_core.artifacts import read_json, write_json
from vdmini_core.data.clip_source import as_source
from vdmini_core.distillation.cost.devices import peak_flops
from vdmini_core.distillation.data import RecoveryBatches
from vdmini_core.distillation.encoding import ClipEncoder
from vdmini_core.distillation.guards import History
from vdmini_core.distillation.latents import precompute
from vdmini_core.distillation.memory_in_use import memory_in_use
from vdmini_core.distillation.optim import rate_at
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.distillation.utilisation import step_flops
from vdmini_core.errors import ParamsError, TrainingError
from vdmini_core.models.denoiser import load_denoiser
from vdmini_core.models.flops import denoiser_flops
from vdmini_core.models.registry import family_of, load_pipeline, load_settings, save_pipeline
from vdmini_core.params import DistillParams, Params, parse_params
from vdmini_core.profiling.sensitivity import prepare_inputs
from vdmini_core.teacher.architecture import build_pipeline

STEPS, EVERY = 4, 1


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nano teacher, another as its student, latents and held-out samples."""
    root = tmp_path_factory.mktemp("guards")
    for name, seed in (("teacher", 0), ("student", 1), ("same", 0)):
        save_pipeline(build_pipeline("nano", seed), root / name, None)
    pipeline = load_pipeline(root / "teacher")
    settings = load_settings(root / "teacher")
    settings = replace(settings, steps=1, guidance=1.0, frames=2, height=16, width=16)
    family: Any = family_of(pipeline)
    shape = (8, settings.frames, settings.height, settings.width, 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (root / "work").mkdir()
    encoder = ClipEncoder(family, pipeline, settings, 0)
    precompute(encoder, as_source(clips[:4]), root / "work" / "latents", {})
    prepare_inputs(pipeline, family, clips[4:], settings, 0).save(root / "work" / "validation.safetensors")
    write_json(root / "settings.json", asdict(settings))
    return root


@pytest.fixture(scope="module")
def loaded(source: Path) -> dict[str, tuple[Any, dict[str, Tensor]]]:
    """Every pipeline once, with the denoiser's weights as they were."""
    pipelines = {name: load_pipeline(source / name) for name in ("teacher", "student", "same")}
    return {
        name: (pipeline, copy.deepcopy(pipeline.unet.state_dict())) for name, pipeline in pipelines.items()
    }


def _fresh(entry: tuple[Any, dict[str, Tensor]]) -> Any:
    """As loading it again, which takes as long as a step."""
    pipeline, weights = entry
    pipeline.unet.zero_grad()
    pipeline.unet.load_state_dict(weights)
    return pipeline


@pytest.fixture
def recover(
    loaded: dict[str, Any], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs the worker's function with this process in Ray's place; returns the scratch folder."""
    monkeypatch.setattr(worker, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker, "load_denoiser", lambda folder, _: _fresh(loaded[Path(folder).name]).unet)
    plain, plain_step = RecoveryBatches.batch, RecoveryStep.step

    def run(
        name: str,
        broken: tuple[int, ...] = (),
        kill_at: int = 0,
        stop_at: int = 0,
        student: str = "student",
        **changes: Any,
    ) -> Path:
        work = tmp_path / name
        if not work.exists():
            shutil.copytree(source / "work", work)
        attempts = list(broken)

        def batch(self: RecoveryBatches, step: int, *args: int) -> Any:
            if step + 1 == kill_at and not attempts:
                raise Killed
            found = plain(self, step, *args)
            if attempts and step + 1 == attempts[0]:
                attempts.pop(0)
                return replace(found, clean_BFChw=torch.full_like(found.clean_BFChw, math.nan))
            return found

        def learn(self: RecoveryStep, given: Any) -> dict[str, float]:
            if self.step_count + 1 == stop_at:
                write_json(work / STOP, {})
            return plain_step(self, given)

        monkeypatch.setattr(RecoveryStep, "step", learn)
        monkeypatch.setattr(RecoveryBatches, "batch", batch)
        session = _Session(work)
        monkeypatch.setattr(worker, "train", session)
        for part in ("report", "Checkpoint", "get_preemption_info"):
            monkeypatch.setattr(ray.train, part, getattr(session, part))
        params = DistillParams.model_validate(
            {
                **{"steps": STEPS, "checkpoint_every": EVERY, "batch_size": 2, "workers": 1},
                **{"learning_rate": 1e-3, "validate_clips": 4, "sample_clips": 1},
                # the student alone: no test here is about the terms
                **{"lambda_icd": 0, "lambda_mca": 0, "task_loss": "reconstruction", **changes},
            }
        )
        found = newest_checkpoint(work / STORAGE)
        spec = worker.RecoverySpec(
            teacher=str(source / "teacher"),
            student=str(source / student),
            prepared="",  # latents are there: nothing is encoded
            latents=str(work / "latents"),
            work=str(work),
            feature_pairs=[["down_blocks.0", "down_blocks.0"]],
            settings=read_json(source / "settings.json"),
            params=params.model_dump(mode="json"),
            seed=0,
            threads=1,
            resume_from=str(found) if found else None,
        )
        worker.train_worker(spec.to_dict())
        return work

    return run


class _Session:
    """Of `ray.train` what the worker uses, for one worker: checkpoints are copied, the last two are kept."""

    def __init__(self, work: Path) -> None:
        self.storage = work / STORAGE
        self.Checkpoint = self

    def get_context(self) -> _Session:
        return self

    def get_world_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return 1

    def get_checkpoint(self) -> None:
        return None

    def get_preemption_info(self) -> None:
        return None

    def from_directory(self, folder: Path) -> Path:
        return folder

    def report(
        self, metrics: dict[str, Any], checkpoint: Path, checkpoint_dir_name: str, **_: object
    ) -> None:
        shutil.copytree(checkpoint, self.storage / checkpoint_dir_name)
        shutil.rmtree(checkpoint)
        for old in sorted(self.storage.iterdir())[:-2]:
            shutil.rmtree(old)


def end_of(work: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]], History]:
    folder = newest_checkpoint(work / STORAGE)
    assert folder is not None
    state = load_state(folder)
    weights = {**state["student"], **{f"ema.{k}": v for k, v in state["ema"]["tensors"].items()}}
    return weights, read_rows(folder / "losses.jsonl"), History(**read_json(folder / "history.json"))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_broken_step_is_tried_again_at_half_the_rate_and_kills_change_nothing(
    recover: Callable[..., Path],
) -> None:
    once = end_of(recover("once", broken=(3,)))
    reason = "step 3 of the recovery is not finite: total, task, grad_norm"
    assert once[2].rollbacks == [{"step": 3, "back_to": 2, "rate_scale": 0.5, "reason": reason}]
    assert once[2].told() == "rolled back 1 time at step 3: learning rate x 0.5"
    assert [row["step"] for row in once[1]] == list(range(1, STEPS + 1))
    planned = [1e-3 * rate_at(step, DistillParams(steps=STEPS)) for step in range(STEPS)]
    rates = [row["lr"] / rate for row, rate in zip(once[1], planned, strict=True)]
    assert rates == pytest.approx([1, 1, 0.5, 0.5], rel=1e-6)
    # killed after and before the first checkpoint that knows of it; before, the same step breaks again
    for name, kill_at, again in (("late", 4, ()), ("early", 3, (3,))):
        with pytest.raises(Killed):
            recover(name, broken=(3,), kill_at=kill_at)
        found = end_of(recover(name, broken=again))
        assert same(found[0], once[0]) and found[1:] == once[1:], name


def test_told_to_stop_it_saves_itself_and_no_rollback_leads_there(recover: Callable[..., Path]) -> None:
    once = end_of(recover("once", broken=(4,), checkpoint_every=2))
    work = recover("told", stop_at=3, checkpoint_every=2)
    with pytest.raises(TrainingError, match=f"saved at step 3 of {STEPS}"):
        raise_if_stopped(work, STEPS)
    found = newest_checkpoint(work / STORAGE)
    assert found == work / STORAGE / checkpoint_name(3) and is_complete(found)
    (work / STOP).unlink()  # as the next driver does
    again = end_of(recover("told", broken=(4,), checkpoint_every=2))
    assert same(again[0], once[0]) and again[1:] == once[1:]
    assert again[2].rollbacks[0]["back_to"] == 2 and not (work / STOPPED).exists()


def test_a_run_may_go_back_to_its_beginning_and_ends_when_nothing_helps(recover: Callable[..., Path]) -> None:
    _, rows, history = end_of(recover("beginning", broken=(2,), steps=2, checkpoint_every=2))
    assert history.rollbacks[0]["back_to"] == 0 and [row["step"] for row in rows] == [1, 2]
    failed = read_json(recover("never", broken=(2, 2, 2), checkpoint_every=2) / "failed.json")
    assert "step 2 of the recovery is not finite" in failed["problem"]
    spoilt = "NaN or infinite values in the latents or conditions of its clips"
    assert failed["found"] == f"{spoilt}; rolled back 2 times at steps 2, 2: learning rate x 0.25"
    error = TrainingError("broken", found="1e9", fix="mend it")
    with pytest.raises(TrainingError) as caught:
        History().roll_back(error, 1, DistillParams(rollbacks=0))
    assert caught.value is error


def test_a_rollback_slows_the_heads_too() -> None:
    steps = {scale: toy_step(toy_params(lambda_task=0, lambda_icd=0)) for scale in (1.0, 0.5)}
    before = torch.cat([p.detach().flatten().clone() for p in steps[1.0].heads.parameters()])
    moved = {}
    for scale, step in steps.items():
        step.rate_scale = scale
        step.step(toy_batches().batch(0))
        after = torch.cat([p.detach().flatten() for p in step.heads.parameters()])
        moved[scale] = float((after - before).abs().max())
    assert moved[0.5] == pytest.approx(moved[1.0] / 2, rel=1e-2)


def test_the_best_student_survives_a_kill_and_others_go(recover: Callable[..., Path]) -> None:
    """The teacher itself learns other clips and leaves where it was: the first measured is the best."""
    options = {"validate_every": 1, "select": "best", "select_by": "paired_mse", "learning_rate": 1e-2}
    with pytest.raises(Killed):
        recover("best", kill_at=4, student="same", **options)
    work = recover("best", student="same", **options)
    history, params = end_of(work)[2], DistillParams.model_validate(options)
    errors = [row["paired_mse"] for row in history.validations]
    assert len(errors) == 4 and min(errors) == errors[0]
    assert history.kept(params) == 1 and history.kept(params.model_copy(update={"select": "last"})) == 4
    # those of the checkpoints that are left, and the best that these know
    assert sorted(p.name for p in (work / STUDENTS).iterdir()) == [f"step-{s:08d}" for s in (1, 3, 4)]
    exported = load_denoiser(student_folder(work, 4)).state_dict()
    state = load_state(work / STORAGE / checkpoint_name(4))
    assert same(exported, {**state["student"], **state["ema"]["tensors"]})
    assert type(load_pipeline(student_folder(work, 1))).__name__ == "StableVideoDiffusionPipeline"


def test_the_best_student_comes_along_with_its_checkpoint(
    recover: Callable[..., Path], source: Path, tmp_path: Path
) -> None:
    """A machine that has the checkpoint alone writes it again: from what lies in it."""
    options = {"validate_every": 1, "select": "best", "select_by": "paired_mse", "learning_rate": 1e-2}
    (tmp_path / "artifacts" / "prune").mkdir(parents=True)
    (tmp_path / "artifacts" / "prune" / "student").symlink_to(source / "same", target_is_directory=True)
    params = Params.model_validate({"distill": options})
    for steps in (4, 1):  # the best is of step 1: an earlier one, and the last
        work = recover(f"best of {steps}", student="same", steps=steps, **options)
        wanted = load_denoiser(student_folder(work, 1)).state_dict()
        shutil.rmtree(work / STUDENTS)
        found = newest_checkpoint(work / STORAGE)
        assert found is not None and (found / BEST).is_file() == (steps == 4)
        job = StageJob(tmp_path, params, tmp_path / "out", work, QuietMonitor())
        bring_best_back(job, found, "full")
        assert same(load_denoiser(student_folder(work, 1)).state_dict(), wanted), steps
        assert [path.name for path in (work / STUDENTS).iterdir()] == ["step-00000001"]
        denoiser = load_denoiser(source / "student")
        assert load_kept(job, read_history(found), denoiser) == 1
        assert steps == 1 or same(denoiser.state_dict(), wanted)


def test_slices_of_a_batch_and_a_discriminator_go_together(recover: Callable[..., Path]) -> None:
    _, rows, history = end_of(recover("slices", lambda_mca=1.0, accumulation=2, steps=1))
    assert len(rows) == 1 and history.sight


def test_sample_videos_and_live_figures(recover: Callable[..., Path]) -> None:
    work = recover("shown", steps=2, sample_every=1, lambda_mca=1.0)
    films = sorted((work / "samples").iterdir())
    assert [film.name for film in films] == ["step-00000001-00.mp4", "step-00000002-00.mp4"]
    with av.open(str(films[0])) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    middle = frames[0].shape[1] // 2
    assert len(frames) == 2 and (frames[0][40:, : middle - 8] != frames[0][40:, middle + 8 :]).any()
    live = [row["live"] for row in read_rows(work / "losses.jsonl")]
    norms = {"grad_norm/spatial", "grad_norm/temporal", "grad_norm/heads"}
    memory = {"memory/rss_peak_mib", *(["memory/in_use_mib"] if memory_in_use() is not None else [])}
    assert set(live[0]) == norms | memory | {"clips_per_s", "seconds_left"}
    assert live[-1]["seconds_left"] == 0 and live[0]["clips_per_s"] > 0
    for row, vital in zip(end_of(work)[1], live, strict=True):
        whole = math.hypot(vital["grad_norm/spatial"], vital["grad_norm/temporal"])
        assert whole == pytest.approx(row["grad_norm"], rel=1e-4) and "live" not in row


def test_the_history_breaks_ties_for_the_earlier_and_never_keeps_what_is_not_finite() -> None:
    rows = [{"step": s, "fvd": v} for s, v in ((2, math.nan), (4, 1.0), (6, 1.0), (8, 2.0))]
    history = History(validations=rows, saved=8)
    assert history.best("fvd") == 4
    best = DistillParams(select="best", validate_every=2)
    assert History(validations=rows[:1], saved=2).kept(best) == 2
    with pytest.raises(ParamsError, match="validate_every"):
        parse_params({"distill": {"select": "best"}})


def test_operations_of_a_step() -> None:
    settings = replace(toy_batches().settings)
    student, teacher = toy_unet(1), toy_unet(0)
    counts = denoiser_flops(teacher, settings)
    assert step_flops(student, teacher, (), settings, taught=False) == 3 * counts[""]
    whole = step_flops(student, teacher, ("down_blocks.0",), settings)
    assert whole == 4 * counts[""] + 3 * counts["down_blocks.0"] and counts["down_blocks.0"] > 0
    clips_too = step_flops(student, teacher, ("down_blocks.0",), settings, judges=2)
    assert clips_too == whole + counts["down_blocks.0"]
    twice = step_flops(student, teacher, (), settings, taught=True, consistent=True)
    assert (
        twice == step_flops(student, teacher, (), settings, taught=False, consistent=True) == 5 * counts[""]
    )
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp32") == 67e12 and peak_flops("NVIDIA A2", "bf16") is None
