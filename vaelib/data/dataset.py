"""The one container that every source fills and every consumer reads."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from vaelib._checks import (
    DataError,
    check_bool,
    check_has_values,
    check_shape,
    check_tensor,
    check_type,
    check_unit_range,
)
from vaelib._images import Batch, one_pass
from vaelib.data.guard import check_plain_tensor
from vaelib.data.labels import class_labels, class_names_of
from vaelib.data.skipped import warn
from vaelib.functional.draws import bernoulli, uniform

__all__ = ["ImageDataset", "changed", "prepared", "to_float"]

Images = TypeVar("Images")


class ImageDataset(Dataset[Tensor]):
    """Images in memory, 8-bit where they came so; batches are float32 in [0, 1].

    Args:
        images: ``(N, C, H, W)``, uint8 or floating point in [0, 1], at least one image.
        labels: Class of each image, or None: whole numbers >= 0 of any dtype, ``(N,)`` or ``(N, 1)``; one-hot rows
            ``(N, K)``; or N names. Kept as int64 ``(N,)``.
        factors: Ground-truth factors per image as class indices, ``(N, F)`` int64, or None.
        factor_names: Their F names.
        class_names: Names of the classes, by their number; if empty, of labels that are names, these names, sorted.
        names: Where each image comes from, such as its file; or none.
        dynamic: Draw black or white pixels with the images' values as probabilities, again each time an image is used.
        flip: Mirror each image left to right with probability 1/2, again each time it is used.

    ``dataset[i]`` is one image as it is used, float32 ``(C, H, W)``: in a ``DataLoader`` too, images are binarised and
    flipped, by torch's global generator, which each worker seeds for itself.

    Raises:
        DataError: A ``ValueError``: if there is no image.
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
    ) -> None:
        _check_images(images)
        _check_rest(labels, factor_names, class_names, dynamic=dynamic, flip=flip)
        self.labels: Tensor | None = None
        if labels is not None:
            class_names = class_names or class_names_of(labels)
            self.labels = class_labels(labels, len(images), class_names)
        if factors is not None:
            _check_factors(factors, (len(images), len(factor_names)))
        self.images, self.factors = images, factors
        self.factor_names, self.class_names = tuple(factor_names), tuple(class_names)
        self.names = checked_names("names", names, len(images))
        self.dynamic, self.flip = dynamic, flip

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.batch(index)

    def __repr__(self) -> str:
        extras = [name for name in ("labels", "factors") if getattr(self, name) is not None]
        if self.class_names:
            shown = ", ".join(self.class_names[:10]) + (", ..." if len(self.class_names) > 10 else "")
            extras.append(f"classes {shown}")
        extras += ["dynamically binarised"] if self.dynamic else []
        extras += ["flipped at random"] if self.flip else []
        listed = "".join(f", {extra}" for extra in extras)
        return f"ImageDataset({len(self)} images, {self.image_shape}, {self.images.dtype}{listed})"

    def batch(self, indices: Tensor | slice | int, *, generator: Generator | None = None) -> Tensor:
        """float32 images ``(B, C, H, W)`` in [0, 1]; ``generator`` is for dynamic binarisation and flips."""
        return prepared(self.images[indices], self.dynamic, self.flip, generator)

    def fetch(
        self, parts: Iterable[Tensor], device: torch.device, *, seed: int = 0, generator: Generator | None = None
    ) -> Iterator[Batch]:
        """One batch on ``device`` for each of the ``parts``, which are indices; ``seed`` changes nothing here."""
        for indices in parts:
            images = self.images[indices.to(self.images.device, non_blocking=True)].to(device, non_blocking=True)
            yield Batch(prepared(images, self.dynamic, self.flip, generator))

    def batches(
        self, batch_size: int, *, shuffle: bool = False, generator: Generator | None = None
    ) -> Iterator[Tensor]:
        """One pass over all images, in batches of at most ``batch_size`` whose sizes differ by at most one.

        A small last batch would weigh its images more, and batch normalisation cannot use a single one.

        Args:
            batch_size: >= 1.
            shuffle: In a random order.
            generator: Of the order, dynamic binarisation and flips; of any device.

        Yields:
            float32 ``(B, C, H, W)`` in [0, 1].

        Examples:
            >>> dataset = ImageDataset(torch.rand(10, 1, 4, 4))
            >>> [len(batch) for batch in dataset.batches(4)]
            [3, 3, 4]
        """
        for batch in one_pass(self, batch_size, self.images.device, shuffle=shuffle, generator=generator):
            yield batch.x

    def to(self, device: torch.device | str) -> ImageDataset:
        """The same set with its images on ``device``."""
        return changed(self, images=self.images.to(device))

    def subset(self, indices: Tensor | slice) -> ImageDataset:
        """The images at ``indices``, with their labels and factors."""
        if isinstance(indices, Tensor):
            indices = indices.cpu()  # where labels and factors stay
        images = self.images[indices]
        _check_not_empty(images)
        return changed(
            self,
            images=images,
            labels=None if self.labels is None else self.labels[indices],
            factors=None if self.factors is None else self.factors[indices],
            names=_names_at(self.names, indices),
        )

    def replace(self, images: Tensor, *, dynamic: bool | None = None, flip: bool | None = None) -> ImageDataset:
        """The same set with other images ``(N, C', H', W')`` for its labels and factors."""
        names = ("labels", "factors", "factor_names", "class_names", "names")
        kept: dict[str, Any] = {name: getattr(self, name) for name in names}
        kept["dynamic"] = self.dynamic if dynamic is None else dynamic
        kept["flip"] = self.flip if flip is None else flip
        return ImageDataset(images, **kept)


def changed(source: Images, /, **attributes: object) -> Images:
    """The same set with other attributes, which need no checks."""
    other = copy.copy(source)
    vars(other).update(attributes)
    return other


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"`images` must be a tensor, uint8 or floating point in [0, 1], got {got}.")
    check_plain_tensor("images", images)
    check_shape("images", images.shape, ("N", "C", "H", "W"))
    _check_not_empty(images)
    if images.is_floating_point():
        check_unit_range("images", images)
    elif images[:64].max() == 1 and images.max() == 1:
        warn("`images` holds 8-bit values of 0 and 1 alone, black and almost black; multiply by 255 if 1 is white.")


def _check_not_empty(images: Tensor) -> None:
    if images.numel() == 0:
        raise DataError(f"`images` must hold at least one pixel, got shape {tuple(images.shape)}.")


def _check_rest(
    labels: Any, factor_names: Sequence[str], class_names: Sequence[str], *, dynamic: bool, flip: bool
) -> None:
    """Types of the arguments besides the images."""
    checked_names("factor_names", factor_names)
    checked_names("class_names", class_names)
    check_bool("dynamic", dynamic)
    check_bool("flip", flip)
    if isinstance(labels, Tensor):
        check_tensor("labels", labels, floating=False)
        check_has_values("labels", labels)
    elif isinstance(labels, bytes | bytearray | memoryview):
        raise TypeError(f"`labels` must be class numbers or names, got {type(labels).__name__}.")


def checked_names(argument: str, names: Sequence[str], count: int | None = None) -> tuple[str, ...]:
    """Strings as a tuple; an error unless each is one, and there are ``count`` of them or none."""
    check_type(argument, names, tuple | list, "a sequence of strings")
    for name in names:
        check_type(argument, name, str, "a sequence of strings")
    if count is not None and len(names) not in (0, count):
        raise ValueError(f"`{argument}` must be {count}, one an image, or none, got {len(names)}.")
    return tuple(names)


def _names_at(names: tuple[str, ...], indices: Tensor | slice) -> tuple[str, ...]:
    return tuple(names[index] for index in torch.arange(len(names))[indices].tolist()) if names else ()


def _check_factors(factors: Tensor, shape: tuple[int, int]) -> None:
    if not isinstance(factors, Tensor):
        raise TypeError(f"`factors` must be a tensor of integers, got {type(factors).__name__}.")
    check_shape("factors", factors.shape, shape)
    if factors.is_floating_point() or factors.is_complex():
        raise TypeError(f"`factors` must be a tensor of integers, got dtype {factors.dtype}.")


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
