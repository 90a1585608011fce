"""Comparing models: paired differences on the same images, and log p(x) of a model with labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import check_int
from vaelib._images import Batch, ImageSet
from vaelib.conditions import Labels
from vaelib.evaluation.bound import Estimate, per_image_terms
from vaelib.evaluation.inputs import (
    ImageValues,
    batches_for,
    check_model_finite,
    check_vae,
    device_of,
    quantity_of,
    wanted_by,
)
from vaelib.evaluation.likelihood import (
    LikelihoodEstimate,
    draws_of,
    estimated,
    log_likelihoods,
    note_of,
    tracked,
    warn_of_few,
)
from vaelib.objectives import Elbo
from vaelib.vae import VAE

__all__ = ["Comparison", "check_pair", "compare", "marginal_log_likelihood"]


class Comparison(NamedTuple):
    """Two models on the same images: log p(x), or the ELBO, in nats per image.

    Of a model with a condition it is log p(x|c): what it gains over one without contains what the condition tells, at
    most the entropy of the condition, ln 10 for ten classes; see :func:`marginal_log_likelihood`.
    """

    first: Estimate
    second: Estimate
    difference: Estimate
    """First less second, above 0 where the first is better. Its standard error is that of the mean of the differences
    per image, far smaller than those of the two means, because an image that is hard for one model is hard for both."""
    monte_carlo_error: float | None
    """Part of the difference's standard error that is due to the draws of z; None for ELBOs."""
    per_image: Tensor
    """Difference of each image, ``(N,)``."""
    num_samples: int | None
    """Draws of an image; None where ELBOs are compared."""
    num_images: int
    note: str = ""
    """What these numbers are not; see :class:`LikelihoodEstimate`."""
    quantities: tuple[str, str] = ("log p(x)", "log p(x)")
    """What is bounded or estimated of the first and of the second: ``"log p(x|c)"`` of a model with a condition."""


def compare(
    first: VAE,
    second: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    num_samples: int | None = None,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare log p(x), or the ELBO, of two models image by image.

    Both models see the same batches, also of a set that binarises at random and of a loader that shuffles.

    Args:
        first: A VAE.
        second: A VAE for images of the same shape; both likelihoods are densities, or both probabilities.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        num_samples: K draws an image for log p(x), as :func:`log_likelihood`; None for ELBOs with one draw.
        batch_size: Latents that are decoded at a time.
        generator: Random generator for the draws, on any device.
        progress: Show a bar on standard error.

    Returns:
        A :class:`Comparison` in nats per image.

    Raises:
        ValueError: If there is no image, the models do not fit the images or each other, or a number is not finite.
        TypeError: If a model is no VAE.

    Examples:
        >>> import vaelib as vl
        >>> first, second = (vl.conv_vae((1, 8, 8), latent_dim) for latent_dim in (2, 4))
        >>> result = compare(first, second, torch.rand(10, 1, 8, 8).round(), num_samples=64, progress=False)
        >>> abs(result.first.value - result.second.value - result.difference.value) < 1e-9, result.num_images
        (True, 10)
    """
    check_pair(first, second)
    check_int("batch_size", batch_size)
    draws = 1 if num_samples is None else check_int("num_samples", num_samples)
    at_a_time = max(1, batch_size // max(draws_of(model, draws) for model in (first, second)))
    seen = [ImageValues(model.likelihood) for model in (first, second)]
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    batches = batches_for(first, data, at_a_time, generator, condition=wanted_by(first, second))
    for batch in tracked(batches, data, at_a_time, progress):
        for model, values, columns in zip((first, second), seen, found, strict=True):
            values.watch(batch.x)
            columns.append(_of_batch(model, batch.to(device_of(model)), num_samples, batch_size, generator))
    both, models = [torch.cat(columns, dim=1) for columns in found], {"first": first, "second": second}
    for name, (values_of, effective, _) in zip(("first", "second"), both, strict=True):
        check_model_finite(name, "log p(x)" if num_samples else "the ELBO", values_of)
        if num_samples is not None and models[name].latent.noise_size:
            warn_of_few(effective, num_samples, f"log p(x) of `{name}`")
    notes = [note_of(model, f" of `{name}`") for name, model in models.items() if num_samples is not None]
    differences = both[0][0] - both[1][0]
    errors = torch.stack([errors for _, _, errors in both])
    return Comparison(
        first=Estimate.of(both[0][0]),
        second=Estimate.of(both[1][0]),
        difference=Estimate.of(differences),
        monte_carlo_error=None if num_samples is None else errors.square().sum().sqrt().item() / len(differences),
        per_image=differences,
        num_samples=num_samples,
        num_images=len(differences),
        note=" ".join(filter(None, [*notes, seen[0].note or seen[1].note])),
        quantities=(quantity_of(first), quantity_of(second)),
    )


def check_pair(first: VAE, second: VAE) -> None:
    """Raise unless both are VAEs for images of one shape, with likelihoods whose nats can be compared."""
    for name, model in (("first", first), ("second", second)):
        check_vae(name, model)
    if first.image_shape != second.image_shape:
        raise ValueError(
            f"`second` must have the image shape of `first`, {first.image_shape}, got {second.image_shape}."
        )
    if first.likelihood.is_density != second.likelihood.is_density:
        kinds = [type(model.likelihood).__name__ for model in (first, second)]
        raise ValueError(
            f"`first` and `second` must both have a density for a likelihood, or both a probability, got {kinds[0]} and"
            f" {kinds[1]}: their nats cannot be compared."
        )


def _of_batch(
    model: VAE, batch: Batch, num_samples: int | None, batch_size: int, generator: torch.Generator | None
) -> Tensor:
    """Log p(x) or the ELBO, the effective draws and the Monte-Carlo error of each image, ``(3, B)`` on the CPU."""
    if num_samples is None:
        terms = per_image_terms(model, [batch], Elbo(), generator=generator)
        values = -(terms.reconstruction + terms.kl).double()
        return torch.stack([values, torch.ones_like(values), torch.full_like(values, torch.inf)])
    parts = [
        torch.stack([few.values, few.effective, few.errors])
        for few in log_likelihoods(model, batch, num_samples, batch_size, generator)
    ]
    return torch.cat(parts, dim=1).cpu()


def marginal_log_likelihood(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    num_samples: int = 1000,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> LikelihoodEstimate:
    r"""Log p(x) of a VAE with :class:`Labels`, each class with the same probability; labels of ``data`` do not count.

    .. math:: \log p(x) = \log \frac{1}{C} \sum_c p(x \mid c)

    So a model with labels and one without can be compared. Costs C times what :func:`log_likelihood` does.

    Args:
        model: A VAE with labels.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        num_samples: K draws an image and class.
        batch_size: Latents that are decoded at a time, over images and draws: the memory's budget.
        generator: Random generator for the draws, on any device.
        progress: Show a bar on standard error.

    Returns:
        A :class:`LikelihoodEstimate` in nats per image, with ``quantity`` log p(x); its effective draws are of all K C.

    Raises:
        ValueError: If there is no image, the images do not fit the model or its likelihood, or log p(x) of an image is
            not finite.
        TypeError: If ``model`` is no VAE with labels.

    Examples:
        >>> import vaelib as vl
        >>> vae = vl.conv_vae((1, 8, 8), 2, condition=vl.Labels(3))
        >>> result = marginal_log_likelihood(vae, torch.rand(10, 1, 8, 8).round(), num_samples=64, progress=False)
        >>> result.quantity, result.num_images
        ('log p(x)', 10)

    References:
        As for :func:`log_likelihood`.
    """
    check_vae("model", model)
    if not (isinstance(model, VAE) and isinstance(model.condition, Labels)):
        raise TypeError(
            f"`model` must be a VAE with `condition=vl.Labels(...)`, none bound, got {type(model).__name__}."
        )
    views = [model.given(label) for label in range(model.condition.num_classes)]
    return estimated(model, views, data, num_samples, batch_size, generator, progress, "log p(x)")
