"""The same convolutions in the form that a CPU computes fastest.

oneDNN is slow where few channels come out of a transposed convolution, as its kernels work on blocks of 16, and in the
gradient of a bias. Where the kernel covers the map a convolution is a matrix product. The functions are the same
up to rounding, to all orders; ``docs/growing.md`` has what each form gains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["fast_convolutions"]

_FEW = 8  # channels, below a block of oneDNN


@contextmanager
def fast_convolutions(model: nn.Module) -> Iterator[None]:
    """Inside the ``with``, the plain convolutions of ``model`` and of its deep copies run in these forms."""
    forms: dict[type, Any] = {nn.Conv2d: _Plain.forward, nn.ConvTranspose2d: _Transposed.forward}
    changed = [module for module in model.modules() if type(module) in forms and _is_plain(module)]
    for module in changed:
        # A bound method, so that a deep copy has one of its own; named `forward`, so that pickle finds it again.
        module.forward = MethodType(forms[type(module)], module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _is_plain(module: Any) -> bool:
    return (
        "forward" not in vars(module)
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.stride[0] == module.stride[1]
        and module.kernel_size[0] == module.kernel_size[1]
        and not isinstance(module.padding, str)
        and module.padding_mode == "zeros"
        and module.padding[0] == module.padding[1]
    )


class _Plain:
    @staticmethod
    def forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            return nn.Conv2d.forward(layer, x)
        if x.shape[2:] == layer.kernel_size and layer.padding == (0, 0):
            return F.linear(x.flatten(1), layer.weight.flatten(1), layer.bias)[:, :, None, None]
        if not (1 < layer.in_channels <= _FEW or torch.compiler.is_compiling()):
            return nn.Conv2d.forward(layer, x)
        return _apply(x, layer.weight, layer.bias, False, layer.stride[0], int(layer.padding[0]), [0, 0])


class _Transposed:
    @staticmethod
    def forward(layer: nn.ConvTranspose2d, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if torch.is_autocast_enabled("cpu") or output_size is not None:
            return nn.ConvTranspose2d.forward(layer, x, output_size)
        if x.shape[2:] == (1, 1) and (*layer.padding, *layer.output_padding) == (0, 0, 0, 0):
            columns = x.flatten(1) @ layer.weight.permute(0, 2, 3, 1).flatten(1)
            image = columns.unflatten(1, (*layer.kernel_size, layer.out_channels))
            return (image if layer.bias is None else image + layer.bias).permute(0, 3, 1, 2)
        if not (layer.out_channels <= _FEW or torch.compiler.is_compiling()):
            return nn.ConvTranspose2d.forward(layer, x, output_size)
        extra = list(layer.output_padding)
        return _apply(x, layer.weight, layer.bias, True, layer.stride[0], int(layer.padding[0]), extra)


class _Convolution(torch.autograd.Function):
    """A convolution; its gradients are one the other way, one by oneDNN, and a sum."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, stride: int, padding: int, extra: list[int]
    ) -> Tensor:
        if transposed and weight.shape[1] <= _FEW and stride > 1:
            size = [_grown(n, weight, stride, padding) + e for n, e in zip(x.shape[2:], extra, strict=True)]
            covered = [(n - 1 + -(-weight.shape[2] // stride)) * stride - padding for n in x.shape[2:]]
            if covered[0] >= size[0] and covered[1] >= size[1]:
                return _transposed_by_blocks(x, weight, bias, stride, padding, size)
        return torch.convolution(x, weight, bias, [stride] * 2, [padding] * 2, [1, 1], transposed, extra, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        transposed, stride, padding, extra = ctx.geometry
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            cut = [n - _grown(g, weight, stride, padding) for n, g in zip(x.shape[2:], gradient.shape[2:], strict=True)]
            of_x = _apply(gradient, weight, None, not transposed, stride, padding, [0, 0] if transposed else cut)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        of_weight = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], transposed, extra, 1, [False, True, False]
        )[1]
        return of_x, of_weight, of_bias, None, None, None, None


_apply: Any = _Convolution.apply


def _grown(size: int, weight: Tensor, stride: int, padding: int) -> int:
    """What a transposed convolution makes of a size."""
    return (size - 1) * stride - 2 * padding + int(weight.shape[2])


@torch.library.custom_op("vaelib::transposed_by_blocks", mutates_args=())
def _transposed_by_blocks(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, size: list[int]
) -> Tensor:
    """A convolution that gives blocks of pixels; an operator, as inductor would compute their shuffle one by one."""
    taps = -(-weight.shape[2] // stride)
    spare = taps * stride - weight.shape[2]
    parts = F.pad(weight, (0, spare, 0, spare)).unflatten(3, (taps, stride)).unflatten(2, (taps, stride))
    blocks = parts.flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)
    biases = None if bias is None else bias.repeat_interleave(stride**2)
    channels_last = blocks.contiguous(memory_format=torch.channels_last)
    image = F.pixel_shuffle(F.conv2d(x, channels_last, biases, padding=taps - 1), stride)
    cut = image[:, :, padding : padding + size[0], padding : padding + size[1]]
    return cut.contiguous(memory_format=torch.channels_last)


@_transposed_by_blocks.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, size: list[int]) -> Tensor:
    shape = (x.shape[0], weight.shape[1], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
