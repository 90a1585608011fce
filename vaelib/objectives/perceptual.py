"""How different two images look, by edges and structure at several scales: no network and no weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vaelib._checks import check_any_image, check_batch, check_like, check_shape

__all__ = ["perceptual_distance"]

_WINDOW = 11  # pixels a side; of a Gaussian with a deviation of 1.5
_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. (2003), section 3.2
_SMALLEST = 1e-4  # a structure's similarity may be negative, and its power has an infinite slope at 0


def perceptual_distance(x: Tensor, images: Tensor) -> Tensor:
    """How different images look: differences of gradients and 1 - MS-SSIM, over up to five scales.

    Differences of neighbouring pixels, along rows and columns, are compared by their absolute error and averaged over
    values and scales; to this is added one minus the multi-scale structural similarity. Scales halve the image while
    its smaller side has at least 11 pixels; of fewer than five scales the exponents of MS-SSIM are scaled to sum to 1.
    The sum is multiplied by C H W, so that it stands beside nats, which are summed over the image too.

    A ``perceptual`` term for :class:`Adversarial`, or an ``extra`` for :class:`Elbo`, that needs no download.

    Args:
        x: Images, ``(B, C, H, W)`` in [0, 1], of at least 11 x 11 pixels.
        images: Those to compare, the same shape; values outside [0, 1] are taken as they are.

    Returns:
        Shape ``(B,)``, 0 for equal images; differentiable.

    Raises:
        ValueError: If shapes differ, images are too small, or there is none.
        TypeError: If they are not floating point.

    Examples:
        >>> x = torch.rand(2, 3, 32, 32)
        >>> perceptual_distance(x, x)
        tensor([0., 0.])
        >>> bool((perceptual_distance(x, 0.5 * x) > 0).all())
        True

    References:
        Wang et al. (2003), Multi-scale structural similarity for image quality assessment; Zhao et al. (2017), Loss
        functions for image restoration with neural networks. https://arxiv.org/abs/1511.08861
    """
    check_batch("x", x)
    check_any_image("x", x)
    check_like("x", x, images=images)
    check_shape("x", x.shape, ("B", "C", "H", "W"))
    check_shape("images", images.shape, x.shape)
    if min(x.shape[2:]) < _WINDOW:
        raise ValueError(f"`x` must have at least {_WINDOW} x {_WINDOW} pixels, got {x.shape[2]} x {x.shape[3]}.")
    scales = [(x, images)]
    while len(scales) < len(_EXPONENTS) and min(scales[-1][0].shape[2:]) >= 2 * _WINDOW:
        first, second = scales[-1]
        scales.append((F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)))
    with torch.autocast(x.device.type, enabled=False):  # variances are small differences of large numbers
        edges = torch.stack([_difference_of_gradients(*pair) for pair in scales]).mean(0)
        return x[0].numel() * (edges + 1 - _ms_ssim(scales))


def _difference_of_gradients(x: Tensor, images: Tensor) -> Tensor:
    error = images - x
    rows, columns = (error.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3))
    return (rows + columns) / 2


def _ms_ssim(scales: list[tuple[Tensor, Tensor]]) -> Tensor:
    exponents = _EXPONENTS[: len(scales)]
    total = torch.ones_like(scales[0][0][:, 0, 0, 0])
    for number, (pair, exponent) in enumerate(zip(scales, exponents, strict=True)):
        luminance, structure = _similarities(*pair)
        similarity = structure * luminance if number == len(scales) - 1 else structure
        total = total * similarity.mean((1, 2, 3)).clamp(min=_SMALLEST) ** (exponent / sum(exponents))
    return total


def _similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast with structure, at each place of the window: SSIM is their product."""
    mean_x, mean_y, square_x, square_y, product = _blurred(torch.stack([x, y, x * x, y * y, x * y]))
    of_means, of_values = 0.01**2, 0.03**2
    covariance = product - mean_x * mean_y
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    luminance = (2 * mean_x * mean_y + of_means) / (mean_x.square() + mean_y.square() + of_means)
    return luminance, (2 * covariance + of_values) / (variances + of_values)


def _blurred(maps: Tensor) -> Tensor:
    """``(N, B, C, H, W)`` averaged by the window, where it lies inside."""
    places = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    window = (-0.5 * (places / 1.5).square()).exp()
    window = window / window.sum()
    channels = maps.transpose(0, 1).flatten(1, 2)  # each by itself: ten times as fast on a CPU as images of one channel
    number = channels.shape[1]
    rows = F.conv2d(channels, window[None, None, :, None].expand(number, 1, -1, 1), groups=number)
    blurred = F.conv2d(rows, window[None, None, None, :].expand(number, 1, 1, -1), groups=number)
    return blurred.unflatten(1, (len(maps), -1)).transpose(0, 1)
