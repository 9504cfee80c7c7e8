"""What a recovery needs: books kept by hand, the ledger on real tensors, exact parts, honest refusals."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import svd_toys
import torch
from recovery_toys import PAIRS, SETTINGS, ToyFamily, toy_batches, toy_params, toy_step, toy_unet
from torch import nn
from typer.testing import CliRunner

from vdmini_core.distillation.cost import devices, estimate
from vdmini_core.distillation.cost.devices import Device, free_memory, known_device, measure_speed
from vdmini_core.distillation.cost.ledger import GRADIENTS, Ledger
from vdmini_core.distillation.cost.rehearsal import Choices, Footprint, rehearse
from vdmini_core.distillation.losses import total_loss
from vdmini_core.errors import DataError, ModelError, TrainingError
from vdmini_core.models.base import Student
from vdmini_core.pruning.plan import Plan

# the student's task loss and nothing else: a fraction of the operators
STUDENT_ALONE: dict[str, object] = {"lambda_mca": 0.0, "lambda_icd": 0.0, "task_loss": "reconstruction"}


class OutlinedToys(ToyFamily):
    """The toy family with a student to outline: the teacher's twin."""

    def outline(self, denoiser: nn.Module, *_: object) -> Student:
        return Student(copy.deepcopy(denoiser), {}, ())


@pytest.fixture(scope="module")
def unet() -> Any:
    return toy_unet().to("meta")


def toy_footprint(unet: Any, choices: Choices, **params: object) -> Footprint:
    student = copy.deepcopy(unet)
    return rehearse(ToyFamily(), unet, student, PAIRS, toy_params(**params), SETTINGS, choices)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(unet: Any) -> Footprint:
    return toy_footprint(unet, Choices())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_books_of_a_network_counted_by_hand(device: str) -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).to(device)
    x = torch.zeros(8, 4, device=device)
    ledger = Ledger()
    ledger.watch_gradients(net)
    hidden, out, number = 4 * 8 * 16, 4 * 8 * 2, 4
    with ledger:
        with ledger.phase("forward"):
            y = net(x)
            # the linear layer's output goes once ReLU has made its own, which two layers keep
            assert ledger.live["activations"] == hidden + out
            assert ledger.peak == 2 * hidden
        with ledger.phase("backward"):
            loss = y.sum()
            assert ledger.live["activations"] == hidden + out + number
            loss.backward()
    del y, loss
    assert ledger.live[GRADIENTS] == 4 * sum(p.numel() for p in net.parameters())
    assert ledger.live["activations"] == 0
    first, second = 2 * 8 * 4 * 16, 2 * 8 * 16 * 2
    assert ledger.flops == {"forward": first + second, "backward": first + 2 * second}


def test_peak_of_a_rehearsal_is_that_of_a_real_step(whole: Footprint) -> None:
    step, batch, ledger = toy_step(), toy_batches(1).batch(0), Ledger()
    with ledger:
        terms, heads_losses = step.losses(batch)
        total_loss(terms, step.weights()).backward()
        heads_losses["mca_discriminator"].backward()
    rehearsed = whole.parts["activations"] + whole.parts["gradients"]
    assert rehearsed == pytest.approx(ledger.peak, rel=0.005)
    assert whole.flops["teacher forward"] > 0
    assert sum(whole.flops.values()) == sum(ledger.flops.values())


@pytest.mark.parametrize("changes", [{"lambda_adversarial": 0.5, "mca_loss": "paired"}, {"r1_gamma": 1.0}])
def test_what_is_off_by_default_is_rehearsed_too(
    unet: Any, whole: Footprint, changes: dict[str, Any]
) -> None:
    step, batch, ledger = toy_step(toy_params(**changes)), toy_batches(1).batch(0), Ledger()
    with ledger:
        terms, heads_losses = step.losses(batch)
        total_loss(terms, step.weights()).backward()
        penalty = [terms["r1"]] if "r1" in terms else []
        torch.autograd.backward([*heads_losses.values(), *penalty])
    found = toy_footprint(unet, Choices(), **changes)
    rehearsed = found.parts["activations"] + found.parts["gradients"]
    assert rehearsed == pytest.approx(ledger.peak, rel=0.005)
    assert sum(found.flops.values()) == sum(ledger.flops.values()) > sum(whole.flops.values())


def test_parts_are_exact(unet: Any, whole: Footprint) -> None:
    weights = 4 * sum(p.numel() for p in unet.parameters())
    step = toy_step()
    assert whole.parts["teacher"] == whole.parts["student"] == weights
    assert whole.parts["average of the student (EMA)"] == weights
    assert whole.parts["optimiser"] == 2 * weights
    state = [t for s in step.optimizer.state.values() for t in s.values()]
    assert not state  # before its first step; after it there are two tensors a parameter
    step.step(toy_batches(2).batch(0))
    held = sum(4 * t.numel() for s in step.optimizer.state.values() for k, t in s.items() if k != "step")
    assert held == whole.parts["optimiser"]
    assert whole.peak == sum(whole.parts.values())


def test_choices_change_what_they_should(unet: Any, whole: Footprint) -> None:
    less = STUDENT_ALONE
    plain = toy_footprint(unet, Choices(), **less)
    assert plain.parts["activations"] < whole.parts["activations"]
    assert toy_footprint(unet, Choices(bf16=True), **less).parts["activations"] < plain.parts["activations"]
    spared = toy_footprint(unet, Choices(checkpointing=True), **less)
    assert spared.parts["activations"] < 0.8 * plain.parts["activations"]
    assert sum(spared.flops.values()) > sum(plain.flops.values())  # blocks run again
    gradual = toy_footprint(unet, Choices(batch=2, accumulation=2), **less)
    assert gradual.parts["activations"] == plain.parts["activations"]
    assert gradual.parts["gradients"] == plain.parts["student"]  # of the clip before
    assert sum(gradual.flops.values()) == 2 * sum(plain.flops.values())
    sharded = toy_footprint(unet, Choices(batch=4, workers=4, sharded=True), **less)
    assert sharded.parts["optimiser"] == plain.parts["optimiser"] // 4


def test_refusal_names_a_way_that_fits(unet: Any) -> None:
    plan = Plan("paper", (), "x", "toy", 1, 1, 1, 1, {}, PAIRS)
    params = toy_params(batch_size=2, workers=1, **STUDENT_ALONE)
    family: Any = OutlinedToys()
    case = estimate.Case(family, unet, plan, params, SETTINGS, Choices(batch=2))
    roomy = Device("roomy", "cuda", 1e12, 2**40, 0.0, "given")
    found = estimate.estimate(case, roomy, price_per_hour=2.0)
    estimate.refuse_unless_fits(case, found)
    bill = found.to_dict()
    assert bill["time"]["step_s"] == pytest.approx(bill["flops"]["step"] / 1e12)
    assert bill["time"]["price"] == pytest.approx(2 * bill["time"]["hours"])
    assert json.dumps(bill)

    tight = replace(found, device=replace(roomy, memory=found.need - 1), there=found.need - 1)
    with pytest.raises(TrainingError, match="does not fit") as refused:
        estimate.refuse_unless_fits(case, tight)
    assert "distill.precision=bf16" in refused.value.fix

    nowhere = replace(found, device=replace(roomy, memory=1000), there=1000)
    with pytest.raises(TrainingError, match="no option makes it fit"):
        estimate.refuse_unless_fits(case, nowhere)


def test_advice_names_every_option_that_it_was_counted_with(unet: Any) -> None:
    params, family = toy_params(batch_size=2, workers=1, **STUDENT_ALONE), OutlinedToys()
    plan = Plan("paper", (), "x", "toy", 1, 1, 1, 1, {}, PAIRS)
    settings = replace(SETTINGS, height=128, width=128)
    case = estimate.Case(family, unet, plan, params, settings, Choices(batch=2))  # type: ignore[arg-type]
    roomy = Device("roomy", "cuda", 1e12, 2**40, 0.0, "given")
    for text, changed, _ in estimate._changes(case, roomy, 1):
        choices, clip = changed.choices, changed.settings
        for said, meant in (
            ("distill.precision=bf16", choices.bf16),
            ("distill.activation_checkpointing=true", choices.checkpointing),
            ("distill.accumulation=2", choices.accumulation == 2),
            (f"distill.workers={choices.workers}", choices.workers != 1),
            (f"distill.batch_size={choices.batch}", choices.batch != 2),
            ("distill.parallel=fsdp2", choices.sharded),
            (f"prepare.frames={clip.frames}", clip.frames != settings.frames),
            (f"prepare.height={clip.height} prepare.width={clip.width}", clip.height != settings.height),
        ):
            assert (said in text) == meant, (said, text)
    texts = [text for text, *_ in estimate._changes(case, roomy, 1)]
    assert any(text.startswith("prepare.frames=2 ") for text in texts)
    small = estimate.as_options(
        "prepare.height=64 prepare.width=128 distill.parallel=fsdp2 distill.workers=2, one"
    )
    assert small == "--size 64x128 --set distill.parallel=fsdp2 --set distill.workers=2"
    assert estimate.as_options("prepare.frames=2") == "--frames 2"


def test_memory_there_minds_the_container(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    assert free_memory(tmp_path) == 1000 * 1024
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("900000\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("100000\n")
    assert free_memory(tmp_path) == 800_000
    # files that were read count as the container's, and go when the room is wanted
    (tmp_path / "sys/fs/cgroup/memory.stat").write_text("anon 60000\ninactive_file 30000\n")
    assert free_memory(tmp_path) == 830_000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 1000 * 1024


def test_speed_is_known_given_or_measured(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_device("H100", bf16=True, utilisation=0.5).flops_per_s == 494.5e12
    card = known_device("rtx4090", bf16=True, utilisation=1.0)
    assert card.flops_per_s == devices.peak_flops("NVIDIA GeForce RTX 4090", "bf16") == 165.2e12
    assert card.memory == 23.5 * 2**30
    with pytest.raises(DataError, match="no known device"):
        known_device("tpu", bf16=True)
    speed = measure_speed(unet, SETTINGS, "cpu", repeats=1)
    assert speed is not None and 1e7 < speed < 1e15
    monkeypatch.setattr(devices, "MEASURED_FLOPS", 1)
    assert measure_speed(unet, SETTINGS, "cpu") is None


def test_dry_run_prints_json_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli import app

    monkeypatch.chdir(tmp_path)
    said = ["--json", "--device", "h100", "--price-per-hour", "3", "--set", "distill.lambda_mca=0"]
    result = CliRunner().invoke(app, ["distill", "--dry-run", *said])
    assert result.exit_code == 0, result.output
    bill = json.loads(result.stdout)
    assert bill["memory"]["fits"] and bill["time"]["price"] > 0 and bill["choices"]["workers"] == 2
    assert not list(tmp_path.iterdir())
    assert CliRunner().invoke(app, ["distill", "--device", "h100"]).exit_code == 2


def test_a_size_that_the_teacher_cannot_take_is_refused(tmp_path: Path) -> None:
    from tasks.recovery_dry_run import make_case
    from vdmini_core.params import Params

    svd_toys.tiny_pipeline().save_pretrained(tmp_path)
    cells = svd_toys.SETTINGS.latent_scale
    fits = make_case(Params(), str(tmp_path), None, frames=3, size=(32 * cells, 48 * cells))
    assert (fits.settings.frames, fits.settings.height, fits.settings.width) == (3, 32 * cells, 48 * cells)
    with pytest.raises(ModelError, match="does not fit the teacher"):
        make_case(Params(), str(tmp_path), None, size=(32 * cells + 1, 32 * cells))
