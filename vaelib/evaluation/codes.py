"""The codes of a whole data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, overload

import torch
from torch import Tensor

from vaelib.evaluation.inputs import BatchSource, batches_for
from vaelib.evaluation.values import check_model_finite
from vaelib.vae import VAE, AutoEncoder, eval_mode

__all__ = ["encode"]


@overload
def encode(
    model: VAE,
    data: Tensor | BatchSource | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def encode(
    model: AutoEncoder,
    data: Tensor | BatchSource | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor: ...
def encode(
    model: VAE | AutoEncoder,
    data: Tensor | BatchSource | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor] | Tensor:
    """The codes of all images, in their order, in eval mode without gradients.

    Args:
        model: A VAE or an autoencoder.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        batch_size: Where vaelib cuts the batches.
        generator: Of a set that draws its images, as ``dynamic_mnist`` does; of any device.

    Returns:
        Of a VAE ``(mu, logvar)``, of an autoencoder ``z``, each ``(N, *latent_shape)`` on the CPU.

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
    if not isinstance(model, VAE | AutoEncoder):
        raise TypeError(f"`model` must be a VAE or an AutoEncoder, got {type(model).__name__}.")
    with eval_mode(model):
        found: list[Any] = [model.encode(x) for x in batches_for(model, data, batch_size, generator)]
    if isinstance(model, AutoEncoder):
        z = torch.cat(found).cpu()
        check_model_finite("model", "the code", z)
        return z
    mu, logvar = (torch.cat(moments).cpu() for moments in zip(*found, strict=True))
    check_model_finite("model", "the posterior", mu, logvar)
    return mu, logvar
