"""Large images in tiles: the receptive field of a network, and passes over tiles that give the whole's result."""

from vaelib.tiling.field import Field, Refusal, receptive_field

__all__ = ["Field", "Refusal", "receptive_field"]
