"""The discriminator: what its heads see, and whose weights it uses."""

from __future__ import annotations

import pytest
import torch
from recovery_toys import GRID, ToyFamily, toy_batches, toy_unet

from vdmini_core.distillation.discriminator import (
    DiscriminatorHeads,
    LevelEmbedding,
    SpatialHead,
    TemporalHead,
    encode,
    encoder_points,
    renoise_sigmas,
)
from vdmini_core.errors import TrainingError


def level() -> torch.Tensor:
    return LevelEmbedding()(torch.tensor([0.3, 0.5]))


def test_spatial_heads_fold_frames_and_do_not_see_their_order() -> None:
    head, feature, order = SpatialHead(8, 8), torch.randn(2, 5, 8, 4, 4), torch.tensor([3, 0, 4, 1, 2])
    embedded = level()
    logits = head(feature, embedded)
    assert logits.shape == (2, 5, 4, 4)
    torch.testing.assert_close(head(feature[:, order], embedded), logits[:, order])
    alone = head(feature[:1, :1], embedded[:1])
    torch.testing.assert_close(alone, logits[:1, :1], rtol=1e-4, atol=1e-5)


def test_temporal_heads_see_the_order_of_frames() -> None:
    head, feature, order = TemporalHead(8, 8), torch.randn(2, 5, 8, 4, 4), torch.tensor([3, 0, 4, 1, 2])
    embedded = level()
    logits = head(feature, embedded)
    assert logits.shape == (2, 4, 4, 5)
    assert not torch.allclose(head(feature[:, order], embedded), logits[..., order], atol=1e-3)
    assert not torch.isclose(head(feature[:, order], embedded).mean(), logits.mean(), atol=1e-6)


def test_temporal_heads_fold_space_into_the_batch() -> None:
    head, feature = TemporalHead(8, 8), torch.randn(2, 5, 8, 4, 4)
    embedded = level()
    flipped = head(feature.flip(-1), embedded)
    torch.testing.assert_close(flipped, head(feature, embedded).flip(2))


def test_heads_know_the_renoise_level_and_refuse_other_encoders() -> None:
    heads = DiscriminatorHeads([8, 8], seed=1)
    features = [torch.randn(6, 8, 4, 4), torch.randn(6, 8, 2, 2)]
    low, high = heads(features, torch.tensor([0.1, 0.1])), heads(features, torch.tensor([5.0, 5.0]))
    assert len(low) == 4
    assert all(not torch.allclose(a, b) for a, b in zip(low, high, strict=True))
    with pytest.raises(TrainingError, match="another encoder"):
        heads(features[:1], torch.tensor([0.1, 0.1]))


def test_heads_start_alike_for_a_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, second = DiscriminatorHeads([8], seed=5), DiscriminatorHeads([8], seed=5)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_encoder_is_the_teacher_itself_up_to_its_last_down_block() -> None:
    family, teacher, batch = ToyFamily(), toy_unet().requires_grad_(False), toy_batches().batch(0)
    points = encoder_points(family, teacher)  # type: ignore[arg-type]
    assert points == tuple(f"down_blocks.{i}" for i in range(4))
    decoded = []
    teacher.mid_block.register_forward_hook(lambda *_: decoded.append(1))
    clip = batch.clean_BFChw.clone().requires_grad_()
    found = encode(family, teacher, points, clip, batch.renoise_sigma_B, batch.conditions)  # type: ignore[arg-type]
    assert not decoded and len(found) == 4 and found[0].shape[-1] == GRID // 2
    found[-1].sum().backward()
    assert clip.grad is not None and all(p.grad is None for p in teacher.parameters())


def test_renoise_levels_are_log_normal() -> None:
    logs = renoise_sigmas(4000, torch.Generator().manual_seed(0)).log()
    assert logs.mean().item() == pytest.approx(-1, abs=0.1) and logs.std().item() == pytest.approx(1, abs=0.1)
