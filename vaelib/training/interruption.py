"""SIGINT and SIGTERM as a question that the loop asks between steps."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

__all__ = ["Interruption", "TrainingInterrupted", "agreed_stop"]


class TrainingInterrupted(SystemExit):
    """Training was stopped by a signal, after a checkpoint; ends a program with 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, signal_number: int, step: int, checkpoint: Path | None) -> None:
        super().__init__(128 + signal_number)
        self.signal, self.step, self.checkpoint = signal.Signals(signal_number), step, checkpoint
        if checkpoint is not None:
            logging.getLogger("vaelib.training").warning(
                "Stopped by %s after step %s with the checkpoint %s; fit(..., resume=True) goes on from there.",
                *(self.signal.name, step, checkpoint),
            )


class Interruption:
    """Inside the ``with``, the first SIGINT or SIGTERM is only noted; a second one acts as it always does."""

    def __init__(self, enabled: bool) -> None:
        self.signal = 0
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

    def agreed(self, accelerator: Accelerator, may_wait: bool) -> int:
        """The signal that any process has had, 0 if none; of several processes only where they ``may_wait``."""
        if accelerator.num_processes == 1:
            return self.signal
        if not may_wait:
            return 0
        signals = accelerator.gather(torch.tensor([self.signal], device=accelerator.device))
        return int(signals.max())

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
