"""What torch says while it exports, kept from the terminal, and what it says when it fails, in a sentence."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

__all__ = ["quiet", "reason_of"]

_LOGGERS = ("torch", "onnx_ir", "onnxscript", "onnxruntime")
_MOST_CHARACTERS = 200
_HINTS = {
    "data-dependent": " The code branches on a tensor's values; torch.where does not.",
    "No ONNX function": " ONNX has no such operator; take other ones.",
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, logs or printed graphs of the exporters: what they make is checked as a whole afterwards."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def reason_of(error: BaseException) -> str:
    """The first line of the error at the root, cut to 200 characters, for an error that keeps the rest as its cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    line = next(filter(None, lines), type(error).__name__)
    short = line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."
    hint = next((hint for words, hint in _HINTS.items() if words in line), "")
    return f"{short.rstrip('.')}.{hint}"
