"""The evidence lower bound as a loss: the one place of ``beta``, free bits and capacity."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vaelib._checks import (
    check_any_image,
    check_batch,
    check_float,
    check_module,
    check_shape,
    check_tensor,
)
from vaelib.functional import gaussian_log_prob
from vaelib.latents import Draw
from vaelib.likelihoods import Bernoulli, Likelihood
from vaelib.priors import Prior, StandardNormal
from vaelib.priors.gaussians import check_moments

__all__ = [
    "ElboTerms",
    "bound_loss",
    "elbo_loss",
    "frozen",
    "gaussian_of",
    "may_have_penalty",
    "one_draw",
    "penalised",
]

T = TypeVar("T")
_WITH_PENALTY: dict[Any, Any] = {}  # terms to the same with one column more


def may_have_penalty(kind: type[T]) -> type[T]:
    """Class decorator for terms to which :func:`penalised` may add a column."""
    _WITH_PENALTY[kind] = namedtuple(f"{kind.__name__}WithPenalty", (*kind._fields, "penalty"))  # type: ignore[attr-defined]
    return kind


def penalised(terms: Any, penalty: Tensor | None) -> Any:
    """Terms with the penalty of a latent, such as a commitment, in the loss and as a column of its own, ``(B,)``.

    Without a penalty the same terms.
    """
    if penalty is None:
        return terms
    return _WITH_PENALTY[type(terms)](terms.loss + penalty.mean(), *terms[1:], penalty)


@may_have_penalty
class ElboTerms(NamedTuple):
    """The negative ELBO and its two parts, in nats."""

    loss: Tensor
    """What is minimised, a scalar: the batch mean of ``reconstruction + beta * kl``, if neither ``free_bits`` nor
    ``capacity`` change the second part. A latent with a penalty, such as a quantiser, adds its mean, and a column
    ``penalty``, ``(B,)``; an ``extra`` adds its own."""
    reconstruction: Tensor
    """-log p(x|z) per image (the distortion), shape ``(B,)``."""
    kl: Tensor
    """KL(q(z|x) to p(z)) per image (the rate), shape ``(B,)``, without ``beta`` or ``free_bits``."""


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
    check_module("likelihood", likelihood, "log_prob", optional=True)
    check_module("prior", prior, "log_prob", optional=True)
    check_batch("x", x)
    check_moments(mu, logvar, z)
    check_shape("mu", mu.shape, (x.shape[0], *("..." for _ in mu.shape[1:])))
    if log_q is not None:
        check_tensor("log_q", log_q, x.shape[:1])
    reconstruction = -(likelihood or Bernoulli()).log_prob(x, recon_params)
    target: Any = prior or StandardNormal()
    if log_q is None and hasattr(target, "kl"):
        kl = target.kl(mu, logvar, z)
    elif z is None:
        what = f"the KL to {type(target).__name__} has no closed form" if log_q is None else "`log_q` is its density"
        raise ValueError(f"`z` must be given: {what}.")
    else:
        log_q = gaussian_log_prob(z, mu, 0.5 * logvar) if log_q is None else log_q
        kl = (log_q - target.log_prob(z))[:, None]
    return bound_loss(reconstruction, kl, num_latents=mu[0].numel(), beta=beta, free_bits=free_bits, capacity=capacity)


def bound_loss(
    reconstruction: Tensor,
    kl: Tensor,
    *,
    num_latents: int = 1,
    beta: float = 1.0,
    free_bits: float = 0.0,
    capacity: float | None = None,
) -> ElboTerms:
    """The loss of a bound from its nats: the one place of ``beta``, ``free_bits`` and ``capacity``.

    Args:
        reconstruction: -log p(x|z) in nats, ``(B,)``.
        kl: KL(q(z|x) to p(z)) in nats, ``(B, G)``: by latent, position or level, or of all together.
        num_latents: How many latents there are, over which the groups of ``kl`` share the free bits.
        beta: Weight of the KL, >= 0.
        free_bits: Nats per latent below which the KL of a group, averaged over the batch, costs nothing; >= 0.
        capacity: Nats to which the KL, averaged over the batch, is held; >= 0.

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
    return ElboTerms(reconstruction.mean() + beta * cost, reconstruction, total)


def one_draw(model: Any, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Draw]:
    """``recon_params`` and the draw of q(z|x) that they are of, as training sees them."""
    check_any_image("x", x)
    draw = model.draw(model.observe(x, generator=generator), generator=generator)
    return model.decode(draw), draw


def gaussian_of(name: str, draw: Draw) -> tuple[Tensor, Tensor]:
    """``mu`` and ``logvar`` of a draw, for the objectives that are about a Gaussian.

    Raises:
        ValueError: If the posterior is no Gaussian.
    """
    if draw.mu is None or draw.logvar is None:
        has = "no" if draw.codes is None else "codes, no"
        raise ValueError(f"`{name}` needs a Gaussian posterior: the model's latent has {has} mu and logvar.")
    return draw.mu, draw.logvar


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside the ``with``, what ``module`` computes has no gradient for its weights."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
