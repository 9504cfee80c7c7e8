"""All of `params.yaml`, and what its sections ask of each other."""

from __future__ import annotations

from pydantic import Field, model_validator

from vdmini_core.params.cutting import PlanParams, ProfileParams, PruneParams
from vdmini_core.params.evidence import EvaluateParams, ReportParams
from vdmini_core.params.material import PrepareParams, SamplingParams, TeacherParams
from vdmini_core.params.recovery import DistillParams
from vdmini_core.params.registry import PromoteParams, RegisterParams
from vdmini_core.params.section import BaseParams, Section


class Params(Section):
    """All of `params.yaml`, one section per stage."""

    base: BaseParams = BaseParams()
    prepare: PrepareParams = PrepareParams()
    teacher: TeacherParams = TeacherParams()
    sampling: SamplingParams = SamplingParams()
    profile: ProfileParams = ProfileParams()
    plan: PlanParams = PlanParams(max_flops_ratio=0.69)
    prune: PruneParams = PruneParams()
    distill: DistillParams = DistillParams()
    evaluate: EvaluateParams = EvaluateParams()
    report: ReportParams = ReportParams()
    register_: RegisterParams = Field(RegisterParams(), alias="register")
    promote: PromoteParams = PromoteParams()

    @model_validator(mode="after")
    def _the_gate_gives_its_alias(self) -> Params:
        if self.register_.alias.lower() == self.promote.alias.lower():
            raise ValueError(
                f"register.alias and promote.alias are both `{self.promote.alias}`: no gate between"
            )
        return self

    @model_validator(mode="after")
    def _clips_suffice(self) -> Params:
        if self.profile.clips > self.prepare.clips.validation:
            raise ValueError(
                f"profile.clips {self.profile.clips} exceeds prepare.clips.validation "
                f"{self.prepare.clips.validation}"
            )
        if self.evaluate.clips > self.prepare.clips.test:
            raise ValueError(
                f"evaluate.clips {self.evaluate.clips} exceeds prepare.clips.test {self.prepare.clips.test}"
            )
        return self

    @model_validator(mode="after")
    def _clips_serve_the_protocol(self) -> Params:
        fvd, prepare = self.evaluate.fvd, self.prepare
        if fvd.extractor == "embedded":
            return self
        if (fvd.clips or 0) > self.evaluate.clips:
            raise ValueError(f"evaluate.fvd.clips {fvd.clips} exceeds evaluate.clips {self.evaluate.clips}")
        every = prepare.fps / (fvd.fps or prepare.fps)
        if abs(every - round(every)) > 1e-6 or every < 1:
            raise ValueError(
                f"evaluate.fvd.fps {fvd.fps:g} is not prepare.fps {prepare.fps:g} divided by a whole number"
            )
        span = ((fvd.frames or 1) - 1) * round(every) + 1
        if span > prepare.frames:
            raise ValueError(
                f"evaluate.fvd.frames {fvd.frames} span {span} prepared frames: "
                f"prepare.frames {prepare.frames} is too few"
            )
        return self
