"""ONNX out: graphs without a random operator, each proved against torch before it is kept."""

from __future__ import annotations

import importlib.util
from typing import Any

from vaelib._checks import MissingExtraError
from vaelib.export.differences import Parity

__all__ = ["Parity", "export_onnx"]

if all(importlib.util.find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime")):
    from vaelib.export.exporter import export_onnx
else:

    def export_onnx(*_: Any, **__: Any) -> Any:  # type: ignore[misc]
        """Raise: onnx, onnxscript or onnxruntime is not installed."""
        raise MissingExtraError("ONNX export", "onnx")
