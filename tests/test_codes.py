"""Codes of a whole data set: in the images' order, whatever holds them."""

import pytest
import torch

import vaelib as vl
from vaelib.errors import DataError
from vaelib.evaluation import encode

X = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def parts(**options):
    return vl.ConvEncoder((1, 8, 8), **options, hidden_channels=(4,)), vl.ConvDecoder(
        image_shape=(1, 8, 8), **options, hidden_channels=(4,)
    )


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


def test_wrong_arguments():
    vae = vl.VAE(*parts(latent_dim=2))
    with pytest.raises(TypeError, match="`model` must be a VAE or an AutoEncoder, got Identity"):
        encode(torch.nn.Identity(), X)
    with pytest.raises(DataError, match="`data` must hold at least one image, got none"):
        encode(vae, [])
    with pytest.raises(ValueError, match="`batch_size` must be >= 1, got 0"):
        encode(vae, X, batch_size=0)
