"""Every latent goes the same way: through objectives, log p(x), evaluation, training and files."""

import math

import numpy as np
import pytest
import torch
from runs import seeded
from torch import nn

import vaelib as vl
from vaelib import evaluation
from vaelib.latents import Draw

SHAPE = (1, 3, 4)
UPPER, LOWER = 2, 3
NOISE = 0.3


def normal_log_prob(value, mean, variance):
    return (-0.5 * ((value - mean).square() / variance + variance.log() + math.log(2 * math.pi))).sum(1)


class Chain:
    """z2 ~ N(0, I), z1 ~ N(A z2, 0.5), x ~ N(W z1 + b, 0.09): log p(x) and the exact posterior in closed form.

    A and W have orthogonal columns, so that every conditional of the posterior is a diagonal Gaussian.
    """

    def __init__(self):
        def basis(rows, columns):
            return torch.linalg.qr(torch.randn(rows, columns, generator=seeded(7), dtype=torch.float64))[0]

        self.scales = 0.2 * torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
        self.weight = basis(12, LOWER) * self.scales
        self.bias = 0.5 + 0.02 * torch.randn(12, generator=seeded(8), dtype=torch.float64)
        self.upward = torch.eye(LOWER, UPPER, dtype=torch.float64) * torch.tensor([0.8, 0.5], dtype=torch.float64)
        self.variance, self.pixel_variance = torch.tensor(0.5, dtype=torch.float64), 0.03**2

    def log_prob(self, x):
        middle = self.upward @ self.upward.T + self.variance * torch.eye(LOWER, dtype=torch.float64)
        covariance = self.weight @ middle @ self.weight.T + self.pixel_variance * torch.eye(12, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x.flatten(1))

    def sample(self, count):
        z2 = torch.randn(count, UPPER, dtype=torch.float64, generator=seeded(1))
        z1 = z2 @ self.upward.T + self.variance.sqrt() * torch.randn(
            count, LOWER, dtype=torch.float64, generator=seeded(2)
        )
        noise = torch.randn(count, 12, dtype=torch.float64, generator=seeded(3))
        return (z1 @ self.weight.T + self.bias + self.pixel_variance**0.5 * noise).view(count, *SHAPE)


class Ladder(nn.Module):
    """Two levels: q(z2|x) q(z1|x, z2), exact but for ``shift``; ``z`` is z1 and z2 side by side, z1 is decoded."""

    has_prior = True
    latent_shape = (LOWER + UPPER,)
    noise_size = prior_noise_size = LOWER + UPPER

    def __init__(self, shift=0.0):
        super().__init__()
        self.chain, self.shift = Chain(), nn.Parameter(torch.tensor(shift, dtype=torch.float64))

    def draw(self, features, noise):
        upper_mean, upper_variance, lower_of = self._posterior(features)
        upper = upper_mean + upper_variance.sqrt() * noise[:, LOWER:]
        lower_mean, lower_variance = lower_of(upper)
        lower = lower_mean + lower_variance.sqrt() * noise[:, :LOWER]
        log_q = torch.stack(
            [normal_log_prob(upper, upper_mean, upper_variance), normal_log_prob(lower, lower_mean, lower_variance)], 1
        )
        log_p = self._log_priors(lower, upper)
        return Draw(torch.cat([lower, upper], 1), lower, log_q - log_p, log_q.sum(1), log_p.sum(1))

    def point(self, features):
        upper, _, lower_of = self._posterior(features)
        return torch.cat([lower_of(upper)[0], upper], 1)

    def encoded(self, features):
        return self.point(features)

    def from_noise(self, noise):
        upper = noise[:, LOWER:]
        lower = upper @ self.chain.upward.T.to(noise) + self.chain.variance.sqrt().to(noise) * noise[:, :LOWER]
        return torch.cat([lower, upper], 1)

    def log_prob(self, z):
        return self._log_priors(z[:, :LOWER], z[:, LOWER:]).sum(1)

    def hidden(self, z):
        return z[:, :LOWER]

    def _log_priors(self, lower, upper):
        one = torch.ones((), dtype=upper.dtype)
        mean = upper @ self.chain.upward.T.to(upper)
        return torch.stack(
            [normal_log_prob(upper, 0 * upper, one), normal_log_prob(lower, mean, self.chain.variance.to(upper))], 1
        )

    def _posterior(self, y):
        """Of x ~ y = W^T (x - b) / scales, which is N(scales z1, pixel variance) by coordinate."""
        chain = self.chain
        variance, scales = chain.variance.to(y), chain.scales.to(y)
        of_y = (scales**2 * variance + chain.pixel_variance)[:UPPER]
        gain = (scales * chain.upward.diagonal().to(y)[[0, 1, 1]])[:UPPER]
        upper_variance = 1 / (1 + gain**2 / of_y)
        upper_mean = upper_variance * gain * y[:, :UPPER] / of_y + self.shift.to(y)

        def lower_of(upper):
            lower_variance = 1 / (1 / variance + scales**2 / chain.pixel_variance)
            prior = upper @ chain.upward.T.to(y)
            return lower_variance * (prior / variance + scales * y / chain.pixel_variance), lower_variance

        return upper_mean, upper_variance, lower_of


class Projected(nn.Module):
    def __init__(self, chain):
        super().__init__()
        self.chain = chain

    def forward(self, x):
        return (x.flatten(1) - self.chain.bias.to(x)) @ (self.chain.weight / self.chain.scales).to(x)


class Affine(Projected):
    def forward(self, hidden):
        return (hidden @ self.chain.weight.T.to(hidden) + self.chain.bias.to(hidden)).view(-1, *SHAPE)


def ladder(shift=0.0):
    latent = Ladder(shift)
    parts = Projected(latent.chain), Affine(latent.chain)
    return vl.VAE(*parts, likelihood=vl.Gaussian(NOISE / 10).double(), latent=latent, image_shape=SHAPE).double()


def test_the_ladders_bound_is_exact_at_its_posterior():
    vae = ladder()
    x = vae.latent.chain.sample(20)
    truth = vae.latent.chain.log_prob(x)
    terms = vl.Elbo()(vae, x)
    torch.testing.assert_close(-(terms.reconstruction + terms.kl), truth, atol=1e-5, rtol=0)
    torch.testing.assert_close(-vl.Iwae(5)(vae, x).iwae, truth, atol=1e-5, rtol=0)
    found = evaluation.log_likelihood(vae, x, num_samples=64, progress=False)
    torch.testing.assert_close(found.per_image, truth, atol=1e-5, rtol=0)
    assert found.effective_samples == pytest.approx(64)


def test_off_its_posterior_the_bound_is_below_and_rises_with_draws():
    vae = ladder(shift=0.5)
    x = vae.latent.chain.sample(50)
    truth = vae.latent.chain.log_prob(x).mean().item()
    elbo = evaluation.elbo(vae, x, generator=seeded()).elbo.value
    tight = evaluation.log_likelihood(vae, x, num_samples=500, generator=seeded(), progress=False)
    assert elbo < truth - 0.1
    assert abs(tight.log_likelihood.value - truth) < 0.02


def test_the_groups_of_nats_sum_and_free_bits_act_on_each():
    vae = ladder(shift=0.5)
    x = vae.latent.chain.sample(20)
    draw = vae.draw(vae.observe(x), generator=seeded())
    assert draw.kl.shape == (20, 2)
    torch.testing.assert_close(draw.kl.sum(1), draw.log_q - draw.log_p)
    torch.testing.assert_close(vae.latent.log_prob(draw.z), draw.log_p)
    terms = vl.Elbo(free_bits=10.0)(vae, x)
    floor = torch.tensor(10.0 * (LOWER + UPPER) / 2, dtype=torch.float64)
    expected = terms.reconstruction.mean() + draw.kl.mean(0).clamp(min=floor).sum()
    assert terms.loss.item() == pytest.approx(expected.item(), rel=0.2)


def test_draws_of_the_ladders_prior_have_its_moments():
    vae = ladder()
    z = vae.latent.from_noise(torch.randn(200_000, LOWER + UPPER, generator=seeded(), dtype=torch.float64))
    chain = vae.latent.chain
    expected = chain.upward @ chain.upward.T + chain.variance * torch.eye(LOWER, dtype=torch.float64)
    torch.testing.assert_close(z[:, :LOWER].T.cov(), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(z[:, LOWER:].T.cov(), torch.eye(UPPER, dtype=torch.float64), atol=0.02, rtol=0)


def of_codes(latent):
    torch.manual_seed(0)
    return vl.conv_vae((1, 8, 8), hidden_channels=(4,), stride=4, latent=latent)


def of_networks(latent):
    torch.manual_seed(0)
    shape, width = (1, 8, 8), math.prod(latent.latent_shape) if latent else 4
    parts = vl.ConvEncoder(shape, width, hidden_channels=(4,)), vl.ConvDecoder(width, shape, hidden_channels=(4,))
    return vl.VAE(*parts, latent=latent)


def bent():
    torch.manual_seed(0)
    flow = vl.FlowPosterior((4,), num_transforms=1, hidden_features=(8,))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


LATENTS = {
    "gaussian": lambda: of_networks(vl.GaussianLatent((4,))),
    "learned gaussian": lambda: of_networks(vl.GaussianLatent((4,), vl.LearnedGaussian((4,)))),
    "mixture": lambda: of_networks(vl.GaussianLatent((4,), vl.MixtureOfGaussians((4,), 3))),
    "vamp": lambda: of_networks(vl.GaussianLatent((4,), vl.VampPrior((1, 8, 8), 3))),
    "flow prior": lambda: of_networks(vl.GaussianLatent((4,), vl.FlowPrior((4,), hidden_features=(8,)))),
    "flow posterior": lambda: of_networks(vl.GaussianLatent((4,), posterior=bent())),
    "ladder": lambda: ladder(0.3).float(),
    "vector quantizer": lambda: of_codes(vl.VectorQuantizer((3, 2, 2), 8)),
    "quantizer with a prior": lambda: of_codes(
        vl.VectorQuantizer((3, 2, 2), 8, vl.AutoregressiveCodes(8, 4, width=8, num_blocks=1, num_heads=2))
    ),
    "residual quantizer": lambda: of_codes(vl.ResidualQuantizer((3, 2, 2), 8, depth=2)),
    "finite scalar quantizer": lambda: of_codes(vl.FiniteScalarQuantizer((2, 2, 2), (3, 4))),
    "binary spherical quantizer": lambda: of_codes(vl.BinarySphericalQuantizer((3, 2, 2))),
    "point": lambda: vl.AutoEncoder(
        vl.ConvEncoder((1, 8, 8), 4, hidden_channels=(4,)), vl.ConvDecoder(4, (1, 8, 8), hidden_channels=(4,))
    ),
}
OBJECTIVES = {
    "elbo": lambda size: vl.Elbo(free_bits=0.1),
    "iwae": lambda size: vl.Iwae(3),
    "piwae": lambda size: vl.Iwae(2, num_groups=2, pool_decoder=True),
    "factor": lambda size: vl.FactorLoss(size, hidden_features=(8,)),
    "info": lambda size: vl.InfoLoss(),
    "stl": lambda size: vl.Iwae(1, gradient="stl"),
    "dreg": lambda size: vl.Iwae(3, gradient="dreg"),
    "dip": lambda size: vl.DipLoss(),
    "total correlation": lambda size: vl.BetaTcLoss(100),
    "reconstruction": lambda size: vl.Reconstruction(),
    "wae": lambda size: vl.WaeLoss(),
    "rae": lambda size: vl.RaeLoss(0.1, 0.1),
}
OF_A_GAUSSIAN = ("stl", "dreg", "dip", "total correlation")
OF_A_POINT = ("reconstruction", "wae", "rae")


@pytest.fixture(params=LATENTS)
def latent(request):
    if "flow" in request.param:
        pytest.importorskip("zuko")
    return request.param


def refused(latent, objective):
    """What is raised where the two do not go together."""
    if latent == "point":
        return None if objective in OF_A_POINT else (TypeError, "must have a prior")
    if objective == "rae":
        return TypeError, "needs an autoencoder"
    if (latent in ("flow posterior", "ladder") or "quantizer" in latent) and objective in OF_A_GAUSSIAN:
        return ValueError, "needs a Gaussian posterior"
    return None


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_latent_with_every_objective(latent, objective):
    model = LATENTS[latent]()
    x = torch.randint(256, (6, *model.image_shape), generator=seeded()) / 255
    loss = OBJECTIVES[objective](math.prod(model.latent_shape))
    error = refused(latent, objective)
    if error is not None:
        with pytest.raises(error[0], match=error[1]):
            loss(model, x)
        return
    terms = loss(model, x, generator=seeded())
    assert terms.loss.isfinite()
    assert all(term.shape == (6,) for term in terms[1:])
    terms.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.filterwarnings("ignore:`num_samples`")
def test_every_latent_through_the_verbs(latent):
    model = LATENTS[latent]().eval()
    x = torch.randint(256, (3, *model.image_shape), generator=seeded()) / 255
    with torch.no_grad():
        features = model.observe(x)
        draw = model.draw(features, num_samples=2, generator=seeded())
        z = model.embed(x)
        assert z.shape == (3, *model.latent_shape)
        assert draw.z.shape == (6, *model.latent_shape)
        torch.testing.assert_close(model.decode(draw), model.decode(draw.z))
        torch.testing.assert_close(model.reconstruct(x), model.decode_mean(z))
        noise = torch.randn(6, model.latent.noise_size, generator=seeded())
        assert torch.equal(model.draw(features, num_samples=2, noise=noise).z, draw.z)
    torch.testing.assert_close(evaluation.embed(model, x), z)
    assert model.latent.has_prior == (latent != "point")
    if latent == "point":
        with pytest.raises(ValueError, match="no prior to sample"):
            model.sample(2)
        with pytest.raises(ValueError, match="has no prior"):
            model.latent.log_prob(z)
        return
    assert torch.equal(model.sample(3, seed=4), model.sample(3, seed=4))
    with torch.no_grad():
        torch.testing.assert_close(model.latent.log_prob(draw.z), draw.log_p)
    found = evaluation.log_likelihood(model, x, num_samples=64, generator=seeded(), progress=False)
    assert found.log_likelihood.value >= found.elbo.value
    scores = evaluation.anomaly_scores(model, x, generator=seeded())
    assert scores.negative_elbo.shape == (3,)


@pytest.mark.filterwarnings("ignore")
def test_every_latent_trains_and_draws_its_images(latent, tmp_path):
    model = LATENTS[latent]()
    x = torch.randint(256, (12, *model.image_shape), generator=seeded()) / 255
    directory = None if latent == "ladder" else tmp_path  # a class of the test's own cannot be saved
    before = [parameter.detach().clone() for parameter in model.parameters()]
    vl.Trainer(max_epochs=1, batch_size=6, output_dir=directory).fit(model, x, x, progress=False)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    if directory is not None:
        assert torch.equal(vl.load(tmp_path / "last").reconstruct(x), model.reconstruct(x))
        assert (tmp_path / "reconstructions" / "epoch_001.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", LATENTS)
def test_every_latent_is_exported(name, tmp_path, monkeypatch):
    """The same noise becomes the same z, images and nats in torch and in the runtime."""
    pytest.importorskip("onnxscript")
    if "flow" in name:
        pytest.importorskip("zuko")
    model = LATENTS[name]().eval()
    monkeypatch.delattr("vaelib.export.conversion.to_bytes")  # which converts a graph by itself, in twice the time
    vl.export_onnx(model, tmp_path)
    opened = vl.runtime.OnnxVAE(tmp_path, threads=1)
    x = torch.randint(256, (20, *model.image_shape), generator=seeded()) / 255
    with torch.no_grad():
        features = model.observe(x)
        z, code = model.embed(x), model.latent.encoded(features)
        close(opened.embed(x.numpy()), z)
        for found, wanted in zip(parts_of(opened.encode(x.numpy())), parts_of(code), strict=True):
            close(found, wanted)
        close(opened.decode(z.numpy()), model.decode_mean(z))
        close(opened.decode_params(z.numpy()), model.decode(z))
        close(opened.reconstruct(x.numpy()), model.reconstruct(x))
        if not model.latent.has_prior:
            with pytest.raises(ValueError, match="has no prior that takes `noise`"):
                opened.sample(1)
            with pytest.raises(ValueError, match="The ELBO needs a VAE"):
                opened.score(x.numpy())
            return
        noise = torch.randn(20, model.latent.noise_size, generator=seeded())
        draw = model.draw(features, noise=noise)
        distortion, kl = opened.elbo_terms(x.numpy(), noise.numpy() if noise.numel() else None)
        close(distortion, -model.likelihood.log_prob(x, model.decode(draw)), rtol=1e-4)
        close(kl, draw.kl.sum(1), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(opened.sample(20, seed=3), model.sample(20, seed=3), atol=1e-5)
        prior_noise = torch.randn(20, model.latent.prior_noise_size, generator=seeded())
        close(opened.from_noise(prior_noise.numpy()), model.latent.from_noise(prior_noise))
        with pytest.raises(ValueError, match=rf"`noise` must have shape \(B, {model.latent.prior_noise_size}\)"):
            opened.from_noise(prior_noise.numpy()[:, 1:])
        with pytest.raises(ValueError, match="`noise` must be finite"):
            opened.from_noise(np.full_like(prior_noise, np.nan))
        whole = opened.contract["vae"]
        assert list(whole.inputs) == ["image", "noise"][: 2 if noise.numel() else 1]
        assert whole.outputs["kl_groups"].shape == ("B", draw.kl.shape[1])


def parts_of(code):
    return code if isinstance(code, tuple) else (code,)


def close(found, wanted, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(found, wanted.numpy(), rtol=rtol, atol=atol)


def test_the_prior_is_the_latents_own():
    model = LATENTS["gaussian"]()
    model.prior = prior = vl.LearnedGaussian((4,))
    assert model.latent.prior is model.prior is prior
    assert "prior" not in dict(model.named_children())
    with pytest.raises(ValueError, match="`prior` must be None where `latent` is given"):
        vl.VAE(model.encoder, model.decoder, prior=prior, latent=vl.GaussianLatent((4,)))


def test_seed_or_generator():
    with pytest.raises(ValueError, match="`generator` must be None where `seed` is given"):
        LATENTS["gaussian"]().sample(2, seed=0, generator=seeded())
