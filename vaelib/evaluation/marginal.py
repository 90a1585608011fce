"""log p(x) of a model with labels: the mean of p(x|c) over the classes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vaelib._checks import check_bool, check_int
from vaelib._images import ImageSet
from vaelib.conditions import Labels
from vaelib.evaluation.inputs import batches_for, check_vae
from vaelib.evaluation.likelihood import LikelihoodEstimate, OfImages, draws_of, estimate, log_likelihoods, tracked
from vaelib.evaluation.values import ImageValues
from vaelib.vae import VAE

__all__ = ["marginal_log_likelihood"]


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
        generator: Of the draws; of any device.
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
    check_bool("progress", progress)
    num_samples, batch_size = check_int("num_samples", num_samples), check_int("batch_size", batch_size)
    views = [model.given(label) for label in range(model.condition.num_classes)]
    at_a_time = max(1, batch_size // draws_of(model, num_samples))
    seen, found = ImageValues(model.likelihood), []
    for batch in tracked(batches_for(views[0], data, at_a_time, generator), data, at_a_time, progress):
        seen.watch(batch.x)
        by_class = [list(log_likelihoods(view, batch, num_samples, batch_size, generator)) for view in views]
        found.append(_over_classes([torch.cat(column) for column in zip(*parts, strict=True)] for parts in by_class))
    columns = (torch.cat(column).cpu() for column in zip(*found, strict=True))
    return estimate(model, OfImages(*columns), num_samples, seen.note, "log p(x)")


def _over_classes(by_class: Iterable[list[Tensor]]) -> OfImages:
    """Of each image, from what was found under each class; a class weighs as it explains the image."""
    values, elbos, effective, errors, biases = (torch.stack(column) for column in zip(*by_class, strict=True))
    shares = values.softmax(0)

    def weighted(of_class: Tensor) -> Tensor:
        return torch.where(shares > 0, shares.square() * of_class, 0.0).sum(0)  # of one draw the error is infinite

    count = math.log(len(values))
    return OfImages(
        values.logsumexp(0) - count,
        elbos.logsumexp(0) - count,
        1 / weighted(1 / effective),
        weighted(errors.square()).sqrt(),
        weighted(biases),
    )
