"""Statistics of latents, ranges of activations, and what reconstructions lose."""

import math

import pytest
import torch
from torch import nn

import vaelib as vl
from vaelib import evaluation
from vaelib.errors import DataError
from vaelib.evaluation import activation_ranges, high_frequency_energy, latent_statistics, text_reconstruction
from vaelib.evaluation.images import _drawings

IMAGE, LATENT = (1, 8, 8), (2, 4, 4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count, seed=0, shape=IMAGE):
    return torch.rand(count, *shape, generator=seeded(seed))


class Means(nn.Module):
    """mu of two channels with means and deviations of their own, far from 0, and a posterior of a known width."""

    def __init__(self, logvar=-4.0):
        super().__init__()
        self.logvar = logvar

    def forward(self, x):
        low, high = x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
        mu = torch.cat([1000 + 3 * low, -2 + 0.5 * high], dim=1)
        return mu, torch.full_like(mu, self.logvar)


def known(logvar=-4.0):
    decoder = vl.ConvDecoder(None, IMAGE, latent_shape=LATENT, hidden_channels=(4,))
    return vl.VAE(Means(logvar), decoder, image_shape=IMAGE, latent_shape=LATENT)


def test_statistics_are_those_of_all_draws_at_once():
    model, x = known(), images(70)
    found = latent_statistics(model, x, batch_size=32, generator=seeded(3))
    generator = seeded(3)
    draws = [model.draw(model.observe(part), generator=generator) for part in x.tensor_split((24, 47))]
    z = torch.cat([draw.z for draw in draws]).double().movedim(1, 0).flatten(1)
    mu = torch.cat([draw.mu for draw in draws]).double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(found.mean, z.mean(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.deviation, z.std(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.noise, (z - mu).square().mean(1).sqrt(), rtol=1e-9, atol=0)
    bits = torch.cat([draw.kl.sum(1) for draw in draws]).double() / math.log(2)
    assert found.rate_bits.value == pytest.approx(bits.mean().item(), rel=1e-9)
    bound = evaluation.elbo(model, x, generator=seeded(3))
    assert bound.rate_bits.value == pytest.approx(bound.kl.value / math.log(2), rel=1e-12)
    assert bound.rate_bits.value == pytest.approx(found.rate_bits.value, rel=1e-5)
    assert evaluation.unit_of("rate_bits") == "bits per image"
    assert found.rate_bits.standard_error == pytest.approx(bits.std().item() / math.sqrt(70), rel=1e-9)
    assert (found.num_images, found.num_values) == (70, 32)


def test_a_large_mean_costs_no_digits():
    """In float32, or as a difference of squares, the deviation of the first channel would be gone."""
    model = known(logvar=-20.0)
    found = latent_statistics(model, images(500), batch_size=7)
    expected = 3 / math.sqrt(12), 0.5 / math.sqrt(12)  # of uniform values
    assert found.deviation.tolist() == pytest.approx(expected, rel=0.03)
    assert found.mean.tolist() == pytest.approx((1001.5, -1.75), abs=0.05)


def test_scaled_latents_of_fresh_data_have_mean_0_and_deviation_1():
    """Of draws, too, and in each channel to 0.01."""
    model = known(logvar=-1.0)
    model.scaling = latent_statistics(model, images(20_000), generator=seeded(1)).scaling
    fresh = images(20_000, seed=2)
    with torch.no_grad():
        z = model.scaling(model.draw(model.observe(fresh), generator=seeded(3)).z).double()
        mu, logvar = model.encode(fresh, scaled=True)
    assert z.mean((0, 2, 3)).abs().max() < 0.01
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.01
    total = mu.double().var((0, 2, 3)) + logvar.double().exp().mean((0, 2, 3))
    assert (total.sqrt() - 1).abs().max() < 0.01


@pytest.mark.parametrize(
    ("model", "noise", "rate"),
    [
        (
            lambda: vl.conv_vae(IMAGE, latent=vl.FiniteScalarQuantizer((2, 4, 4), (3, 5)), hidden_channels=(4,)),
            False,
            True,
        ),
        (
            lambda: vl.AutoEncoder(
                vl.ConvEncoder(IMAGE, 2, hidden_channels=(4,)), vl.ConvDecoder(2, IMAGE, hidden_channels=(4,))
            ),
            False,
            False,
        ),
        (lambda: vl.conv_vae(IMAGE, 2, hidden_channels=(4,), condition=vl.Labels(3)).given(1), True, True),
    ],
    ids=["codes", "autoencoder", "condition"],
)
def test_other_latents(model, noise, rate):
    found = latent_statistics(model(), images(30))
    assert found.mean.shape == found.deviation.shape == (2,)
    assert (found.noise is not None, found.rate_bits is not None) == (noise, rate)
    if not noise and rate:
        assert found.rate_bits.value == pytest.approx(16 * math.log2(15))
    words = found.in_words()
    assert words.startswith("KL: " if rate else "The latent has no prior")


def test_words_tell_a_posterior_from_a_point():
    wide, narrow = (latent_statistics(known(logvar), images(50)).in_words() for logvar in (-1.0, -16.0))
    assert wide.endswith("% of the deviation of z.")
    prior = latent_statistics(known(logvar=14.0), images(50)).in_words()
    assert prior.endswith("The posterior's noise is 100% of the deviation of z.")
    assert "z is nearly a point, as after training with a KL weight of 1e-6" in narrow


class Constant(nn.Module):
    def forward(self, x):
        return x.new_zeros(len(x), 2)


class Blur(nn.Module):
    """Averages over a square of ``size`` pixels; 1 is the identity, None a grey image."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        if self.size is None:
            return torch.full_like(x, 0.5)
        return nn.functional.avg_pool2d(x, self.size, 1, self.size // 2)


class Nowhere(nn.Module):
    def forward(self, z):
        return z * float("nan")


def constant():
    return vl.AutoEncoder(
        Constant(), vl.ConvDecoder(2, IMAGE, hidden_channels=(4,)), image_shape=IMAGE, latent_shape=(2,)
    )


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: latent_statistics(known(), images(0)), DataError, "`data` must hold at least one image"),
        (
            lambda: latent_statistics(constant(), images(1)),
            DataError,
            "`data` must hold at least two images for a latent",
        ),
        (
            lambda: latent_statistics(known(math.nan), images(2)),
            ValueError,
            "`model` must give finite numbers, but the lat",
        ),
        (
            lambda: latent_statistics(None, images(2)),
            TypeError,
            "`model` must be a VAE or an AutoEncoder, got NoneType",
        ),
        (
            lambda: latent_statistics(constant(), images(5)).scaling,
            ValueError,
            "A scaling needs channels that vary, but channel 0 of the latent is constant",
        ),
        (
            lambda: activation_ranges(None, images(2)),
            TypeError,
            "`model` must be a VAE or an AutoEncoder, got NoneType",
        ),
        (lambda: activation_ranges(known(), images(0)), DataError, "`data` must hold at least one image"),
        (lambda: evaluation.rfid(nn.Flatten(), known(), images(19)), ValueError, "`real` must hold at least 20 images"),
        (lambda: evaluation.rfid(nn.Flatten(), None, images(20)), TypeError, "`model` must be a VAE or an AutoEncoder"),
        (lambda: high_frequency_energy([0.0]), TypeError, r"`images` must be a torch.Tensor, got \[0.0\]"),
        (lambda: high_frequency_energy(images(2)[0]), ValueError, r"`images` must have shape \(B, C, H, W\)"),
        (
            lambda: high_frequency_energy(images(2)[..., :3]),
            ValueError,
            "`images` must have at least 4 pixels a side, got 8",
        ),
        (lambda: high_frequency_energy(images(0)), ValueError, "`images` must hold at least one image, got none"),
        (
            lambda: text_reconstruction(
                vl.AutoEncoder(Blur(1), Nowhere(), image_shape=(1, 24, 24), latent_shape=(1, 24, 24))
            ),
            ValueError,
            "`model` must give finite numbers, but the reconstruction is not finite",
        ),
        (lambda: high_frequency_energy(images(2) / 0), ValueError, "`images` must be finite"),
        (lambda: text_reconstruction(3), TypeError, "`model` must be a VAE or an AutoEncoder, got int"),
        (lambda: text_reconstruction(known(), num_images=0), ValueError, "`num_images` must be >= 1, got 0"),
        (lambda: text_reconstruction(known(), batch_size=0), ValueError, "`batch_size` must be >= 1, got 0"),
        (lambda: text_reconstruction(known(), seed=-1), ValueError, "`seed` must be >= 0, got -1"),
        (
            lambda: text_reconstruction(known()),
            DataError,
            "`scale` must leave room for a letter, 22 x 12 pixels, got images of 8 x 8",
        ),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


class Scaled(nn.Module):
    """A network with a layer that gives large values inside and small ones at its end."""

    def __init__(self, network, factor):
        super().__init__()
        self.network, self.up, self.down = network, nn.Identity(), nn.Identity()
        self.factor, self.image_shape, self.latent_shape = factor, IMAGE, LATENT

    def forward(self, z):
        return self.down(self.up(self.network(z) * self.factor) / self.factor)


def test_ranges_of_activations_by_layer():
    model = known()
    model.decoder = Scaled(model.decoder, 1e5)
    x = images(9)
    found = activation_ranges(model, x, batch_size=4, generator=seeded(5))
    assert next(iter(found)) == "encoder" and "decoder.network" in found
    assert found["decoder.up"] == pytest.approx(1e5 * found["decoder.down"], rel=1e-5)
    assert found["decoder"] == found["decoder.down"]
    with torch.no_grad():
        mu, _ = model.encoder(x)
    assert found["encoder"] == mu.abs().max().item()
    assert not any(module._forward_hooks for module in model.modules())
    again = activation_ranges(model, [x[:4], x[4:]], generator=seeded(5))
    assert again.keys() == found.keys()


def test_high_frequency_energy_is_that_of_the_upper_band():
    size = 64
    position = torch.arange(size, dtype=torch.float64)

    def wave(cycles):
        return (0.5 + 0.25 * torch.cos(2 * math.pi * cycles * position / size)).expand(1, 1, size, size)

    slow, fast = wave(8), wave(24)
    assert high_frequency_energy(slow) < 1e-8
    assert high_frequency_energy(fast).item() == pytest.approx(0.25**2 / 2, rel=1e-3)
    assert high_frequency_energy(fast.transpose(2, 3)).item() == pytest.approx(0.25**2 / 2, rel=1e-3)
    ramp = torch.linspace(0, 1, size).expand(2, 3, size, size)
    assert high_frequency_energy(ramp).max() < 1e-6  # its ends do not meet, which is no edge
    noise = torch.rand(8, 3, size, size, generator=seeded())
    blurred = nn.functional.avg_pool2d(noise, 3, 1, 1)
    share = high_frequency_energy(noise) / noise.var((1, 2, 3))
    assert ((share - (1 - math.pi / 16)).abs() < 0.05).all()  # white noise fills the square but for the disc
    assert (high_frequency_energy(blurred) < 0.2 * high_frequency_energy(noise)).all()
    assert torch.allclose(high_frequency_energy(0.5 * noise), 0.25 * high_frequency_energy(noise))


@pytest.mark.parametrize("shape", [(1, 24, 40), (3, 25, 26)])
def test_text_is_read_as_long_as_it_is_there(shape):
    def score(size):
        model = vl.AutoEncoder(Blur(size), nn.Identity(), image_shape=shape, latent_shape=shape)
        return text_reconstruction(model, num_images=40, seed=3)

    perfect, blurred, gone = score(1), score(5), score(None)
    assert perfect.accuracy == (1.0, 0.0)
    assert perfect.num_letters == 40 * (shape[1] // 22) * (shape[2] // 12)
    assert gone.accuracy.value < 0.2 < blurred.accuracy.value < 1.0
    assert score(5) == blurred
    model = vl.AutoEncoder(Blur(5), nn.Identity(), image_shape=shape, latent_shape=shape)
    assert text_reconstruction(model, num_images=40, seed=3, batch_size=7) == blurred


@pytest.mark.parametrize("condition", [None, vl.Labels(2)])
def test_rfid_is_the_distance_of_features_of_images_and_reconstructions(condition):
    model, x = vl.conv_vae(IMAGE, 2, hidden_channels=(4,), condition=condition).eval(), images(25)
    extractor = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False))
    data = x if condition is None else vl.data.ImageDataset(x, labels=torch.arange(25) % 2, condition="labels")
    reconstructed = model.reconstruct(x, condition=None if condition is None else torch.arange(25) % 2)
    with torch.no_grad():
        expected = evaluation.fid(extractor(x).double(), extractor(reconstructed).double())
    found = evaluation.rfid(extractor, model, data, batch_size=10)
    assert found == pytest.approx(expected, rel=1e-4)
    same = vl.AutoEncoder(nn.Identity(), nn.Identity(), image_shape=IMAGE, latent_shape=IMAGE)
    assert evaluation.rfid(extractor, same, x).value == pytest.approx(0, abs=1e-9)


def test_drawings_of_letters_all_differ():
    drawings = _drawings(2).flatten(1)
    assert drawings.shape == (26, 22 * 12)
    assert len({tuple(row.tolist()) for row in drawings}) == 26
    assert set(drawings.unique().tolist()) == {0.0, 1.0}
