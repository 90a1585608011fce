"""A model directory: ``config.json`` and ``model.safetensors``, and how a model is described."""

from vaelib.serialization.descriptions import describe, register
from vaelib.serialization.files import load, save

__all__ = ["describe", "load", "register", "save"]
