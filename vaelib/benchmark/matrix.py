"""Operations, batches and ways to run a model, measured in turn, with the accuracy in the same row."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from vaelib._timing import hardware
from vaelib.benchmark.backend import EXPORTING, OPERATIONS, Array, Backend, draw, needs_packages
from vaelib.benchmark.backends import BACKENDS
from vaelib.benchmark.files import Source, write_files
from vaelib.benchmark.roofline import rates
from vaelib.benchmark.worker import ProcessError, Worker, table_of
from vaelib.runtime.bundle import Bundle

__all__ = ["Matrix", "Report", "Row", "measure", "why_missing"]

LEAST_CALLS = 50
_Answer = TypeVar("_Answer")
_NOISY_SPREAD = 1.5
_NOISY_LOAD = 0.5


class Row(NamedTuple):
    """One way to run one operation at one batch size."""

    operation: str
    batch: int
    backend: str
    times: list[float]
    """Seconds of each call."""
    first_call: float
    """Seconds of the first at this shape, compilation and measured plans included."""
    peak_mib: float
    """The most memory that the process had meanwhile, on the host."""
    device_mib: float | None
    """The most that torch had on a GPU meanwhile; None of other backends, which do not report it."""
    error: float
    """Largest difference from float64, over its largest absolute value, at least 1; infinite if the shape is wrong."""
    tolerance: float
    """Largest error that is right: the backend's, and of a bundle in less than float32 its own."""
    correct: bool
    """Whether the error is within the tolerance. A row that is not is wrong, not fast."""
    of_products: float | None
    """Floating-point operations per second at the median call, over the machine's rate of products."""

    @property
    def percentiles(self) -> tuple[float, float, float]:
        """p50, p90 and p99 of a call, in milliseconds."""
        p50, p90, p99 = np.percentile(np.multiply(self.times, 1e3), [50, 90, 99]).tolist()
        return p50, p90, p99

    @property
    def images_per_second(self) -> float:
        """At the median call."""
        return 1e3 * self.batch / self.percentiles[0]

    def summary(self) -> dict[str, Any]:
        """All of it but the single times."""
        facts = {name: value for name, value in self._asdict().items() if name != "times"}
        p50, p90, p99 = self.percentiles
        speed = {"images_per_second": self.images_per_second, "p50": p50, "p90": p90, "p99": p99}
        return facts | speed | {"calls": len(self.times)}


def why_missing(backend: Backend, source: Source) -> str | None:
    """Why a backend cannot run this model or bundle here; None if it can."""
    if isinstance(source, Path):
        if backend.needs == "model":
            return "a bundle has no torch model"
        condition = Bundle(source).metadata["condition"]
    else:
        condition = source.condition
    if condition is not None and backend.needs in ("graphs", "int8"):
        return "a condition would be one more input"
    if missing := backend.missing():
        return missing
    return None if backend.needs == "model" or isinstance(source, Path) else needs_packages(*EXPORTING)


class Matrix:
    """A model, its files and a process for each way to run it; use it in a ``with``.

    Args:
        source: A model, which is exported into a temporary directory and not changed, or the path of a bundle.
        backends: Names of what is to run it.
        threads: Threads of every backend; as many as torch has if None.
        table: A Python file whose ``BACKENDS`` are known too.
        products: The rates of matrix products here; measured if None.

    Attributes:
        skipped: Backend to why it is not there: what is missing on this machine.
        failed: Backend to how its process ended.
        threads: Threads of every backend.
        products: The machine's rates of matrix products, as of :func:`vaelib.benchmark.roofline.rates`.

    Raises:
        ValueError: If a backend is unknown.
        ExportError: A ``ValueError``: if the model cannot be exported.
        ModelFileError: A ``ValueError``: if the bundle is torn.
    """

    def __init__(
        self,
        source: Source,
        backends: Sequence[str] = tuple(BACKENDS),
        *,
        threads: int | None = None,
        table: Path | None = None,
        products: dict[str, float] | None = None,
    ) -> None:
        self._backends = table_of(table)
        _check_known("backends", backends, self._backends)
        self.threads = threads or torch.get_num_threads()
        self.failed: dict[str, str] = {}
        reasons = {name: why_missing(self._backends[name], source) for name in backends}
        self.skipped = {name: reason for name, reason in reasons.items() if reason is not None}
        needs = {self._backends[name].needs for name in backends if name not in self.skipped}
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._subject = write_files(source, directory, needs)
            if self._subject.tolerance > 0.0:
                unquantized = [name for name in backends if self._backends[name].needs == "int8"]
                self.skipped |= dict.fromkeys(unquantized, "the bundle is not in float32")
            self.products = rates(self.threads) if products is None else products
            self._workers = {
                name: stack.enter_context(Worker(name, directory, self.threads, table))
                for name in backends
                if name not in self.skipped
            }
            self._stack = stack.pop_all()

    def __enter__(self) -> Matrix:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def cell(
        self,
        operation: str,
        batch: int,
        *,
        backends: Collection[str] | None = None,
        seconds: float = 0.1,
        rounds: int = 7,
        least_calls: int = LEAST_CALLS,
    ) -> list[Row]:
        """The rows of all backends, or of these, on the same batches, in turn, in so many rounds.

        ``seconds`` are those of one turn, ``least_calls`` those of all of them.
        """
        inputs = draw(self._subject, operation, batch)
        path = self._subject.directory / "inputs.npy"
        np.save(path, inputs)
        asked = [name for name in self._workers if backends is None or name in backends]
        first = self._ask(asked, lambda worker: worker.begin(operation, path))
        errors = self._errors(operation, inputs[0], {name: answer for name, (_, answer) in first.items()})
        times: dict[str, list[float]] = {name: [] for name in first}
        for _ in range(rounds):
            turns = self._ask(times, lambda worker: worker.turn(seconds, -(-least_calls // rounds)))
            times = {name: times[name] + turn for name, turn in turns.items()}
        return [self._row(operation, batch, name, times[name], first[name][0], errors[name]) for name in times]

    def _ask(self, names: Iterable[str], ask: Callable[[Worker], _Answer]) -> dict[str, _Answer]:
        """The answers of backends in turn; one whose process has ended has failed."""
        found = {}
        for name in names:
            try:
                found[name] = ask(self._workers[name])
            except ProcessError as error:
                self.failed[name] = str(error)
                del self._workers[name]
        return found

    def _row(self, operation: str, batch: int, name: str, times: list[float], first_call: float, error: float) -> Row:
        peaks = self._workers[name].peaks()
        tolerance = self._backends[name].tolerance + self._subject.tolerance
        of_products = self._of_products(name, operation, batch / float(np.median(times)))
        correct = bool(error <= tolerance)
        return Row(operation, batch, name, times, first_call, *peaks, error, tolerance, correct, of_products)

    def _errors(self, operation: str, values: Array, files: dict[str, Path]) -> dict[str, float]:
        checked = list(self._subject.checked(len(values)))
        expected = self._subject.exact(operation, values[checked])
        scale = max(1.0, float(np.abs(expected).max()))
        answers = {name: np.load(path, allow_pickle=False) for name, path in files.items()}
        return {
            name: float(np.abs(answer[checked] - expected).max()) / scale
            if answer.shape == (len(values), *expected.shape[1:])
            else math.inf
            for name, answer in answers.items()
        }

    def _of_products(self, backend: str, operation: str, images_per_second: float) -> float | None:
        flops = self._subject.flops.get(operation)
        rate = self.products.get(self._backends[backend].products)
        return flops * images_per_second / rate if flops and rate else None


class Report(NamedTuple):
    """What :func:`measure` found."""

    rows: list[Row]
    skipped: dict[str, str]
    """Backend to why it was not run."""
    failed: dict[str, str]
    """Backend to how it failed."""
    threads: int
    hardware: str
    products: dict[str, float]
    """Rates of matrix products, FLOP/s."""
    load: float
    """Processes that wanted a core in the last minute before, ours not among them."""

    @property
    def noisy(self) -> bool:
        """Whether something else ran beside the measurement, or calls of one row differed much."""
        spreads = [row.percentiles[1] / row.percentiles[0] for row in self.rows]
        return bool(self.load > _NOISY_LOAD or (spreads and np.median(spreads) > _NOISY_SPREAD))

    def recommendation(self) -> str:
        """One sentence: the fastest right way for one image, and for many."""
        parts = []
        for operation in OPERATIONS:
            rows = [row for row in self.rows if row.correct and row.operation == operation]
            if rows:
                least = min(row.batch for row in rows)
                first = min((row for row in rows if row.batch == least), key=lambda row: row.percentiles[0])
                most = max(rows, key=lambda row: row.images_per_second)
                parts.append(
                    f"{operation} with {first.backend} one by one ({first.percentiles[0]:.2f} ms a call at {least})"
                    f" and with {most.backend} in bulk ({most.images_per_second:,.0f} images/s at {most.batch})"
                )
        return f"On this machine, {'; '.join(parts)}." if parts else "No backend gave right numbers."

    def summary(self) -> dict[str, Any]:
        """All of it but the single times."""
        rows = [row.summary() for row in self.rows]
        return self._asdict() | {"rows": rows, "noisy": self.noisy, "recommendation": self.recommendation()}


def measure(
    source: Source,
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
        source: A model or the path of a bundle.
        backends: Names from :data:`vaelib.benchmark.backends.BACKENDS`.
        operations: Some of ``"encode"``, ``"decode"``, ``"reconstruct"``.
        batches: Numbers of images in a call.
        threads: Threads of every backend; as many as torch has if None.
        seconds: Length of one backend's turn in a round.
        rounds: Turns of each backend, with at least 50 calls in all.
        tell: Is shown a line as each cell begins.

    Raises:
        ValueError: If a backend or operation is unknown.
        ExportError: A ``ValueError``: if the model cannot be exported.
        ModelFileError: A ``ValueError``: if the bundle is torn.
    """
    _check_known("operations", operations, OPERATIONS)
    load = os.getloadavg()[0]
    tell("opening")
    rows: list[Row] = []
    with Matrix(source, backends, threads=threads) as matrix:
        for operation in operations:
            for batch in batches:
                tell(f"{operation}, batch {batch}")
                rows += matrix.cell(operation, batch, seconds=seconds, rounds=rounds)
    return Report(rows, matrix.skipped, matrix.failed, matrix.threads, hardware(), matrix.products, load)


def _check_known(name: str, given: Sequence[str], known: Sequence[str] | dict[str, Any]) -> None:
    if unknown := [value for value in given if value not in known]:
        raise ValueError(f"`{name}` must be among {', '.join(known)}, got {', '.join(unknown)}.")
