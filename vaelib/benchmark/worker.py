"""Programs in processes of their own, that answer each line of JSON with one; and one backend in such a process."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vaelib._timing import timed
from vaelib.benchmark.backend import Backend, Opened
from vaelib.benchmark.backends import BACKENDS

__all__ = ["Peaks", "Process", "ProcessError", "Worker", "host_peak_mib", "table_of"]

_PAUSE = 0.1  # until a process on the CPU is quiet: the threads of a plain onnxruntime session spin for some 60 ms
_WARM_UP = 4  # calls, of which CUDA graphs are captured in the last; fewer of those that take long
_WARM_UP_SECONDS = 1.0


class ProcessError(RuntimeError):
    """A process ended; the message is the last line of its log."""


class Process:
    """A Python program, seen from outside; use it in a ``with``.

    Args:
        arguments: What follows ``python`` on its command line.
        log: File of its standard error.
        environment: Variables beside those of this process.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log.open("w+")
        self._process: Any = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | dict(environment or {}),
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if kind is not None:  # nobody waits for its answer, which may take long
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def send(self, **command: Any) -> None:
        """Send a command."""
        with contextlib.suppress(BrokenPipeError):  # `answer` raises the reason
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the answer.

        Raises:
            ProcessError: If the process has ended.
        """
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().strip() or "it ended without a message"
            raise ProcessError(said.splitlines()[-1])
        return json.loads(line)

    def ask(self, **command: Any) -> Any:
        """Send a command and wait for the answer."""
        self.send(**command)
        return self.answer()


def table_of(path: Path | None) -> dict[str, Backend]:
    """The backends of vaelib, and those of the ``BACKENDS`` in another Python file."""
    return BACKENDS | (runpy.run_path(str(path))["BACKENDS"] if path else {})


class Peaks(NamedTuple):
    """The most memory that a process has had since it last began; where that is not known, ever."""

    host_mib: float
    device_mib: float | None
    """Of torch on a GPU; None of others."""


class Worker:
    """A backend's process, seen from outside; use it in a ``with``. Its methods raise ``ProcessError`` once it ended.

    Args:
        backend: Its name.
        directory: What it opens; its log and answers are written there too.
        threads: How many it may use.
        table: A Python file with more backends.
    """

    def __init__(self, backend: str, directory: Path, threads: int, table: Path | None = None) -> None:
        self._pause = _PAUSE if table_of(table)[backend].products == "cpu" else 0.0
        self._answer = directory / f"{backend}.npy"
        self._process = Process(
            ["-m", __name__, backend, str(directory), str(threads), str(table or "")],
            directory / f"{backend}.log",
            {"NVIDIA_TF32_OVERRIDE": "0"},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.__exit__(*error)

    def begin(self, operation: str, inputs: Path) -> tuple[float, Path]:
        """Answer the first of a stack of batches, then warm up: seconds of the first call, the file of its answer."""
        found = self._process.ask(operation=operation, inputs=str(inputs), answer=str(self._answer))
        time.sleep(self._pause)
        return float(found["first"]), self._answer

    def turn(self, seconds: float, least_calls: int) -> list[float]:
        """The seconds of each call of a turn, on one batch after the other."""
        times = list(self._process.ask(seconds=seconds, least=least_calls)["times"])
        time.sleep(self._pause)
        return times

    def peaks(self) -> Peaks:
        """The most memory that the process has had for what it last began."""
        return Peaks(**self._process.ask())


class _Answers:
    """Inside the process: the answer to each command."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._operation, self._calls = "", 0
        self._inputs: list[Any] = []

    def __call__(self, command: dict[str, Any]) -> dict[str, Any]:
        if not command:
            return Peaks(host_peak_mib(), _device_peak_mib())._asdict()
        found = {"first": self._begin(**command)} if "operation" in command else {"times": self._turn(**command)}
        _give_back()
        return found

    def _begin(self, operation: str, inputs: str, answer: str) -> float:
        self._inputs.clear()  # they would count as memory of the next shape
        _forget_peaks()
        self._operation, self._calls = operation, 0
        self._inputs += [self._opened.place(batch) for batch in np.load(inputs, allow_pickle=False)]
        results: list[Any] = []
        ((first,),) = timed(lambda: results.append(self._call()))
        np.save(answer, self._opened.fetch(results.pop()))
        warm_up = 0.0  # the first call does not count, since it may have compiled
        while self._calls < _WARM_UP and warm_up < _WARM_UP_SECONDS:
            warm_up += timed(self._call)[0][0]
        return first

    def _turn(self, seconds: float, least: int) -> list[float]:
        self._call()  # what another process put into the caches is not ours to pay for
        return timed(self._call, seconds=seconds, least=least)[0]

    def _call(self) -> Any:
        batch = self._inputs[self._calls % len(self._inputs)]
        self._calls += 1
        return self._opened.call(self._operation, batch)


def _forget_peaks() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if (torch := _torch_on_cuda()) is not None:
        torch.cuda.reset_peak_memory_stats()


def host_peak_mib() -> float:
    """The most memory that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says began with the process that started this one
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _device_peak_mib() -> float | None:
    torch = _torch_on_cuda()
    return None if torch is None else torch.cuda.max_memory_allocated() / 2**20


def _give_back() -> None:
    """Memory of a GPU that torch keeps for its next call: other processes need it now. That call is not timed."""
    if (torch := _torch_on_cuda()) is not None:
        torch.cuda.empty_cache()


def _torch_on_cuda() -> Any:
    """The module torch if this process has it and uses a GPU; it is not imported for those that do without."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _serve(opened: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Open what answers, then answer commands until there are no more; what it prints goes to the standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    answer = opened()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _name, _directory, _threads, _table = sys.argv[1:]
    _backend = table_of(Path(_table) if _table else None)[_name]
    _serve(lambda: _Answers(_backend.opened(Path(_directory), int(_threads))))
