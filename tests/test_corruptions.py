import pytest
import torch

import vaelib as vl

EVERY = [vl.GaussianNoise(0.3), vl.SaltAndPepper(0.4), vl.Masking(0.5)]


@pytest.mark.parametrize("corruption", EVERY, ids=str)
def test_stays_an_image_and_is_reproducible(corruption):
    x = torch.rand(8, 3, 16, 16)
    before = x.clone()
    first, second = (corruption(x, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(x, before)
    assert not torch.equal(first, x)
    assert first.shape == x.shape
    assert first.min() >= 0
    assert first.max() <= 1


def test_rates():
    x = torch.full((50, 3, 20, 20), 0.5)
    assert vl.GaussianNoise(0.1)(x).std().item() == pytest.approx(0.1, rel=0.02)
    salted = vl.SaltAndPepper(0.4)(x)
    assert (salted == 1).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (salted == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (salted[:, 0] == salted[:, 2]).all()
    assert (vl.Masking(0.25)(x) == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    for nothing in (vl.GaussianNoise(0.0), vl.SaltAndPepper(0.0), vl.Masking(0.0)):
        assert torch.equal(nothing(x), x)


@pytest.mark.parametrize(
    "make", [lambda: vl.SaltAndPepper(1.5), lambda: vl.Masking(-0.1), lambda: vl.GaussianNoise(-1)]
)
def test_wrong_arguments(make):
    with pytest.raises(ValueError, match=r"`(probability|std)` must be >= 0"):
        make()


@pytest.mark.parametrize("corruption", EVERY, ids=str)
def test_only_the_encoders_input_in_training_is_corrupted(corruption):
    class Echo(torch.nn.Module):
        image_shape, latent_shape = (3, 8, 8), (192,)

        def forward(self, x):
            return x.flatten(1), torch.zeros(len(x), 192)

    class Back(torch.nn.Module):
        def forward(self, z):
            return z.view(-1, 3, 8, 8)

    vae = vl.VAE(Echo(), Back(), corruption=corruption)
    x = torch.rand(4, 3, 8, 8)
    assert not torch.equal(vae.train()(x).mu.view_as(x), x)
    assert torch.equal(vae.eval()(x).mu.view_as(x), x)
    assert torch.equal(vae.train().reconstruct(x), torch.sigmoid(x))
    autoencoder = vl.AutoEncoder(Echo(), Back(), corruption=corruption)
    assert not torch.equal(autoencoder.train()(x).recon_params, x)
    assert torch.equal(autoencoder.reconstruct(x), x)
