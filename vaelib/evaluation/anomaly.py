"""Which images a model finds strange, and how well that tells one set from another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import check_finite, check_one_device, check_tensor
from vaelib._images import ImageSet, opened
from vaelib.evaluation.bound import Estimate, per_image_terms
from vaelib.evaluation.inputs import ImageValues, batches_for, check_model_finite, check_vae, wanted_by
from vaelib.objectives import Elbo
from vaelib.vae import VAE

__all__ = ["AnomalyReport", "AnomalyScores", "anomaly", "anomaly_scores", "auroc"]


class AnomalyScores(NamedTuple):
    """Scores of images, ``(N,)`` in nats on the CPU, one draw of z each; higher is stranger."""

    negative_elbo: Tensor
    """An upper bound of -log p(x), in expectation."""
    reconstruction: Tensor
    """-log p(x|z)."""
    likelihood_ratio: Tensor | None
    """How much better the background model explains the image: its ELBO less the model's. None without one."""


class AnomalyReport(NamedTuple):
    """AUROC of each score: the chance that an anomalous image scores above a normal one; 0.5 tells nothing."""

    negative_elbo: Estimate
    reconstruction: Estimate
    likelihood_ratio: Estimate | None
    """None without a background model."""
    num_normal: int
    num_anomalous: int


def anomaly_scores(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    background: VAE | None = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> AnomalyScores:
    """Score images by how badly ``model`` explains them.

    The likelihood of an image is high where its pixels are simple, whatever it shows. A background model, a second VAE
    trained on the same images with a share of their pixels replaced by random ones, knows of pixels only; what the
    model explains no better than it does is foreign.

    Args:
        model: A VAE trained on normal images.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        background: A VAE for images of the same shape, with the same likelihood; None for no likelihood ratio.
        batch_size: Images per batch, unless ``data`` comes in batches.
        generator: Random generator for the draws of z, on any device.

    Returns:
        :class:`AnomalyScores`.

    Raises:
        ValueError: If there is no image, the images do not fit the models or their likelihood, or a score is not
            finite.
        TypeError: If a model is no VAE.

    Examples:
        >>> import vaelib as vl
        >>> scores = anomaly_scores(vl.conv_vae((1, 8, 8), 2), torch.rand(10, 1, 8, 8))
        >>> scores.negative_elbo.shape, scores.likelihood_ratio
        (torch.Size([10]), None)

    References:
        Likelihood ratio: Ren et al. (2019), https://arxiv.org/abs/1906.02845; that likelihoods alone mislead: Nalisnick
        et al. (2019), https://arxiv.org/abs/1810.09136
    """
    models = {"model": model} if background is None else {"model": model, "background": background}
    for name, part in models.items():
        check_vae(name, part)
        if type(part.likelihood) is not type(model.likelihood):
            raise ValueError(
                f"`background` must have the model's likelihood, {type(model.likelihood).__name__},"
                f" got {type(part.likelihood).__name__}."
            )
    batches = batches_for(model, data, batch_size, generator, condition=wanted_by(*models.values()))
    columns = []
    for batch in ImageValues(model.likelihood).watched(batches):
        terms = [per_image_terms(part, [batch], Elbo(), generator=generator) for part in models.values()]
        columns.append((terms[0].reconstruction, *(found.reconstruction + found.kl for found in terms)))
    reconstruction, negative_elbo, *rest = (torch.cat(column) for column in zip(*columns, strict=True))
    for name, scores in zip(models, (negative_elbo, *rest), strict=True):
        check_model_finite(name, "the ELBO", scores)
    return AnomalyScores(negative_elbo, reconstruction, negative_elbo - rest[0] if rest else None)


def anomaly(
    model: VAE,
    normal: Tensor | ImageSet | Iterable[Any],
    anomalous: Tensor | ImageSet | Iterable[Any],
    *,
    background: VAE | None = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> AnomalyReport:
    """How well each of :func:`anomaly_scores` tells one set of images from another.

    Args:
        model: A VAE trained on images like ``normal``, but not on these.
        normal: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        anomalous: Images of another kind, of the same shape.
        background: See :func:`anomaly_scores`.
        batch_size: Images per batch, unless they come in batches.
        generator: Random generator for the draws of z, on any device.

    Returns:
        An :class:`AnomalyReport`.

    Raises:
        ValueError: If there are fewer than two images in a set, or they do not fit the models.
        TypeError: If a model is no VAE.

    Examples:
        >>> import vaelib as vl
        >>> images = torch.rand(10, 1, 8, 8)
        >>> report = anomaly(vl.conv_vae((1, 8, 8), 2), images, images)
        >>> report.num_normal, 0 <= report.negative_elbo.value <= 1
        (10, True)
    """
    sets = opened("normal", normal), opened("anomalous", anomalous)
    inside, outside = (
        anomaly_scores(model, data, background=background, batch_size=batch_size, generator=generator) for data in sets
    )
    ratios = inside.likelihood_ratio, outside.likelihood_ratio
    return AnomalyReport(
        negative_elbo=auroc(inside.negative_elbo, outside.negative_elbo),
        reconstruction=auroc(inside.reconstruction, outside.reconstruction),
        likelihood_ratio=None if ratios[0] is None or ratios[1] is None else auroc(ratios[0], ratios[1]),
        num_normal=len(inside.negative_elbo),
        num_anomalous=len(outside.negative_elbo),
    )


def auroc(normal: Tensor, anomalous: Tensor) -> Estimate:
    """Area under the ROC curve: the chance that an anomalous score is above a normal one, ties counted half.

    The standard error is DeLong's.

    Args:
        normal: Scores ``(N,)``, N >= 2; higher is stranger.
        anomalous: Scores ``(M,)``, M >= 2.

    Raises:
        ValueError: If a shape is wrong, a score is not finite, or there are fewer than two.

    Examples:
        >>> auroc(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 5.0])).value  # (1.5 + 3) of 6 pairs
        0.75

    References:
        DeLong et al. (1988), https://doi.org/10.2307/2531595
    """
    for name, scores in (("normal", normal), ("anomalous", anomalous)):
        check_tensor(name, scores, ("N",), floating=False)
        check_finite(name, scores)
        if len(scores) < 2:
            raise ValueError(f"`{name}` must hold at least 2 scores, got {len(scores)}.")
    check_one_device(normal=normal, anomalous=anomalous)
    normal, anomalous = normal.double(), anomalous.double()
    above, below = _share_below(anomalous, normal), 1 - _share_below(normal, anomalous)
    return Estimate(above.mean().item(), math.sqrt(above.var() / len(above) + below.var() / len(below)))


def _share_below(scores: Tensor, others: Tensor) -> Tensor:
    """Of each score, the share of ``others`` below it, ties counted half."""
    ordered = others.sort().values
    ranks = torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True)
    return ranks.double() / (2 * len(others))
