"""Parameters of register and promote."""

from __future__ import annotations

from pydantic import Field, model_validator

from vdmini_core.params.section import Section

CHAMPION, PREVIOUS = "champion", "previous"
ROUND_TAGS = ("vdmini.round", "vdmini.size")  # of a progressive run: the gate does not look at them


def is_previous(alias: str) -> bool:
    """Whether an alias is one under which the gate keeps a former champion."""
    return alias.lower() == PREVIOUS or alias.lower().endswith(f"-{PREVIOUS}")


class RegisterParams(Section):
    """MLflow model registry."""

    name: str = Field("vdmini-mini", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    alias: str = Field("candidate", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    tags: dict[str, str] = Field({}, description="put on the version beside the evidence")

    @model_validator(mode="after")
    def _no_way_past_the_gate(self) -> RegisterParams:
        if self.alias.lower() == CHAMPION or is_previous(self.alias):
            raise ValueError(f"alias: `{self.alias}` is what the gate gives, not `register`")
        return self

    @model_validator(mode="after")
    def _evidence_is_ours(self) -> RegisterParams:
        if ours := sorted(key for key in self.tags if key.startswith("vdmini.") and key not in ROUND_TAGS):
            raise ValueError(f"tags: `{ours[0]}` is what the gate believes: only `register` writes vdmini.*")
        return self


class PromoteParams(Section):
    """The gate between candidate and champion."""

    alias: str = Field("champion", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    max_fvd_teacher_ratio: float = Field(
        1.0, gt=0, le=1, description="recovered / pruned distance to the teacher must stay below"
    )
    max_fvd_regression: float = Field(0.05, ge=0, description="share by which FVD may exceed the champion's")
    min_speedup: float = Field(1.0, gt=0, description="the denoiser's speed-up over the teacher")
    min_gain: float = Field(
        0.05, ge=0, lt=1, description="gain in speed or size that equal quality needs to replace the champion"
    )

    @model_validator(mode="after")
    def _no_way_round_the_gate(self) -> PromoteParams:
        if is_previous(self.alias):
            raise ValueError(f"alias: under `{self.alias}` a former champion is kept for `vdmini rollback`")
        return self
