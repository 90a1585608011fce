"""The residual autoencoder of latent diffusion and its preset."""

import pytest
import torch
from torch import nn

import vaelib as vl
from vaelib.networks.residual_blocks import PixelNorm

IMAGE = (3, 16, 16)


def small(image_shape=IMAGE, factor=2, channels=None, **options):
    return vl.autoencoder_kl(image_shape, factor, channels, **{"width": 8, "groups": 4, **options})


def parameters(vae):
    return sum(parameter.numel() for parameter in vae.parameters())


def test_the_full_size_is_stable_diffusions():
    with torch.device("meta"):
        vae = vl.autoencoder_kl((3, 256, 256), norm="group", attention=True, quant_conv=True)
    assert parameters(vae) == 83_653_863
    assert vae.latent_shape == (4, 32, 32)


def test_a_width_of_32_has_five_million_parameters():
    with torch.device("meta"):
        assert 5_000_000 < parameters(vl.autoencoder_kl((3, 64, 64), width=32)) < 5_300_000


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16])
def test_the_latent_map_is_smaller_by_the_factor(factor):
    vae = small((1, 32, 16), factor, 3)
    assert vae.latent_shape == (3, 32 // factor, 16 // factor)
    x = torch.rand(2, 1, 32, 16)
    assert vae(x).recon_params.shape == x.shape
    assert vae.reconstruct(x).shape == x.shape
    assert vae.sample(1).shape == (1, 1, 32, 16)


@pytest.mark.parametrize(
    "latent",
    [
        vl.VectorQuantizer((4, 8, 8), 16),
        vl.FiniteScalarQuantizer((3, 8, 8), (4, 3, 3)),
        vl.PointLatent((2, 8, 8)),
        vl.GaussianLatent((5, 8, 8), vl.LearnedGaussian((5, 8, 8))),
    ],
)
def test_any_latent_fits(latent):
    vae = small(latent=latent)
    assert vae.latent is latent
    assert vae.encoder.num_heads == latent.num_heads
    assert vae.encoder.latent_shape == latent.latent_shape
    assert vae.reconstruct(torch.rand(2, *IMAGE)).shape == (2, *IMAGE)


def test_images_are_in_minus_one_to_one_inside():
    """White goes in as 1, and a last layer of zeros, grey inside, comes out as 0.5."""
    vae = small()
    seen = []
    vae.encoder.conv_in.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    vae.encode(torch.ones(1, *IMAGE))
    vae.encode(torch.zeros(1, *IMAGE))
    assert [values.unique().tolist() for values in seen] == [[1.0], [-1.0]]
    nn.init.zeros_(vae.decoder.conv_out.weight)
    nn.init.zeros_(vae.decoder.conv_out.bias)
    assert vae.decode(torch.randn(1, *vae.latent_shape)).unique().tolist() == [0.5]


def test_log_variances_are_cut_at_those_of_latent_diffusion():
    vae = small()
    for bias, limit in ((1e4, 20.0), (-1e4, -30.0)):
        nn.init.constant_(vae.encoder.conv_out.bias, bias)
        assert vae.encode(torch.rand(1, *IMAGE))[1].unique().tolist() == [limit]


def test_pixel_norm_divides_each_pixel_by_its_root_mean_square():
    norm = PixelNorm(5)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    expected = nn.functional.rms_norm(x.movedim(1, -1), (5,), norm.weight.double(), 1e-6).movedim(-1, 1)
    torch.testing.assert_close(norm.double()(x), expected)
    large = torch.full((1, 5, 1, 1), 3e4, dtype=torch.float16)  # whose square is infinite in float16
    torch.testing.assert_close(norm.half()(large)[0, :, 0, 0], norm.weight.detach())


def test_without_attention_and_with_pixel_norm_an_output_depends_on_a_bounded_part():
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    changed = x.clone()
    changed[..., :2, :2] = 1 - changed[..., :2, :2]
    for options, bounded in (({}, True), ({"norm": "group"}, False), ({"attention": True}, False)):
        vae = small((3, 64, 64), residual_blocks=1, **options).double().eval()
        with torch.no_grad():
            apart = vae.embed(x) != vae.embed(changed)
        assert apart[..., 0, 0].any()
        assert apart[..., -1, -1].any() != bounded


@pytest.mark.parametrize("norm", ["pixel", "group"])
def test_before_training_latents_and_images_follow_what_is_put_in(norm):
    """With torch's own weights, images of different latents deviate by 0.1."""
    torch.manual_seed(0)
    vae = vl.autoencoder_kl((3, 32, 32), width=16, norm=norm, groups=4).eval()
    colours = torch.rand(16, 3, 1, 1).expand(-1, -1, 32, 32)
    assert vae.embed(colours).std(0).mean() > 0.25
    assert vae.decode(torch.randn(16, *vae.latent_shape)).std(0).mean() > 0.2


def test_it_trains_and_comes_back_from_disk(tmp_path):
    vae = small(attention=True, quant_conv=True)
    vl.Elbo()(vae, torch.rand(2, *IMAGE)).loss.backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    vl.save(vae, tmp_path / "vae")
    again, x = vl.load(tmp_path / "vae"), torch.rand(2, *IMAGE)
    assert torch.equal(again.reconstruct(x), vae.reconstruct(x))


@pytest.mark.slow
def test_it_exports_within_the_tolerance(tmp_path):
    parity = vl.export_onnx(small(residual_blocks=1), tmp_path / "bundle")
    assert all(each.max_rel <= 1e-5 for part in ("encoder", "decoder") for each in parity[part].values())


@pytest.mark.slow
def test_a_network_of_any_size_exports_as_one_graph(tmp_path):
    vae = small(residual_blocks=1, norm="group", attention=True)
    vl.export_onnx(vae, tmp_path / "bundle", dynamic_size=True)
    x = torch.rand(1, 3, 24, 40)
    wider = small((3, 24, 40), residual_blocks=1, norm="group", attention=True)
    wider.load_state_dict(vae.state_dict())
    found = vl.runtime.OnnxVAE(tmp_path / "bundle").reconstruct(x.numpy())
    torch.testing.assert_close(torch.from_numpy(found), wider.reconstruct(x), rtol=0, atol=1e-5)


WRONG = [
    (lambda: small((3, 17, 16)), ValueError, r"`image_shape` must have .* multiples of 2.* got \(3, 17, 16\)"),
    (lambda: small(factor=3), ValueError, "`factor` must be one of 1, 2, 4, 8, 16, 32, got 3"),
    (lambda: small(norm="batch"), ValueError, "`norm` must be one of 'group', 'pixel', got 'batch'"),
    (lambda: small(norm="group", groups=3), ValueError, "`hidden_channels` must be multiples of the 3 groups .* got 8"),
    (lambda: small(channels=0), ValueError, "`channels` must be >= 1, got 0"),
    (lambda: small(width=10**5), ValueError, "A network may have 1.1e[+]09 weights"),
    (lambda: small(quant_conv=1), TypeError, "`quant_conv` must be True or False, got 1"),
    (lambda: small(channels=5, latent=vl.PointLatent((4, 8, 8))), ValueError, "`latent_shape` must be the same"),
    (lambda: small(latent=vl.PointLatent((4,))), ValueError, r"`latent_shape` must be the same for all parts"),
    (
        lambda: vl.ResidualEncoder(IMAGE, 4, hidden_channels=()),
        ValueError,
        r"`hidden_channels` must have an entry for each level, got \(\)",
    ),
    (
        lambda: vl.ResidualEncoder(IMAGE, 4, hidden_channels=(8,), groups=4, attention_levels=(1,)),
        ValueError,
        r"`attention_levels\[0\]` must be <= 0, got 1",
    ),
    (
        lambda: vl.ResidualDecoder(IMAGE, 4, hidden_channels=(8, 8), norm="spatial"),
        ValueError,
        "`hidden_channels` must be multiples of the 32 groups of norm='spatial', got 8",
    ),
    (
        lambda: vl.ResidualEncoder(IMAGE, 4, hidden_channels=(8,), groups=4, num_heads=3),
        ValueError,
        "`num_heads` must be one of 1, 2, got 3",
    ),
    (
        lambda: vl.networks.TinyEncoder(IMAGE, 4, blocks=()),
        ValueError,
        r"`blocks` must have an entry for each level, .* got \(\)",
    ),
    (
        lambda: vl.networks.TinyDecoder((3, 10, 16), 4, blocks=(1, 1, 1)),
        ValueError,
        r"`blocks` must .* got \(1, 1, 1\)",
    ),
    (
        lambda: vl.networks.TinyDecoder(IMAGE, 4, upsample="cubic"),
        ValueError,
        "`upsample` must be one of 'nearest', 'bilinear'",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), WRONG)
def test_wrong_arguments_are_named(call, error, match):
    with pytest.raises(error, match=match):
        call()
