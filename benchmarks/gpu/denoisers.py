"""Claim: text-to-video teachers, full size, cut by a recipe, are as much faster on a GPU as the paper says.

python benchmarks/gpu/denoisers.py [--only t2v-turbo-v2 ...] [--repeats 10] [--no-compile]

One pass of the denoiser, teacher and students in turns, bfloat16, batch 1, random weights (latency does not
depend on them), eager, then compiled; the decoder of a clip, which the students keep; end to end as many
passes as the teacher samples with and one decoding, reckoned from both. Needs torch, diffusers and this
package's core; no network. Without a GPU operations alone are counted and the times stand as not measured.
Writes `benchmarks/results/gpu_denoisers-DATE.json` after every model.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from latency import on_gpu

from vdmini_core.artifacts import write_json
from vdmini_core.errors import ModelError
from vdmini_core.metrics.speed import compare_latency, device_name, peak_memory
from vdmini_core.models.dit.arguments import Maker, arguments
from vdmini_core.models.dit.table import ARCHITECTURES, architecture_of
from vdmini_core.models.flops import decoder_flops, unet_inputs
from vdmini_core.models.inspect import load_architecture
from vdmini_core.pruning.planning import plan_model
from vdmini_core.pruning.surgery import apply_plan

RESULTS = Path(__file__).parents[1] / "results"
DEVICE, DTYPE = "cuda", torch.bfloat16
NOT_MEASURED = "not measured: no GPU"


@dataclass(frozen=True)
class Case:
    """A teacher, its recipes with the speed-up that is wanted of each, and its passes a clip.

    Guidance by a second pass (VideoCrafter2, Wan) counts twice; T2V-Turbo-v2 and HunyuanVideo are told it.
    """

    recipes: dict[str, float | None]
    passes: int


CASES = {
    "videocrafter2": Case({"paper": 1.40, "larger": None}, 100),
    "t2v-turbo-v2": Case({"paper": 1.40, "larger": 1.54}, 8),
    "hunyuan-video": Case({"paper": 1.25}, 50),
    "wan2.1-t2v-1.3b": Case({"paper": None}, 100),
}


def random_twin(meta_model: Any) -> Any:
    """A random model of the same config in bfloat16, made on the GPU."""
    return on_gpu(lambda: type(meta_model).from_config(meta_model.config))


def call_of(model: Any, settings: Any) -> Callable[[], Any]:
    """One pass, as the teacher is called for a clip of its own size."""
    if type(model).__name__ not in ARCHITECTURES:
        given = unet_inputs(model, settings.frames, *settings.latent_size, DEVICE)
        cast = tuple(part if part is None or part.dim() == 1 else part.to(DTYPE) for part in given)
        return lambda: model(*cast, return_dict=False)
    tokens = architecture_of(model).text_tokens
    make = Maker(1, settings.latent_frames, *settings.latent_size, tokens, DEVICE, seed=0)
    named = {
        name: part.to(DTYPE)
        if torch.is_tensor(part) and part.dim() > 1 and part.is_floating_point()
        else part
        for name, part in arguments(model, make).items()
    }
    return lambda: model(**named, return_dict=False)


def decoding(vae: Any, settings: Any) -> Callable[[], Any]:
    """One clip; tiles where the class has them, as its pipeline does at this size."""
    if hasattr(vae, "enable_tiling"):
        vae.enable_tiling()
    channels = vae.config.get("z_dim") or vae.config["latent_channels"]
    video = hasattr(vae.config, "z_dim") or "temporal_compression_ratio" in vae.config
    shape = (1, channels, settings.latent_frames) if video else (settings.frames, channels)
    latents = torch.randn(*shape, *settings.latent_size, device=DEVICE, dtype=DTYPE)
    return lambda: vae.decode(latents, return_dict=False)


def counted(name: str, case: Case) -> tuple[dict[str, Any], dict[str, Any], Any, Any]:
    """The row so far, the students on the meta device, the VAE, and the settings."""
    family, teacher, vae, settings = load_architecture(name)
    plans = {recipe: plan_model(name, {"recipe": recipe}) for recipe in case.recipes}
    models = {"teacher": teacher} | {r: apply_plan(teacher, p, family) for r, p in plans.items()}
    try:
        decoder: Any = decoder_flops(vae, settings)[""]
    except ModelError as error:
        decoder = str(error).split("\n")[0]
    first = next(iter(plans.values()))
    row = {
        "frames": settings.frames,
        "height": settings.height,
        "width": settings.width,
        "passes": case.passes,
        "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in models.items()},
        "flops": {"teacher": first.teacher_flops} | {r: p.expected_flops for r, p in plans.items()},
        "flops_ratio": {r: round(p.teacher_flops / p.expected_flops, 4) for r, p in plans.items()},
        "decoder_flops": decoder,
        "latency": NOT_MEASURED,
    }
    return row, models, vae, settings


@torch.inference_mode()
def measured(models: dict[str, Any], vae: Any, settings: Any, case: Case, options: Any) -> dict[str, Any]:
    """Times of all parts; the models are put on the GPU one beside the other."""
    placed = {name: random_twin(model) for name, model in models.items()}
    calls = {name: call_of(model, settings) for name, model in placed.items()}
    found: dict[str, Any] = compare_latency(calls, 2, options.repeats, device=DEVICE)
    found["peak_gib"] = {n: round(peak_memory(f, device=DEVICE) / 2**30, 2) for n, f in calls.items()}
    decode = compare_latency({"decoder": decoding(random_twin(vae), settings)}, 1, 3, device=DEVICE)
    found["decoder_ms"] = decode["latency"]["decoder"]["median_ms"]
    whole = {n: case.passes * v["median_ms"] + found["decoder_ms"] for n, v in found["latency"].items()}
    found["end_to_end_speedup"] = {n: round(whole["teacher"] / ms, 4) for n, ms in whole.items()}
    if options.compile:
        for model in placed.values():  # in place: there is no room for a second HunyuanVideo
            model.forward = torch.compile(model.forward)
        compiled = compare_latency(calls, 3, options.repeats, device=DEVICE)["latency"]
        eager = found["latency"]["teacher"]["median_ms"]
        found["compiled"] = {
            "latency": compiled,
            "speedup_over_eager_teacher": {n: round(eager / c["median_ms"], 4) for n, c in compiled.items()},
        }
    found["claims"] = {
        recipe: {
            "wanted": wanted,
            "found": found["speedup"][recipe],
            "holds": found["speedup"][recipe] >= wanted,
        }
        for recipe, wanted in case.recipes.items()
        if wanted is not None
    }
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    result: dict[str, Any] = {
        "models": {},
        "settings": {"dtype": "bfloat16", "batch": 1, "weights": "random", "repeats": options.repeats},
        "device": device_name(DEVICE) if has_gpu else NOT_MEASURED,
        "libraries": {name: version(name) for name in ("torch", "diffusers")},
    }
    held = True
    for name in options.only:
        row, models, vae, settings = counted(name, CASES[name])
        if has_gpu:
            row |= measured(models, vae, settings, CASES[name], options)
            torch.cuda.empty_cache()
            held = held and all(claim["holds"] for claim in row["claims"].values())
        result["models"][name] = row
        print(name, row["flops_ratio"], row.get("speedup", NOT_MEASURED), row.get("claims", ""), flush=True)
        write_json(RESULTS / f"gpu_denoisers-{datetime.date.today().isoformat()}.json", result)
    if not held:
        sys.exit(1)


if __name__ == "__main__":
    main()
