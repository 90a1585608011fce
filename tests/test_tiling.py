"""Tiles of large images: the receptive field of a network is exact, and what tiles give together is the whole's."""

import random
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vaelib._tiles import assembled, tiles_of
from vaelib.tiling import Field, Refusal, receptive_field

ROWS, COLUMNS = 48, 80


class Do(nn.Module):
    """A function as a layer."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def conv(channels, kernel, *, padding=None, mode="zeros", dilation=1, stride=1, groups=1):
    padding = dilation * (kernel // 2) if padding is None else padding
    return nn.Conv2d(channels, channels, kernel, stride, padding, dilation=dilation, padding_mode=mode, groups=groups)


def padded(pads, layer, mode="constant"):
    return Do(lambda x, inner: inner(F.pad(x, pads, mode)), layer)


def same(c):
    """Layers that keep the size of a map of ``c`` channels."""
    return [
        lambda: conv(c, 3),
        lambda: conv(c, 5, mode="reflect"),
        lambda: conv(c, 3, mode="replicate", dilation=2),
        lambda: conv(c, 1),
        lambda: padded((0, 1, 1, 0), conv(c, 2, padding=0)),
        lambda: padded((2, 0, 0, 2), conv(c, 3, padding=0), "reflect"),
        lambda: Do(lambda x, *inner: x + inner[1](F.silu(inner[0](x))), conv(c, 3, groups=c), conv(c, 3)),
        lambda: nn.Sequential(nn.BatchNorm2d(c), nn.SiLU(inplace=True), nn.Dropout2d(0.5)),
        lambda: Do(lambda x: F.normalize(x, dim=1)),
        lambda: Do(lambda x, norm: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(c)),
        lambda: Do(lambda x, linear: linear(x.movedim(1, -1)).movedim(-1, 1), nn.Linear(c, c)),
        lambda: Do(lambda x: torch.cat([half.tanh() for half in x.chunk(2, dim=1)], 1)),
        lambda: Do(lambda x: x.softmax(1) + x.mean(1, keepdim=True)),
        lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        lambda: Do(lambda x: F.pad(x[:, :, 1:, :-2], (2, 0, 0, 1))),
    ]


def down(c):
    """Layers that halve the size."""
    return [
        lambda: conv(c, 3, stride=2),
        lambda: conv(c, 4, padding=1, stride=2),
        lambda: conv(c, 2, padding=0, stride=2),
        lambda: padded((0, 1, 0, 1), conv(c, 3, padding=0, stride=2)),
        lambda: nn.MaxPool2d(3, 2, 1),
        lambda: nn.AvgPool2d(2),
        lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * c, c, 1)),
        lambda: Do(lambda x, inner: inner(x)[:, :, ::2, 1::2], conv(c, 3)),
    ]


def up(c):
    """Layers that double it."""
    return [
        lambda: nn.ConvTranspose2d(c, c, 4, 2, 1),
        lambda: nn.ConvTranspose2d(c, c, 3, 2, 1, 1),
        lambda: nn.ConvTranspose2d(c, c, 2, 2),
        lambda: Do(lambda x, inner: inner(x)[..., :-1, 1:], nn.ConvTranspose2d(c, c, 3, 2)),
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(c, 3)),
        lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
        lambda: Do(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic")),
        lambda: nn.Sequential(nn.Conv2d(c, 4 * c, 3, padding=1), nn.PixelShuffle(2)),
    ]


def random_network(seed):
    """A network of bounded view: an encoder, a decoder, or down and up again."""
    draw, c = random.Random(seed), 4
    torch.manual_seed(seed)
    order = draw.choice([[down] * draw.randint(0, 3), [up] * draw.randint(0, 3), [down, up]])
    layers = [nn.Conv2d(c, c, 1)]
    for makers in [*order, None]:
        layers += [draw.choice(same(c))() for _ in range(draw.randint(0, 2))]
        layers += [draw.choice(makers(c))()] if makers else []
    return nn.Sequential(*layers).eval()


def whole_and_tiled(network, field, x, tile):
    with torch.no_grad():
        (found,) = assembled(
            lambda values: [network(values)],
            x,
            field,
            tiles_of(field, x.shape[2:], tile),
            empty=lambda like, shape: like.new_full(shape, torch.nan),
            like=lambda like, numbers: like.new_tensor(numbers),
        )
        return network(x), found


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.slow if seed >= 8 else ()) for seed in range(50)]
)
def test_tiles_of_random_networks_are_the_whole_and_no_smaller_radius_would_do(seed):
    network = random_network(seed)
    field = receptive_field(network, [torch.zeros(1, 4, ROWS, COLUMNS)])
    assert isinstance(field, Field), str(field)
    pixels = max(field.rows.step, field.rows.cells)
    smallest = max(max(axis.low + axis.high + 1, axis.least) for axis in field)
    draw = random.Random(seed)
    for _ in range(3):
        tile = pixels * draw.randint(smallest, 3 * smallest)
        steps = [max(draw.randint(1, 4 * smallest + 6), axis.least) for axis in field]
        x = torch.randn(2, 4, *(axis.step * size for axis, size in zip(field, steps, strict=True)))
        whole, tiled = whole_and_tiled(network, field, x, tile)
        assert (whole - tiled).abs().max() <= 1e-6 * (whole.max() - whole.min())
    for dim, axis in enumerate(field, start=2):
        check_radius(network.double(), axis, dim)


def check_radius(network, axis, dim):
    """One step less than the radius gives other values, on either side by itself, and the radius does not."""
    middle = axis.low + axis.high + axis.least
    sizes = [4 * axis.step, 4 * axis.step]
    sizes[dim - 2] = (2 * middle + 2) * axis.step
    x = torch.randn(8, 4, *sizes, dtype=torch.float64)
    with torch.no_grad():
        whole = network(x)
        for radius, is_enough in ((axis.low, True), (axis.low - 1, False)):
            start = middle - radius
            if radius >= 0:
                part = network(x.narrow(dim, start * axis.step, sizes[dim - 2] - start * axis.step))
                kept = part.narrow(dim, radius * axis.cells, part.shape[dim] - radius * axis.cells)
                assert (
                    torch.allclose(kept, whole.narrow(dim, middle * axis.cells, kept.shape[dim]), 0, 1e-12) == is_enough
                )
        for radius, is_enough in ((axis.high, True), (axis.high - 1, False)):
            if radius >= 0:
                part = network(x.narrow(dim, 0, (middle + 1 + radius) * axis.step))
                kept = part.narrow(dim, 0, (middle + 1) * axis.cells)
                assert torch.allclose(kept, whole.narrow(dim, 0, kept.shape[dim]), 0, 1e-12) == is_enough


def test_a_rectifier_with_a_slope_for_each_channel_looks_at_its_own_cell_only():
    layers, example = [conv(4, 3), nn.PReLU(4), nn.PReLU()], torch.zeros(1, 4, ROWS, COLUMNS)
    expected = receptive_field(layers[0], [example])
    assert isinstance(expected, Field)
    for network in (nn.Sequential(*layers), nn.Sequential(*layers, nn.SiLU(inplace=True))):
        assert receptive_field(network, [example]) == expected


SPATIAL = [
    (lambda c: nn.GroupNorm(2, c), r"`1\.layers\.0` \(GroupNorm\) takes mean and variance over the whole map"),
    (lambda c: nn.InstanceNorm2d(c), r"\(InstanceNorm2d\) takes mean and variance"),
    (lambda c: nn.LayerNorm([c, ROWS, COLUMNS]), r"\(LayerNorm\) takes in the whole map"),
    (lambda c: nn.BatchNorm2d(c).train(), r"\(BatchNorm2d\) takes the statistics of the batch"),
    (lambda c: nn.Dropout().train(), r"\(Dropout\) draws random numbers"),
    (lambda c: nn.AdaptiveAvgPool2d(4), r"\(AdaptiveAvgPool2d\) pools the whole map to a fixed size"),
    (lambda c: conv(c, 3, mode="circular"), r"\(Conv2d\) pads with the other end"),
    (lambda c: nn.AvgPool2d(3, ceil_mode=True), r"\(AvgPool2d\) pools with ceil_mode"),
    (lambda c: nn.Upsample(scale_factor=1.5), r"\(Upsample\) interpolates from 48 to 72 cells, by no whole number"),
    (lambda c: nn.Upsample(size=(ROWS, 81)), r"\(Upsample\) interpolates from 80 to 81 cells"),
    (lambda c: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), r"interpolates with align_corners"),
    (lambda c: nn.Upsample(scale_factor=2, mode="bicubic", align_corners=True), r"interpolates with align_corners"),
    (lambda c: Do(lambda x: x - x.mean((2, 3), keepdim=True)), r"`1\.layers\.0` \(Do\) takes in the whole map"),
    (lambda c: Do(lambda x: x.softmax(-1)), r"\(Do\) takes in the whole map"),
    (lambda c: Do(lambda x: x.flatten(2).transpose(1, 2)), r"merges or splits the rows and columns"),
    (lambda c: Do(lambda x: x @ x.mT), r"multiplies matrices over the map"),
    (lambda c: Do(lambda x: F.scaled_dot_product_attention(x, x, x)), r"attends to the whole map"),
    (lambda c: Do(lambda x: torch.cat([x, x], 3)), r"puts maps beside each other"),
    (lambda c: Do(lambda x: x.chunk(2, 2)[0]), r"takes a map apart"),
    (lambda c: Do(lambda x: x[:, :, -8:]), r"takes cells counted from the end"),
    (lambda c: Do(lambda x: x[:, :, :8]), r"the output is of 8 cells where the input is of 48"),
    (
        lambda c: Do(lambda x: x.roll(1, 2)),
        r"calls aten\.roll\.default, of which vaelib does not know how far it looks",
    ),
    (lambda c: Do(lambda x: x + torch.linspace(0, 1, COLUMNS)), r"has values of its own for each place"),
    (lambda c: Do(lambda x: x[..., :ROWS] + x[..., :ROWS].mT), r"puts together maps of another scale or orientation"),
    (lambda c: Do(lambda x: x if x.mean() > 0 else -x), r"cannot be traced by torch"),
    (lambda c: Do(lambda x: x.mean(1)), r"the output of shape \(1, 48, 80\) is no feature map"),
    (lambda c: Do(lambda x: F.conv2d(x.mT, torch.ones(4, 4, 1, 1))), r"no feature map"),
    (
        lambda c: Do(lambda x: F.conv2d(x.transpose(0, 2), torch.ones(4, 4, 1, 1))),
        r"reads something else than a feature map",
    ),
]


@pytest.mark.parametrize(("make", "match"), SPATIAL, ids=range(len(SPATIAL)))
def test_whatever_has_no_bound_is_refused_by_name(make, match):
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), Do(lambda x, layer: layer(x), make(4)))
    refusal = receptive_field(network, [torch.zeros(1, 4, ROWS, COLUMNS)])
    assert isinstance(refusal, Refusal), refusal
    assert re.search(match, str(refusal))
