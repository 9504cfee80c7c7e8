"""One step of recovery: student, teacher and discriminator heads in, named loss terms out.

It does not load models, choose data, write files or know how many workers there are: the caller loops,
saves, and hands in how tensors are averaged between workers (`average`), if there are any. Nothing here
draws a random number; all noise comes with the batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from vdmini_core.distillation.checkpointing import checkpoint_activations
from vdmini_core.distillation.consistency import (
    consistency_target,
    lower_levels,
    own_task,
    pseudo_huber,
)
from vdmini_core.distillation.data import RecoveryBatch
from vdmini_core.distillation.depth import open_student
from vdmini_core.distillation.discriminator import DiscriminatorHeads, encode, encoder_points, sight
from vdmini_core.distillation.feature_taps import feature_taps
from vdmini_core.distillation.loss_watch import LossWatch
from vdmini_core.distillation.losses import (
    feature_matching_loss,
    icd_loss,
    mca_discriminator_loss,
    mca_generator_loss,
    paired_discriminator_loss,
    paired_generator_loss,
    r1_penalty,
    sum_terms,
    task_reconstruction,
    total_loss,
)
from vdmini_core.distillation.optim import (
    MovingAverage,
    gradients,
    head_optimizer,
    part_norms,
    rate_at,
    set_rate,
    student_optimizer,
)
from vdmini_core.distillation.sharding import (
    clip_gradients,
    shard_student,
    shard_teacher,
    skeleton_of,
    whole_state,
)
from vdmini_core.distillation.terms import task_weights, term_names
from vdmini_core.distillation.workers import Average
from vdmini_core.errors import TrainingError
from vdmini_core.models.base import Family, SamplingSettings
from vdmini_core.params import DistillParams


class RecoveryStep:
    """Everything that learns, and one method that makes it learn.

    Args:
        family: how the denoisers are called.
        student: the cut denoiser; trained in place, as deep as `params.depth` says.
        teacher: the whole denoiser; frozen here and nowhere else, and the discriminator's backbone as well.
        feature_pairs: (student module path, teacher module path), as `Plan.feature_pairs`.
        params: weights, learning rates and the like.
        example: any batch, for the number of channels that the heads see.
        one_step: the teacher samples in one step; decides what the task loss `auto` means.
        seed: of the initial weights of heads and adapters.
        average: averages a list of tensors over workers in place; None for one worker.
        settings: of the teacher's sampling, for a family that says what its own task loss is.
        mesh: the workers over which student and teacher are spread (FSDP2); None: whole on each of them.
    """

    def __init__(
        self,
        family: Family,
        student: nn.Module,
        teacher: nn.Module,
        feature_pairs: Sequence[tuple[str, str]],
        params: DistillParams,
        example: RecoveryBatch,
        *,
        one_step: bool = True,
        seed: int = 0,
        average: Average | None = None,
        settings: SamplingSettings | None = None,
        mesh: DeviceMesh | None = None,
    ) -> None:
        self.settings = settings
        own = own_task(family, settings) if settings is not None else "reconstruction"
        self.family, self.params, self.average = family, params, average
        self.student = open_student(student, params, seed).train()
        for module in student.modules():
            if isinstance(module, nn.Dropout):  # ModelScope's temporal convolutions have it: a hidden draw
                module.eval()
        self.teacher = teacher.requires_grad_(False).eval()
        self.pairs = tuple(feature_pairs) if params.lambda_icd else ()
        # Who is judged against what: L_MCA against the teacher's answer, SF-V's own loss against real clips.
        judges = {"mca": params.lambda_mca, "adversarial": params.lambda_adversarial}
        self.judges = tuple(name for name, weight in judges.items() if weight)
        self.points = encoder_points(family, teacher) if self.judges else ()
        self.task_weights = task_weights(params, one_step, own)
        self.names = term_names(params)
        self.weighting: Any = "none" if one_step else own if own in ("noise", "flow") else "edm"
        self._lower(example.sigma_B)  # refuses a teacher that is no consistency model before it is trained
        if params.activation_checkpointing:
            checkpoint_activations(student, teacher)
        self.skeleton = skeleton_of(student) if mesh is not None else None
        if mesh is not None:
            shard_student(student, mesh, params.precision)
            shard_teacher(teacher, mesh, params.precision, self.points)
        self.step_count, self.loss_watch = 0, LossWatch()
        self.rate_scale = 1.0  # share of all learning rates, lowered after a rollback
        self.part_norms: dict[str, float] = {}  # of the last step's gradients, before clipping
        self.ema = MovingAverage(student, params.ema_decay)
        self.optimizer = student_optimizer(student, params)
        channels = self._channels(example) if self.judges else []
        self.heads = nn.ModuleDict(
            {name: DiscriminatorHeads(channels, seed + place) for place, name in enumerate(self.judges)}
        ).to(example.clean_BFChw.device)
        self.head_optimizer = head_optimizer(self.heads, params) if self.judges else None

    def _channels(self, example: RecoveryBatch) -> list[int]:
        one = example.split(len(example.sigma_B))[0]  # a whole batch may be more than fits
        with torch.no_grad():
            return [feature.shape[1] for feature in self._encode(one, one.clean_BFChw)]

    @torch.no_grad()
    def sight(self, batch: RecoveryBatch) -> list[float]:
        """What the discriminator's backbone owes to the clip it would judge, level by level (`sight`).

        The teacher's answer is exchanged for noise of its size; condition and re-noise stay. With a mesh all
        workers call it.
        """
        if not self.points:
            return []
        one = batch.split(self.params.accumulation)[0]
        with self._precision(one):
            real = self.family.denoise(self.teacher, one.noisy_BFChw, one.sigma_B, one.conditions).float()
            noise = one.renoise_BFChw.roll(1, dims=-1) * real.std() + real.mean()
            return sight(self._encode(one, real), self._encode(one, noise))

    def step(self, batch: RecoveryBatch) -> dict[str, float]:
        """Learn from one batch.

        Returns:
            `names` averaged over workers, and `lr`; terms that are switched off are 0.

        Raises:
            TrainingError: when a term or the gradient is not finite, or the task loss has exploded; nothing
                has been changed by this step then.
        """
        rate = rate_at(self.step_count, self.params) * self.rate_scale
        self.optimizer.zero_grad(set_to_none=True)
        if self.head_optimizer is not None:
            self.head_optimizer.zero_grad(set_to_none=True)
        parts = batch.split(self.params.accumulation)
        values = self._reduce(sum_terms([self._backward(part) for part in parts]))
        self._check(values, batch)
        set_rate(self.optimizer, self.params.learning_rate * rate)
        self.optimizer.step()
        if self.head_optimizer is not None:
            set_rate(self.head_optimizer, self.params.head_learning_rate * self.rate_scale)
            self.head_optimizer.step()
        self.ema.update(self.student)
        self.step_count += 1
        return {**values, "lr": self.params.learning_rate * rate}

    def _backward(self, batch: RecoveryBatch) -> dict[str, Tensor]:
        """Leave the gradients of one slice; they and its terms are weighted so that they add up to means."""
        with self._precision(batch):
            terms, heads_losses = self.losses(batch)
        terms["total"] = total_loss(terms, self.weights())
        (terms["total"] * batch.weight).backward()
        if heads_losses:
            penalty = self.params.r1_gamma / 2 * terms["r1"] if "r1" in terms else 0.0
            # No head is in two of these losses: the sum leaves each its own gradient.
            ((torch.stack([*heads_losses.values()]).sum() + penalty) * batch.weight).backward()
            terms |= heads_losses
        return {name: term.detach() * batch.weight for name, term in terms.items()}

    def weights(self) -> dict[str, float]:
        """Weight of each term at the present step; the heads learn alone before `mca_start_step`."""
        params = self.params
        judged = float(self.step_count >= params.mca_start_step)
        return {
            "task": params.lambda_task,
            "icd": params.lambda_icd,
            "mca_generator": judged * params.lambda_mca,
            "adversarial_generator": judged * params.lambda_adversarial,
            "feature_matching": params.lambda_feature_matching,
        }

    def losses(self, batch: RecoveryBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The student's named terms and the heads' own losses, ready for one backward pass each."""
        given = (batch.noisy_BFChw, batch.sigma_B, batch.conditions)
        with torch.no_grad(), feature_taps(self.teacher, [t for _, t in self.pairs]) as teacher_feats:
            weights = self.task_weights
            wanted = self.pairs or "mca" in self.judges or weights["teacher"] or weights["consistency"]
            real = self.family.denoise(self.teacher, *given).float() if wanted else None
        with feature_taps(self.student, [s for s, _ in self.pairs]) as student_feats:
            fake = self.family.denoise(self.student, *given).float()
        terms = {"task": self._task(fake, real, batch)}
        if self.pairs:
            matched = [(student_feats[s], teacher_feats[t]) for s, t in self.pairs]
            student_side, teacher_side = zip(*matched, strict=True)
            terms["icd"] = icd_loss(student_side, teacher_side, self.params.icd_normalise)
        if not self.judges:
            return terms, {}
        judged, heads_losses = self._judged(batch, fake, {"mca": real, "adversarial": batch.clean_BFChw})
        return terms | judged, heads_losses

    def _task(self, fake: Tensor, real: Tensor | None, batch: RecoveryBatch) -> Tensor:
        targets = {"reconstruction": batch.clean_BFChw, "teacher": real}
        parts = [
            weight * task_reconstruction(fake, target, batch.sigma_B, self.weighting)
            for name, weight in self.task_weights.items()
            if weight and (target := targets.get(name)) is not None
        ]
        lower_B = self._lower(batch.sigma_B)
        if lower_B is not None and real is not None:
            target = consistency_target(
                lambda noisy, sigma: self.family.denoise(self.teacher, noisy, sigma, batch.conditions),
                batch.noisy_BFChw,
                real,
                batch.sigma_B,
                lower_B,
            )
            parts.append(self.task_weights["consistency"] * pseudo_huber(fake, target))
        # nothing is left where consistency was the whole task and has no weight
        return torch.stack(parts).sum() if parts else fake.new_zeros(())

    def _lower(self, sigma_B: Tensor) -> Tensor | None:
        """The next lower noise levels (B,) for consistency distillation; None where it is off."""
        if not self.task_weights["consistency"] or not self.params.lambda_task:
            return None
        return lower_levels(self.family, sigma_B, self.settings)

    def _judged(
        self, batch: RecoveryBatch, fake: Tensor, reals: dict[str, Tensor | None]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both sides of every judge; the fake's features are computed once and detached for the heads."""
        weights, sigma = self.weights(), batch.renoise_sigma_B
        matching = self.params.lambda_feature_matching != 0
        with torch.set_grad_enabled(matching or any(weights[f"{name}_generator"] for name in self.judges)):
            fake_feats = self._encode(batch, fake)
        detached = [feature.detach() for feature in fake_feats]
        terms, heads_losses, penalties = {}, {}, []
        for name in self.judges:
            heads, real = self.heads[name], reals[name]
            assert real is not None
            with torch.no_grad():
                real_feats = self._encode(batch, real)
            heads.requires_grad_(False)  # the student's loss passes through them and leaves nothing there
            terms[f"{name}_generator"] = self._generator_loss(heads, fake_feats, real_feats, sigma)
            heads.requires_grad_(True)
            if matching and name == "mca":
                terms["feature_matching"] = feature_matching_loss(fake_feats, real_feats)
            if self.params.r1_gamma:
                penalties.append(r1_penalty(partial(_logits, heads, sigma), real_feats))
            loss = paired_discriminator_loss if self.params.mca_loss == "paired" else mca_discriminator_loss
            heads_losses[f"{name}_discriminator"] = loss(heads(detached, sigma), heads(real_feats, sigma))
        if penalties:
            terms["r1"] = torch.stack(penalties).sum()
        return terms, heads_losses

    def _generator_loss(
        self, heads: nn.Module, fake_feats: list[Tensor], real_feats: list[Tensor], sigma_B: Tensor
    ) -> Tensor:
        judged = heads(fake_feats, sigma_B)
        if self.params.mca_loss == "hinge":
            return mca_generator_loss(judged, self.params.mca_generator)
        with torch.no_grad():
            against = heads(real_feats, sigma_B)
        return paired_generator_loss(judged, against)

    def _encode(self, batch: RecoveryBatch, clip_BFChw: Tensor) -> list[Tensor]:
        sigma_B = batch.renoise_sigma_B
        noisy = clip_BFChw + sigma_B[:, None, None, None, None] * batch.renoise_BFChw
        return encode(self.family, self.teacher, self.points, noisy, sigma_B, batch.conditions)

    def _precision(self, batch: RecoveryBatch) -> Any:
        if self.params.precision == "fp32":
            return nullcontext()
        return torch.autocast(batch.clean_BFChw.device.type, dtype=torch.bfloat16)

    def _reduce(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Average gradients and terms over workers, clip, and bring the numbers to the CPU at once."""
        zero = terms["total"].new_zeros(())
        named = torch.stack([terms.get(name, zero).detach().float() for name in self.names[:-1]])
        student_grads = list(gradients(self.student))
        head_grads = list(gradients(self.heads)) if self.head_optimizer is not None else []
        if self.average is not None:
            # FSDP2 has averaged the student's gradients over the workers when it took them apart
            self.average([*(() if self.sharded else student_grads), *head_grads, named])
        self.part_norms = part_norms(self.student, self.heads)
        norm = clip_gradients(self.student.parameters(), self.params.max_grad_norm)
        heads = list(self.heads.parameters())
        head_norm = torch.nn.utils.clip_grad_norm_(heads, self.params.max_grad_norm) if heads else zero
        numbers = torch.cat(
            [named, norm.float().reshape(1), head_norm.float().to(named.device).reshape(1)]
        ).tolist()
        if not math.isfinite(numbers[-1]):
            numbers[-2] = numbers[-1]  # a broken head gradient stops the step like a broken student's
        return dict(zip(self.names, numbers[:-1], strict=True))

    def _check(self, values: dict[str, float], batch: RecoveryBatch) -> None:
        """Refuse a step whose numbers are not finite or far off; the same decision on every worker."""
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            spoilt = not batch.is_finite()  # of this worker; the decision rests on what all share
            raise TrainingError(
                f"step {self.step_count + 1} of the recovery is not finite: {', '.join(broken)}",
                expected="finite losses and gradients",
                found="NaN or infinite values in the latents or conditions of its clips" if spoilt else "",
                fix="delete the stage's scratch folder under .vdmini/work: clips are then encoded again"
                if spoilt
                else "lower distill.learning_rate, or use distill.precision=fp32 where it was bf16",
            )
        self.loss_watch.see(values["task"], self.step_count + 1)

    @property
    def sharded(self) -> bool:
        """Whether student and teacher are in parts, one on each worker."""
        return self.skeleton is not None

    def recovered(self) -> nn.Module:
        """A copy of the student with the averaged weights, in eval mode; with a mesh all workers call it.

        One that was in parts is on the CPU.
        """
        if self.skeleton is not None:
            model = copy.deepcopy(self.skeleton)
            model.load_state_dict(whole_state(self.skeleton, self.ema.tensors), assign=True)
            return model.requires_grad_(False).eval()
        model = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.ema.copy_to(model)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers from which `load_state_dict` goes on exactly; the teacher is not part of it.

        With a mesh they are parts: `sharded_state` saves and loads those.
        """
        return {
            "step": self.step_count,
            "loss_watch": asdict(self.loss_watch),
            "student": self.student.state_dict(),
            "ema": {"tensors": self.ema.tensors, "updates": self.ema.updates},
            "optimizer": self.optimizer.state_dict(),
            "heads": self.heads.state_dict(),
            "head_optimizer": self.head_optimizer.state_dict() if self.head_optimizer is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            TrainingError: when the state belongs to another student or other loss terms.
        """
        try:
            self.student.load_state_dict(state["student"])
            self.heads.load_state_dict(state["heads"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.head_optimizer is not None:
                self.head_optimizer.load_state_dict(state["head_optimizer"])
            for name, tensor in self.ema.tensors.items():
                tensor.copy_(state["ema"]["tensors"][name])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise TrainingError(
                "the checkpoint belongs to another run",
                found=str(error).split("\n")[0],
                fix="delete the stage's scratch folder under .vdmini/work and start again",
            ) from error
        self.ema.updates = state["ema"]["updates"]
        self.step_count, self.loss_watch = state["step"], LossWatch(**state["loss_watch"])


def _logits(heads: nn.Module, sigma_B: Tensor, features: list[Tensor]) -> list[Tensor]:
    logits: list[Tensor] = heads(features, sigma_B)
    return logits
