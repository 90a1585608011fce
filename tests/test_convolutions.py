"""The other forms of convolutions are the same functions, gradients included."""

import itertools

import pytest
import torch
from torch import nn

import vaelib as vl
from vaelib.training.convolutions import fast_convolutions


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("stride", [2, 3])
def test_same_values_and_gradients(kind, stride):
    checked = 0
    grid = itertools.product((1, 2, 3, 4, 5), (0, 1, 2), (0, 1, 2), (1, 2, 12), (1, 3, 12), (1, 4, 7), (1, 5))
    for kernel, padding, extra, inputs, outputs, height, width in grid:
        transposed = kind is nn.ConvTranspose2d
        if extra >= stride or (extra and not transposed):
            continue
        sizes = [
            (size - 1) * stride - 2 * padding + kernel + extra if transposed else (size + 2 * padding - kernel)
            for size in (height, width)
        ]
        if min(sizes) < (1 if transposed else 0):
            continue
        more = {"output_padding": extra} if transposed else {}
        layer = kind(inputs, outputs, kernel, stride, padding, bias=bool((height + width) % 2), **more).double()
        x = torch.randn(2, inputs, height, width, dtype=torch.float64, requires_grad=True)
        expected = layer(x)
        seed = torch.randn_like(expected)
        gradients = torch.autograd.grad(expected, [x, *layer.parameters()], seed)
        with fast_convolutions(layer):
            y = layer(x)
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(torch.autograd.grad(y, [x, *layer.parameters()], seed), gradients)
        checked += 1
    assert checked > 300


def test_forms_are_used_and_taken_back():
    model = vl.presets.article_vae()
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    plain = {name: vars(module).get("forward") for name, module in model.named_modules() if isinstance(module, kinds)}
    assert set(plain.values()) == {None}
    x = torch.rand(3, 1, 32, 32)
    model.eval()
    expected = model.reconstruct(x)
    with fast_convolutions(model):
        assert len([module for module in model.modules() if "forward" in vars(module)]) == 8
        torch.testing.assert_close(model.reconstruct(x), expected)
    assert not [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, 2, groups=2),
        nn.Conv2d(4, 4, 3, 2, dilation=2),
        nn.Conv2d(4, 4, (3, 2), 2),
        nn.Conv2d(4, 4, 3, 2, padding=(1, 0)),
        nn.Conv2d(4, 4, 3, 2, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1, 2, padding="valid"),
    ],
)
def test_others_are_left_alone(layer):
    with fast_convolutions(layer):
        assert "forward" not in vars(layer)
