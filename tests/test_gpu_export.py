"""A model on a GPU is exported as on the CPU, and a bundle runs on the GPU."""

import copy

import numpy as np
import pytest
import torch

import vaelib as vl

# A warning of a GPU's is shown, and fails nothing.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

SMALL = {"hidden_channels": (4, 8), "norm": "batch"}


@pytest.fixture(autouse=True)
def _packages():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")


def trained(device):
    torch.manual_seed(0)
    model = vl.conv_vae((1, 16, 16), 4, **SMALL)
    vl.Trainer(max_epochs=1, batch_size=16).fit(model, vl.data.shapes(64, image_size=16).images, progress=False)
    return model.to(device)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def exported(device, tmp_path_factory):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    model, directory = trained(device), tmp_path_factory.mktemp("bundle") / "of the device"
    vl.export_onnx(model, directory)
    return model, directory


def test_the_bundle_is_that_of_the_same_model_on_the_cpu(device, exported, tmp_path):
    model, directory = exported
    vl.export_onnx(copy.deepcopy(model).cpu(), tmp_path / "bundle")
    assert contents(directory) == contents(tmp_path / "bundle")


def test_the_model_stays_where_it_is(device, exported):
    model, _ = exported
    assert {value.device.type for value in model.state_dict().values()} == {device.type}
    assert model.sample(2).device.type == device.type


def test_the_bundle_gives_what_the_model_gives_on_the_gpu(device, exported):
    model, directory = exported
    images = np.random.default_rng(0).random((20, 1, 16, 16), dtype=np.float32)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        expected = model.reconstruct(torch.from_numpy(images).to(device)).cpu().numpy()
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    np.testing.assert_allclose(vl.runtime.OnnxVAE(directory).reconstruct(images), expected, atol=1e-4)


@pytest.mark.slow
def test_fp16(device, exported, tmp_path):
    model, _ = exported
    vl.export_onnx(model, tmp_path / "half", precision="fp16")
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.slow
def test_int8_takes_images_of_the_gpu(device, exported, tmp_path, monkeypatch):
    """So small a model is not faster in int8, which is not the question here."""
    monkeypatch.setattr("vaelib.export.precision.images_per_second", lambda *_: {"small": 2.0, "exact": 1.0})
    images = vl.data.shapes(128, image_size=16).images.float().to(device) / 255
    vl.export_onnx(exported[0], tmp_path / "int8", precision="int8", calibration=images, max_loss=100.0)
    assert (tmp_path / "int8" / "vae.onnx").exists()


@pytest.fixture
def cuda_providers(cuda):
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime {onnxruntime.__version__} has no CUDAExecutionProvider: it needs onnxruntime-gpu")
    # Whole float32, and the first algorithm of cuDNN that fits instead of a search.
    return [("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}), "CPUExecutionProvider"]


@pytest.mark.parametrize("batch", [1, 20])
def test_onnxvae_on_cuda(exported, cuda_providers, batch):
    _, directory = exported
    images = np.random.default_rng(0).random((batch, 1, 16, 16), dtype=np.float32)
    there, here = vl.runtime.OnnxVAE(directory, providers=cuda_providers), vl.runtime.OnnxVAE(directory)
    for found, expected in zip(there.encode(images), here.encode(images), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(there.reconstruct(images), here.reconstruct(images), atol=1e-3)
    np.testing.assert_allclose(there.sample(3, seed=0), here.sample(3, seed=0), atol=1e-3)


def test_onnxvae_without_the_provider_is_an_error_that_lists_those_there_are(exported, device):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("the provider is there")
    with pytest.raises(ValueError, match="`providers` must be a list of names among"):
        vl.runtime.OnnxVAE(exported[1], providers=["CUDAExecutionProvider"])
