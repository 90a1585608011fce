"""log p(x) by importance sampling, with its Monte-Carlo error and bias."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from operator import length_hint
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vaelib._checks import check_bool, check_int
from vaelib._images import Batch, ImageSet
from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.inputs import ImageValues, batches_for, check_model_finite, check_vae, quantity_of
from vaelib.functional import bits_per_dim
from vaelib.objectives.importance import nats_of
from vaelib.vae import VAE, bound, eval_mode

__all__ = [
    "LikelihoodEstimate",
    "draws_of",
    "estimated",
    "log_likelihood",
    "log_likelihoods",
    "note_of",
    "tracked",
    "warn_of_few",
]

_FEW = 50.0
"""Effective draws of the median image below which log p(x) is more than about 0.05 nats too low: the table in
docs/howto/likelihood.md, which ``pytest -m table -s -k the_table_of_effective_draws`` prints."""
_FEWEST = 10.0
"""The same of the 5% of images that have fewest: where images are alike, 50 in the median go with 14 or more here."""
_QUANTILES = (0.05, 0.5, 0.95)


class LikelihoodEstimate(NamedTuple):
    """log p(x) of images under a VAE, or log p(x|c) of one with a condition.

    Three things are wrong with a mean of estimates: which images were drawn (``log_likelihood.standard_error``, which
    contains the second), which latents were (``monte_carlo_error``), and that a logarithm of a mean is too low on
    average (``bias``).
    """

    log_likelihood: Estimate
    """Nats per image; in expectation at most log p(x), and rising with the number of draws. ``-value`` is the NLL. Its
    standard error is that over images: the spread of their estimates, and so of both images and draws."""
    elbo: Estimate
    """Of the same draws, nats per image."""
    bits_per_dim: Estimate
    """-log p(x) in bits per pixel and channel, with log2(256) added for a density; of a density they bound a code
    length only if the images are dequantised, see :func:`vaelib.functional.bits_per_dim`."""
    effective_samples: float
    """(sum w)^2 / sum w^2, between 1 and ``num_samples``: the median over images."""
    per_image: Tensor
    """log p(x) of each image, ``(N,)``."""
    num_samples: int
    num_images: int
    effective_quantiles: tuple[float, float, float]
    """Effective draws that 5%, 50% and 95% of the images are below."""
    per_image_error: Tensor
    """Monte-Carlo standard error of each ``per_image``, ``(N,)``, in nats, by the jackknife over draws; infinite for
    one draw."""
    monte_carlo_error: float
    """Standard error of the mean for other draws and the same images, in nats."""
    bias: float
    """Estimated bias of the mean in nats, <= 0, by the jackknife over draws: ``log_likelihood.value - bias`` is nearer
    the truth. Where effective draws are few it is itself too small in size."""
    note: str = ""
    """What these numbers are not: under a Bernoulli on grey values no log p(x), of a density at 8-bit levels no code
    length. Also that one draw was taken, where all would be the same. Empty if they are what their names say."""
    quantity: str = "log p(x)"
    """What is estimated: ``"log p(x|c)"`` of a model with a condition."""


class OfImages(NamedTuple):
    """Per image, ``(B,)`` in float64."""

    values: Tensor
    elbos: Tensor
    effective: Tensor
    errors: Tensor
    biases: Tensor


def log_likelihood(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    num_samples: int = 1000,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> LikelihoodEstimate:
    """Estimate log p(x) with ``num_samples`` draws from the posterior of each image, exactly so many.

    Of a model with a condition this is log p(x|c) of each image with its own c; :func:`marginal_log_likelihood` is
    log p(x). Where q(z|x) is deterministic, as of codes, all draws are the same: one is taken, and the ELBO returned.

    Args:
        model: A VAE with any prior; ``model.given(condition)`` for one condition of all images.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        num_samples: K draws an image.
        batch_size: Latents that are decoded at a time, over images and draws: the memory's budget.
        generator: Random generator for the draws, on any device.
        progress: Show a bar on standard error.

    Returns:
        A :class:`LikelihoodEstimate` in nats per image. A warning reports that K is too small if the median image has
        fewer than 50 effective draws, or 5% of the images fewer than 10: below, log p(x) was found more than 0.05 nats
        too low where it is known, and +-2 Monte-Carlo errors no longer cover the truth.

    Raises:
        ValueError: If there is no image, the images do not fit the model or its likelihood, or log p(x) of an image is
            not finite.
        TypeError: If ``model`` is no VAE.

    Examples:
        >>> import vaelib as vl
        >>> vae = vl.conv_vae((1, 8, 8), 2)
        >>> result = log_likelihood(vae, torch.rand(10, 1, 8, 8), num_samples=64)
        >>> result.num_samples, result.log_likelihood.value >= result.elbo.value
        (64, True)
        >>> result.per_image_error.shape, result.bias <= 0
        (torch.Size([10]), True)

    References:
        Burda et al. (2016), section 5, https://arxiv.org/abs/1509.00519; Rezende et al. (2014), appendix E,
        https://arxiv.org/abs/1401.4082
    """
    check_vae("model", model)
    return estimated(model, [model], data, num_samples, batch_size, generator, progress, quantity_of(model))


def draws_of(model: Any, num_samples: int) -> int:
    """The draws of z that tell something: one where q(z|x) is deterministic."""
    return num_samples if model.latent.noise_size else 1


def note_of(model: Any, whose: str = "") -> str:
    """What log p(x) by draws of z is of a model that has only one; of any other model nothing."""
    if model.latent.noise_size:
        return ""
    return f"q(z|x){whose} is deterministic: one draw an image, and the estimate is its ELBO, a lower bound."


def tracked(batches: Iterator[Batch], data: Any, at_a_time: int, progress: bool) -> Iterable[Batch]:
    """The batches, with a bar on standard error that counts them."""
    each = at_a_time if isinstance(data, Tensor | ImageSet) else 1
    total = math.ceil(length_hint(data) / each) or None
    return track(batches, "log p(x)", total=total, console=Console(stderr=True), disable=not progress)


def estimated(
    model: Any,
    views: Sequence[Any],
    data: Any,
    num_samples: int,
    batch_size: int,
    generator: torch.Generator | None,
    progress: bool,
    quantity: str,
) -> LikelihoodEstimate:
    """The ``quantity`` of a model from ``views`` of it that weigh alike; warns where draws are too few."""
    check_bool("progress", progress)
    num_samples, batch_size = check_int("num_samples", num_samples), check_int("batch_size", batch_size)
    at_a_time = max(1, batch_size // draws_of(model, num_samples))
    seen = ImageValues(model.likelihood)
    columns: tuple[list[float], ...] = tuple([] for _ in OfImages._fields)  # small tensors would fragment the memory
    for batch in tracked(batches_for(views[0], data, at_a_time, generator), data, at_a_time, progress):
        seen.watch(batch.x)
        by_view = [list(log_likelihoods(view, batch, num_samples, batch_size, generator)) for view in views]
        for few in zip(*by_view, strict=True):
            for column, values in zip(columns, few[0] if len(few) == 1 else _over(few), strict=True):
                column += values.tolist()
    found, note = OfImages(*(torch.tensor(column, dtype=torch.float64) for column in columns)), seen.note
    check_model_finite("model", quantity, found.values)
    if model.latent.noise_size:
        warn_of_few(found.effective, num_samples, quantity, stacklevel=4)
    else:
        num_samples, note = 1, f"{note_of(model)} {note}".rstrip()
    low, median, high = found.effective.quantile(torch.tensor(_QUANTILES, dtype=torch.float64)).tolist()
    levels = 256 if model.likelihood.is_density else None
    return LikelihoodEstimate(
        log_likelihood=Estimate.of(found.values),
        elbo=Estimate.of(found.elbos),
        bits_per_dim=Estimate.of(bits_per_dim(-found.values, model.image_shape, levels=levels)),
        effective_samples=median,
        per_image=found.values,
        num_samples=num_samples,
        num_images=len(found.values),
        effective_quantiles=(low, median, high),
        per_image_error=found.errors,
        monte_carlo_error=found.errors.square().sum().sqrt().item() / len(found.errors),
        bias=found.biases.mean().item(),
        note=note,
        quantity=quantity,
    )


def _over(views: Sequence[OfImages]) -> OfImages:
    """Of each image, from what was found under each view; one weighs as it explains the image."""
    values, elbos, effective, errors, biases = (torch.stack(column) for column in zip(*views, strict=True))
    shares, count = values.softmax(0), math.log(len(values))

    def weighted(of_view: Tensor) -> Tensor:
        return torch.where(shares > 0, shares.square() * of_view, 0.0).sum(0)  # of one draw the error is infinite

    return OfImages(
        values.logsumexp(0) - count,
        elbos.logsumexp(0) - count,
        1 / weighted(1 / effective),
        weighted(errors.square()).sqrt(),
        weighted(biases),
    )


def warn_of_few(effective: Tensor, num_samples: int, name: str, *, stacklevel: int = 3) -> None:
    """Warn if ``effective`` draws, ``(N,)``, are too few for the estimates of ``num_samples`` draws to be trusted."""
    low, median, _ = effective.quantile(torch.tensor(_QUANTILES, dtype=effective.dtype)).tolist()
    if median < _FEW or low < _FEWEST:
        warnings.warn(
            f"`num_samples` {num_samples} is too small: half of the images have fewer than {median:.1f} effective draws"
            f" (want {_FEW:.0f}), 5% fewer than {low:.1f} (want {_FEWEST:.0f}), so {name} is underestimated and its"
            " Monte-Carlo error is too small.",
            stacklevel=stacklevel,
        )


def log_likelihoods(
    model: Any, batch: Batch, num_samples: int, batch_size: int, generator: torch.Generator | None
) -> Iterator[OfImages]:
    """What is estimated of each image, a few at a time, in eval mode without gradients."""
    num_samples = draws_of(model, num_samples)
    size = max(1, batch_size // num_samples)
    with eval_mode(model):
        for start in range(0, len(batch.x), size):
            rows = slice(start, start + size)
            view = bound(model, None if batch.condition is None else batch.condition[rows])
            yield _of_few(view, batch.x[rows], num_samples, batch_size, generator)


def _of_few(model: Any, x: Tensor, num_samples: int, batch_size: int, generator: torch.Generator | None) -> OfImages:
    features, parts = model.observe(x), []  # of log p(x|z) + log p(z) - log q(z|x), ``(draws, B)``
    at_a_time = max(1, batch_size // len(x))
    for start in range(0, num_samples, at_a_time):
        draws = min(at_a_time, num_samples - start)
        reconstruction, kl = nats_of(model, x, model.draw(features, num_samples=draws, generator=generator))
        parts.append(-(reconstruction + kl).view(draws, -1))
    log_weights = torch.cat(parts).double()
    values = log_weights.logsumexp(0) - math.log(num_samples)
    effective = torch.exp(2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0))
    errors, biases = _jackknife(log_weights)
    if model.latent.noise_size == 0:  # another draw would be the same
        errors, biases = torch.zeros_like(values), torch.zeros_like(values)
    return OfImages(values, log_weights.mean(0), effective, errors, biases)


def _jackknife(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Standard error and bias of the logarithm of the mean of K weights ``(K, B)``, from leaving each out.

    Measured where log p(x) is known: the delta method, sd(w) / (mean(w) sqrt(K)), is a third too small at 20 effective
    draws, where this is right.
    """
    count = len(log_weights)
    if count == 1:
        infinite = torch.full_like(log_weights[0], torch.inf)
        return infinite, -infinite
    largest = log_weights.argmax(0, keepdim=True)
    shares = log_weights.softmax(0)
    changes = torch.log1p(-shares.scatter(0, largest, 0.0))
    others = log_weights.scatter(0, largest, -torch.inf).logsumexp(0, keepdim=True)  # 1 - share would be rounded to 0
    changes = changes.scatter(0, largest, others - log_weights.logsumexp(0, keepdim=True))
    changes = changes + math.log(count / (count - 1))  # of the estimate, by leaving each draw out
    mean = changes.mean(0)
    return ((count - 1) / count * (changes - mean).square().sum(0)).sqrt(), (count - 1) * mean
