"""One backend in a process of its own: commands in, the seconds of each call out, as lines of JSON."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vaelib.benchmark.backends import BACKENDS, Array

__all__ = ["Worker", "WorkerError"]

_PAUSE = 0.01  # until the threads of the process before have gone to sleep


class WorkerError(RuntimeError):
    """A backend's process ended; the message is what it said last."""


class Worker:
    """A backend's process, seen from outside."""

    def __init__(self, backend: str, directory: Path, threads: int) -> None:
        self._log = (directory / f"{backend}.log").open("w+")
        self._process: Any = subprocess.Popen(
            [sys.executable, "-m", __name__, backend, str(directory), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # of one that ended before it had read all
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def begin(self, operation: str, inputs: Path, output: Path) -> float:
        """Answer the first of ``inputs``, a stack of batches, into ``output``: the seconds that this took."""
        return float(self._ask(operation=operation, inputs=str(inputs), output=str(output))["first"])

    def turn(self, seconds: float) -> list[float]:
        """The seconds of each call of a turn, on one batch after the other."""
        time.sleep(_PAUSE)
        return list(self._ask(seconds=seconds)["times"])

    def peak_mib(self) -> float:
        """The most memory that the process ever had."""
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


def _serve(backend: str, directory: Path, threads: int) -> None:
    call = BACKENDS[backend].opened(directory, threads)
    inputs: Any = None
    run: Any = None
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        answer: dict[str, Any] = {}
        if "operation" in command:
            run, inputs = functools.partial(call, command["operation"]), np.load(command["inputs"], allow_pickle=False)
            started = time.perf_counter()
            result = run(inputs[0])
            answer["first"] = time.perf_counter() - started
            np.save(command["output"], result)
        elif "seconds" in command:
            answer["times"] = _timed(run, inputs, command["seconds"])
        else:
            answer["peak_mib"] = _peak_mib()
        print(json.dumps(answer), flush=True)  # noqa: T201


def _timed(run: Callable[[Array], Array], inputs: Array, seconds: float) -> list[float]:
    run(inputs[-1])  # what another process put into the caches is not ours to pay for
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        batch = inputs[len(times) % len(inputs)]
        started = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - started)
    return times


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says began with the process that started this one
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
