"""Checks of numbers, choices, shapes, and of the values of arrays.

Pure Python: arrays are only asked for ``shape``, ``dtype``, ``min()`` and ``max()``, so the torch
side and the torch-free :mod:`vaelib.runtime` say the same things in the same words.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

LARGEST_INT = 2**63 - 1
"""Of 64 bits, which is what torch and numpy count with."""
LARGEST_TENSOR = 2**32
"""Values of one result, 16 GiB in float32: what needs more is refused before memory is asked for."""
_ROUNDING = 1e-5
"""By how much a value may leave [0, 1]: a resize in float32 sums up to some 100 products, each rounded by 6e-8, and
1/400 of an 8-bit level is seen by nobody. A bicubic overshoot, 1.001, is no rounding."""
IMAGE_FORMATS = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
}
"""Suffix of an image that vaelib writes to the format that Pillow knows it by."""
LARGEST_GRID = 2**26
"""Pixels of an image that vaelib draws, 8192 x 8192."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def shown(value: object) -> str:
    """A value as error messages quote it: its ``repr``, short; of a tensor or array the shape and dtype."""
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and shape and dtype is not None:
        return f"{type(value).__name__} of shape {tuple(shape)} and dtype {dtype}"
    try:
        return " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python writes no int of more than 4,300 digits
        return (
            f"{type(value).__name__} of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
        )


def check_type(name: str, value: object, kind: Any, wanted: str | None = None) -> None:
    """Raise ``TypeError`` unless ``value`` is of a class, or one of a tuple of them; ``wanted`` says it in words."""
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {wanted or 'a ' + kind.__name__}, got {shown(value)}.")


def check_callable(name: str, value: object, wanted: str = "callable") -> None:
    """Raise ``TypeError`` unless ``value`` can be called and is no class, which would be called for an object."""
    if not callable(value) or isinstance(value, type):
        hint = f" Give an object: {value.__name__}(...)." if isinstance(value, type) else ""
        raise TypeError(f"`{name}` must be {wanted}, got {shown(value)}.{hint}")


def check_path(path: Any, name: str = "path") -> None:
    """Raise unless it is the path of something: a ``str`` or ``Path`` that is not empty."""
    check_type(name, path, str | Path, "a str or a Path")
    if not str(path) or "\0" in str(path):
        raise ValueError(f"`{name}` must be the path of a file or directory, got {shown(path)}.")


def check_image_path(path: Any, name: str = "path") -> str:
    """The format in which to write an image, by the suffix of its path; an error if there is none for it."""
    check_path(path, name)
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_FORMATS:
        raise ValueError(f"`{name}` must end in {', '.join(IMAGE_FORMATS)}, got {shown(str(path))}.")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"`{name}` must be in a directory that exists, got {shown(str(path))}.")
    return IMAGE_FORMATS[suffix]


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``: strings, ints or None."""
    # Other types may have no hash, or compare as a tensor does; True would equal 1.
    comparable = isinstance(value, str | Integral | None) and not isinstance(value, bool)
    if not (comparable and value in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}, got {shown(value)}.")


def check_bool(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is True or False."""
    check_type(name, value, bool, "True or False")


def check_int(name: str, value: object, minimum: int = 1, maximum: int = LARGEST_INT) -> int:
    """Return ``value`` as ``int``; ``TypeError`` or ``ValueError`` unless it is one, within both bounds."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an int, got {shown(value)}.")
    number = int(value)
    if number < minimum:
        raise ValueError(f"`{name}` must be >= {minimum}, got {shown(number)}.")
    if number > maximum:
        raise ValueError(f"`{name}` must be <= {maximum}, got {shown(number)}.")
    return number


def check_float(
    name: str, value: Any, minimum: float = -math.inf, maximum: float = math.inf, *, above: bool = False
) -> float:
    """Return ``value`` as a finite ``float`` in [minimum, maximum]; ``above`` excludes ``minimum`` itself."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {shown(value)}.")
    try:
        number = float(value)
    except OverflowError:  # an int of hundreds of digits
        number = math.inf if value == abs(value) else -math.inf
    in_range = minimum <= number <= maximum and not (above and number == minimum)
    if not (in_range and math.isfinite(number)):
        rules = [] if minimum == -math.inf else [f"{'>' if above else '>='} {minimum:g}"]
        rules += [] if maximum == math.inf else [f"<= {maximum:g}"]
        rules += ["finite"] if in_range or not rules else []
        raise ValueError(f"`{name}` must be {' and '.join(rules)}, got {shown(value)}.")
    return number


def check_int_tuple(
    name: str, value: Any, length: int | None = None, minimum: int = 1, maximum: int = LARGEST_INT
) -> tuple[int, ...]:
    """Return ``value`` as a new tuple of ints within both bounds; the caller's list is not kept.

    An array of numpy's with one axis is the sequence of its entries.
    """
    if hasattr(value, "__array_interface__") and value.ndim == 1:
        value = value.tolist()
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Sequence):
        raise TypeError(f"`{name}` must be a sequence of ints, got {shown(value)}.")
    if length is not None and len(value) != length:
        raise ValueError(f"`{name}` must have {length} entries, got {shown(tuple(value))}.")
    return tuple(check_int(f"{name}[{i}]", entry, minimum, maximum) for i, entry in enumerate(value))


def check_shape(name: str, shape: Sequence[int], expected: Sequence[int | str]) -> None:
    """Raise ``ValueError`` unless ``shape`` fits ``expected``, where a string is a free axis."""
    fits = len(shape) == len(expected) and all(
        isinstance(want, str) or got == want for got, want in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(axis) for axis in expected)
        raise ValueError(f"`{name}` must have shape ({wanted}), got {tuple(shape)}.")


def check_has_values(name: str, values: Any) -> None:
    """Raise ``ValueError`` for a tensor that is a shape only."""
    if getattr(values, "is_meta", False):
        raise ValueError(f"`{name}` must hold values, got a tensor on the device meta, which has none.")


def _range_of(name: str, values: Any) -> tuple[float, float]:
    """The least and the largest value of an array or tensor; ``(0, 0)`` of none."""
    check_has_values(name, values)
    return (float(values.min()), float(values.max())) if math.prod(values.shape) else (0.0, 0.0)


def check_unit_range(name: str, values: Any) -> None:
    """Raise ``ValueError`` unless every value of an array or tensor lies in [0, 1], up to rounding; NaN does not."""
    low, high = _range_of(name, values)
    if not (low >= -_ROUNDING and high <= 1.0 + _ROUNDING):
        hint = " Divide 8-bit images by 255." if low >= 0 and high > 2 else ""
        raise ValueError(f"`{name}` must have values in [0, 1], got [{low:g}, {high:g}].{hint}")


def check_finite(name: str, values: Any) -> None:
    """Raise ``ValueError`` if an array or tensor holds NaN or an infinity."""
    low, high = _range_of(name, values)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"`{name}` must be finite, got values in [{low:g}, {high:g}].")


def check_images(name: str, images: Any, image_shape: Sequence[int], *, floating: bool) -> None:
    """Raise unless ``images`` is a floating-point batch ``(B, *image_shape)``; values are not read."""
    check_shape(name, images.shape, ("B", *image_shape))
    if not floating:
        raise TypeError(
            f"`{name}` must be floating point with values in [0, 1], got dtype {images.dtype}."
            " Divide 8-bit images by 255."
        )


def check_latent(
    latent_dim: int | None, latent_shape: Sequence[int] | None
) -> tuple[int, tuple[int] | tuple[int, int, int]]:
    """Both descriptions of a latent, from either: ``(D, (D,))`` of a vector, ``(D, (C, h, w))`` of a map."""
    if latent_shape is None:
        if latent_dim is None:
            raise ValueError("Give `latent_dim` (a vector) or `latent_shape` (a map (C, h, w)), got neither.")
        size = check_int("latent_dim", latent_dim)
        return size, (size,)
    shape = check_int_tuple("latent_shape", latent_shape)
    if len(shape) not in (1, 3):
        raise ValueError(f"`latent_shape` must be (D,) or (C, h, w), got {shape}.")
    size = math.prod(shape)
    if latent_dim is not None and check_int("latent_dim", latent_dim) != size:
        raise ValueError(f"`latent_dim` must be {size} to agree with `latent_shape` {shape}, got {latent_dim}.")
    return size, shape  # type: ignore[return-value]
