"""The bound in the graph of a whole VAE: the same nats as torch's, also where torch's exporter would give infinity."""

import json

import onnxruntime
import pytest
import torch
from torch import nn

import vaelib as vl
from vaelib.export import graphs, validation

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


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_every_likelihood_has_torchs_images_and_nats(likelihood):
    """Also of sure decoders: logits of 30 are daily bread, and scales of a trained logistic far below an error."""
    decoder = PassingDecoder(likelihood.param_channels(1))
    vae = vl.VAE(FlatEncoder(), decoder, likelihood=likelihood).eval()
    graph = graphs.graphs_of(vae)["vae"]
    session = validation.session(graphs.to_bytes(graph, 18))
    for spread in (1e-3, 1, 30, 1000):
        x, noise = torch.rand(4, *IMAGE).mul(255).round() / 255, spread * torch.randn(4, *LATENT)
        with torch.no_grad():
            image, z, *_ = graph.module.float()(x, noise)
            exact = graph.module.double()(x.double(), noise.double())
        found = map(torch.from_numpy, session.run(None, {"image": x.numpy(), "noise": noise.numpy()}))
        got = dict(zip(graph.outputs, found, strict=True))
        if spread <= 1:  # the mean of a wide logistic is a difference that torch's own float32 rounds to 1e-4
            torch.testing.assert_close(got["reconstruction"], image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got["z"], z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got["distortion"].double(), exact[2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got["kl"].double(), exact[3], rtol=1e-4, atol=1e-8)


def test_no_likelihood_is_missing():
    public = [getattr(vl.likelihoods, name) for name in vl.likelihoods.__all__]
    classes = {kind for kind in public if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert {type(likelihood) for likelihood in LIKELIHOODS} == classes


def test_a_prior_without_a_closed_form_uses_the_draw(tmp_path):
    vae = vl.VAE(FlatEncoder(), PassingDecoder(1), prior=MixturePrior())
    vl.export_onnx(vae, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "vae.onnx")
    metadata = json.loads((tmp_path / "manifest.json").read_text())["model"]
    assert (metadata["prior"], metadata["config"]) == ("MixturePrior", None)
    x, noise = torch.rand(3, *IMAGE), torch.randn(3, *LATENT)
    with vl.vae.eval_mode(vae):
        mu, logvar = vae.encode(x)
        expected = vae.latent.draw((mu, logvar), noise).kl.sum(1)
    (kl,) = session.run(["kl"], {"image": x.numpy(), "noise": noise.numpy()})
    torch.testing.assert_close(torch.from_numpy(kl), expected, rtol=1e-4, atol=1e-4)


class Branching(vl.Bernoulli):
    def log_prob(self, x, recon_params):
        if x.square().mean() >= 0:
            return super().log_prob(x, recon_params)
        return -super().log_prob(x, recon_params)


def test_a_likelihood_that_cannot_be_exported_is_named(tmp_path):
    vae = vl.VAE(FlatEncoder(), PassingDecoder(1), likelihood=Branching())
    with pytest.raises(vl.ExportError, match=r"torch could not export Branching.log_prob or StandardNormal.kl"):
        vl.export_onnx(vae, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
