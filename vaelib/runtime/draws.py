"""What depends on noise: draws of the prior, and the bound at a draw of the posterior."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaelib._checks import check_finite, check_int, check_shape
from vaelib.runtime.arrays import Array, floats, range_check
from vaelib.runtime.opened import Graphs

__all__ = ["elbo_terms", "noise_of_prior", "score"]


def noise_of_prior(graphs: Graphs, num_samples: int, seed: int | None) -> Array:
    """Standard normal numbers for so many draws, ``(num_samples, N)``, those of torch's side for the same seed.

    Raises:
        ValueError: If there is no prior to draw from, or an argument is negative.
    """
    check_int("num_samples", num_samples, minimum=0)
    if seed is not None:
        check_int("seed", seed, minimum=0)
    shape = (num_samples, *graphs.shape_of("prior", "noise"))
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def elbo_terms(graphs: Graphs, images: Any, noise: Any) -> tuple[Array, Array]:
    """Distortion and KL of each image at the z that ``noise`` makes.

    Raises:
        ValueError: If the model has no bound, a shape is wrong or a value not allowed.
        TypeError: If one is no array of floating point.
    """
    images, shape = _images_and_noise(graphs, images)
    noise = floats("noise", noise)
    check_shape("noise", noise.shape, shape)
    check_finite("noise", noise)
    given = {"image": images, "noise": noise}
    distortion, kl = graphs.run("vae", given, ("distortion", "kl"), range_check("images", images))
    return distortion, kl


def score(graphs: Graphs, images: Any, num_samples: int, seed: int) -> Array:
    """The ELBO of each image, the mean over draws. Raises as :func:`elbo_terms`."""
    images, shape = _images_and_noise(graphs, images)
    generator = np.random.default_rng(seed)
    total = np.zeros(len(images))
    for _ in range(check_int("num_samples", num_samples)):
        distortion, kl = elbo_terms(graphs, images, generator.standard_normal(shape, dtype=np.float32))
        total -= distortion.astype(np.float64) + kl
    return (total / num_samples).astype(np.float32)


def _images_and_noise(graphs: Graphs, images: Any) -> tuple[Array, tuple[int, ...]]:
    """The images, and the shape of the noise beside them."""
    if "vae" not in graphs.contract or "kl" not in graphs.contract["vae"].outputs:
        raise ValueError(f"The ELBO needs a VAE, the model is an {graphs.metadata['kind']}.")
    images = graphs.checked("vae", "image", images, "images")
    return images, graphs.shape_beside("vae", "noise", images)
