"""Scores of disentanglement by what stays alike where one factor is held fixed."""

from __future__ import annotations

import torch
from torch import Tensor

from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.disentanglement.factors import bootstrapped, checked, scikit_learn

__all__ = ["beta_vae_score", "factor_vae_score"]

_IMAGES = 64
"""Pairs, or images, behind one point that a classifier sees."""
_POINTS = 200
"""Of each factor, to learn from, and as many to be asked."""
_UNUSED = 0.01
"""Variance of a latent up to which it counts as unused (Burda et al. 2016)."""


def beta_vae_score(
    codes: Tensor,
    factors: Tensor,
    *,
    num_resamples: int = 20,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Accuracy of a linear classifier that says which factor pairs of images share, from how their codes differ.

    A point is the mean of ``|code - other code|`` over 64 pairs of images that share one factor and differ at random
    in the others. A rotation of the codes costs little up to nearly 45 degrees; chance is 1/F.

    Args:
        codes: ``(N, D)``, D >= 2.
        factors: Integers ``(N, F)``, F >= 2.
        num_resamples: For the standard error, >= 2.
        generator: Of pairs and resamples.

    Raises:
        ValueError: If a shape is wrong or a factor is constant.
        TypeError: If ``factors`` are no integers.
        MissingExtraError: If scikit-learn is not installed.

    Examples:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(3)).repeat(10, 1)
        >>> beta_vae_score(factors.float(), factors, num_resamples=2).value  # each latent is a factor
        1.0

    References:
        Higgins et al. (2017), section 3, https://openreview.net/forum?id=Sy2fzU9gl
    """

    def score(codes: Tensor, factors: Tensor) -> list[float]:
        (learned, names), (asked, right) = (_differences(codes, factors, generator) for _ in range(2))
        classifier = scikit_learn("linear_model").LogisticRegression(max_iter=10_000)
        return [classifier.fit(learned.numpy(), names.numpy()).score(asked.numpy(), right.numpy())]

    return bootstrapped(score, *checked(codes, factors), num_resamples, generator)[0]


def factor_vae_score(
    codes: Tensor,
    factors: Tensor,
    *,
    num_resamples: int = 20,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Accuracy of a majority vote that says which factor images share, from the latent that varies least among them.

    A point is the latent whose variance over 64 images that share one factor is least beside its variance over all.
    Latents whose variance is at most 0.01, unused ones under a standard normal prior, have no vote; scale codes of
    another origin so that the largest variance is 1. Chance is 1/F.

    Args:
        codes: ``(N, D)``, D >= 2.
        factors: Integers ``(N, F)``, F >= 2.
        num_resamples: For the standard error, >= 2.
        generator: Of images and resamples.

    Raises:
        ValueError: If a shape is wrong or a factor is constant.
        TypeError: If ``factors`` are no integers.

    Examples:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(3)).repeat(10, 1)
        >>> factor_vae_score(factors.float(), factors, num_resamples=2).value  # each latent is a factor
        1.0

    References:
        Kim & Mnih (2018), section 4, https://arxiv.org/abs/1802.05983
    """

    def score(codes: Tensor, factors: Tensor) -> list[float]:
        (learned, names), (asked, right) = (_steadiest(codes, factors, generator) for _ in range(2))
        votes = torch.zeros(codes.shape[1], factors.shape[1]).index_put_((learned, names), torch.ones(()), True)
        return [(votes.argmax(1)[asked] == right).double().mean().item()]

    return bootstrapped(score, *checked(codes, factors), num_resamples, generator)[0]


def _differences(codes: Tensor, factors: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Mean absolute differences ``(F * 200, D)`` of pairs alike in one factor, and the factors' indices."""
    points = []
    for factor in factors.unbind(1):
        pairs = _alike(factor, _POINTS * _IMAGES, 2, generator)
        points.append((codes[pairs[:, 0]] - codes[pairs[:, 1]]).abs().unflatten(0, (-1, _IMAGES)).mean(1))
    return torch.cat(points), torch.arange(factors.shape[1]).repeat_interleave(len(points[0]))


def _steadiest(codes: Tensor, factors: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The latent that varies least among images alike in one factor, ``(F * 200,)``, and the factors' indices."""
    variance = codes.var(0)
    points = []
    for factor in factors.unbind(1):
        images = _alike(factor, _POINTS, _IMAGES, generator)
        points.append((codes[images].var(1) / variance).masked_fill(variance <= _UNUSED, torch.inf).argmin(1))
    return torch.cat(points), torch.arange(factors.shape[1]).repeat_interleave(len(points[0]))


def _alike(factor: Tensor, count: int, size: int, generator: torch.Generator | None) -> Tensor:
    """``count`` random groups of ``size`` images each that share the factor's value, as indices ``(count, size)``."""
    values, order = factor.sort()
    value = factor[torch.randint(len(factor), (count, 1), generator=generator)]
    first, last = torch.searchsorted(values, value), torch.searchsorted(values, value, right=True)
    return order[first + (torch.rand(count, size, generator=generator, dtype=torch.float64) * (last - first)).long()]
