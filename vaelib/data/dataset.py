"""The one container that every source fills and every consumer reads, and those that are made from it."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from vaelib._checks import DataError, check_bool, check_choice, check_int_tuple
from vaelib._images import Batch, one_pass
from vaelib.data.checks import (
    check_factors,
    check_images,
    check_not_empty,
    checked_names,
    class_labels,
    condition_of,
)
from vaelib.data.guard import check_memory
from vaelib.functional.draws import bernoulli, uniform

Images = TypeVar("Images")


class ImageDataset(Dataset[Any]):
    """Images in memory, 8-bit where they came so; batches are float32 in [0, 1].

    Args:
        images: ``(N, C, H, W)``, uint8 or floating point in [0, 1], at least one image.
        labels: Class of each image, or None: whole numbers >= 0 of any dtype, ``(N,)`` or ``(N, 1)``; one-hot rows
            ``(N, K)``; or N names. Kept as int64 ``(N,)``.
        factors: Ground-truth factors per image as class indices, ``(N, F)`` int64, or None.
        factor_names: Their F names.
        class_names: Names of the classes, by their number; if empty, of labels that are names, these names, sorted.
        names: Source of each image, such as its file; or none.
        dynamic: Draw black or white pixels with the images' values as probabilities, again each time an image is used.
        flip: Mirror each image left to right with probability 1/2, again each time it is used.
        condition: Given in addition to each image: ``"labels"``; ``"factors"``, each scaled to [0, 1]; a tensor
            of one's own, integers ``(N,)`` or floating point ``(N, size)``; or None.

    ``dataset[i]`` is one image as it is used, float32 ``(C, H, W)``: in a ``DataLoader`` too, images are binarised and
    flipped, by torch's global generator, which each worker seeds for itself. With a condition, ``dataset[i]`` and
    batches are a :class:`Batch`: ``(x, condition)``.

    Attributes:
        condition: One row per image, or None.
        num_classes: 1 + the largest label, or the number of ``class_names``: of the whole set in each of its subsets.
        factor_sizes: 1 + the largest value of each factor, likewise.

    Raises:
        DataError: A ``ValueError``: if there is no image, or not what ``condition`` names.
        ValueError: If shapes disagree, values leave [0, 1], or a label is no class number: NaN, 1.7, -1.
        TypeError: If ``images`` is no tensor of one of these dtypes, labels are complex, or factors are no integers.

    Examples:
        >>> dataset = ImageDataset(torch.full((10, 1, 8, 8), 255, dtype=torch.uint8))
        >>> len(dataset), dataset.image_shape, dataset.batch(torch.tensor([0, 3])).mean()
        (10, (1, 8, 8), tensor(1.))
    """

    def __init__(
        self,
        images: Tensor,
        *,
        labels: Tensor | Sequence[str] | None = None,
        factors: Tensor | None = None,
        factor_names: Sequence[str] = (),
        class_names: Sequence[str] = (),
        names: Sequence[str] = (),
        dynamic: bool = False,
        flip: bool = False,
        condition: str | Tensor | None = None,
    ) -> None:
        check_images(images)
        check_bool("dynamic", dynamic)
        check_bool("flip", flip)
        self.factor_names = checked_names("factor_names", factor_names)
        self.class_names = checked_names("class_names", class_names)
        self.names = checked_names("names", names, len(images))
        self.labels: Tensor | None = None
        if labels is not None:
            self.labels, self.class_names = class_labels(labels, len(images), self.class_names)
        if factors is not None:
            check_factors(factors, (len(images), len(factor_names)))
        self.images, self.factors, self.dynamic, self.flip = images, factors, dynamic, flip
        self.num_classes = 0 if self.labels is None else len(self.class_names) or int(self.labels.max()) + 1
        self.factor_sizes = () if factors is None else tuple((factors.amax(0) + 1).tolist())
        self.condition: Tensor | None = condition_of(condition, self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice) -> Any:
        return paired(self.batch(index), None if self.condition is None else self.condition[index])

    def __repr__(self) -> str:
        extras = [name for name in ("labels", "factors") if getattr(self, name) is not None]
        if self.class_names:
            shown = ", ".join(self.class_names[:10]) + (", ..." if len(self.class_names) > 10 else "")
            extras.append(f"classes {shown}")
        extras += ["dynamically binarised"] if self.dynamic else []
        extras += ["flipped at random"] if self.flip else []
        extras += ["with a condition"] if self.condition is not None else []
        listed = "".join(f", {extra}" for extra in extras)
        return f"ImageDataset({len(self)} images, {self.image_shape}, {self.images.dtype}{listed})"

    def batch(self, indices: Tensor | slice | int, *, generator: Generator | None = None) -> Tensor:
        """float32 images ``(B, C, H, W)`` in [0, 1], those of ``condition[indices]`` if there is a condition.

        ``generator`` is for dynamic binarisation and flips.
        """
        return prepared(self.images[indices], self.dynamic, self.flip, generator)

    def fetch(
        self, parts: Iterable[Tensor], device: torch.device, *, seed: int = 0, generator: Generator | None = None
    ) -> Iterator[Batch]:
        """One batch on ``device`` for each of the ``parts``, which are indices; ``seed`` changes nothing here."""
        for indices in parts:
            at = indices.to(self.images.device, non_blocking=True)
            rows = None if self.condition is None else self.condition[at].to(device, non_blocking=True)
            images = self.images[at].to(device, non_blocking=True)
            yield Batch(prepared(images, self.dynamic, self.flip, generator), rows)

    def batches(self, batch_size: int, *, shuffle: bool = False, generator: Generator | None = None) -> Iterator[Any]:
        """One pass over all images, in batches of at most ``batch_size`` whose sizes differ by at most one.

        A small last batch would weigh its images more, and batch normalisation cannot use a single one.

        Args:
            batch_size: >= 1.
            shuffle: In a random order.
            generator: Random generator for the order, dynamic binarisation and flips, on any device.

        Yields:
            float32 ``(B, C, H, W)`` in [0, 1]; with a condition :class:`Batch`, ``(x, condition)``.

        Examples:
            >>> dataset = ImageDataset(torch.rand(10, 1, 4, 4))
            >>> [len(batch) for batch in dataset.batches(4)]
            [3, 3, 4]
        """
        for batch in one_pass(self, batch_size, self.images.device, shuffle=shuffle, generator=generator):
            yield paired(*batch)

    def to(self, device: torch.device | str) -> ImageDataset:
        """The same set with its images, and their condition, on ``device``."""
        condition = None if self.condition is None else self.condition.to(device)
        return changed(self, images=self.images.to(device), condition=condition)

    def subset(self, indices: Tensor | slice) -> ImageDataset:
        """The images at ``indices``, with their labels, factors and condition."""
        if isinstance(indices, Tensor):
            indices = indices.cpu()  # where labels and factors stay
        images = self.images[indices]
        check_not_empty(images)
        rows = {name: getattr(self, name) for name in ("labels", "factors", "condition")}
        kept = {name: None if values is None else values[indices] for name, values in rows.items()}
        names = [self.names[index] for index in torch.arange(len(self))[indices].tolist()] if self.names else ()
        return changed(self, images=images, names=tuple(names), **kept)

    def replace(self, images: Tensor, *, dynamic: bool | None = None, flip: bool | None = None) -> ImageDataset:
        """The same set with other images ``(N, C', H', W')`` for its labels, factors and condition."""
        names = ("labels", "factors", "factor_names", "class_names", "names", "condition")
        kept: dict[str, Any] = {name: getattr(self, name) for name in names}
        kept["dynamic"] = self.dynamic if dynamic is None else dynamic
        kept["flip"] = self.flip if flip is None else flip
        return ImageDataset(images, **kept)


def changed(source: Images, /, **attributes: object) -> Images:
    """The same set with other attributes, which need no checks."""
    other = copy.copy(source)
    vars(other).update(attributes)
    return other


def paired(x: Tensor, condition: Tensor | None) -> Tensor | Batch:
    """An image, or several, alone or with the condition: what sets give to people and to loaders."""
    return x if condition is None else Batch(x, condition)


def prepared(images: Tensor, binarize: bool, flip: bool, generator: Generator | None) -> Tensor:
    """Images ``(..., C, H, W)`` as they are used: float32 in [0, 1], binarised and flipped at random if asked."""
    values = to_float(images, binarize, generator)
    if not flip:
        return values
    mirrored = uniform((*values.shape[:-3], 1, 1, 1), values, generator) < 0.5
    return torch.where(mirrored, values.flip(-1), values)


def to_float(images: Tensor, binarize: bool, generator: Generator | None) -> Tensor:
    """8-bit or floating images to float32 in [0, 1], or to draws of zero and one with those probabilities."""
    values = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
    return bernoulli(values.clamp(0, 1), generator) if binarize else values


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """One number for a square, or both."""
    pair = (image_size, image_size) if isinstance(image_size, Integral) else image_size
    height, width = check_int_tuple("image_size", pair, length=2)
    return height, width


def fit_to_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop ``(..., C, H, W)`` around the centre to the aspect ratio of ``size``, then resize bilinearly."""
    from torchvision.transforms.v2 import functional as tv

    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    scale = min(height / size[0], width / size[1])
    crop = [max(1, round(size[0] * scale)), max(1, round(size[1] * scale))]
    return tv.resize(tv.center_crop(images, crop), list(size), antialias=True)


def resized(dataset: ImageDataset, size: tuple[int, int]) -> ImageDataset:
    """All images cropped and resized to ``(height, width)``."""
    if dataset.image_shape[1:] == size:
        return dataset
    count, channels = dataset.images.shape[:2]
    taken = count * channels * math.prod(size) * dataset.images.element_size()
    check_memory(f"{count} images of {size[0]} x {size[1]}", taken, "use a smaller `image_size`")
    images = dataset.images.new_empty((count, channels, *size))
    _fill(images, dataset.images, lambda piece: fit_to_size(piece, size))
    return changed(dataset, images=images.clamp_(0, 1) if images.is_floating_point() else images)


def binarized(dataset: ImageDataset, how: str | None, *, seed: int = 0) -> ImageDataset:
    """Black and white: ``"static"``, one fixed draw of ``seed``; ``"dynamic"``, per use; None, as it is."""
    check_choice("binarize", how, ("static", "dynamic", None))
    if how != "static":
        return changed(dataset, dynamic=True) if how == "dynamic" else dataset
    images = torch.empty(dataset.images.shape, dtype=torch.uint8)
    _fill(images, dataset.images, lambda piece: _drawn_once(piece, seed))
    return changed(dataset, images=images)


def _fill(result: Tensor, images: Tensor, convert: Callable[[Tensor], Tensor]) -> None:
    """Write what ``convert`` makes of ``images``, a few at a time: what it makes in between would not fit for all."""
    for piece, converted in zip(images.split(256), result.split(256), strict=True):
        converted.copy_(convert(piece))


def _drawn_once(images: Tensor, seed: int) -> Tensor:
    """Black or white pixels, uint8, with the images' values as probabilities.

    The noise of an image follows from its own values and the seed: an image has the same pixels in every split and
    subset, and no two different images share noise.
    """
    grey = to_float(images, False, None).cpu().numpy()
    noise = (hashlib.shake_128(b"%d " % seed + image.tobytes()).digest(4 * image.size) for image in grey)
    uniform = np.frombuffer(b"".join(noise), "<u4").reshape(grey.shape)
    return torch.from_numpy(uniform < grey.astype(np.float64) * 2**32).to(torch.uint8) * 255


def concatenated(parts: Sequence[ImageDataset]) -> ImageDataset:
    """Several sets of one kind and with the same class names, in order; their values were checked as each was made."""
    if len(parts) == 1:
        return parts[0]
    shapes = list(dict.fromkeys(part.image_shape for part in parts))
    if len(shapes) > 1:
        raise DataError(f"All splits must have images of one shape (C, H, W), got {' and '.join(map(str, shapes))}.")
    is_mixed = len({part.images.dtype for part in parts}) > 1

    def joined(field: str) -> Tensor | None:
        values = [getattr(part, field) for part in parts]
        return None if any(value is None for value in values) else torch.cat(values)

    return changed(
        parts[0],
        images=torch.cat([to_float(part.images, False, None) if is_mixed else part.images for part in parts]),
        labels=joined("labels"),
        factors=joined("factors"),
        condition=joined("condition"),
        num_classes=max(part.num_classes for part in parts),
        factor_sizes=tuple(map(max, *(part.factor_sizes for part in parts))),
        names=tuple(name for part in parts for name in part.names) if all(part.names for part in parts) else (),
    )
