"""Models on images of any size, tile by tile."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vaelib as vl
from vaelib.tiling import receptive_field
from vaelib.tiling.passes import free_axes, sections_of, sharing_copy


def build(**options):
    torch.manual_seed(0)
    return vl.conv_vae(
        options.pop("image_shape", (1, 16, 16)), **{"latent_shape": (2, 4, 4), "hidden_channels": (4, 4), **options}
    ).eval()


class Takes(nn.Module):
    """A network that takes the condition by itself."""

    takes_condition = True

    def __init__(self, inner):
        super().__init__()
        self.inner, self.scale = inner, nn.Linear(3, 1)

    def forward(self, x, embedding):
        return self.inner(x * self.scale(embedding)[:, :, None, None])


def conditional():
    vae = build()
    return vl.VAE(
        Takes(vae.encoder),
        Takes(vae.decoder),
        condition=vl.Labels(3),
        image_shape=(1, 16, 16),
        latent_shape=(2, 4, 4),
    ).eval()


MODELS = {
    "transpose": (build, {}),
    "nearest": (lambda: build(upsample="nearest", residual_blocks=1, kernel_size=4), {}),
    "shuffle": (lambda: build(upsample="pixel_shuffle", likelihood=vl.DiscretizedLogistic()), {}),
    "planes": (lambda: build(condition=vl.Labels(3)), {"condition": [2, 0]}),
    "condition taken": (conditional, {"condition": [2, 0]}),
    "codes": (lambda: build(latent=vl.ResidualQuantizer((2, 4, 4), 8, 2)), {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_tiles_are_the_whole_image(name):
    make, given = MODELS[name]
    model = make()
    x = torch.rand(2, 1, 72, 45)
    whole, tiled = (model.reconstruct(x, tile=tile, **given) for tile in (80, 48))
    assert whole.shape == tiled.shape == x.shape
    assert (whole - tiled).abs().max() <= 1e-6
    x = x[..., :44]
    for verb in (model.embed, model.encode):
        for one, other in zip(verb(x, tile=80, **given), verb(x, tile=48, **given), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    if "condition" not in given:
        model.scaling = vl.LatentScaling(1.0, 2.0)
        images = model.decode_mean(model.embed(x, scaled=True, tile=48), scaled=True, tile=48)
        torch.testing.assert_close(images, model.reconstruct(x, tile=80))
    own = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(model.reconstruct(own, tile=64, **given), model.reconstruct(own, **given))


def test_an_image_of_no_whole_number_of_cells_is_reflected_and_said_so():
    vae = build()
    x = torch.rand(1, 1, 18, 31)
    with pytest.warns(
        UserWarning, match="`x` of 18 x 31 is reflected at the bottom and on the right to 20 x 32, multip"
    ):
        z = vae.embed(x, tile=64)
    reflected = nn.functional.pad(x, (0, 1, 0, 2), "reflect")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(z, vae.embed(reflected, tile=64))
        assert torch.equal(vae.reconstruct(x, tile=64), vae.reconstruct(reflected, tile=64)[..., :18, :31])


def test_networks_without_a_bound_are_blended_if_that_is_asked_for():
    vae = build(norm="group")
    x = torch.rand(1, 1, 64, 48)
    whole, blended = (vae.reconstruct(x, tile=tile, blend=True) for tile in (64, 32))
    assert 1e-4 < (whole - blended).abs().max() < 0.2
    assert not torch.equal(whole, blended)
    constant = torch.full((1, 2, 16, 12), 0.5)
    flat = vl.VAE(
        vae.encoder,
        nn.Sequential(nn.Conv2d(2, 1, 1), nn.GroupNorm(1, 1), nn.Upsample(scale_factor=4)),
        image_shape=(1, 16, 16),
        latent_shape=(2, 4, 4),
    )
    torch.testing.assert_close(*(flat.decode_mean(constant, tile=tile, blend=True) for tile in (64, 16)))


def test_tiles_leave_the_model_alone_and_gradients_reach_its_weights():
    vae = build()
    before = vl.serialization.describe(vae)
    x = torch.rand(1, 1, 32, 32)
    vae.embed(x, tile=24).sum().backward()
    tiled = vae.encoder.head.weight.grad.clone()
    vae.zero_grad()
    vae.embed(x, tile=32).sum().backward()
    torch.testing.assert_close(tiled, vae.encoder.head.weight.grad)
    vae.train()
    with pytest.raises(
        ValueError, match=r"in the encoder `stages\.1` \(BatchNorm2d\) takes the statistics of the batch"
    ):
        vae.embed(x, tile=24)
    assert torch.equal(vae.reconstruct(x, tile=24), vae.eval().reconstruct(x, tile=24))
    assert vl.serialization.describe(vae) == before


def test_another_layer_is_another_receptive_field():
    vae = build()
    x = torch.rand(1, 1, 64, 64)
    vae.reconstruct(x, tile=40)
    vae.decoder.stages.append(nn.GroupNorm(1, 1))
    with pytest.raises(ValueError, match="in the decoder `stages.6` .GroupNorm. takes mean and variance"):
        vae.reconstruct(x, tile=40)


def test_a_network_is_traced_only_where_it_is_cut_and_once_for_its_state(monkeypatch):
    traces, export = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *given, **named: traces.append(given) or export(*given, **named))

    def count(call, *given):
        traces.clear()
        call(*given, tile=40)
        return len(traces)

    vae = build(hidden_channels=(5, 3))
    assert count(build(norm="group").reconstruct, X[..., :40, :40]) == 0
    assert [count(vae.reconstruct, X) for _ in range(2)] == [6, 0]  # at the usual size, the whole's and the tile's
    assert count(vae.reconstruct, X.expand(3, 1, 64, 64)) == 0
    assert count(vae.embed, X[..., :60, :60]) == 2
    vae.encoder.stages[0].padding_mode = "reflect"
    assert count(vae.reconstruct, X) == 3
    vae.decoder.stages[1].register_forward_hook(lambda *_: None)  # which may do anything
    assert [count(vae.reconstruct, X) for _ in range(2)] == [3, 3]


X = torch.rand(1, 1, 64, 64)


class Changing(nn.Module):
    """A layer whose code reads the size of the map, or an attribute that may change."""

    def __init__(self, act):
        super().__init__()
        self.act, self.looks_at_all = act, False

    def forward(self, x):
        return self.act(x) - (x.mean((2, 3), keepdim=True) if self.looks_at_all else 0)


def changing(act):
    vae = build()
    vae.decoder.stages.insert(0, Changing(act))
    return vae


SIZED = {
    "gain": lambda h: h * (h.shape[-1] / 4),
    "offset": lambda h: h + math.log(h.shape[2] * h.shape[3]),
    "branch": lambda h: F.avg_pool2d(h, 3, 1, 1) if h.shape[2] > 8 else h,
    "kernel": lambda h: F.avg_pool2d(h, 3 if h.shape[2] > 8 else 5, 1, 1 if h.shape[2] > 8 else 2),
    "ones": lambda h: h * torch.ones(h.shape[2]).sum() / 16,
    "number": lambda h: h * torch.tensor(h.shape[2] / 16),
    "table": lambda h: h * F.interpolate(torch.ones(1, 1, 2, 2), size=h.shape[2:]).sum() / 256,
    "half": lambda h: torch.cat([h[:, :, : h.shape[2] // 2], h[:, :, h.shape[2] // 2 :] * 2], 2),
}


@pytest.mark.parametrize("name", SIZED)
def test_a_layer_that_reads_the_size_of_the_map_is_refused(name):
    with pytest.raises(ValueError, match=r"in the decoder `stages\.0` \(Changing\)"):
        changing(SIZED[name]).reconstruct(X, tile=24)


def test_the_receptive_field_is_that_of_the_layers_as_they_are():
    vae = changing(lambda h: h)
    vae.reconstruct(X, tile=40)
    vae.decoder.stages[0].looks_at_all = True
    with pytest.raises(ValueError, match=r"in the decoder `stages\.0` \(Changing\) "):
        vae.reconstruct(X, tile=40)


REFUSED = [
    (
        lambda: build(latent=vl.GaussianLatent((2, 4, 4), posterior=vl.FlowPosterior((2, 4, 4)))).embed(X, tile=64),
        ValueError,
        "`tile` must be None for a latent with a flow as its posterior.*FlowPosterior",
    ),
    (lambda: build().embed(X, tile=0), ValueError, "`tile` must be >= 1, got 0"),
    (lambda: build().embed(X, tile=1.5), TypeError, "`tile` must be an int"),
    (lambda: build().embed(X, blend=True), ValueError, "`blend` must be False where `tile` is None"),
    (lambda: build().embed(X, tile=64, blend=1), TypeError, "`blend` must be"),
    (
        lambda: build().embed(X, tile=4),
        ValueError,
        r"`tile` must be at least 8 for this network, whose .* 1 \+ 0 steps",
    ),
    (
        lambda: build(norm="layer").embed(X, tile=16, blend=False),
        ValueError,
        r"in the encoder `stages\.1` \(GroupNorm\)",
    ),
    (lambda: build(norm="layer").embed(X, tile=12, blend=True), ValueError, "`tile` must be at least 16 for this netw"),
    (lambda: build().embed(X[0], tile=64), ValueError, r"`x` must have shape \(B, 1, H, W\)"),
    (lambda: build().embed(X.expand(1, 3, 64, 64), tile=64), ValueError, r"`x` must have shape \(B, 1, H, W\)"),
    (lambda: build().embed(X[:, :, :0], tile=64), ValueError, "`x` must have a height and a width of at least 1"),
    (lambda: build().embed(X.numpy(), tile=64), TypeError, "`x` must be a"),
    (lambda: build().reconstruct(X + 1, tile=64), ValueError, r"`x` must .*\[0, 1\]"),
    (lambda: build().decode_mean(X, tile=64), ValueError, r"`z` must have shape \(B, 2, H, W\)"),
    (
        lambda: build(latent_shape=None, latent_dim=3).embed(X, tile=64),
        ValueError,
        "`tile` must be None for a model who",
    ),
    (
        lambda: build(image_shape=(1, 15, 16)).embed(X, tile=64),
        ValueError,
        "`tile` must be None for a model whose late",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), REFUSED, ids=range(len(REFUSED)))
def test_arguments_that_are_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.slow
def test_a_deep_network_is_tiled_in_two_sections_that_look_less_far():
    torch.manual_seed(0)
    vae = vl.autoencoder_kl((1, 256, 160), factor=8, channels=2, width=4, residual_blocks=1).double().eval()
    examples = {"encoder": torch.zeros(1, 1, 384, 640), "decoder": torch.zeros(1, 2, 48, 80)}
    sized = sharing_copy(vae)
    free_axes(sized)
    for name, example in examples.items():
        network, example = getattr(sized, name), example.double()
        first, second = (section.found for section in sections_of(network, [example]))
        whole = receptive_field(network, [example])
        assert first.rows.step * second.rows.step * whole.rows.cells == whole.rows.step * second.rows.cells
        assert max(first.rows.low, second.rows.low) < whole.rows.low <= first.rows.low + second.rows.low
    x = torch.rand(1, 1, 256, 160, dtype=torch.float64)
    with torch.no_grad():
        z = vae.embed(x)
        assert torch.allclose(vae.embed(x, tile=104), z, rtol=0, atol=1e-12)
        assert torch.allclose(vae.decode_mean(z, tile=104), vae.decode_mean(z), rtol=0, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"`tile` must be at least 88 for this network, whose .* 5 \+ 5 steps of 8 pix"
    ):
        vae.decode_mean(z, tile=80)
    vae.decoder.conv_out = nn.Sequential(vae.decoder.conv_out, Changing(lambda h: h * h.shape[-1]))
    with pytest.raises(ValueError, match=r"in the decoder `conv_out\.1` \(Changing\) has other numbers"):
        vae.decode_mean(z, tile=104)


def test_networks_without_a_small_map_have_no_sections():
    deep = {"factor": 8, "width": 32}
    for options, count in (({"factor": 4}, 0), (deep, 2), ({**deep, "norm": "group"}, 2)):
        vae = vl.autoencoder_kl((1, 32, 32), **options)
        assert len(vae.encoder.sections()) == len(vae.decoder.sections()) == count
    for norm, count in (("spatial", 0), ("pixel", 1)):
        decoder = vl.ResidualDecoder((1, 32, 32), 2, hidden_channels=(32,) * 3, norm=norm, attention=True)
        assert len(sections_of(decoder, [torch.zeros(1, 2, 48, 80)])) == 1
        assert len(decoder.sections()) == 2 * count
