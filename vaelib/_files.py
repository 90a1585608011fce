"""Files are written whole or not at all, and never in the place of a file that vaelib did not write."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Listed = Mapping[str, str | None]
"""What a manifest lists, itself included: file name to SHA-256; None where vaelib's file may have any content."""

CLAIMS_NAME = ".vaelib-outputs.json"
_MAX_DEPTH = 100  # of JSON; vaelib's own files have less than 20
_DAY = 86_400.0

# A temporary name says whose it is, so that the next process can tell a leftover from a file that is being written.
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_TOKEN = uuid.uuid4().hex[:8]  # two processes may have had the same number
_COUNT = itertools.count()
_TEMPORARY = re.compile(r"\.vaelib-([0-9a-f]{8})-(\d{1,9})-([0-9a-f]{8})-\d+(\..*)?")


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


def target_directory(name: str, directory: str | Path) -> Path:
    """The directory that links lead to, made or not, once it or its parent is known to be writable."""
    path = Path(os.path.realpath(directory))
    writable_directory(name, path if os.path.lexists(path) else path.parent)
    return path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the ``with`` ends without an error."""
    target = Path(path)
    _remove_leftovers(target.parent)
    temporary = target.parent / _temporary_name(target.suffix)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def files_replaced(directory: Path, manifest: str, listed: Callable[[Path], Listed | None]) -> Iterator[Path]:
    """A staging directory whose files take their places in ``directory`` as one act when the ``with`` ends.

    The act is one rename. If the process is killed before it, the old files are untouched; after it, :func:`committed`
    finds the new ones, and the next call moves those that are not yet in place. A new directory appears as one.
    Files that the old manifest lists and the new one does not are removed; all others stay.

    Args:
        directory: From :func:`target_directory`.
        manifest: Name of the file, among those written, that lists the others.
        listed: Reads a manifest; None if it is missing or not vaelib's.

    Raises:
        FileExistsError: If a file to be written is there already and the old manifest does not list it as it is.
    """
    place = directory if directory.exists() else directory.parent
    _remove_leftovers(place)
    staging = place / _temporary_name()
    staging.mkdir()
    try:
        yield staging
        for path in (*staging.iterdir(), staging):
            _sync(path)
        if directory.exists():
            _finish(directory, manifest, listed)
            check_replaceable(directory, os.listdir(staging), listed(directory / manifest))
            staging.replace(_pending(directory, manifest))
            _sync(directory)
            _finish(directory, manifest, listed)
        else:
            staging.replace(directory)
            _sync(directory.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def committed(directory: Path, manifest: str, name: str) -> Path:
    """Where the current ``name`` is: beside ``manifest``, or in the files of a killed :func:`files_replaced`."""
    pending = _pending(directory, manifest) / name
    return pending if pending.exists() else directory / name


def check_replaceable(directory: Path, names: Collection[str], listed: Listed | None) -> None:
    """Raise ``FileExistsError`` that names the files among ``names`` that are there and are not those ``listed``."""
    foreign = [name for name in sorted(names) if not _may_be_replaced(directory / name, listed or {})]
    if foreign:
        raise FileExistsError(
            f"`directory` must not hold files that vaelib did not write, or that were changed since, where vaelib's"
            f" go; {directory} holds {', '.join(foreign)}. Move them away, or give another directory."
        )


def listed_in(manifest: Path, is_ours: Callable[[dict[str, Any]], bool]) -> Listed | None:
    """The entries ``files`` of a JSON manifest, and the manifest itself; None if it is missing or not ``is_ours``."""
    try:
        content = read_json(manifest, 2**20)
    except (OSError, ValueError):
        return None
    files = content.get("files") if isinstance(content, dict) and is_ours(content) else None
    if not isinstance(files, dict):
        return None
    for name, entry in files.items():
        if os.path.basename(name) != name or name in ("", ".", "..") or "\\" in name or not isinstance(entry, dict):
            return None
    return {name: str(entry.get("sha256")) for name, entry in files.items()} | {manifest.name: None}


def check_claimed(argument: str, directory: Path, names: Collection[str]) -> None:
    """Raise ``FileExistsError`` that names the files and folders among ``names`` that no :func:`claim` has listed."""
    claimed = _claimed(directory)
    foreign = [name for name in sorted(names) if os.path.lexists(directory / name) and name not in claimed]
    if foreign:
        raise FileExistsError(
            f"`{argument}` must not hold files or folders that vaelib did not write where vaelib's go;"
            f" {directory} holds {', '.join(foreign)}. Move them away, or give another directory."
        )


def claim(directory: Path, names: Collection[str]) -> None:
    """List ``names`` as vaelib's to replace in ``directory``: for what is rewritten during a run."""
    claimed = _claimed(directory)
    if not claimed.issuperset(names):
        with written_whole(directory / CLAIMS_NAME) as temporary:
            temporary.write_text(json.dumps({"files": {name: {} for name in sorted(claimed.union(names))}}) + "\n")


def _claimed(directory: Path) -> set[str]:
    return set(listed_in(directory / CLAIMS_NAME, lambda content: True) or ())


def read_json(path: Path, limit: int) -> Any:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no regular file, larger, no JSON, nested deeply, or names a key twice.
    """
    size = regular_size(path)
    if size > limit:
        raise ValueError(f"{path} must have at most {limit} bytes, got {size}.")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
        _check_depth(content, 0)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is no JSON: {reason}.") from error
    return content


def regular_size(path: Path) -> int:
    """Size in bytes; a ``ValueError`` for what is no regular file, such as a fifo, which would never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} must be a regular file.")
    return found.st_size


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _check_depth(content: Any, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise RecursionError
    if isinstance(content, dict | list):
        for entry in content.values() if isinstance(content, dict) else content:
            _check_depth(entry, depth + 1)


def _may_be_replaced(path: Path, listed: Listed) -> bool:
    """Whether nothing is there, or a regular file that the manifest lists, with that content."""
    if not os.path.lexists(path):
        return True
    if path.name not in listed or not stat.S_ISREG(path.lstat().st_mode):
        return False
    digest = listed[path.name]
    return digest is None or digest == sha256_of(path)


def _pending(directory: Path, manifest: str) -> Path:
    return directory / f".vaelib-pending-{manifest}"


def _finish(directory: Path, manifest: str, listed: Callable[[Path], Listed | None]) -> None:
    """Move committed files to their places, the manifest last: until then it lists what there is to remove."""
    pending = _pending(directory, manifest)
    if pending.is_symlink() or not pending.is_dir():
        return
    old, new = listed(directory / manifest) or {}, listed(pending / manifest)
    for name in () if new is None else old.keys() - new.keys():
        if _may_be_replaced(directory / name, old):
            (directory / name).unlink(missing_ok=True)
    for name in sorted(os.listdir(pending), key=lambda name: name == manifest):
        with suppress(FileNotFoundError):  # another process moves them too
            (pending / name).replace(directory / name)
    _sync(directory)
    with suppress(FileNotFoundError):
        pending.rmdir()


def _temporary_name(suffix: str = "") -> str:
    return f".vaelib-{_HOST}-{os.getpid()}-{_TOKEN}-{next(_COUNT)}{suffix}"


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left behind."""
    for path in directory.glob(".vaelib-*"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is not None and not _is_alive(path, *found.group(1, 2, 3)):
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _is_alive(path: Path, host: str, pid: str, token: str) -> bool:
    """Whether the process that made ``path`` may still be writing it; of another machine's, for a day."""
    if host != _HOST or os.name == "nt":  # where signal 0 would end the process
        with suppress(FileNotFoundError):
            return time.time() - path.lstat().st_mtime < _DAY
        return False
    return token == _TOKEN if int(pid) == os.getpid() else is_running(int(pid))


def is_running(pid: int) -> bool:
    """Whether a process of this machine has that number; not for Windows, where signal 0 would end it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, for another user
        pass
    return True


def _sync(place: Path) -> None:
    if place.is_dir() and os.name == "nt":  # Windows has no handles of directories to sync
        return
    descriptor = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
