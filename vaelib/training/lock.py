"""One process at a time trains into a directory."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from vaelib._files import is_running

__all__ = ["locked"]

_FILE = ".vaelib-lock"
_ORPHANS = 10.0  # seconds; workers that a killed process forked hold its lock until they notice, which takes 5
_logger = logging.getLogger("vaelib.training")


@contextlib.contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Inside the ``with``, another process that would train into ``output_dir`` raises; may be nested.

    The operating system holds the lock and releases it when the process ends, however it ends. The file stays.

    Raises:
        BlockingIOError: An ``OSError``: if another process holds the lock, with its number if it is known.
    """
    path = output_dir / _FILE
    lock, holder = FileLock(path, is_singleton=True), _holder(path)
    try:
        lock.acquire(timeout=_ORPHANS if holder is not None and _is_dead(*holder) else 0)
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
            path.write_text(f"{os.getpid()} {socket.gethostname()}")
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


def _is_dead(number: int, host: str) -> bool:
    return os.name != "nt" and host == socket.gethostname() and not is_running(number)
