import math
import warnings

import numpy as np
import pytest
import torch
from runs import seeded
from torch import full, rand

import vaelib as vl
from vaelib.cli import main
from vaelib.evaluation import Estimate, compare, elbo, encode, log_likelihood, per_image_terms


@pytest.fixture
def vae():
    return vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,))


def test_the_elbo_is_the_mean_over_images_whatever_the_batches(vae):
    x = torch.rand(10, 1, 8, 8)
    with torch.no_grad():
        mu, logvar = vae.eval().encode(x)
    kl = vl.kl_standard_normal(mu, logvar)
    for batches in ([x], [x[:9], x[9:]], [x[:3], x[3:]]):
        result = elbo(vae, batches)
        assert result.num_images == 10
        assert result.kl.value == pytest.approx(kl.mean().item(), rel=1e-5)
        assert result.kl.standard_error == pytest.approx(kl.std().item() / math.sqrt(10), rel=1e-4)
        assert result.elbo.value == pytest.approx(-(result.reconstruction.value + result.kl.value))
    loss = per_image_terms(vae, [x[:9], x[9:]], vl.Elbo(), generator=seeded()).loss
    terms = per_image_terms(vae, [x[:9], x[9:]], vl.Elbo(), generator=seeded())
    assert loss.item() == pytest.approx((terms.reconstruction + terms.kl).mean().item(), rel=1e-5)


def test_takes_tensors_sets_and_loaders_and_keeps_the_mode(vae):
    x = torch.rand(10, 1, 8, 8)
    pairs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(10)), batch_size=10)
    vae.train()
    values = [elbo(vae, data, generator=seeded()).elbo.value for data in (x, vl.data.ImageDataset(x), pairs)]
    assert values == pytest.approx([values[0]] * 3)
    assert vae.training


def test_bits_per_dim_counts_the_discretisation_of_densities():
    x = torch.randint(0, 256, (64, 1, 8, 8)).float() / 255
    density = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), likelihood=vl.Gaussian(0.4))
    result = elbo(density, x)
    assert result.bits_per_dim.value == pytest.approx(-result.elbo.value / (64 * math.log(2)) + math.log2(256))
    assert "no code length" in result.note  # at the levels themselves
    dequantised = (255 * x + torch.rand_like(x)) / 256
    assert elbo(density, dequantised).note == ""
    mass = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), likelihood=vl.DiscretizedLogistic())
    result = elbo(mass, x)
    assert result.bits_per_dim.value == pytest.approx(-result.elbo.value / (64 * math.log(2)))


def test_a_density_and_a_mass_agree_on_smooth_data():
    """The mass of level k, a cell of 1 / 255 around k / 255, is the density of (k + u) / 256 over a cell of 1 / 256."""
    x = torch.randint(60, 190, (8, 1, 8, 8)).float() / 255
    location = torch.full_like(x, 0.5)
    mass = -vl.DiscretizedLogistic(0.1).log_prob(x, location)
    scaled = (x - 0.5) / 0.1
    scale = 0.1 * 255 / 256  # on the scale of (255 x + 1/2) / 256
    density = -(-scaled - 2 * torch.nn.functional.softplus(-scaled) - math.log(scale)).flatten(1).sum(1)
    in_bits = vl.bits_per_dim(density, (1, 8, 8), levels=256)
    torch.testing.assert_close(vl.bits_per_dim(mass, (1, 8, 8)), in_bits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("likelihood", "images", "words"),
    [
        (vl.Bernoulli(), torch.rand(6, 1, 8, 8), "a relaxation"),
        (vl.Bernoulli(), torch.rand(6, 1, 8, 8).round(), None),
        (vl.ContinuousBernoulli(), torch.randint(256, (6, 1, 8, 8)) / 255, "no code length"),
        (vl.Laplace(0.3), torch.rand(6, 1, 8, 8), None),
        (vl.DiscretizedLogistic(), torch.randint(256, (6, 1, 8, 8)) / 255, None),
    ],
    ids=str,
)
def test_a_number_carries_what_it_is_not(likelihood, images, words):
    model = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), likelihood=likelihood)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        notes = [
            elbo(model, images).note,
            elbo(model, [images[:3].round(), images[3:]]).note,  # one grey batch is enough
            log_likelihood(model, images, num_samples=2, progress=False).note,
            compare(model, model, images, progress=False).note,
        ]
    assert [note if words is None else words in note for note in notes] == [("" if words is None else True)] * 4


@pytest.mark.parametrize("measure", ["elbo", "log_likelihood", "compare", "anomaly_scores"])
def test_values_without_probability_are_refused_by_every_measure(measure, monkeypatch):
    """Also where ``log_prob`` does not look, as on a GPU."""
    monkeypatch.setattr(vl.likelihoods, "_check_support", lambda x, **_: None)
    model = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), likelihood=vl.DiscretizedLogistic())
    call = {
        "elbo": lambda x: elbo(model, x),
        "log_likelihood": lambda x: log_likelihood(model, x, num_samples=2, progress=False),
        "compare": lambda x: compare(model, model, x, progress=False),
        "anomaly_scores": lambda x: vl.evaluation.anomaly_scores(model, x),
    }[measure]
    with pytest.raises(
        ValueError, match="`x` must have the values k / 255 of 8-bit images under a DiscretizedLogistic"
    ):
        call(torch.rand(3, 1, 8, 8))


def test_the_command_reports_a_model_that_is_not_finite(tmp_path, capsys):
    model = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 1e20)
    vl.save(model, tmp_path / "model")
    np.save(tmp_path / "images.npy", (255 * torch.rand(20, 1, 8, 8)).byte().numpy())
    for options in ((), ("--samples", "10")):
        assert main(["evaluate", str(tmp_path / "model"), "--data", str(tmp_path / "images.npy"), *options]) != 0
        found = capsys.readouterr()
        assert "`model` must give finite numbers, but the ELBO is not finite for" in " ".join(found.err.split())
        assert "nan" not in found.out


def test_estimates():
    estimate = Estimate.of(torch.tensor([1.0, 3.0]))
    assert estimate == (2.0, 1.0)
    assert str(estimate) == "2.00 +- 1.00"
    assert Estimate.of(torch.tensor([1.0])).standard_error == math.inf
    assert Estimate.of(torch.tensor([1.0, math.inf])) == (math.inf, math.inf)  # the PSNR where one is exact


X = torch.rand(7, 1, 8, 8, generator=seeded())


def parts(**options):
    sizes = {"image_shape": (1, 8, 8), "hidden_channels": (4,)} | options
    return vl.ConvEncoder(**sizes), vl.ConvDecoder(**sizes)


@pytest.mark.parametrize(
    "data",
    [X, [X[:3], X[3:]], [(X, torch.arange(7))], vl.data.ImageDataset(X)],
    ids=["tensor", "batches", "with labels", "data set"],
)
@pytest.mark.parametrize("options", [{"latent_dim": 2}, {"latent_shape": (2, 4, 4)}], ids=["vector", "map"])
def test_moments_of_every_image_as_the_model_gives_them(data, options):
    vae = vl.VAE(*parts(**options))
    with torch.no_grad():
        expected = vae.eval().encode(X)
    vae.train()
    found = encode(vae, data, batch_size=3)
    torch.testing.assert_close(found, expected)
    assert vae.training
    assert not any(moment.requires_grad for moment in found)


def test_an_autoencoder_has_one_code_an_image():
    model = vl.AutoEncoder(*parts(latent_dim=2), likelihood=vl.Bernoulli()).eval()
    with torch.no_grad():
        torch.testing.assert_close(encode(model, X, batch_size=4), model.encode(X))


def test_a_generator_decides_what_a_set_draws():
    data = vl.data.ImageDataset(X, dynamic=True)
    vae = vl.VAE(*parts(latent_dim=2))
    first, again, other = (encode(vae, data, generator=torch.Generator().manual_seed(s))[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def gaussian():
    return vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), likelihood=vl.Gaussian(0.5))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda vae: vl.evaluation.unit_of(3), TypeError, "`name` must be a str, got 3"),
        (
            lambda vae: elbo(vl.AutoEncoder(vae.encoder, vae.decoder), rand(1, 1, 8, 8)),
            TypeError,
            "`model` must be a VAE, got AutoEncoder",
        ),
        (lambda vae: elbo(vae, rand(2, 1, 9, 8)), ValueError, r"`x` must have shape \(B, 1, 8, 8\)"),
        (lambda vae: elbo(vae, full((2, 1, 8, 8), 255.0)), ValueError, r"`data` must have values in \[0, 1\]"),
        (lambda vae: elbo(vae, full((2, 1, 8, 8), float("nan"))), ValueError, r"got \[nan, nan\]"),
        (lambda vae: elbo(gaussian(), full((2, 1, 8, 8), 255.0)), ValueError, r"`data` must have values in \[0, 1\]"),
        (lambda vae: elbo(gaussian(), full((2, 1, 8, 8), float("nan"))), ValueError, r"got \[nan, nan\]"),
    ],
)
def test_wrong_arguments(vae, call, error, match):
    with pytest.raises(error, match=match):
        call(vae)
