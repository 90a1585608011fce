"""Files are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["directory_written_whole", "writable_directory", "written_whole"]


def writable_directory(name: str, directory: str | Path) -> Path:
    """Make ``directory`` with its parents; an ``OSError`` that names the argument if it cannot be written."""
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(
            error.errno, f"`{name}` must be a directory that can be written ({reason}), got", str(path)
        ) from error
    return path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the ``with`` ends without an error."""
    target = Path(path)
    temporary = target.with_name(f".{target.stem}-{uuid.uuid4().hex}{target.suffix}")
    try:
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def directory_written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary directory beside ``path`` that takes its place, files and names synced, when the ``with`` ends."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        for place in (*temporary.iterdir(), temporary):
            _sync(place)
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(place: Path) -> None:
    if place.is_dir() and os.name == "nt":  # Windows has no handles of directories to sync
        return
    descriptor = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
