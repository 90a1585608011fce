"""The model card: what is known and was measured, and how to use the files without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vaelib.export import Parity

__all__ = ["card"]


def card(facts: Mapping[str, Any], parity: Mapping[str, Mapping[str, Parity]]) -> str:
    """README.md of a bundle."""
    return f"# {facts['kind']}\n"
