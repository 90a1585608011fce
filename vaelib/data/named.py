"""Sets by name: the built-in ``shapes``, and torchvision's below the folder that ``VAELIB_DATA`` names.

``shapes`` are a square, an ellipse or a heart, with the five factors that drew them.

References:
    Matthey et al. (2017), dSprites: disentanglement testing sprites dataset, whose factors these are.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vaelib._checks import MissingExtraError, check_int, check_shape
from vaelib.data.dataset import ImageDataset, changed, concatenated, fit_to_size, height_and_width, resized
from vaelib.data.guard import check_memory

FACTOR_NAMES = ("shape", "scale", "orientation", "position_x", "position_y")
FACTOR_SIZES = (3, 6, 40, 32, 32)
NUM_SHAPES = {"train": 10_000, "test": 2_000}
"""Images in each split of "shapes"."""

_LARGEST = 0.15  # half the largest shape, in units of the shorter side
_MARGIN = 0.25  # between centres and border: the largest shape stays inside, whatever its orientation
_CHUNK = 1 << 23  # pixels rendered at once, to bound memory


def shapes(num_images: int, *, image_size: int | Sequence[int] = 32, seed: int = 0) -> ImageDataset:
    """Anti-aliased white shapes on black, their five factors drawn uniformly.

    Args:
        num_images: N, >= 1.
        image_size: Height and width in pixels, one number for a square.
        seed: Seed of the factors; the same seed gives the same images.

    Returns:
        An :class:`ImageDataset` of uint8 images ``(N, 1, H, W)`` whose ``factors`` are ``(N, 5)`` class
        indices, named by ``factor_names``, and whose ``labels`` are the shape: 0 square, 1 ellipse, 2 heart.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> dataset = shapes(4, image_size=(24, 16), seed=1)
        >>> dataset.images.shape, dataset.factor_names[2], dataset.factors.shape
        (torch.Size([4, 1, 24, 16]), 'orientation', torch.Size([4, 5]))
    """
    check_int("num_images", num_images)
    generator = torch.Generator().manual_seed(check_int("seed", seed, minimum=0))
    factors = torch.stack([torch.randint(size, (num_images,), generator=generator) for size in FACTOR_SIZES], dim=1)
    images = render(factors, image_size)
    dataset = ImageDataset(images, labels=factors[:, 0].clone(), factors=factors, factor_names=FACTOR_NAMES)
    return changed(dataset, num_classes=FACTOR_SIZES[0], factor_sizes=FACTOR_SIZES)


def render(factors: Tensor, image_size: int | Sequence[int] = 32) -> Tensor:
    """Draw the images of given factors.

    Args:
        factors: Class indices ``(N, 5)``: shape in 0..2, scale in 0..5 (half to full size), orientation in
            0..39 (a full turn), horizontal and vertical position in 0..31.
        image_size: Height and width in pixels, one number for a square.

    Returns:
        uint8 ``(N, 1, H, W)``.

    Examples:
        >>> square = render(torch.tensor([[0, 5, 0, 16, 16]]), image_size=64)
        >>> square.float().mean().round()  # 255 times the area 0.3^2
        tensor(23.)
    """
    height, width = height_and_width(image_size)
    check_shape("factors", factors.shape, ("N", len(FACTOR_SIZES)))
    if ((factors < 0) | (factors >= torch.tensor(FACTOR_SIZES))).any():
        raise ValueError(f"`factors` must be >= 0 and below {FACTOR_SIZES}, got up to {factors.amax(0).tolist()}.")
    check_memory(
        f"{len(factors)} images of {height} x {width}", 2 * len(factors) * height * width, "use a smaller `image_size`"
    )
    pieces = factors.split(max(1, _CHUNK // (height * width)))
    return torch.cat([_render(piece, height, width) for piece in pieces])


def _render(factors: Tensor, height: int, width: int) -> Tensor:
    kind, scale, orientation, column, row = factors.unbind(1)
    unit = min(height, width)
    half = _LARGEST * (0.5 + 0.5 * scale / (FACTOR_SIZES[1] - 1))
    angle = orientation * (2 * math.pi / FACTOR_SIZES[2])
    centre_x = _MARGIN + column / (FACTOR_SIZES[3] - 1) * (width / unit - 2 * _MARGIN)
    centre_y = _MARGIN + row / (FACTOR_SIZES[4] - 1) * (height / unit - 2 * _MARGIN)

    x = ((torch.arange(width) + 0.5) / unit)[None, None, :] - centre_x[:, None, None]
    y = ((torch.arange(height) + 0.5) / unit)[None, :, None] - centre_y[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    across = (cos * x + sin * y) / half[:, None, None]
    down = (cos * y - sin * x) / half[:, None, None]

    pixels_per_half = half[:, None, None] * unit
    coverage = torch.empty(len(factors), height, width)
    for index, distance in enumerate(_DISTANCES):
        chosen = kind == index
        outside = distance(across[chosen], down[chosen]) * pixels_per_half[chosen]
        coverage[chosen] = (0.5 - outside).clamp(0, 1)
    return coverage.mul_(255).round_().to(torch.uint8)[:, None]


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 1


def _ellipse(x: Tensor, y: Tensor) -> Tensor:
    """Distance to first order: the implicit function over the length of its gradient."""
    x, y = x / 1.3, y / 0.75
    length = torch.hypot(x / 1.3, y / 0.75).clamp(min=1e-6)
    return (x.square() + y.square() - 1) / (2 * length)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner with a disc on each of its two upper sides."""
    half = 0.62
    right, left = (x - y) / math.sqrt(2), (-x - y) / math.sqrt(2)
    square = torch.maximum(right.abs(), left.abs())
    discs = torch.minimum(torch.hypot(right - half, left), torch.hypot(right, left - half))
    return torch.minimum(square, discs) - half


_DISTANCES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_square, _ellipse, _heart)


def load_shapes(split: str, size: tuple[int, int], seed: int) -> ImageDataset:
    """10,000 shapes to train, 2,000 to test, or both."""
    parts = [part for part in NUM_SHAPES if split in (part, "all")]
    return concatenated([shapes(NUM_SHAPES[p], image_size=size, seed=2 * seed + (p == "test")) for p in parts])


def load_named(name: str, split: str, size: tuple[int, int] | None, *, download: bool) -> ImageDataset:
    """Official splits of a torchvision set; ``"all"`` is all of them in order."""
    root = os.environ.get("VAELIB_DATA")
    if root is None:
        raise FileNotFoundError(
            f"Data set {name!r} is looked for below the folder that the environment variable VAELIB_DATA"
            " names, and it is not set."
        )
    parts = []
    for part in named_splits(name) if split == "all" else (split,):
        try:
            images, labels = _read(name, Path(root), part, size, download)
        except (RuntimeError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"Data set {name!r} ({part}) was not found below VAELIB_DATA={root}."
                " Put its files there as torchvision expects them, or pass download=True"
                f" (--download on the command line). torchvision said: {error}"
            ) from error
        dataset = ImageDataset(images, labels=labels)
        parts.append(dataset if size is None else resized(dataset, size))
    return concatenated(parts)


def named_splits(name: str) -> tuple[str, ...]:
    """The official splits of a named set."""
    return ("train", "val", "test") if name in ("celeba", *PROTOCOLS) else ("train", "test")


def load_protocol(split: str, size: tuple[int, int] | None, *, download: bool) -> ImageDataset:
    """MNIST as papers on likelihoods cut it: 50,000 images to train, the last 10,000 for ``"val"``."""
    images = load_named("mnist", "train" if split == "val" else split, size, download=download)
    if split in ("train", "val"):
        images = images.subset(slice(50_000) if split == "train" else slice(50_000, None))
    return images


def _read(
    name: str, root: Path, split: str, size: tuple[int, int] | None, download: bool
) -> tuple[Tensor, Tensor | None]:
    """Images and labels of an official split; those of CelebA are resized as they are read."""
    from torchvision import datasets
    from torchvision.transforms.v2 import functional as tv

    if name == "celeba":
        part = "valid" if split == "val" else split
        source = datasets.CelebA(root, split=part, target_type="identity", download=download)
        images = [fit_to_size(tv.pil_to_tensor(image), size or (218, 178)) for image, _ in source]
        return torch.stack(images), source.identity[:, 0]
    if name == "svhn":
        if importlib.util.find_spec("scipy") is None:
            raise MissingExtraError("The data set 'svhn'", "data")
        source = datasets.SVHN(root, split=split, download=download)
        return torch.from_numpy(source.data), torch.from_numpy(source.labels).long()
    source = getattr(datasets, NAMES[name])(root, train=split == "train", download=download)
    if name == "cifar10":
        return torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(source.targets)
    return source.data[:, None], source.targets


NAMES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "svhn": "SVHN",
    "celeba": "CelebA",
}
"""torchvision's names."""
PROTOCOLS = {"dynamic_mnist": "dynamic", "static_mnist": "static"}
"""How each binarises MNIST."""
BUILT_IN = ("shapes", *NAMES, *PROTOCOLS)
