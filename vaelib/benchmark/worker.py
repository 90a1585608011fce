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
from typing import Any, NamedTuple

import numpy as np

from vaelib.benchmark.backends import BACKENDS, Backend, Opened

__all__ = ["First", "Worker", "WorkerError", "interleaved", "table_of"]

_PAUSE = 0.1  # until the process before is quiet: the threads of a plain onnxruntime session spin for some 60 ms
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


class Worker:
    """A backend's process, seen from outside; use it in a ``with``.

    Args:
        backend: Its name.
        directory: What it opens; its log and answers are written there too.
        threads: How many it may use.
        table: A Python file with more backends.
    """

    def __init__(self, backend: str, directory: Path, threads: int, table: Path | None = None) -> None:
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

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # of one that ended before it had read all
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def begin(self, operation: str, inputs: Path) -> First:
        """Answer the first of ``inputs``, a stack of batches, then warm up on them."""
        time.sleep(_PAUSE)
        found = self._ask(operation=operation, inputs=str(inputs), answer=str(self._answer))
        return First(float(found["first"]), self._answer)

    def turn(self, seconds: float, least_calls: int) -> list[float]:
        """The seconds of each call of a turn, on one batch after the other."""
        time.sleep(_PAUSE)
        return list(self._ask(seconds=seconds, least_calls=least_calls)["times"])

    def peak_mib(self) -> float:
        """The most memory that the process has had since it last began; where that is not known, ever."""
        return float(self._ask()["peak_mib"])

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

    A worker that fails is left out from then on; its entry is the error.
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


def _serve(opened: Opened) -> None:
    inputs: list[Any] = []
    operation = ""
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        answer: dict[str, Any] = {}
        if "operation" in command:
            _forget_peak()
            operation = command["operation"]
            inputs = [opened.place(batch) for batch in np.load(command["inputs"], allow_pickle=False)]
            started = time.perf_counter()
            result = opened.call(operation, inputs[0])
            answer["first"] = time.perf_counter() - started
            np.save(command["answer"], opened.fetch(result))
            calls = 1
            while calls < _WARM_UP and time.perf_counter() < started + _WARM_UP_SECONDS:
                opened.call(operation, inputs[calls % len(inputs)])
                calls += 1
        elif "seconds" in command:
            answer["times"] = _timed(opened, operation, inputs, command["seconds"], command["least_calls"])
        else:
            answer["peak_mib"] = _peak_mib()
        print(json.dumps(answer), flush=True)  # noqa: T201


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


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says began with the process that started this one
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    _name, _directory, _threads, _table = sys.argv[1:]
    _backend = table_of(Path(_table) if _table else None)[_name]
    _serve(_backend.opened(Path(_directory), int(_threads)))
