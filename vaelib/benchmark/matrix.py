"""The matrix of operations, batches and ways to run a model, measured in turn, with its accuracy in the same row."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from vaelib.benchmark.backends import BACKENDS, OPERATIONS, Array, functions_of
from vaelib.benchmark.worker import Worker, WorkerError
from vaelib.export import export_onnx
from vaelib.export.speed import hardware
from vaelib.serialization import save
from vaelib.vae import VAE, AutoEncoder

__all__ = ["Report", "Row", "measure", "write_files"]

_ROTATED = 4
"""Different batches that take turns, so that no cache holds the answer."""
_LEAST_CALLS = 50
_NOISY = 1.5


class Row(NamedTuple):
    """One way to run one operation at one batch size. Times in milliseconds a call, from numpy to numpy."""

    operation: str
    batch: int
    backend: str
    images_per_second: float
    """At the median call."""
    p50: float
    p90: float
    p99: float
    calls: int
    first_call: float
    """The first at this shape, compilation and measured plans included."""
    error: float
    """Largest difference from torch in float64, over its largest absolute value, at least 1."""
    correct: bool
    """Whether that is within the backend's tolerance. A row that is not is wrong, not fast."""


class Report(NamedTuple):
    """What :func:`measure` found."""

    rows: list[Row]
    peak_mib: dict[str, float]
    """Of each backend's process, at its largest batch."""
    skipped: dict[str, str]
    """Backend to why it has no rows."""
    threads: int
    hardware: str
    load: float
    """Processes that wanted a core in the last minute before, ours not among them."""

    @property
    def noisy(self) -> bool:
        """Whether something else ran beside the measurement, or calls of one row differed much."""
        spread = np.median([row.p90 / row.p50 for row in self.rows]) if self.rows else 1.0
        return bool(self.load > 0.5 or spread > _NOISY)

    def recommendation(self) -> str:
        """One sentence: the fastest right way for one picture, and for many."""
        right = [row for row in self.rows if row.correct]
        parts = []
        for operation in OPERATIONS:
            rows = [row for row in right if row.operation == operation]
            if rows:
                first = min((row for row in rows if row.batch == min(r.batch for r in rows)), key=lambda row: row.p50)
                most = max(rows, key=lambda row: row.images_per_second)
                parts.append(
                    f"{operation} with {first.backend} one by one ({first.p50:.2f} ms a call at {first.batch}) and with"
                    f" {most.backend} in bulk ({most.images_per_second:,.0f} images/s at {most.batch})"
                )
        return f"On this machine, {'; '.join(parts)}." if parts else "No backend gave right numbers."


def measure(
    model: VAE | AutoEncoder,
    *,
    backends: Sequence[str] = tuple(BACKENDS),
    operations: Sequence[str] = OPERATIONS,
    batches: Sequence[int] = (1, 64),
    threads: int | None = None,
    seconds: float = 0.1,
    rounds: int = 7,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run the matrix, one process per backend, in turn within each cell.

    Args:
        model: What is measured; it is exported into a temporary directory and not changed.
        backends: Names from :data:`vaelib.benchmark.backends.BACKENDS`.
        operations: Of ``"encode"``, ``"decode"``, ``"reconstruct"``.
        batches: Numbers of images in a call.
        threads: Of every backend; as many as torch has if None.
        seconds: Of one backend's turn in a round.
        rounds: Least number of turns; there are more until a row has 50 calls.
        tell: Is shown a line as each cell begins.

    Raises:
        ValueError: If a backend or operation is unknown.
        ExportError: A ``ValueError``: if the model cannot be exported.
    """
    for name, given, known in (("backends", backends, BACKENDS), ("operations", operations, OPERATIONS)):
        if unknown := [value for value in given if value not in known]:
            raise ValueError(f"`{name}` must be among {', '.join(known)}, got {', '.join(unknown)}.")
    threads = threads or torch.get_num_threads()
    load = os.getloadavg()[0]
    missing = {name: BACKENDS[name].missing() for name in backends}
    skipped = {name: reason for name, reason in missing.items() if reason is not None}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        directory = Path(temporary)
        tell("exporting")
        write_files(model, directory)
        workers = {
            name: stack.enter_context(Worker(name, directory, threads)) for name in backends if name not in skipped
        }
        for operation in operations:
            for batch in batches:
                tell(f"{operation}, batch {batch}")
                rows += _cell(model, workers, skipped, directory, operation, batch, seconds, rounds)
        peak_mib = {name: worker.peak_mib() for name, worker in workers.items()}
    return Report(rows, peak_mib, skipped, threads, hardware(), load)


def _cell(
    model: Any,
    workers: dict[str, Worker],
    skipped: dict[str, str],
    directory: Path,
    operation: str,
    batch: int,
    seconds: float,
    rounds: int,
) -> list[Row]:
    inputs = _draw(model, operation, batch)
    np.save(directory / "inputs.npy", inputs)
    expected = _exact(model, operation, inputs[0])
    first, error = {}, {}
    times: dict[str, list[float]] = {}
    rounds_done = 0
    while rounds_done < rounds or min(map(len, times.values()), default=_LEAST_CALLS) < _LEAST_CALLS:
        for name, worker in list(workers.items()):
            try:
                if name not in first:
                    first[name] = worker.begin(operation, directory / "inputs.npy", directory / "output.npy")
                    answer = np.load(directory / "output.npy", allow_pickle=False)
                    error[name] = float(np.abs(answer - expected).max() / max(1.0, np.abs(expected).max()))
                times[name] = times.get(name, []) + worker.turn(seconds)
            except WorkerError as failure:
                skipped[name] = f"failed: {failure}"
                workers.pop(name)
                times.pop(name, None)
        rounds_done += 1
    rows = []
    for name, values in times.items():
        p50, p90, p99 = np.percentile(np.multiply(values, 1e3), [50, 90, 99]).tolist()
        correct = bool(error[name] <= BACKENDS[name].tolerance)
        rate = 1e3 * batch / p50
        rows.append(Row(operation, batch, name, rate, p50, p90, p99, len(values), first[name], error[name], correct))
    return rows


def _draw(model: Any, operation: str, batch: int) -> Array:
    """Batches in a stack: images uniform in [0, 1], latents normal."""
    generator = np.random.default_rng(0)
    if operation == "decode":
        return generator.standard_normal((_ROTATED, batch, *model.latent_shape), dtype=np.float32)
    return generator.random((_ROTATED, batch, *model.image_shape), dtype=np.float32)


def _exact(model: Any, operation: str, values: Array) -> Array:
    """In float64."""
    functions = functions_of(copy.deepcopy(model).cpu().double().eval())
    with torch.inference_mode():
        parts = [functions[operation](part) for part in torch.from_numpy(values).double().split(64)]
    return torch.cat(parts).numpy()


class _Operation(nn.Module):
    """One direction of a model, as one would export it by hand."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Any) -> Any:
        return functions_of(self.model)[self.name](x)


def write_files(model: VAE | AutoEncoder, directory: Path) -> None:
    """What backends open: ``model``, ``bundle``, and a plain ``torch.onnx.export`` of each operation."""
    save(model, directory / "model")
    export_onnx(model, directory / "bundle")
    for operation in OPERATIONS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Operation(copy.deepcopy(model).cpu(), operation).eval(),
                (torch.from_numpy(_draw(model, operation, 2)[0]),),
                directory / f"{operation}.onnx",
                input_names=["x"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                dynamo=True,
                verbose=False,
            )
