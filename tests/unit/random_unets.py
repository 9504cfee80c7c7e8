"""Random tiny architectures, and what is known of their units by counting, without the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import svd_toys as toys
from hypothesis import strategies as st

TEMPORAL_PARTS = ("temporal_res_block", "temporal_transformer_blocks", "time_pos_embed", "time_mixer")


@dataclass(frozen=True)
class Architecture:
    """Per level: channels, pairs of the down block, attention heads, and whether there is attention."""

    widths: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    attention: tuple[bool, ...]

    def build(self) -> Any:
        """A U-Net with random weights."""
        kinds = ["CrossAttn" if has else "" for has in self.attention]
        return toys.tiny_unet(
            self.widths,
            layers_per_block=self.layers,
            num_attention_heads=self.heads,
            down_block_types=tuple(f"{kind}DownBlockSpatioTemporal" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlockSpatioTemporal" for kind in reversed(kinds)),
        )

    @property
    def inner(self) -> tuple[str, str, str]:
        return f"D.{len(self.widths) - 1}", "M", "U.0"

    @property
    def blocks(self) -> dict[str, int]:
        """Block without M -> number of its pairs."""
        down = {f"D.{level}": layers for level, layers in enumerate(self.layers)}
        return down | {f"U.{level}": layers + 1 for level, layers in enumerate(reversed(self.layers))}

    @property
    def pairs(self) -> list[str]:
        return [f"{block}.pair.{index}" for block, count in self.blocks.items() for index in range(count)]

    @property
    def names(self) -> list[str]:
        """Every name that a person may write."""
        owners = [*self.pairs, "M"]
        return [*owners, *(f"{name}.temporal" for name in owners), *self.blocks]

    def changes(self, pair: str) -> bool:
        """Whether a pair's channels out differ from those that come in."""
        block, index = pair.split(".pair.")
        widths = self.widths if block.startswith("D") else self.widths[::-1]
        level = int(block[2:])
        return index == "0" and level > 0 and widths[level] != widths[level - 1]

    def impossible(self, names: tuple[str, ...]) -> bool:
        """Whether no surgery can remove these together."""
        whole = set(self.inner) <= set(names)
        if whole and self.widths[-1] != self.widths[-2]:
            return True
        for name in names:
            block = name.split(".pair.")[0]
            if name in ("M", "M.temporal") or name.endswith(".temporal") or (whole and block in self.inner):
                continue
            if name in self.inner or name not in self.names:
                return True
            if any(self.changes(pair) for pair in self.pairs if name in (pair, block) and block in pair):
                return True
        return False

    @property
    def paper_fits(self) -> bool:
        """Whether the paper's recipe does: three levels, two pairs above the last two, an even end."""
        above = set(self.layers[:-2])
        return above == {2} and self.widths[-1] == self.widths[-2]

    def all_removable(self, temporal: bool) -> tuple[str, ...]:
        """All that can go, at once."""
        found = ["M", *(pair for pair in self.pairs if not self.changes(pair))]
        found += [f"{pair}.temporal" for pair in self.pairs] if temporal else []
        return (*found, *(self.inner if self.widths[-1] == self.widths[-2] else ()))

    def gone(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Prefixes of the teacher's weights that go with these names, but for temporal parts."""
        prefixes = []
        for name in names:
            if name == "M":
                prefixes.append("mid_block.")
            elif not name.endswith(".temporal"):
                prefixes += [
                    f"{self.path(pair.split('.pair.')[0])}.{kind}.{pair.split('.pair.')[1]}."
                    for pair in self.pairs
                    if pair == name or pair.split(".pair.")[0] == name
                    for kind in ("resnets", "attentions")
                ]
        if set(self.inner) <= set(names):
            depth = len(self.widths) - 1
            prefixes += [f"down_blocks.{depth}.", "up_blocks.0.", f"down_blocks.{depth - 1}.downsamplers."]
        return tuple(prefixes)

    def temporal(self, names: tuple[str, ...], weights: list[str]) -> list[str]:
        """Those of the teacher's weights that the temporal sub-layers among `names` consist of."""
        found = []
        for name in names:
            if not name.endswith(".temporal"):
                continue
            block, _, index = name.removesuffix(".temporal").partition(".pair.")
            homes = ("resnets", "attentions") if index else ("",)
            prefixes = tuple(
                f"{self.path(block)}.{home}.{index}." if index else "mid_block." for home in homes
            )
            found += [w for w in weights if w.startswith(prefixes) and any(p in w for p in TEMPORAL_PARTS)]
        return found

    def path(self, block: str) -> str:
        """Dotted path of a block."""
        return "mid_block" if block == "M" else f"{'down' if block[0] == 'D' else 'up'}_blocks.{block[2:]}"

    def parameters_left(self, state: dict[str, Any], names: tuple[str, ...]) -> int:
        """Parameters of the teacher without these units, counted by the names of its weights."""
        temporal = set(self.temporal(names, list(state)))
        gone = self.gone(names)
        return sum(
            t.numel() for w, t in state.items() if w not in temporal and not (gone and w.startswith(gone))
        )


@st.composite
def architectures(draw: Any) -> Architecture:
    """Two to four levels, the deeper the fewer pairs: what counts here is seconds."""
    widths = draw(st.lists(st.sampled_from([32, 32, 64, 96]), min_size=2, max_size=4))
    heads = [draw(st.sampled_from([1, 2, width // 32])) for width in widths]
    layers = [draw(st.integers(1, 2)) if len(widths) < 4 else 1 for _ in widths]
    attention = [draw(st.sampled_from([True, True, False])) for _ in widths]
    return Architecture(tuple(widths), tuple(layers), tuple(heads), tuple(attention))


def removals(architecture: Architecture) -> st.SearchStrategy[tuple[str, ...]]:
    """Names as people may write them: pairs, blocks, temporal sub-layers, at times the innermost level."""
    names = architecture.names
    possible = [name for name in names if not architecture.impossible((name,))]
    wrong = [(name,) for name in names if name not in possible]
    some = st.lists(st.sampled_from(possible), unique=True, min_size=1, max_size=5)
    inner = st.sampled_from([(), (), architecture.inner])
    slip = st.sampled_from([*wrong, *[()] * 2 * max(1, len(wrong))])
    return st.builds(lambda names, level, slip: (*names, *level, *slip), some, inner, slip)
