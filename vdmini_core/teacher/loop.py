"""What both training runs share: schedule, averaged weights, checkpoints, a loss curve, progress.

Random draws depend on (seed, step) alone, so that a run that was stopped and resumed from its
checkpoint makes the very same updates as one that was not.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.errors import TrainingError

LogFunction = Callable[[dict[str, Any]], None]


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed((seed << 24) + step)


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then cosine to 2 % of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class AveragedWeights:
    """Exponential moving average of a model's parameters, kept in float32.

    The decay ramps up with the step, min(decay, (1 + step) / (10 + step)), so early averages follow.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the model's weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [own[name] for name in self.average], 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model holds the averaged weights inside the context."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        _copy_into(model, self.average)
        try:
            yield
        finally:
            _copy_into(model, own)

    def copy_to(self, model: nn.Module) -> None:
        """Give the model the averaged weights for good."""
        _copy_into(model, self.average)


@torch.no_grad()
def _copy_into(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a resume checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def save_whole(folder: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` write a folder that appears whole or not at all."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save(temporary)
    temporary.rename(folder)


def load_checkpoint(path: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint at `path`, None if there is none yet.

    Raises:
        TrainingError: when it was written by a run with another configuration.
    """
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    changed = sorted(k for k in config if state["config"].get(k) != config[k])
    if changed:
        raise TrainingError(
            "the checkpoint belongs to another run",
            expected=", ".join(f"{k}={config[k]}" for k in changed),
            found=", ".join(f"{k}={state['config'].get(k)}" for k in changed),
            fix=f"use the same settings, or remove {path.name} to start again",
        )
    return state


def check_finite(loss: Tensor, step: int) -> None:
    """Stop before a broken loss reaches the optimiser."""
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss.item()} at step {step}",
            expected="a finite number",
            fix="start again with a lower learning rate",
        )


class Curve:
    """Appends one JSON object a line to a file and hands each to `on_log`, with rate and time left."""

    def __init__(self, path: Path, steps: int, first_step: int, on_log: LogFunction | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.steps, self.first, self.on_log = path, steps, first_step, on_log
        self.started = time.monotonic()

    def write(self, step: int, **values: Any) -> None:
        """Log `values` after `step` finished steps."""
        elapsed = time.monotonic() - self.started
        rate = (step - self.first) / elapsed if elapsed > 0 else 0.0
        left = (self.steps - step) / rate if rate else 0.0
        row = {
            "step": step,
            **values,
            "steps_per_second": round(rate, 3),
            "minutes_left": round(left / 60, 1),
        }
        with self.path.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        if self.on_log:
            self.on_log(row)
