"""The deployment side: exported models with numpy and onnxruntime alone; torch is never imported.

Examples:
    >>> import tempfile, vaelib as vl
    >>> directory = tempfile.mkdtemp()
    >>> _ = vl.export_onnx(vl.conv_vae((1, 8, 8), latent_dim=2, hidden_channels=(4,)), directory)
    >>> model = OnnxVAE(directory)
    >>> model.sample(3, seed=0).shape
    (3, 1, 8, 8)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaelib._checks import (
    MissingExtraError,
    ModelFileError,
    check_finite,
    check_images,
    check_int,
    check_shape,
    check_unit_range,
)

__all__ = ["OnnxVAE"]

Array = NDArray[np.float32]

_TEXTS = ("schema", "version", "part", "likelihood", "prior", "weights_sha256")
_JSON = ("image_shape", "image_range", "latent_shape", "opset", "validation", "config")


class OnnxVAE:
    """A VAE from the files of ``vaelib.export_onnx``.

    Args:
        directory: Holds ``encoder.onnx`` and ``decoder.onnx``; each is opened on its first use.
        providers: onnxruntime execution providers in order of preference; the CPU if None.
        threads: Threads of one call; onnxruntime's choice if None.

    Attributes:
        image_shape: ``(C, H, W)``.
        latent_shape: ``(D,)`` or ``(C, h, w)``.
        metadata: What the exporter wrote about the model: likelihood, prior, validation figures and more.

    Raises:
        FileNotFoundError: If a file is missing.
        ModelFileError: A ``ValueError``: if a file is torn or was not exported by vaelib.
        ValueError: If a provider is not available here.
        MissingExtraError: If onnxruntime is not installed.
    """

    def __init__(
        self, directory: str | Path, *, providers: Sequence[str] | None = None, threads: int | None = None
    ) -> None:
        self._directory = Path(directory)
        self._threads = 0 if threads is None else check_int("threads", threads)
        self._providers = ["CPUExecutionProvider"] if providers is None else list(providers)
        available = _onnxruntime().get_available_providers()
        if isinstance(providers, str) or any(name not in available for name in self._providers):
            raise ValueError(f"`providers` must be a list of names among {available}, got {providers!r}.")
        for part in ("encoder", "decoder"):
            if not self._path(part).is_file():
                raise FileNotFoundError(f"`directory` must hold encoder.onnx and decoder.onnx; no {self._path(part)}.")
        self._sessions: dict[str, Any] = {}
        self.metadata = self._read_metadata("decoder")
        self.image_shape: tuple[int, ...] = tuple(self.metadata["image_shape"])
        self.latent_shape: tuple[int, ...] = tuple(self.metadata["latent_shape"])

    def __repr__(self) -> str:
        return f"OnnxVAE({str(self._directory)!r}, image_shape={self.image_shape}, latent_shape={self.latent_shape})"

    def encode(self, images: NDArray[Any]) -> tuple[Array, Array]:
        """Images to ``(mu, logvar)``.

        Args:
            images: Floating point ``(B, C, H, W)`` in [0, 1].

        Returns:
            Posterior mean and log variance, float32 ``(B, *latent_shape)`` each.

        Raises:
            ValueError: If the shape is wrong or a value leaves [0, 1] or is NaN.
            TypeError: If ``images`` is no array of floating point.
        """
        images = _floats("images", images)
        check_images("images", images, self.image_shape, floating=True)
        check_unit_range("images", images)
        mu, logvar = self._run("encoder", ["mu", "logvar"], {"image": images})
        return mu, logvar

    def decode(self, z: NDArray[Any]) -> Array:
        """Latents ``(B, *latent_shape)``, finite floating point, to pictures ``(B, C, H, W)``: p(x|z)'s mean.

        Raises:
            ValueError: If the shape is wrong or a value is not finite.
            TypeError: If ``z`` is no array of floating point.
        """
        z = _floats("z", z)
        check_shape("z", z.shape, ("B", *self.latent_shape))
        check_finite("z", z)
        return self._run("decoder", ["mean"], {"z": z})[0]

    def reconstruct(self, images: NDArray[Any]) -> Array:
        """Pictures from pictures, ``(B, C, H, W)`` both, through z = mu: deterministic.

        Raises:
            ValueError: As :meth:`encode`.
            TypeError: As :meth:`encode`.
        """
        return self.decode(self.encode(images)[0])

    def sample(self, num_samples: int, *, seed: int | None = None) -> Array:
        """Pictures from the prior, ``(num_samples, C, H, W)``.

        Args:
            num_samples: How many.
            seed: The same seed gives the same pictures; None draws a new one from the system.

        Raises:
            ValueError: If the model's prior is not the standard normal, or an argument is negative.
        """
        check_int("num_samples", num_samples, minimum=0)
        if self.metadata["prior"] != "StandardNormal":
            raise ValueError(f"`sample` needs the prior StandardNormal, the model has {self.metadata['prior']}.")
        generator = np.random.default_rng(seed)
        return self.decode(generator.standard_normal((num_samples, *self.latent_shape), dtype=np.float32))

    def _path(self, part: str) -> Path:
        return self._directory / f"{part}.onnx"

    def _session(self, part: str) -> Any:
        if part not in self._sessions:
            options = _onnxruntime().SessionOptions()
            options.intra_op_num_threads = self._threads
            options.log_severity_level = 3
            try:
                session = _onnxruntime().InferenceSession(str(self._path(part)), options, providers=self._providers)
            except Exception as error:  # onnxruntime's exceptions share no base class but Exception
                raise ModelFileError(f"{self._path(part)} cannot be loaded: {error}") from error
            self._sessions[part] = session
            if part != "decoder" and self._read_metadata(part)["weights_sha256"] != self.metadata["weights_sha256"]:
                del self._sessions[part]
                raise ModelFileError(f"{self._path(part)} belongs to another model than {self._path('decoder')}.")
        return self._sessions[part]

    def _read_metadata(self, part: str) -> dict[str, Any]:
        found = self._session(part).get_modelmeta().custom_metadata_map
        path = self._path(part)
        try:
            if found["vaelib.schema"] != "1":
                raise ModelFileError(f"{path} has schema {found['vaelib.schema']!r}, known is '1'.")
            if found["vaelib.part"] != part:
                raise ModelFileError(f"{path} must be the {part}, but is the {found['vaelib.part']}.")
            texts = {name: found[f"vaelib.{name}"] for name in _TEXTS}
            return texts | {name: json.loads(found[f"vaelib.{name}"]) for name in _JSON}
        except (KeyError, json.JSONDecodeError) as error:
            raise ModelFileError(f"{path} was not exported by vaelib: no valid {error}.") from error

    def _run(self, part: str, outputs: list[str], inputs: dict[str, Array]) -> list[Array]:
        if len(next(iter(inputs.values()))) == 0:
            shapes = {"mean": self.image_shape}
            return [np.zeros((0, *shapes.get(name, self.latent_shape)), np.float32) for name in outputs]
        return list(self._session(part).run(outputs, inputs))


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("vaelib.runtime", "onnx") from error
    return onnxruntime


def _floats(name: str, values: NDArray[Any]) -> Array:
    if not isinstance(values, np.ndarray):
        raise TypeError(f"`{name}` must be a numpy array, got {type(values).__name__}.")
    if values.dtype.kind != "f":
        hint = " Divide 8-bit images by 255." if values.dtype == np.uint8 else ""
        raise TypeError(f"`{name}` must be floating point, got dtype {values.dtype}.{hint}")
    return np.ascontiguousarray(values, dtype=np.float32)
