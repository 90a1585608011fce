"""The bound in the graph of a whole VAE: the same nats as torch's, also where torch's exporter would give infinity."""

import pytest
import torch
from torch import nn

import vaelib as vl
from vaelib.errors import ExportError
from vaelib.export import conversion, parts, proof

IMAGE, LATENT = (1, 4, 4), (32,)


class PassingDecoder(nn.Module):
    """Raw parameters of any size: those that are asked for."""

    image_shape, latent_shape = IMAGE, LATENT

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, z):
        return z[:, : 16 * self.channels].reshape(-1, self.channels, 4, 4)


class FlatEncoder(nn.Module):
    """A custom encoder: no base class, no vaelib layer."""

    image_shape, latent_shape = IMAGE, LATENT

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 64)

    def forward(self, x):
        return self.linear(x.flatten(1)).mul(0.01).chunk(2, dim=1)


class MixturePrior(nn.Module):
    """Without a closed form of the KL, which it estimates at z."""

    def log_prob(self, z):
        halves = torch.stack([-0.5 * (z - 1).square().sum(1), -0.5 * (z + 1).square().sum(1)])
        return halves.logsumexp(0)

    def from_noise(self, noise):
        return noise


LIKELIHOODS = [
    vl.Bernoulli(),
    vl.ContinuousBernoulli(),
    *(vl.Gaussian(scale) for scale in (0.6, "learned", "per_pixel", "optimal")),
    vl.Laplace("per_pixel"),
    *(vl.DiscretizedLogistic(scale) for scale in ("learned", "per_pixel")),
]


def whole(likelihood=None, prior=None):
    decoder = PassingDecoder(1 if likelihood is None else likelihood.param_channels(1))
    return parts.graphs_of(vl.VAE(FlatEncoder(), decoder, likelihood=likelihood, prior=prior).eval())["vae"]


TOLERANCES = {
    "reconstruction": (1e-4, 1e-5),
    "z": (1e-4, 1e-5),
    "distortion": (1e-5, 1e-5),
    "kl": (1e-4, 1e-8),
    "kl_groups": (1e-4, 1e-6),
}


class SideBySide(nn.Module):
    """Many graphs as one, for torch's exporter takes a second for each."""

    def __init__(self, modules):
        super().__init__()
        self.modules_of = nn.ModuleList(modules)

    def forward(self, image, noise):
        return tuple(values for module in self.modules_of for values in module(image, noise))


@pytest.mark.slow
def test_every_likelihood_and_a_prior_without_a_closed_form_have_torchs_images_and_nats():
    """Also of sure decoders: logits of 30 are daily bread, and scales of a trained logistic far below an error."""
    wholes = {str(likelihood): whole(likelihood) for likelihood in LIKELIHOODS}
    wholes["a mixture"] = whole(prior=MixturePrior())
    outputs = {f"{name}: {output}": kind for name, graph in wholes.items() for output, kind in graph.outputs.items()}
    # The mean of a wide logistic, and log q - log p far out: differences that torch's own float32 rounds to 1e-4.
    cancelling = {name for name in outputs if name.endswith("reconstruction") or name.startswith("a mixture: kl")}
    first = next(iter(wholes.values()))
    together = first._replace(module=SideBySide(graph.module for graph in wholes.values()), outputs=outputs)
    session = proof.session(conversion.to_bytes(together, 18))
    for spread in (1e-3, 1, 30, 1000):
        x, noise = torch.rand(4, *IMAGE).mul(255).round() / 255, spread * torch.randn(4, *LATENT)
        with torch.no_grad():
            plain = together.module.float()(x, noise)
            exact = together.module.double()(x.double(), noise.double())
        found = map(torch.from_numpy, session.run(None, {"image": x.numpy(), "noise": noise.numpy()}))
        for name, got, wanted, double in zip(outputs, found, plain, exact, strict=True):
            if spread > 1 and name in cancelling:
                continue
            rtol, atol = TOLERANCES[name.rpartition(": ")[2]]
            got, wanted = (got.double(), double) if outputs[name] == "nats" else (got, wanted)
            torch.testing.assert_close(
                got, wanted, rtol=rtol, atol=atol, msg=lambda text, n=name, s=spread: f"{n} at {s}: {text}"
            )


def test_no_likelihood_is_missing():
    public = [getattr(vl.likelihoods, name) for name in vl.likelihoods.__all__]
    classes = {kind for kind in public if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert {type(likelihood) for likelihood in LIKELIHOODS} == classes


class Branching(vl.Bernoulli):
    def log_prob(self, x, recon_params):
        if x.square().mean() >= 0:
            return super().log_prob(x, recon_params)
        return -super().log_prob(x, recon_params)


def test_a_likelihood_that_cannot_be_exported_is_named():
    with pytest.raises(ExportError, match=r"torch could not export Branching.log_prob or StandardNormal.kl"):
        conversion.to_bytes(whole(Branching()), 18)
