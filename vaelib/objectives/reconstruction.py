"""The loss of a plain autoencoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import check_batch, check_has_code, check_module, check_one_device, check_shape, check_tensor
from vaelib.functional import sum_per_image
from vaelib.likelihoods import Likelihood
from vaelib.objectives.bound import may_have_penalty, one_draw, penalised

__all__ = ["Reconstruction", "ReconstructionTerms", "reconstruction_loss"]


@may_have_penalty
class ReconstructionTerms(NamedTuple):
    """The loss of a plain autoencoder."""

    loss: Tensor
    """What is minimised, a scalar: the batch mean of ``reconstruction``."""
    reconstruction: Tensor
    """Squared error per image, or -log p(x|z) in nats, shape ``(B,)``."""


def reconstruction_loss(
    x: Tensor, recon_params: Tensor, *, likelihood: Likelihood | None = None
) -> ReconstructionTerms:
    """The loss of a plain autoencoder: squared error summed over the image, or -log p(x|z).

    Args:
        x: Images, shape ``(B, C, H, W)``.
        recon_params: Decoder output: images of the same shape, or the likelihood's raw parameters.
        likelihood: p(x|z); squared error if None.

    Returns:
        ``ReconstructionTerms(loss, reconstruction)``.

    Raises:
        ValueError: If shapes disagree.

    Examples:
        >>> reconstruction_loss(torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)).loss
        tensor(16.)
    """
    check_module("likelihood", likelihood, "log_prob", optional=True)
    check_batch("x", x)
    check_tensor("recon_params", recon_params)
    check_one_device(x=x, recon_params=recon_params)
    if likelihood is None:
        check_shape("recon_params", recon_params.shape, x.shape)
        reconstruction = sum_per_image((x - recon_params).square())
    else:
        reconstruction = -likelihood.log_prob(x, recon_params)
    return ReconstructionTerms(reconstruction.mean(), reconstruction)


class Reconstruction:
    """:func:`reconstruction_loss` of an :class:`AutoEncoder`, with its likelihood if it has one.

    Examples:
        >>> import vaelib as vl
        >>> model = vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8)))
        >>> Reconstruction()(model, torch.rand(4, 1, 8, 8)).reconstruction.shape
        torch.Size([4])
    """

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> Any:
        """:class:`ReconstructionTerms` of one batch."""
        check_has_code("Reconstruction", model)
        recon_params, draw = one_draw(model, x, generator)
        return penalised(reconstruction_loss(x, recon_params, likelihood=model.likelihood), draw.penalty)
