"""Taps read what modules say and leave no hook behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vdmini_core.distillation.feature_taps import encoder_taps, feature_taps
from vdmini_core.errors import TrainingError


class Pair(nn.Module):
    """Answers as a down block does: hidden states and skips."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return x * 2, (x,)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.pair, self.last = nn.Linear(2, 2), Pair(), nn.Linear(2, 2)
        self.finished = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.last(self.pair(self.first(x))[0])
        self.finished += 1
        return out


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_taps_keep_outputs_with_their_graph_and_go() -> None:
    net, x = Net(), torch.randn(1, 2)
    with feature_taps(net, ["first", "pair"]) as features:
        net(x)
    assert torch.equal(features["first"], net.first(x))
    assert torch.equal(features["pair"], net.first(x) * 2)
    assert features["pair"].requires_grad
    assert hooks(net) == 0


def test_taps_go_when_the_body_fails() -> None:
    net = Net()
    with pytest.raises(RuntimeError), feature_taps(net, ["first"]):
        raise RuntimeError
    with pytest.raises(RuntimeError), encoder_taps(net, ["first"]):
        raise RuntimeError
    assert hooks(net) == 0


def test_encoder_taps_stop_after_the_last_point() -> None:
    net = Net()
    with encoder_taps(net, ["first", "pair"]) as features:
        net(torch.randn(1, 2))
    assert set(features) == {"first", "pair"} and net.finished == 0 and hooks(net) == 0


def test_an_unknown_path_names_the_nearest_and_leaves_no_hook() -> None:
    net = Net()
    with pytest.raises(TrainingError, match="such as `first`"), feature_taps(net, ["pair", "frist"]):
        pass
    assert hooks(net) == 0
