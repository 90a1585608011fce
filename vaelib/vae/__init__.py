"""``VAE``, ``AutoEncoder`` and what they return."""

from vaelib.vae.model import VAE, AutoEncoder
from vaelib.vae.outputs import LatentOutput, VAEOutput, bound, condition_of, eval_mode, image_of
from vaelib.vae.verbs import Given

__all__ = ["VAE", "AutoEncoder", "Given", "LatentOutput", "VAEOutput", "bound", "condition_of", "eval_mode", "image_of"]
