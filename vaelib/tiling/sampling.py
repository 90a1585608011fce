"""Operators that change the size of a map or look at neighbours: convolutions, poolings, resizing, pads and slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils._pytree import tree_leaves

from vaelib.tiling.reach import Reach, UnboundedError

__all__ = ["SAMPLING", "Call", "Dims", "Rule", "Same", "Value"]


class Same(NamedTuple):
    """An axis along which the values are the same everywhere, such as the planes of a condition."""


Dims = tuple[Reach | Same | None, ...]
"""By dimension of a tensor: how it lies over the input; None of a batch, of channels, and of all those of weights."""


@dataclass(frozen=True)
class Value:
    """A tensor of the traced network."""

    dims: Dims
    shape: tuple[int, ...]

    def over(self, *dims: int) -> bool:
        """Whether one of these dimensions lies over the input; of all dimensions if none is named."""
        return any(self.dims[dim] is not None for dim in dims or range(len(self.dims)))


@dataclass(frozen=True)
class Call:
    """One call of an operator."""

    arguments: Mapping[str, Any]
    """By the names of its schema; a :class:`Value` in the place of a tensor."""
    shapes: list[tuple[int, ...]]
    """Of its results."""

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def values(self) -> list[Value]:
        """All tensors among the arguments."""
        return [value for value in tree_leaves(dict(self.arguments)) if isinstance(value, Value)]

    @property
    def first(self) -> Value:
        """The first argument."""
        value: Value = next(iter(self.arguments.values()))
        return value


Rule = Callable[[Call], Any]
"""From a call to the :data:`Dims` of its result, or a list of them."""


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return (numbers[0], numbers[-1])


def _resized(call: Call, change: Callable[[Reach, int, int], Reach]) -> Dims:
    """A feature map of which ``change(reach, its place among the two, its new size)`` makes another."""
    *others, rows, columns = call.first.dims
    if not isinstance(rows, Reach) or not isinstance(columns, Reach) or any(dim is not None for dim in others):
        raise UnboundedError("reads something else than a feature map (B, C, H, W)")
    height, width = call.shapes[0][-2:]
    return (*others, change(rows, 0, height), change(columns, 1, width))


def _convolution(call: Call) -> Dims:
    kernel, stride, dilation = call["weight"].shape[2:], _pair(call["stride"]), _pair(call["dilation"])
    padding = call["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = [0, 0] if padding == "valid" else [each // 2 for each in total]
    padding = _pair(padding)
    return _resized(call, lambda r, i, size: r.window(kernel[i], stride[i], padding[i], dilation[i], size))


def _transposed(call: Call) -> Dims:
    kernel, stride, dilation = call["weight"].shape[2:], _pair(call["stride"]), _pair(call["dilation"])
    padding = _pair(call["padding"])
    return _resized(call, lambda r, i, size: r.transposed(kernel[i], stride[i], padding[i], dilation[i], size))


def _pooling(call: Call) -> Dims:
    if call["ceil_mode"]:
        raise UnboundedError("pools with ceil_mode")
    kernel, padding, dilation = (
        _pair(call["kernel_size"]),
        _pair(call["padding"]),
        _pair(call.arguments.get("dilation", 1)),
    )
    stride = _pair(call["stride"] or kernel)
    return _resized(call, lambda r, i, size: r.window(kernel[i], stride[i], padding[i], dilation[i], size))


def _nearest(call: Call) -> Dims:
    return _enlarged(call, lambda o, times: [o // times])


def _bilinear(call: Call) -> Dims:
    if call["align_corners"]:
        raise UnboundedError("interpolates with align_corners, by the size of the whole map")

    def reads(o: int, times: int) -> list[int]:
        whole, rest = divmod(2 * o + 1 - times, 2 * times)
        return [whole, whole + 1] if rest else [whole]

    return _enlarged(call, reads, border=[0])


def _bicubic(call: Call) -> Dims:
    if call["align_corners"]:
        raise UnboundedError("interpolates with align_corners, by the size of the whole map")
    return _enlarged(
        call, lambda o, t: range((2 * o + 1 - t) // (2 * t) - 1, (2 * o + 1 - t) // (2 * t) + 3), border=[0]
    )


def _enlarged(call: Call, reads: Callable[[int, int], Sequence[int]], border: Sequence[int] = ()) -> Dims:
    before, scales = call.first.shape[-2:], call["scale_factors"] or (None, None)

    def change(reach: Reach, i: int, size: int) -> Reach:
        times, rest = divmod(size, before[i])
        if rest or not times or scales[i] not in (None, times):
            raise UnboundedError(f"interpolates from {before[i]} to {size} cells, by no whole number")
        return reach.bordered(border, border).resampled(times, 1, size, lambda o: reads(o, times))

    return _resized(call, change)


def _shuffle(call: Call) -> Dims:
    times = call["upscale_factor"]
    return _resized(call, lambda r, _, size: r.resampled(times, 1, size, lambda o: [o // times]))


def _unshuffle(call: Call) -> Dims:
    times = call["downscale_factor"]
    return _resized(call, lambda r, _, size: r.window(times, times, 0, 1, size))


def _pad(call: Call) -> Dims:
    pads, mode = call[next(name for name in ("pad", "padding") if name in call.arguments)], call.arguments.get("mode")
    dims = list(call.first.dims)
    for i in range(len(pads) // 2):
        dim, (before, after) = -1 - i, pads[2 * i : 2 * i + 2]
        reach = dims[dim]
        if reach is None or before == after == 0:
            continue
        if isinstance(reach, Same) or mode == "circular":
            raise UnboundedError("pads with the other end" if mode == "circular" else "pads planes that are the same")
        if mode == "reflect":
            reach = reach.bordered(range(1, before + 1), range(1, after + 1))
        elif mode == "replicate":
            reach = reach.bordered([0][:before], [0][:after])
        dims[dim] = reach.window(1, 1, before, 1, call.shapes[0][dim])
    return tuple(dims)


def _sliced(call: Call) -> Dims:
    dims, dim = list(call.first.dims), call["dim"]
    reach, start, size = dims[dim], call["start"] or 0, call.shapes[0][dim]
    if isinstance(reach, Reach) and size != call.first.shape[dim]:
        if start < 0:
            raise UnboundedError("takes cells counted from the end")
        dims[dim] = reach.window(1, call["step"], -start, 1, size)
    return tuple(dims)


SAMPLING: dict[str, Rule] = {
    "conv2d": _convolution,
    "conv_transpose2d": _transposed,
    **dict.fromkeys(("max_pool2d", "avg_pool2d"), _pooling),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d"), _nearest),
    "upsample_bilinear2d": _bilinear,
    "upsample_bicubic2d": _bicubic,
    "pixel_shuffle": _shuffle,
    "pixel_unshuffle": _unshuffle,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "slice": _sliced,
}
