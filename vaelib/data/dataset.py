"""The one container that every source fills and every consumer reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vaelib._checks import DataError, check_choice, check_int, check_shape, check_unit_range

__all__ = ["ImageDataset", "fit_to_size"]


def fit_to_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop ``(..., C, H, W)`` around the centre to the aspect ratio of ``size``, then resize bilinearly."""
    from torchvision.transforms.v2 import functional as tv

    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    scale = min(height / size[0], width / size[1])
    crop = [max(1, round(size[0] * scale)), max(1, round(size[1] * scale))]
    return tv.resize(tv.center_crop(images, crop), list(size), antialias=True)


class ImageDataset(Dataset[Tensor]):
    """Images in memory, 8-bit where they came so; batches are float32 in [0, 1].

    Args:
        images: ``(N, C, H, W)``, uint8 or floating point in [0, 1], at least one image.
        labels: Class per image, ``(N,)`` int64, or None.
        factors: Ground-truth factors per image as class indices, ``(N, F)`` int64, or None.
        factor_names: Their F names.
        dynamic: Draw black or white pixels with the images' values as probabilities, anew in every batch.

    Raises:
        DataError: A ``ValueError``: if there is no image.
        ValueError: If shapes disagree or values leave [0, 1].
        TypeError: If ``images`` is no tensor of one of these dtypes.

    Examples:
        >>> dataset = ImageDataset(torch.full((10, 1, 8, 8), 255, dtype=torch.uint8))
        >>> len(dataset), dataset.image_shape, dataset.batch(torch.tensor([0, 3])).mean()
        (10, (1, 8, 8), tensor(1.))
    """

    def __init__(
        self,
        images: Tensor,
        *,
        labels: Tensor | None = None,
        factors: Tensor | None = None,
        factor_names: Sequence[str] = (),
        dynamic: bool = False,
    ) -> None:
        if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"`images` must be a tensor, uint8 or floating point in [0, 1], got {got}.")
        check_shape("images", images.shape, ("N", "C", "H", "W"))
        if images.numel() == 0:
            raise DataError(f"`images` must hold at least one pixel, got shape {tuple(images.shape)}.")
        if images.is_floating_point():
            check_unit_range("images", images)
        if labels is not None:
            check_shape("labels", labels.shape, (len(images),))
        if factors is not None:
            check_shape("factors", factors.shape, (len(images), len(factor_names)))
        self.images, self.labels, self.factors = images, labels, factors
        self.factor_names = tuple(factor_names)
        self.dynamic = dynamic

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.batch(torch.tensor([index]))[0]

    def __repr__(self) -> str:
        extras = [name for name in ("labels", "factors") if getattr(self, name) is not None]
        extras += ["dynamically binarised"] if self.dynamic else []
        listed = "".join(f", {extra}" for extra in extras)
        return f"ImageDataset({len(self)} images, {self.image_shape}, {self.images.dtype}{listed})"

    def batch(
        self, indices: Tensor | slice, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """float32 images ``(B, C, H, W)`` in [0, 1]; ``generator`` is for dynamic binarisation."""
        return _to_float(self.images[indices], self.dynamic, generator)

    def batches(
        self, batch_size: int, *, shuffle: bool = False, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """One pass over all images, in batches of at most ``batch_size`` whose sizes differ by at most one.

        A small last batch would weigh its images more, and batch normalisation cannot use a single one.

        Args:
            batch_size: >= 1.
            shuffle: In a random order.
            generator: Of the order and of dynamic binarisation; on the images' device.

        Yields:
            float32 ``(B, C, H, W)`` in [0, 1].

        Examples:
            >>> dataset = ImageDataset(torch.rand(10, 1, 4, 4))
            >>> [len(batch) for batch in dataset.batches(4)]
            [4, 3, 3]
        """
        check_int("batch_size", batch_size)
        device = self.images.device
        count = len(self)
        order = torch.randperm(count, generator=generator, device=device) if shuffle else None
        parts = -(-count // batch_size)
        edges = [count * part // parts for part in range(parts + 1)]
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            indices = slice(start, stop) if order is None else order[start:stop]
            yield self.batch(indices, generator=generator)

    def to(self, device: torch.device | str) -> ImageDataset:
        """The same set with its images on ``device``."""
        return self._with(self.images.to(device))

    def subset(self, indices: Tensor | slice) -> ImageDataset:
        """The images at ``indices``, with their labels and factors."""
        return ImageDataset(
            self.images[indices],
            labels=None if self.labels is None else self.labels[indices],
            factors=None if self.factors is None else self.factors[indices],
            factor_names=self.factor_names,
            dynamic=self.dynamic,
        )

    def holdout(self, split: str) -> ImageDataset:
        """The test tenth (at least one image) or the training rest of a fixed random order."""
        check_choice("split", split, ("train", "test"))
        if len(self) < 2:
            raise DataError(f"A train/test split needs at least 2 images, got {len(self)}; use split='all'.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        num_test = max(1, len(self) // 10)
        return self.subset((order[:num_test] if split == "test" else order[num_test:]).sort().values)

    def resized(self, size: tuple[int, int]) -> ImageDataset:
        """All images cropped and resized to ``(height, width)``."""
        return self._with(fit_to_size(self.images, size).clamp(0, 255 if self.images.dtype == torch.uint8 else 1))

    def binarized(self, how: str | None, *, seed: int = 0) -> ImageDataset:
        """Black and white: ``"static"``, drawn once with ``seed``; ``"dynamic"``, per use; None, as it is."""
        check_choice("binarize", how, ("static", "dynamic", None))
        if how == "static":
            generator = torch.Generator().manual_seed(seed)
            # In pieces, since a float copy of a large 8-bit set would not fit.
            drawn = [_to_float(piece, True, generator).to(torch.uint8) * 255 for piece in self.images.split(4096)]
            return self._with(torch.cat(drawn))
        return self._with(self.images, dynamic=how == "dynamic")

    @staticmethod
    def concatenate(parts: Sequence[ImageDataset]) -> ImageDataset:
        """Several sets of one kind, in order."""

        def joined(field: str) -> Tensor | None:
            values = [getattr(part, field) for part in parts]
            return None if any(value is None for value in values) else torch.cat(values)

        return ImageDataset(
            torch.cat([part.images for part in parts]),
            labels=joined("labels"),
            factors=joined("factors"),
            factor_names=parts[0].factor_names,
            dynamic=parts[0].dynamic,
        )

    def _with(self, images: Tensor, *, dynamic: bool | None = None) -> ImageDataset:
        return ImageDataset(
            images,
            labels=self.labels,
            factors=self.factors,
            factor_names=self.factor_names,
            dynamic=self.dynamic if dynamic is None else dynamic,
        )


def _to_float(images: Tensor, binarize: bool, generator: torch.Generator | None) -> Tensor:
    values = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
    return torch.bernoulli(values, generator=generator) if binarize else values
