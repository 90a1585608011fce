"""The codes of a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from vaelib._images import ImageSet
from vaelib.evaluation.inputs import batches_for, bound, check_model
from vaelib.evaluation.values import check_model_finite
from vaelib.vae import VAE, eval_mode

__all__ = ["embed", "encode"]


def encode(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Any:
    """What ``model.encode`` gives of all images, in their order, in eval mode without gradients.

    Args:
        model: A VAE or an autoencoder.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        batch_size: Where vaelib cuts the batches.
        generator: Of a set that draws its images, as ``dynamic_mnist`` does; of any device.

    Returns:
        Of a VAE with a Gaussian posterior ``(mu, logvar)``, of a quantised latent int64 codes ``(N, positions)``, of
        another model ``z``, on the CPU. :func:`embed` gives the one z that ``reconstruct`` decodes, whatever the model.

    Raises:
        DataError: A ``ValueError``: if there is no image.
        ValueError: If a code is not finite.
        TypeError: If ``model`` is neither.

    Examples:
        >>> import vaelib as vl
        >>> mu, logvar = encode(vl.conv_vae((1, 8, 8), 2), torch.rand(600, 1, 8, 8))
        >>> mu.shape, logvar.shape
        (torch.Size([600, 2]), torch.Size([600, 2]))
    """
    check_model("model", model)
    if getattr(model.latent, "num_codes", None) is None:
        return _of_all(model, data, batch_size, generator, lambda view, x: view.encode(x))
    codes, _ = _of_all(model, data, batch_size, generator, _codes_and_sums)
    return codes


def embed(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The deterministic z of all images, in their order: what ``model.reconstruct`` decodes.

    Args:
        model: A VAE or an autoencoder.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        batch_size: Where vaelib cuts the batches.
        generator: Of a set that draws its images, as ``dynamic_mnist`` does; on the model's device.

    Returns:
        ``(N, *latent_shape)`` on the CPU.

    Raises:
        DataError: A ``ValueError``: if there is no image.
        ValueError: If a code is not finite.
        TypeError: If ``model`` is neither.

    Examples:
        >>> import vaelib as vl
        >>> embed(vl.conv_vae((1, 8, 8), 2), torch.rand(600, 1, 8, 8)).shape
        torch.Size([600, 2])
    """
    check_model("model", model)
    z: Tensor = _of_all(model, data, batch_size, generator, lambda view, x: view.embed(x))
    return z


def _codes_and_sums(view: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and a number of each image that is not finite where the encoder's vectors are not."""
    features = view.observe(x)
    return view.latent.encoded(features), view.latent.point(features).flatten(1).sum(1)


def _of_all(
    model: VAE, data: Any, batch_size: int, generator: torch.Generator | None, verb: Callable[[Any, Tensor], Any]
) -> Any:
    """What a verb gives of all images, on the CPU."""
    with eval_mode(model):
        found = [verb(bound(model, c), x) for x, c in batches_for(model, data, batch_size, generator)]
    codes = tree_map(lambda *parts: torch.cat(parts).cpu(), *found)
    check_model_finite("model", "the posterior" if model.latent.has_prior else "the code", *tree_leaves(codes))
    return codes
