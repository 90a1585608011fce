"""Graphs that take every size."""

import json

import onnxruntime
import pytest
import torch
from exporting import run, whole
from torch import nn

import vaelib as vl
from vaelib.errors import ExportError
from vaelib.export.differences import at_levels

OPTIONS = [
    {"norm": "batch", "upsample": "transpose", "likelihood": vl.DiscretizedLogistic()},
    {"norm": "layer", "upsample": "nearest", "activation": "gelu"},
    {"norm": "group", "upsample": "pixel_shuffle", "residual_blocks": 1, "likelihood": vl.ContinuousBernoulli()},
    {"norm": "batch", "kernel_size": 4, "upsample": "transpose"},
]


def build(size, **options):
    torch.manual_seed(0)
    latent = (2, size[0] // 4, size[1] // 4)
    return vl.conv_vae((1, *size), latent_shape=latent, hidden_channels=(8, 8), **options).eval()


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o['norm']}-{o['upsample']}")
def test_a_graph_for_every_size_is_the_model_built_for_that_size(options, tmp_path):
    trained = build((16, 12), **options)
    vl.export_onnx(trained, tmp_path, dynamic_size=True)
    for size in ((16, 12), (8, 8), (36, 20)):
        other = build(size, **options)
        other.load_state_dict(trained.state_dict())
        x, noise = at_levels(torch.rand(3, 1, *size)), torch.randn(3, *other.latent_shape)
        got = run(tmp_path, "vae", image=x, noise=noise)
        torch.testing.assert_close(got, whole(other, x, noise), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_multiple_and_the_free_axes_are_recorded(tmp_path):
    vae = build((16, 12))
    model = vl.AutoEncoder(vae.encoder, vae.decoder)
    before = vl.serialization.describe(model)
    vl.export_onnx(model, tmp_path, dynamic_size=True)
    assert vl.serialization.describe(model) == before
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["model"]["spatial_multiple"] == 4
    assert manifest["model"]["image_shape"] == [1, 16, 12]
    assert manifest["model"]["latent_shape"] == [2, 4, 3]
    image, latent = ["B", 1, "H", "W"], ["B", 2, "h", "w"]
    shapes = {
        "encoder": {"image": image, "z": latent},
        "decoder": {"z": latent, "mean": image, "recon_params": image},
        "vae": {"image": image, "reconstruction": image, "z": latent},
    }
    for part, names in shapes.items():
        graph = manifest["graphs"][part]
        assert {n: spec["shape"] for n, spec in {**graph["inputs"], **graph["outputs"]}.items()} == names
        session = onnxruntime.InferenceSession(tmp_path / f"{part}.onnx")
        values = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
        for name in names:
            assert [isinstance(axis, str) for axis in values[name]] == [True, False, True, True], name


class Fixed(nn.Module):
    """Convolutional, but for one size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 4, 4)
        self.places = nn.Parameter(torch.zeros(4, 4, 3))

    def forward(self, x):
        mu, logvar = (self.conv(x) + self.places).chunk(2, dim=1)
        return mu, logvar


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: vl.conv_vae((1, 8, 8), 3), r"needs a fully convolutional model .* got the vector \(3,\)"),
        (
            lambda: vl.conv_vae((1, 15, 12), latent_shape=(2, 4, 3), hidden_channels=(8, 8)),
            r"height and width are the same multiple .* got 15 x 12 and 4 x 3",
        ),
        (
            lambda: vl.conv_vae((1, 12, 12), latent_shape=(2, 2, 2), hidden_channels=(8, 8, 8)),
            r"images of \(18, 24\) give a latent map of \(3, 3\) and images of \(20, 20\)",
        ),
        (
            lambda: vl.VAE(Fixed(), build((16, 12)).decoder),
            r"this one fails at \(20, 20\): The size of tensor a",
        ),
    ],
    ids=["vector", "odd", "remainder", "fixed"],
)
def test_models_of_one_size_are_refused(make, match, tmp_path):
    with pytest.raises(ExportError, match=match):
        vl.export_onnx(make(), tmp_path / "bundle", dynamic_size=True)
    assert not list(tmp_path.iterdir())
