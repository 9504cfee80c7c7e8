"""One network of a pipeline directory from its own folder: safetensors that fill it, or an error."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vdmini_core.errors import ModelError, VDMiniError
from vdmini_core.models.pipeline_dir import VARIANT

if TYPE_CHECKING:
    from torch import nn

TABLES = 2**27  # numbers of buffers that no file holds: positions, frequencies
_MACHINE = ("CUDA error", "CUDA out of memory", "can't allocate memory", "NCCL", "cuDNN", "CUBLAS")


def of_the_machine(error: BaseException) -> bool:
    """Memory, disk, device or network, which says nothing about a model's files."""
    if isinstance(error, OSError):
        return error.errno is not None and not isinstance(error, FileNotFoundError)
    machine = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
    return isinstance(error, machine) or any(text in str(error) for text in _MACHINE)


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

    files = sorted(folder.glob(f"{stem}*.safetensors"))
    whole = any(f".{VARIANT}" not in path.name for path in files)
    files = [path for path in files if (f".{VARIANT}" in path.name) is not whole]
    with quiet_libraries(), readable(folder):
        demand_filled(folder, cls, files)
        model, found = cls.from_pretrained(
            folder,
            **{"dtype" if _of_transformers(cls) else "torch_dtype": dtype},
            use_safetensors=True,
            local_files_only=True,
            variant=None if whole else VARIANT,
            output_loading_info=True,
        )
    kinds = ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if exact else []))
    if wrong := {kind: sorted(map(str, found[kind])) for kind in kinds if found[kind]}:
        raise ModelError(
            f"the weights in {folder} are not those of its config.json",
            expected="a tensor for every parameter" + (", and no other" if exact else ""),
            found="; ".join(
                f"{len(names)} {kind.split('_')[0]}: {names[0]}" for kind, names in wrong.items()
            ),
            fix="take both from the same download",
        )
    network: nn.Module = model
    return network


@contextmanager
def readable(place: Path) -> Iterator[None]:
    """Files are anyone's, and classes raise whatever comes of them: said as one error.

    The hub is not asked meanwhile: diffusers and transformers do where a config makes them, told to take
    local files alone or not.
    """
    try:
        with _hub.left_alone():
            yield
    except Exception as error:
        if isinstance(error, VDMiniError) or of_the_machine(error):
            raise
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(
            f"{place} cannot be loaded",
            expected="configs and weights as the model's classes write them",
            found=first[:300],
            fix="download it again; if it stays so, its files do not belong together",
        ) from error


class _Hub:
    """The library's own switch, which is one for the process: threads may load at once."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.Lock(), 0, False

    @contextmanager
    def left_alone(self) -> Iterator[None]:
        from huggingface_hub import constants

        with self.lock:
            if not self.users:
                self.before = constants.HF_HUB_OFFLINE
            self.users += 1
            constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    constants.HF_HUB_OFFLINE = self.before


_hub = _Hub()


def demand_filled(folder: Path, cls: Any, files: list[Path]) -> None:
    """Refuse a config of a larger network than the weights, before any of it has memory.

    Raises:
        ModelError: with both sizes.
    """
    from safetensors import safe_open

    with torch.device("meta"):
        if _of_transformers(cls):
            model = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
        else:
            model = cls.from_config(cls.load_config(folder, local_files_only=True))
    needed = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    held = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            held += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    if needed > held + TABLES:
        raise ModelError(
            f"the weights in {folder} are not those of its config.json",
            expected=f"{needed:,} numbers",
            found=f"{held:,}",
            fix="take both from the same download",
        )


def _of_transformers(cls: Any) -> bool:
    return str(cls.__module__).startswith("transformers.")
