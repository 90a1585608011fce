"""How well a model gives its images back: pixel by pixel, and as structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._images import ImageSet
from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.fidelity import Extractor, features_of, fid
from vaelib.evaluation.inputs import batches_for, check_model, check_model_finite, metrics_module
from vaelib.vae import VAE, bound

__all__ = ["ReconstructionQuality", "reconstructed", "reconstruction_quality", "rfid"]

_SSIM_SIZE = 6
"""Pixels that the border of an 11-pixel window can mirror."""
_MS_SSIM_SIZE = 176
"""Pixels that leave one window after four halvings."""


class ReconstructionQuality(NamedTuple):
    """Reconstructions beside their images; each number is the mean of its values per image."""

    psnr: Estimate
    """Peak signal-to-noise ratio in dB, -10 log10 of the mean squared error; infinite if one came back as it was."""
    ssim: Estimate
    """Structural similarity with a Gaussian window of 11 pixels, at most 1."""
    ms_ssim: Estimate | None
    """The same over five scales; None for images below 176 pixels, which the scales don't fit in."""
    num_images: int


def reconstruction_quality(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> ReconstructionQuality:
    """Compare images with ``model.reconstruct`` of them: z = mu and the likelihood's mean, cut to [0, 1].

    Args:
        model: A VAE or an autoencoder.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        batch_size: Images per batch, unless ``data`` comes in batches.
        generator: Random generator for the binarisation or flips of ``data``, on any device.

    Returns:
        A :class:`ReconstructionQuality`.

    Raises:
        ValueError: If there is no image, the images do not fit the model or have a side below 6 pixels, or a
            reconstruction is not finite.
        TypeError: If ``model`` is neither.
        MissingExtraError: If torchmetrics is not installed.

    Examples:
        >>> import vaelib as vl
        >>> quality = reconstruction_quality(vl.conv_vae((1, 8, 8), 2), torch.rand(10, 1, 8, 8))
        >>> quality.ssim.value < 1, quality.ms_ssim, quality.num_images
        (True, None, 10)

    References:
        Wang et al. (2004), Image quality assessment, https://doi.org/10.1109/TIP.2003.819861; over scales: Wang et
        al. (2003), https://doi.org/10.1109/ACSSC.2003.1292216
    """
    check_model("model", model)
    smallest = min(model.image_shape[1:])
    if smallest < _SSIM_SIZE:
        raise ValueError(f"SSIM needs images of at least {_SSIM_SIZE} pixels a side, got {model.image_shape}.")
    metrics = metrics_module("torchmetrics.functional", "Comparing images").image
    measures: list[Callable[..., Any]] = [
        partial(metrics.peak_signal_noise_ratio, dim=(1, 2, 3)),
        metrics.structural_similarity_index_measure,
    ]
    if smallest >= _MS_SSIM_SIZE:
        measures.append(metrics.multiscale_structural_similarity_index_measure)
    columns = []
    for images, condition in batches_for(model, data, batch_size, generator):
        # SSIM's variances are small differences.
        found, wanted = reconstructed(bound(model, condition), images).double(), images.double()
        columns.append([measure(found, wanted, data_range=(0.0, 1.0), reduction="none") for measure in measures])
    psnr, ssim, *ms_ssim = (torch.cat(column).cpu() for column in zip(*columns, strict=True))
    return ReconstructionQuality(
        psnr=Estimate.of(psnr),
        ssim=Estimate.of(ssim),
        ms_ssim=Estimate.of(ms_ssim[0]) if ms_ssim else None,
        num_images=len(psnr),
    )


def reconstructed(model: Any, images: Tensor) -> Tensor:
    """``model.reconstruct`` of images; raw outputs are checked too, since a sigmoid makes infinite ones 0 or 1."""
    raw: list[Tensor] = []
    handle = model.decoder.register_forward_hook(lambda module, inputs, output: raw.append(output))
    try:
        found = model.reconstruct(images)
    finally:
        handle.remove()
    check_model_finite("model", "the reconstruction", found, *raw)
    return found


def rfid(
    extractor: Extractor,
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The Frechet distance between images and their reconstructions in the features of a network: rFID.

    Published values are of Inception's features and 50,000 images of ImageNet: features of another network, or fewer
    images, give other numbers, which can only be compared with each other.

    Args:
        extractor: Maps images ``(B, C, H, W)`` in [0, 1] to features ``(B, F)``, as for :func:`fidelity`.
        model: A VAE or an autoencoder.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches; N >= 20.
        batch_size: Images per batch, unless ``data`` comes in batches.
        generator: Random generator for the binarisation or flips of ``data``, on any device.

    Returns:
        The distance of :func:`fid`, 0 where features come back as they were.

    Raises:
        ValueError: If there are fewer than 20 images, they do not fit the model, a reconstruction is not finite, or the
            features are not ``(B, F)`` or not finite.
        TypeError: If ``model`` is neither, or ``extractor`` cannot be called.

    Examples:
        >>> import vaelib as vl
        >>> found = rfid(lambda x: x.mean((2, 3)), vl.conv_vae((3, 8, 8), 2), torch.rand(30, 3, 8, 8))
        >>> found.value > 0
        True

    References:
        Heusel et al. (2017), https://arxiv.org/abs/1706.08500; of reconstructions: Esser et al. (2021), Taming
        transformers for high-resolution image synthesis, section 4.4, https://arxiv.org/abs/2012.09841
    """
    check_model("model", model)
    pairs = []
    for images, condition in batches_for(model, data, batch_size, generator):
        found = reconstructed(bound(model, condition), images)
        pairs.append([features_of(extractor, part, batch_size=batch_size) for part in (images, found)])
    real, generated = (torch.cat(features) for features in zip(*pairs, strict=True))
    return fid(real, generated)
