"""Whether each latent stands for one factor of the images, and each factor has one latent.

Six published scores of codes ``(N, D)`` and the factors ``(N, F)`` that made the images. They agree on what is
best, 1, and on little else (Locatello et al. 2019, https://arxiv.org/abs/1811.12359). The standard error of each is the
standard deviation over bootstrap resamples of the images. Those without training are in ``factors.py``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelib._checks import check_int_tuple, check_tensor
from vaelib._images import ImageSet
from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.codes import embed
from vaelib.evaluation.factors import (
    PREDICTORS,
    beta_vae_score,
    bootstrapped,
    checked,
    factor_vae_score,
    mig,
    modularity,
    modularity_chance,
)
from vaelib.evaluation.inputs import metrics_module
from vaelib.vae import VAE

__all__ = ["DciScores", "DisentanglementReport", "dci", "disentanglement", "sap"]


class DisentanglementReport(NamedTuple):
    """All scores; 1 is best."""

    mig: Estimate
    sap: Estimate
    disentanglement: Estimate
    """DCI's first: one factor a latent."""
    completeness: Estimate
    """DCI's second: one latent a factor."""
    informativeness: Estimate
    """DCI's third: how well the factors can be predicted from the codes."""
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
        batch_size: Images per batch, unless ``data`` comes in batches.
        num_resamples: Resamples for the standard error, >= 2.
        generator: Random generator for splits and resamples, on the CPU.

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


class DciScores(NamedTuple):
    """Three scores of the importance of each latent for each factor; 1 is best."""

    disentanglement: Estimate
    """One factor a latent: 1 less the entropy of its importances, over latents by their share of all importance."""
    completeness: Estimate
    """One latent a factor: 1 less the entropy of its importances, the mean over factors."""
    informativeness: Estimate
    """How well the factors are predicted: R^2, at least 0, or the accuracy of a categorical one; the mean."""


def sap(
    codes: Tensor,
    factors: Tensor,
    *,
    categorical: Collection[int] = (),
    num_resamples: int = 20,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Separated attribute predictability: how much better the best latent alone predicts a factor than the second best.

    The mean over factors. An ordered factor is predicted linearly and scored by R^2, a categorical one of V values by
    at most V - 1 thresholds and scored by balanced accuracy: a gap of at most 1 - 1/V.

    Args:
        codes: ``(N, D)``, D >= 2.
        factors: Integers ``(N, F)``, F >= 2.
        categorical: Indices of factors whose values have no order.
        num_resamples: Resamples for the standard error, >= 2.
        generator: Random generator for the resamples.

    Raises:
        ValueError: If a shape is wrong, a factor is constant, or an index is out of range.
        TypeError: If ``factors`` are no integers.
        MissingExtraError: If scikit-learn is not installed.

    Examples:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(3)).repeat(10, 1)
        >>> round(sap(factors.float(), factors).value, 4)  # each latent is a factor
        1.0

    References:
        Kumar et al. (2018), section 3, https://arxiv.org/abs/1711.00848
    """
    kinds = _kinds(factors, categorical)

    def score(codes: Tensor, factors: Tensor) -> list[float]:
        columns = [
            _balanced_accuracies(codes, factor) if is_class else _r_squared(codes, factor)
            for factor, is_class in zip(factors.unbind(1), kinds, strict=True)
        ]
        best, second = torch.stack(columns, dim=1).topk(2, dim=0).values
        return [(best - second).mean().item()]

    return bootstrapped(score, *checked(codes, factors), num_resamples, generator)[0]


def dci(
    codes: Tensor,
    factors: Tensor,
    *,
    categorical: Collection[int] = (),
    num_resamples: int = 20,
    generator: torch.Generator | None = None,
) -> DciScores:
    """Disentanglement, completeness and informativeness, by gradient-boosted trees.

    One half of the images trains the trees, the other is predicted.

    Args:
        codes: ``(N, D)``, D >= 2.
        factors: Integers ``(N, F)``, F >= 2.
        categorical: Indices of factors whose values have no order.
        num_resamples: Resamples for the standard error, >= 2.
        generator: Random generator for the halves and resamples.

    Returns:
        :class:`DciScores`.

    Raises:
        ValueError: If a shape is wrong, a factor is constant, or an index is out of range.
        TypeError: If ``factors`` are no integers.
        MissingExtraError: If scikit-learn is not installed.

    Examples:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(3)).repeat(10, 1)
        >>> scores = dci(factors.float(), factors, num_resamples=2)  # each latent is a factor
        >>> [round(score.value, 2) for score in scores]
        [1.0, 1.0, 1.0]

    References:
        Eastwood & Williams (2018), section 2, https://openreview.net/forum?id=By-7dz-AZ
    """
    kinds = _kinds(factors, categorical)

    def score(codes: Tensor, factors: Tensor) -> list[float]:
        found = [_boosted(codes, factor, is_class) for factor, is_class in zip(factors.unbind(1), kinds, strict=True)]
        importances, informativeness = zip(*found, strict=True)
        return [*_concentration(torch.stack(importances, dim=1)), sum(informativeness) / len(informativeness)]

    return DciScores(*bootstrapped(score, *checked(codes, factors), num_resamples, generator))


def _concentration(importances: Tensor) -> tuple[float, float]:
    """Disentanglement and completeness of importances ``(D, F)``."""
    shares = importances + 1e-12  # of a row of zeros the entropy is the largest
    entropy = torch.special.entr(shares / shares.sum(1, keepdim=True)).sum(1)
    of_latents = 1 - entropy / math.log(importances.shape[1])
    of_factors = 1 - torch.special.entr(shares / shares.sum(0)).sum(0) / math.log(importances.shape[0])
    weights = importances.sum(1) / importances.sum().clamp(min=1e-300)
    return (weights * of_latents).sum().item(), of_factors.mean().item()


def _boosted(codes: Tensor, factor: Tensor, is_class: bool) -> tuple[Tensor, float]:
    """The importance of each latent, ``(D,)``, and how well the second half is predicted by the first."""
    ensemble = metrics_module("sklearn.ensemble", PREDICTORS)
    kind = ensemble.GradientBoostingClassifier if is_class else ensemble.GradientBoostingRegressor
    (learned, asked), (known, right) = (values.tensor_split([len(codes) // 2]) for values in (codes, factor))
    if is_class and len(known.unique()) == 1:  # of a rare value, a half or a resample may hold none
        return codes.new_zeros(codes.shape[1]), (right == known[0]).double().mean().item()
    trees = kind(random_state=0).fit(learned.numpy(), known.numpy())
    return torch.from_numpy(trees.feature_importances_), max(0.0, trees.score(asked.numpy(), right.numpy()))


def _r_squared(codes: Tensor, factor: Tensor) -> Tensor:
    """Squared correlation of each latent with an ordered factor, ``(D,)``; a constant has none."""
    x, y = codes - codes.mean(0), factor.double() - factor.double().mean()
    scale = x.square().sum(0) * y.square().sum()
    return (x.T @ y).square() / scale.clamp(min=1e-300)


def _balanced_accuracies(codes: Tensor, factor: Tensor) -> Tensor:
    """Of a categorical factor told by thresholds on each latent, ``(D,)``."""
    tree = metrics_module("sklearn.tree", PREDICTORS).DecisionTreeClassifier(
        max_leaf_nodes=max(2, len(factor.unique())), class_weight="balanced", random_state=0
    )
    found = []
    for column in codes.T[..., None]:
        guesses = torch.from_numpy(tree.fit(column.numpy(), factor.numpy()).predict(column.numpy()))
        right = [(guesses[factor == value] == value).double().mean() for value in factor.unique()]
        found.append(torch.stack(right).mean())
    return torch.stack(found)


def _kinds(factors: Tensor, categorical: Collection[int]) -> list[bool]:
    """Whether each factor is categorical."""
    check_tensor("factors", factors, floating=False)
    count = factors.shape[-1] if factors.ndim else 0
    given = tuple(categorical) if isinstance(categorical, Set) else categorical
    indices = check_int_tuple("categorical", given, minimum=0)
    if not set(indices) <= set(range(count)):
        raise ValueError(f"`categorical` must be indices of the {count} factors, got {sorted(indices)}.")
    return [index in indices for index in range(count)]
