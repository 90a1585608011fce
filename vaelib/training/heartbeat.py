"""Signs of life between the processes of a run, so that a lost machine ends it within a minute.

Collectives cannot tell a lost process from a slow one: the others may rightly wait for minutes while the first process
writes or one compiles. So each process shows in a thread of its own that it is alive, and watches the others.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast

__all__ = ["Heartbeat", "heartbeat", "watched"]

SILENCE = 30.0  # seconds without a sign, after which a process is lost: the run ends, teardown included, in a minute
_SIGNS = 6  # in that time
_LOOK = 1.0  # seconds between looks at the clock
_logger = logging.getLogger("vaelib.training")


class Heartbeat:
    """Shows the other processes that this one is alive and, where it is watched, ends this one if another is silent.

    A process counts as alive while its threads run, whatever it computes: one that is stopped, or whose machine or
    network is gone, does not.

    Args:
        store: A ``torch.distributed.Store`` that all processes can reach; no other thread may use this connection.
        rank: Number of this process.
        processes: How many there are.
        group: A number that no earlier group of processes had in this store.
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
