"""Recovery of a cut VAE decoder: it learns, resumes exactly, leaves encoder and teacher alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from vae_toys import plan_of, tiny_vae

from vdmini_core.distillation.decoder_recovery import (
    PatchDiscriminator,
    _judge_step,
    decoder_quality,
    perceptual_distance,
    recover_decoder,
    with_predecessor,
)
from vdmini_core.errors import TrainingError
from vdmini_core.params import DecoderRecoveryParams
from vdmini_core.pruning.vae_decoder import prune_decoder

PARAMS = DecoderRecoveryParams(
    steps=8,
    batch_size=2,
    crop_cells=8,
    crop_frames=3,
    adversarial_start=0.25,
    checkpoint_every=3,
    log_every=2,
)


def clips(count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    small = torch.randint(0, 256, (count, 4, 4, 4, 3), generator=generator).float()
    return small.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)


def pair() -> tuple[Any, Any]:
    teacher = tiny_vae((64, 64))
    return teacher, prune_decoder(teacher, plan_of(teacher, (64, 32), (2, 1), False))


def test_it_learns_and_only_the_decoder_changes(tmp_path: Path) -> None:
    teacher, student = pair()
    before, encoder = copy.deepcopy(teacher.state_dict()), copy.deepcopy(student.encoder.state_dict())
    first = decoder_quality(student, teacher, clips())
    long = PARAMS.model_copy(update={"steps": 60})
    rows = recover_decoder(student, teacher, clips(), long, 0, tmp_path)
    last = decoder_quality(student, teacher, clips())
    assert last["psnr"] > first["psnr"] + 1
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(value, encoder[name]) for name, value in student.encoder.state_dict().items())


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    teacher, whole = pair()
    rows = recover_decoder(whole, teacher, clips(), PARAMS, 0, tmp_path / "whole")
    _, stopped = pair()

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover_decoder(stopped, teacher, clips(), PARAMS, 0, tmp_path / "stopped", stop)
    _, again = pair()
    assert recover_decoder(again, teacher, clips(), PARAMS, 0, tmp_path / "stopped") == rows
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_the_discriminator_comes_to_tell_real_from_painted() -> None:
    torch.manual_seed(0)
    judged = PatchDiscriminator()
    optimizer = torch.optim.AdamW(judged.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(2, 3, 3, 16, 16, generator=generator) * 2 - 1
    painted = real.mean(dim=(3, 4), keepdim=True).expand_as(real)
    losses = [_judge_step(judged, optimizer, painted, real).item() for _ in range(60)]
    assert losses[0] == pytest.approx(2, abs=0.2) and losses[-1] < 1
    scores = [judged(with_predecessor(frames)).mean().item() for frames in (real, painted)]
    assert scores[0] > 0 > scores[1]


def test_the_discriminator_learns_alone_at_first(tmp_path: Path) -> None:
    """Before its start the adversarial term does not move the decoder: as if its weight were 0."""
    teacher, late = pair()
    alone = PARAMS.model_copy(update={"adversarial_start": 1.0})
    recover_decoder(late, teacher, clips(), alone, 0, tmp_path)
    _, without = pair()
    off = PARAMS.model_copy(update={"lambda_adversarial": 0.0})
    recover_decoder(without, teacher, clips(), off, 0, tmp_path / "off")
    expected = without.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in late.state_dict().items())
    _, early = pair()
    recover_decoder(early, teacher, clips(), PARAMS, 0, tmp_path / "early")
    assert any(not torch.equal(value, expected[name]) for name, value in early.state_dict().items())


def test_a_broken_loss_stops_before_the_weights(tmp_path: Path) -> None:
    teacher, student = pair()
    with torch.no_grad():
        student.decoder.conv_out.bias.fill_(float("nan"))
    before = student.decoder.conv_in.weight.clone()
    with pytest.raises(TrainingError, match="nan"):
        recover_decoder(student, teacher, clips(), PARAMS, 0, tmp_path)
    assert torch.equal(student.decoder.conv_in.weight, before)
    assert not (tmp_path / "decoder.pt").exists()


def test_the_perceptual_distance_is_nought_for_the_same_and_has_the_gradient() -> None:
    teacher, _ = pair()
    real = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert perceptual_distance(teacher.encoder, real, real).item() == pytest.approx(0, abs=1e-12)
    made = (real + 0.1).requires_grad_(True)
    perceptual_distance(teacher.encoder, made, real).backward()
    assert made.grad is not None and made.grad.abs().sum() > 0


def test_the_discriminator_sees_a_frame_beside_the_one_before() -> None:
    frames = torch.arange(2 * 3).reshape(2, 3, 1, 1, 1).expand(2, 3, 3, 16, 16).float()
    pairs = with_predecessor(frames)
    assert pairs.shape == (4, 6, 16, 16)
    assert pairs[:, 0, 0, 0].tolist() == [0, 1, 3, 4] and pairs[:, 3, 0, 0].tolist() == [1, 2, 4, 5]
    assert with_predecessor(frames[:, :1]).shape == (2, 6, 16, 16)
    assert PatchDiscriminator()(pairs).shape == (4, 1, 2, 2)


def test_quality_of_the_teacher_itself() -> None:
    teacher, _ = pair()
    found = decoder_quality(teacher, teacher, clips())
    assert found["psnr_teacher"] > 100 and found["psnr"] < 40
    still = clips()[:, :1].expand(-1, 4, -1, -1, -1)  # errors that stay do not flicker, but for the ends
    assert 0 < decoder_quality(teacher, teacher, still)["flicker"] < found["flicker"]
