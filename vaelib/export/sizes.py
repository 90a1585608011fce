"""Fully convolutional models: one graph for every image whose sides are multiples of one number."""

from __future__ import annotations

from typing import Any

import torch

from vaelib._checks import ExportError
from vaelib.export.quiet import reason_of
from vaelib.vae import VAE
from vaelib.vae.given import Given

__all__ = ["free_sizes"]


def free_sizes(model: VAE) -> int:
    """Let ``model``, a copy that is about to be exported, take other sizes than its own.

    Returns:
        The spatial multiple: H and W must be multiples of it, and the latent map is that much smaller.

    Raises:
        ExportError: A ``ValueError``: if the latent is a vector, or the model is not the same at every size.
    """
    if len(model.latent_shape) != 3:
        raise ExportError(
            "`dynamic_size` needs a fully convolutional model with a latent map, latent_shape=(C, h, w); "
            f"got the vector {tuple(model.latent_shape)}."
        )
    (_, height, width), (_, rows, columns) = model.image_shape, model.latent_shape
    multiple = height // rows
    if (multiple * rows, multiple * columns) != (height, width):
        raise ExportError(
            "`dynamic_size` needs images whose height and width are the same multiple of the latent map's, got"
            f" {height} x {width} and {rows} x {columns}: train with sides that every stride divides."
        )
    for module in model.modules():
        for name in ("image_shape", "latent_shape"):
            if hasattr(module, name):
                setattr(module, name, (getattr(module, name)[0], "H", "W"))  # a string is a free axis to the checks
    _check_at(model, multiple, rows + 1, columns + 2)
    return multiple


def _check_at(model: VAE, multiple: int, rows: int, columns: int) -> None:
    size = (multiple * rows, multiple * columns)
    view: Any = model if model.condition is None else Given(model, torch.zeros(1, model.condition.embedding_size))
    try:
        with torch.no_grad():
            z = view.embed(torch.full((1, model.image_shape[0], *size), 0.5))
            image = view.decode(z)
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"`dynamic_size` needs a model for every size, this one fails at {size}: {reason_of(error)}"
        ) from error
    if z.shape[2:] != (rows, columns) or image.shape[2:] != size:
        raise ExportError(
            f"`dynamic_size` needs a model for every size, but images of {size} give a latent map of"
            f" {tuple(z.shape[2:])} and images of {tuple(image.shape[2:])}:"
            " train with sides that every stride divides."
        )
