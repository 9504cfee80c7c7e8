"""Claim: cut as planned, full-size Stable Video Diffusion is as much faster on a GPU as issue and paper ask.

python benchmarks/gpu/latency.py [--repeats 10] [--no-compile] [--also 384,192,128,96:2,2,2,1 ...]

U-Net pass, decoding of a clip, and both (one-step image to video) at 14 frames of 576 x 1024, bfloat16,
batch 1, with random weights (latency does not depend on them). Eager figures are measured in turns in one
run; the compiled student (channels last, `torch.compile`, cuDNN's own choice of kernels) against the eager
teacher. Needs one GPU with 60 GB, torch, diffusers and this package's core; no network. The result,
`benchmarks/results/gpu_latency-DATE.json`, is written after every part.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

import vdmini_core
from vdmini_core.artifacts import write_json
from vdmini_core.metrics.speed import compare_latency, device_name, peak_memory
from vdmini_core.models.flops import decoder_flops, unet_inputs
from vdmini_core.models.inspect import BUILT_IN, load_architecture
from vdmini_core.models.pruned_unet import build_on_meta
from vdmini_core.models.pruned_vae import AutoencoderKLTemporalPrunedDecoder
from vdmini_core.pruning.planning import plan_model
from vdmini_core.pruning.vae_decoder import DecoderPlan, plan_decoder

RESULTS = Path(__file__).parents[1] / "results"
NAME = "stable-video-diffusion"
DEVICE, DTYPE = "cuda", torch.bfloat16
WANTED = {
    "unet": 1.48,
    "decoder paper": 3.37,
    "both paper": 2.82,
    "both light": 2.82,
    "both light, fastest": 4.0,
}


def on_gpu(build: Callable[[], Any]) -> Any:
    """A random model in bfloat16, made on the GPU."""
    torch.set_default_dtype(DTYPE)
    try:
        with torch.device(DEVICE):
            model = build()
    finally:
        torch.set_default_dtype(torch.float32)
    return model.to(DEVICE, DTYPE).eval().requires_grad_(False)


def pruned_vae(vae: Any, plan: DecoderPlan) -> Any:
    """The student of a plan of the decoder, weights at random."""
    own = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    extra = {"decoder_channels": plan.channels, "decoder_layers": plan.layers, "decoder_mid_block": False}
    return on_gpu(lambda: AutoencoderKLTemporalPrunedDecoder.from_config({**own, **extra}))


def measure(arguments: argparse.Namespace) -> None:
    """All parts, in order; each is printed and saved as soon as it is known."""
    family, _, meta_vae, settings = load_architecture(NAME)
    vae: Any = meta_vae
    plan = plan_model(NAME, {"recipe": "paper"})
    del family
    plans = {recipe: plan_decoder(vae, settings, recipe) for recipe in ("paper", "light")}
    for text in arguments.also:
        plans[text] = _plan_of(plans["paper"], text, vae, settings)
    latents = torch.randn(settings.frames, 4, *settings.latent_size, device=DEVICE, dtype=DTYPE)
    with torch.inference_mode():
        unets = {
            "teacher": on_gpu(lambda: UNetSpatioTemporalConditionModel(**BUILT_IN[NAME]["unet"])),
            "paper": on_gpu(
                lambda: vdmini_core.UNetSpatioTemporalPrunedModel(
                    **BUILT_IN[NAME]["unet"], removed_units=tuple(plan.removed)
                )
            ),
        }
        vaes = {"teacher": on_gpu(lambda: AutoencoderKLTemporalDecoder(**BUILT_IN[NAME]["vae"]))}
        vaes |= {name: pruned_vae(vae, p) for name, p in plans.items()}
        inputs = tuple(
            torch.randn_like(part) if part.numel() > 8 else part
            for part in (
                p.to(DTYPE)
                for p in unet_inputs(unets["teacher"], settings.frames, *settings.latent_size, DEVICE)
            )
        )

        def unet_call(model: Any) -> Callable[[], Any]:
            return lambda: model(*inputs, return_dict=False)

        def decode_call(model: Any) -> Callable[[], Any]:
            return lambda: model.decode(latents, num_frames=settings.frames, return_dict=False)

        def both(unet: Any, autoencoder: Any) -> Callable[[], Any]:
            first, second = unet_call(unet), decode_call(autoencoder)

            def call() -> None:
                first()
                second()

            return call

        repeats = arguments.repeats
        result: dict[str, Any] = {
            "settings": {
                "model": NAME,
                "frames": settings.frames,
                "height": settings.height,
                "width": settings.width,
                "batch": 1,
                "dtype": "bfloat16",
                "repeats": repeats,
                "weights": "random",
            },
            "device": device_name(DEVICE),
            "libraries": {name: version(name) for name in ("torch", "diffusers", "transformers")},
            "flops": {
                "unet": {"teacher": plan.teacher_flops, "paper": plan.expected_flops},
                "decoder": {"teacher": plans["paper"].teacher_flops}
                | {name: p.expected_flops for name, p in plans.items()},
            },
            "decoders": {name: {"channels": p.channels, "layers": p.layers} for name, p in plans.items()},
            "parameters": {
                "unet": {name: _size(m) for name, m in unets.items()},
                "decoder": {name: _size(m.decoder) for name, m in vaes.items()},
            },
        }
        calls = {
            "unet": {name: unet_call(m) for name, m in unets.items()},
            "decoder": {name: decode_call(m) for name, m in vaes.items()},
            "both": {"teacher": both(unets["teacher"], vaes["teacher"])}
            | {name: both(unets["paper"], vaes[name]) for name in plans},
        }
        for part, functions in calls.items():
            result[part] = compare_latency(functions, 2, repeats, device=DEVICE)
            result[part]["peak_gib"] = {
                n: round(peak_memory(f, device=DEVICE) / 2**30, 2) for n, f in functions.items()
            }
            tell(part, result[part])
            save(result)
        if arguments.compile:
            torch.backends.cudnn.benchmark = True
            student, decoder = unets["paper"], vaes["light"]
            for module in (*student.modules(), *decoder.modules()):
                if isinstance(module, torch.nn.Conv2d):  # convolutions over time have five dimensions
                    module.to(memory_format=torch.channels_last)
            student.forward = torch.compile(student.forward)
            decoder.decoder.forward = torch.compile(decoder.decoder.forward)
            fastest = {
                "teacher": calls["both"]["teacher"],
                "unet": unet_call(student),
                "decoder": decode_call(decoder),
                "both": both(student, decoder),
            }
            result["fastest"] = by_part(compare_latency(fastest, 3, repeats, device=DEVICE), result)
            tell("fastest", result["fastest"])
    held = claims(result)
    save(result)
    if not held:
        sys.exit(1)


def _plan_of(like: DecoderPlan, text: str, vae: Any, settings: Any) -> DecoderPlan:
    """A plan from "widths:layers", outwards, e.g. 384,192,128,96:2,2,2,1."""
    channels, layers = (tuple(int(x) for x in part.split(",")) for part in text.split(":"))
    own = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    extra = {"decoder_channels": channels, "decoder_layers": layers, "decoder_mid_block": False}
    student = build_on_meta(AutoencoderKLTemporalPrunedDecoder, {**own, **extra})
    return replace(
        like,
        recipe=text,
        channels=channels,
        layers=layers,
        expected_params=_size(student.decoder),  # type: ignore[arg-type]
        expected_flops=decoder_flops(student, settings)[""],
    )


def _size(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def tell(part: str, row: dict[str, Any]) -> None:
    """One line a model."""
    for name, latency in row["latency"].items():
        memory = row.get("peak_gib", {}).get(name, "")
        print(
            f"{part:8} {name:28} {latency['median_ms']:9.1f} ms  {row['speedup'][name]:.3f}x  {memory}",
            flush=True,
        )


def by_part(fastest: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Compiled parts beside the same part of the eager teacher, measured earlier in this run."""
    for part in ("unet", "decoder"):
        eager = result[part]["latency"]["teacher"]["median_ms"]
        fastest["speedup"][part] = round(eager / fastest["latency"][part]["median_ms"], 4)
    return fastest


def claims(result: dict[str, Any]) -> bool:
    """What was wanted and what came out; whether all of it holds."""
    found = {
        "unet": result["unet"]["speedup"]["paper"],
        "decoder paper": result["decoder"]["speedup"]["paper"],
        "both paper": result["both"]["speedup"]["paper"],
        "both light": result["both"]["speedup"]["light"],
    }
    if "fastest" in result:
        found["both light, fastest"] = result["fastest"]["speedup"]["both"]
    result["claims"] = {
        name: {"wanted": WANTED[name], "found": value, "holds": value >= WANTED[name]}
        for name, value in found.items()
    }
    for name, row in result["claims"].items():
        print(f"{name}: {row['found']:.3f}, wanted {row['wanted']}: {'holds' if row['holds'] else 'FAILS'}")
    return all(row["holds"] for row in result["claims"].values())


def save(result: dict[str, Any]) -> None:
    """Whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"gpu_latency-{datetime.date.today().isoformat()}.json", result)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--also", nargs="*", default=[], help="further decoders, widths:layers outwards")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
