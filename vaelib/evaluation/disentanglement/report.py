"""Whether each latent stands for one factor of the pictures, and each factor has one latent.

Six published scores of codes ``(N, D)`` beside the factors ``(N, F)`` that made the pictures. They agree on what is
best, 1, and on little else (Locatello et al. 2019, https://arxiv.org/abs/1811.12359). The standard error of each is the
standard deviation over bootstrap resamples of the images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import check_int
from vaelib._images import ImageSet
from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.codes import embed
from vaelib.evaluation.disentanglement.factors import bootstrapped, checked
from vaelib.evaluation.disentanglement.interventions import beta_vae_score, factor_vae_score
from vaelib.evaluation.disentanglement.predictors import dci, sap
from vaelib.vae import VAE

__all__ = ["DisentanglementReport", "disentanglement", "mig", "modularity", "modularity_chance"]

_BINS = 20
_NOTHING = 1e-9
"""Nats that are rounding."""


class DisentanglementReport(NamedTuple):
    """All scores; 1 is best."""

    mig: Estimate
    sap: Estimate
    disentanglement: Estimate
    """DCI's first: one factor a latent."""
    completeness: Estimate
    """DCI's second: one latent a factor."""
    informativeness: Estimate
    """DCI's third: how well the factors can be told from the codes."""
    beta_vae: Estimate
    factor_vae: Estimate
    modularity: Estimate
    """Not 0 for codes of pure noise; see ``modularity_chance``."""
    modularity_chance: Estimate
    """Modularity of the same codes, paired with the factors at random: what says nothing scores so much."""
    num_images: int


def disentanglement(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    factors: Tensor,
    *,
    categorical: Collection[int] = (),
    batch_size: int = 256,
    num_resamples: int = 20,
    generator: torch.Generator | None = None,
) -> DisentanglementReport:
    """Every score of a model's codes, the posterior means.

    Args:
        model: A VAE or an autoencoder; a latent map is flattened.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        factors: Integers ``(N, F)`` in the images' order, as ``dataset.factors`` of the set ``shapes``.
        categorical: Indices of factors whose values have no order; of ``shapes``, ``[0]``.
        batch_size: Of the encoder.
        num_resamples: For the standard error, >= 2.
        generator: Of splits and resamples, on the CPU.

    Returns:
        A :class:`DisentanglementReport`.

    Raises:
        ValueError: If there are fewer than two latents or factors, a factor is constant, or numbers of images differ.
        TypeError: If ``model`` is neither, or ``factors`` are no integers.
        MissingExtraError: If scikit-learn is not installed.

    Examples:
        >>> import vaelib as vl
        >>> vae, data = vl.conv_vae((1, 8, 8), 2), vl.data.shapes(60, image_size=8)
        >>> report = disentanglement(vae, data, data.factors, categorical=[0], num_resamples=2)
        >>> 0 <= report.mig.value <= 1, report.num_images
        (True, 60)
    """
    codes = embed(model, data, batch_size=batch_size).flatten(1)
    if not model.latent.has_prior:  # the scale of its codes is free
        codes = codes / codes.var(0).max().sqrt().clamp(min=1e-30)
    options: dict[str, Any] = {"num_resamples": num_resamples, "generator": generator}
    return DisentanglementReport(
        mig(codes, factors, **options),
        sap(codes, factors, categorical=categorical, **options),
        *dci(codes, factors, categorical=categorical, **options),
        beta_vae_score(codes, factors, **options),
        factor_vae_score(codes, factors, **options),
        modularity(codes, factors, **options),
        modularity_chance(codes, factors, generator=generator),
        num_images=len(codes),
    )


def mig(
    codes: Tensor, factors: Tensor, *, num_resamples: int = 20, generator: torch.Generator | None = None
) -> Estimate:
    """Mutual information gap: how much more the best latent knows of a factor than the second best, over its entropy.

    The mean over factors. Codes are cut into 20 bins of equal width.

    Args:
        codes: ``(N, D)``, D >= 2.
        factors: Integers ``(N, F)``, F >= 2.
        num_resamples: For the standard error, >= 2.
        generator: Of the resamples.

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
    return bootstrapped(_mig, *checked(codes, factors), num_resamples, generator)[0]


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
        num_resamples: For the standard error, >= 2.
        generator: Of the resamples.

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
        generator: Of the permutations, on the CPU.

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


def _mig(codes: Tensor, factors: Tensor) -> list[float]:
    information, entropies = _information(codes, factors)
    best, second = information.topk(2, dim=0).values
    return [torch.where(entropies > _NOTHING, (best - second) / entropies, 0.0).mean().item()]


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
        entropies.append(_entropy(joint[0].sum(0)))
        columns.append(_entropy(joint.sum(2)) + entropies[-1] - _entropy(joint.flatten(1)))
    return torch.stack(columns, dim=1), torch.stack(entropies)


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities).sum(-1)
