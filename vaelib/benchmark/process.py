"""A program in a process of its own that answers each line of JSON with one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Process", "ProcessError", "serve"]


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

    def tell(self, **command: Any) -> None:
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
        self.tell(**command)
        return self.answer()


def serve(opened: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Open what answers, then answer commands until there are no more; what it prints goes to the standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    answer = opened()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
