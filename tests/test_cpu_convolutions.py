"""The other forms of convolutions are the same functions, gradients included."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

import vaelib as vl
from vaelib.training.cpu_convolutions import fast_convolutions


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("stride", [2, pytest.param(3, marks=pytest.mark.slow)])
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


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks at tensors that are no leaves
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_whole_model(compiled):
    model = vl.presets.article_vae().double().eval()
    x = torch.rand(3, 1, 32, 32, dtype=torch.float64)

    def gradients(step):
        model.zero_grad()
        torch.manual_seed(0)
        step(model, x).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    expected = gradients(vl.Elbo())
    with fast_convolutions(model):
        assert sum("forward" in vars(module) for module in model.modules()) == 8
        step = torch.compile(vl.Elbo(), backend="aot_eager") if compiled else vl.Elbo()
        gradients(step)  # compiles
        with torch.profiler.profile() as profile:
            torch.testing.assert_close(gradients(step), expected)
    operators = [event.name for event in profile.events()]
    # One makes the images, one is the gradient of what the encoder's second layer is given.
    assert operators.count("vaelib::transposed_by_blocks") == 2
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_has_weights_of_its_own(copied):
    """Such as the average of the weights, which is validated in the same forms."""
    layer, x = nn.ConvTranspose2d(3, 2, 4, 2, 1), torch.randn(2, 3, 5, 4)
    with fast_convolutions(layer):
        other = copied(layer)
        expected = other(x)
        nn.init.zeros_(layer.weight)
        assert torch.equal(other(x), expected) and not torch.equal(layer(x), expected)
        assert other.forward.__self__ is other
    assert torch.equal(copied(other)(x), expected)


def test_second_derivatives():
    layer = nn.ConvTranspose2d(3, 2, 4, 2, 1).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    with fast_convolutions(layer):
        assert torch.autograd.gradgradcheck(layer, (x,))


def test_mixed_precision():
    layer, x = nn.Conv2d(4, 4, 3, 2), torch.randn(2, 4, 9, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with fast_convolutions(layer):
            y = layer(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    y.sum().backward()


def with_its_own_forward(layer):
    layer.forward = layer._conv_forward
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, 2, groups=2),
        nn.Conv2d(4, 4, 3, 2, dilation=2),
        nn.Conv2d(4, 4, (3, 2), 2),
        nn.Conv2d(4, 4, 3, 2, padding=(1, 0)),
        nn.Conv2d(4, 4, 3, 2, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1, 2, padding="valid"),
        type("Own", (nn.Conv2d,), {})(4, 4, 3, 2),
        with_its_own_forward(nn.Conv2d(4, 4, 3, 2)),
    ],
)
def test_others_are_left_alone(layer):
    before = dict(vars(layer))
    with fast_convolutions(layer):
        assert vars(layer) == before
    assert vars(layer) == before
