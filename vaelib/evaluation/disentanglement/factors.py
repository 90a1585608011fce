"""What every score of codes beside factors starts from: the arguments' rules, and how far chance moves a score."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vaelib._checks import MissingExtraError, check_finite, check_generator, check_int, check_shape, check_tensor
from vaelib.evaluation.bound import Estimate

__all__ = ["bootstrapped", "checked", "halves", "scikit_learn"]


def checked(codes: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in float64 and factors in int64, on the CPU."""
    check_tensor("codes", codes)
    check_tensor("factors", factors, floating=False)
    check_shape("codes", codes.shape, ("N", "D"))
    check_shape("factors", factors.shape, (len(codes), "F"))
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


def scikit_learn(part: str) -> Any:
    """A module of scikit-learn."""
    try:
        return importlib.import_module(f"sklearn.{part}")
    except ImportError as error:
        raise MissingExtraError("Scores that train a predictor", "metrics") from error


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
    codes, factors = codes[order], factors[order]
    found = score(codes, factors)
    resampled = []
    for _ in range(check_int("num_resamples", num_resamples, 2)):
        drawn = [torch.randint(len(h), (len(h),), generator=generator) + h.start for h in halves(len(codes))]
        chosen = torch.cat(drawn)
        resampled.append(score(codes[chosen], factors[chosen]))
    errors = torch.tensor(resampled, dtype=torch.float64).std(0)
    return [Estimate(float(value), error.item()) for value, error in zip(found, errors, strict=True)]


def halves(count: int) -> tuple[range, range]:
    """Where a predictor learns, and where it is asked."""
    return range(count // 2), range(count // 2, count)
