"""One backend in a process of its own: commands in, the seconds of each call out, as lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from vaelib.benchmark.backends import BACKENDS, Backend, Opened

__all__ = ["First", "Peaks", "Worker", "WorkerError", "interleaved", "table_of"]

_PAUSE = 0.1  # until a process on the CPU is quiet: the threads of a plain onnxruntime session spin for some 60 ms
_WARM_UP = 4  # calls, of which CUDA graphs are captured in the last; fewer of those that take long
_WARM_UP_SECONDS = 1.0


class WorkerError(RuntimeError):
    """A backend's process ended; the message is what it said last."""


class First(NamedTuple):
    """What came of the first call at a shape."""

    seconds: float
    """Compilation and measured plans included."""
    answer: Path


def table_of(path: Path | None) -> dict[str, Backend]:
    """The backends of vaelib, and those of the ``BACKENDS`` in another Python file."""
    return BACKENDS | (runpy.run_path(str(path))["BACKENDS"] if path else {})


class Peaks(NamedTuple):
    """The most memory that a process has had since it last began; where that is not known, ever."""

    host_mib: float
    device_mib: float | None
    """Of torch on a GPU; None of others."""


class Worker:
    """A backend's process, seen from outside; use it in a ``with``.

    Args:
        backend: Its name.
        directory: What it opens; its log and answers are written there too.
        threads: How many it may use.
        table: A Python file with more backends.
    """

    def __init__(self, backend: str, directory: Path, threads: int, table: Path | None = None) -> None:
        self._pause = _PAUSE if table_of(table)[backend].products == "cpu" else 0.0
        self._answer = directory / f"{backend}.npy"
        self._log = (directory / f"{backend}.log").open("w+")
        self._process: Any = subprocess.Popen(
            [sys.executable, "-m", __name__, backend, str(directory), str(threads), str(table or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"NVIDIA_TF32_OVERRIDE": "0"},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # of one that ended before it had read all
            self._process.stdin.close()
        if kind is not None:  # nobody waits for its answer, which may take long
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def begin(self, operation: str, inputs: Path) -> First:
        """Answer the first of ``inputs``, a stack of batches, then warm up on them."""
        found = self._ask(operation=operation, inputs=str(inputs), answer=str(self._answer))
        time.sleep(self._pause)
        return First(float(found["first"]), self._answer)

    def turn(self, seconds: float, least_calls: int) -> list[float]:
        """The seconds of each call of a turn, on one batch after the other."""
        times = list(self._ask(seconds=seconds, least_calls=least_calls)["times"])
        time.sleep(self._pause)
        return times

    def peaks(self) -> Peaks:
        """The most memory that the process has had for what it last began."""
        return Peaks(**self._ask())

    def _ask(self, **command: Any) -> Any:
        with contextlib.suppress(BrokenPipeError):  # what it said before it ended comes below
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().strip() or "it ended without a word"
            raise WorkerError(said.splitlines()[-1])
        return json.loads(line)


def interleaved(
    workers: Mapping[str, Worker], *, seconds: float, rounds: int, least_calls: int
) -> dict[str, list[float] | WorkerError]:
    """The seconds of each call, from turns of one worker after the other.

    A worker that fails is skipped from then on; its entry is the error.
    """
    times: dict[str, list[float]] = {name: [] for name in workers}
    failed: dict[str, WorkerError] = {}
    for _ in range(rounds):
        for name in list(times):
            try:
                times[name] += workers[name].turn(seconds, -(-least_calls // rounds))
            except WorkerError as error:
                failed[name] = error
                del times[name]
    return {**times, **failed}


def _serve(opened: Opened, answers: TextIO) -> None:
    inputs: list[Any] = []
    operation = ""
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        answer: dict[str, Any] = {}
        if "operation" in command:
            inputs.clear()  # they would count as memory of the next shape
            _forget_peaks()
            operation = command["operation"]
            inputs += [opened.place(batch) for batch in np.load(command["inputs"], allow_pickle=False)]
            answer["first"] = _begin(opened, operation, inputs, command["answer"])
            _give_back()
        elif "seconds" in command:
            answer["times"] = _timed(opened, operation, inputs, command["seconds"], command["least_calls"])
            _give_back()
        else:
            answer = Peaks(_host_peak_mib(), _device_peak_mib())._asdict()
        print(json.dumps(answer), file=answers, flush=True)


def _begin(opened: Opened, operation: str, inputs: list[Any], answer: str) -> float:
    """The seconds of the first call, whose answer is kept; warms up too."""
    started = time.perf_counter()
    result = opened.call(operation, inputs[0])
    first = time.perf_counter() - started
    np.save(answer, opened.fetch(result))
    del result
    end = time.perf_counter() + _WARM_UP_SECONDS  # from here on: the first may have compiled for longer
    calls = 1
    while calls < _WARM_UP and time.perf_counter() < end:
        opened.call(operation, inputs[calls % len(inputs)])
        calls += 1
    return first


def _timed(opened: Opened, operation: str, inputs: list[Any], seconds: float, least_calls: int) -> list[float]:
    opened.call(operation, inputs[-1])  # what another process put into the caches is not ours to pay for
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least_calls or time.perf_counter() < end:
        batch = inputs[len(times) % len(inputs)]
        started = time.perf_counter()
        opened.call(operation, batch)
        times.append(time.perf_counter() - started)
    return times


def _forget_peaks() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if (torch := _torch_on_cuda()) is not None:
        torch.cuda.reset_peak_memory_stats()


def _host_peak_mib() -> float:
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


if __name__ == "__main__":
    _name, _directory, _threads, _table = sys.argv[1:]
    _answers, sys.stdout = sys.stdout, sys.stderr  # whatever a backend prints is not an answer
    _backend = table_of(Path(_table) if _table else None)[_name]
    _serve(_backend.opened(Path(_directory), int(_threads)), _answers)
