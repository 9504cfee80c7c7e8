"""Typed parameters: `params.yaml` -> one frozen model per stage; unknown keys name the nearest known one.

Values live here, live objects (models, clients, loaders) are passed as arguments. After `load_params`
only these objects travel.
"""

from vdmini_core.params.cutting import FIXED_RECIPES, Granularity, PlanParams, ProfileParams, PruneParams
from vdmini_core.params.evidence import (
    FEWEST_ROUNDS,
    EvaluateParams,
    FvdParams,
    ReportParams,
    VBenchParams,
)
from vdmini_core.params.material import (
    PrepareParams,
    SamplingParams,
    SplitClips,
    TeacherParams,
    TeacherTrainParams,
)
from vdmini_core.params.numbers import is_number
from vdmini_core.params.reading import known_keys, load_params, nearest_key, parse_params, section_dict
from vdmini_core.params.recovery import DecoderRecoveryParams, DistillParams
from vdmini_core.params.registry import ROUND_TAGS, PromoteParams, RegisterParams
from vdmini_core.params.section import BaseParams, Section
from vdmini_core.params.whole import Params

__all__ = [
    "FEWEST_ROUNDS",
    "FIXED_RECIPES",
    "ROUND_TAGS",
    "BaseParams",
    "DecoderRecoveryParams",
    "DistillParams",
    "EvaluateParams",
    "FvdParams",
    "Granularity",
    "Params",
    "PlanParams",
    "PrepareParams",
    "ProfileParams",
    "PromoteParams",
    "PruneParams",
    "RegisterParams",
    "ReportParams",
    "SamplingParams",
    "Section",
    "SplitClips",
    "TeacherParams",
    "TeacherTrainParams",
    "VBenchParams",
    "is_number",
    "known_keys",
    "load_params",
    "nearest_key",
    "parse_params",
    "section_dict",
]
