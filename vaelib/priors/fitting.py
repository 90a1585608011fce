"""A prior fitted after training: the sampler of a model that was trained with another, or with none."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from vaelib._checks import DataError, check_batch, check_finite, check_float, check_generator, check_int, check_module

__all__ = ["fit_prior"]

P = TypeVar("P", bound=Any)


def fit_prior(
    prior: P,
    z: Tensor,
    *,
    num_steps: int = 2000,
    batch_size: int = 512,
    learning_rate: float = 5e-3,
    generator: torch.Generator | None = None,
) -> P:
    """Fit a prior to latents by maximum likelihood: an ex-post density, from which to sample where none was trained.

    ``vae.prior = fit_prior(vl.FlowPrior((32,)), z)`` with draws of the posteriors of training images; for an
    :class:`AutoEncoder`, decode ``prior.sample(...)``.

    Args:
        prior: Any with weights, such as :class:`MixtureOfGaussians` (begin with its ``start_from``) or
            :class:`FlowPrior`; fitted in place.
        z: Latents ``(N, *latent_shape)``, on the prior's device.
        num_steps: Steps of Adam, whose learning rate falls to zero along half a cosine.
        batch_size: Latents in a step, drawn with replacement.
        learning_rate: At the start.
        generator: Of the batches, on the CPU.

    Returns:
        The same prior, in eval mode.

    Raises:
        ValueError: If there is no latent, one is not finite, an argument is out of its range, or the prior has no
            weights.

    Examples:
        >>> import vaelib as vl
        >>> z = 3 + 0.5 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> prior = fit_prior(vl.LearnedGaussian((2,)), z, num_steps=300, learning_rate=0.05)
        >>> bool((prior.mu - 3).abs().max() < 0.2)
        True

    References:
        Ghosh et al. (2020), From variational to deterministic autoencoders, section 4.
        https://arxiv.org/abs/1903.12436
    """
    check_module("prior", prior, "log_prob")
    check_batch("z", z)
    check_generator(generator)
    check_int("num_steps", num_steps)
    check_int("batch_size", batch_size)
    check_float("learning_rate", learning_rate, 0.0, above=True)
    if len(z) == 0:
        raise DataError("`z` must hold at least one latent, got none.")
    z = z.detach()
    check_finite("z", z)
    if not list(prior.parameters()):
        raise ValueError(f"`prior` must have weights to fit, {type(prior).__name__} has none.")
    optimizer = torch.optim.Adam(prior.train().parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        chosen = torch.randint(len(z), (batch_size,), generator=generator).to(z.device, non_blocking=True)
        optimizer.zero_grad()
        (-prior.log_prob(z[chosen]).mean()).backward()
        optimizer.step()
        schedule.step()
    return prior.eval()
