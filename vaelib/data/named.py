"""torchvision's data sets by name, below the folder that ``VAELIB_DATA`` names."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaelib._checks import MissingExtraError
from vaelib.data.dataset import ImageDataset
from vaelib.data.derive import concatenated, fit_to_size, resized

__all__ = ["NAMES", "PROTOCOLS", "load_named", "load_protocol", "named_splits"]


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
            images, labels = NAMES[name](Path(root), part, size, download)
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


def _grey(set_name: str) -> Callable[[Path, str, Any, bool], tuple[Tensor, Tensor]]:
    def read(root: Path, split: str, size: Any, download: bool) -> tuple[Tensor, Tensor]:
        from torchvision import datasets

        source = getattr(datasets, set_name)(root, train=split == "train", download=download)
        return source.data[:, None], source.targets

    return read


def _cifar10(root: Path, split: str, size: Any, download: bool) -> tuple[Tensor, Tensor]:
    from torchvision import datasets

    source = datasets.CIFAR10(root, train=split == "train", download=download)
    return torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(source.targets)


def _svhn(root: Path, split: str, size: Any, download: bool) -> tuple[Tensor, Tensor]:
    from torchvision import datasets

    if importlib.util.find_spec("scipy") is None:
        raise MissingExtraError("The data set 'svhn'", "data")
    source = datasets.SVHN(root, split=split, download=download)
    return torch.from_numpy(source.data), torch.from_numpy(source.labels).long()


def _celeba(root: Path, split: str, size: tuple[int, int] | None, download: bool) -> tuple[Tensor, Tensor | None]:
    from torchvision import datasets
    from torchvision.transforms.v2 import functional as tv

    source = datasets.CelebA(
        root, split="valid" if split == "val" else split, target_type="identity", download=download
    )
    wanted = size or (218, 178)
    images = torch.stack([fit_to_size(tv.pil_to_tensor(image), wanted) for image, _ in source])
    return images, source.identity[:, 0]


NAMES: dict[str, Callable[[Path, str, Any, bool], tuple[Tensor, Tensor | None]]] = {
    "mnist": _grey("MNIST"),
    "fashion_mnist": _grey("FashionMNIST"),
    "kmnist": _grey("KMNIST"),
    "cifar10": _cifar10,
    "svhn": _svhn,
    "celeba": _celeba,
}
PROTOCOLS = {"dynamic_mnist": "dynamic", "static_mnist": "static"}
"""How each binarises MNIST."""
