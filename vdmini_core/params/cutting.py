"""Parameters of profile, plan and prune."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vdmini_core.params.section import Section

FIXED_RECIPES = ("paper", "larger", "manual")  # they follow no budget and read no profile
Granularity = Literal["pair", "block", "both", "temporal"]


class ProfileParams(Section):
    """Sensitivity of every unit."""

    clips: int = Field(4, ge=4, description="validation clips each unit is tried on")
    max_clips: int | None = Field(
        8,
        ge=4,
        description="where the order of paired errors is open, units meet up to so many clips",
    )
    granularity: Granularity = Field(
        "both", description="temporal: pairs, blocks, and the temporal sub-layers inside pairs and M too"
    )
    variants: tuple[Literal["removed", "replaced"], ...] = Field(("removed",), min_length=1)
    timing_repeats: int = Field(3, ge=1)
    workers: int = Field(1, ge=1, description="Ray actors at once; 1 runs without Ray")
    shared_gib: float = Field(
        1.0, ge=0, description="memory a worker may use for what all units share; bytes do not depend on it"
    )


class PlanParams(Section):
    """What to remove."""

    recipe: Literal["paper", "larger", "auto", "manual", "magnitude", "random", "depgraph"] = "auto"
    units: tuple[str, ...] = Field((), description="units to remove, for recipe: manual")
    max_params_ratio: float | None = Field(None, gt=0, le=1, description="student / teacher parameters")
    max_flops_ratio: float | None = Field(None, gt=0, le=1, description="student / teacher FLOPs")
    max_latency_ratio: float | None = Field(None, gt=0, le=1, description="needs a frozen timing file")
    timing: str | None = Field(None, description="frozen timing file under timing/, for max_latency_ratio")
    metric: Literal["total", "content", "motion", "paired"] = Field(
        "paired",
        description="damage that the automatic recipe minimises; by `paired` the best are tried together",
    )
    frontier_points: int = Field(
        4, ge=0, le=64, description="sizes at which the solver's best cut is tried too, for the picture"
    )
    vae_decoder: Literal["none", "paper", "light"] = Field(
        "none",
        description="the VAE decoder too: as the paper, or to a fifth of its FLOPs; 32 channels a step",
    )

    @model_validator(mode="after")
    def _budget_fits_recipe(self) -> PlanParams:
        budgets = (self.max_params_ratio, self.max_flops_ratio, self.max_latency_ratio)
        if self.recipe in ("auto", "magnitude", "random", "depgraph") and not any(
            b is not None for b in budgets
        ):
            raise ValueError(
                f"recipe: {self.recipe} needs a budget: max_params_ratio, max_flops_ratio, max_latency_ratio"
            )
        if self.max_latency_ratio is not None and not self.timing:
            raise ValueError("max_latency_ratio needs `timing`, a frozen file of measured unit times")
        if self.recipe == "manual" and not self.units:
            raise ValueError("recipe: manual needs `units`, the names to remove (see `vdmini inspect`)")
        return self


class PruneParams(Section):
    """Surgery."""

    verify: bool = Field(True, description="reload the student and compare one forward pass exactly")
