"""Recipe `larger`: the paper's cut of a U-Net, and the outermost up block keeps one pair of its three."""

from __future__ import annotations

from torch import nn

from vdmini_core.errors import PlanError
from vdmini_core.models import topology
from vdmini_core.models.base import Family
from vdmini_core.models.removal import canonical_units
from vdmini_core.models.unet_family import UNetFamily


def larger_cut(family: Family, denoiser: nn.Module) -> tuple[str, ...]:
    """The paper's units and the third pair of the outermost up block, canonical.

    Of T2V-Turbo-v2 the paper's cut leaves 1 / 1.41 of the operations, this one 1 / 1.55. The paper measured
    2554 and 1662 ms there, 1.54x: this is the only unit that takes its cut as far alone. The outermost level
    has most cells and fewest weights, so that a pair of it costs the most time for what it holds.

    Raises:
        PlanError: for a transformer, and where the paper's cut or that pair does not exist.
    """
    if not isinstance(family, UNetFamily):
        raise PlanError(
            "recipe: larger is a cut of U-Nets",
            expected="a U-Net of Stable Video Diffusion's or VideoCrafter's family",
            found=f"family `{family.name}`",
            fix="use recipe: auto with a budget, or manual",
        )
    third = f"U.{topology.levels(denoiser) - 1}.pair.2"
    return canonical_units(denoiser, [*family.paper_cut(denoiser), third])
