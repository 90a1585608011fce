"""Every prior is a density, gives samples of it, and knows its KL."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import distributions as td

import vaelib as vl
from vaelib.errors import ExportError, MissingExtraError

LATENT_SHAPES = [(6,), (2, 3, 1)]
PRIORS = {
    "standard": lambda shape: vl.StandardNormal(),
    "learned": vl.LearnedGaussian,
    "mixture": lambda shape: vl.MixtureOfGaussians(shape, 4),
    "vamp": lambda shape: vl.VampPrior((1, 8, 8), 3),
    "realnvp": lambda shape: vl.FlowPrior(shape, num_transforms=3, hidden_features=(8,)),
    "nsf": lambda shape: vl.FlowPrior(shape, "nsf", num_transforms=2, hidden_features=(8,)),
}


def model_with(name, shape=(6,), scale=0.3):
    """A small VAE whose prior has weights that are not fresh."""
    torch.manual_seed(0)
    latent = {"latent_dim": shape[0]} if len(shape) == 1 else {"latent_shape": shape}
    hidden = (4,) if len(shape) == 1 else (4, 4, 4)
    size = (1, 8, 8) if len(shape) == 1 else (1, 24, 8)
    prior = PRIORS[name](shape) if name != "vamp" else vl.VampPrior(size, 3)
    vae = vl.conv_vae(size, **latent, hidden_channels=hidden, norm="group", prior=prior)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return vae


@pytest.fixture(params=PRIORS)
def name(request):
    if request.param in ("realnvp", "nsf"):
        pytest.importorskip("zuko")
    return request.param


@pytest.mark.parametrize("shape", LATENT_SHAPES)
def test_every_prior_keeps_its_contract(name, shape, tmp_path):
    vae = model_with(name, shape)
    prior = vae.prior
    assert isinstance(prior, vl.Prior)
    first, second = (prior.sample(5, shape, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == (5, *shape)
    assert torch.equal(first, second)
    assert prior.sample(0, shape).shape == (0, *shape)
    assert prior.log_prob(first).shape == (5,)
    mu, logvar = torch.randn(5, *shape), torch.randn(5, *shape)
    draw = vae.latent.draw((mu, logvar), torch.randn(5, 6))
    assert draw.kl.shape == ((5, 6) if hasattr(prior, "kl") else (5, 1))
    vl.Elbo()(vae, torch.rand(4, *vae.image_shape)).loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in vae.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in prior.parameters())
    vl.save(vae, tmp_path)
    again = vl.load(tmp_path)
    assert torch.equal(again.prior.log_prob(first), vae.eval().prior.log_prob(first))
    assert torch.equal(again.sample(3, seed=2), vae.sample(3, seed=2))


def test_every_density_integrates_to_one_and_samples_come_from_it(name):
    """On a grid over two latents: E log p(z) over samples is the integral of p log p."""
    vae = model_with(name, (2,), scale=0.15)
    axis = torch.linspace(-12, 12, 601)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_prob = vae.prior.log_prob(grid)
        area = (axis[1] - axis[0]) ** 2
        assert (log_prob.exp().sum() * area).item() == pytest.approx(1.0, abs=5e-3)
        entropy = -(log_prob.exp() * log_prob).sum() * area
        values = -vae.prior.log_prob(vae.prior.sample(20_000, (2,), generator=torch.Generator().manual_seed(0)))
    error = values.std() / math.sqrt(len(values))
    assert values.mean().item() == pytest.approx(entropy.item(), abs=4 * error.item() + 0.01)


def test_kl_is_what_samples_say(name):
    prior = model_with(name, (3,)).prior
    mu, logvar = torch.randn(1, 3), torch.randn(1, 3)
    many = mu.expand(100_000, 3), logvar.expand(100_000, 3)
    noise = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z, _, kl, *_ = vl.GaussianLatent((3,), prior).draw(many, noise)
        draws = vl.functional.gaussian_log_prob(z, many[0], 0.5 * many[1]) - prior.log_prob(z)
        kl = kl.sum(1)
    assert kl.mean().item() == pytest.approx(draws.mean().item(), abs=4 * draws.std().item() / math.sqrt(len(z)))


@pytest.mark.parametrize("prior", ["standard", "learned"])
def test_gaussians_are_torchs(prior):
    prior = model_with(prior, (6,)).prior
    z, mu, logvar = torch.randn(3, 4, 6)
    mean, log_variance = (getattr(prior, name, torch.zeros(6)) for name in ("mu", "logvar"))
    with torch.no_grad():
        own, posterior = td.Normal(mean, (0.5 * log_variance).exp()), td.Normal(mu, (0.5 * logvar).exp())
        torch.testing.assert_close(prior.log_prob(z), own.log_prob(z).sum(1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(prior.kl(mu, logvar), td.kl_divergence(posterior, own), rtol=1e-5, atol=1e-5)


def test_the_mixture_is_torchs():
    prior = model_with("mixture", (6,)).prior
    with torch.no_grad():
        parts = td.Independent(td.Normal(prior.mu, (0.5 * prior.logvar).exp()), 1)
        oracle = td.MixtureSameFamily(td.Categorical(logits=prior.logits), parts)
        z = torch.randn(7, 6)
        torch.testing.assert_close(prior.log_prob(z), oracle.log_prob(z), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_gaussian_of_each_condition_is_torchs():
    prior, embedding = vl.ConditionalGaussian((2, 1, 3), 4), torch.rand(5, 4)
    z, mu, logvar = torch.randn(3, 10, 2, 1, 3)
    fresh, standard = prior.given(embedding), vl.StandardNormal()
    torch.testing.assert_close(fresh.log_prob(z), standard.log_prob(z))
    assert torch.equal(fresh.from_noise(z.flatten(1)), z)
    for parameter in prior.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    view = prior.given(embedding)
    mean, log_variance = prior.moments(embedding.repeat(2, 1)).reshape(10, 2, 2, 1, 3).unbind(1)  # two draws of each
    own, posterior = td.Normal(mean, (0.5 * log_variance).exp()), td.Normal(mu, (0.5 * logvar).exp())
    torch.testing.assert_close(view.log_prob(z), own.log_prob(z).flatten(1).sum(1))
    torch.testing.assert_close(view.kl(mu, logvar), td.kl_divergence(posterior, own).flatten(1), rtol=1e-5, atol=1e-5)
    noise = torch.randn(10, 6)
    torch.testing.assert_close(view.from_noise(noise), mean + own.stddev * noise.reshape(mean.shape))
    for arguments, error, words in (
        ((torch.zeros(5, 3),), ValueError, r"`embedding` must have shape \(B, 4\), got \(5, 3\)"),
        (([1, 2, 3, 4],), TypeError, "`embedding` must be a torch.Tensor"),
    ):
        with pytest.raises(error, match=words):
            prior.given(*arguments)
    for call in (lambda: prior.log_prob(z), lambda: prior.from_noise(noise)):
        with pytest.raises(ValueError, match=r"`prior` has a condition: call its given\(embedding\)"):
            call()
    with pytest.raises(ValueError, match=r"`z` must have shape \(B, 2, 1, 3\)"):
        view.log_prob(z[:, :1])
    with pytest.raises(ValueError, match="`condition` must have one row, or one for each of 7 images, got 5"):
        view.log_prob(z[:7])


def test_a_gaussian_of_each_condition_is_fitted():
    labels = torch.arange(3000) % 3
    embedding = torch.nn.functional.one_hot(labels).float()
    z = 2.0 * labels[:, None] + 0.5 * torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    how = {"num_steps": 300, "learning_rate": 0.05, "progress": False}
    prior = vl.fit_prior(vl.ConditionalGaussian((2,), 3), z, embedding=embedding, **how)
    zeros = prior.given(torch.eye(3)).from_noise(torch.zeros(3, 2))
    torch.testing.assert_close(zeros, torch.tensor([0.0, 2.0, 4.0])[:, None].expand(3, 2), atol=0.15, rtol=0)


def test_a_fresh_flow_and_a_fresh_gaussian_are_the_standard_normal():
    pytest.importorskip("zuko")
    z = torch.randn(5, 6)
    for prior in (vl.LearnedGaussian((6,)), vl.FlowPrior((6,)), vl.FlowPrior((6,), "nsf")):
        torch.testing.assert_close(prior.log_prob(z), vl.StandardNormal().log_prob(z))


def test_the_vamp_prior_is_the_mean_of_posteriors_and_follows_its_encoder():
    vae = model_with("vamp")
    z = torch.randn(4, 6)

    def expected():
        mu, logvar = vae.encoder(vae.prior.pseudo_logits.sigmoid())
        parts = [
            vl.functional.gaussian_log_prob(z, m, 0.5 * v) for m, v in zip(mu[:, None], logvar[:, None], strict=True)
        ]
        return torch.stack(parts).logsumexp(0) - math.log(3)

    with torch.no_grad():
        torch.testing.assert_close(vae.prior.log_prob(z), expected(), rtol=1e-5, atol=1e-5)
        before = vae.prior.log_prob(z)
        for parameter in vae.encoder.parameters():
            parameter.mul_(1.1)
        assert not torch.allclose(vae.prior.log_prob(z), before)
        torch.testing.assert_close(vae.prior.log_prob(z), expected(), rtol=1e-5, atol=1e-5)
    copied = copy.deepcopy(vae)
    assert copied.prior._model[0] is copied
    assert not any(name.startswith("prior.") and "pseudo" not in name for name in vae.state_dict())


def test_pseudo_inputs_start_from_images():
    images = torch.rand(3, 1, 8, 8).clamp(0.05, 0.95)
    prior = vl.VampPrior((1, 8, 8), 3).start_from(images)
    torch.testing.assert_close(prior.pseudo_logits.sigmoid().detach(), images)


def test_a_flow_needs_zuko(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="flows"):
        vl.FlowPrior((4,))


@pytest.mark.slow
def test_a_spline_flow_says_that_it_cannot(tmp_path):
    pytest.importorskip("zuko")
    with pytest.raises(ExportError, match=r"onnx\.reference cannot run the graph"):
        vl.export_onnx(model_with("nsf"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_standard_normal_needs_no_graph(tiny_bundle):
    assert not (tiny_bundle / "prior.onnx").exists()
    model = vl.runtime.OnnxVAE(tiny_bundle)
    noise = np.random.default_rng(0).standard_normal((3, 2), dtype=np.float32)
    assert np.array_equal(model.from_noise(noise), noise)
    with pytest.raises(ValueError, match=r"`noise` must have shape \(B, 2\), got \(3, 1\)"):
        model.from_noise(noise[:, 1:])
    with pytest.raises(ValueError, match="`noise` must be finite"):
        model.from_noise(np.full_like(noise, np.nan))


@pytest.mark.parametrize("kind", ["mixture", pytest.param("realnvp", marks=pytest.mark.slow)])
def test_fitted_after_training_it_finds_the_density(kind):
    """Of a mixture of two, whose entropy is known: the cross-entropy comes down to it, one Gaussian's does not."""
    oracle = td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.3, 0.7])),
        td.Independent(td.Normal(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.5, 1.0], [1.0, 0.5]])), 1),
    )
    z, test = oracle.sample((5000,)), oracle.sample((5000,))
    if kind == "mixture":
        prior = vl.MixtureOfGaussians((2,), 2).start_from(torch.stack([z[z[:, 0] < 0][0], z[z[:, 0] > 0][0]]))
    else:
        pytest.importorskip("zuko")
        prior = vl.FlowPrior((2,), num_transforms=4, hidden_features=(32,))
    how = {"num_steps": 400, "learning_rate": 0.05} if kind == "mixture" else {"num_steps": 1000}
    fitted = vl.fit_prior(prior, z, **how, generator=torch.Generator().manual_seed(0))
    single = vl.fit_prior(vl.LearnedGaussian((2,)), z, num_steps=300, learning_rate=0.05)
    with torch.no_grad():
        entropy = -oracle.log_prob(test).mean()
        assert -fitted.log_prob(test).mean() - entropy < 0.08
        assert -single.log_prob(test).mean() - entropy > 0.3


X, Z = torch.zeros(2, 1, 2, 2), torch.tensor([[0.5, -1.0], [2.0, 0.0]])
WRONG = [
    (lambda: vl.elbo_loss(X, X, Z, Z, prior=vl.MixtureOfGaussians((2,))), "`z` must be given: the KL to MixtureOfGau"),
    (lambda: vl.VampPrior((1, 8, 8)).log_prob(Z), "must be given to a VAE"),
    (lambda: vl.VampPrior((1, 2, 2), 3).start_from(X), "`images` must be 3, one a component, got 2"),
    (lambda: model_with("vamp", (2,)).prior.log_prob(Z[:, 1:]), r"`z` must have shape \(B, 2\), got \(2, 1\)"),
    (lambda: vl.FlowPrior((1,)), "at least 2 latents for couplings"),
    (lambda: vl.LearnedGaussian((3,)).log_prob(Z), r"`z` must have shape \(B, 3\), got \(2, 2\)"),
    (lambda: vl.LearnedGaussian((3,)).kl(Z[:, 1:], Z[:, 1:]), r"`mu` must have shape \(B, 3\), got \(2, 1\)"),
    (lambda: vl.LearnedGaussian((3,)).sample(2, (4,)), "`latent_shape` must"),
    (lambda: vl.MixtureOfGaussians((2,), 3).start_from(Z), "`z` must have shape"),
    (lambda: vl.MixtureOfGaussians((2,), 1).start_from(Z[:1]), "`num_components` must be >= 2, got 1"),
    (lambda: fitted(z=Z[:0]), "`z` must hold at least one latent"),
    (lambda: fitted(z=Z.log()), "`z` must be finite"),
    (lambda: fitted(num_steps=0), "`num_steps` must be >= 1"),
    (lambda: fitted(batch_size=0), "`batch_size` must be >= 1"),
    (lambda: fitted(learning_rate=0.0), "`learning_rate` must be > 0"),
    (lambda: fitted(embedding=Z), "`embedding` must be None: LearnedGaussian has no condition"),
    (lambda: fitted(vl.StandardNormal()), "`prior` must have weights to fit, StandardNormal has none"),
]


def fitted(prior=None, z=Z, **arguments):
    return vl.fit_prior(prior or vl.LearnedGaussian((2,)), z, **arguments)


@pytest.mark.parametrize(("call", "match"), WRONG)
def test_wrong_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_latents_with_a_graph_can_be_fitted():
    z = torch.randn(50, 2, requires_grad=True) * 2
    prior = vl.fit_prior(vl.LearnedGaussian((2,)), z, num_steps=3)
    assert prior.mu.any() and z.grad_fn is not None


def test_a_vamp_prior_follows_a_replaced_encoder_and_belongs_to_one():
    def encoder():
        return vl.ConvEncoder((1, 8, 8), 2, hidden_channels=(4,))

    prior = vl.VampPrior((1, 8, 8), 3)
    vae = vl.VAE(encoder(), vl.ConvDecoder(2, (1, 8, 8), hidden_channels=(4,)), prior=prior).eval()
    vae.encoder = encoder().eval()
    z = torch.zeros(1, 2)
    mu, logvar = vae.encode(prior.pseudo_logits.sigmoid())
    parts = vl.functional.gaussian_log_prob(z, mu, 0.5 * logvar)
    torch.testing.assert_close(prior.log_prob(z), parts.logsumexp(0, keepdim=True) - math.log(3))
    vl.VAE(vae.encoder, vae.decoder, prior=prior)  # the same encoder once more
    with pytest.raises(ValueError, match="the VampPrior of another encoder: give each VAE one of its own"):
        vl.VAE(encoder(), vae.decoder, prior=prior)


def test_fixed_components_are_for_weights_that_do_not_change():
    vae = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), norm="group", prior=vl.VampPrior((1, 8, 8), 3)).eval()
    z = torch.zeros(1, 2)
    vae.prior.fix()
    before = vae.prior.log_prob(z)
    with torch.no_grad():
        vae.prior.pseudo_logits.add_(5.0)
    assert torch.equal(vae.prior.log_prob(z), before)
    assert not torch.equal(vae.train().prior.log_prob(z), before)


@pytest.mark.parametrize("make", [vl.LearnedGaussian, vl.MixtureOfGaussians])
def test_parts_are_for_the_models_own_shapes(make):
    parts = vl.ConvEncoder((1, 8, 8), 4), vl.ConvDecoder(4, (1, 8, 8))
    words = r"`latent_shape` must be the same for all parts: .*the encoder has \(4,\).*the prior has \(3,\)"
    with pytest.raises(ValueError, match=words):
        vl.VAE(*parts, prior=make((3,)))
    with pytest.raises(ValueError, match=r"`image_shape` must be the same for all parts: .*the prior has \(1, 9, 8\)"):
        vl.VAE(*parts, prior=vl.VampPrior((1, 9, 8)))


def test_a_flow_is_one_graph_when_compiled():
    pytest.importorskip("zuko")
    prior, z = vl.FlowPrior((4,), "realnvp", 2, (8,)).double(), torch.randn(3, 4, dtype=torch.float64)
    compiled = torch.compile(prior.log_prob, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z), prior.log_prob(z))


def test_a_flow_moves_to_the_device_meta_and_is_copied():
    pytest.importorskip("zuko")
    prior = vl.FlowPrior((4,), num_transforms=2, hidden_features=(8,))
    assert {weights.is_meta for weights in copy.deepcopy(prior).to("meta").parameters()} == {True}
    twin = copy.deepcopy(prior).double()
    z = torch.randn(3, 4)
    torch.testing.assert_close(twin.log_prob(z.double()).float(), prior.log_prob(z))
