"""A plan for a model by name or directory, without a project: what `vdmini plan MODEL` does."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from vdmini_core.errors import PlanError
from vdmini_core.foreign import read_json_file
from vdmini_core.models.inspect import BUILT_IN, load_architecture
from vdmini_core.models.registry import family_of, fingerprint, load_pipeline, load_settings
from vdmini_core.params import FIXED_RECIPES, PlanParams
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
    if sensitivity is not None and params.recipe != "auto":
        raise PlanError(f"recipe {params.recipe} reads no profile", fix="use auto, or leave the profile out")
    profile = None if sensitivity is None else _sensitivity(sensitivity)
    times = None if timing is None else _times(timing)
    if model in BUILT_IN:
        family, denoiser, _, settings = load_architecture(model)
    else:
        load_architecture(model)  # says what is wrong with a directory sooner than its weights would
        pipeline = load_pipeline(Path(model))
        family, settings = family_of(pipeline), load_settings(Path(model), pipeline)
        denoiser = getattr(pipeline, family.denoiser_name)
    if profile is not None and profile.get("teacher_fingerprint") != fingerprint(denoiser):
        no_weights = "a profile is of weights: give the pipeline directory in place of the built-in name"
        raise PlanError(
            "the profile is of another model",
            expected=f"fingerprint {fingerprint(denoiser)}",
            found=str(profile.get("teacher_fingerprint")),
            fix=no_weights if model in BUILT_IN else "profile this model",
        )
    units = family.units(denoiser, settings)
    return make_plan(params, family, denoiser, units, profile, settings, seed, timing=times)


def _checked(choices: dict[str, Any]) -> PlanParams:
    """The choices as parameters; what contradicts itself or would be ignored is refused."""
    budgets = [key for key in choices if key.startswith("max_")]
    recipe = choices.get("recipe")
    if recipe is not None and recipe not in (known := get_args(PlanParams.model_fields["recipe"].annotation)):
        near = difflib.get_close_matches(str(recipe), known, n=1)
        raise PlanError(
            f"there is no recipe {recipe}",
            expected=", ".join(known),
            fix=f"did you mean {near[0]}?" if near else "",
        )
    if budgets and recipe in (None, *FIXED_RECIPES):
        raise PlanError(
            f"{', '.join(budgets)}: a budget needs a recipe that follows it",
            expected="auto (with the sensitivity profile), magnitude or random",
            found=str(recipe or "no recipe"),
        )
    if choices.get("units") and recipe != "manual":
        raise PlanError(f"recipe {recipe} chooses units by itself", fix="leave the units out, or use manual")
    if choices.get("timing") and "max_latency_ratio" not in choices:
        raise PlanError("a timing file is read for max_latency_ratio alone", fix="give both or neither")
    try:
        return PlanParams(**choices)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise PlanError(f"{where}: {problem}" if where else problem, fix="correct this option") from None


def _sensitivity(path: Path) -> dict[str, Any]:
    found = _object(path)
    rows = found.get("units")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
        raise PlanError(f"{path} is no profile", expected="sensitivity.json, as `vdmini profile` writes it")
    return found


def _times(path: Path) -> dict[str, Any]:
    found = _object(path)
    by_unit = found.get("unit_ms")
    numbers = [found.get("denoiser_ms"), *(by_unit.values() if isinstance(by_unit, dict) else [None])]
    if not all(isinstance(number, int | float) for number in numbers):
        raise PlanError(f"{path} holds no unit times", expected="timing.json, as `vdmini profile` writes it")
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        found = read_json_file(path)
    except (OSError, ValueError) as error:
        raise PlanError(
            f"{path} cannot be read as JSON", found=str(error), fix="`vdmini profile --force` writes it anew"
        ) from None
    return found if isinstance(found, dict) else {}
