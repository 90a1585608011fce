"""The errors that are vaelib's own: each is a :class:`VaelibError` and a built-in exception."""

from vaelib._checks import DataError, ExportError, MissingExtraError, ModelFileError, TrainingError, VaelibError

__all__ = ["DataError", "ExportError", "MissingExtraError", "ModelFileError", "TrainingError", "VaelibError"]
