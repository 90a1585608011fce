"""What vaelib is measured against, as backends of `vaelib.benchmark`: opened in processes of their own.

The article's code and pythae run the article's network with the same weights, and diffusers a first stage of
``vl.autoencoder_kl`` with the same weights. torch is imported by those that run on it, so that it is no part of the
memory of the others.
"""

import functools
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import vaelib as vl
from vaelib.benchmark.backend import Backend, Opened

EXAMPLES = Path(__file__).parent.parent / "examples"


def _opened(functions):
    import torch

    def call(operation, values):
        with torch.inference_mode():
            return functions[operation](torch.from_numpy(values)).numpy()

    return Opened(call)


def _article_network(directory, threads):
    """The tutorial's own network with the weights of ``vl.presets.article_vae()``."""
    import torch

    torch.set_num_threads(threads)
    sys.path.insert(0, str(EXAMPLES))
    from standalone_article import ArticleVAE

    network, model = ArticleVAE(), vl.load(directory / "model")
    for theirs, ours in zip(network.state_dict().values(), model.state_dict().values(), strict=True):
        theirs.copy_(ours)
    return network.eval()


def _article(directory, threads):
    network = _article_network(directory, threads)
    encode, decode = (lambda x: network.encode(x)[0]), network.decode
    return _opened({"encode": encode, "decode": decode, "reconstruct": lambda x: decode(encode(x))})


def pythae_model(network):
    """The tutorial's network as pythae's VAE."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            mu, logvar = self.network.encode(x)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, z):
            return ModelOutput(reconstruction=self.network.decode(z))

    config = VAEConfig(input_dim=(1, 32, 32), latent_dim=20, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(), decoder=Decoder())


def _pythae(directory, threads):
    import logging

    logging.disable()
    model = pythae_model(_article_network(directory, threads)).eval()
    encode, decode = (lambda x: model.encoder(x).embedding), (lambda z: model.decoder(z).reconstruction)
    return _opened({"encode": encode, "decode": decode, "reconstruct": lambda x: decode(encode(x))})


TILE = 256
"""Side of a tile in pixels."""


def _diffusers(directory, threads, *, tiled=False):
    """diffusers' own code with the weights of the model; images in [0, 1], as its pipelines take and give them."""
    import diffusers
    import torch

    torch.set_num_threads(threads)
    vl.to_diffusers(vl.load(directory / "model"), directory / "diffusers")
    kind = json.loads((directory / "diffusers" / "config.json").read_text())["_class_name"]
    network = getattr(diffusers, kind).from_pretrained(directory / "diffusers").eval()
    if tiled:
        network.enable_tiling()
        network.tile_sample_min_size, network.tile_latent_min_size = TILE, TILE // 8

    def encode(x):
        found = network.encode(2 * x - 1)
        return found.latents if kind == "AutoencoderTiny" else found.latent_dist.mean

    def decode(z):
        return (network.decode(z).sample / 2 + 0.5).clamp(0, 1)

    return _opened({"encode": encode, "decode": decode, "reconstruct": lambda x: decode(encode(x))})


def _torch_tiled(directory, threads):
    import torch

    torch.set_num_threads(threads)
    model, how = vl.load(directory / "model"), _how(directory)
    return _opened({"encode": lambda x: model.embed(x, **how), "decode": lambda z: model.decode_mean(z, **how)})


def _onnx_tiled(directory, threads):
    from vaelib.runtime import OnnxVAE

    bundle = directory / "any size"
    code = "import sys, vaelib as vl; vl.export_onnx(vl.load(sys.argv[1]), sys.argv[2], dynamic_size=True)"
    subprocess.run([sys.executable, "-c", code, directory / "model", bundle], check=True)  # torch stays out of here
    model, how = OnnxVAE(bundle, threads=threads), _how(directory)
    functions = {"encode": functools.partial(model.embed, **how), "decode": functools.partial(model.decode, **how)}
    return Opened(lambda operation, values: functions[operation](values))


def _how(directory):
    """Tiles that are blended only where a network looks at the whole image."""
    decoder = json.loads((directory / "model" / "config.json").read_text())["model"]["decoder"]
    return {"tile": TILE, "blend": decoder.get("norm", "pixel") != "pixel"}


def _trainer(directory, threads):
    """An epoch of `vl.Trainer` in batches of 64, from the first line of `fit` to its last."""
    import torch

    torch.set_num_threads(threads)
    model = vl.load(directory / "model")

    def call(operation, images):
        return (
            vl.Trainer(max_epochs=1, batch_size=64).fit(model, torch.from_numpy(images), progress=False)[-1].train.loss
        )

    return Opened(call)


def _needs(package):
    return None if importlib.util.find_spec(package) else f"{package} is not installed (the extra `bench`)"


BACKENDS = {
    "the article's code": Backend(_article),
    "pythae": Backend(_pythae, functools.partial(_needs, "pythae")),
    "diffusers": Backend(_diffusers, functools.partial(_needs, "diffusers")),
    # Tiles that are blended are not the whole image's, by as much as the row says.
    "diffusers tiled": Backend(
        functools.partial(_diffusers, tiled=True), functools.partial(_needs, "diffusers"), tolerance=math.inf
    ),
    "torch tiled": Backend(_torch_tiled, tolerance=math.inf),
    "OnnxVAE tiled": Backend(_onnx_tiled, functools.partial(_needs, "onnxruntime"), tolerance=math.inf),
    "vl.Trainer": Backend(_trainer),
}
