"""A run among other processes: signals, the lock of its directory, signs of life of other machines."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from filelock import FileLock, Timeout

from vaelib._files import is_running

__all__ = ["Heartbeat", "Interruption", "TrainingInterrupted", "agreed_stop", "heartbeat", "locked", "watched"]

SILENCE = 30.0  # seconds without a sign, after which a process is lost: the run ends, teardown included, in a minute
_SIGNS = 6  # in that time
_LOOK = 1.0  # seconds between looks at the clock
_MOST_STEPS, _MOST_SECONDS = 50, 5.0  # between questions to the other processes, each of which waits for the device
_FILE = ".vaelib-lock"
_ORPHANS = 10.0  # seconds; workers that a killed process forked hold its lock until they notice, which takes 5
_logger = logging.getLogger("vaelib.training")


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


@contextlib.contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Inside the ``with``, another process that would train into ``output_dir`` raises; may be nested.

    The operating system holds the lock and releases it when the process ends, however it ends. The file stays.
    """
    path = output_dir / _FILE
    lock, holder = FileLock(path, is_singleton=True), _holder(path)
    here = socket.gethostname()
    is_dead = holder is not None and os.name != "nt" and holder[1] == here and not is_running(holder[0])
    try:
        lock.acquire(timeout=_ORPHANS if is_dead else 0)
    except Timeout as error:
        who = "another process" if holder is None else f"process {holder[0]} on {holder[1]}"
        raise BlockingIOError(
            f"`output_dir` {output_dir} is in use: {who} trains into it. Wait for its end, or give another directory."
        ) from error
    except (OSError, NotImplementedError) as error:
        _logger.warning("%s cannot be locked (%s): take care that no other process trains into it.", output_dir, error)
        yield
        return
    try:
        with contextlib.suppress(OSError):  # Windows lets nobody write to a locked file
            path.write_text(f"{os.getpid()} {here}")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> tuple[int, str] | None:
    """Process number and host of whoever held the lock last, if that can be read."""
    try:
        number, host = path.read_text().split()
        return int(number), host
    except (OSError, ValueError):
        return None


class Heartbeat:
    """Shows the other processes that this one is alive and, where it is watched, ends this one if another is silent.

    Collectives cannot tell a lost process from a slow one, for which the others rightly wait: it writes, or compiles.
    A process counts as alive while its threads run, whatever it computes: one that is stopped, or whose machine or
    network is gone, does not. No other thread may use this connection to the ``store``, a ``torch.distributed.Store``,
    in which no earlier ``group`` of processes had this number.
    """

    def __init__(self, store: Any, rank: int, processes: int, group: int) -> None:
        self._store, self._rank = store, rank
        self._keys = [f"vaelib/{group}/{number}" for number in range(processes)]
        self._heard = [0.0] * processes
        self._watched_since: float | None = None
        self._leaving = threading.Event()
        # Two, since the first one may wait for an answer that never comes.
        self._threads = [threading.Thread(target=act, daemon=True) for act in (self._beat, self._watch)]
        for thread in self._threads:
            thread.start()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside the ``with``, another process's silence ends this one."""
        self._watched_since = time.monotonic()
        try:
            yield
        finally:
            self._watched_since = None

    def leave(self) -> None:
        """End the threads."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _beat(self) -> None:
        signs, count = [b""] * len(self._keys), 0
        while not self._leaving.is_set():
            count += 1
            with contextlib.suppress(RuntimeError):  # the store does not answer, so nobody is heard
                self._store.set(self._keys[self._rank], str(count))
                found = self._store.multi_get(self._keys)
                for number, (before, sign) in enumerate(zip(signs, found, strict=True)):
                    if sign != before:
                        self._heard[number] = time.monotonic()
                signs = found
            self._leaving.wait(SILENCE / _SIGNS)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._leaving.wait(_LOOK):
            now, since = time.monotonic(), self._watched_since
            if now - looked > SILENCE / 2 and since is not None:  # this process itself was stopped, as by Ctrl-Z
                self._watched_since = since = now
            looked = now
            if since is not None:
                silent = [number for number, heard in enumerate(self._heard) if now - max(heard, since) > SILENCE]
                if silent:
                    self._end([number for number in silent if number != self._rank])

    def _end(self, silent: list[int]) -> None:
        """End the process: no exception can reach a thread that waits in a collective."""
        _logger.error(
            "No sign of life from process %s of %s for %.0f seconds: the process was stopped, or its machine or the"
            " network is lost. This process ends too; started again, all resume from the last checkpoint.",
            *(", ".join(map(str, silent)), len(self._keys), SILENCE),
        )
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)


@functools.cache
def heartbeat() -> Heartbeat | None:
    """That of this process, which begins at the first call and ends with the process; None of a process alone."""
    state = PartialState()
    if state.num_processes == 1:
        return None
    if "MASTER_ADDR" not in os.environ:
        _logger.warning("There is no MASTER_ADDR: a lost machine is noticed only after torch's timeout of collectives.")
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    tcp_store: Any = getattr(torch.distributed, "TCPStore")  # noqa: B009  # which mypy does not find there
    store = tcp_store(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SILENCE))
    group = broadcast(torch.tensor([uuid.uuid4().int >> 65], device=state.device))
    beating = Heartbeat(store, state.process_index, state.num_processes, int(group))
    atexit.register(beating.leave)
    return beating


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Inside the ``with``, the silence of another process ends this one."""
    beating = heartbeat()
    with contextlib.nullcontext() if beating is None else beating.watched():
        yield
