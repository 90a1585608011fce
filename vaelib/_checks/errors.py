"""The errors that are vaelib's own."""

from __future__ import annotations


class VaelibError(Exception):
    """Base class of the errors that are vaelib's own; each also is a built-in exception."""


class ModelFileError(VaelibError, ValueError):
    """A file of a model directory or bundle is torn, foreign, or does not fit its config."""


class ExportError(VaelibError, ValueError):
    """An ONNX graph was refused: it breaks its contract or differs from the torch model."""


class DataError(VaelibError, ValueError):
    """A data set is unreadable, empty, or not what its name promises."""


class TrainingError(VaelibError, ValueError):
    """Training cannot go on: the loss is no longer finite."""


class MissingExtraError(VaelibError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'vaelib[{extra}]'.")
