"""Shift and scale of latents by channel, as the manifest has them: ``vaelib.latents.LatentScaling`` without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vaelib._checks import check_bool
from vaelib.runtime.inputs import Array

__all__ = ["Scaling", "scaling_if"]


class Scaling(NamedTuple):
    """``(z - shift) * scale``, both of the shape ``(C, 1, ...)``."""

    shift: Array
    scale: Array

    def of(self, z: Array) -> Array:
        """Latents ``(B, C, ...)``, scaled."""
        return (z - self.shift) * self.scale

    def inverse(self, z: Array) -> Array:
        """Latents as the decoder takes them, of scaled ones."""
        return z / self.scale + self.shift

    def posterior(self, mu: Array, logvar: Array) -> tuple[Array, Array]:
        """Mean and log variance of the scaled z."""
        return self.of(mu), logvar + (2 * np.log(self.scale.astype(np.float64))).astype(np.float32)


def scaling_if(scaled: bool, metadata: Mapping[str, Any]) -> Scaling | None:
    """The bundle's scaling where it is asked for.

    Raises:
        ValueError: If the bundle has none.
        TypeError: If ``scaled`` is not True or False.
    """
    check_bool("scaled", scaled)
    if not scaled:
        return None
    found = metadata["scaling"]
    if found is None:
        raise ValueError(
            "`scaled` must be False: the bundle's model has no scaling. Set model.scaling, then export it again."
        )
    ones = [1] * (len(metadata["latent_shape"]) - 1)
    return Scaling(*(np.array(found[name], np.float32).reshape(-1, *ones) for name in ("shift", "scale")))
