"""Objectives by moments, samples and norms: DIP-VAE, InfoVAE, WAE, RAE."""

import itertools
import math

import pytest
import torch
from runs import seeded
from torch import nn, zeros

import vaelib as vl


def small_vae(**kwargs):
    torch.manual_seed(0)
    return vl.conv_vae((1, 8, 8), 3, **({"hidden_channels": (4,)} | kwargs)).eval()


def small_autoencoder(**kwargs):
    torch.manual_seed(0)
    return vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 3), vl.ConvDecoder(3, (1, 8, 8)), **kwargs).eval()


def test_dip_by_hand():
    """Equations 6 and 7 of Kumar et al.: variances 4 and 1, covariance 2."""
    mu = torch.tensor([[2.0, 1.0], [-2.0, -1.0]]) + 5.0
    assert vl.dip_penalty(mu, lambda_od=10.0, lambda_d=1.0).item() == pytest.approx(10 * (4 + 4) + 1 * (9 + 0))
    logvar = torch.tensor([[1.0, 1.0], [3.0, 1.0]]).log()  # mean variances 2 and 1
    assert vl.dip_penalty(mu, logvar, lambda_od=10.0, lambda_d=1.0).item() == pytest.approx(10 * 8 + 25 + 1)


def test_dip_is_torchs_covariance_and_zero_for_white_codes():
    mu = torch.randn(50, 2, 3, 1, dtype=torch.float64)
    covariance = torch.cov(mu.flatten(1).T, correction=0)
    diagonal = covariance.diagonal()
    expected = 3 * (covariance.square().sum() - diagonal.square().sum()) + 7 * (diagonal - 1).square().sum()
    torch.testing.assert_close(vl.dip_penalty(mu, lambda_od=3.0, lambda_d=7.0), expected)
    flat = mu.flatten(1) - mu.flatten(1).mean(0)
    white = flat @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    assert vl.dip_penalty(white, lambda_od=3.0, lambda_d=7.0).item() == pytest.approx(0.0, abs=1e-12)


def test_dip_ii_is_about_the_covariance_of_draws():
    mu, logvar = torch.randn(8, 2, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    z = vl.reparameterize(mu.repeat(50_000, 1), logvar.repeat(50_000, 1), generator=seeded())
    expected = vl.dip_penalty(z, lambda_od=1.0, lambda_d=1.0)
    torch.testing.assert_close(vl.dip_penalty(mu, logvar, lambda_od=1.0, lambda_d=1.0), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["i", "ii"])
def test_the_dip_objective_adds_its_penalty(kind):
    vae, x = small_vae(), torch.rand(5, 1, 8, 8)
    terms = vl.DipLoss(2.0, 3.0, kind=kind)(vae, x, generator=seeded())
    out, elbo = vae(x, generator=seeded()), vl.Elbo()(vae, x, generator=seeded())
    penalty = vl.dip_penalty(out.mu, out.logvar if kind == "ii" else None, lambda_od=2.0, lambda_d=3.0)
    torch.testing.assert_close(terms.loss, elbo.loss + penalty)
    torch.testing.assert_close(terms.penalty, penalty.expand(5))


def test_mmd_by_hand():
    """In one dimension C = 2: 0 and 2 are 4 apart, each 1 from the others."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert vl.mmd(x, y, kernel="rbf").item() == pytest.approx(math.exp(-2) + 1 - 2 * math.exp(-0.5))
    assert vl.mmd(x, y, kernel="imq").item() == pytest.approx(2 / 6 + 1 - 2 * 2 / 3)
    assert vl.mmd(x, y, kernel="imq", scale=2.0).item() == pytest.approx(8 / 12 + 1 - 2 * 8 / 9)


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_the_u_statistic_is_unbiased_over_all_pairs_of_a_population(kernel):
    """Equation 3 of Gretton et al.; a V-statistic, with each point beside itself, fails this."""
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64) + 0.5
    pairs = list(itertools.combinations(range(5), 2))
    values = [vl.mmd(x[list(a)], y[list(b)], kernel=kernel) for a in pairs for b in pairs]
    torch.testing.assert_close(torch.stack(values).mean(), vl.mmd(x, y, kernel=kernel))


def test_rbf_of_two_normals_is_its_closed_form():
    """E k(x, y) = (1 + 2 v / C)^(-D/2) exp(-|m|^2 / (C + 2 v)) where x - y ~ N(m, v I)."""
    latents, shift, spread, count = 3, 0.7, 1.5, 1_000
    x = spread * torch.randn(count, latents, generator=seeded(1)) + shift
    y = torch.randn(count, latents, generator=seeded(2))

    def mean_kernel(squared_mean, variance):
        width = 2 * latents
        return (1 + 2 * variance / width) ** (-latents / 2) * math.exp(-squared_mean / (width + 2 * variance))

    within = mean_kernel(0, 2 * spread**2) + mean_kernel(0, 2)
    expected = within - 2 * mean_kernel(latents * shift**2, spread**2 + 1)
    assert expected > 0.05
    assert vl.mmd(x, y, kernel="rbf").item() == pytest.approx(expected, abs=0.02)
    assert vl.mmd(y[: count // 2], y[count // 2 :], kernel="rbf").item() == pytest.approx(0.0, abs=0.01)


def test_info_vae_lies_between_elbo_and_wae():
    vae, x = small_vae(), torch.rand(6, 1, 8, 8)
    elbo = vl.Elbo()(vae, x, generator=seeded())
    for alpha, lambda_ in ((0.0, 1.0), (0.0, 10.0), (0.5, 4.0), (1.0, 10.0), (-1.0, 2.0)):
        terms = vl.InfoLoss(alpha=alpha, lambda_=lambda_)(vae, x, generator=seeded())
        expected = elbo.reconstruction + (1 - alpha) * elbo.kl + (alpha + lambda_ - 1) * terms.mmd
        torch.testing.assert_close(terms.loss, expected.mean())
        torch.testing.assert_close(terms.kl, elbo.kl)


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_info_vae_and_wae_compare_z_with_draws_of_the_prior(kernel):
    vae, x = small_vae(prior=vl.MixtureOfGaussians((3,), 2)), torch.rand(6, 1, 8, 8)
    generator = seeded()
    out = vae(x, generator=generator)
    expected = vl.mmd(out.z, vae.prior.sample(6, (3,), generator=generator), kernel=kernel, scale=2.0)
    terms = vl.InfoLoss(kernel=kernel, scale=2.0)(vae, x, generator=seeded())
    torch.testing.assert_close(terms.mmd, expected.expand(6))

    model, prior = small_autoencoder(), vl.MixtureOfGaussians((3,), 2)
    terms = vl.WaeLoss(7.0, prior=prior, kernel=kernel)(model, x, generator=seeded())
    expected = vl.mmd(model(x).z, prior.sample(6, (3,), generator=seeded()), kernel=kernel)
    torch.testing.assert_close(terms.mmd, expected.expand(6))
    torch.testing.assert_close(terms.loss, vl.Reconstruction()(model, x).loss + 7.0 * expected)
    terms.loss.backward()
    assert all(parameter.grad is None for parameter in prior.parameters())


def test_wae_moves_codes_to_the_prior():
    """Codes at N(3, 0.1^2) are pulled down and apart; those of the prior cost nothing."""
    near, far = torch.randn(400, 2), 3.0 + 0.1 * torch.randn(400, 2)

    class Given(nn.Module):
        def forward(self, x):
            return self.z

    class Blank(nn.Module):
        def forward(self, z):
            return z.new_zeros(len(z), 1, 1, 1)

    model = vl.AutoEncoder(Given(), Blank(), image_shape=(1, 1, 1), latent_shape=(2,))
    x = torch.zeros(400, 1, 1, 1)
    model.encoder.z = near
    at_home = vl.WaeLoss(1.0)(model, x)
    model.encoder.z = far.requires_grad_()
    away = vl.WaeLoss(1.0)(model, x)
    away.loss.backward()
    assert abs(at_home.loss.item()) < 0.01 < 0.5 < away.loss.item()
    assert (far.grad.mean(0) > 0).all()
    assert ((far - far.mean(0)) * far.grad).sum() < 0


class Linear(nn.Module):
    """A row of pixels, linear in the code."""

    def __init__(self, pixels):
        super().__init__()
        self.layer = nn.Linear(3, pixels)
        self.shape = (1, 1, pixels)

    def forward(self, z):
        return self.layer(z).unflatten(1, self.shape)


def linear_autoencoder(pixels):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 3))
    return vl.AutoEncoder(encoder, Linear(pixels), image_shape=(1, 1, pixels), latent_shape=(3,)).double()


def test_the_gradient_penalty_of_a_linear_decoder_is_the_norm_of_its_weights():
    one = linear_autoencoder(1)  # one pixel: a projection shows all
    terms = vl.RaeLoss(0.5, 2.0)(one, torch.rand(4, 1, 1, 1).double())
    norm = one.decoder.layer.weight.square().sum()
    torch.testing.assert_close(terms.penalty, norm.expand(4))
    many = linear_autoencoder(6)
    penalty = vl.RaeLoss(0.5, 2.0)(many, torch.rand(50_000, 1, 1, 6).double()).penalty
    norm = many.decoder.layer.weight.square().sum().item()
    assert penalty.mean().item() == pytest.approx(norm, abs=4 * penalty.std().item() / math.sqrt(50_000))


@pytest.mark.parametrize("penalty", ["gradient", "l2"])
def test_rae_by_its_parts(penalty):
    model, x = small_autoencoder(), torch.rand(5, 1, 8, 8)
    terms = vl.RaeLoss(0.5, 2.0, penalty=penalty)(model, x)
    out = model(x)
    torch.testing.assert_close(terms.code, 0.5 * out.z.square().sum(1))
    torch.testing.assert_close(terms.reconstruction, (x - out.recon_params).square().flatten(1).sum(1))
    torch.testing.assert_close(terms.loss, (terms.reconstruction + 0.5 * terms.code + 2 * terms.penalty).mean())
    if penalty == "l2":
        squares = sum(parameter.square().sum() for parameter in model.decoder.parameters())
        torch.testing.assert_close(terms.penalty, squares.expand(5))


@pytest.mark.parametrize("model", [small_autoencoder, lambda: linear_autoencoder(6)])
def test_the_gradient_penalty_is_the_same_without_gradients(model):
    model = model()
    x = torch.rand(5, *model.image_shape, dtype=next(model.parameters()).dtype)
    expected = vl.RaeLoss(0.5, 2.0)(model, x, generator=seeded())
    with vl.vae.eval_mode(model):
        found = vl.RaeLoss(0.5, 2.0)(model, x, generator=seeded())
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: vl.DipLoss(lambda_od=-1.0), "`lambda_od` must be >= 0, got -1"),
        (lambda: vl.DipLoss(lambda_d=-1.0), "`lambda_d` must be >= 0, got -1"),
        (lambda: vl.DipLoss(kind="I"), "`kind` must be one of 'i', 'ii', got 'I'"),
        (lambda: vl.InfoLoss(alpha=2.0), "`alpha` must be <= 1, got 2"),
        (lambda: vl.InfoLoss(alpha=0.5, lambda_=0.4), "`lambda_` must be >= 0.5, got 0.4"),
        (lambda: vl.InfoLoss(kernel="linear"), "`kernel` must be one of 'rbf', 'imq', got 'linear'"),
        (lambda: vl.InfoLoss(scale=0.0), "`scale` must be > 0, got 0"),
        (lambda: vl.WaeLoss(weight=-1.0), "`weight` must be >= 0, got -1"),
        (lambda: vl.WaeLoss(kernel="linear"), "`kernel` must be one of"),
        (lambda: vl.WaeLoss(scale=0.0), "`scale` must be > 0, got 0"),
        (lambda: vl.RaeLoss(beta=-1.0, weight=1.0), "`beta` must be >= 0, got -1"),
        (lambda: vl.RaeLoss(beta=1.0, weight=-1.0), "`weight` must be >= 0, got -1"),
        (lambda: vl.RaeLoss(beta=1.0, weight=1.0, penalty="sn"), "`penalty` must be one of 'gradient', 'l2', got 'sn'"),
        (
            lambda: vl.dip_penalty(zeros(2, 3), zeros(2, 2), lambda_od=1.0, lambda_d=1.0),
            r"`logvar` must have shape \(2, 3\), got \(2, 2\)",
        ),
        (lambda: vl.mmd(zeros(2, 3), zeros(2, 2)), r"`y` must have shape \(m, 3\), got \(2, 2\)"),
        (lambda: vl.mmd(zeros(1, 3), zeros(2, 3)), "`x` and `y` must hold at least 2 samples each, got 1 and 2"),
        (lambda: vl.mmd(zeros(2, 3), zeros(2, 3), kernel="linear"), "`kernel` must be one of"),
        (lambda: vl.mmd(zeros(2, 3), zeros(2, 3), scale=0.0), "`scale` must be > 0"),
    ],
)
def test_wrong_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
