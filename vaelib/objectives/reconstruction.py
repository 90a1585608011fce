"""The losses of autoencoders: plain, and with codes and decoder kept smooth (RAE)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import (
    check_any_image,
    check_batch,
    check_choice,
    check_float,
    check_has_code,
    check_module,
    check_one_device,
    check_shape,
    check_tensor,
)
from vaelib.functional import sum_per_image
from vaelib.functional.draws import signs
from vaelib.latents import Draw
from vaelib.likelihoods import Likelihood
from vaelib.objectives.bound import may_have_penalty, one_draw, penalised

__all__ = ["RaeLoss", "RaeTerms", "Reconstruction", "ReconstructionTerms", "reconstruction_loss"]


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
        return penalised(self.of_draw(model, x, recon_params, draw, step=step), draw.penalty)

    def of_draw(self, model: Any, x: Tensor, recon_params: Tensor, draw: Draw, *, step: int = 0) -> Any:
        """The terms of a draw that is decoded already, without the latent's penalty."""
        return reconstruction_loss(x, recon_params, likelihood=model.likelihood)


class RaeTerms(NamedTuple):
    """The terms of :class:`RaeLoss`."""

    loss: Tensor
    """What is minimised, a scalar: the batch mean of ``reconstruction + beta * code + weight * penalty``."""
    reconstruction: Tensor
    """Squared error per image, or -log p(x|z) in nats, shape ``(B,)``."""
    code: Tensor
    """Half the squared norm of each code, shape ``(B,)``: nats under N(0, I), up to a constant."""
    penalty: Tensor
    """An estimate of the squared Frobenius norm of the decoder's Jacobian at each code, or the squared norm of its
    weights, the same for all; shape ``(B,)``."""


class RaeLoss:
    """A regularised :class:`AutoEncoder`, to be sampled by a density fitted to its codes.

    The gradient penalty is that of ``recon_params`` with respect to z, summed over all pairs of them, by one random
    projection an image, which is unbiased. It costs a second pass through the decoder, and the step runs eagerly.

    Args:
        beta: Weight of half the squared norm of codes, >= 0.
        weight: Weight of the decoder's penalty, >= 0.
        penalty: ``"gradient"``, of the decoder's Jacobian, or ``"l2"``, of its weights.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> model = vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8)))
        >>> RaeLoss(beta=0.01, weight=0.001)(model, torch.rand(4, 1, 8, 8)).penalty.shape
        torch.Size([4])

    References:
        Ghosh et al. (2020), From variational to deterministic autoencoders, section 3.
        https://arxiv.org/abs/1903.12436; the projection: Hutchinson (1989).
    """

    def __init__(self, beta: float, weight: float, *, penalty: str = "gradient") -> None:
        self.beta = check_float("beta", beta, 0.0)
        self.weight = check_float("weight", weight, 0.0)
        check_choice("penalty", penalty, ("gradient", "l2"))
        self.penalty = penalty
        self.eager = penalty == "gradient"  # torch.compile knows no gradients of gradients

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> RaeTerms:
        """Terms of one batch."""
        check_has_code("RaeLoss", model)
        if model.latent.has_prior:
            raise TypeError(f"`RaeLoss` needs an autoencoder, whose codes are points, got {type(model).__name__}.")
        check_any_image("x", x)
        z = model.draw(model.observe(x, generator=generator)).z
        if self.penalty == "gradient":
            recon_params, penalty = _decoded_with_slope(model, z, generator)
        else:
            recon_params = model.decode(z)
            penalty = sum(parameter.square().sum() for parameter in model.decoder.parameters()).expand(len(x))
        loss, reconstruction = reconstruction_loss(x, recon_params, likelihood=model.likelihood)
        code = 0.5 * sum_per_image(z.square())
        return RaeTerms(loss + (self.beta * code + self.weight * penalty).mean(), reconstruction, code, penalty)


def _decoded_with_slope(model: Any, z: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """``recon_params``, and the squared norm of their Jacobian per image: E ||v J||^2 over signs v."""
    with torch.enable_grad():  # in validation too
        z = z if z.requires_grad else z.detach().requires_grad_()
        recon_params = model.decode(z)
        directions = signs(recon_params.shape, z, generator)
        (slope,) = torch.autograd.grad(recon_params, z, directions, create_graph=True)
    return recon_params, sum_per_image(slope.square())
