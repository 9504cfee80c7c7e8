"""One network of a pipeline directory from its own folder: safetensors that fill it, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdmini_core.errors import ModelError
from vdmini_core.models.pipeline_dir import VARIANT

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_part(folder: Path, cls: Any, stem: str, dtype: torch.dtype, *, exact: bool) -> nn.Module:
    """A network on the CPU, every parameter of it from the folder's safetensors.

    Libraries leave what a file lacks at random, or without memory, and say so in a log.

    Args:
        folder: of the part, with `config.json`; it was looked through (`pipeline_dir`).
        cls: of diffusers, transformers or ours.
        stem: of its weight files; half-precision ones are taken where there are no others.
        dtype: of its weights.
        exact: refuse tensors that the network does not have, too.

    Raises:
        ModelError: the config makes no network, or the weights are not those of it.
    """
    from vdmini_core.models.registry import quiet_libraries

    whole = any(f".{VARIANT}" not in path.name for path in folder.glob(f"{stem}*.safetensors"))
    of_transformers = cls.__module__.startswith("transformers.")
    try:
        with quiet_libraries():
            model, found = cls.from_pretrained(
                folder,
                **{"dtype" if of_transformers else "torch_dtype": dtype},
                use_safetensors=True,
                local_files_only=True,
                variant=None if whole else VARIANT,
                output_loading_info=True,
            )
    except ModelError:
        raise
    except Exception as error:  # a config from outside: the class raises whatever comes of it
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"{folder} cannot be loaded", found=first, fix="check its files") from error
    kinds = ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if exact else []))
    if wrong := {kind: sorted(map(str, found[kind])) for kind in kinds if found[kind]}:
        raise ModelError(
            f"the weights in {folder} are not those of its config.json",
            found="; ".join(
                f"{len(names)} {kind.split('_')[0]}: {names[0]}" for kind, names in wrong.items()
            ),
            fix="take both from the same download",
        )
    network: nn.Module = model
    return network
