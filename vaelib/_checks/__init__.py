"""The one place that words argument and shape errors.

Here are the errors and the checks of torch's types, each of which imports torch where it is called; ``values`` is pure
Python.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from vaelib._checks.values import (
    IMAGE_FORMATS as IMAGE_FORMATS,
    LARGEST_GRID as LARGEST_GRID,
    LARGEST_INT as LARGEST_INT,
    LARGEST_TENSOR as LARGEST_TENSOR,
    check_bool as check_bool,
    check_callable as check_callable,
    check_choice as check_choice,
    check_finite as check_finite,
    check_float as check_float,
    check_has_values as check_has_values,
    check_image_path as check_image_path,
    check_images as check_images,
    check_int as check_int,
    check_int_tuple as check_int_tuple,
    check_latent as check_latent,
    check_path as check_path,
    check_shape as check_shape,
    check_type as check_type,
    check_unit_range as check_unit_range,
    shown as shown,
)

F = TypeVar("F", bound=Callable[..., Any])


class VaelibError(Exception):
    """Base class of the errors that are vaelib's own; each also is a built-in exception."""


class ModelFileError(VaelibError, ValueError):
    """A file of a model directory or bundle is torn, foreign, or does not fit its config."""


class ExportError(VaelibError, ValueError):
    """An ONNX graph was refused: it breaks its contract or differs from the torch model."""


class DataError(VaelibError, ValueError):
    """A data set is unreadable, empty, or not what its name promises."""


class TrainingError(VaelibError, ValueError):
    """Training cannot go on: the loss is no longer finite."""


class MissingExtraError(VaelibError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'vaelib[{extra}]'.")


def moved(**hints: str) -> Callable[[F], F]:
    """Decorator: a keyword of ``hints`` raises ``TypeError`` with its hint; the signature stays without it."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def checked(*arguments: Any, **keywords: Any) -> Any:
            for name in hints.keys() & keywords.keys():
                raise TypeError(f"`{name}` is no argument any more: write {hints[name]}.")
            return function(*arguments, **keywords)

        return checked  # type: ignore[return-value]

    return decorate


def check_tensor(name: str, value: Any, shape: Sequence[int | str] | None = None, *, floating: bool = True) -> None:
    """Raise unless ``value`` is a dense torch tensor, by default a floating-point one, of that ``shape`` if given."""
    import torch

    check_type(name, value, torch.Tensor, "a torch.Tensor")
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"`{name}` must be a dense tensor, got layout {value.layout}.")
    if value.is_complex():
        raise TypeError(f"`{name}` must be real, got dtype {value.dtype}.")
    if floating and not value.is_floating_point():
        raise TypeError(f"`{name}` must be floating point, got dtype {value.dtype}.")
    if shape is not None:
        check_shape(name, value.shape, shape)


def check_batch(name: str, values: Any) -> None:
    """Raise unless ``values`` is a dense floating-point torch tensor ``(B, ...)``, of two axes at least."""
    check_tensor(name, values)
    if values.ndim < 2:
        raise ValueError(f"`{name}` must have shape (B, ...), got {tuple(values.shape)}.")


def check_any_image(name: str, x: Any) -> None:
    """Raise ``ValueError`` if ``x`` is a tensor of no image, whose mean loss is none; the rest is left to others."""
    if getattr(x, "shape", (1,))[:1] == (0,):
        raise ValueError(f"`{name}` must hold at least one image, got shape {tuple(x.shape)}.")


def check_one_device(**tensors: Any) -> None:
    """Raise ``ValueError`` unless all tensors are on the device of the first; a scalar may be anywhere."""
    (first, home), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != home.device and tensor.ndim:
            raise ValueError(f"`{name}` must be on the device of `{first}`, {home.device}, got {tensor.device}.")


def check_broadcasts(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Raise ``ValueError`` unless ``shape`` and ``expected`` broadcast."""
    pairs = zip(reversed(shape), reversed(expected), strict=False)
    if any(got != want and 1 not in (got, want) for got, want in pairs):
        raise ValueError(f"`{name}` must have a shape that broadcasts with {tuple(expected)}, got {tuple(shape)}.")


def check_like(name: str, values: Any, **others: Any) -> None:
    """Raise unless ``values`` is ``(B, ...)`` and each of the others broadcasts to it."""
    import torch

    check_batch(name, values)
    for other, tensor in others.items():
        check_tensor(other, tensor)
        if not torch.compiler.is_compiling():  # there sizes may be symbols, which a comparison would make constants
            check_broadcasts(other, tensor.shape, values.shape)
            check_one_device(**{name: values, other: tensor})


def check_generator(generator: object, name: str = "generator") -> None:
    """Raise ``TypeError`` unless it is a ``torch.Generator`` or None."""
    import torch

    check_type(name, generator, torch.Generator | None, "a torch.Generator or None")


def check_codes(name: str, codes: Any, num_codes: int, num_positions: int | str = "N", *, always: bool = False) -> None:
    """Raise unless ``codes`` are int64 ``(B, num_positions)`` in [0, num_codes).

    Values are read on the CPU, where looking at them costs no waiting; elsewhere only if ``always``.
    """
    import torch

    check_tensor(name, codes, floating=False)
    if codes.dtype != torch.int64:
        raise TypeError(f"`{name}` must be int64, got dtype {codes.dtype}.")
    check_shape(name, codes.shape, ("B", num_positions))
    read = always or (codes.device.type == "cpu" and not torch.compiler.is_compiling())
    if read and codes.numel():
        low, high = (int(value) for value in codes.aminmax())
        if low < 0 or high >= num_codes:
            raise ValueError(f"`{name}` must have values in [0, {num_codes}), got [{low}, {high}].")


def check_device(device: Any) -> None:
    """Raise ``ValueError`` or ``TypeError`` unless it names a device of torch, or is None."""
    import torch

    check_type("device", device, str | torch.device | None, "a torch.device, its name, or None")
    try:
        torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise ValueError(f"`device` must be one of torch's, such as 'cpu' or 'cuda:0', got {shown(device)}.") from error


def check_draws(num_samples: object, latent_shape: Any, generator: object, device: object = None) -> tuple[int, ...]:
    """The shape of a latent, after the arguments of drawing some are checked."""
    shape = check_int_tuple("latent_shape", latent_shape)
    check_int("num_samples", num_samples, 0, LARGEST_TENSOR // math.prod(shape))
    check_generator(generator)
    check_device(device)
    return shape


def check_no_view(name: str, value: object) -> None:
    """Raise ``TypeError`` for a model with a condition bound."""
    from torch import nn

    if not isinstance(value, nn.Module) and isinstance(getattr(value, "model", None), nn.Module):
        raise TypeError(
            f"`{name}` must be the model itself, got {type(value).__name__}, what model.given(...) returns."
        )


def check_module(name: str, value: object, *methods: str, optional: bool = False) -> None:
    """Raise ``TypeError`` unless ``value`` is an ``nn.Module`` that has the methods, or None if that is allowed."""
    from torch import nn

    if optional and value is None:
        return
    check_no_view(name, value)
    check_type(name, value, nn.Module, "an nn.Module object")
    missing = [f"`{method}`" for method in methods if not callable(getattr(value, method, None))]
    if missing:
        raise TypeError(f"`{name}` must have the methods {', '.join(missing)}, {type(value).__name__} has not.")


def check_has_prior(name: str, model: Any) -> None:
    """Raise ``TypeError`` unless ``model`` has a latent with a prior, as a VAE has."""
    if isinstance(model, type) or not getattr(getattr(model, "latent", None), "has_prior", False):
        got = type(model).__name__ if hasattr(model, "encoder") else shown(model)
        raise TypeError(f"`model` must have a prior, as a VAE has, for {name}; got {got}.")


def check_has_code(name: str, model: object) -> None:
    """Raise ``TypeError`` unless ``model`` can be called and has a likelihood, None included, as an autoencoder has."""
    if isinstance(model, type) or not (callable(model) and hasattr(model, "likelihood")):
        raise TypeError(f"`model` must be an AutoEncoder or a VAE for {name}, got {shown(model)}.")
