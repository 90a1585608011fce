"""What a backend is, what several share, and the batches that they are given."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaelib.runtime.machine import load_libraries

__all__ = [
    "EXPORTING",
    "OPERATIONS",
    "Array",
    "Backend",
    "Opened",
    "Subject",
    "draw",
    "first_condition",
    "functions_of",
    "needs_packages",
    "opened_bundle",
    "run_session",
    "sessions_of",
]

Array = NDArray[np.float32]
EXPORTING = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
"""Packages of the extra ``onnx``."""
OPERATIONS = ("encode", "decode", "reconstruct")
"""Images to z without noise; latents to images; images to images by that z."""
_ROTATED = 4
_MOST_BYTES = 2**28


class Opened(NamedTuple):
    """A backend that is ready to run."""

    call: Callable[[str, Any], Any]
    """An operation and a batch in its place to the answer, which is there when this returns: what is timed."""
    place: Callable[[Array], Any] = lambda values: values
    """A batch to where it is when a call begins."""
    fetch: Callable[[Any], Array] = lambda answer: answer
    """An answer to numpy."""


class Backend(NamedTuple):
    """One way to run a model."""

    opened: Callable[[Path, int], Opened]
    """From the directory that :func:`vaelib.benchmark.files.write_files` fills, and a number of threads."""
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run here."""
    tolerance: float = 1e-4
    """What it may differ from float64 by, of the largest value, and still be right."""
    products: str = "cpu"
    """Which rate of :func:`vaelib.benchmark.roofline.rates` is its ceiling."""
    needs: str = "model"
    """Which files it opens: ``"model"``, ``"bundle"``, ``"graphs"`` or ``"int8"``, of each operation."""


def functions_of(model: Any) -> dict[str, Callable[[Any], Any]]:
    """Each operation as a function of one tensor; of a model with a condition that of its first class, or of zeros."""
    if model.condition is not None:
        model = model.given(first_condition(getattr(model.condition, "size", None)))
    return {
        "encode": model.embed,
        "decode": model.decode_mean,
        "reconstruct": lambda x: model.decode_mean(model.embed(x)),
    }


def first_condition(size: int | None) -> Any:
    """The condition of models that need one: label 0, or a vector of ``size`` zeros."""
    return 0 if size is None else np.zeros(size, np.float32)


def sessions_of(
    directory: Path,
    threads: int,
    *,
    prefix: str = "",
    provider: str = "CPUExecutionProvider",
    settings: dict[str, str] | None = None,
) -> Callable[[str], Any]:
    """From an operation to its open session, all of whose providers loaded."""
    import onnxruntime

    load_libraries([provider])

    @functools.cache
    def session(operation: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        opened = onnxruntime.InferenceSession(
            directory / f"{prefix}{operation}.onnx", options, [(provider, settings or {})]
        )
        if opened.get_providers()[0] != provider:
            raise RuntimeError(f"{provider} did not load, onnxruntime fell back to {opened.get_providers()}")
        return opened

    return session


def run_session(session: Callable[[str], Any], operation: str, values: Array) -> Array:
    """The answer of an open session, from numpy to numpy."""
    opened = session(operation)
    return opened.run([opened.get_outputs()[0].name], {opened.get_inputs()[0].name: values})[0]


def opened_bundle(model: Any) -> Opened:
    """An :class:`vaelib.runtime.OnnxVAE`."""
    if (condition := model.metadata["condition"]) is not None:
        model = model.given(condition=first_condition(condition.get("size")))
    functions = {"encode": model.embed, "decode": model.decode, "reconstruct": model.reconstruct}
    return Opened(lambda operation, values: functions[operation](values))


def needs_packages(*names: str) -> str | None:
    """Why something cannot run without these packages, or None if they are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class Subject(NamedTuple):
    """What is measured."""

    directory: Path
    """Holds the files of all backends."""
    image_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    exact: Callable[[str, Array], NDArray[np.float64]]
    """The answer to a batch in float64: torch's, or of a bundle the reference evaluator's."""
    checked: Callable[[int], Sequence[int]]
    """Which images of a batch are compared with it: all, or of a bundle the first and the last."""
    flops: dict[str, int]
    """Of an operation on one image; of a bundle unknown."""
    tolerance: float
    """What its own precision adds to a backend's."""


def draw(subject: Subject, operation: str, batch: int) -> Array:
    """Batches in a stack: images uniform in [0, 1], latents normal. Their turns keep answers out of the caches."""
    shape = subject.latent_shape if operation == "decode" else subject.image_shape
    number = max(2, min(_ROTATED, _MOST_BYTES // (4 * batch * int(np.prod(shape)))))
    generator = np.random.default_rng(0)
    sampler = generator.standard_normal if operation == "decode" else generator.random
    return sampler((number, batch, *shape), dtype=np.float32)
