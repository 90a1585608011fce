"""float16 keeps nats in float32; int8 is kept only where it is measured to be worth it."""

import re

import onnx
import pytest
import torch
from exporting import run, whole
from torch import nn

import vaelib as vl
from vaelib.errors import ExportError
from vaelib.export import precision
from vaelib.export.parts import graphs_of

FAST = {"activation": "relu", "upsample": "nearest", "hidden_channels": (16, 32)}


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    images = vl.data.shapes(600, image_size=16).batch(slice(None))
    vae = vl.conv_vae((1, 16, 16), 4, **FAST)
    vl.Trainer(max_epochs=4, batch_size=50).fit(vae, images, progress=False)
    return vae.eval(), images


@pytest.mark.parametrize("kind", [vl.VAE, vl.AutoEncoder])
def test_networks_in_float16_give_float32(kind):
    parts = vl.ConvEncoder((1, 8, 8), 2, hidden_channels=(4,)), vl.ConvDecoder(2, (1, 8, 8), hidden_channels=(4,))
    for graph in list(graphs_of(kind(*parts).eval()).values())[:3]:
        inputs = [torch.rand(3, *shape) for shape in graph.inputs.values()]
        with torch.no_grad():
            answers = precision.halved(graph).module(*inputs)
            expected = graph.module(*inputs)
        answers, expected = (each if isinstance(each, tuple) else (each,) for each in (answers, expected))
        for got, wanted in zip(answers, expected, strict=True):
            assert got.dtype == torch.float32 and not torch.equal(got, wanted)
            torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic_size", [False, True])
def test_fp16(trained, tmp_path, dynamic_size):
    vae, images = trained
    if dynamic_size:
        vae = vl.conv_vae((1, 16, 16), latent_shape=(2, 4, 4), norm="group", **FAST).eval()
    vl.export_onnx(vae, tmp_path, precision="fp16", dynamic_size=dynamic_size)
    x, noise = images[:8], torch.randn(8, *vae.latent_shape)
    got, expected = run(tmp_path, "vae", image=x, noise=noise), whole(vae, x, noise)
    torch.testing.assert_close(got["z"], expected["z"], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(got["reconstruction"], expected["reconstruction"], rtol=0, atol=5e-3)
    torch.testing.assert_close(got["distortion"], expected["distortion"], rtol=1e-2, atol=0)
    assert not torch.equal(got["z"], expected["z"])
    graph = onnx.load(tmp_path / "vae.onnx").graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
    assert weights
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    nats = [node.output[0] for node in graph.node if node.op_type == "Min"]
    assert nats and all(types[name] == onnx.TensorProto.FLOAT for name in nats)


class Loud(nn.Module):
    """A decoder with a layer whose values are as large as ``peak``, and small again at its end."""

    def __init__(self, peak):
        super().__init__()
        self.up, self.down, self.peak = nn.Linear(2, 64), nn.Identity(), peak
        nn.init.zeros_(self.up.weight)
        nn.init.constant_(self.up.bias, peak)

    def forward(self, z):
        return self.down(self.up(z) / self.peak).view(-1, 1, 8, 8)


@pytest.mark.parametrize("calibration", [None, torch.rand(5, 1, 8, 8)])
def test_fp16_without_headroom_is_refused_by_the_name_of_the_layer(tmp_path, calibration):
    vae = vl.VAE(vl.ConvEncoder((1, 8, 8), 2, hidden_channels=(4,)), Loud(16_400.0), latent_shape=(2,))
    where = "random images" if calibration is None else "images of `calibration`"
    with pytest.raises(ExportError, match=rf"at most 16,376, a quarter .* but `decoder.up` gives 16,400 on {where}"):
        vl.export_onnx(vae, tmp_path, precision="fp16", calibration=calibration)
    assert not list(tmp_path.iterdir())
    vae.decoder.up.bias.data.fill_(float("nan"))
    with pytest.raises(ExportError, match=r"but `decoder.down` gives nan on"):
        vl.export_onnx(vae, tmp_path, precision="fp16", calibration=calibration)


def test_headroom_is_judged_on_the_images_given():
    """A bright image drives a layer that dark ones leave alone; what lies below a quarter of the range passes."""

    class Bright(vl.ConvEncoder):
        def forward(self, x):
            return super().forward(self.loud(x.mean((1, 2, 3), keepdim=True) * 16_376.0).clamp(0, 1) * x)

    encoder = Bright((1, 8, 8), 2, hidden_channels=(4,))
    encoder.loud = nn.Identity()
    vae = vl.VAE(encoder, vl.ConvDecoder(2, (1, 8, 8), hidden_channels=(4,))).eval()
    whole = graphs_of(vae)["vae"]
    for level in (0.5, 1.0):
        precision.check_headroom(whole, {"image": torch.full((9, 1, 8, 8), level)})
    encoder.loud = nn.Hardtanh(0, 1e9)
    encoder.loud.register_forward_hook(lambda module, inputs, output: 1.01 * output)
    with pytest.raises(ExportError, match="but `encoder.loud` gives 16,540 on images of `calibration`"):
        precision.check_headroom(whole, {"image": torch.cat([torch.zeros(8, 1, 8, 8), torch.ones(1, 1, 8, 8)])})


def quantized(monkeypatch, trained, directory, *, speed, **options):
    """With speeds that are given, since those of a test machine prove nothing."""
    ratios = {"exact": 1.0, "small": speed}
    monkeypatch.setattr(
        precision, "images_per_second", lambda sessions, inputs: {name: ratios[name] for name in sessions}
    )
    vae, images = trained
    vl.export_onnx(vae, directory, precision="int8", calibration=images, **options)


@pytest.mark.slow
def test_int8_that_is_worth_it(trained, tmp_path, monkeypatch):
    quantized(monkeypatch, trained, tmp_path, speed=1.5)
    vae, images = trained
    x, noise = images[-200:], torch.randn(200, 4)
    lost = (run(tmp_path, "vae", image=x, noise=noise)["distortion"] - whole(vae, x, noise)["distortion"]).mean().item()
    assert 0 < abs(lost) < 0.5
    card = (tmp_path / "README.md").read_text()
    (stated,) = re.findall(r"int8 costs (\S+) nats of ELBO per image", card)
    assert abs(float(stated) - lost) < 0.2
    for part in ("encoder", "decoder"):
        graph = onnx.load(tmp_path / f"{part}.onnx").graph
        int8 = [
            tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        ]
        layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "ConvTranspose")]
        assert len(int8) == len(layers) - 1  # all but the last
    size = sum(path.stat().st_size for path in tmp_path.glob("*.onnx"))
    vl.export_onnx(vae, tmp_path / "fp32")
    assert size < 0.8 * sum(path.stat().st_size for path in (tmp_path / "fp32").glob("*.onnx"))


@pytest.mark.slow
def test_int8_that_is_not_faster_is_refused(trained, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=r"it loses \S+ nats \(PSNR \d+\.\d dB\) and runs at: encoder 0.90 x, dec"):
        quantized(monkeypatch, trained, tmp_path / "bundle", speed=0.9)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_int8_that_loses_too_much_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_last_layers", lambda graph: [])
    with pytest.raises(ExportError, match=r"must lose at most 0 nats per image .* encoder 1.50 x, decoder 1.50 x"):
        quantized(monkeypatch, trained, tmp_path / "bundle", speed=1.5, max_loss=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "reduced"), [("fma avx2", True), ("avx512f avx512_vnni", False), ("avx_vnni", False), (None, True)]
)
def test_weights_have_seven_bits_where_products_saturate(flags, reduced, monkeypatch, tmp_path):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(precision, "Path", lambda path: tmp_path / "cpuinfo")
    assert precision._has_vnni() is not reduced
