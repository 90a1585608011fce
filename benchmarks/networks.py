"""The networks that are measured."""

import torch
from torch import nn

import vaelib as vl

NETWORKS = {
    "tiny": lambda: vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,)),
    "article": vl.presets.article_vae,
    "default": lambda: vl.conv_vae((1, 32, 32)),
    "residual 64": lambda: vl.conv_vae((3, 64, 64), 64, residual_blocks=1),
    "map 256": lambda: vl.conv_vae((3, 256, 256), latent_shape=(4, 32, 32), hidden_channels=(16, 32, 64)),
    "first stage 256": lambda: vl.autoencoder_kl(
        (3, 256, 256), width=16, norm="group", groups=8, attention=True, quant_conv=True
    ),
    "first stage 512": lambda: vl.autoencoder_kl((3, 512, 512), width=16, norm="group", groups=8, quant_conv=True),
    "without norms 512": lambda: vl.VAE(
        vl.networks.TinyEncoder((3, 512, 512), 4, width=16, blocks=(1, 1, 1, 1)),
        vl.networks.TinyDecoder((3, 512, 512), 4, width=16, blocks=(1, 1, 1, 1)),
        latent=vl.PointLatent((4, 64, 64)),
        likelihood=vl.Laplace(0.5),
    ),
}


def used(model):
    """With batch statistics of some images: fresh ones would hide a wrong fold."""
    torch.manual_seed(0)
    is_batch_norm = [isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()]
    with torch.no_grad():
        for _ in range(5 if any(is_batch_norm) else 0):
            model.train()(torch.rand(8, *model.image_shape))
    return model.eval()
