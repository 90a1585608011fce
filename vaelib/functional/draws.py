"""Random numbers where they are needed, from a generator of any device: torch draws on the generator's device only.

So one generator of the CPU gives the same numbers for a model on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelib._checks import check_generator, check_int, check_one_device, check_tensor

__all__ = ["bernoulli", "normal", "normal_of", "permutation", "reparameterize", "signs", "source", "uniform"]


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of ``shape``, of the dtype and on the device of ``like``."""
    place = _place(like.device, generator)
    return torch.randn(shape, device=place, dtype=like.dtype, **source(generator)).to(like.device)


def normal_of(seed: int | None, shape: tuple[int, int], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard normal numbers, of a seed the same as in ``vaelib.runtime``.

    Raises:
        ValueError: If both ``seed`` and ``generator`` are given.
    """
    check_generator(generator)
    if seed is None:
        return normal(shape, like, generator)
    if generator is not None:
        raise ValueError("`generator` must be None where `seed` is given.")
    numbers = np.random.default_rng(check_int("seed", seed, 0)).standard_normal(shape, np.float32)
    return torch.from_numpy(numbers).to(like)


def reparameterize(mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw z = mu + exp(logvar / 2) * eps with eps from N(0, I).

    Args:
        mu: Posterior mean, shape ``(B, *latent_shape)``.
        logvar: Posterior log variance, the same shape.
        generator: Source of eps, of any device; torch's global one if None.

    Returns:
        z, the same shape, differentiable in ``mu`` and ``logvar``.

    Examples:
        >>> reparameterize(torch.full((2, 3), 5.0), torch.full((2, 3), -40.0)).round()
        tensor([[5., 5., 5.],
                [5., 5., 5.]])

    References:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, section 2.4.
        https://arxiv.org/abs/1312.6114
    """
    check_tensor("mu", mu)
    check_tensor("logvar", logvar, mu.shape)
    check_one_device(mu=mu, logvar=logvar)
    check_generator(generator)
    return mu + (0.5 * logvar).exp() * normal(mu.shape, mu, generator)


def uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in [0, 1) of ``shape``, of the dtype and on the device of ``like``."""
    place = _place(like.device, generator)
    return torch.rand(shape, device=place, dtype=like.dtype, **source(generator)).to(like.device)


def bernoulli(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Zeros and ones of these probabilities, on their device."""
    there = probabilities.to(_place(probabilities.device, generator))
    return torch.bernoulli(there, generator=generator).to(probabilities.device)


def signs(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Minus and plus ones of ``shape``, of the dtype and on the device of ``like``."""
    drawn = torch.randint(2, shape, device=_place(like.device, generator), **source(generator))
    return drawn.to(like.device, like.dtype) * 2 - 1


def permutation(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """The numbers below ``count`` in a random order, on ``device``."""
    return torch.randperm(count, generator=generator, device=_place(device, generator)).to(device)


def source(generator: torch.Generator | None) -> dict[str, Any]:
    """The generator as a keyword of torch's functions, or none.

    With ``generator=None`` torch.compile fails for batches whose size is free (torch 2.14).
    """
    return {} if generator is None else {"generator": generator}


def _place(device: torch.device, generator: torch.Generator | None) -> torch.device:
    return device if generator is None else generator.device
