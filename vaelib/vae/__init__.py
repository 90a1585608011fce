"""``VAE``, ``AutoEncoder`` and what they return."""

from vaelib.vae.given import Given
from vaelib.vae.model import VAE, AutoEncoder
from vaelib.vae.outputs import LatentOutput, VAEOutput, bound, condition_of, eval_mode, image_of

__all__ = ["VAE", "AutoEncoder", "Given", "LatentOutput", "VAEOutput", "bound", "condition_of", "eval_mode", "image_of"]
