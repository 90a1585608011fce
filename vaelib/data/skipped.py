"""What is skipped in a source of images: counted, and the first few named."""

from __future__ import annotations

import sys
import warnings

__all__ = ["Skipped", "readable", "warn"]

_SHOWN = 5


class Skipped:
    """Counts of what is skipped, by the reason, with the first names of each."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one more; ``reason`` stands after the number, such as ``"empty"`` or ``"broken link{s}"``."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < _SHOWN:
            names.append(readable(name))

    def __len__(self) -> int:
        return sum(self._counts.values())

    def __str__(self) -> str:
        parts = []
        for reason, count in self._counts.items():
            names = self._names[reason]
            more = f" and {count - len(names)} more" if count > len(names) else ""
            parts.append(f"{count} {reason.format(s='s' if count > 1 else '')} ({', '.join(names)}{more})")
        return "; ".join(parts)

    def warn(self, source: object) -> None:
        """Report all of them in one warning, if there are any."""
        if len(self):
            files = "file was" if len(self) == 1 else "files were"
            warn(f"{len(self)} {files} skipped in {source}: {self}.")


def warn(message: str) -> None:
    """Warn with the line of the caller's code that called vaelib, however deep in vaelib the warning arises."""
    level, frame = 2, sys._getframe(1)  # to warnings, this function is level 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("vaelib."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def readable(name: str) -> str:
    """A name without what a terminal could take for something else than a name."""
    return name if name.isprintable() else ascii(name)[1:-1]
