"""Checks that are of torch: tensors, generators, devices, modules. Each imports it where it is called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vaelib._checks.values import LARGEST_TENSOR, check_int, check_int_tuple, check_shape, check_type, shown


def check_tensor(name: str, value: Any, *, floating: bool = True) -> None:
    """Raise ``TypeError`` unless ``value`` is a dense torch tensor, by default a floating-point one."""
    import torch

    check_type(name, value, torch.Tensor, "a torch.Tensor")
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"`{name}` must be a dense tensor, got layout {value.layout}.")
    if value.is_complex():
        raise TypeError(f"`{name}` must be real, got dtype {value.dtype}.")
    if floating and not value.is_floating_point():
        raise TypeError(f"`{name}` must be floating point, got dtype {value.dtype}.")


def check_batch(name: str, values: Any) -> None:
    """Raise unless ``values`` is a dense floating-point torch tensor ``(B, ...)``, of two axes at least."""
    check_tensor(name, values)
    if values.ndim < 2:
        raise ValueError(f"`{name}` must have shape (B, ...), got {tuple(values.shape)}.")


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
