"""Laws that every model obeys, over one grid of configurations."""

import os

import pytest
import torch
from runs import seeded, weights

import vaelib as vl

SHAPE = (1, 9, 7)


def conv(**kwargs):
    return vl.conv_vae(**({"image_shape": SHAPE, "latent_dim": 3, "hidden_channels": (4, 8)} | kwargs))


def autoencoder(**kwargs):
    return vl.AutoEncoder(vl.ConvEncoder(SHAPE, 2), vl.ConvDecoder(2, SHAPE), **kwargs)


GRID = {
    "default": conv,
    "colour": lambda: conv(image_shape=(3, 8, 12), norm="layer", activation="gelu"),
    "map": lambda: conv(latent_dim=None, latent_shape=(2, 3, 2), norm="group", upsample="nearest"),
    "deep": lambda: conv(hidden_channels=(4, 4, 8), residual_blocks=2, upsample="pixel_shuffle", norm="none"),
    "dropout": lambda: conv(dropout=0.3, kernel_size=4, activation="relu"),
    "continuous bernoulli": lambda: conv(likelihood=vl.ContinuousBernoulli()),
    "gaussian, fixed": lambda: conv(likelihood=vl.Gaussian(0.6)),
    "gaussian, learned": lambda: conv(likelihood=vl.Gaussian("learned")),
    "gaussian, per pixel": lambda: conv(likelihood=vl.Gaussian("per_pixel")),
    "gaussian, optimal": lambda: conv(likelihood=vl.Gaussian("optimal")),
    "laplace, optimal": lambda: conv(likelihood=vl.Laplace("optimal")),
    "discretized logistic": lambda: conv(likelihood=vl.DiscretizedLogistic()),
    "denoising": lambda: conv(corruption=vl.SaltAndPepper(0.2)),
    "article": vl.presets.article_vae,
    "autoencoder": autoencoder,
    "denoising autoencoder": lambda: autoencoder(corruption=vl.GaussianNoise(0.2), likelihood=vl.Bernoulli()),
}


@pytest.fixture(params=GRID.values(), ids=GRID.keys())
def make(request):
    def made():
        torch.manual_seed(0)
        return request.param()

    return made


@pytest.fixture
def trained(make):
    """After two epochs, so that batch-norm and scale statistics are not fresh."""
    model = make()
    x = torch.randint(256, (12, *model.image_shape)) / 255
    vl.Trainer(max_epochs=2, batch_size=6).fit(model, x, progress=False)
    return model


def test_eval_is_deterministic(trained):
    x = torch.randint(256, (4, *trained.image_shape)) / 255
    with vl.vae.eval_mode(trained):
        first, second = trained.encode(x), trained.encode(x)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        code = trained.embed(x)
        assert torch.equal(trained.decode(code), trained.decode(code))
        assert torch.equal(trained(x, generator=seeded(4)).z, trained(x, generator=seeded(4)).z)
    assert torch.equal(trained.reconstruct(x), trained.reconstruct(x))
    if trained.latent.has_prior:
        assert torch.equal(trained.sample(3, generator=seeded(4)), trained.sample(3, generator=seeded(4)))


def test_what_is_loaded_is_bitwise_what_was_saved(trained, tmp_path):
    vl.save(trained, tmp_path)
    loaded = vl.load(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert not loaded.training
    before, after = trained.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    x = torch.randint(256, (4, *trained.image_shape)) / 255
    assert torch.equal(trained.reconstruct(x), loaded.reconstruct(x))
    assert repr(loaded) == repr(trained)


def test_repr_reads_well(make):
    text = repr(make())
    assert text.startswith(("VAE(", "AutoEncoder("))
    for part in ("(encoder): ", "(decoder): "):
        assert part in text
    assert "object at 0x" not in text
    assert "Identity" not in text
    assert len(text.splitlines()) < 150


def test_the_same_seed_gives_bitwise_the_same_weights(make):
    def run(seed):
        model = make()
        x = torch.randint(256, (12, *model.image_shape)) / 255
        torch.rand(seed + 1)  # what was drawn before must not matter
        vl.Trainer(max_epochs=2, batch_size=5, seed=seed).fit(model, x, progress=False)
        return weights(model)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_every_parameter_gets_a_finite_gradient(make):
    model = make().train()
    x = torch.randint(256, (4, *model.image_shape)) / 255
    objective = vl.Elbo() if model.latent.has_prior else vl.Reconstruction()
    objective(model, x).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
