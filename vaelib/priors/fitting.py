"""A prior fitted after training: the sampler of a model that was trained with another, or with none."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vaelib._checks import (
    DataError,
    check_batch,
    check_bool,
    check_codes,
    check_finite,
    check_float,
    check_generator,
    check_int,
    check_module,
    check_shape,
)
from vaelib.priors.codes import CodePrior

__all__ = ["fit_prior"]

P = TypeVar("P", bound=Any)


def fit_prior(
    prior: P,
    z: Tensor,
    *,
    embedding: Tensor | None = None,
    num_steps: int = 2000,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> P:
    """Fit a prior to latents or codes by maximum likelihood, after the model was trained with another or with none.

    ``vae.prior = fit_prior(vl.FlowPrior((32,)), z)`` with draws of the posteriors of training images; for an
    :class:`AutoEncoder`, decode ``prior.sample(...)``. Of a quantised latent,
    ``vae.prior = fit_prior(vl.AutoregressiveCodes(512, 49), codes)``: its rate then is that of the fitted prior.

    Args:
        prior: Any with weights, such as :class:`MixtureOfGaussians` (begin with its ``start_from``),
            :class:`FlowPrior` or :class:`AutoregressiveCodes`; fitted in place.
        z: Latents ``(N, *latent_shape)``, or codes, int64 ``(N, num_positions)``, on the prior's device.
        embedding: Embedding of each row, ``(N, E)``, for a prior with a condition: ``vae.condition.embed(labels)``.
            Nothing is dropped here: for ``vae.given(None).sample`` give rows of ``vae.condition.embed(None)`` too, with
            latents of ``vae.given(None)``.
        num_steps: Steps of Adam, whose learning rate falls to zero along half a cosine.
        batch_size: Latents in a step, drawn with replacement; 512, or of codes 64 images, if None.
        learning_rate: At the start; 5e-3, or the prior's own ``learning_rate`` if it has one, if None.
        generator: Random generator for the batches, on the CPU.
        progress: Show a bar on standard error.

    Returns:
        The same prior, in eval mode.

    Raises:
        ValueError: If there is no latent, one is not finite or no code of the prior, an argument is out of its range,
            the prior has no weights, or it has a condition and there is no embedding.

    Examples:
        >>> import vaelib as vl
        >>> z = 3 + 0.5 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> prior = fit_prior(vl.LearnedGaussian((2,)), z, num_steps=300, learning_rate=0.05, progress=False)
        >>> bool((prior.mu - 3).abs().max() < 0.2)
        True

    References:
        Ghosh et al. (2020), From variational to deterministic autoencoders, section 4,
        https://arxiv.org/abs/1903.12436; of codes: van den Oord et al. (2017), https://arxiv.org/abs/1711.00937
    """
    check_module("prior", prior, "log_prob")
    z = _checked_latents(prior, z)
    embedding = _checked_embedding(prior, embedding, len(z))
    check_generator(generator)
    check_int("num_steps", num_steps)
    of_codes = isinstance(prior, CodePrior)
    size = check_int("batch_size", (64 if of_codes else 512) if batch_size is None else batch_size)
    rate = getattr(prior, "learning_rate", 5e-3) if learning_rate is None else learning_rate
    check_float("learning_rate", rate, 0.0, above=True)
    check_bool("progress", progress)
    if not list(prior.parameters()):
        raise ValueError(f"`prior` must have weights to fit, {type(prior).__name__} has none.")
    optimizer = torch.optim.Adam(prior.train().parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    steps = track(range(num_steps), "fit_prior", console=Console(stderr=True), disable=not progress)
    for _ in steps:
        chosen = torch.randint(len(z), (size,), generator=generator).to(z.device, non_blocking=True)
        view = prior if embedding is None else prior.given(embedding[chosen])
        optimizer.zero_grad()
        (-view.log_prob(z[chosen]).mean()).backward()
        optimizer.step()
        schedule.step()
    return prior.eval()


def _checked_latents(prior: Any, z: Tensor) -> Tensor:
    if isinstance(prior, CodePrior):
        check_codes("z", z, prior.num_codes, prior.num_positions, always=True)
    else:
        check_batch("z", z)
        check_finite("z", z.detach())
    if len(z) == 0:
        raise DataError("`z` must hold at least one latent, got none.")
    return z.detach()


def _checked_embedding(prior: Any, embedding: Tensor | None, rows: int) -> Tensor | None:
    """The embedding without a graph; an error unless it is there for a prior with a condition, and for no other."""
    size = getattr(prior, "condition_size", "E" if hasattr(prior, "given") else 0)
    if embedding is None:
        if size:
            raise ValueError(f"`embedding` must be given: {type(prior).__name__} has a condition of {size} numbers.")
        return None
    if not size:
        raise ValueError(f"`embedding` must be None: {type(prior).__name__} has no condition.")
    check_batch("embedding", embedding)
    check_shape("embedding", embedding.shape, (rows, size))
    check_finite("embedding", embedding.detach())
    return embedding.detach()
