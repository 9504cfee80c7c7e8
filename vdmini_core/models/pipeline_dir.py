"""What may be loaded from a pipeline directory: known classes, every part present, no pickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdmini_core.errors import ModelError
from vdmini_core.foreign import (
    ADAPTER,
    demand_header,
    demand_own_shards,
    demand_plain_config,
    read_json_file,
)

INDEX = "model_index.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
CODE = ("diffusers.py", "transformers.py", "vdmini_core.py")
VARIANT = "fp16"
# Part -> (library, class) pairs that may fill it; weights None: the part has a config only.
Class = tuple[str, str] | tuple[None, None]
ABSENT = (None, None)  # how model_index.json says that a part is not there
Parts = Mapping[str, tuple[frozenset[Class], tuple[str, str | None]]]
SVD_PARTS: Parts = {
    "unet": (
        frozenset(
            {
                ("diffusers", "UNetSpatioTemporalConditionModel"),
                ("vdmini_core", "UNetSpatioTemporalPrunedModel"),
            }
        ),
        ("config.json", "diffusion_pytorch_model"),
    ),
    "vae": (
        frozenset(
            {
                ("diffusers", "AutoencoderKLTemporalDecoder"),
                ("vdmini_core", "AutoencoderKLTemporalPrunedDecoder"),
            }
        ),
        ("config.json", "diffusion_pytorch_model"),
    ),
    "image_encoder": (
        frozenset({("transformers", "CLIPVisionModelWithProjection")}),
        ("config.json", "model"),
    ),
    "scheduler": (frozenset({("diffusers", "EulerDiscreteScheduler")}), ("scheduler_config.json", None)),
    "feature_extractor": (
        frozenset(
            ("transformers", name)
            for name in (
                "CLIPImageProcessor",
                "CLIPImageProcessorFast",
                "CLIPImageProcessorPil",
                "CLIPFeatureExtractor",
            )
        ),
        ("preprocessor_config.json", None),
    ),
}
VIDEOCRAFTER_PARTS: Parts = {
    "unet": (
        frozenset({("vdmini_core", "UNet3DFpsConditionModel")}),
        ("config.json", "diffusion_pytorch_model"),
    ),
    "vae": (frozenset({("diffusers", "AutoencoderKL")}), ("config.json", "diffusion_pytorch_model")),
    "text_encoder": (frozenset({("transformers", "CLIPTextModel")}), ("config.json", "model")),
    "scheduler": (
        frozenset({("vdmini_core", "ConsistencyScheduler"), ("vdmini_core", "RescaledDDIMScheduler")}),
        ("scheduler_config.json", None),
    ),
    # Prompts may come as embeddings.
    "tokenizer": (
        frozenset({("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast"), ABSENT}),
        ("tokenizer_config.json", None),
    ),
}
MODEL = ("config.json", "model")
DIFFUSERS_MODEL = ("config.json", "diffusion_pytorch_model")
FLOW_SCHEDULERS: frozenset[Class] = frozenset(
    {("diffusers", "FlowMatchEulerDiscreteScheduler"), ("diffusers", "UniPCMultistepScheduler")}
)


def _tokenizers(*names: str) -> tuple[frozenset[Class], tuple[str, str | None]]:
    fast = (f"{name}Fast" for name in names)
    return frozenset(("transformers", name) for name in (*names, *fast)), ("tokenizer_config.json", None)


WAN_PARTS: Parts = {
    "transformer": (frozenset({("diffusers", "WanTransformer3DModel")}), DIFFUSERS_MODEL),
    "vae": (frozenset({("diffusers", "AutoencoderKLWan")}), DIFFUSERS_MODEL),
    "text_encoder": (frozenset({("transformers", "UMT5EncoderModel")}), MODEL),
    "tokenizer": _tokenizers("T5Tokenizer", "PreTrainedTokenizer"),
    "scheduler": (FLOW_SCHEDULERS, ("scheduler_config.json", None)),
}
HUNYUAN_VIDEO_PARTS: Parts = {
    "transformer": (frozenset({("diffusers", "HunyuanVideoTransformer3DModel")}), DIFFUSERS_MODEL),
    "vae": (frozenset({("diffusers", "AutoencoderKLHunyuanVideo")}), DIFFUSERS_MODEL),
    "text_encoder": (frozenset({("transformers", "LlamaModel")}), MODEL),
    "tokenizer": _tokenizers("LlamaTokenizer"),
    "text_encoder_2": (frozenset({("transformers", "CLIPTextModel")}), MODEL),
    "tokenizer_2": _tokenizers("CLIPTokenizer"),
    "scheduler": (FLOW_SCHEDULERS, ("scheduler_config.json", None)),
}
T5: tuple[frozenset[Class], tuple[str, str | None]] = (frozenset({("transformers", "T5EncoderModel")}), MODEL)
COGVIDEOX_PARTS: Parts = {
    "transformer": (frozenset({("diffusers", "CogVideoXTransformer3DModel")}), DIFFUSERS_MODEL),
    "vae": (frozenset({("diffusers", "AutoencoderKLCogVideoX")}), DIFFUSERS_MODEL),
    "text_encoder": T5,
    "tokenizer": _tokenizers("T5Tokenizer"),
    "scheduler": (
        frozenset({("diffusers", "CogVideoXDDIMScheduler"), ("diffusers", "CogVideoXDPMScheduler")}),
        ("scheduler_config.json", None),
    ),
}
LTX_PARTS: Parts = {
    "transformer": (frozenset({("diffusers", "LTXVideoTransformer3DModel")}), DIFFUSERS_MODEL),
    "vae": (frozenset({("diffusers", "AutoencoderKLLTXVideo")}), DIFFUSERS_MODEL),
    "text_encoder": T5,
    "tokenizer": _tokenizers("T5Tokenizer"),
    "scheduler": (
        frozenset({("diffusers", "FlowMatchEulerDiscreteScheduler")}),
        ("scheduler_config.json", None),
    ),
}
WORDS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",))
PIPELINES: dict[str, Parts] = {
    "WanPipeline": WAN_PARTS,
    "HunyuanVideoPipeline": HUNYUAN_VIDEO_PARTS,
    "CogVideoXPipeline": COGVIDEOX_PARTS,
    "LTXPipeline": LTX_PARTS,
    "StableVideoDiffusionPipeline": SVD_PARTS,
    "VideoCrafterPipeline": VIDEOCRAFTER_PARTS,
}


def read_index(directory: Path) -> dict[str, Any]:
    """The directory's `model_index.json`.

    Raises:
        ModelError: no directory, no index, or a pipeline class that is not supported.
    """
    path = directory / INDEX
    if not path.is_file():
        found, fix = found_at(directory, INDEX), "give the directory that `save_pretrained` wrote"
        if (unet := _converted_unet(directory)) is not None:
            found = f"a U-Net alone ({unet / 'config.json'})"
            fix = "convert again with --base CHECKPOINT, for the other parts"
            fix = f"give {unet.parent}" if (unet.parent / INDEX).is_file() else fix
        elif (directory / "config.json").is_file() and (directory.resolve().parent / INDEX).is_file():
            found, fix = "a part of a pipeline", f"give the pipeline it is in: {directory.resolve().parent}"
        raise ModelError(
            f"{directory} is not a diffusers pipeline directory",
            expected=f"a directory with {INDEX}",
            found=found,
            fix=fix,
        )
    index = read_config(path)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        raise ModelError(
            f"{directory.name} is of a pipeline class that is not supported",
            expected=" or ".join(PIPELINES),
            found=str(name),
        )
    return index


def found_at(directory: Path, missing: str) -> str:
    """What is at a path that should be a directory with the file `missing`, in words."""
    if directory.is_dir():
        return f"no {missing}"
    return "a file in place of a folder" if directory.exists() else "no such directory"


def _converted_unet(directory: Path) -> Path | None:
    """The folder of the U-Net in what `convert` makes of a U-Net alone: the directory itself, or `unet/`."""
    for folder in (directory, directory / "unet"):
        path = folder / "config.json"
        try:
            config = read_config(path) if path.is_file() else {}
        except ModelError:
            continue
        # Nothing can be removed before there is a whole pipeline: with units gone it is a student's.
        if config.get("_class_name") == "UNet3DFpsConditionModel" and not config.get("removed_units"):
            return folder
    return None


def denoiser_part(index: Mapping[str, Any]) -> str:
    """Name of the part that denoises, by the pipeline's class: `unet` or `transformer`."""
    return "unet" if "unet" in PIPELINES[index["_class_name"]] else "transformer"


def check_directory(directory: Path) -> dict[str, Any]:
    """Refuse, before anything is loaded, what must not or cannot be loaded; return the index.

    Raises:
        ModelError: foreign classes, missing parts, pickled weights, a second transformer.
    """
    index = read_index(directory)
    check_single(index)
    parts = PIPELINES[index["_class_name"]]
    check_strangers(index, parts)
    for part, (allowed, (config, weights)) in parts.items():
        check_class(part, index.get(part), allowed)
        if is_absent(index, part):
            continue
        if not (directory / part / config).is_file():
            raise ModelError(
                f"the pipeline's {part} is incomplete",
                expected=f"{part}/{config}",
                found="missing",
                fix="copy or download the whole pipeline directory",
            )
        check_configs(directory / part)
        if part.startswith("tokenizer"):
            check_words(directory / part)
        if weights is not None:
            check_weights(directory / part, weights)
    return index


def check_strangers(index: Mapping[str, Any], parts: Parts) -> None:
    """Refuse parts that pipelines of this class do not have: a library might import what they name.

    Raises:
        ModelError: naming the first.
    """
    named = {key: entry for key, entry in index.items() if isinstance(entry, list) and any(entry)}
    if strange := [key for key in named if key not in parts and not key.startswith("_")]:
        raise ModelError(
            f"the pipeline names a part that {index['_class_name']} does not have",
            expected=", ".join(parts),
            found=f"{strange[0]}: {named[strange[0]]}"[:200],
            fix=f"take it out of {INDEX} where the rest is what you want",
        )


def check_configs(folder: Path) -> None:
    """Refuse configs of a part that ask for code or another model.

    Raises:
        ModelError: naming the file.
    """
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"{folder.name} is an adapter of another model",
            expected="whole weights",
            found=ADAPTER,
            fix="merge the adapter into its model and save that; or delete the file if the weights are whole",
        )
    # diffusers takes PART/LIBRARY.py for that library; this version refuses it, another might not
    if code := [name for name in CODE if (folder / name).exists()]:
        raise ModelError(
            f"{folder.name} holds code under a library's name",
            expected="configs and safetensors",
            found=code[0],
            fix="delete it where you trust the rest; code from a model directory is never run",
        )
    for path in sorted(folder.glob("*config.json")):
        demand_plain_config(path)


def check_words(folder: Path) -> None:
    """Refuse a tokenizer without its words, which transformers makes of its special tokens alone.

    Raises:
        ModelError: with the files that are expected.
    """
    if not any(all((folder / name).is_file() for name in names) for names in WORDS):
        raise ModelError(
            f"{folder.name} has no vocabulary",
            expected=" or ".join(" and ".join(names) for names in WORDS),
            found=", ".join(sorted(path.name for path in folder.iterdir())),
            fix="copy or download the whole pipeline directory",
        )


def check_single(index: Mapping[str, Any]) -> None:
    """Refuse a pipeline of two transformers (Wan 2.2), of which one alone would be cut.

    Args:
        index: `model_index.json`, or the config of a loaded pipeline.
    """
    told = [key for key in ("boundary_ratio", "expand_timesteps") if index.get(key) not in (None, False)]
    if not is_absent(index, "transformer_2"):
        told.append("transformer_2")
    if told:
        raise ModelError(
            "this pipeline is not supported",
            expected="one transformer for all noise levels and frames (of Wan: 2.1)",
            found=" and ".join(told) + " (Wan 2.2)",
            fix="take a Wan 2.1 pipeline",
        )


def is_absent(index: Mapping[str, Any], part: str) -> bool:
    """A part that the index leaves out, which some pipelines may."""
    return tuple(index.get(part) or ABSENT) == ABSENT


def check_class(part: str, entry: Any, allowed: frozenset[Class]) -> None:
    """Refuse a part whose library or class is not one of `allowed`."""
    found = tuple(entry) if isinstance(entry, list) and not _nested(entry) else None
    if found not in allowed:
        raise ModelError(
            f"the pipeline's {part} is missing or of a foreign class",
            expected=" or ".join(sorted(f"{library}.{name}" for library, name in allowed if library)),
            found="nothing" if entry in (None, [None, None]) else str(entry),
            fix="only these classes are loaded; code from a model directory is never run",
        )


def _nested(entry: list[Any]) -> bool:
    return any(isinstance(item, list | dict) for item in entry)


def check_weights(folder: Path, stem: str) -> None:
    """Refuse pickles; want `<stem>[.fp16].safetensors`, whole or sharded with an index."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    usable = [name for name in names if name.startswith(stem) and name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and not usable:
        raise ModelError(
            f"{folder.name} has pickled weights only",
            expected=f"{stem}.safetensors",
            found=", ".join(pickles),
            fix="download the safetensors files of the model, or save it again with safetensors",
        )
    if pickles:
        raise ModelError(
            f"{folder.name} holds pickled weights beside its safetensors",
            expected="safetensors only",
            found=", ".join(pickles),
            fix="delete the pickled files; nothing reads them and they could run code elsewhere",
        )
    if not usable:
        raise ModelError(
            f"{folder.name} has no weights",
            expected=f"{folder.name}/{stem}.safetensors",
            found=", ".join(names) or "an empty folder",
            fix="copy or download the whole pipeline directory",
        )
    for name in usable:
        demand_header(folder / name)
    for index in sorted(folder.glob(f"{stem}*.index*.json")):
        demand_own_shards(index)


def variant_of(directory: Path, index: Mapping[str, Any]) -> str | None:
    """`fp16` where a part has half-precision files only, else None."""
    for part, (_, (_, stem)) in PIPELINES[index["_class_name"]].items():
        if stem is None:
            continue
        plain = [p for p in (directory / part).glob(f"{stem}*.safetensors") if f".{VARIANT}" not in p.name]
        if not plain:
            return VARIANT
    return None


def needed_files(directory: Path) -> list[Path]:
    """The files loading needs, relative to `directory` (configs, safetensors and their indexes)."""
    index = check_directory(directory)
    half = variant_of(directory, index) is not None
    found = [Path(INDEX)]
    for part, (_, (_, stem)) in PIPELINES[index["_class_name"]].items():
        if is_absent(index, part):
            continue
        vocabularies = (".txt", ".model") if part.startswith("tokenizer") else ()  # data, too
        kinds = (".json", ".safetensors", *vocabularies)
        files = [p for p in sorted((directory / part).iterdir()) if p.suffix in kinds]
        plain = [p for p in files if f".{VARIANT}." not in p.name and f".{VARIANT}-" not in p.name]
        found += [p.relative_to(directory) for p in (files if half and stem is not None else plain)]
    return found


def read_config(path: Path) -> dict[str, Any]:
    """A JSON config file of a pipeline.

    Raises:
        ModelError: missing or not a JSON object.
    """
    try:
        data = read_json_file(path)
    except FileNotFoundError:
        raise ModelError(f"{path.name} is missing", expected=str(path)) from None
    except ValueError as error:
        raise ModelError(f"{path.name} is not JSON", found=str(error), fix="download it again") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path.name} is not a config", expected="a JSON object", found=type(data).__name__)
    return data
