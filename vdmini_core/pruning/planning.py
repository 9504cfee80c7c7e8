"""A plan for a model by name or directory, without a project: what `vdmini plan MODEL` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vdmini_core.artifacts import read_json
from vdmini_core.errors import PlanError
from vdmini_core.models.inspect import BUILT_IN, load_architecture
from vdmini_core.models.registry import family_of, fingerprint, load_pipeline, load_settings
from vdmini_core.params import PlanParams
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.recipes import make_plan


def plan_model(
    model: str,
    choices: dict[str, Any],
    *,
    sensitivity: Path | None = None,
    timing: Path | None = None,
    seed: int = 0,
) -> Plan:
    """What a recipe removes from a model.

    Args:
        model: pipeline directory (the plan is bound to its weights), or a built-in architecture such as
            `stable-video-diffusion` (the plan fits any weights of it).
        choices: fields of the section `plan` of the parameters: `recipe`, `units`, `max_params_ratio`, ...
        sensitivity: `sensitivity.json` of the same model, for `auto`. The solver's first answer is taken:
            its runners-up are tried together only in a project, which has videos.
        timing: `timing.json` of its profile, for `max_latency_ratio`.
        seed: of the `random` recipe.

    Raises:
        PlanError: a choice that does not fit, an impossible budget, or the profile of another model.
        ModelError: no such model.
    """
    params = _checked(choices | ({"timing": str(timing)} if timing else {}))
    profile = None if sensitivity is None else _read(sensitivity, "units")
    times = None if timing is None else _read(timing, "unit_ms")
    if model in BUILT_IN:
        family, denoiser, _, settings = load_architecture(model)
    else:
        load_architecture(model)  # says what is wrong with a directory sooner than its weights would
        pipeline = load_pipeline(Path(model))
        family, settings = family_of(pipeline), load_settings(Path(model), pipeline)
        denoiser = getattr(pipeline, family.denoiser_name)
    if profile is not None and profile.get("teacher_fingerprint") != fingerprint(denoiser):
        raise PlanError(
            "the profile is of another model",
            expected=f"fingerprint {fingerprint(denoiser)}",
            found=str(profile.get("teacher_fingerprint")),
            fix="profile this model",
        )
    units = family.units(denoiser, settings)
    return make_plan(params, family, denoiser, units, profile, settings, seed, timing=times)


def _checked(choices: dict[str, Any]) -> PlanParams:
    try:
        return PlanParams(**choices)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise PlanError(f"{where}: {problem}" if where else problem) from None


def _read(path: Path, key: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path)
    if not isinstance(found, dict) or key not in found:
        raise PlanError(f"{path} is not what it should be", expected=f"a JSON object with `{key}`")
    return found
