"""The ELBO over a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaelib._checks import (
    DataError,
    check_callable,
    check_generator,
    check_has_values,
    check_int,
    check_module,
    check_tensor,
    check_type,
)
from vaelib._images import Batch, ImageSet, opened
from vaelib.evaluation.inputs import (
    ImageValues,
    batches_for,
    check_model_finite,
    check_vae,
    device_of,
    quantity_of,
)
from vaelib.functional import bits_per_dim
from vaelib.objectives import Elbo, Objective
from vaelib.vae import VAE, Given, bound, eval_mode

__all__ = [
    "BoundEstimate",
    "Estimate",
    "elbo",
    "per_image_terms",
    "unit_of",
]


class Estimate(NamedTuple):
    """A mean over images and how far chance moves it."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.2f} +- {self.standard_error:.2f}"

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """Mean and standard error of ``(N,)`` values; infinite for a single value and for an infinite mean."""
        values = values.double()
        mean = values.mean().item()
        known = len(values) > 1 and math.isfinite(mean)
        return cls(mean, values.std().item() / math.sqrt(len(values)) if known else math.inf)


def unit_of(name: str) -> str:
    """The unit of an estimate by its name in the results of ``vaelib evaluate``.

    Examples:
        >>> unit_of("elbo"), unit_of("psnr"), unit_of("log_likelihood_bits_per_dim")
        ('nats per image', 'dB', 'bits per dimension')
    """
    check_type("name", name, str, "a str")
    if name.startswith(("auroc_", "score_")) or name in ("ssim", "ms_ssim", "precision", "recall"):
        return "at most 1"
    if name in ("fid", "kid"):
        return "distance"
    if name == "rate_bits":
        return "bits per image"
    if name.endswith("bits_per_dim"):
        return "bits per dimension"
    return "dB" if name == "psnr" else "nats per image"


class BoundEstimate(NamedTuple):
    """The ELBO of a VAE over a data set, one draw of z per image."""

    elbo: Estimate
    """Nats per image; a lower bound of log p(x), so higher is better."""
    reconstruction: Estimate
    """-log p(x|z) in nats per image."""
    kl: Estimate
    """KL(q(z|x) to p(z)) in nats per image."""
    bits_per_dim: Estimate
    """-elbo in bits per pixel and channel, with log2(256) added for a density; of a density they bound a code length
    only if the images are dequantised, see :func:`vaelib.functional.bits_per_dim`."""
    num_images: int
    note: str = ""
    """What these numbers are not: under a Bernoulli on grey values no log p(x), of a density at 8-bit levels no code
    length. Empty if they are what their names say."""
    quantity: str = "log p(x)"
    """What is bounded: ``"log p(x|c)"`` of a model with a condition."""

    @property
    def rate_bits(self) -> Estimate:
        """``kl`` in bits per image: what z carries beyond its prior."""
        return Estimate(*(nats / math.log(2) for nats in self.kl))


def per_image_terms(
    model: nn.Module | Given,
    batches: Iterable[Tensor | Batch],
    objective: Objective,
    *,
    step: int = 0,
    generator: torch.Generator | None = None,
) -> Any:
    """An objective's terms over a whole set, in eval mode without gradients.

    Args:
        model: What the objective runs; one with a condition is given that of each batch.
        batches: Image batches ``(B, C, H, W)`` in [0, 1], alone or as ``Batch``; moved to the model's device.
        objective: Such as :class:`Elbo`.
        step: Training step at which its schedules are taken.
        generator: Random generator for the draws, on any device.

    Returns:
        The objective's own named tuple: ``loss`` the mean weighted by images, the other terms ``(N,)``, on the CPU.

    Raises:
        DataError: A ``ValueError``: if there is no image.

    Examples:
        >>> import vaelib as vl
        >>> terms = per_image_terms(vl.conv_vae((1, 8, 8), 2), [torch.rand(3, 1, 8, 8), torch.rand(2, 1, 8, 8)], Elbo())
        >>> terms.kl.shape
        torch.Size([5])
    """
    if not isinstance(model, Given):
        check_module("model", model)
    opened("batches", batches)
    check_callable("objective", objective)
    check_int("step", step, 0)
    check_generator(generator)
    device = device_of(model)
    collected, sizes = [], []
    with eval_mode(model):
        for batch in batches:
            x, condition = batch if isinstance(batch, Batch) else (batch, None)
            check_tensor("batches", x, floating=False)
            check_has_values("batches", x)
            collected.append(objective(bound(model, condition), x.to(device), step=step, generator=generator))
            sizes.append(len(x))
    if not sizes:
        raise DataError("`batches` must hold at least one image, got none.")
    fields = {
        name: torch.cat([getattr(terms, name) for terms in collected]).cpu()
        for name in collected[0]._fields
        if name != "loss"
    }
    weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    loss = (torch.stack([terms.loss for terms in collected]).cpu().double() * weights).sum()
    return type(collected[0])(loss=loss, **fields)


def elbo(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> BoundEstimate:
    """The ELBO of ``model`` over images, with one draw of z each.

    Args:
        model: A VAE.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        batch_size: Images per batch, unless ``data`` comes in batches.
        generator: Random generator for the draws of z, on any device.

    Returns:
        A :class:`BoundEstimate` in nats per image.

    Raises:
        ValueError: If there is no image, the images do not fit the model or its likelihood, or the ELBO of an image is
            not finite.
        TypeError: If ``model`` is no VAE.

    Examples:
        >>> import vaelib as vl
        >>> result = elbo(vl.conv_vae((1, 8, 8), 2), torch.rand(10, 1, 8, 8))
        >>> result.num_images, result.elbo.value < 0
        (10, True)
    """
    check_vae("model", model)
    values = ImageValues(model.likelihood)
    batches = batches_for(model, data, batch_size, generator)
    terms = per_image_terms(model, values.watched(batches), Elbo(), generator=generator)
    negative = terms.reconstruction + terms.kl
    check_model_finite("model", "the ELBO", negative)
    levels = 256 if model.likelihood.is_density else None
    return BoundEstimate(
        elbo=Estimate.of(-negative),
        reconstruction=Estimate.of(terms.reconstruction),
        kl=Estimate.of(terms.kl),
        bits_per_dim=Estimate.of(bits_per_dim(negative, model.image_shape, levels=levels)),
        num_images=len(negative),
        note=values.note,
        quantity=quantity_of(model),
    )
