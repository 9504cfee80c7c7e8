"""Gaussian filters shared by the metrics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """Normalised 1-d window (2 radius + 1,), float32."""
    axis = torch.arange(-radius, radius + 1, dtype=torch.float64)
    window = torch.exp(-(axis**2) / (2 * sigma**2))
    return (window / window.sum()).float()


def gaussian_filter(images_NCHW: Tensor, sigma: float, radius: int | None = None, pad: bool = True) -> Tensor:
    """Separable Gaussian filter; edges are replicated, or cut off where `pad` is false."""
    reach = max(1, round(3 * sigma)) if radius is None else radius
    window = gaussian_kernel(sigma, reach).to(images_NCHW)
    channels = images_NCHW.shape[1]
    if pad:
        images_NCHW = F.pad(images_NCHW, (reach,) * 4, mode="replicate")
    if images_NCHW.dtype == torch.float64:  # for it CPUs have fast matrix products and slow convolutions
        height, width = images_NCHW.shape[2:]
        return _band(window, height) @ images_NCHW @ _band(window, width).T
    rows = window.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    columns = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    return F.conv2d(F.conv2d(images_NCHW, rows, groups=channels), columns, groups=channels)


def _band(window: Tensor, length: int) -> Tensor:
    """The filter along one axis as a matrix (length - reach, length): each row is the window, one further."""
    count = length - len(window) + 1
    rows = torch.arange(count, device=window.device)[:, None]
    matrix = window.new_zeros(count, length)
    return matrix.scatter(1, rows + torch.arange(len(window), device=window.device), window.expand(count, -1))
