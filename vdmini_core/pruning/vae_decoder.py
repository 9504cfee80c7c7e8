"""Compression of SVD's temporal VAE decoder: which layers and channels go, and the surgery (Appendix A).

The paper removes the mid block and layers of `up.3`, then prunes channels with DepGraph. Here the channels
that may go together are known from the stock class, so no graph is traced:

* a *stream* is what the residual connections of an up block share; with its up-sampler it meets the next one;
* the *inner* channels of a resnet lie between its two convolutions.

A stream carries absolute values (colours) through normalisation only as differences between the channels of a
group: with two channels a group a constant picture cannot be told from its negative. So streams keep at
least three channels a group where the teacher has them, and the rest of the budget is taken inside resnets.

Both keep the same share of every normalisation group (32 in all stock layers): a kept channel stays
in its group, whose mean and variance the other kept channels still stand for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vdmini_core.artifacts import read_json, write_json
from vdmini_core.errors import PlanError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.flops import decoder_flops
from vdmini_core.models.pruned_unet import build_on_meta
from vdmini_core.models.pruned_vae import AutoencoderKLTemporalPrunedDecoder

GROUPS = 32  # normalisation groups of every stock layer
LEAST_STREAM = 3 * GROUPS
DecoderRecipe = Literal["paper", "light"]
# Largest share of the decoder's (parameters, FLOPs) that is left. `paper`: at most the 39.17 of 63.58 M that
# the paper keeps, and as many FLOPs fewer as it is faster (3.37 times, Tables A1, A2); the widths that meet
# both keep fewer parameters than the paper's. `light` goes on where the paper stops.
BUDGETS: dict[str, tuple[float, float]] = {
    "paper": (39.17 / 63.58, 1 / 3.37),
    "light": (39.17 / 63.58, 1 / 5.5),
}


@dataclass(frozen=True)
class DecoderPlan:
    """What is left of a decoder. Widths and layers of the up blocks go from the latents outwards.

    Attributes:
        recipe: `paper` or `light`.
        channels: width of each up block.
        inner_channels: width between the two convolutions of each up block's resnets.
        layers: resnets kept in each up block, the first ones.
        mid_block: whether the mid block stays.
        teacher_channels: the teacher's widths; a plan fits any weights of this architecture.
        teacher_params, teacher_flops: of the whole decoder, one clip decoded at once.
        expected_params, expected_flops: what is left exactly.
    """

    recipe: str
    channels: tuple[int, ...]
    inner_channels: tuple[int, ...]
    layers: tuple[int, ...]
    mid_block: bool
    teacher_channels: tuple[int, ...]
    teacher_params: int
    teacher_flops: int
    expected_params: int
    expected_flops: int

    def describe(self) -> str:
        """One sentence for people."""
        before, after = (", ".join(map(str, w)) for w in (self.teacher_channels, self.channels))
        inside = ", ".join(map(str, self.inner_channels))
        return (
            f"VAE decoder: {before} channels to {after}"
            f"{'' if self.inner_channels == self.channels else f' ({inside} inside resnets)'}, "
            f"{', '.join(map(str, self.layers))} layers"
            f"{'' if self.mid_block else ', no mid block'}: {self.expected_params / 1e6:.2f} of "
            f"{self.teacher_params / 1e6:.2f} M parameters, {self.expected_flops / 1e12:.4g} of "
            f"{self.teacher_flops / 1e12:.4g} TFLOP"
        )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> DecoderPlan:
        """Read what `save` wrote.

        Raises:
            PlanError: when the file holds something else.
        """
        data = read_json(path)
        try:
            for key in ("channels", "inner_channels", "layers", "teacher_channels"):
                data[key] = tuple(data[key])
            return cls(**data)
        except (TypeError, KeyError) as error:
            raise PlanError(
                f"{path.name} is not a plan of a VAE decoder",
                found=str(error),
                fix="`vdmini plan --force` writes it anew",
            ) from None


def plan_decoder(vae: Any, settings: SamplingSettings, recipe: str) -> DecoderPlan:
    """The widest decoder of a recipe: no mid block, one layer in the last up block, channels to the budget.

    Of all widths in steps of 32 that never grow outwards beyond the teacher's order, the one that takes the
    smallest share of any up block (least sum of squared shares removed) is kept: of streams alone where that
    meets the budget and leaves three channels a group, else inside resnets too, else of any stream. `light`
    also has one layer fewer in the other up blocks.

    Args:
        vae: a stock `AutoencoderKLTemporalDecoder`, weights not needed (meta device).
        settings: clip size FLOPs are counted at.

    Raises:
        PlanError: an unknown recipe, another class, or no widths within the budget.
    """
    if recipe not in get_args(DecoderRecipe):
        raise PlanError(
            f"unknown recipe {recipe} of a VAE decoder", expected=" or ".join(get_args(DecoderRecipe))
        )
    if type(vae).__name__ != "AutoencoderKLTemporalDecoder":
        raise PlanError(
            "only the stock temporal decoder can be planned",
            expected="AutoencoderKLTemporalDecoder",
            found=type(vae).__name__,
        )
    widths = tuple(reversed(vae.config.block_out_channels))
    whole = vae.config.layers_per_block + 1
    kept = whole if recipe == "paper" else max(1, whole - 1)
    layers = (*(kept,) * (len(widths) - 1), 1)
    teacher_flops, teacher_params = decoder_flops(vae, settings)[""], _size(vae.decoder)
    params_share, flops_share = BUDGETS[recipe]
    latent = (vae.config.latent_channels, *settings.latent_size, settings.frames)
    for channels, inner in _candidates(widths):
        # cheap first: the count on the meta device builds a model
        if estimated_flops(channels, layers, latent, inner) > flops_share * teacher_flops:
            continue
        config = _config(vae, channels, layers, inner)
        student: Any = build_on_meta(AutoencoderKLTemporalPrunedDecoder, config)
        params = _size(student.decoder)
        flops = decoder_flops(student, settings)[""]
        if params <= params_share * teacher_params and flops <= flops_share * teacher_flops:
            return DecoderPlan(
                recipe, channels, inner, layers, False, widths, teacher_params, teacher_flops, params, flops
            )
    raise PlanError(
        f"no widths of this decoder meet the recipe {recipe}",
        expected=f"at most {flops_share:.2f} of {teacher_flops} FLOPs with channels in steps of {GROUPS}",
        found=f"up blocks of {', '.join(map(str, widths))} channels",
        fix="leave this decoder as it is: plan.vae_decoder=none",
    )


Widths = tuple[int, ...]


def _candidates(widths: Widths) -> Iterator[tuple[Widths, Widths]]:
    """Stream and inner widths, the least harmful first."""
    streams = sorted(_narrower(widths), key=lambda chosen: _removed(chosen, widths))
    wide = [chosen for chosen in streams if _carries_values(chosen, widths)]
    yield from ((chosen, chosen) for chosen in wide)
    both = [(chosen, inner) for chosen in wide for inner in _inside(chosen)]
    yield from sorted(both, key=lambda pair: _removed(pair[0], widths) + _removed(pair[1], pair[0]))
    yield from ((chosen, chosen) for chosen in streams)


def _carries_values(chosen: Widths, widths: Widths) -> bool:
    return all(a >= min(b, LEAST_STREAM) for a, b in zip(chosen, widths, strict=True))


def _inside(chosen: Widths) -> Iterator[Widths]:
    """Widths in steps of 32 up to those of the streams."""
    return itertools.product(*(range(GROUPS, width + 1, GROUPS) for width in chosen))


def _narrower(widths: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All widths in steps of 32 up to the teacher's.

    Where the teacher changes its width it has a 1x1 shortcut, so there the student must change too.
    """
    choices = [range(GROUPS, width + 1, GROUPS) for width in widths]
    return [
        chosen
        for chosen in itertools.product(*choices)
        if all(
            chosen[i] != chosen[i + 1] if widths[i] != widths[i + 1] else chosen[i] >= chosen[i + 1]
            for i in range(len(widths) - 1)
        )
    ]


def _removed(chosen: tuple[int, ...], widths: tuple[int, ...]) -> float:
    return sum((1 - a / b) ** 2 for a, b in zip(chosen, widths, strict=True))


def estimated_flops(
    channels: tuple[int, ...],
    layers: tuple[int, ...],
    latent: tuple[int, int, int, int],
    inner: tuple[int, ...] | None = None,
) -> int:
    """Operations of a decoder without mid block: two per multiply-add of its convolutions.

    Args:
        channels, layers: of the up blocks, from the latents outwards.
        latent: latent channels, height, width, frames.
        inner: between the convolutions of their resnets; as `channels` by default.
    """
    inputs, height, width, frames = latent
    cells = height * width * frames
    total = cells * inputs * channels[0] * 9
    before = channels[0]
    levels = zip(channels, layers, inner or channels, strict=True)
    for level, (width_now, count, inside) in enumerate(levels):
        # 3 x 3 in space, then 3 in time; the 1x1 shortcut where the width changes
        first = inside * (before + width_now) * 9 + (before * width_now if before != width_now else 0)
        total += cells * (first + (count - 1) * 18 * inside * width_now + count * 6 * inside * width_now)
        before = width_now
        if level < len(channels) - 1:
            cells *= 4
            total += cells * 9 * width_now**2
    return 2 * (total + cells * (before * 3 * 9 + 27))


def _config(
    vae: Any, channels: Widths, layers: tuple[int, ...], inner: Widths, mid: bool = False
) -> dict[str, Any]:
    own = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    widths = {"decoder_channels": channels, "decoder_inner_channels": inner}
    return {**own, **widths, "decoder_layers": layers, "decoder_mid_block": mid}


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def prune_decoder(vae: Any, plan: DecoderPlan) -> AutoencoderKLTemporalPrunedDecoder:
    """The student of a plan with its own copies of the kept weights; `vae` is unchanged.

    Channels are kept by the squared norm of all weights that make or read them, each tensor relative to its
    own mean, in every normalisation group alike. Where the student narrows between two up blocks and the
    teacher does not, the new 1x1 shortcut hands the kept channels on.

    Raises:
        PlanError: when the plan is for another architecture, or the result is not what it expects.
    """
    widths = tuple(reversed(vae.config.block_out_channels))
    if widths != plan.teacher_channels:
        raise PlanError(
            "the plan is for another decoder",
            expected=f"up blocks of {', '.join(map(str, plan.teacher_channels))} channels",
            found=", ".join(map(str, widths)),
        )
    _check(vae, plan)
    config = _config(vae, plan.channels, plan.layers, plan.inner_channels, plan.mid_block)
    student: Any = AutoencoderKLTemporalPrunedDecoder.from_config(config).eval()
    for tensor in (*student.parameters(), *student.buffers()):
        tensor.data = tensor.data.to(next(vae.parameters()))
    for part in ("encoder", "quant_conv"):
        getattr(student, part).load_state_dict(getattr(vae, part).state_dict())
    with torch.no_grad():
        _Surgery(vae.decoder, student.decoder, plan).run()
    found = _size(student.decoder)
    if found != plan.expected_params:
        raise PlanError(
            "the decoder is not what the plan expects",
            expected=f"{plan.expected_params} parameters",
            found=str(found),
            fix="the file was edited or is of another version: make the plan again",
        )
    return student


def _check(vae: Any, plan: DecoderPlan) -> None:
    """Refuse what an edited plan may say and the classes cannot build."""
    whole, widths = vae.config.layers_per_block + 1, plan.teacher_channels
    wrong = None
    if len(plan.channels) != len(widths) or plan.channels not in _narrower(widths):
        wrong = f"channels {', '.join(map(str, plan.channels))}"
    elif len(plan.inner_channels) != len(widths) or plan.inner_channels not in _inside(plan.channels):
        wrong = f"{', '.join(map(str, plan.inner_channels))} channels inside resnets"
    elif len(plan.layers) != len(widths) or not all(1 <= n <= whole for n in plan.layers):
        wrong = f"layers {', '.join(map(str, plan.layers))}"
    elif plan.mid_block and plan.channels[0] != widths[0]:
        wrong = "a mid block, which keeps all channels, before a narrower up block"
    if wrong:
        raise PlanError(
            "the plan does not fit the decoder",
            expected=f"steps of {GROUPS} channels up to {', '.join(map(str, widths))}; 1 to {whole} layers",
            found=wrong,
            fix="the file was edited or is of another version: make the plan again",
        )


class _Surgery:
    """Copies a decoder's kept weights, level by level; index tensors hold teacher channels, ascending."""

    def __init__(self, teacher: Any, student: Any, plan: DecoderPlan) -> None:
        self.teacher, self.student, self.plan = teacher, student, plan

    def run(self) -> None:
        """Copy everything."""
        old, new = self.teacher, self.student
        widths, kept = self.plan.teacher_channels, self.plan.channels
        stream = _best(self._stream_scores(0), kept[0])
        _copy_convolution(old.conv_in, new.conv_in, stream, None)
        if self.plan.mid_block:
            new.mid_block.load_state_dict(old.mid_block.state_dict())
        for level, (block, narrow) in enumerate(zip(old.up_blocks, new.up_blocks, strict=True)):
            inner = stream
            outer = stream if level == 0 else _best(self._stream_scores(level), kept[level])
            for index, resnet in enumerate(narrow.resnets):
                self._copy_resnet(block.resnets[index], resnet, inner if index == 0 else outer, outer)
            stream = outer
            if block.upsamplers is None:
                continue
            # between two levels of one width in the teacher the stream is one: keep what the next level keeps
            scores = self._stream_scores(level + 1) if widths[level] == widths[level + 1] else None
            scores = self._upsampled_scores(level) if scores is None else scores
            handed = _best(scores, kept[level])
            _copy_convolution(block.upsamplers[0].conv, narrow.upsamplers[0].conv, handed, stream)
            stream = handed
        _copy_norm(old.conv_norm_out, new.conv_norm_out, stream)
        _copy_convolution(old.conv_out, new.conv_out, None, stream)
        new.time_conv_out.load_state_dict(old.time_conv_out.state_dict())

    def _stream_scores(self, level: int) -> Tensor:
        """Importance of the channels that the residual connections of a level share."""
        block = self.teacher.up_blocks[level]
        made: list[Tensor] = []
        read: list[Tensor] = []
        widths = self.plan.teacher_channels
        if level == 0:
            made.append(self.teacher.conv_in.weight)
        elif widths[level - 1] == widths[level]:
            made.append(self.teacher.up_blocks[level - 1].upsamplers[0].conv.weight)
        for index in range(self.plan.layers[level]):
            resnet = block.resnets[index]
            spatial, temporal = resnet.spatial_res_block, resnet.temporal_res_block
            made += [spatial.conv2.weight, temporal.conv2.weight]
            read.append(temporal.conv1.weight)
            if spatial.conv_shortcut is not None:
                made.append(spatial.conv_shortcut.weight)
            else:
                read.append(spatial.conv1.weight)
        read.append(
            self.teacher.conv_out.weight if block.upsamplers is None else block.upsamplers[0].conv.weight
        )
        return _importance(made, read)

    def _upsampled_scores(self, level: int) -> Tensor:
        """Importance of what an up-sampler hands to a level of another width."""
        first = self.teacher.up_blocks[level + 1].resnets[0].spatial_res_block
        made = [self.teacher.up_blocks[level].upsamplers[0].conv.weight]
        return _importance(made, [first.conv1.weight, first.conv_shortcut.weight])

    def _copy_resnet(self, old: Any, new: Any, inner: Tensor, outer: Tensor) -> None:
        for name in ("spatial_res_block", "temporal_res_block"):
            source, target = getattr(old, name), getattr(new, name)
            reads = inner if name == "spatial_res_block" else outer
            scores = _importance([source.conv1.weight], [source.conv2.weight])
            hidden = _best(scores, target.norm2.num_channels)
            _copy_norm(source.norm1, target.norm1, reads)
            _copy_convolution(source.conv1, target.conv1, hidden, reads)
            _copy_norm(source.norm2, target.norm2, hidden)
            _copy_convolution(source.conv2, target.conv2, outer, hidden)
            if source.conv_shortcut is not None:
                _copy_convolution(source.conv_shortcut, target.conv_shortcut, outer, reads)
            elif target.conv_shortcut is not None:
                same = (outer[:, None] == reads[None, :]).to(target.conv_shortcut.weight.dtype)
                target.conv_shortcut.weight.copy_(same.reshape(target.conv_shortcut.weight.shape))
                target.conv_shortcut.bias.zero_()
        new.time_mixer.load_state_dict(old.time_mixer.state_dict())


def _importance(made: list[Tensor], read: list[Tensor]) -> Tensor:
    """Squared norm per channel: over rows of what makes it and columns of what reads it, means 1."""
    parts = [w.float().square().flatten(1).sum(1) for w in made]
    parts += [w.float().square().transpose(0, 1).flatten(1).sum(1) for w in read]
    return torch.stack([part / part.mean().clamp(min=1e-30) for part in parts]).sum(0)


def _best(scores: Tensor, count: int) -> Tensor:
    """The `count` best channels, equally many of each normalisation group, ascending."""
    grouped = scores.reshape(GROUPS, -1)
    chosen = grouped.topk(count // GROUPS, dim=1).indices.sort(dim=1).values
    first = torch.arange(GROUPS, device=scores.device)[:, None] * grouped.shape[1]
    return (first + chosen).flatten()


def _copy_convolution(old: Any, new: Any, outputs: Tensor | None, inputs: Tensor | None) -> None:
    weight, bias = old.weight, old.bias
    if outputs is not None:
        weight, bias = weight[outputs], bias[outputs]
    new.weight.copy_(weight if inputs is None else weight[:, inputs])
    new.bias.copy_(bias)


def _copy_norm(old: Any, new: Any, channels: Tensor) -> None:
    new.weight.copy_(old.weight[channels])
    new.bias.copy_(old.bias[channels])
