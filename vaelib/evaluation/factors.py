"""Scores of codes by factors: the arguments' rules, resampling, scores by one fixed factor and by information."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.special import entr

from vaelib._checks import check_finite, check_generator, check_int, check_tensor
from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.inputs import metrics_module

__all__ = [
    "beta_vae_score",
    "bootstrapped",
    "checked",
    "factor_vae_score",
    "mig",
    "modularity",
    "modularity_chance",
]

PREDICTORS = "Scores that train a predictor"
_IMAGES = 64  # pairs, or images, for one point that a classifier sees
_POINTS = 200  # of each factor, to learn from, and as many to be asked
_BINS = 20
_NOTHING = 1e-9  # nats that are rounding
_UNUSED = 0.01  # variance of a latent up to which it counts as unused (Burda et al. 2016)


def checked(codes: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in float64 and factors in int64, on the CPU."""
    check_tensor("codes", codes, ("N", "D"))
    check_tensor("factors", factors, (len(codes), "F"), floating=False)
    check_finite("codes", codes)
    if factors.is_floating_point():
        raise TypeError(f"`factors` must be integers, got dtype {factors.dtype}.")
    if codes.shape[1] < 2 or factors.shape[1] < 2:
        raise ValueError(
            f"There must be at least 2 latents and 2 factors, got {codes.shape[1]} and {factors.shape[1]}."
        )
    sizes = [len(column.unique()) for column in factors.unbind(1)]
    if min(sizes) < 2:
        raise ValueError(f"Each of the `factors` must take at least 2 values, got {sizes}.")
    return codes.detach().cpu().double(), factors.cpu().long()


def bootstrapped(
    score: Callable[[Tensor, Tensor], Sequence[float]],
    codes: Tensor,
    factors: Tensor,
    num_resamples: int,
    generator: torch.Generator | None,
) -> list[Estimate]:
    """Scores of all images in a random order; errors from resampling each half of them, which so stay apart."""
    check_generator(generator)
    order = torch.randperm(len(codes), generator=generator)
    codes, factors, half = codes[order], factors[order], len(codes) // 2
    found = score(codes, factors)
    resampled = []
    for _ in range(check_int("num_resamples", num_resamples, 2)):
        drawn = [torch.randint(size, (size,), generator=generator) for size in (half, len(codes) - half)]
        chosen = torch.cat([drawn[0], drawn[1] + half])
        resampled.append(score(codes[chosen], factors[chosen]))
    errors = torch.tensor(resampled, dtype=torch.float64).std(0)
    return [Estimate(float(value), error.item()) for value, error in zip(found, errors, strict=True)]


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
        num_resamples: Resamples for the standard error, >= 2.
        generator: Random generator for pairs and resamples.

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
        classifier = metrics_module("sklearn.linear_model", PREDICTORS).LogisticRegression(max_iter=10_000)
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
        num_resamples: Resamples for the standard error, >= 2.
        generator: Random generator for images and resamples.

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


def mig(
    codes: Tensor, factors: Tensor, *, num_resamples: int = 20, generator: torch.Generator | None = None
) -> Estimate:
    """Mutual information gap: how much more the best latent knows of a factor than the second best, over its entropy.

    The mean over factors. Codes are cut into 20 bins of equal width.

    Args:
        codes: ``(N, D)``, D >= 2.
        factors: Integers ``(N, F)``, F >= 2.
        num_resamples: Resamples for the standard error, >= 2.
        generator: Random generator for the resamples.

    Raises:
        ValueError: If a shape is wrong or a factor is constant.
        TypeError: If ``factors`` are no integers.

    Examples:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(3)).repeat(10, 1)
        >>> round(mig(factors.float(), factors).value, 4)  # each latent is a factor
        1.0

    References:
        Chen et al. (2018), section 4.1, https://arxiv.org/abs/1802.04942
    """

    def score(codes: Tensor, factors: Tensor) -> list[float]:
        information, entropies = _information(codes, factors)
        best, second = information.topk(2, dim=0).values
        return [torch.where(entropies > _NOTHING, (best - second) / entropies, 0.0).mean().item()]

    return bootstrapped(score, *checked(codes, factors), num_resamples, generator)[0]


def modularity(
    codes: Tensor, factors: Tensor, *, num_resamples: int = 20, generator: torch.Generator | None = None
) -> Estimate:
    """Whether each latent tells of one factor only: 1 less the share of squared information about the others.

    The mean over latents; a constant one counts 0. Codes are cut into 20 bins of equal width.

    **Not 0 for codes of noise.** Information estimated from N images is positive where there is none, and by chance
    unlike for the factors, so a latent of pure noise seems to prefer one: on the factors of ``shapes`` noise scores
    0.7. The published definition is kept; compare with :func:`modularity_chance`.

    Args:
        codes: ``(N, D)``, D >= 2.
        factors: Integers ``(N, F)``, F >= 2.
        num_resamples: Resamples for the standard error, >= 2.
        generator: Random generator for the resamples.

    Raises:
        ValueError: If a shape is wrong or a factor is constant.
        TypeError: If ``factors`` are no integers.

    Examples:
        >>> factors = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat(10, 1)
        >>> both = factors.sum(1, keepdim=True)
        >>> round(modularity(torch.cat([factors, both], 1).float(), factors).value, 4)  # the third knows both alike
        0.6667

    References:
        Ridgeway & Mozer (2018), section 2, https://arxiv.org/abs/1802.05312
    """
    return bootstrapped(_modularity, *checked(codes, factors), num_resamples, generator)[0]


def modularity_chance(
    codes: Tensor, factors: Tensor, *, num_permutations: int = 20, generator: torch.Generator | None = None
) -> Estimate:
    """Modularity that chance alone gives these codes: the mean over random pairings of codes and factors.

    Args:
        codes: ``(N, D)``, D >= 2.
        factors: Integers ``(N, F)``, F >= 2.
        num_permutations: >= 2.
        generator: Random generator for the permutations, on the CPU.

    Returns:
        The mean, and the standard deviation of a single pairing.

    Raises:
        ValueError: If a shape is wrong or a factor is constant.
        TypeError: If ``factors`` are no integers.

    Examples:
        >>> factors = torch.stack([torch.randint(2, (500,)), torch.randint(30, (500,))], dim=1)
        >>> noise = torch.randn(500, 4)
        >>> modularity(noise, factors).value > 0.8, modularity_chance(noise, factors).value > 0.8
        (True, True)
    """
    codes, factors = checked(codes, factors)
    scores = [
        _modularity(codes[torch.randperm(len(codes), generator=generator)], factors)[0]
        for _ in range(check_int("num_permutations", num_permutations, 2))
    ]
    found = torch.tensor(scores, dtype=torch.float64)
    return Estimate(found.mean().item(), found.std().item())


def _modularity(codes: Tensor, factors: Tensor) -> list[float]:
    squares = _information(codes, factors)[0].square()
    best = squares.amax(1)
    others = (squares.sum(1) - best) / (best.clamp(min=1e-300) * (factors.shape[1] - 1))
    return [torch.where(best > _NOTHING**2, 1 - others, 0.0).mean().item()]


def _information(codes: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """I(latent; factor), ``(D, F)``, and the entropy of each factor, ``(F,)``, of the images as they are; in nats."""
    low, high = codes.amin(0), codes.amax(0)
    bins = ((codes - low) / (high - low).clamp(min=1e-300) * _BINS).long().clamp(max=_BINS - 1)
    columns, entropies = [], []
    for factor in factors.unbind(1):
        joint = torch.nn.functional.one_hot(factor.unique(return_inverse=True)[1]).double()
        joint = torch.stack([joint.new_zeros(_BINS, joint.shape[1]).index_add(0, b, joint) for b in bins.unbind(1)])
        joint = joint / len(codes)
        entropies.append(entr(joint[0].sum(0)).sum())
        columns.append(entr(joint.sum(2)).sum(1) + entropies[-1] - entr(joint).flatten(1).sum(1))
    return torch.stack(columns, dim=1), torch.stack(entropies)
