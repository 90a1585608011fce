"""What graphs give, before a caller sees it: finite, and images within [0, 1]."""

from __future__ import annotations

import math

import numpy as np

from vaelib.runtime.inputs import BITS_OF_ONE, FEW, Array

__all__ = ["finite", "shown"]


def shown(part: str, images: Array) -> Array:
    """The images, clamped to [0, 1]: graphs of vaelib 0.1 give the mean of a Gaussian as it is.

    Raises:
        ValueError: If a value is not finite.
    """
    bits = images.view(np.uint32)
    if images.size and bits.item(bits.argmax()) > BITS_OF_ONE:  # outside of [0, 1], not finite, or -0.0
        np.clip(finite(part, images), 0.0, 1.0, out=images)
    return images


def finite(part: str, values: Array) -> Array:
    """The values.

    Raises:
        ValueError: If one is not finite.
    """
    if not (values.size <= FEW and math.isfinite(np.vdot(values, values))) and not np.isfinite(values).all():
        raise ValueError(
            f"{part}.onnx gives values that are not finite (NaN or infinite) for this input: its weights are broken, or"
            " the input is too large for it."
        )
    return values
