"""What a ``Trainer`` calls each step, and the objective that it takes if it is given none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vaelib._checks import check_callable, check_float, check_has_prior, check_shape
from vaelib.latents import Draw
from vaelib.objectives.bound import ElboTerms, bound_loss, may_have_penalty, one_draw, penalised
from vaelib.objectives.reconstruction import Reconstruction
from vaelib.schedules import Schedule, as_schedule

__all__ = ["Elbo", "ExtraTerms", "Objective", "default_objective"]


class Objective(Protocol):
    """What a ``Trainer`` asks: a named tuple whose ``loss`` is a scalar and whose other terms are ``(B,)``.

    An objective that is an ``nn.Module`` is moved, trained, saved in checkpoints and resumed with the model. With a
    method ``parameter_groups(model)`` it also says how the optimiser treats the weights: a sequence of dicts, each
    with ``params``, of the model or its own, and what differs for them: ``lr_scale``, by which the learning rate is
    multiplied, and arguments of the optimiser such as ``betas``. What is in no group is trained as always. One with a
    method ``set_total_steps(total_steps)`` receives the number of steps of the run before the first. One with an
    attribute ``eager`` that is true is never compiled.
    """

    def __call__(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> Any:
        """The terms of one batch ``x`` in [0, 1]; ``step`` is for schedules."""


@may_have_penalty
class ExtraTerms(NamedTuple):
    """The terms of :class:`Elbo` with an ``extra``."""

    loss: Tensor
    """What is minimised, a scalar: that of :class:`ElboTerms` and the batch mean of ``extra``."""
    reconstruction: Tensor
    """-log p(x|z) per image in nats, shape ``(B,)``."""
    kl: Tensor
    """KL(q(z|x) to p(z)) per image in nats, shape ``(B,)``."""
    extra: Tensor
    """The extra term per image, shape ``(B,)``; no nats."""


class Elbo(nn.Module):
    """:func:`elbo_loss` of a :class:`VAE` with its own likelihood and prior.

    Args:
        beta: Weight of the KL: a number >= 0 or a schedule ``step -> float``.
        free_bits: Nats per latent that cost nothing; >= 0.
        capacity: Nats to which the KL is held, such as ``vl.linear_warmup(100_000, final=25.0)``, or None.
        extra: ``(x, images) -> (B,)``, a perceptual or adversarial term that is added to the loss of each image. The
            images are the likelihood's means, ``(B, C, H, W)``. With it the loss is no bound, and the terms are
            :class:`ExtraTerms`. Weights of a module are trained, moved and resumed with the model; those of a fixed
            network have ``requires_grad_(False)``.

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
        super().__init__()
        self.beta = as_schedule("beta", beta)
        self.free_bits = check_float("free_bits", free_bits, 0.0)
        self.capacity = None if capacity is None else as_schedule("capacity", capacity)
        if extra is not None:
            check_callable("extra", extra, "callable, `(x, images) -> (B,)`")
        self.extra = extra

    def forward(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> Any:
        """:class:`ElboTerms` or :class:`ExtraTerms` of one batch; ``step`` drives the schedules."""
        check_has_prior("Elbo", model)
        recon_params, draw = one_draw(model, x, generator)
        return penalised(self.of_draw(model, x, recon_params, draw, step=step), draw.penalty)

    def of_draw(self, model: Any, x: Tensor, recon_params: Tensor, draw: Draw, *, step: int = 0) -> Any:
        """The terms of a draw that is decoded already, without the latent's penalty."""
        check_has_prior("Elbo", model)
        terms: ElboTerms | ExtraTerms = bound_loss(
            -model.likelihood.log_prob(x, recon_params),
            draw.kl,
            num_latents=draw.z[0].numel(),
            beta=self.beta(step),
            free_bits=self.free_bits,
            capacity=None if self.capacity is None else self.capacity(step),
        )
        if self.extra is not None:
            extra = self.extra(x, model.likelihood.mean(recon_params))
            check_shape("extra", extra.shape, x.shape[:1])
            terms = ExtraTerms(terms.loss + extra.mean(), terms.reconstruction, terms.kl, extra)
        return terms


def default_objective(model: Any) -> Objective:
    """:class:`Elbo`, or :class:`Reconstruction` of a VAE whose latent has no prior, such as an autoencoder."""
    latent = getattr(model, "latent", None)
    return Reconstruction() if latent is not None and not latent.has_prior else Elbo()
