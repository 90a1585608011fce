"""What several tests of exports use."""

import onnxruntime
import torch
from torch import nn


class Call(nn.Module):
    """Any function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def run(directory, part, **inputs):
    """The answers of one graph by plain onnxruntime, by output name."""
    session = onnxruntime.InferenceSession(directory / f"{part}.onnx", providers=["CPUExecutionProvider"])
    answers = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, answers, strict=True)}


def whole(vae, x, noise):
    """What the graph of the whole must give, by torch, with the KL in closed form."""
    with torch.no_grad():
        mu, logvar = vae.encode(x)
        z = mu + (0.5 * logvar).exp() * noise
        recon_params = vae.decode(z)
        kl = vae.prior.kl(mu, logvar, z)
    return {
        "reconstruction": vae.likelihood.mean(recon_params).clamp(0, 1),
        "z": z,
        "distortion": -vae.likelihood.log_prob(x, recon_params).detach(),
        "kl": kl.sum(1),
        "kl_groups": kl,
    }
