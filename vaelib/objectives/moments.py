"""All posteriors together against the prior: by moments (DIP-VAE), by samples (InfoVAE, Wasserstein autoencoder)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import (
    check_batch,
    check_choice,
    check_float,
    check_has_code,
    check_has_prior,
    check_module,
    check_one_device,
    check_shape,
)
from vaelib.functional.draws import normal
from vaelib.objectives.bound import bound_loss, gaussian_of, may_have_penalty, one_draw, penalised
from vaelib.objectives.reconstruction import reconstruction_loss
from vaelib.priors import Prior, StandardNormal
from vaelib.priors.gaussians import check_moments

__all__ = ["DipLoss", "DipTerms", "InfoLoss", "InfoTerms", "WaeLoss", "WaeTerms", "dip_penalty", "mmd"]

_KERNELS = ("rbf", "imq")


class DipTerms(NamedTuple):
    """The terms of :class:`DipLoss`."""

    loss: Tensor
    """What is minimised, a scalar: the batch mean of ``reconstruction + kl + penalty``."""
    reconstruction: Tensor
    """-log p(x|z) per image in nats, shape ``(B,)``."""
    kl: Tensor
    """KL(q(z|x) to p(z)) per image in nats, shape ``(B,)``."""
    penalty: Tensor
    """:func:`dip_penalty`, one number of the batch, repeated to shape ``(B,)``."""


def dip_penalty(mu: Tensor, logvar: Tensor | None = None, *, lambda_od: float, lambda_d: float) -> Tensor:
    r"""How far the covariance of the latents is from the identity; no nats, but weighed against them.

    .. math:: \lambda_{od} \sum_{i \ne j} \mathrm{Cov}_{ij}^2 + \lambda_d \sum_i (\mathrm{Cov}_{ii} - 1)^2

    Args:
        mu: Posterior means, shape ``(B, *latent_shape)``. Their covariance over the batch (divided by B) counts.
        logvar: Posterior log variances, the same shape, for the covariance of z instead, which has their mean more.
        lambda_od: Weight of what is off the diagonal.
        lambda_d: Weight of the diagonal.

    Returns:
        A scalar.

    Raises:
        ValueError: If shapes disagree.

    Examples:
        >>> mu = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # variances and covariance 1
        >>> dip_penalty(mu, lambda_od=10.0, lambda_d=100.0)
        tensor(20.)

    References:
        Kumar et al. (2018), equations 6 and 7. https://arxiv.org/abs/1711.00848
    """
    check_batch("mu", mu)
    lambda_od = check_float("lambda_od", lambda_od, 0.0)
    lambda_d = check_float("lambda_d", lambda_d, 0.0)
    centred = (mu - mu.mean(0)).flatten(1)
    covariance = centred.T @ centred / len(mu)
    if logvar is not None:
        check_moments(mu, logvar)
        covariance = covariance + logvar.exp().flatten(1).mean(0).diag()
    diagonal = covariance.diagonal()
    off_diagonal = covariance - diagonal.diag()
    return lambda_od * off_diagonal.square().sum() + lambda_d * (diagonal - 1).square().sum()


class DipLoss:
    """The ELBO of a :class:`VAE` and a price for latents that are correlated or not of variance 1.

    Args:
        lambda_od: Weight of covariances, >= 0.
        lambda_d: Weight of variances, >= 0. Published: 10 times ``lambda_od`` for I, the same for II.
        kind: ``"i"`` looks at the posterior means, ``"ii"`` at z.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> objective = DipLoss(lambda_od=10.0, lambda_d=10.0, kind="ii")
        >>> objective(vl.conv_vae((1, 8, 8), 2), torch.rand(4, 1, 8, 8)).penalty.shape
        torch.Size([4])

    References:
        Kumar et al. (2018), Variational inference of disentangled latent concepts from unlabeled observations.
        https://arxiv.org/abs/1711.00848
    """

    def __init__(self, lambda_od: float = 10.0, lambda_d: float = 100.0, *, kind: str = "i") -> None:
        self.lambda_od = check_float("lambda_od", lambda_od, 0.0)
        self.lambda_d = check_float("lambda_d", lambda_d, 0.0)
        check_choice("kind", kind, ("i", "ii"))
        self.kind = kind

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> DipTerms:
        """Terms of one batch."""
        check_has_prior("DipLoss", model)
        recon_params, draw = one_draw(model, x, generator)
        mu, logvar = gaussian_of("DipLoss", draw)
        elbo = bound_loss(-model.likelihood.log_prob(x, recon_params), draw.kl)
        penalty = dip_penalty(
            mu, logvar if self.kind == "ii" else None, lambda_od=self.lambda_od, lambda_d=self.lambda_d
        )
        own = 0.0 if draw.penalty is None else draw.penalty.mean()
        return DipTerms(elbo.loss + penalty + own, elbo.reconstruction, elbo.kl, penalty.expand(len(x)))


@may_have_penalty
class InfoTerms(NamedTuple):
    """The terms of :class:`InfoLoss`."""

    loss: Tensor
    """What is minimised, a scalar: the mean of ``reconstruction + (1 - alpha) kl + (alpha + lambda_ - 1) mmd``."""
    reconstruction: Tensor
    """-log p(x|z) per image in nats, shape ``(B,)``."""
    kl: Tensor
    """KL(q(z|x) to p(z)) per image in nats, shape ``(B,)``."""
    mmd: Tensor
    """:func:`mmd` between z and draws of the prior, one number of the batch, repeated to shape ``(B,)``; 0 of a
    batch of one, which has none."""


@may_have_penalty
class WaeTerms(NamedTuple):
    """The terms of :class:`WaeLoss`."""

    loss: Tensor
    """What is minimised, a scalar: the batch mean of ``reconstruction + weight * mmd``."""
    reconstruction: Tensor
    """Squared error per image, or -log p(x|z) in nats, shape ``(B,)``."""
    mmd: Tensor
    """:func:`mmd` between codes and draws of the prior, one number of the batch, repeated to shape ``(B,)``; 0 of a
    batch of one."""


def mmd(x: Tensor, y: Tensor, *, kernel: str = "imq", scale: float = 1.0) -> Tensor:
    r"""Squared maximum mean discrepancy of two samples, by the U-statistic: unbiased, so at times below zero.

    ``"rbf"`` is :math:`\exp(-\|x - y\|^2 / C)`, ``"imq"``, the inverse multiquadratic, :math:`C / (C + \|x - y\|^2)`,
    whose tails are heavier. :math:`C = 2 D \, \mathrm{scale}^2` is the mean squared distance of two draws of a normal
    of that scale. No nats: the kernels are at most 1, so the result is at most 2.

    Args:
        x: Shape ``(n, ...)``, n >= 2.
        y: Shape ``(m, ...)``, m >= 2.
        kernel: ``"rbf"`` or ``"imq"``.
        scale: Scale of the prior, > 0.

    Returns:
        A scalar.

    Raises:
        ValueError: If shapes disagree, a sample is of one, or an argument is out of its range.

    Examples:
        >>> x = torch.zeros(3, 2)
        >>> mmd(x, x), mmd(x, x + 1e6)
        (tensor(0.), tensor(2.))

    References:
        Gretton et al. (2012), A kernel two-sample test, equation 3; kernels: Tolstikhin et al. (2018), Wasserstein
        auto-encoders, section 4, https://arxiv.org/abs/1711.01558
    """
    check_choice("kernel", kernel, _KERNELS)
    scale = check_float("scale", scale, 0.0, above=True)
    check_batch("x", x)
    check_batch("y", y)
    check_one_device(x=x, y=y)
    check_shape("y", y.shape, ("m", *x.shape[1:]))
    if min(len(x), len(y)) < 2:
        raise ValueError(f"`x` and `y` must hold at least 2 samples each, got {len(x)} and {len(y)}.")
    x, y = x.flatten(1), y.flatten(1)
    width = 2 * x.shape[1] * scale**2

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        distance = (a[:, None] - b).square().sum(2)
        return torch.exp(-distance / width) if kernel == "rbf" else width / (width + distance)

    def within(a: Tensor) -> Tensor:
        return (similarity(a, a).sum() - len(a)) / (len(a) * (len(a) - 1))  # without each one with itself, which is 1

    return within(x) + within(y) - 2 * similarity(x, y).mean()


class InfoLoss:
    """The bound of a :class:`VAE` with less price on what z tells about its image, more on missing the prior.

    ``alpha=0`` keeps the ELBO and adds ``lambda_ - 1`` times the MMD of all posteriors together to the prior;
    ``alpha=1`` has no KL: the Wasserstein autoencoder with a Gaussian encoder. Any prior works that can be sampled.

    Args:
        alpha: Share of the mutual information that is free, at most 1.
        lambda_: Weight of the divergence to the prior, at least ``1 - alpha``. The MMD is a small number: published
            values reach from 10 to 1,000.
        kernel: Kernel of :func:`mmd`.
        scale: Scale of the kernel, about that of the prior.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> objective = InfoLoss(alpha=0.0, lambda_=1000.0)
        >>> objective(vl.conv_vae((1, 8, 8), 2), torch.rand(4, 1, 8, 8)).mmd.shape
        torch.Size([4])

    References:
        Zhao et al. (2019), InfoVAE. https://arxiv.org/abs/1706.02262
    """

    def __init__(self, *, alpha: float = 0.0, lambda_: float = 1000.0, kernel: str = "imq", scale: float = 1.0) -> None:
        self.alpha = check_float("alpha", alpha, maximum=1.0)
        self.lambda_ = check_float("lambda_", lambda_, 1.0 - alpha)
        check_choice("kernel", kernel, _KERNELS)
        self.kernel, self.scale = kernel, check_float("scale", scale, 0.0, above=True)

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> Any:
        """:class:`InfoTerms` of one batch."""
        check_has_prior("InfoLoss", model)
        recon_params, draw = one_draw(model, x, generator)
        reconstruction = -model.likelihood.log_prob(x, recon_params)
        elbo = bound_loss(reconstruction, draw.kl, beta=1.0 - self.alpha)
        prior_draws = model.latent.from_noise(normal((len(x), model.latent.prior_noise_size), draw.z, generator))
        divergence = _to_prior(draw.z, prior_draws, self.kernel, self.scale)
        loss = elbo.loss + (self.alpha + self.lambda_ - 1.0) * divergence
        return penalised(InfoTerms(loss, elbo.reconstruction, elbo.kl, divergence.expand(len(x))), draw.penalty)


class WaeLoss:
    """:func:`reconstruction_loss` of an :class:`AutoEncoder` and the MMD of its codes to a prior, which it has not.

    Args:
        weight: Weight of the MMD, >= 0.
        prior: What codes shall look like; :class:`StandardNormal` if None. It is not trained.
        kernel: Kernel of :func:`mmd`.
        scale: Scale of the kernel, about that of the prior.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> model = vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8)))
        >>> WaeLoss(weight=10.0)(model, torch.rand(4, 1, 8, 8)).mmd.shape
        torch.Size([4])

    References:
        Tolstikhin et al. (2018), Wasserstein auto-encoders, algorithm 2. https://arxiv.org/abs/1711.01558
    """

    def __init__(
        self, weight: float = 10.0, *, prior: Prior | None = None, kernel: str = "imq", scale: float = 1.0
    ) -> None:
        self.weight = check_float("weight", weight, 0.0)
        check_module("prior", prior, "sample", optional=True)
        self.prior: Prior = prior or StandardNormal()
        check_choice("kernel", kernel, _KERNELS)
        self.kernel, self.scale = kernel, check_float("scale", scale, 0.0, above=True)

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> Any:
        """:class:`WaeTerms` of one batch."""
        check_has_code("WaeLoss", model)
        recon_params, draw = one_draw(model, x, generator)
        loss, reconstruction = reconstruction_loss(x, recon_params, likelihood=model.likelihood)
        with torch.no_grad():
            prior_draws = self.prior.sample(len(x), draw.z.shape[1:], generator=generator, device=draw.z.device)
        divergence = _to_prior(draw.z, prior_draws.to(draw.z.dtype), self.kernel, self.scale)
        terms = WaeTerms(loss + self.weight * divergence, reconstruction, divergence.expand(len(x)))
        return penalised(terms, draw.penalty)


def _to_prior(z: Tensor, draws: Tensor, kernel: str, scale: float) -> Tensor:
    return mmd(z, draws, kernel=kernel, scale=scale) if len(z) > 1 else z.new_zeros(())
