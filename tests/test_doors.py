"""The public doors: wrong types and values are errors that name the argument, the rule and the value."""

import numpy as np
import pytest
import torch
from torch import nn

import vaelib as vl

IMAGE, LATENT = (1, 8, 8), 2


def small_vae(encoder=None, decoder=None, **parts):
    encoder = vl.ConvEncoder(IMAGE, LATENT, hidden_channels=(4,)) if encoder is None else encoder
    decoder = vl.ConvDecoder(LATENT, IMAGE, hidden_channels=(4,)) if decoder is None else decoder
    return vl.VAE(encoder, decoder, image_shape=IMAGE, latent_shape=(LATENT,), **parts)


def small_autoencoder(encoder=None, decoder=None, **parts):
    encoder = vl.ConvEncoder(IMAGE, LATENT, hidden_channels=(4,)) if encoder is None else encoder
    decoder = vl.ConvDecoder(LATENT, IMAGE, hidden_channels=(4,)) if decoder is None else decoder
    return vl.AutoEncoder(encoder, decoder, image_shape=IMAGE, latent_shape=(LATENT,), **parts)


class Returning(nn.Module):
    """A part that returns what its author took for right."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value(x)


class Half(nn.Module):
    """A prior, or a likelihood, with some of the methods."""

    is_density = True

    def log_prob(self, z):
        return z.flatten(1).sum(1)

    def sample(self, *_, **__):
        return None


X, Z = torch.rand(2, *IMAGE), torch.zeros(2, LATENT)
CODE = torch.zeros(2, LATENT)
VAE, AUTOENCODER = small_vae(), small_autoencoder()
MODELS = [
    (lambda: VAE(None), TypeError, "`x` must be a torch.Tensor, got None"),
    (lambda: VAE([[0.5]]), TypeError, r"`x` must be a torch.Tensor, got \[\[0.5\]\]"),
    (lambda: VAE(X.numpy()), TypeError, r"`x` must be a torch.Tensor, got ndarray of shape \(2, 1, 8, 8\)"),
    (lambda: VAE.encode("x"), TypeError, "`x` must be a torch.Tensor, got 'x'"),
    (lambda: VAE.encode(X.to("meta")), ValueError, "`x` must be on the device of the model's weights, cpu, got meta"),
    (lambda: VAE.reconstruct(None), TypeError, "`x` must be a torch.Tensor, got None"),
    (lambda: VAE.reconstruct((X * 255).long()), TypeError, "`x` must be floating point.* Divide 8-bit images by 255"),
    (lambda: VAE.decode(3), TypeError, "`z` must be a torch.Tensor, got 3"),
    (lambda: VAE.decode(Z.long()), TypeError, "`z` must be floating point, got dtype torch.int64"),
    (lambda: VAE.decode(Z.double()), TypeError, "`z` must have the dtype of the model's weights, torch.float32"),
    (lambda: VAE.draw(Z, None), TypeError, "`logvar` must be a torch.Tensor, got None"),
    (lambda: VAE.draw(Z[0], Z), ValueError, r"`mu` must have shape \(B, 2\), got \(2,\)"),
    (lambda: VAE(X, generator=7), TypeError, "`generator` must be a torch.Generator or None, got 7"),
    (lambda: VAE.sample(2, generator="seed"), TypeError, "`generator` must be a torch.Generator or None, got 'seed'"),
    (lambda: VAE.sample(2.0), TypeError, r"`num_samples` must be an int, got 2\.0"),
    (lambda: VAE.sample(np.bool_(True)), TypeError, "`num_samples` must be an int, got"),
    (lambda: VAE.sample(10**9), ValueError, "`num_samples` must be <= 67108864, got 1000000000"),
    (lambda: AUTOENCODER(None), TypeError, "`x` must be a torch.Tensor, got None"),
    (lambda: AUTOENCODER.decode([0.0]), TypeError, r"`z` must be a torch.Tensor, got \[0\.0\]"),
    (lambda: AUTOENCODER.reconstruct(X.numpy()), TypeError, "`x` must be a torch.Tensor, got ndarray"),
    (
        lambda: small_vae(Returning(lambda x: CODE))(X),
        TypeError,
        r"`encoder` must return two tensors, \(mu, logvar\), got Tensor of shape \(2, 2\)",
    ),
    (lambda: small_vae(Returning(lambda x: (CODE,) * 3))(X), TypeError, r"`encoder` must return two .* got 3 values"),
    (
        lambda: small_vae(Returning(lambda x: (CODE, 0.0)))(X),
        TypeError,
        "`the encoder's logvar` must be a torch.Tensor",
    ),
    (
        lambda: small_vae(Returning(lambda x: (CODE[:1], CODE[:1])))(X),
        ValueError,
        r"`the encoder's mu` must have shape \(2, 2\), got \(1, 2\)",
    ),
    (
        lambda: small_vae(Returning(lambda x: (CODE, CODE.T[:, :1])))(X),
        ValueError,
        r"`the encoder's logvar` must have shape \(2, 2\), got \(2, 1\)",
    ),
    (
        lambda: small_vae(decoder=Returning(lambda z: (X, X))).sample(2),
        TypeError,
        r"`the decoder's recon_params` must be a torch.Tensor, got \(tensor",
    ),
    (
        lambda: small_vae(decoder=Returning(lambda z: X[:, 0])).decode(Z),
        ValueError,
        r"`the decoder's recon_params` must have shape \(2, 1, 8, 8\), got \(2, 8, 8\)",
    ),
    (
        lambda: small_vae(decoder=Returning(lambda z: X), likelihood=vl.Gaussian("per_pixel")).decode(Z),
        ValueError,
        r"`the decoder's recon_params` must have shape \(2, 2, 8, 8\), got \(2, 1, 8, 8\)",
    ),
    (
        lambda: small_autoencoder(Returning(lambda x: x)).encode(X),
        ValueError,
        r"`the encoder's code` must have shape \(2, 2\), got \(2, 1, 8, 8\)",
    ),
    (lambda: small_autoencoder(Returning(lambda x: None))(X), TypeError, "`the encoder's code` must be a torch.Tensor"),
    (
        lambda: small_autoencoder(decoder=Returning(lambda z: X.repeat(1, 2, 1, 1)))(X),
        ValueError,
        r"`the decoder's recon_params` must have shape \(2, 1, 8, 8\), got \(2, 2, 8, 8\)",
    ),
    (lambda: small_vae(prior=Half()), TypeError, "`prior` must have the methods `kl`, Half has not"),
    (lambda: small_vae(prior=nn.ReLU()), TypeError, "`prior` must have the methods `log_prob`, `kl`, `sample`, ReLU"),
    (lambda: small_vae(likelihood=Half()), TypeError, "`likelihood` must have the methods `param_channels`, `mean`"),
    (
        lambda: small_vae(likelihood=nn.ReLU()),
        TypeError,
        "`likelihood` must have the methods `param_channels`, `log_prob`",
    ),
    (lambda: small_vae(posterior=3), TypeError, "`posterior` must be an nn.Module object, got 3"),
    (lambda: small_vae("conv"), TypeError, "`encoder` must be an nn.Module object, got 'conv'"),
    (
        lambda: vl.VAE(nn.ReLU(), nn.ReLU(), image_shape=(8, 8), latent_shape=(2,)),
        ValueError,
        r"`image_shape` must be \(C, H, W\), got \(8, 8\)",
    ),
    (
        lambda: vl.VAE(nn.ReLU(), nn.ReLU(), image_shape=IMAGE, latent_shape=(2, 2)),
        ValueError,
        r"`latent_shape` must be \(D,\) or \(C, h, w\), got \(2, 2\)",
    ),
    (
        lambda: vl.VAE(nn.ReLU(), nn.ReLU(), image_shape=b"888"),
        TypeError,
        "`image_shape` must be a sequence of ints, got",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), MODELS)
def test_models_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_likelihood_says_whether_it_is_a_density():
    class Silent(vl.Bernoulli):
        is_density = None

    with pytest.raises(TypeError, match="`likelihood` must have an `is_density`, True or False, Silent has not"):
        small_vae(likelihood=Silent())
