import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import vaelib as vl


@pytest.fixture(scope="module")
def tutorial():
    path = Path(__file__).parent.parent / "examples" / "standalone_article.py"
    spec = importlib.util.spec_from_file_location("standalone_article", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds(module):
    return [type(layer).__name__ for layer in module.modules() if not list(layer.children())]


def test_article_vae_has_the_tutorials_layers_in_order():
    vae = vl.presets.article_vae()
    assert sum(parameter.numel() for parameter in vae.parameters()) == 165_409
    block = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    head = ["Linear", "LeakyReLU", "Dropout"]
    assert kinds(vae.encoder) == 4 * block + ["Flatten", "Linear", *head, *head]
    up = ["ConvTranspose2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds(vae.decoder) == [*head, "Unflatten", *up, *up, *up, "ConvTranspose2d"]
    convs = [m for m in vae.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels, m.padding[0]) for m in convs] == [
        (1, 8, 1), (8, 16, 1), (16, 32, 1), (32, 64, 0),
        (64, 64, 0), (64, 32, 1), (32, 16, 1), (16, 1, 1),
    ]  # fmt: skip
    assert {(m.kernel_size, m.stride) for m in convs} == {((4, 4), (2, 2))}
    assert {m.p for m in vae.modules() if isinstance(m, nn.Dropout)} == {0.2}
    assert {m.negative_slope for m in vae.modules() if isinstance(m, nn.LeakyReLU)} == {0.01}


def test_article_vae_computes_what_the_tutorial_computes(tutorial):
    """Same weights, same images, same loss and gradients as the standalone code, which knows nothing of vaelib."""
    theirs, ours = tutorial.ArticleVAE(), vl.presets.article_vae()
    with torch.no_grad():
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.copy_(b)
    ours.train(), theirs.train()
    x = torch.rand(8, 1, 32, 32)
    torch.manual_seed(1)
    expected = tutorial.loss_sum(x, *theirs(x))
    torch.manual_seed(1)
    got = vl.Elbo()(ours, x)
    torch.testing.assert_close(got.loss * 8, expected, rtol=1e-5, atol=1e-3)
    (got.loss * 8).backward()
    expected.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours.reconstruct(x), theirs.decode(theirs.encode(x)[0]))


def test_conv_vae_is_its_parts():
    vae = vl.conv_vae((1, 28, 28), latent_dim=32)
    parts = vl.VAE(
        encoder=vl.ConvEncoder((1, 28, 28), latent_dim=32),
        decoder=vl.ConvDecoder(32, (1, 28, 28)),
        likelihood=vl.Bernoulli(),
        prior=vl.StandardNormal(),
    )
    assert repr(vae) == repr(parts)
    assert vl.conv_vae((1, 28, 28)).latent_shape == (32,)


def test_conv_vae_builds_what_the_latent_reads():
    options = {"hidden_channels": (4,), "stride": 4}
    for latent in (vl.VectorQuantizer((3, 2, 2), 8), vl.PointLatent((5,)), vl.GaussianLatent((2, 2, 2))):
        vae = vl.conv_vae((1, 8, 8), latent=latent, **options)
        assert vae.encoder.num_heads == latent.num_heads
        assert vae.latent_shape == vae.encoder.latent_shape == latent.latent_shape
        assert vae.reconstruct(torch.rand(2, 1, 8, 8)).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="`latent_shape` must be the same for all parts"):
        vl.conv_vae((1, 8, 8), latent_shape=(2, 2, 2), latent=vl.VectorQuantizer((3, 2, 2), 8), **options)
    with pytest.raises(ValueError, match="`latent_dim` must be 12"):
        vl.conv_vae((1, 8, 8), 5, latent=vl.VectorQuantizer((3, 2, 2), 8), **options)
    with pytest.raises(ValueError, match="`prior` must be None where `latent` is given"):
        vl.conv_vae((1, 8, 8), prior=vl.StandardNormal(), latent=vl.GaussianLatent((2, 2, 2)), **options)


def test_the_default_is_smaller_than_the_articles():
    assert sum(p.numel() for p in vl.conv_vae((1, 32, 32)).parameters()) < 165_409


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (8, 9, 4)])
def test_a_shape_with_channels_last_is_said(shape):
    c, h, w = shape
    match = rf"`image_shape` \({c}, {h}, {w}\) is read as \(C, H, W\): C = {c} .* of {h}x{w} .*give \({w}, {c}, {h}\)"
    with pytest.warns(UserWarning, match=match) as caught:
        vl.conv_vae(shape, 2, hidden_channels=(4,))
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=match):
        vl.VAE(torch.nn.Identity(), torch.nn.Identity(), image_shape=shape, latent_shape=(2,))
    with pytest.warns(UserWarning, match=match):
        vl.AutoEncoder(torch.nn.Identity(), torch.nn.Identity(), image_shape=shape, latent_shape=(2,))
