"""The trained networks of `vdmini_core.metrics.embedded`, as they ship with the package."""

from __future__ import annotations

import functools
from pathlib import Path

from safetensors.torch import load_file

from vdmini_core.errors import DataError
from vdmini_core.metrics.embedded import ClipNetwork, FrameNetwork

WEIGHTS = Path(__file__).parent / "weights"


@functools.cache
def frame_network() -> FrameNetwork:
    """The frame network on the CPU, loaded once; not to be changed."""
    return load_networks()[1]


def load_networks() -> tuple[ClipNetwork, FrameNetwork]:
    """Fresh copies of both networks, frozen.

    Raises:
        DataError: when the weights do not fit this version.
    """
    tensors = load_file(WEIGHTS / "embedded.safetensors")
    networks = ClipNetwork(1), FrameNetwork(1)
    for prefix, network in zip(("clip.", "frame."), networks, strict=True):
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        # Heads and batch counters are not shipped; everything else must be there.
        missing, unexpected = network.load_state_dict(own, strict=False)
        lacking = [k for k in missing if not k.startswith("head.") and "num_batches" not in k]
        if lacking or unexpected:
            raise DataError(
                "the embedded metric weights do not fit this version",
                found=str(lacking[:4]),
                fix="install the package again, whole",
            )
        network.eval().requires_grad_(False)
    return networks
