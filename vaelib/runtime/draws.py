"""Latents from noise and along paths, and the bound at a draw of the posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vaelib._checks import check_finite, check_int, check_int_tuple, check_shape
from vaelib.runtime.codes import Codes, codes_by_steps
from vaelib.runtime.inputs import Array, floats, range_check
from vaelib.runtime.opened import Graphs

__all__ = ["codes_of_noise", "elbo_terms", "interpolated", "noise_of_prior", "score", "traversed", "z_of_noise"]


def noise_of_prior(graphs: Graphs, num_samples: int, seed: int | None) -> Array:
    """Standard normal numbers for so many draws, ``(num_samples, N)``, those of torch's side for the same seed."""
    check_int("num_samples", num_samples, minimum=0)
    if seed is not None:
        check_int("seed", seed, minimum=0)
    part, name = ("next", "codes") if "next" in graphs.contract else ("prior", "noise")
    shape = (num_samples, *graphs.shape_of(part, name))
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def z_of_noise(graphs: Graphs, noise: Any) -> Array:
    """Draws of the prior from standard normal noise."""
    if "next" not in graphs.contract and "codes" not in graphs.outputs_of("prior"):
        return graphs.ask("prior", "noise", noise, "noise", ("z",))[0]
    return graphs.ask("codes", "codes", codes_of_noise(graphs, noise), "codes", ("z",))[0]


def codes_of_noise(graphs: Graphs, noise: Any) -> Codes:
    """Draws of a prior over codes: by its graph, or one code after the other."""
    if "next" not in graphs.contract:
        return graphs.ask("prior", "noise", noise, "noise", ("codes",))[0]
    noise = floats("noise", noise)
    check_shape("noise", noise.shape, ("B", *graphs.shape_of("next", "codes")))
    check_finite("noise", noise)

    def logits_at(codes: Codes, position: Codes) -> Array:
        return graphs.run("next", {"codes": codes, "position": position}, ("logits",), lambda _: None)[0]

    return codes_by_steps(noise, logits_at)


def elbo_terms(graphs: Graphs, images: Any, noise: Any) -> tuple[Array, Array]:
    """Distortion and KL of each image at the z that ``noise`` makes, or at its codes where a draw needs no noise."""
    images, shape = _images_and_noise(graphs, images)
    given = {"image": images}
    if shape is None:
        if noise is not None:
            raise ValueError("`noise` must be None: a draw of this model's latent needs none.")
    else:
        given["noise"] = floats("noise", noise)
        check_shape("noise", given["noise"].shape, shape)
        check_finite("noise", given["noise"])
    distortion, kl = graphs.run("vae", given, ("distortion", "kl"), range_check("images", images))
    return distortion, kl


def score(graphs: Graphs, images: Any, num_samples: int, seed: int) -> Array:
    """The ELBO of each image, the mean over draws."""
    check_int("num_samples", num_samples)
    images, shape = _images_and_noise(graphs, images)
    generator = np.random.default_rng(seed)
    draws = 1 if shape is None else num_samples  # which would be equal
    total = np.zeros(len(images))
    for _ in range(draws):
        noise = None if shape is None else generator.standard_normal(shape, dtype=np.float32)
        distortion, kl = elbo_terms(graphs, images, noise)
        total -= distortion.astype(np.float64) + kl
    return (total / draws).astype(np.float32)


def _images_and_noise(graphs: Graphs, images: Any) -> tuple[Array, tuple[int, ...] | None]:
    """The images, and the shape of the noise beside them; None where there is none."""
    if "kl" not in graphs.outputs_of("vae"):
        raise ValueError(f"The ELBO needs a VAE, the model is an {graphs.metadata['kind']}.")
    images = graphs.checked("vae", "image", images, "images")
    takes_noise = "noise" in graphs.contract["vae"].inputs
    return images, graphs.shape_beside("vae", "noise", images) if takes_noise else None


def interpolated(a: Array, b: Array, steps: int, *, spherical: bool) -> Array:
    """``(B, steps, ...)`` from ``a`` to ``b``, both ends included."""
    if a.shape != b.shape:
        raise ValueError(f"`a` and `b` must have the same shape, got {a.shape} and {b.shape}.")
    t = np.linspace(0.0, 1.0, check_int("steps", steps, minimum=2))
    start, end = (values.reshape(len(values), 1, math.prod(a.shape[1:])).astype(np.float64) for values in (a, b))
    weights = np.stack([1 - t, t])[:, None, :, None]
    if spherical:
        lengths = np.linalg.norm(start, axis=2) * np.linalg.norm(end, axis=2)
        cosine = (start * end).sum(2) / np.maximum(lengths, np.finfo(np.float64).tiny)
        angle = np.arccos(np.clip(cosine, -1.0, 1.0))[:, :, None]
        turned = np.sin(weights * angle) / np.maximum(np.sin(angle), np.finfo(np.float64).tiny)
        weights = np.where(np.sin(angle) > 1e-6, turned, weights)
    between = weights[0] * start + weights[1] * end
    return between.reshape(len(a), len(t), *a.shape[1:]).astype(np.float32)


def traversed(z: Array, dimensions: Sequence[int], values: Sequence[float]) -> Array:
    """``(B, len(dimensions), len(values), ...)``: each ``z`` with one latent at a time set to each of the values."""
    size = math.prod(z.shape[1:])
    for dimension in check_int_tuple("dimensions", dimensions, minimum=0):
        if dimension >= size:
            raise ValueError(f"`dimensions` must be < {size}, got {dimension}.")
    numbers = np.asarray(values, np.float32)
    check_shape("values", numbers.shape, ("N",))
    moved = np.repeat(z.reshape(len(z), 1, 1, size), len(dimensions), axis=1).repeat(len(numbers), axis=2)
    for row, dimension in enumerate(dimensions):
        moved[:, row, :, dimension] = numbers
    return moved.reshape(len(z), len(dimensions), len(numbers), *z.shape[1:])
