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
from vdmini_core.models.base import Conditions
from vdmini_core.models.inspect import BUILT_IN, family_of_class

SMALL: dict[str, dict[str, Any]] = {
    "wan2.1-t2v-1.3b": {
        **{"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 4},
        **{"text_dim": 16, "freq_dim": 16},
    },
    "hunyuan-video": {
        **{"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "num_single_layers": 2},
        **{"text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6)},
    },
}


def small_model(name: str) -> Any:
    torch.manual_seed(0)
    if name == "videocrafter2":
        return tiny_unet()
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
@pytest.mark.parametrize("name", ["videocrafter2", *SMALL])
def test_a_rehearsal_is_a_real_step_without_memory(name: str) -> None:
    settings = replace(SETTINGS, frames=3, height=32, width=48)
    family: Any = family_of_class(BUILT_IN[name]["index"]["_class_name"])
    model, params = small_model(name), toy_params(task_loss="reconstruction")
    on_meta = copy.deepcopy(model).to("meta")
    point = next(iter(family.feature_points(model).values()))
    found, again = (
        rehearse(family, on_meta, copy.deepcopy(on_meta), [(point, point)], params, settings, choices, "cpu")
        for choices in (Choices(), Choices(checkpointing=True))
    )
    batch = real(meta_batch(family, model, settings, 1))
    step = RecoveryStep(family, copy.deepcopy(model), model, [(point, point)], params, batch)
    ledger = Ledger()
    with ledger:
        terms, heads_loss = step.losses(batch)
        total_loss(terms, step.weights()).backward()
        assert heads_loss is not None
        heads_loss.backward()
    # what a transformer makes of inputs alone (positions, masks) is booked twice, as values and as shapes
    assert found.parts["activations"] + found.parts["gradients"] == pytest.approx(ledger.peak, rel=0.05)
    assert sum(found.flops.values()) == pytest.approx(sum(ledger.flops.values()), rel=0.01)
    assert again.parts["activations"] < 0.8 * found.parts["activations"]
    assert sum(again.flops.values()) > sum(found.flops.values())
