"""Commands on plans: `plan MODEL` and `plan-diff`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vdmini_core.errors import DataError
from vdmini_core.printing import JsonOption, print_json

MODEL_HELP = "pipeline directory, or a name such as `stable-video-diffusion`, `t2v-turbo-v2`, `hunyuan-video`"
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
RecipeOption = Annotated[
    str | None, typer.Option(help="paper, larger, auto, manual, magnitude, random, depgraph")
]
UnitOption = Annotated[
    list[str] | None, typer.Option("--unit", metavar="NAME", help="to remove, for --recipe manual; repeat it")
]
ParamsRatioOption = Annotated[float | None, typer.Option(help="most parameters left, of 1")]
FlopsRatioOption = Annotated[float | None, typer.Option(help="most FLOPs left, of 1")]
LatencyRatioOption = Annotated[float | None, typer.Option(help="most time left, of 1; needs --timing")]
SensitivityOption = Annotated[
    Path | None,
    typer.Option(help="sensitivity.json of its profile, for --recipe auto", exists=True, dir_okay=False),
]
TimingOption = Annotated[
    Path | None, typer.Option(help="timing.json of its profile", exists=True, dir_okay=False)
]
OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="write the plan here")]
PlanArgument = Annotated[Path, typer.Argument(help="plan.json", exists=True, dir_okay=False)]
VaeDecoderOption = Annotated[str | None, typer.Option(help="cut the VAE decoder too: paper or light")]
SeedOption = Annotated[int | None, typer.Option(help="of --recipe random; default 0")]


def plan(
    model: ModelArgument,
    recipe: RecipeOption = None,
    unit: UnitOption = None,
    max_params_ratio: ParamsRatioOption = None,
    max_flops_ratio: FlopsRatioOption = None,
    max_latency_ratio: LatencyRatioOption = None,
    sensitivity: SensitivityOption = None,
    timing: TimingOption = None,
    seed: SeedOption = None,
    vae_decoder: VaeDecoderOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a recipe removes from a model and what is left; without a recipe or units, the paper's."""
    from vdmini_core.models.inspect import load_architecture
    from vdmini_core.pruning.plan import VAE_DECODER_PLAN
    from vdmini_core.pruning.planning import plan_model
    from vdmini_core.pruning.vae_decoder import plan_decoder

    if output is not None and (output.is_dir() or not output.resolve().parent.is_dir()):
        raise DataError(
            "the plan cannot be written there", expected="a file in a folder that exists", found=str(output)
        )
    budget = any(ratio is not None for ratio in (max_params_ratio, max_flops_ratio, max_latency_ratio))
    given = {
        "recipe": recipe or ("manual" if unit else "auto" if sensitivity else None if budget else "paper"),
        "units": tuple(unit or ()) or None,
        "max_params_ratio": max_params_ratio,
        "max_flops_ratio": max_flops_ratio,
        "max_latency_ratio": max_latency_ratio,
    }
    choices = {key: value for key, value in given.items() if value is not None}
    made = plan_model(model, choices, sensitivity=sensitivity, timing=timing, seed=seed or 0)
    decoder = None
    if vae_decoder is not None:
        _, _, vae, settings = load_architecture(model)
        decoder = plan_decoder(vae, settings, vae_decoder)
    if output is not None:
        made.save(output)
        if decoder is not None:
            decoder.save(output.with_name(VAE_DECODER_PLAN))
    if as_json:
        ratios = {"params_ratio": made.params_ratio, "flops_ratio": made.flops_ratio}
        print_json(made.to_dict() | ratios | ({} if decoder is None else {"vae_decoder": asdict(decoder)}))
    else:
        typer.echo(made.describe())
        if decoder is not None:
            typer.echo(decoder.describe())


def plan_diff(first: PlanArgument, second: PlanArgument, as_json: JsonOption = False) -> None:
    """Print what two plans do differently."""
    from vdmini_core.pruning.plan import Plan, diff_plans

    plans = Plan.load(first), Plan.load(second)
    difference = diff_plans(*plans)
    if as_json:
        print_json(difference)
        return
    lines = [] if difference["same_teacher"] else ["teacher: not the same"]
    lines += [f"{key}: {one} -> {other}" for key, (one, other) in difference["changed"].items()]
    for title, key in (("the first alone", "only_first"), ("the second alone", "only_second")):
        lines += [f"removed by {title}: {', '.join(difference[key])}"] if difference[key] else []
    if narrowed := difference["narrowed"]:
        lines.append(f"inner channels: not the same in {len(narrowed)} layers (--json names them)")
    typer.echo("\n".join(lines) or "the plans are the same")
