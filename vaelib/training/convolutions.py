"""The same convolutions in the form that a CPU computes fastest.

oneDNN is slow where a convolution has few channels: its kernels work on blocks of 16. A strided convolution is also
one of stride 1 over blocks of pixels, with stride squared times the channels; where the map is one pixel wide it is a
matrix product. The functions are the same up to rounding; ``docs/growing.md`` has what each form gains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["fast_convolutions"]

_FEW = 8  # channels, below a block of oneDNN


@contextmanager
def fast_convolutions(model: nn.Module) -> Iterator[None]:
    """Inside the ``with``, convolutions of ``model`` that gain by it run in another form."""
    changed = []
    for module in model.modules():
        forward = _faster_forward(module)
        if forward is not None:
            module.forward = MethodType(forward, module)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _faster_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return None
    strides, kernel, dilation = module.stride, module.kernel_size, module.dilation
    if module.groups > 1 or dilation != (1, 1) or strides[0] != strides[1] or kernel[0] != kernel[1] or strides[0] < 2:
        return None
    if isinstance(module.padding, str) or module.padding_mode != "zeros" or module.padding[0] != module.padding[1]:
        return None
    return _convolution if isinstance(module, nn.Conv2d) else _transposed


def _convolution(self: nn.Conv2d, x: Tensor) -> Tensor:
    """A product where the kernel covers the map; over blocks of pixels where there are a few channels."""
    kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
    if x.shape[2:] == (kernel, kernel) and padding == 0:
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]
    if not 1 < self.in_channels <= _FEW:
        return nn.Conv2d.forward(self, x)
    taps = -(-kernel // stride)
    spare = taps * stride - kernel
    weight = F.pixel_unshuffle(F.pad(self.weight, (0, spare, 0, spare)), stride)
    small = [(size + 2 * padding - kernel) // stride + 1 for size in x.shape[2:]]
    bottom, right = [(out + taps - 1) * stride - size - padding for out, size in zip(small, x.shape[2:], strict=True)]
    return F.conv2d(F.pixel_unshuffle(F.pad(x, (padding, right, padding, bottom)), stride), weight, self.bias)


def _transposed(self: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A product where the map is one pixel; a convolution that gives blocks of pixels where few channels come out."""
    kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
    large = [
        (size - 1) * stride - 2 * padding + kernel + extra
        for size, extra in zip(x.shape[2:], self.output_padding, strict=True)
    ]
    if x.shape[2:] == (1, 1) and padding == 0 and large == [kernel, kernel]:
        image = (x.flatten(1) @ self.weight.permute(0, 2, 3, 1).flatten(1)).unflatten(1, (kernel, kernel, -1))
        return (image if self.bias is None else image + self.bias).permute(0, 3, 1, 2)
    taps = -(-kernel // stride)
    covered = [(size + taps - 1) * stride - padding for size in x.shape[2:]]
    if self.out_channels > _FEW // 2 or covered[0] < large[0] or covered[1] < large[1]:
        return nn.ConvTranspose2d.forward(self, x)
    spare = taps * stride - kernel
    blocks = F.pad(self.weight, (0, spare, 0, spare)).unflatten(3, (taps, stride)).unflatten(2, (taps, stride))
    weight = blocks.flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)
    bias = None if self.bias is None else self.bias.repeat_interleave(stride**2)
    image = F.pixel_shuffle(F.conv2d(x, weight, bias, padding=taps - 1), stride)
    return image[:, :, padding : padding + large[0], padding : padding + large[1]]
