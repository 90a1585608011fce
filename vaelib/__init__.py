"""vaelib: images in, a measured variational autoencoder, a verified ONNX model out.

Names load on first use, so ``import vaelib`` pulls in nothing, and ``vaelib.runtime`` works without torch. The list
of public names is the stub beside this file. Every per-image number is in nats, summed over pixels and latents.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOME_OF = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vaelib' has no attribute {name!r}")
    home = _HOME_OF[name]
    if home == __name__:
        return importlib.import_module(f"vaelib.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
