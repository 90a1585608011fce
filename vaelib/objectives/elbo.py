"""What is minimised: tensors in, a named tuple of nats out.

The functions know no model. The classes beside them are what a ``Trainer`` calls each step,
``objective(model, x, step=..., generator=...)``; they run the model by its public methods, so an objective
that needs several draws or passes is written the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vaelib._checks import (
    check_batch,
    check_callable,
    check_float,
    check_has_code,
    check_has_prior,
    check_module,
    check_one_device,
    check_shape,
    check_tensor,
)
from vaelib.functional import gaussian_log_prob, sum_per_image
from vaelib.latents import Draw
from vaelib.likelihoods import Bernoulli, Likelihood
from vaelib.priors import Prior, StandardNormal
from vaelib.priors.base import check_moments
from vaelib.schedules import Schedule, as_schedule

__all__ = [
    "Elbo",
    "ElboTerms",
    "Objective",
    "Reconstruction",
    "ReconstructionTerms",
    "bound_loss",
    "default_objective",
    "elbo_loss",
    "gaussian_of",
    "one_draw",
    "reconstruction_loss",
]


class ElboTerms(NamedTuple):
    """The negative ELBO and its two parts, in nats."""

    loss: Tensor
    """What is minimised, a scalar: the batch mean of ``reconstruction + beta * kl``, if neither ``free_bits`` nor
    ``capacity`` change the second part, nor an ``extra`` adds a third."""
    reconstruction: Tensor
    """-log p(x|z) per image (the distortion), shape ``(B,)``."""
    kl: Tensor
    """KL(q(z|x) to p(z)) per image (the rate), shape ``(B,)``, without ``beta`` or ``free_bits``."""


class ReconstructionTerms(NamedTuple):
    """The loss of a plain autoencoder."""

    loss: Tensor
    """What is minimised, a scalar: the batch mean of ``reconstruction``."""
    reconstruction: Tensor
    """Squared error per image, or -log p(x|z) in nats, shape ``(B,)``."""


class Objective(Protocol):
    """What a ``Trainer`` asks: a named tuple whose ``loss`` is a scalar and whose other terms are ``(B,)``."""

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> Any:
        """The terms of one batch ``x`` in [0, 1]; ``step`` is for schedules."""


def elbo_loss(
    x: Tensor,
    recon_params: Tensor,
    mu: Tensor,
    logvar: Tensor,
    z: Tensor | None = None,
    log_q: Tensor | None = None,
    *,
    likelihood: Likelihood | None = None,
    prior: Prior | None = None,
    beta: float = 1.0,
    free_bits: float = 0.0,
    capacity: float | None = None,
) -> ElboTerms:
    r"""Negative evidence lower bound, for a diagonal Gaussian posterior unless ``log_q`` is given.

    .. math:: -\log p_\theta(x \mid z) + \beta \, \mathrm{KL}(q_\phi(z \mid x) \,\|\, p(z))

    With ``beta`` of at least 1 and no ``capacity`` this is, in expectation over z, at least -log p(x).

    Args:
        x: Images, shape ``(B, C, H, W)``; in [0, 1] for the likelihoods that live there.
        recon_params: Raw decoder output for a draw of z, ``(B, likelihood.param_channels(C), H, W)``.
        mu: Posterior mean, shape ``(B, *latent_shape)``.
        logvar: Posterior log variance, the same shape.
        z: The draw that was decoded, the same shape; only priors without a closed form need it.
        log_q: log q(z|x) of that draw in nats, ``(B,)``, of a posterior that is more than a Gaussian.
        likelihood: p(x|z); :class:`Bernoulli` if None.
        prior: p(z); :class:`StandardNormal` if None.
        beta: Weight of the KL, >= 0.
        free_bits: Nats per latent below which the KL, averaged over the batch, costs nothing; >= 0. A KL that does not
            split over latents has those of all latents together.
        capacity: Nats to which the KL, averaged over the batch, is held: it costs ``beta * abs(kl - capacity)``; >= 0.

    Returns:
        ``ElboTerms(loss, reconstruction, kl)``.

    Raises:
        ValueError: If shapes disagree, a weight is negative, or ``x`` leaves the likelihood's support.

    Examples:
        >>> x = torch.full((2, 1, 4, 4), 0.5)
        >>> terms = elbo_loss(x, torch.zeros_like(x), torch.zeros(2, 3), torch.zeros(2, 3))
        >>> terms.kl.shape, round(terms.loss.item(), 4)  # 16 ln 2
        (torch.Size([2]), 11.0904)

    References:
        Kingma & Welling (2014), https://arxiv.org/abs/1312.6114; ``beta``: Higgins et al. (2017), beta-VAE;
        ``free_bits``: Kingma et al. (2016), section C.8, https://arxiv.org/abs/1606.04934; ``capacity``: Burgess et al.
        (2018), where ``beta`` is called gamma, https://arxiv.org/abs/1804.03599
    """
    beta = check_float("beta", beta, 0.0)
    free_bits = check_float("free_bits", free_bits, 0.0)
    check_module("likelihood", likelihood, "log_prob", optional=True)
    check_module("prior", prior, "log_prob", optional=True)
    check_batch("x", x)
    check_moments(mu, logvar, z)
    check_shape("mu", mu.shape, (x.shape[0], *("..." for _ in mu.shape[1:])))
    if log_q is not None:
        check_tensor("log_q", log_q)
        check_shape("log_q", log_q.shape, x.shape[:1])
    reconstruction = -(likelihood or Bernoulli()).log_prob(x, recon_params)
    kl = _kl(mu, logvar, z, log_q, prior or StandardNormal())
    return bound_loss(reconstruction, kl, num_latents=mu[0].numel(), beta=beta, free_bits=free_bits, capacity=capacity)


def _kl(mu: Tensor, logvar: Tensor, z: Tensor | None, log_q: Tensor | None, prior: Any) -> Tensor:
    """In closed form, ``(B, D)``, or the estimate from the draw, ``(B, 1)``."""
    if log_q is None and hasattr(prior, "kl"):
        closed: Tensor = prior.kl(mu, logvar, z)
        return closed
    if z is None:
        what = f"the KL to {type(prior).__name__} has no closed form" if log_q is None else "`log_q` is its density"
        raise ValueError(f"`z` must be given: {what}.")
    log_q = gaussian_log_prob(z, mu, 0.5 * logvar) if log_q is None else log_q
    estimate: Tensor = (log_q - prior.log_prob(z))[:, None]
    return estimate


def bound_loss(
    reconstruction: Tensor,
    kl: Tensor,
    *,
    num_latents: int = 1,
    beta: float = 1.0,
    free_bits: float = 0.0,
    capacity: float | None = None,
    penalty: Tensor | None = None,
) -> ElboTerms:
    """The loss of a bound from its nats: the one place of ``beta``, ``free_bits`` and ``capacity``.

    Args:
        reconstruction: -log p(x|z) in nats, ``(B,)``.
        kl: KL(q(z|x) to p(z)) in nats, ``(B, G)``: by latent, position or level, or of all together.
        num_latents: How many latents there are, over which the groups of ``kl`` share the free bits.
        beta: Weight of the KL, >= 0.
        free_bits: Nats per latent below which the KL of a group, averaged over the batch, costs nothing; >= 0.
        capacity: Nats to which the KL, averaged over the batch, is held; >= 0.
        penalty: What is trained on but is no part of the bound, ``(B,)``.

    Returns:
        ``ElboTerms(loss, reconstruction, kl)``.

    Raises:
        ValueError: If shapes disagree or a weight is negative.

    Examples:
        >>> kl = torch.tensor([[1.0, 0.1], [1.0, 0.1]])
        >>> bound_loss(torch.full((2,), 10.0), kl, num_latents=2, free_bits=0.5).loss
        tensor(11.5000)

    References:
        As for :func:`elbo_loss`.
    """
    check_shape("kl", kl.shape, (*reconstruction.shape, "G"))
    beta = check_float("beta", beta, 0.0)
    free_bits = check_float("free_bits", free_bits, 0.0)
    total = kl.sum(1)
    cost = kl.mean(0).clamp(min=free_bits * num_latents / kl.shape[1]).sum() if free_bits else total.mean()
    if capacity is not None:
        cost = (cost - check_float("capacity", capacity, 0.0)).abs()
    loss = reconstruction.mean() + beta * cost
    return ElboTerms(loss if penalty is None else loss + penalty.mean(), reconstruction, total)


def one_draw(model: Any, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Draw]:
    """``recon_params`` and the draw of q(z|x) that they are of, as training sees them."""
    draw = model.draw(model.observe(x, generator=generator), generator=generator)
    return model.decode(draw), draw


def gaussian_of(name: str, draw: Draw) -> tuple[Tensor, Tensor]:
    """``mu`` and ``logvar`` of a draw, for the objectives that are about a Gaussian.

    Raises:
        ValueError: If the posterior is no Gaussian.
    """
    if draw.mu is None or draw.logvar is None:
        raise ValueError(f"`{name}` needs a Gaussian posterior: the model's latent has no mu and logvar.")
    return draw.mu, draw.logvar


def reconstruction_loss(
    x: Tensor, recon_params: Tensor, *, likelihood: Likelihood | None = None
) -> ReconstructionTerms:
    """The loss of a plain autoencoder: squared error summed over the image, or -log p(x|z).

    Args:
        x: Images, shape ``(B, C, H, W)``.
        recon_params: Decoder output: pictures of the same shape, or the likelihood's raw parameters.
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


class Elbo:
    """:func:`elbo_loss` of a :class:`VAE` with its own likelihood and prior.

    Args:
        beta: Weight of the KL: a number >= 0 or a schedule ``step -> float``.
        free_bits: Nats per latent that cost nothing; >= 0.
        capacity: Nats to which the KL is held, such as ``vl.linear_warmup(100_000, final=25.0)``, or None.
        extra: ``(x, pictures) -> (B,)``, a perceptual or adversarial term that is added to the loss of each image. The
            pictures are the likelihood's means, ``(B, C, H, W)``. With it the loss is no bound.

    Examples:
        >>> import vaelib as vl
        >>> objective = Elbo(beta=vl.linear_warmup(2_000))
        >>> objective(vl.conv_vae((1, 8, 8), 2), torch.rand(4, 1, 8, 8), step=0).kl.shape
        torch.Size([4])
    """

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        capacity: float | Schedule | None = None,
        extra: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.beta = as_schedule("beta", beta)
        self.free_bits = check_float("free_bits", free_bits, 0.0)
        self.capacity = None if capacity is None else as_schedule("capacity", capacity)
        if extra is not None:
            check_callable("extra", extra, "callable, `(x, pictures) -> (B,)`")
        self.extra = extra

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> ElboTerms:
        """Terms of one batch; ``step`` drives the schedules of ``beta`` and ``capacity``."""
        check_has_prior("Elbo", model)
        recon_params, draw = one_draw(model, x, generator)
        terms = bound_loss(
            -model.likelihood.log_prob(x, recon_params),
            draw.kl,
            num_latents=draw.z[0].numel(),
            beta=self.beta(step),
            free_bits=self.free_bits,
            capacity=None if self.capacity is None else self.capacity(step),
            penalty=draw.penalty,
        )
        if self.extra is None:
            return terms
        extra = self.extra(x, model.likelihood.mean(recon_params))
        check_shape("extra", extra.shape, x.shape[:1])
        return terms._replace(loss=terms.loss + extra.mean())


def default_objective(model: Any) -> Objective:
    """:class:`Elbo`, or :class:`Reconstruction` of a VAE whose latent has no prior, such as an autoencoder."""
    latent = getattr(model, "latent", None)
    return Reconstruction() if latent is not None and not latent.has_prior else Elbo()


class Reconstruction:
    """:func:`reconstruction_loss` of an :class:`AutoEncoder`, with its likelihood if it has one.

    Examples:
        >>> import vaelib as vl
        >>> model = vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8)))
        >>> Reconstruction()(model, torch.rand(4, 1, 8, 8)).reconstruction.shape
        torch.Size([4])
    """

    def __call__(
        self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None
    ) -> ReconstructionTerms:
        """Terms of one batch."""
        check_has_code("Reconstruction", model)
        recon_params, _ = one_draw(model, x, generator)
        return reconstruction_loss(x, recon_params, likelihood=model.likelihood)
