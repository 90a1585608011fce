"""Images in: by name, folder, array file or tar shards, and the built-in ``shapes`` that need no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from vaelib._checks import DataError, check_bool, check_choice, check_float, check_int, check_path, check_type
from vaelib.data.arrays import array_splits, load_array
from vaelib.data.checks import condition_of
from vaelib.data.dataset import ImageDataset, binarized, changed, height_and_width
from vaelib.data.entries import ARRAY_SUFFIXES
from vaelib.data.files import load_images, read_images
from vaelib.data.named import (
    BUILT_IN,
    NAMES,
    PROTOCOLS,
    load_named,
    load_protocol,
    load_shapes,
    named_splits,
    shapes,
)
from vaelib.data.ranges import check_value_range
from vaelib.data.sources import SPLITS, find_images, in_order
from vaelib.data.stream import ImageStream, stream

__all__ = ["ImageDataset", "ImageStream", "hold_out", "load", "read_images", "shapes", "splits", "stream"]

Images = TypeVar("Images", ImageDataset, ImageStream)


def __getattr__(name: str) -> Any:
    hint = ": write vl.data.read_images" if name == "read_pictures" else ""  # as it was called in version 0.1
    raise AttributeError(f"module 'vaelib.data' has no attribute {name!r}{hint}")


def load(
    name_or_path: str | Path,
    split: str = "train",
    *,
    image_size: int | Sequence[int] | None = None,
    binarize: str | None = None,
    flip: bool = False,
    value_range: Sequence[float] | None = None,
    channels_last: bool | None = None,
    frames: str | None = None,
    images_key: str | None = None,
    condition: str | None = None,
    download: bool = False,
    seed: int = 0,
) -> ImageDataset:
    """Load a set of images into memory, as 8-bit where they come as such.

    Args:
        name_or_path: ``"shapes"``; or a torchvision set (``"mnist"``, ``"fashion_mnist"``, ``"kmnist"``,
            ``"cifar10"``, ``"svhn"``, ``"celeba"``) below the folder named by the environment variable
            ``VAELIB_DATA``; ``"dynamic_mnist"`` or ``"static_mnist"``, as papers on likelihoods use it: binarised
            28x28, 50,000 images to train, 10,000 for ``"val"``, 10,000 to test; or the path of a folder of
            images, a ``.npy``, ``.npz`` or ``.pt`` file, a WebDataset ``.tar`` shard, or a folder of them. Files that
            cannot be read are skipped, and a warning reports how many and which.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"`` of them. A set with splits of its own (:func:`splits`)
            keeps them: a named set, a folder with subfolders such as ``train`` and ``val``, shards in such
            subfolders or with such words in their names, arrays with such endings. Of any other path a fixed
            random tenth is the test split.
        image_size: Height and width, one number for a square. Images are cropped around their centre to
            this aspect ratio and resized bilinearly. None keeps the size, which then must be the same for all.
        binarize: ``"static"`` is one fixed draw of black or white pixels by ``seed`` for the whole set: an image has
            the same pixels in its split and in ``"all"``, and different images share no noise; ``"dynamic"`` draws
            them again each time an image is used; None keeps grey values.
        flip: Mirror images left to right at random, again each time one is used: for training images.
        value_range: The values of black and white in files of your own, such as ``(0, 4095)``: mapped linearly to 0
            and 1, and an error if a value lies outside. None reads what is beyond doubt, and raises an error where it
            is not: 32-bit, signed or floating-point image files; sets that use less than half of 16 bits, or of 8 bits
            values up to 15 only; arrays out of [0, 1] or of an integer dtype other than uint8.
        channels_last: Whether an array of four axes is ``(N, H, W, C)`` or ``(N, C, H, W)``; None decides by the shape,
            and raises an error where it fits both. False also confirms that three axes are ``(N, H, W)``.
        frames: ``"first"`` or ``"all"`` of animations and of files of several pages; None raises an error for them.
        images_key: Name of the images in a ``.npz`` or ``.pt`` file of several arrays; without the split, if the file
            has one in its names. None takes ``images``, ``image``, ``imgs``, ``x``, ``data`` or ``arr_0``.
        condition: Given in addition to each image: ``"labels"``, for :class:`vaelib.Labels`; ``"factors"``, each
            scaled to [0, 1], for :class:`vaelib.Vector`; None for images alone. Every image must have one.
        download: Let torchvision fetch a named set that is missing.
        seed: Seed of ``shapes`` and of static binarisation, whose draw is not that of Larochelle & Murray (2011):
            published numbers are of other pixels than those of ``"static_mnist"``.

    Returns:
        An :class:`ImageDataset`; ``labels`` and ``class_names`` are those of class folders, or of the ``.cls``,
        ``.json`` or ``.txt`` entries of shards, with the same numbers in every split. Images have three channels if any
        image of any split is coloured.

    Raises:
        FileNotFoundError: If there is nothing of that name, with what to do about it.
        ValueError: If an argument is out of its range, or the data are unreadable or empty.

    Examples:
        >>> train = load("shapes", "train", image_size=16)
        >>> train.images.shape, train.factors.shape
        (torch.Size([10000, 1, 16, 16]), torch.Size([10000, 5]))
    """
    check_path(name_or_path, "name_or_path")
    check_choice("split", split, (*SPLITS, "all"))
    check_bool("flip", flip)
    check_bool("download", download)
    check_type("channels_last", channels_last, bool | None, "True, False or None")
    check_type("images_key", images_key, str | None, "a str or None")
    check_choice("frames", frames, ("first", "all", None))
    check_choice("condition", condition, ("labels", "factors", None))
    check_int("seed", seed, 0)
    size = None if image_size is None else height_and_width(image_size)
    name = str(name_or_path)
    if name in BUILT_IN:
        found = named_splits(name)
        if split not in (*found, "all"):
            listed = ", ".join(found)
            raise ValueError(f"`split` must be one of those that {name!r} has ({listed}) or 'all', got {split!r}.")
        _check_none(
            repr(name), value_range=value_range, channels_last=channels_last, frames=frames, images_key=images_key
        )
    if name == "shapes":
        dataset = load_shapes(split, size or (32, 32), seed)
    elif name in PROTOCOLS:
        if binarize is not None:
            raise ValueError(f"`binarize` must be None for {name!r}, which is binarised, got {binarize!r}.")
        binarize = PROTOCOLS[name]
        dataset = load_protocol(split, size, download=download)
    elif name in NAMES:
        dataset = load_named(name, split, size, download=download)
    else:
        path, levels = _existing(name_or_path), check_value_range(value_range)
        if path.suffix.lower() in ARRAY_SUFFIXES:
            _check_none(f"the arrays of {path}", frames=frames)
            dataset = load_array(path, split, size, levels, channels_last=channels_last, images_key=images_key)
        else:
            _check_none(f"the images of {path}", channels_last=channels_last, images_key=images_key)
            dataset = load_images(path, split, size, levels, frames=frames, labelled=condition == "labels")
    dataset = binarized(dataset, binarize, seed=seed)
    return changed(dataset, condition=condition_of(condition, dataset, name), flip=flip)


def splits(name_or_path: str | Path, *, images_key: str | None = None) -> tuple[str, ...]:
    """Return the official splits of a set of images, without reading the images.

    Args:
        name_or_path: A name or a path, as :func:`load` takes it.
        images_key: See :func:`load`.

    Returns:
        Those of ``"train"``, ``"val"`` and ``"test"`` that the set itself has, in this order: by the names of its
        subfolders, its shards or its arrays, in any case (``Train``, ``valid`` and ``validation`` are understood).
        Empty if it has none; :func:`load` then holds out a fixed random tenth for ``"test"``.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        ValueError: If an array file is unreadable.

    Examples:
        >>> splits("shapes"), splits("dynamic_mnist")
        (('train', 'test'), ('train', 'val', 'test'))
    """
    check_path(name_or_path, "name_or_path")
    check_type("images_key", images_key, str | None, "a str or None")
    if str(name_or_path) in BUILT_IN:
        return named_splits(str(name_or_path))
    path = _existing(name_or_path)
    is_array = path.suffix.lower() in ARRAY_SUFFIXES
    return array_splits(path, images_key) if is_array else in_order(find_images(path).splits)


def hold_out(images: Images, fraction: float = 0.1) -> tuple[Images, Images]:
    """Split training images in two: those to train on, and a fixed random part to validate on.

    Epochs and settings that are chosen by test images look better on them than they are; choose by the part that is
    held out, and look at test images once. The part is the same each time, and its images are not flipped at random.

    Args:
        images: Training images, in memory or streamed, at least 2.
        fraction: Share that is held out, in (0, 1); at least one image is, and at least one remains.

    Returns:
        The images to train on and those held out, each in their order, with their labels.

    Raises:
        TypeError: If ``images`` is neither an :class:`ImageDataset` nor an :class:`ImageStream`.
        ValueError: If ``fraction`` is out of its range.
        DataError: A ``ValueError``: if there are fewer than 2 images.

    Examples:
        >>> import vaelib as vl
        >>> train, val = hold_out(vl.data.shapes(500, image_size=8))
        >>> len(train), len(val)
        (450, 50)
    """
    if not isinstance(images, ImageDataset | ImageStream):
        raise TypeError(f"`images` must be an ImageDataset or an ImageStream, got {type(images).__name__}.")
    if check_float("fraction", fraction, 0.0, 1.0, above=True) == 1.0:
        raise ValueError("`fraction` must be > 0 and < 1, got 1.")
    count = len(images)
    if count < 2:
        raise DataError(f"`images` must be at least 2, to train on one and validate on one, got {count}.")
    held = min(max(1, round(fraction * count)), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    val: Any = images.subset(order[:held].sort().values)
    val.flip = False
    return images.subset(order[held:].sort().values), val


def _check_none(what: str, **arguments: object) -> None:
    """Raise for an argument that could change nothing."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"`{name}` must be None for {what}, got {value!r}.")


def _existing(name_or_path: str | Path) -> Path:
    """A path that may hold images."""
    path = Path(name_or_path)
    if not path.exists():
        raise FileNotFoundError(
            f"`name_or_path` must be one of {', '.join(BUILT_IN)}, or an existing path, got {str(path)!r}."
        )
    suffix = path.suffix.lower()
    if not (path.is_dir() or suffix in ARRAY_SUFFIXES or (suffix == ".tar" and path.is_file())):
        raise ValueError(
            f"`name_or_path` must be a folder, or a file ending in {', '.join(ARRAY_SUFFIXES)} or .tar,"
            f" got {str(path)!r}."
        )
    return path
