"""The one place that words argument and shape errors.

Pure Python: arrays are only asked for ``shape``, ``dtype``, ``min()`` and ``max()``, so the torch
side and the torch-free :mod:`vaelib.runtime` say the same things in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any


class VaelibError(Exception):
    """Base class of the errors that are vaelib's own; each also is a built-in exception."""


class ModelFileError(VaelibError, ValueError):
    """A file of a model directory or bundle is torn, foreign, or does not fit its config."""


class ExportError(VaelibError, ValueError):
    """An ONNX graph was refused: it breaks its contract or differs from the torch model."""


class DataError(VaelibError, ValueError):
    """A data set is unreadable, empty, or not what its name promises."""


class TrainingError(VaelibError, ValueError):
    """Training cannot go on: the loss is no longer finite."""


class MissingExtraError(VaelibError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'vaelib[{extra}]'.")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}, got {value!r}.")


def check_int(name: str, value: object, minimum: int = 1) -> int:
    """Return ``value`` as ``int``; ``TypeError`` or ``ValueError`` unless it is one, >= ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an int, got {value!r}.")
    if value < minimum:
        raise ValueError(f"`{name}` must be >= {minimum}, got {value}.")
    return int(value)


def check_float(
    name: str, value: Any, minimum: float = -math.inf, maximum: float = math.inf, *, above: bool = False
) -> float:
    """Return ``value`` as ``float`` in [minimum, maximum]; ``above`` excludes ``minimum`` itself."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    number = float(value)
    if not minimum <= number <= maximum or (above and number == minimum):
        rule = f"{'>' if above else '>='} {minimum:g}"
        if maximum < math.inf:
            rule += f" and <= {maximum:g}"
        raise ValueError(f"`{name}` must be {rule}, got {value}.")
    return number


def check_int_tuple(name: str, value: Any, length: int | None = None, minimum: int = 1) -> tuple[int, ...]:
    """Return ``value`` as a new tuple of ints, each >= ``minimum``; the caller's list is not kept."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"`{name}` must be a sequence of ints, got {value!r}.")
    if length is not None and len(value) != length:
        raise ValueError(f"`{name}` must have {length} entries, got {tuple(value)!r}.")
    return tuple(check_int(f"{name}[{i}]", entry, minimum) for i, entry in enumerate(value))


def check_shape(name: str, shape: Sequence[int], expected: Sequence[int | str]) -> None:
    """Raise ``ValueError`` unless ``shape`` fits ``expected``, where a string is a free axis."""
    fits = len(shape) == len(expected) and all(
        isinstance(want, str) or got == want for got, want in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(axis) for axis in expected)
        raise ValueError(f"`{name}` must have shape ({wanted}), got {tuple(shape)}.")


def check_unit_range(name: str, values: Any) -> None:
    """Raise ``ValueError`` unless every value of an array or tensor lies in [0, 1]; NaN does not."""
    if math.prod(values.shape) == 0:
        return
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):
        hint = " Divide 8-bit images by 255." if low >= 0 and high > 2 else ""
        raise ValueError(f"`{name}` must have values in [0, 1], got [{low:g}, {high:g}].{hint}")


def check_finite(name: str, values: Any) -> None:
    """Raise ``ValueError`` if an array or tensor holds NaN or an infinity."""
    if math.prod(values.shape) == 0:
        return
    low, high = float(values.min()), float(values.max())
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


def check_has_prior(name: str, model: object) -> None:
    """Raise ``TypeError`` unless ``model`` has a prior, as a VAE has."""
    if not hasattr(model, "prior"):
        raise TypeError(f"`{name}` needs a model with a prior, such as a VAE, got {type(model).__name__}.")


def check_latent(
    latent_dim: int | None, latent_shape: Sequence[int] | None
) -> tuple[int, tuple[int] | tuple[int, int, int]]:
    """Both descriptions of a latent, from either: ``(D, (D,))`` of a vector, ``(D, (C, h, w))`` of a map."""
    if latent_shape is None:
        if latent_dim is None:
            raise ValueError("Give `latent_dim` (a vector) or `latent_shape` (a map (C, h, w)), got neither.")
        return check_int("latent_dim", latent_dim), (latent_dim,)
    shape = check_int_tuple("latent_shape", latent_shape)
    if len(shape) not in (1, 3):
        raise ValueError(f"`latent_shape` must be (D,) or (C, h, w), got {shape}.")
    size = math.prod(shape)
    if latent_dim not in (None, size):
        raise ValueError(f"`latent_dim` must be {size} to agree with `latent_shape` {shape}, got {latent_dim}.")
    return size, shape  # type: ignore[return-value]
