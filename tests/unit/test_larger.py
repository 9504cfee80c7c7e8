"""Recipe `larger`: what the paper's cut leaves, less the outermost up block's third pair."""

from __future__ import annotations

import pytest
import svd_toys as toys

from tests.unit.dit_toys import CONFIGS, tiny_dit
from vdmini_core.errors import PlanError
from vdmini_core.models.dit.structure import TransformerFamily
from vdmini_core.models.inspect import load_architecture
from vdmini_core.params import PlanParams
from vdmini_core.pruning.larger import larger_cut
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.recipes import make_plan
from vdmini_core.pruning.surgery import apply_plan


def plans_of(model: str) -> tuple[Plan, Plan]:
    """The paper's and the larger one of a full-size model, counted once."""
    family, denoiser, _, settings = load_architecture(model)
    units = family.units(denoiser, settings)
    paper, larger = (
        make_plan(PlanParams(recipe=recipe), family, denoiser, units, None, settings, 0)
        for recipe in ("paper", "larger")
    )
    return paper, larger


def test_of_t2v_turbo_v2_it_leaves_less_than_1_in_1_54_of_the_operations() -> None:
    paper, larger = plans_of("t2v-turbo-v2")
    assert set(larger.removed) - set(paper.removed) == {"U.3.pair.2"}
    teraflops = [flops / 1e12 for flops in (paper.teacher_flops, paper.expected_flops, larger.expected_flops)]
    assert teraflops == pytest.approx([12.581, 8.953, 8.115], abs=0.001)
    assert larger.teacher_flops / larger.expected_flops >= 1.55
    assert larger.expected_params == pytest.approx(807.5e6, rel=0.001)


def test_a_u_net_is_cut_by_it() -> None:
    unet = toys.tiny_pipeline().unet
    units = toys.FAMILY.units(unet, toys.SETTINGS)
    plan = make_plan(PlanParams(recipe="larger"), toys.FAMILY, unet, units, None, toys.SETTINGS, 0)
    levels = len(unet.config.block_out_channels)
    assert plan.recipe == "larger" and f"U.{levels - 1}.pair.2" in plan.removed
    student = apply_plan(unet, plan, toys.FAMILY)
    assert sum(p.numel() for p in student.parameters()) == plan.expected_params


def test_a_transformer_loses_a_quarter() -> None:
    paper, larger = plans_of("hunyuan-video")
    assert (len(paper.removed), len(larger.removed)) == (12, 15)
    petaflops = [flops / 1e15 for flops in (paper.teacher_flops, paper.expected_flops, larger.expected_flops)]
    # The paper's 1.25x; what lies around the layers stays, so a fifth of them is a hair less than a fifth.
    assert petaflops == pytest.approx([12.069, 9.655, 9.051], abs=0.001)
    assert larger.teacher_flops / larger.expected_flops >= 1.25


def test_a_transformer_without_layers_to_spare_is_refused() -> None:
    model = tiny_dit("WanTransformer3DModel", {**CONFIGS["WanTransformer3DModel"][0], "num_layers": 3})
    with pytest.raises(PlanError, match="too few layers to remove one in 4"):
        larger_cut(TransformerFamily(), model)  # type: ignore[arg-type,abstract]
