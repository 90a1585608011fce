"""The graphs of one bundle, opened when they are needed, and the shapes that they take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from vaelib._checks import ModelFileError, check_shape
from vaelib.runtime.bundle import Bundle, shapes_of
from vaelib.runtime.engine import Check, Engine
from vaelib.runtime.inputs import Array, finite_check, floats
from vaelib.runtime.machine import Machine
from vaelib.runtime.outputs import finite, shown

__all__ = ["Graphs"]

_OUTPUTS = {"decoder": ("mean",), "vae": ("distortion", "kl"), "prior": ("z",)}


class Graphs:
    """The decoder, opened at once, and the others, on first use.

    Args:
        directory: The bundle.
        machine: Where to run them.
    """

    def __init__(self, directory: str | Path, machine: Machine) -> None:
        self._bundle, self._machine = Bundle(directory), machine
        self._engines: dict[str, Engine] = {}
        self._lock = Lock()
        self.directory = self._bundle.directory
        self._outputs = _OUTPUTS | {"encoder": ("mu", "logvar") if self._bundle.kind == "VAE" else ("z",)}
        self.metadata = self.engine("decoder").metadata
        self._shapes = shapes_of(self.metadata)
        self.multiple: int | None = self.metadata["spatial_multiple"]

    def engine(self, part: str) -> Engine:
        """The runner of ``part``.

        Raises:
            FileNotFoundError: If its file is missing.
            ModelFileError: If its file is not what it should be, or belongs to another model than the decoder.
        """
        if part not in self._engines:
            with self._lock:
                if part not in self._engines:
                    self._engines[part] = self._opened(part)
        return self._engines[part]

    def _opened(self, part: str) -> Engine:
        engine = Engine(self._bundle, part, self._outputs[part], self._machine)
        if part != "decoder" and engine.metadata | {"part": "decoder", "validation": {}} != self.metadata | {
            "validation": {}
        }:
            raise ModelFileError(f"{self.directory / part}.onnx belongs to another model than decoder.onnx beside it.")
        return engine

    def images(self, name: str, images: Any) -> Array:
        """Images as the encoder takes them; their values are not read.

        Raises:
            ValueError: If the shape is wrong.
            TypeError: If it is no array of floating point.
        """
        images = floats(name, images)
        if images.shape[1:] != self._shapes["image"]:
            height_and_width = ("H", "W") if self.multiple else self._shapes["image"][1:]
            check_shape(name, images.shape, ("B", self._shapes["image"][0], *height_and_width))
            if any(extent % self.multiple or not extent for extent in images.shape[2:]):
                raise ValueError(
                    f"`{name}` must have a height and a width that are multiples of {self.multiple},"
                    f" got {images.shape[2]} x {images.shape[3]}."
                )
        return images

    def latents(self, name: str, z: Any) -> Array:
        """Latents as the decoder takes them; their values are not read.

        Raises:
            ValueError: If the shape is wrong.
            TypeError: If it is no array of floating point.
        """
        z = floats(name, z)
        if z.shape[1:] != self._shapes["z"]:
            height_and_width = ("h", "w") if self.multiple else self._shapes["z"][1:]
            check_shape(name, z.shape, ("B", self._shapes["z"][0], *height_and_width))
            if 0 in z.shape[1:]:
                raise ValueError(f"`{name}` must have a height and a width of at least 1, got {z.shape}.")
        return z

    def run(self, part: str, inputs: Mapping[str, Array], check: Check) -> list[Array]:
        """The outputs of ``part`` that anybody asks for, for any number of items; images are clamped to [0, 1].

        Raises:
            ValueError: If a value is not finite.
        """
        shapes = self._shapes
        if self.multiple is not None and part != "prior":
            height, width = next(iter(inputs.values())).shape[2:]
            scale = self.multiple if part == "decoder" else 1
            shapes = shapes_of(self.metadata, (height * scale, width * scale))
        results = self.engine(part).run(inputs, shapes, check)
        return [shown(part, values) if part == "decoder" else finite(part, values) for values in results]

    def draws_of_prior(self, num_samples: int, generator: np.random.Generator) -> Array:
        """Latents, ``(num_samples, *latent_shape)``.

        Raises:
            ValueError: If the prior has no graph and is not the standard normal.
        """
        size, prior = self.metadata["noise_size"], self.metadata["prior"]
        if size is None and prior != "StandardNormal":
            raise ValueError(f"`sample` needs a prior of vaelib's, the model has {prior}.")
        shape = self._shapes["z"] if size is None else (size,)
        noise = generator.standard_normal((num_samples, *shape), dtype=np.float32)
        return noise if size is None else self.from_noise(noise)

    def from_noise(self, noise: Any) -> Array:
        """Latents ``(B, *latent_shape)`` from noise ``(B, noise_size)``, by the prior's graph.

        Raises:
            ValueError: If there is no such graph, the shape is wrong or a value is not finite.
            TypeError: If it is no array of floating point.
        """
        if self.metadata["noise_size"] is None:
            raise ValueError(f"The prior {self.metadata['prior']} has no graph in this bundle.")
        noise = floats("noise", noise)
        check_shape("noise", noise.shape, ("B", self.metadata["noise_size"]))
        return self.run("prior", {"noise": noise}, finite_check("noise", noise))[0]

    def latent_shape_at(self, images: Array) -> tuple[int, ...]:
        """The shape of the latent of one of these images."""
        return shapes_of(self.metadata, images.shape[2:] if self.multiple else None)["z"]
