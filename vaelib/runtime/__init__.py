"""The deployment side: exported models with numpy and onnxruntime alone; torch is never imported.

A file is looked into before onnxruntime sees it: its hash must be the manifest's, and its graph may hold nothing but
what vaelib exports. That stops what is torn, swapped or malformed. A stranger's graph still runs in onnxruntime's
native code and may ask for much time or memory: where that matters, run it in a process with limits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vaelib._checks import check_int
from vaelib.runtime.draws import elbo_terms, interpolated, score, traversed
from vaelib.runtime.engine import Plan
from vaelib.runtime.inputs import Array
from vaelib.runtime.machine import Machine, Provider
from vaelib.runtime.opened import Graphs
from vaelib.runtime.verbs import Verbs

__all__ = ["OnnxVAE", "Plan"]


class OnnxVAE(Verbs):
    """A model from a bundle of ``vaelib.export_onnx``; one object may serve many threads.

    Batches may have any size. Beyond 16 images they are cut into the calls that are fastest for this model on this
    machine, measured once per size class, on first use or by :meth:`tune`. On the CPU an image's numbers do not depend,
    to the last bit, on the batch that it came in.

    Args:
        directory: The bundle; each graph is opened on its first use.
        providers: onnxruntime execution providers in order of preference, each a name or, as in
            ``[("CUDAExecutionProvider", {"device_id": 1})]``, a name and its options; the CPU if None.
        threads: Threads at work at a time; as many as the process may use if None.

    Attributes:
        image_shape: ``(C, H, W)``; of the training, where H and W are free.
        latent_shape: ``(D,)`` or ``(C, h, w)``; of the training, where H and W are free.
        spatial_multiple: What H and W must be multiples of; None where they are fixed.
        metadata: What the exporter wrote about the model: likelihood, prior, condition, validation figures and more.
        contract: What each graph takes and gives, by its name.

    Raises:
        FileNotFoundError: If a file is missing.
        ModelFileError: A ``ValueError``: if a file is torn, changed, or holds what vaelib does not export.
        ValueError: If a provider is not available here, or did not load.
        MissingExtraError: If onnxruntime is not installed.

    Examples:
        >>> import tempfile, vaelib as vl
        >>> directory = tempfile.mkdtemp()
        >>> _ = vl.export_onnx(vl.conv_vae((1, 8, 8), latent_dim=2, hidden_channels=(4,)), directory)
        >>> model = OnnxVAE(directory)
        >>> model.sample(3, seed=0).shape
        (3, 1, 8, 8)
    """

    def __init__(
        self, directory: str | Path, *, providers: Sequence[Provider] | None = None, threads: int | None = None
    ) -> None:
        machine = Machine(providers, None if threads is None else check_int("threads", threads))
        self._graphs = Graphs(directory, machine)
        self.metadata, self.contract = self._graphs.metadata, self._graphs.contract
        self.image_shape: tuple[int, ...] = tuple(self.metadata["image_shape"])
        self.latent_shape: tuple[int, ...] = tuple(self.metadata["latent_shape"])
        self.spatial_multiple: int | None = self.metadata["spatial_multiple"]

    def __repr__(self) -> str:
        directory = str(self._graphs.directory)
        return f"OnnxVAE({directory!r}, image_shape={self.image_shape}, latent_shape={self.latent_shape})"

    def given(self, *, labels: Any = None, condition: Any = None) -> OnnxVAE:
        """This model with a condition: the same methods, the same sessions.

        So methods without ``condition=`` take it: ``decode_params``, ``score``, ``elbo_terms``, streams and paths.

        Args:
            labels: Labels by number or by name (of ``metadata["condition"]["names"]``): one for all images, or one for
                each.
            condition: The same, or of a model whose condition is a vector, ``(size,)`` or ``(B, size)``.

        Raises:
            ValueError: If not one of them is given, the model takes no condition, or it is not one that it knows.
            TypeError: If it is neither numbers nor names.
        """
        if (labels is None) == (condition is None):
            raise ValueError(
                "Either `labels` or `condition` must be given, got " + ("none." if labels is None else "both.")
            )
        view = copy.copy(self)
        value, called = (condition, "condition") if labels is None else (labels, "labels")
        view._graphs = self._graphs.given(value, called)
        return view

    def interpolate(self, a: NDArray[Any], b: NDArray[Any], steps: int, *, spherical: bool = False) -> Array:
        """Images ``(B, steps, C, H, W)`` from ``a`` to ``b``, latents ``(B, *latent_shape)``, ends included.

        ``spherical`` takes the arc between their directions instead of the chord, which stays at the distance from the
        origin where a standard normal prior has its mass. Raises as :meth:`decode`, and if ``steps`` is below 2.
        """
        a, b = (self._graphs.checked("decoder", "z", z, called) for z, called in ((a, "a"), (b, "b")))
        return self._decode_each(interpolated(a, b, steps, spherical=spherical))

    def traverse(self, z: NDArray[Any], dimensions: Sequence[int], values: Sequence[float]) -> Array:
        """Images ``(B, len(dimensions), len(values), C, H, W)``: of each ``z`` with one latent at a time changed.

        ``dimensions`` count the flattened latent from 0. Raises as :meth:`decode`.
        """
        return self._decode_each(traversed(self._graphs.checked("decoder", "z", z, "z"), dimensions, values))

    def score(self, images: NDArray[Any], *, num_samples: int = 1, seed: int = 0) -> Array:
        """The ELBO of each image in nats, ``(B,)``: the lower, the less the model expects such an image.

        The mean over ``num_samples`` posterior draws, which depend on ``seed`` and the place in the batch. Of grey
        images under a Bernoulli likelihood it is a relaxation and bounds no log p(x). Raises as :meth:`encode`, and a
        ``ValueError`` of an AutoEncoder, which has no bound.

        References:
            Kingma & Welling (2014), Auto-Encoding Variational Bayes, section 2.3. https://arxiv.org/abs/1312.6114
        """
        return score(self._graphs, images, num_samples, seed)

    def elbo_terms(self, images: NDArray[Any], noise: NDArray[Any] | None = None) -> tuple[Array, Array]:
        """Distortion -log p(x|z) and KL(q(z|x) to p(z)), ``(B,)`` each, in nats at the z that ``noise`` makes.

        The ELBO is minus their sum. ``noise`` is one finite draw of the standard normal for each image, of the shape in
        ``contract["vae"].inputs["noise"]``: ``(B, *latent_shape)`` of a Gaussian posterior, None of a quantised latent.
        Raises as :meth:`score`.
        """
        return elbo_terms(self._graphs, images, noise)

    def tune(self) -> dict[str, dict[int, Plan]]:
        """Measure encoder and decoder now, in about a second each: how batches around each size will be cut."""
        outputs = {"encoder": "z", "decoder": "mean"}
        return {part: self._graphs.engine(part).tune((name,)) for part, name in outputs.items()}

    def _decode_each(self, z: Array) -> Array:
        axes = z.ndim - len(self.latent_shape)
        images = self.decode(z.reshape(-1, *z.shape[axes:]))
        return images.reshape(*z.shape[:axes], *images.shape[1:])
