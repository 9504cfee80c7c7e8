"""I3D (Carreira & Zisserman 2017, arXiv 1705.07750), the network of the field's FVD, for inference.

Batch normalisation is folded into the convolutions when weights are loaded, so there is no training mode
to forget about. Parameter names of the state dict are those the published PyTorch weights carry.

Shape letters: B clips, T frames, H W pixels, P time positions after pooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdmini_core.errors import DataError

SIDE = 224
LEAST_FRAMES = 9  # fewer leave less than the two time positions that the last pooling takes
CLASSES, WIDTH = 400, 1024
CHANNELS_A_SUM = 16
# Output channels of the four branches: 1x1 | 1x1 then 3x3 | 1x1 then 3x3 | pool then 1x1.
MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOLED_BEFORE = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis so that the output has ceil(size / stride) values; the odd one after."""
    total = max(kernel - stride, 0) if size % stride == 0 else max(kernel - size % stride, 0)
    return total // 2, total - total // 2


class FoldedConv(nn.Module):
    """Convolution with its batch normalisation folded in, then ReLU; "same" padding.

    With `scale_apart` the weights stay as they are and the scale is applied to the output: rounding scaled
    weights in the first layers alone would cost half of the accuracy asked of the pooled features.
    """

    def __init__(
        self, channels: int, out: int, kernel: int = 1, stride: int = 1, scale_apart: bool = False
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(out if scale_apart else 0), requires_grad=False)
        self.weight = nn.Parameter(torch.empty(out, channels, kernel, kernel, kernel), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out), requires_grad=False)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T, H, W) -> (B, out, ceil(T / stride), ...)."""
        pads = [same_padding(size, self.kernel, self.stride) for size in x.shape[2:]]
        if all(before == after for before, after in pads):  # no copy of the input
            padding = [before for before, _ in pads]
        else:
            x, padding = F.pad(x, [p for pair in reversed(pads) for p in pair]), [0, 0, 0]
        if self.scale.numel():
            made = convolve(x, self.weight, None, self.stride, padding)
            bias, scale = self.bias.view(-1, 1, 1, 1), self.scale.view(-1, 1, 1, 1)
            return torch.addcmul(bias, made, scale, out=made).relu_()
        return convolve(x, self.weight, self.bias, self.stride, padding).relu_()

    def fold(self, weight: Tensor, scale: Tensor, shift: Tensor) -> None:
        """Take over weights and the normalisation's scale and shift, all float64."""
        if self.scale.numel():
            self.scale.data.copy_(scale)
        else:
            weight = weight * scale.view(-1, 1, 1, 1, 1)
        self.weight.data.copy_(weight)
        self.bias.data.copy_(shift)


def layout(device: torch.device) -> torch.memory_format:
    """Channels last on a CPU: max pooling over vectors of channels is ten times as fast there."""
    return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: list[int]) -> Tensor:
    """`F.conv3d`, on a CPU always by oneDNN.

    Left to itself, PyTorch takes a convolution several times slower for 1x1 kernels on one thread, and for
    the small grids of a single clip. oneDNN's own weakness is one float32 sum over all places and channels
    (thousands of products): adding up a few channels at a time halves the error for a tenth of the time.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return F.conv3d(x, weight, bias, stride, padding)
    apart = CHANNELS_A_SUM if weight.shape[2] == 3 else x.shape[1]
    total: Tensor | None = None
    for part, kernel in zip(x.split(apart, dim=1), weight.split(apart, dim=1), strict=True):
        made = torch.mkldnn_convolution(
            part, kernel, bias if total is None else None, padding, [stride] * 3, [1] * 3, 1
        )
        total = made if total is None else total.add_(made)
    assert total is not None
    return total


def max_pool(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Max pooling with zeros around it; all values are at least 0, so ignoring the padding is the same."""
    pads = [same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    # The surplus at the end is what `ceil_mode` adds by itself.
    return F.max_pool3d(x, list(kernel), list(stride), [before for before, _ in pads], ceil_mode=True)


class Mixed(nn.Module):
    """Inception block: four branches side by side."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        single, squeeze1, wide1, squeeze2, wide2, pooled = widths
        self.b0 = FoldedConv(channels, single)
        self.b1a, self.b1b = FoldedConv(channels, squeeze1), FoldedConv(squeeze1, wide1, 3)
        self.b2a, self.b2b = FoldedConv(channels, squeeze2), FoldedConv(squeeze2, wide2, 3)
        self.b3b = FoldedConv(channels, pooled)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T, H, W) -> (B, sum of the four branches, T, H, W)."""
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class I3D(nn.Module):
    """Clips (B, 3, T, 224, 224) in [-1, 1], T >= 9 -> `pooled` (B, 1024, P) or `logits` (B, 400)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = FoldedConv(3, 64, 7, 2, scale_apart=True)
        self.Conv3d_2b_1x1 = FoldedConv(64, 64, scale_apart=True)
        self.Conv3d_2c_3x3 = FoldedConv(64, 192, 3, scale_apart=True)
        channels = 192
        for name, widths in MIXED.items():
            self.add_module(name, Mixed(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits_weight = nn.Parameter(torch.empty(CLASSES, WIDTH), requires_grad=False)
        self.logits_bias = nn.Parameter(torch.empty(CLASSES), requires_grad=False)

    def positions(self, clips: Tensor) -> Tensor:
        """Features after the last average pooling, (B, 1024, P)."""
        x = self.Conv3d_1a_7x7(clips.contiguous(memory_format=layout(clips.device)))
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name in POOLED_BEFORE:
                x = max_pool(x, *POOLED_BEFORE[name])
            x = self.get_submodule(name)(x)
        frames = x.mean(dim=(3, 4))
        return (frames[..., :-1] + frames[..., 1:]) / 2

    def pooled(self, clips: Tensor) -> Tensor:
        """Mean over time positions, (B, 1024)."""
        return self.positions(clips).mean(dim=2)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits averaged over time, (B, 400); the last layer is linear, so it may come after the mean."""
        return F.linear(self.pooled(clips), self.logits_weight, self.logits_bias)

    def on(self, device: torch.device | str) -> I3D:
        """Move to a device, weights laid out in memory as suits it."""
        self.to(device)
        for layer in self.modules():
            if isinstance(layer, FoldedConv):
                layer.weight.data = layer.weight.data.contiguous(memory_format=layout(layer.weight.device))
        return self

    def load(self, state: Mapping[str, Tensor], bn_eps: float) -> I3D:
        """Take over a state dict with separate batch normalisation, folding it in float64.

        Args:
            state: tensors under the published names, of any float type.
            bn_eps: 1e-5 as FVD's line of code has it, 1e-3 as the network was published.

        Raises:
            DataError: when names or shapes are not those of I3D.
        """
        expected = expected_shapes()
        checked = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        _check_state(checked, expected)

        def exact(name: str) -> Tensor:
            return checked[name].to(torch.float32).double()

        for name, layer in self.named_modules():
            if isinstance(layer, FoldedConv):
                scale = exact(f"{name}.bn.weight") / (exact(f"{name}.bn.running_var") + bn_eps).sqrt()
                shift = exact(f"{name}.bn.bias") - exact(f"{name}.bn.running_mean") * scale
                layer.fold(exact(f"{name}.conv3d.weight"), scale, shift)
        self.logits_weight.data.copy_(exact("logits.conv3d.weight").flatten(1))
        self.logits_bias.data.copy_(exact("logits.conv3d.bias"))
        return self.eval()


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict, without batch counters: 12 697 264 parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        network = I3D()
    for name, layer in network.named_modules():
        if isinstance(layer, FoldedConv):
            shapes[f"{name}.conv3d.weight"] = tuple(layer.weight.shape)
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.bn.{part}"] = tuple(layer.bias.shape)
    shapes["logits.conv3d.weight"] = (CLASSES, WIDTH, 1, 1, 1)
    shapes["logits.conv3d.bias"] = (CLASSES,)
    return shapes


def _check_state(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [key for key in expected.keys() & state.keys() if tuple(state[key].shape) != expected[key]]
    if missing or unknown or wrong:
        parts = {"missing": missing, "unknown": unknown, "of another shape": sorted(wrong)}
        raise DataError(
            "these are not the weights of I3D",
            expected="a state dict as in `rgb_imagenet.pt` (400 classes)",
            found="; ".join(f"{len(v)} {k}: {', '.join(v[:3])}" for k, v in parts.items() if v),
        )
