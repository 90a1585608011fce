"""The weight of an adversarial term by the gradients that reach the decoder's last layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["adaptive_weight"]


def adaptive_weight(decoder: nn.Module, recon_params: Tensor, images: Tensor, fixed: Tensor, slope: Tensor) -> Tensor:
    """Half the ratio of two gradients' norms at the decoder's last weight, as means over the images of all processes.

    The ratio is at most the number of an image's values, since ``fixed`` is a sum over them and the adversarial loss is
    a mean; the limit of the reference, 1e4, is of one image size.

    Args:
        decoder: What made ``recon_params``.
        recon_params: Its output for a batch.
        images: The likelihood's means for ``recon_params``.
        fixed: The loss of each image that the adversarial one is measured by, ``(B,)``.
        slope: The slope of each image's adversarial loss in its pixels, the shape of ``images``.

    Raises:
        ValueError: If the decoder has no weight matrix, or does not use the last of them.

    References:
        Esser et al. (2021), equation 7.
    """
    weights = [parameter for parameter in decoder.parameters() if parameter.requires_grad and parameter.ndim > 1]
    if not weights:
        raise ValueError('`weight` "adaptive" needs a decoder with a trained weight matrix: give a number.')
    (of_fixed,) = torch.autograd.grad(fixed.sum(), recon_params, retain_graph=True)
    (of_slope,) = torch.autograd.grad(images, recon_params, slope, retain_graph=True)
    found = torch.stack([_at(weights[-1], recon_params, each) for each in (of_fixed, of_slope)])
    norms = torch.linalg.vector_norm(_mean_over_processes(found, len(images)).flatten(1), dim=1)
    return 0.5 * (norms[0] / (norms[1] + 1e-4)).clamp(max=images[0].numel())


def _at(weight: nn.Parameter, recon_params: Tensor, slope: Tensor) -> Tensor:
    """The gradient at a layer's weight, as the mean over images; scaled on its way, which may be in float16."""
    scale = slope.abs().amax().clamp(min=1e-30)
    (found,) = torch.autograd.grad(
        recon_params, weight, slope / (scale * len(slope)), retain_graph=True, allow_unused=True
    )
    if found is None:
        raise ValueError('`weight` "adaptive" needs a decoder that uses the last of its weights: give a number.')
    return found * scale


def _mean_over_processes(means: Tensor, num_images: int) -> Tensor:
    """Means over the images of this process, as means over those of all."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return means
    total = torch.cat([means.flatten() * num_images, means.new_tensor([num_images])])
    torch.distributed.all_reduce(total)
    return (total[:-1] / total[-1]).view_as(means)
