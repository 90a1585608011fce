"""How close two sets of images are, in the features that some network sees.

Numbers of different networks, or of sets of different sizes, can't be compared: name both beside every result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaelib._checks import check_callable, check_finite, check_int, check_one_device, check_tensor
from vaelib._images import ImageSet, opened
from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.inputs import batches_for
from vaelib.vae import eval_mode

__all__ = ["Fidelity", "PrecisionRecall", "features_of", "fid", "fidelity", "kid", "precision_recall"]

Extractor = Callable[[Tensor], Tensor]

_distances = functools.partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
_GROUPS = 20
_HALVES = 40
_ROWS = 1024


class PrecisionRecall(NamedTuple):
    """Improved precision and recall, in [0, 1]."""

    precision: Estimate
    """Share of the generated images that lie among the real ones: quality."""
    recall: Estimate
    """Share of the real images that lie among the generated ones: coverage."""


class Fidelity(NamedTuple):
    """Generated images against real ones."""

    fid: Estimate
    """Frechet distance; 0 is best, and few images raise it."""
    kid: Estimate
    """Kernel distance, unbiased: around 0, or below, where the sets are alike."""
    precision: Estimate
    """Share of the generated images that lie among the real ones: quality."""
    recall: Estimate
    """Share of the real images that lie among the generated ones: coverage."""
    num_real: int
    num_generated: int


def fidelity(
    extractor: Extractor,
    real: Tensor | ImageSet | Iterable[Any],
    generated: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
) -> Fidelity:
    """Set generated images beside real ones by FID, KID, precision and recall.

    Args:
        extractor: Maps images ``(B, C, H, W)`` in [0, 1] to features ``(B, F)``: Inception if you have its weights,
            ``examples/mnist_classifier.py`` offline, or any other network.
        real: Images, an ``ImageDataset``, or an iterable of batches; at least 20.
        generated: The same, such as ``vae.sample(10_000)``; of a model with a condition those of the real images, as in
            ``vae.sample(len(data), condition=data.condition)``.
        batch_size: Images per batch, unless they come in batches.

    Returns:
        A :class:`Fidelity`.

    Raises:
        ValueError: If there are fewer than 20 images, or the features are not ``(B, F)`` or not finite.

    Examples:
        >>> images = torch.rand(50, 1, 2, 2)
        >>> result = fidelity(lambda x: x.flatten(1), images, images)
        >>> round(result.fid.value, 5), result.precision.value, result.num_real
        (0.0, 1.0, 50)
    """
    sets = opened("real", real), opened("generated", generated)
    features = [features_of(extractor, data, batch_size=batch_size) for data in sets]
    precision, recall = precision_recall(*features)
    return Fidelity(fid(*features), kid(*features), precision, recall, *map(len, features))


def features_of(extractor: Extractor, data: Tensor | ImageSet | Iterable[Any], *, batch_size: int = 256) -> Tensor:
    """Features of a whole set, float64 ``(N, F)`` on the CPU; a module runs in eval mode on its own device.

    Raises:
        ValueError: If there is no image, or the features are not ``(B, F)`` or not finite.

    Examples:
        >>> features_of(torch.nn.Flatten(), torch.rand(10, 1, 2, 2)).shape
        torch.Size([10, 4])
    """
    check_callable("extractor", extractor)
    module = extractor if isinstance(extractor, nn.Module) else nn.Identity()
    found = []
    with eval_mode(module):
        for images, _ in batches_for(module, data, batch_size):
            features = extractor(images)
            check_tensor("extractor(images)", features, (len(images), "F"))
            check_finite("extractor(images)", features)
            found.append(features.double().cpu())
    return torch.cat(found)


def fid(real: Tensor, generated: Tensor) -> Estimate:
    """Frechet distance between the Gaussians that fit two sets of features.

    ``|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))``, in float64. Its expectation falls as the sets grow. The
    standard error is a jackknife over 20 random groups, the i-th of both sets omitted together.

    Args:
        real: Features ``(N, F)``, N >= 20.
        generated: Features ``(M, F)``, M >= 20.

    Raises:
        ValueError: If a shape is wrong, a feature is not finite, or there are too few.

    Examples:
        >>> features = torch.randn(100, 3)
        >>> round(fid(features, features + 2.0).value, 4)  # three times 2^2
        12.0

    References:
        Heusel et al. (2017), https://arxiv.org/abs/1706.08500
    """
    real, generated = _checked(real, generated, _GROUPS)
    middle = real.mean(0)  # no distance depends on the origin; sums of squares lose least around it
    pairs = zip(_moments(real - middle), _moments(generated - middle), strict=True)
    value, *without = (_frechet(*first, *second) for first, second in pairs)
    left_out = torch.tensor(without, dtype=torch.float64)
    return Estimate(value, (_GROUPS - 1) / math.sqrt(_GROUPS) * left_out.std().item())


def _moments(features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean and covariance of all features, then without each group in turn."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    count, total, squares = len(features), features.sum(0), features.T @ features
    for group in (features[:0], *features[order].tensor_split(_GROUPS)):
        left = count - len(group)
        mean = (total - group.sum(0)) / left
        yield mean, (squares - group.T @ group - left * mean.outer(mean)) / (left - 1)


def _frechet(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    variances, axes = torch.linalg.eigh(covariance)
    root = axes * variances.clamp(min=0).sqrt() @ axes.T
    overlap = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    between = (mean - other_mean).square().sum()
    return (between + covariance.trace() + other_covariance.trace() - 2 * overlap).clamp(min=0).item()


def kid(real: Tensor, generated: Tensor) -> Estimate:
    """Squared maximum mean discrepancy under the kernel (x.y / F + 1)^3, the unbiased estimate over all pairs.

    No subsets are drawn: (N + M)^2 F operations. The standard error is the jackknife's, the two sets taken as
    independent; where they are alike it errs towards too large.

    Args:
        real: Features ``(N, F)``, N >= 2.
        generated: Features ``(M, F)``, M >= 2.

    Raises:
        ValueError: If a shape is wrong, a feature is not finite, or there are too few.

    Examples:
        >>> real, generated = torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]])
        >>> kid(real, generated).value  # 1 + 2^3 - 2
        7.0

    References:
        Binkowski et al. (2018), https://arxiv.org/abs/1801.01401; Gretton et al. (2012), lemma 6
    """
    real, generated = _checked(real, generated, 2)
    own, own_generated = _kernel_to_others(real), _kernel_to_others(generated)
    across, across_generated = _kernel_sums(real, generated) / len(generated), _kernel_sums(generated, real) / len(real)
    value = own.mean() + own_generated.mean() - across.mean() - across_generated.mean()
    variance = (own - across).var() / len(real) + (own_generated - across_generated).var() / len(generated)
    return Estimate(value.item(), 2 * variance.sqrt().item())


def _kernel_to_others(x: Tensor) -> Tensor:
    """The mean kernel of each row with the other rows, ``(N,)``."""
    itself = (x.square().mean(1) + 1).pow(3)
    return (_kernel_sums(x, x) - itself) / (len(x) - 1)


def _kernel_sums(x: Tensor, y: Tensor) -> Tensor:
    """The kernel of each row of ``x`` with all rows of ``y``, summed, ``(N,)``."""
    return torch.cat([(rows @ y.T / x.shape[1] + 1).pow(3).sum(1) for rows in x.split(_ROWS)])


def precision_recall(real: Tensor, generated: Tensor, *, num_neighbors: int = 3) -> PrecisionRecall:
    """Whether images of one set lie among those of the other: within reach of one's k-th nearest neighbour.

    The standard errors are the standard deviations over 40 random halves of both sets, drawn without replacement and
    each with neighbours of its own: half of a set moves a mean as far from that of the whole as another whole set
    would. +-2 of them covered the mean in 92% to 99% of 200 repetitions (the table in docs/results.md). The error of a
    plain share covered it in 23% to 95%, for images that are held against the same neighbours are not independent;
    and in a bootstrap, images drawn twice would be their own neighbours.

    Args:
        real: Features ``(N, F)``, N > ``num_neighbors``; for a finite error, twice as many.
        generated: Features ``(M, F)``, the same of M.
        num_neighbors: k; the paper's is 3.

    Raises:
        ValueError: If a shape is wrong, a feature is not finite, or there are too few.

    Examples:
        >>> real, generated = torch.arange(8.0)[:, None], torch.tensor([[2.5], [3.5], [50.0], [50.5]])
        >>> precision, recall = precision_recall(real, generated, num_neighbors=1)
        >>> precision.value, recall.value
        (0.5, 0.375)

    References:
        Kynkaanniemi et al. (2019), Improved precision and recall metric, https://arxiv.org/abs/1904.06991; halves:
        Politis & Romano (1994), https://doi.org/10.1214/aos/1176325770
    """
    check_int("num_neighbors", num_neighbors)
    real, generated = _checked(real, generated, num_neighbors + 1)
    random = torch.Generator().manual_seed(0)
    in_real, in_generated = (_halves(len(features), random).to(features.device) for features in (real, generated))
    enough = min(len(real), len(generated)) // 2 > num_neighbors
    return PrecisionRecall(
        _share(generated, in_generated, _radii(real, in_real, num_neighbors), real, enough),
        _share(real, in_real, _radii(generated, in_generated, num_neighbors), generated, enough),
    )


def _halves(count: int, generator: torch.Generator) -> Tensor:
    """Whether each image belongs: to the whole set, in the first row, and to each random half, ``(1 + 40, N)``."""
    order = torch.rand(_HALVES, count, generator=generator).argsort(1).argsort(1)
    return torch.cat([torch.ones(1, count, dtype=torch.bool), order < count // 2])


def _radii(features: Tensor, members: Tensor, num_neighbors: int) -> Tensor:
    """Distance of each member to its k-th neighbour among the members, of others -1; the shape of ``members``.

    Only the nearest of all are kept: that fewer than k + 1 of 8 k + 40 belong to a half has a chance below 1e-9.
    """
    kept = min(len(features), 8 * num_neighbors + 40)
    found = []
    for rows in features.split(_ROWS):
        distances, neighbors = _distances(rows, features).topk(kept, largest=False)
        counts = members[:, neighbors].cumsum(2)  # each is its own first neighbour
        place = (counts <= num_neighbors).sum(2).clamp(max=kept - 1)
        found.append(distances.gather(1, place.T).T)
    return torch.cat(found, dim=1).masked_fill(~members, -1.0)


def _share(asked: Tensor, members: Tensor, radii: Tensor, among: Tensor, enough: bool) -> Estimate:
    """Share of the images asked that lie within a radius of the others, and its spread over the halves."""
    found, first = torch.zeros_like(members), 0
    for rows in asked.split(_ROWS):
        distances = _distances(rows, among)
        row, column = (distances <= radii.amax(0)).nonzero(as_tuple=True)  # near in some half: few pairs
        for half, near in zip(found, distances[row, column] <= radii[:, column], strict=True):
            half[first + row[near]] = True
        first += len(rows)
    whole, *parts = ((found & members).sum(1).double() / members.sum(1)).tolist()
    return Estimate(whole, torch.tensor(parts, dtype=torch.float64).std().item() if enough else math.inf)


def _checked(real: Tensor, generated: Tensor, minimum: int) -> tuple[Tensor, Tensor]:
    check_tensor("real", real, ("N", "F"))
    check_tensor("generated", generated, ("M", real.shape[1]))
    check_one_device(real=real, generated=generated)
    for name, features in (("real", real), ("generated", generated)):
        if len(features) < minimum:
            raise ValueError(f"`{name}` must hold at least {minimum} images, got {len(features)}.")
        check_finite(name, features)
    return real.double(), generated.double()
