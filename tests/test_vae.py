import pytest
import torch
from torch import nn, rand, zeros

import vaelib as vl
from vaelib.vae import eval_mode


@pytest.fixture
def vae():
    return vl.conv_vae((1, 12, 10), 3, hidden_channels=(4, 8), dropout=0.2)


def test_output_unpacks_in_the_documented_order(vae):
    recon_params, mu, logvar, z = out = vae(torch.rand(2, 1, 12, 10))
    assert out.recon_params is recon_params
    assert (mu.shape, logvar.shape, z.shape) == ((2, 3),) * 3


def test_forward_draws_in_eval_mode_too_and_follows_its_generator(vae):
    vae.eval()
    x = torch.rand(2, 1, 12, 10)
    assert not torch.equal(vae(x).z, vae(x).z)
    first, second = (vae(x, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_reconstruct_is_deterministic_and_leaves_the_mode(vae):
    x = torch.rand(4, 1, 12, 10)
    vae.train()
    vae.decoder.eval()
    first = vae.reconstruct(x)
    assert torch.equal(first, vae.reconstruct(x))
    assert not first.requires_grad
    assert vae.training
    assert vae.encoder.training
    assert not vae.decoder.training
    with eval_mode(vae):
        mu, _ = vae.encode(x)
        assert torch.equal(first, torch.sigmoid(vae.decode(mu)))


X = rand(1, 1, 12, 10)
WRONG_INPUTS = [
    (lambda m: m(X[0]), ValueError, r"`x` must have shape \(B, 1, 12, 10\), got \(1, 12, 10\)"),
    (lambda m: m.reconstruct(X.byte()), TypeError, "Divide 8-bit images by 255"),
    (lambda m: m.reconstruct(255 * X.round()), ValueError, r"`x` must have values in \[0, 1\], got \[0, 255\]"),
    (lambda m: m.reconstruct(X * torch.nan), ValueError, r"got \[nan, nan\]"),
    (lambda m: m(X.double()), TypeError, r"`x` must have the dtype of the .*, torch.float32, got torch.float64"),
    (lambda m: m.decode(rand(2, 4)), ValueError, r"`z` must have shape \(B, 3\), got \(2, 4\)"),
    (lambda m: m.sample(-1), ValueError, "`num_samples` must be >= 0, got -1"),
    (lambda m: m.draw(m.embed(X)), TypeError, r"of images, model.observe\(x\) gives them, not encode"),
    (lambda m: m.draw(zeros(2, 49).long()), TypeError, r"Of images, model.observe\(x\) gives them, not encode"),
]


@pytest.mark.parametrize(("call", "error", "match"), WRONG_INPUTS)
def test_wrong_inputs(vae, call, error, match):
    with pytest.raises(error, match=match):
        call(vae)


E, D, PIXELS = vl.ConvEncoder((1, 8, 8), 4), vl.ConvDecoder(4, (1, 8, 8)), vl.Gaussian("per_pixel")
WRONG_PARTS = [
    (lambda: vl.VAE(E, vl.ConvDecoder(5, (1, 8, 8))), ValueError, r"the encoder has \(4,\), the decoder has \(5,\)"),
    (lambda: vl.VAE(E, vl.ConvDecoder(4, (1, 8, 9))), ValueError, "`image_shape` must be the same"),
    (lambda: vl.VAE(E, D, likelihood=PIXELS), ValueError, "must be 2, as Gaussian needs for 1 image channels, got 1"),
    (lambda: vl.AutoEncoder(E, D, likelihood=PIXELS), ValueError, "`param_channels` must be 2"),
    (lambda: vl.VAE(nn.Identity(), nn.Identity()), ValueError, "Give `image_shape`: Identity and Identity have no"),
    (
        lambda: vl.VAE(E, D, posterior=vl.FlowPosterior((4,))),
        TypeError,
        r"`posterior` is no argument any more: write latent=vl.GaussianLatent\(latent_shape, posterior=...\)",
    ),
    (lambda: vl.VAE(3, D), TypeError, "`encoder` must be an nn.Module object, got 3"),
    (lambda: vl.VAE(E, D, prior=vl.StandardNormal), TypeError, "`prior` must be an nn.Module object, got <class .*St"),
    (lambda: vl.conv_vae((1, 8, 8), likelihood="a"), TypeError, "`likelihood` must be an nn.Module object, got 'a'"),
    (lambda: vl.AutoEncoder(E, D, corruption=0.3), TypeError, "`corruption` must be an nn.Module object, got 0.3"),
]


@pytest.mark.parametrize(("call", "error", "match"), WRONG_PARTS)
def test_parts_that_do_not_fit(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_samples_are_images(vae):
    samples = vae.sample(5)
    assert samples.shape == (5, 1, 12, 10)
    assert samples.min() >= 0 and samples.max() <= 1
    assert vae.sample(0).shape == (0, 1, 12, 10)
    assert vae.double().sample(2).dtype == torch.float64


def test_map_latents_work_everywhere():
    vae = vl.conv_vae((3, 16, 24), latent_shape=(2, 4, 6), hidden_channels=(4, 8))
    out = vae(torch.rand(2, 3, 16, 24))
    assert out.z.shape == (2, 2, 4, 6)
    assert vl.elbo_loss(torch.rand(2, 3, 16, 24), *out).kl.shape == (2,)
    assert vae.sample(3).shape == (3, 3, 16, 24)
    assert vae.encoder.latent_dim == 48


def test_autoencoder_is_deterministic_and_learns_squared_error():
    model = vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 4), vl.ConvDecoder(4, (1, 8, 8)))
    x = torch.rand(6, 1, 8, 8)
    out = model.eval()(x)
    assert torch.equal(out.recon_params.clamp(0, 1), model.reconstruct(x))
    terms = vl.Reconstruction()(model, x)
    torch.testing.assert_close(terms.reconstruction, (out.recon_params - x).square().flatten(1).sum(1))
    model.train()
    vl.Reconstruction()(model, x).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_autoencoder_takes_any_likelihood_and_a_bare_encoder():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    model = vl.AutoEncoder(
        encoder,
        vl.ConvDecoder(4, (1, 8, 8)),
        likelihood=vl.Bernoulli(),
        image_shape=(1, 8, 8),
        latent_shape=(4,),
    )
    x = torch.rand(6, 1, 8, 8)
    assert model.encode(x).shape == (6, 4)
    terms = vl.Reconstruction()(model, x)
    torch.testing.assert_close(terms.reconstruction, -vl.Bernoulli().log_prob(x, model(x).recon_params))
    assert model.reconstruct(x).min() >= 0


def test_repr_reads_well():
    text = repr(vl.conv_vae((1, 8, 8), 2, likelihood=vl.Gaussian(0.6), corruption=vl.Masking(0.5)))
    assert "(likelihood): Gaussian(0.6)" in text
    assert "(prior): StandardNormal()" in text
    assert "(corruption): Masking(probability=0.5)" in text


@pytest.mark.parametrize(("shift", "stretch"), [(0.5, 1.0), (0.0, 2.0), (0.0, 0.5), (-0.3, 1.5)])
def test_elbo_is_below_log_p_by_the_kl_to_the_exact_posterior(truth, shift, stretch):
    x = truth.sample(6)
    gap = truth.log_prob(x) - truth.mean_elbo(truth.vae(shift, stretch), x)
    expected = 0.5 * (shift**2 / truth.variance + stretch - 1 - torch.tensor(stretch).log()).sum()
    assert (gap > 0).all()
    torch.testing.assert_close(gap, expected.expand(6), rtol=0.05, atol=0.1)


def test_the_gap_vanishes_without_noise_in_the_estimate(truth):
    """log p(x|z) + log p(z) - log q(z|x) is log p(x) for every z under the exact posterior, to rounding."""
    vae, x = truth.vae(), truth.sample(6)
    out = vae(x)
    log_q = vl.functional.gaussian_log_prob(out.z, out.mu, 0.5 * out.logvar)
    log_joint = vae.likelihood.log_prob(x, out.recon_params) + vae.prior.log_prob(out.z)
    torch.testing.assert_close(log_joint - log_q, truth.log_prob(x), rtol=1e-6, atol=1e-6)
