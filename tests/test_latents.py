"""What latents carry: the linear-Gaussian model, whose aggregated posterior is known, and models that collapsed."""

import math

import pytest
import torch

import vaelib as vl
from vaelib.evaluation import latents


def seeded():
    return torch.Generator().manual_seed(1)


def test_against_the_closed_form(truth_in_range):
    """With the exact posterior q(z) is p(z), so all of the KL is information: 1/2 log(1 + scale^2 / sigma^2) each."""
    x = truth_in_range.sample(20_000).clamp(0, 1)
    report = latents(truth_in_range.vae(), x[:4000], generator=seeded())
    per_latent = -0.5 * truth_in_range.variance.log()
    torch.testing.assert_close(report.kl_per_latent, per_latent, rtol=0.05, atol=0.05)
    assert report.kl.value == pytest.approx(per_latent.sum().item(), abs=4 * report.kl.standard_error)
    assert report.mutual_information.value == pytest.approx(per_latent.sum().item(), abs=0.2)
    assert report.marginal_kl.value == pytest.approx(0.0, abs=0.2)
    assert report.active_units == int((1 - truth_in_range.variance > 0.01).sum())
    torch.testing.assert_close(report.variance_of_mu, 1 - truth_in_range.variance, rtol=0.1, atol=0.02)


def test_the_parts_add_up_and_a_shifted_posterior_is_the_priors_fault(truth_in_range):
    x = truth_in_range.sample(1000).clamp(0, 1)
    report = latents(truth_in_range.vae(shift=1.0), x, generator=seeded())
    assert report.kl.value == pytest.approx(report.mutual_information.value + report.marginal_kl.value)
    assert report.marginal_kl.value == pytest.approx(5 * 0.5, abs=0.3)


def test_a_model_that_ignores_its_latents(truth_in_range):
    class Blind(torch.nn.Module):
        def forward(self, x):
            return x.new_zeros(len(x), 5), x.new_zeros(len(x), 5)

    vae = truth_in_range.vae()
    vae.encoder = Blind()
    report = latents(vae, truth_in_range.sample(100).clamp(0, 1))
    assert report.active_units == 0
    assert report.mutual_information.value == pytest.approx(0.0, abs=1e-9)
    assert "Collapsed: none of 5 latents" in report.in_words()


def test_in_words(truth_in_range):
    x = truth_in_range.sample(1000).clamp(0, 1)
    words = latents(truth_in_range.vae(shift=1.0), x, generator=seeded()).in_words()
    assert words.startswith("5 of 5 latents are used; z carries at least ")
    assert "at most 2." in words and "nats of the KL pay for a prior" in words


@pytest.mark.parametrize("num_images", [20, 100, 1000])
def test_few_images_bound_what_they_cannot_show(truth_in_range, num_images):
    """The exact posterior: all of the KL is information, and a better prior could save nothing."""
    x = truth_in_range.sample(num_images).clamp(0, 1)
    report = latents(truth_in_range.vae(), x, generator=seeded())
    truth = -0.5 * truth_in_range.variance.log().sum().item()
    information, excess = report.mutual_information, report.marginal_kl
    assert information.value <= math.log(num_images) + 1e-9
    assert information.value - 4 * information.standard_error <= truth
    assert excess.value + 4 * excess.standard_error >= 0
    if math.log(num_images) < truth:
        assert excess.value > truth - math.log(num_images) - 4 * excess.standard_error
        assert f"z tells {num_images} images apart" in report.in_words()
        assert "only more images would show" in report.in_words()
    assert "pay for a prior" not in report.in_words() or "at most" in report.in_words()


def test_kl_of_each_latent_is_to_the_models_own_prior():
    prior = vl.LearnedGaussian((2,))
    with torch.no_grad():
        prior.mu.fill_(3.0)
    vae = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), prior=prior)
    x = torch.rand(30, 1, 8, 8)
    mu, logvar = vl.evaluation.encode(vae, x)
    with torch.no_grad():
        expected = prior.kl(mu, logvar).mean(0)
    torch.testing.assert_close(latents(vae, x).kl_per_latent.float(), expected)
    mixed = vl.VAE(vae.encoder, vae.decoder, prior=vl.MixtureOfGaussians((2,), 3))
    to_normal = vl.functional.kl_standard_normal(mu, logvar, per_latent=True).mean(0)
    torch.testing.assert_close(latents(mixed, x).kl_per_latent.float(), to_normal)


@pytest.mark.parametrize("prior", [vl.MixtureOfGaussians((2,), 3), vl.LearnedGaussian((2,)), vl.StandardNormal()])
def test_any_prior_and_batches(prior):
    vae = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), prior=prior)
    x = torch.rand(30, 1, 8, 8)
    whole, parts = (latents(vae, data, generator=seeded()) for data in (x, [x[:7], x[7:]]))
    assert whole.kl.value == pytest.approx(parts.kl.value, rel=1e-5)
    assert whole.kl.value == pytest.approx(whole.mutual_information.value + whole.marginal_kl.value)


def test_map_latents():
    vae = vl.conv_vae((1, 8, 8), latent_shape=(2, 4, 4), hidden_channels=(4,))
    assert latents(vae, torch.rand(10, 1, 8, 8)).kl_per_latent.shape == (32,)


def test_wrong_arguments():
    vae = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,))
    with pytest.raises(ValueError, match="at least two images"):
        latents(vae, torch.rand(1, 1, 8, 8))
    with pytest.raises(TypeError, match="`model` must be a VAE"):
        latents(torch.nn.Identity(), torch.rand(2, 1, 8, 8))
