import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import vaelib as vl
from vaelib.networks.blocks import ACTIVATIONS, NORMS, UPSAMPLES

SIZES = st.integers(4, 67)


@st.composite
def architectures(draw):
    """A small network of any form for any image, vector or map latent."""
    return {
        "image_shape": (draw(st.integers(1, 4)), draw(SIZES), draw(SIZES)),
        "hidden_channels": draw(st.lists(st.sampled_from([3, 4, 8]), min_size=1, max_size=4)),
        "kernel_size": draw(st.integers(2, 5)),
        "stride": draw(st.integers(1, 3)),
        "norm": draw(st.sampled_from(sorted(NORMS))),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "residual_blocks": draw(st.integers(0, 1)),
        "upsample": draw(st.sampled_from(UPSAMPLES)),
    }


def make(architecture, as_map=False, **more):
    """A VAE of the architecture; ``as_map`` takes the latent map that the error message names as fitting."""
    if not as_map:
        return vl.conv_vae(latent_dim=3, **architecture, **more)
    with pytest.raises(ValueError, match="`latent_shape` must be") as caught:
        vl.conv_vae(latent_shape=(2, 999, 999), **architecture)
    size = str(caught.value).split("(C, ")[1].split(")")[0]
    return vl.conv_vae(latent_shape=(2, *map(int, size.split(", "))), **architecture, **more)


@given(architectures(), st.booleans())
def test_any_image_comes_back_in_its_own_size_with_finite_gradients(architecture, as_map):
    torch.manual_seed(0)
    vae = make(architecture, as_map)
    x = torch.rand(3, *architecture["image_shape"])
    out = vae(x)
    assert out.recon_params.shape == x.shape
    loss = vl.elbo_loss(x, *out).loss
    assert loss.isfinite()
    loss.backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@given(architectures())
def test_images_of_a_batch_do_not_see_each_other_in_eval_mode(architecture):
    torch.manual_seed(0)
    vae = make(architecture).eval()
    x = torch.rand(3, *architecture["image_shape"])
    with torch.no_grad():
        mu, logvar = vae.encode(x)
        apart = [torch.cat(parts) for parts in zip(vae.encode(x[:1]), vae.encode(x[1:]), strict=True)]
        torch.testing.assert_close(mu, apart[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logvar, apart[1], rtol=1e-4, atol=1e-5)
        images = torch.cat([vae.decode(mu[:1]), vae.decode(mu[1:])])
        torch.testing.assert_close(vae.decode(mu), images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (1, 37), (53, 1), (1, 1), (28, 28), (512, 512)])
@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_extreme_sizes(size, upsample):
    vae = vl.conv_vae((1, *size), 2, hidden_channels=(4, 4, 4, 4, 4), upsample=upsample)
    out = vae(torch.rand(2, 1, *size))
    assert out.recon_params.shape == (2, 1, *size)


def test_the_size_is_reached_without_interpolation_at_the_end():
    for upsample in UPSAMPLES:
        decoder = vl.ConvDecoder(2, (1, 29, 31), upsample=upsample)
        assert isinstance(list(decoder.modules())[-1], nn.ConvTranspose2d | nn.Conv2d) or upsample == "pixel_shuffle"


def test_no_stages_at_all():
    vae = vl.conv_vae((2, 5, 6), 3, hidden_channels=())
    assert vae(torch.rand(2, 2, 5, 6)).recon_params.shape == (2, 2, 5, 6)


def test_the_callers_lists_are_not_kept_or_changed():
    channels, shape = [4, 8], [1, 9, 9]
    first = vl.conv_vae(shape, 2, hidden_channels=channels)
    assert (channels, shape) == ([4, 8], [1, 9, 9])
    channels.append(99)
    assert first.encoder.hidden_channels == (4, 8)
    assert first.decoder.hidden_channels == (8, 4)


def test_dropout_acts_in_training_only():
    encoder = vl.ConvEncoder((1, 16, 16), 4, dropout=0.5)
    x = torch.rand(8, 1, 16, 16)
    assert not torch.equal(encoder(x)[0], encoder(x)[0])
    encoder.eval()
    assert torch.equal(encoder(x)[0], encoder(x)[0])
    assert not any(isinstance(m, nn.Dropout) for m in vl.ConvEncoder((1, 16, 16), 4).modules())


def test_logvar_cannot_overflow():
    encoder = vl.ConvEncoder((1, 8, 8), 4, norm="none")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1e6)
    _, logvar = encoder(torch.rand(2, 1, 8, 8))
    assert (logvar.abs() <= 20).all()
    assert logvar.exp().isfinite().all()


def test_group_norm_takes_any_width():
    norm = NORMS["group"]
    assert [norm(channels).num_groups for channels in (64, 48, 20, 8, 7, 1)] == [8, 8, 5, 2, 1, 1]


def test_documented_initialisation():
    conv = vl.ConvEncoder((64, 8, 8), 4, hidden_channels=(512,)).stages[0]
    fan_in = 64 * 3 * 3
    assert conv.weight.var().item() == pytest.approx(1 / (3 * fan_in), rel=0.02)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"image_shape": (1, 28)}, r"`image_shape` must have 3 entries, got \(1, 28\)"),
        ({"image_shape": (1, 0, 28)}, r"`image_shape\[1\]` must be >= 1, got 0"),
        ({"latent_dim": 0}, "`latent_dim` must be >= 1, got 0"),
        ({"latent_dim": None}, "Give `latent_dim`"),
        ({"hidden_channels": (8, -1)}, r"`hidden_channels\[1\]` must be >= 1, got -1"),
        ({"hidden_channels": 8}, "`hidden_channels` must be a sequence of ints, got 8"),
        ({"kernel_size": 0}, "`kernel_size` must be >= 1"),
        ({"stride": 1.5}, "`stride` must be an int"),
        ({"norm": "bath"}, "`norm` must be one of 'batch', 'group', 'layer', 'none', got 'bath'"),
        ({"activation": "swish"}, "`activation` must be one of 'silu', 'relu'"),
        ({"dropout": 1.5}, "`dropout` must be >= 0 and <= 1"),
        ({"residual_blocks": -1}, "`residual_blocks` must be >= 0"),
        (
            {"latent_dim": None, "latent_shape": (4, 3, 2)},
            r"`latent_shape` must be \(C, 2, 2\), the size of the smallest map",
        ),
    ],
)
def test_wrong_arguments(kwargs, match):
    arguments = {"image_shape": (1, 28, 28), "latent_dim": 4} | kwargs
    for network in (vl.ConvEncoder, vl.ConvDecoder):
        with pytest.raises((ValueError, TypeError), match=match):
            network(**arguments)


def test_wrong_arguments_of_the_decoder():
    with pytest.raises(ValueError, match="`upsample` must be one of 'transpose', 'nearest', 'pixel_shuffle'"):
        vl.ConvDecoder(4, (1, 8, 8), upsample="bilinear")
    with pytest.raises(ValueError, match="`param_channels` must be >= 1"):
        vl.ConvDecoder(4, (1, 8, 8), param_channels=0)
    with pytest.raises(ValueError, match=r"`image_shape` must have 3 entries, got \(\)"):
        vl.ConvDecoder(4)


@pytest.mark.parametrize("latent_shape", [(3,), (3, 2, 2)])
def test_one_head_is_one_tensor(latent_shape):
    options = {"latent_shape": latent_shape, "hidden_channels": (4,), "stride": 4}
    two, one = (vl.ConvEncoder((1, 8, 8), num_heads=heads, **options) for heads in (2, 1))
    x = torch.rand(5, 1, 8, 8)
    assert one(x).shape == (5, *latent_shape)
    assert [part.shape for part in two(x)] == [(5, *latent_shape)] * 2
    weights = {name: value.numel() for name, value in two.head.named_parameters()}
    assert {name: 2 * value.numel() for name, value in one.head.named_parameters()} == weights


class Returns(nn.Module):
    """An encoder of other people's."""

    def __init__(self, *shapes):
        super().__init__()
        self.shapes = shapes

    def forward(self, x):
        parts = tuple(x.new_zeros(len(x), *shape) for shape in self.shapes)
        return parts if len(parts) > 1 else parts[0]


CODES, MAP = vl.VectorQuantizer((3, 2, 2), 4), (3, 2, 2)
WRONG_HEADS = [
    (vl.GaussianLatent(MAP), (MAP,), TypeError, r"must be two tensors, \(mu, logvar\), got Tensor.*with `num_heads=2`"),
    (
        vl.GaussianLatent(MAP),
        (MAP, (3,)),
        ValueError,
        r"encoder's logvar` must have shape \(B, 3, 2, 2\), got \(2, 3\)",
    ),
    (CODES, (MAP, MAP), TypeError, r"one tensor \(B, 3, 2, 2\) for VectorQuantizer, got 2 values.*with `num_heads=1`"),
    (CODES, ((6, 2, 2),), ValueError, r"encoder's features` must have shape \(B, 3, 2, 2\), got \(2, 6, 2, 2\)"),
]


@pytest.mark.parametrize(("latent", "shapes", "error", "match"), WRONG_HEADS)
def test_a_wrong_head_is_an_error_that_says_what_the_latent_wants(latent, shapes, error, match):
    decoder = vl.ConvDecoder(None, (1, 8, 8), latent_shape=MAP, hidden_channels=(4,), stride=4)
    model = vl.VAE(Returns(*shapes), decoder, latent=latent)
    for verb in (model, model.encode, model.embed):
        with pytest.raises(error, match=match):
            verb(torch.rand(2, 1, 8, 8))


def test_an_encoder_with_other_heads_than_the_latents_is_refused_at_once():
    options = {"latent_shape": MAP, "hidden_channels": (4,), "stride": 4}
    decoder = vl.ConvDecoder(None, (1, 8, 8), **options)
    for heads, latent in ((1, vl.GaussianLatent(MAP)), (2, CODES)):
        wanted = latent.num_heads
        match = f"`num_heads` must be {wanted}, as {type(latent).__name__} needs, got {heads}: write ConvEncoder"
        with pytest.raises(ValueError, match=match):
            vl.VAE(vl.ConvEncoder((1, 8, 8), num_heads=heads, **options), decoder, latent=latent)
        vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), num_heads=heads, **options), decoder)
    with pytest.raises(ValueError, match="`num_heads` must be one of 1, 2, got 3"):
        vl.ConvEncoder((1, 8, 8), num_heads=3, **options)


def test_wrong_inputs():
    encoder, decoder = vl.ConvEncoder((1, 8, 8), 4), vl.ConvDecoder(4, (1, 8, 8))
    with pytest.raises(ValueError, match=r"`x` must have shape \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        encoder(torch.rand(2, 3, 8, 8))
    with pytest.raises(TypeError, match="floating point"):
        encoder(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"`z` must have shape \(B, 4\), got \(2, 5\)"):
        decoder(torch.rand(2, 5))


class ResNetEncoder(nn.Module):
    """torchvision's ResNet-18 as q(z|x): nothing of vaelib is inherited."""

    image_shape, latent_shape = (3, 48, 40), (6,)

    def __init__(self):
        super().__init__()
        from torchvision.models import resnet18

        self.net = resnet18(weights=None, num_classes=12)

    def forward(self, x):
        return self.net(x).chunk(2, dim=1)


def test_any_module_can_be_the_encoder_or_the_decoder():
    vae = vl.VAE(ResNetEncoder(), vl.ConvDecoder(6, (3, 48, 40)))
    x = torch.rand(4, 3, 48, 40)
    vl.Elbo()(vae, x).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())
    assert vae.reconstruct(x).shape == x.shape

    linear = nn.Sequential(nn.Linear(6, 3 * 48 * 40), nn.Unflatten(1, (3, 48, 40)))
    history = vl.Trainer(max_epochs=1, batch_size=4).fit(vl.VAE(ResNetEncoder(), linear), x, progress=False)
    assert history[0].train.loss > 0
