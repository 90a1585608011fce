"""Codes of a quantised latent: their checks, and draws from noise, as torch's side makes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Codes", "code_check", "codes_at", "codes_by_steps", "uniform_codes", "whole_numbers"]

Codes = NDArray[np.int64]


def whole_numbers(name: str, values: Any) -> Codes:
    """An array of whole numbers as contiguous int64.

    Raises:
        TypeError: If it is no array of whole numbers.
    """
    if not isinstance(values, np.ndarray):
        raise TypeError(f"`{name}` must be a numpy array, got {type(values).__name__}.")
    if values.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must be whole numbers, got dtype {values.dtype}.")
    return np.ascontiguousarray(values, dtype=np.int64)


def code_check(name: str, num_codes: int) -> Callable[[Codes], None]:
    """A function that raises unless the codes that it is given lie in [0, num_codes)."""

    def check(codes: Codes) -> None:
        if codes.size and not (codes.min() >= 0 and codes.max() < num_codes):
            raise ValueError(f"`{name}` must have values in [0, {num_codes}), got [{codes.min()}, {codes.max()}].")

    return check


def _normal_cdf(noise: NDArray[Any]) -> NDArray[np.float64]:
    """By the formula of ``torch.special.ndtr``, which is 0 below -8.3."""
    values = [0.5 * (1 + math.erf(x * math.sqrt(0.5))) for x in noise.ravel().tolist()]
    return np.array(values, np.float64).reshape(noise.shape)


def uniform_codes(noise: NDArray[Any], num_codes: int) -> Codes:
    """Standard normal noise to codes of equal probability: K times Phi(noise), rounded down.

    Examples:
        >>> uniform_codes(np.array([-9.0, -0.1, 0.1, 9.0]), 4)
        array([0, 1, 2, 3])
    """
    return np.minimum(_normal_cdf(noise) * num_codes, num_codes - 1).astype(np.int64)


def codes_at(logits: NDArray[Any], noise: NDArray[Any]) -> Codes:
    """The first code of each row of ``logits`` ``(B, K)`` whose cumulative probability exceeds Phi(noise), ``(B,)``.

    In float64 and in the order of ``vaelib.priors.codes.codes_at``, whose codes these are.

    Examples:
        >>> codes_at(np.log([[0.1, 0.2, 0.7]] * 4), np.array([-3.0, -0.6, 0.0, 9.0]))
        array([0, 1, 2, 2])
    """
    logits = logits.astype(np.float64)
    cumulative = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
    total = cumulative[:, -1:]
    found = (cumulative <= _normal_cdf(noise)[:, None] * total).sum(1)
    last = (cumulative < total).sum(1)  # of those whose probability counts
    return np.minimum(found, last)


def codes_by_steps(noise: NDArray[Any], logits_at: Callable[[Codes, Codes], NDArray[Any]]) -> Codes:
    """A code after the other: the next one's logits depend on those before it.

    Args:
        noise: ``(B, N)``, standard normal.
        logits_at: Codes ``(B, N)``, of which those before the position count, and the position ``(B,)``, to logits
            ``(B, K)``.
    """
    codes = np.zeros(noise.shape, np.int64)
    for position in range(noise.shape[1]):
        logits = logits_at(codes, np.full(len(codes), position, np.int64))
        codes[:, position] = codes_at(logits, noise[:, position])
    return codes
