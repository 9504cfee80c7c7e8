"""A recovery step without memory: the very code of `RecoveryStep`, on the meta device, under a ledger."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vdmini_core.distillation.cost.batch import meta_batch
from vdmini_core.distillation.cost.ledger import ACTIVATIONS, GRADIENTS, Ledger
from vdmini_core.distillation.cost.rules import DeviceRules, Kind
from vdmini_core.distillation.data import RecoveryBatch
from vdmini_core.distillation.losses import total_loss
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.errors import ModelError
from vdmini_core.models.base import Family, SamplingSettings
from vdmini_core.models.dit.counting import ShapesWhereWeightsAre, real_tables
from vdmini_core.models.dit.table import ARCHITECTURES
from vdmini_core.params import DistillParams

# What allocators keep and kernels use inside, over the activations. On a CPU (glibc, oneDNN) set by
# what benchmarks/recovery_memory.py measured; on a GPU not measured.
ALLOWANCE = {"cpu": 0.2, "cuda": 0.1}
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.0, "sgd": 0.0}  # of state per parameter; more: as adamw
TEACHER, STUDENT, BACKWARD, HEADS, REDUCE = (
    "teacher forward",
    "student forward, encoder on fake and real, heads",
    "backward of student and of the encoder on fake",
    "backward of the heads",
    "averaging between workers",
)


@dataclass(frozen=True)
class Choices:
    """What a recovery may choose that changes its memory or its cost.

    Attributes:
        batch: clips a step over all workers.
        workers: processes.
        accumulation: parts a worker's clips are passed in, one after the other.
        checkpointing: blocks of student and encoder keep their inputs alone and run again in the backward
            pass.
        sharded: parameters, gradients and optimiser are spread over the workers (FSDP2).
        bf16: matrix products in bfloat16 by autocast; weights stay in float32.
        optimizer: its name.
    """

    batch: int = 1
    workers: int = 1
    accumulation: int = 1
    checkpointing: bool = False
    sharded: bool = False
    bf16: bool = False
    optimizer: str = "adamw"

    @classmethod
    def from_params(cls, params: DistillParams) -> Choices:
        """What section `distill` says; keys it does not have yet count as not chosen."""
        given = params.model_dump()
        return cls(
            batch=params.batch_size,
            workers=params.workers,
            accumulation=int(given.get("accumulation", 1)),
            checkpointing=bool(given.get("activation_checkpointing", False)),
            sharded="fsdp" in str(given.get("parallel", "")),
            bf16=params.precision == "bf16",
            optimizer=str(given.get("optimizer", "adamw")),
        )

    @property
    def clips(self) -> int:
        """Clips that one worker passes through the networks at a time."""
        return -(-self.batch // (self.workers * self.accumulation))


@dataclass(frozen=True)
class Footprint:
    """What one worker holds at the highest moment of a step, in bytes, and the step's operations.

    Attributes:
        parts: what fills the memory: parameters, optimiser, activations ...; they add up to the peak.
        phase: of the step in which the peak falls.
        highest: bytes of activations and gradients at the highest moment of every phase.
        flops: operations of one worker's step by phase, two per multiply-add.
        learned: parameters that learn, of the whole student.
        clips: that pass through at a time.
    """

    parts: dict[str, int]
    phase: str
    highest: dict[str, int]
    flops: dict[str, int]
    learned: int
    clips: int

    @property
    def peak(self) -> int:
        """Bytes of tensors at the highest moment."""
        return sum(self.parts.values())


def rehearse(
    family: Family,
    teacher: nn.Module,
    student: nn.Module,
    feature_pairs: Sequence[tuple[str, str]],
    params: DistillParams,
    settings: SamplingSettings,
    choices: Choices,
    device: Kind = "cpu",
) -> Footprint:
    """Count one step of a worker in the midst of the training.

    Args:
        family: how the denoisers are called.
        teacher: on the meta device; made ready as the recovery does.
        student: on the meta device.
        feature_pairs: as in the plan.
        params: which loss terms there are; `choices` go before what it says of batch and workers.
        settings: frames and size.
        choices: what is to be compared.
        device: which kind the real step runs on; attention and autocast differ.

    Raises:
        ModelError: checkpointing asked of a model that cannot, or conditions of an unknown kind.
    """
    transformer = type(teacher).__name__ in ARCHITECTURES
    if transformer:
        teacher, student = _with_tables(teacher), _with_tables(student)
    if choices.checkpointing:
        teacher, student = (_checkpointed(model, device, choices.bf16) for model in (teacher, student))
    plain = _plain(params, choices.clips)
    batch = meta_batch(family, teacher, settings, choices.clips)
    # a transformer looks into its masks: what is made of inputs alone is computed there
    shapes: Any = ShapesWhereWeightsAre if transformer else nullcontext
    with shapes(), Ledger() as building, DeviceRules(device, choices.bf16):
        one_step = settings.steps == 1
        step = RecoveryStep(
            family, student, teacher, feature_pairs, plain, batch, one_step=one_step, settings=settings
        )
    shards = choices.workers if choices.sharded else 1
    ledger = Ledger(1 / shards, building.known)
    with shapes(), _gradients_booked(ledger, step):
        _run(ledger, step, batch, choices, DeviceRules(device, choices.bf16))
    weights, learned = _bytes(step.student), _learned(step.student)
    parts = {
        "teacher": _bytes(step.teacher) // shards,
        "student": weights // shards,
        "average of the student (EMA)": sum(map(_size, step.ema.tensors.values())) // shards,
        "optimiser": round(OPTIMIZER_BYTES.get(choices.optimizer, 8.0) * learned) // shards,
        "heads and their optimiser": 3 * _bytes(step.heads),
        "gradients": ledger.at_peak[GRADIENTS] // shards,
        "activations": ledger.at_peak[ACTIVATIONS],
        "allocator and kernels": round(ALLOWANCE[device] * ledger.at_peak[ACTIVATIONS]),
        "batch": _batch_bytes(batch),
    }
    if shards > 1:
        parts["gathered blocks"] = 2 * _largest_block(step.student, step.teacher)
    flops = {name: choices.accumulation * count for name, count in ledger.flops.items()}
    return Footprint(parts, ledger.peak_phase, dict(ledger.highest), flops, learned, choices.clips)


def _run(
    ledger: Ledger, step: RecoveryStep, batch: RecoveryBatch, choices: Choices, rules: DeviceRules
) -> None:
    """What `RecoveryStep.step` does up to the optimiser, which works in place."""
    if choices.accumulation > 1:  # the part that counts is one that finds gradients there already
        with ledger:
            heads = step.heads.parameters() if step.head_optimizer is not None else ()
            for parameter in (*step.student.parameters(), *heads):
                parameter.grad = torch.zeros_like(parameter)
                ledger.reclassify(parameter.grad, GRADIENTS)
    with ledger:
        with ledger.phase(STUDENT), _own_passes(step, ledger), rules:
            terms, heads_losses = step.losses(batch)
        with ledger.phase(BACKWARD):
            torch.autograd.backward(total_loss(terms, step.weights()))
        with ledger.phase(HEADS):
            if heads_losses:
                slopes = [terms["r1"]] if "r1" in terms else []
                torch.autograd.backward([*heads_losses.values(), *slopes])
        with ledger.phase(REDUCE):
            if choices.workers > 1 and not choices.sharded:
                flat = [p.grad for p in (*step.student.parameters(), *step.heads.parameters())]
                torch.cat([g.reshape(-1) for g in flat if g is not None])
    step.optimizer.zero_grad(set_to_none=True)


@contextmanager
def _gradients_booked(ledger: Ledger, step: RecoveryStep) -> Iterator[None]:
    handles = [*ledger.watch_gradients(step.student), *ledger.watch_gradients(step.heads)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _own_passes(step: Any, ledger: Ledger) -> Iterator[None]:
    """Count every whole pass of the teacher as its phase: its prediction, and the target of consistency.

    The encoder is the same module, called by `RecoveryStep._encode` alone; its passes stay where they are.
    """
    forward, encode = step.teacher.forward, step._encode
    encoding = False

    @functools.wraps(forward)  # taps look at its signature
    def counting(*args: Any, **kwargs: Any) -> Any:
        with nullcontext() if encoding else ledger.phase(TEACHER):
            return forward(*args, **kwargs)

    def encoder(*args: Any) -> Any:
        nonlocal encoding
        encoding = True
        try:
            return encode(*args)
        finally:
            encoding = False

    step.teacher.forward, step._encode = counting, encoder
    try:
        yield
    finally:
        del step.teacher.forward, step._encode


def smaller(settings: SamplingSettings, frames: int | None, size: tuple[int, int] | None) -> SamplingSettings:
    """The settings with other frames or another (height, width), where given."""
    height, width = size or (settings.height, settings.width)
    return replace(settings, frames=frames or settings.frames, height=height, width=width)


def _plain(params: DistillParams, clips: int) -> DistillParams:
    """One worker that does nothing by itself of what `Choices` are counted for."""
    fields = type(params).model_fields
    counted = ("accumulation", "activation_checkpointing", "parallel", "optimizer")
    update = {name: fields[name].default for name in counted if name in fields}
    return params.model_copy(update=update | {"workers": 1, "batch_size": clips, "precision": "fp32"})


def _with_tables(model: nn.Module) -> nn.Module:
    """A copy whose buffers have values, which a transformer may look at; its weights have shapes alone."""
    model = copy.deepcopy(model)
    for module in model.modules():
        real_tables(module, root=False)
    return model


def _checkpointed(model: nn.Module, device: Kind, bf16: bool) -> nn.Module:
    """A copy whose blocks run again in the backward pass, under the rules, which are suspended there."""
    model = copy.deepcopy(model)

    def again(module: Any, *args: Any) -> Any:
        return checkpoint(
            module.__call__,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), DeviceRules(device, bf16)),
        )

    enable: Any = getattr(model, "enable_gradient_checkpointing", None)
    try:
        if enable is None:
            raise ValueError("it has no such switch")
        enable(again)
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} does not support activation checkpointing",
            found=str(error),
            fix="set distill.activation_checkpointing=false",
        ) from None
    return model


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes(module: nn.Module) -> int:
    return sum(map(_size, [*module.parameters(), *module.buffers()]))


def _learned(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _batch_bytes(batch: RecoveryBatch) -> int:
    tensors = [t for t in vars(batch).values() if isinstance(t, Tensor)]
    return sum(map(_size, [*tensors, *batch.conditions.tensors.values()]))


def _largest_block(*models: nn.Module) -> int:
    """Bytes of the largest part that is gathered whole: children of the top level, of lists each entry."""
    parts = [p for m in models for c in m.children() for p in (c if isinstance(c, nn.ModuleList) else (c,))]
    return max((_bytes(part) for part in parts), default=0)
