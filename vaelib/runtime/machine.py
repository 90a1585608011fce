"""Where graphs run: onnxruntime's sessions, their providers, and the threads."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaelib._checks import MissingExtraError, ModelFileError

__all__ = ["Item", "Machine", "Provider", "Session", "load_libraries"]

Provider = str | tuple[str, dict[str, Any]]
Item = tuple[tuple[int, ...], "np.dtype[Any]"]
"""Shape and dtype of one item of a batch."""
_ON_CUDA = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
_SPIN_MICROSECONDS = "1000"
"""Long enough for the next of many small calls; by itself onnxruntime would take a core from others for some 60 ms."""


class Machine:
    """Where the sessions of a model live: providers, threads, and the pool of those who call single-threaded sessions.

    Args:
        providers: onnxruntime execution providers in order of preference, with options or without; the CPU if None.
        threads: Threads at work at a time; as many as the process may use if None.

    Raises:
        ValueError: If a provider is not available here.
        MissingExtraError: If onnxruntime is not installed.
    """

    def __init__(self, providers: Sequence[Provider] | None, threads: int | None) -> None:
        self._providers = ["CPUExecutionProvider"] if providers is None else list(providers)
        self._names = [entry if isinstance(entry, str) else entry[0] for entry in self._providers]
        load_libraries(self._names)
        available = _onnxruntime().get_available_providers()
        if isinstance(providers, str) or not self._names or not set(self._names) <= set(available):
            raise ValueError(f"`providers` must be a list of names among {available}, got {providers!r}.")
        self.threads = threads or _usable_cores()
        self.is_cpu = self._names == ["CPUExecutionProvider"]
        self.workers = self.threads if self.is_cpu else 1
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="OnnxVAE")

    def beside(self, work: Callable[[], None], times: int) -> None:
        """Call ``work`` so many times at once; an error of one is raised when all have ended."""
        if times == 1:
            work()
            return
        working = [self._pool.submit(work) for _ in range(times)]
        wait(working)
        for worker in working:
            worker.result()

    def session(self, part: str, content: bytes, threads: int, *, free_size: bool) -> Session:
        """The graph in ``content``, ready to run; ``free_size`` says that height and width are free."""
        options = _onnxruntime().SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
        options.enable_mem_pattern = not free_size  # it keeps a plan per shape, of which there would be no end
        try:
            session = _onnxruntime().InferenceSession(content, options, providers=self._providers)
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise ModelFileError(f"onnxruntime refuses {part}.onnx: {error}") from error
        loaded = session.get_providers()
        if missing := [name for name in self._names if name not in loaded]:
            raise ValueError(f"`providers` must all load, but {missing} did not; onnxruntime fell back to {loaded}.")
        session.disable_fallback()
        return Session(part, session)


class Session:
    """An onnxruntime session of the graph ``part``, whose failures are errors of vaelib's."""

    def __init__(self, part: str, session: Any) -> None:
        self._part, self._session = part, session

    def call(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, Item]) -> list[NDArray[Any]]:
        """The outputs, in memory of onnxruntime's; each must have the shape that ``outputs`` says of one item."""
        try:
            results: list[NDArray[Any]] = self._session.run(list(outputs), inputs)
        except Exception as error:  # as above
            raise self._cannot_run(error) from error
        items = len(next(iter(inputs.values())))
        for (name, (shape, _)), values in zip(outputs.items(), results, strict=True):
            if values.shape != (items, *shape):
                raise ModelFileError(
                    f"{self._part}.onnx must give `{name}` of shape {(items, *shape)} for {items} items, got"
                    f" {values.shape}."
                )
        return results

    def fill(self, inputs: Mapping[str, NDArray[Any]], results: Mapping[str, NDArray[Any]]) -> None:
        """Write the outputs into ``results`` without a copy; all are C-contiguous and of the graph's shapes."""
        binding = self._session.io_binding()
        for name, values in inputs.items():
            binding.bind_input(name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)
        for name, values in results.items():
            binding.bind_output(name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise self._cannot_run(error) from error

    def _cannot_run(self, error: Exception) -> ModelFileError:
        return ModelFileError(f"onnxruntime cannot run {self._part}.onnx: {error}")


def load_libraries(providers: Collection[str]) -> None:
    """Load the CUDA libraries that came as Python packages, if a provider needs them: the loader does not find them.

    What is missing is reported on standard error; then the provider does not load either.
    """
    if not _ON_CUDA.isdisjoint(providers):
        with contextlib.redirect_stdout(sys.stderr):
            _onnxruntime().preload_dlls()


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("vaelib.runtime", "onnx") from error
    return onnxruntime


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
