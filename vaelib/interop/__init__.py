"""Models of other libraries, and vaelib's for them."""

from vaelib.interop.diffusers import from_diffusers, to_diffusers

__all__ = ["from_diffusers", "to_diffusers"]
