"""SIGINT and SIGTERM as a question that the loop asks between steps."""

from __future__ import annotations

import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

__all__ = ["Interruption", "TrainingInterrupted", "agreed_stop"]

_MOST_STEPS, _MOST_SECONDS = 50, 5.0  # between questions to the other processes, each of which waits for the device


class TrainingInterrupted(SystemExit):
    """Training was stopped by a signal, after a checkpoint; ends a program with 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, signal_number: int, step: int, checkpoint: Path | None) -> None:
        super().__init__(128 + signal_number)
        self.signal, self.step, self.checkpoint = signal.Signals(signal_number), step, checkpoint
        if checkpoint is not None:
            logging.getLogger("vaelib.training").warning(
                "Stopped by %s after step %s with the checkpoint %s; fit(..., resume=True) continues from there.",
                *(self.signal.name, step, checkpoint),
            )


class Interruption:
    """Inside the ``with``, the first SIGINT or SIGTERM is only noted; a second one acts as it always does."""

    def __init__(self, enabled: bool) -> None:
        self.signal = 0
        self._asked: tuple[int, float] | None = None  # at which step and time the processes asked each other last
        self._ask_at = 0
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if self._enabled:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def agreed(self, accelerator: Accelerator, step: int, must_ask: bool) -> int:
        """The signal that any process has had before ``step``, 0 if none.

        Several processes ask each other at the first step, where they ``must_ask``, and after at most 50 steps or as
        many as the slowest of them takes 5 seconds for: torchrun kills 30 seconds after SIGTERM.
        """
        if accelerator.num_processes == 1:
            return self.signal
        if step < self._ask_at and not must_ask:
            return 0
        now = time.monotonic()
        before, then = self._asked or (step, now - _MOST_SECONDS)
        seconds = (now - then) / max(step - before, 1)
        mine = torch.tensor([[float(self.signal), seconds]], device=accelerator.device)
        signal_number, slowest = accelerator.gather(mine).amax(0).tolist()
        self._asked = step, now
        self._ask_at = step + max(1, min(_MOST_STEPS, int(_MOST_SECONDS / max(slowest, 1e-6))))
        return int(signal_number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


def agreed_stop(reason: str | None, accelerator: Accelerator) -> str | None:
    """The reason to end the run; of several processes any may have one, and none may wait for the others for ever."""
    if accelerator.num_processes == 1:
        return reason
    stops = accelerator.gather(torch.tensor([reason is not None], device=accelerator.device))
    return reason or ("another process ended the run" if bool(stops.any()) else None)
