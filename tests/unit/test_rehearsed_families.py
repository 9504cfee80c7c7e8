"""The planner knows every family that recovery does: the rehearsed peak and work are those of a real step."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from recovery_toys import SETTINGS, toy_params
from torch import Tensor
from videocrafter_toys import tiny_unet

from vdmini_core.distillation.cost.batch import meta_batch
from vdmini_core.distillation.cost.ledger import Ledger
from vdmini_core.distillation.cost.rehearsal import Choices, rehearse
from vdmini_core.distillation.data import RecoveryBatch
from vdmini_core.distillation.losses import total_loss
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.errors import TrainingError
from vdmini_core.models.base import Conditions
from vdmini_core.models.inspect import BUILT_IN, family_of_class
from vdmini_core.models.videocrafter import VideoCrafterFamily

SMALL: dict[str, dict[str, Any]] = {
    "wan2.1-t2v-1.3b": {
        **{"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 4},
        **{"text_dim": 16, "freq_dim": 16},
    },
    "hunyuan-video": {
        **{"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "num_single_layers": 2},
        **{"text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6)},
    },
    "cogvideox-5b": {
        **{"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 4, "text_embed_dim": 16},
        **{"time_embed_dim": 16, "sample_width": 6, "sample_height": 4},
    },
    "ltx-video": {
        **{"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 4},
        **{"in_channels": 16, "out_channels": 16, "caption_channels": 16},
    },
}

# `auto` is each family's own loss; of T2V-Turbo-v2 that asks the teacher twice
TASKS = {"videocrafter2": "reconstruction", "t2v-turbo-v2": "auto", **dict.fromkeys(SMALL, "reconstruction")}


def small_model(name: str) -> Any:
    torch.manual_seed(0)
    if name in ("videocrafter2", "t2v-turbo-v2"):
        return tiny_unet(name)
    import diffusers

    configs = BUILT_IN[name]
    cls: Any = getattr(diffusers, configs["index"]["transformer"][1])
    return cls.from_config({**configs["transformer"], **SMALL[name]}).eval()


def real(batch: RecoveryBatch) -> RecoveryBatch:
    """Values for shapes: levels of the middle, masks as they are."""
    given: dict[str, Tensor] = {}
    for name, tensor in batch.conditions.tensors.items():
        value = torch.rand(tensor.shape).to(tensor.dtype) if tensor.is_meta else tensor
        given[name] = value * 0 + 8 if name == "fps" else value
    clips = {k: torch.rand(v.shape) for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return RecoveryBatch(**clips, conditions=Conditions(given))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "task_loss"), TASKS.items())
def test_a_rehearsal_is_a_real_step_without_memory(name: str, task_loss: str) -> None:
    settings = replace(SETTINGS, frames=3, height=32, width=48)
    family: Any = family_of_class(BUILT_IN[name]["index"]["_class_name"])
    model = small_model(name)
    on_meta = copy.deepcopy(model).to("meta")
    point = next(iter(family.feature_points(model).values()))
    batch = real(meta_batch(family, model, settings, 1))
    plain, spared = (
        rehearse(
            *(family, on_meta, copy.deepcopy(on_meta), [(point, point)], toy_params(task_loss=task_loss)),
            *(settings, Choices(checkpointing=checkpointing), "cpu"),
        )
        for checkpointing in (False, True)
    )
    for found, checkpointing in ((plain, False), (spared, True)):
        params = toy_params(task_loss=task_loss, activation_checkpointing=checkpointing)
        student, teacher = copy.deepcopy(model), copy.deepcopy(model)
        step = RecoveryStep(family, student, teacher, [(point, point)], params, batch, settings=settings)
        ledger = Ledger()
        with ledger:
            terms, heads_losses = step.losses(batch)
            total_loss(terms, step.weights()).backward()
            heads_losses["mca_discriminator"].backward()
        # what a transformer makes of inputs alone (positions, masks) is booked twice, as values and as shapes
        assert found.parts["activations"] + found.parts["gradients"] == pytest.approx(ledger.peak, rel=0.05)
        assert sum(found.flops.values()) == pytest.approx(sum(ledger.flops.values()), rel=0.01)
    assert spared.parts["activations"] < 0.8 * plain.parts["activations"]
    assert sum(spared.flops.values()) > sum(plain.flops.values())


@pytest.mark.timeout(120)
def test_consistency_asks_the_teacher_twice() -> None:
    settings, family = replace(SETTINGS, frames=3, height=32, width=48), VideoCrafterFamily()
    unet: Any = small_model("t2v-turbo-v2").to("meta")

    def asked(task_loss: str, **changed: Any) -> dict[str, int]:
        params = toy_params(task_loss=task_loss, lambda_icd=0.0, mca_start_step=5)
        given = replace(settings, **changed)
        return rehearse(family, unet, copy.deepcopy(unet), (), params, given, Choices()).flops

    once, twice = asked("reconstruction"), asked("consistency")
    assert asked("auto") == twice
    assert twice["teacher forward"] == 2 * once["teacher forward"] > 0
    assert {k: v for k, v in once.items() if "teacher" not in k} == {
        k: v for k, v in twice.items() if "teacher" not in k
    }
    assert asked("auto", rescaled_schedule=True) == once  # VideoCrafter2's own loss
    with pytest.raises(TrainingError, match="needs a consistency model"):
        asked("consistency", rescaled_schedule=True)
