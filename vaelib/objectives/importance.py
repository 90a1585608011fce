"""Bounds of many draws: tighter than the ELBO, and their gradients of low variance."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import (
    check_any_image,
    check_batch,
    check_bool,
    check_choice,
    check_float,
    check_has_prior,
    check_int,
)
from vaelib.functional import gaussian_log_prob
from vaelib.latents import Draw
from vaelib.objectives.bound import frozen, gaussian_of, may_have_penalty, penalised

__all__ = ["Iwae", "IwaeTerms", "iwae_bound", "nats_of"]


@may_have_penalty
class IwaeTerms(NamedTuple):
    """A bound of many draws, in nats."""

    loss: Tensor
    """What is minimised, a scalar; with ``gradient`` other than ``"plain"``, or a pooled decoder, only its value is the
    bound's."""
    iwae: Tensor
    """-L_K per image (pooled, of all draws), shape ``(B,)``: at least -log p(x) in expectation, and falling with K."""
    reconstruction: Tensor
    """-log p(x|z) per image, the mean over draws, shape ``(B,)``."""
    kl: Tensor
    """log q(z|x) - log p(z) per image, the mean over draws, shape ``(B,)``."""


def iwae_bound(log_weights: Tensor) -> Tensor:
    r"""L_K = log 1/K sum_k w_k, in nats.

    Args:
        log_weights: log p(x|z_k) + log p(z_k) - log q(z_k|x), shape ``(K, B)``.

    Returns:
        Shape ``(B,)``. The ELBO for K = 1; in expectation at most log p(x) and rising with K.

    Examples:
        >>> iwae_bound(torch.zeros(5, 2))
        tensor([0., 0.])

    References:
        Burda et al. (2016), Importance weighted autoencoders, equation 8. https://arxiv.org/abs/1509.00519
    """
    check_batch("log_weights", log_weights)
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def nats_of(model: Any, x: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """-log p(x|z) and log q(z|x) - log p(z) of K draws of B images, ``(K * B,)`` each; minus their sum is log w."""
    x = x.repeat(len(draw.z) // len(x), 1, 1, 1)
    return -model.likelihood.log_prob(x, model.decode(draw)), draw.log_q - draw.log_p


class Iwae:
    """The K-sample bound of a :class:`VAE`, and its variants.

    ``Iwae(50)`` is IWAE. ``num_groups=M`` takes the mean of the bounds of M groups of K draws each: MIWAE.
    ``elbo_weight`` mixes the ELBO of all draws in: CIWAE. ``pool_decoder`` trains the encoder by groups but decoder and
    prior, which any tighter bound serves, by that of all K M draws: PIWAE, at the cost of decoding twice. The gradient
    for the encoder is chosen apart:

    - ``"plain"``: automatic differentiation of the bound, whose signal for the encoder drowns in noise as K grows;
    - ``"stl"``: without the score of log q, sticking the landing. **For one draw**: unbiased, the lowest variance near
      the optimum. For K > 1 its mean is another gradient, nearly K times too large close to the exact posterior and not
      in the same direction. With K = 50, where the posterior is known and the encoder's is slightly off (shifted by
      0.1, or with 0.7 or 1.3 times the variance): 16 to 55 times that of the bound; further off, 4 to 5 times
      (``pytest tests/test_likelihood.py -m table -s -k the_table_of_stl``). Take ``"dreg"`` for K > 1;
    - ``"dreg"``: doubly reparameterized, the bound's own gradient in the mean for any K, with little noise.

    Args:
        num_samples: K, draws in a bound.
        num_groups: M, bounds that are averaged.
        elbo_weight: Weight of the ELBO beside the bound, in [0, 1].
        gradient: Gradient of the encoder: ``"plain"``, ``"stl"`` or ``"dreg"``.
        pool_decoder: Whether decoder and prior follow one bound of all draws.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> terms = Iwae(8, gradient="dreg")(vl.conv_vae((1, 8, 8), 2), torch.rand(4, 1, 8, 8))
        >>> terms.iwae.shape
        torch.Size([4])

    References:
        Burda et al. (2016), https://arxiv.org/abs/1509.00519; Rainforth et al. (2018), MIWAE, CIWAE and
        PIWAE, https://arxiv.org/abs/1802.04537; Roeder et al. (2017), STL, https://arxiv.org/abs/1703.09194;
        Tucker et al. (2019), DReG, https://arxiv.org/abs/1810.04152
    """

    def __init__(
        self,
        num_samples: int,
        *,
        num_groups: int = 1,
        elbo_weight: float = 0.0,
        gradient: str = "plain",
        pool_decoder: bool = False,
    ) -> None:
        self.num_samples = check_int("num_samples", num_samples)
        self.num_groups = check_int("num_groups", num_groups)
        self.elbo_weight = check_float("elbo_weight", elbo_weight, 0.0, 1.0)
        check_bool("pool_decoder", pool_decoder)
        check_choice("gradient", gradient, ("plain", "stl", "dreg"))
        if gradient == "dreg" and elbo_weight > 0.0:
            raise ValueError("`gradient` 'dreg' is that of a bound alone: `elbo_weight` must be 0.")
        self.gradient, self.pool_decoder = gradient, pool_decoder

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> Any:
        """:class:`IwaeTerms` of one batch."""
        check_has_prior("Iwae", model)
        check_any_image("x", x)
        draws = self.num_samples * self.num_groups
        draw = model.draw(model.observe(x, generator=generator), num_samples=draws, generator=generator)
        if self.gradient != "plain":
            mu, logvar = gaussian_of(f"Iwae(gradient={self.gradient!r})", draw)
            draw = draw._replace(log_q=gaussian_log_prob(draw.z, mu.detach(), 0.5 * logvar.detach()))
        penalty = None if draw.penalty is None else draw.penalty.view(draws, -1).mean(0)
        only_its_gradient: Tensor | float = 0.0
        if self.pool_decoder:
            with frozen(model):
                draw = draw._replace(log_p=model.latent.log_prob(draw.z))
                encoder_loss, *_ = self._terms(model, x, draw, self.num_groups)
            only_its_gradient = encoder_loss - encoder_loss.detach()
            z = draw.z.detach()
            draw = Draw(z, model.latent.hidden(z), draw.kl, draw.log_q.detach(), model.latent.log_prob(z))
        terms = self._terms(model, x, draw, 1 if self.pool_decoder else self.num_groups)
        return penalised(terms._replace(loss=terms.loss + only_its_gradient), penalty)

    def _terms(self, model: Any, x: Tensor, draw: Draw, num_groups: int) -> IwaeTerms:
        """Of the draws, one bound for each of ``num_groups`` groups."""
        z, draws = draw.z, self.num_samples * self.num_groups
        reconstruction, kl = nats_of(model, x, draw)
        log_weights = -(reconstruction + kl).view(draws // num_groups, num_groups, -1)
        bound = iwae_bound(log_weights).mean(0)
        if self.gradient == "dreg" and z.requires_grad:
            weights = log_weights.detach().softmax(0).view(-1, *[1] * (z.ndim - 1))
            z.register_hook(lambda gradient: gradient * weights)
        return IwaeTerms(
            -(1 - self.elbo_weight) * bound.mean() - self.elbo_weight * log_weights.mean(),
            -bound,
            reconstruction.view(draws, -1).mean(0),
            kl.view(draws, -1).mean(0),
        )
