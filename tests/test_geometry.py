import itertools

import pytest
import torch
from torch import nn

from vaelib._geometry import plan


@pytest.mark.parametrize(("kernel_size", "stride"), [*itertools.product(range(1, 8), range(1, 5))])
def test_every_size_comes_back_and_keeps_its_pixels(kernel_size, stride):
    for size in range(1, 131):
        for stage in plan((size, 131 - size + 1), 4, kernel_size, stride):
            for axis in (0, 1):
                large, small = stage.large[axis], stage.small[axis]
                padding, remainder = stage.padding[axis], stage.output_padding[axis]
                assert small >= -(-large // stride) >= 1
                assert (large + 2 * padding - kernel_size) // stride + 1 == small
                assert (small - 1) * stride - 2 * padding + kernel_size + remainder == large
                assert 0 <= remainder < max(stride, 1)


def test_torch_agrees():
    for size in (1, 2, 5, 16, 33):
        for stage in plan((size, 7), 3, 4, 2):
            down = nn.Conv2d(1, 1, 4, 2, stage.padding)
            up = nn.ConvTranspose2d(1, 1, 4, 2, stage.padding, stage.output_padding)
            smaller = down(torch.zeros(1, 1, *stage.large))
            assert smaller.shape[2:] == stage.small
            assert up(smaller).shape[2:] == stage.large


def test_halving_is_the_usual_one():
    assert [stage.small for stage in plan((32, 512), 4, 3, 2)] == [(16, 256), (8, 128), (4, 64), (2, 32)]
    assert [stage.small for stage in plan((32, 28), 2, 4, 2)] == [(16, 14), (8, 7)]
    assert all(stage.padding == (1, 1) for stage in plan((32, 28), 2, 4, 2))
