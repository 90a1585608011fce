import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import vaelib as vl
from vaelib.runtime import OnnxVAE


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("bundle")
    vae = vl.conv_vae((1, 9, 7), 3, hidden_channels=(8,), norm="group")
    vl.export_onnx(vae, directory)
    return vae, directory


@pytest.fixture
def model(bundle):
    return OnnxVAE(bundle[1], threads=1)


@pytest.fixture
def copy(bundle, tmp_path):
    return Path(shutil.copytree(bundle[1], tmp_path / "copy"))


def test_it_does_what_the_torch_model_does(bundle, model):
    vae, _ = bundle
    x = torch.rand(4, 1, 9, 7)
    np.testing.assert_allclose(model.reconstruct(x.numpy()), vae.reconstruct(x).numpy(), atol=1e-5)
    z = torch.randn(4, 3)
    with torch.no_grad():
        pictures = vae.likelihood.mean(vae.eval().decode(z))
    np.testing.assert_allclose(model.decode(z.numpy()), pictures.numpy(), atol=1e-5)
    assert "OnnxVAE(" in repr(model)
    assert "image_shape=(1, 9, 7), latent_shape=(3,)" in repr(model)


def test_samples_follow_their_seed(model):
    assert model.sample(5, seed=1).shape == (5, 1, 9, 7)
    assert np.array_equal(model.sample(5, seed=1), model.sample(5, seed=1))
    assert not np.array_equal(model.sample(5, seed=1), model.sample(5, seed=2))
    assert not np.array_equal(model.sample(5), model.sample(5))
    assert np.array_equal(model.sample(2, seed=1), model.sample(5, seed=1)[:2])


def test_other_floats_and_memory_layouts_are_converted(model):
    x = np.random.default_rng(0).random((3, 1, 9, 7))
    expected = model.encode(x.astype(np.float32))
    for given in (x, x.astype(np.float32)[::-1][::-1], np.asfortranarray(x)):
        for got, want in zip(model.encode(given), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_an_empty_batch_is_empty(model):
    mu, logvar = model.encode(np.zeros((0, 1, 9, 7), np.float32))
    assert mu.shape == logvar.shape == (0, 3)
    assert model.decode(mu).shape == model.sample(0).shape == (0, 1, 9, 7)


def floats(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda m: m.encode(floats(2, 3, 9, 7)),
            ValueError,
            r"`images` must have shape \(B, 1, 9, 7\), got \(2, 3, 9, 7\)",
        ),
        (lambda m: m.encode(floats(1, 9, 7)), ValueError, r"`images` must have shape"),
        (
            lambda m: m.encode(floats(2, 1, 9, 7).astype(np.uint8)),
            TypeError,
            "got dtype uint8. Divide 8-bit images by 255",
        ),
        (lambda m: m.encode(floats(2, 1, 9, 7).astype(np.int64)), TypeError, "must be floating point, got dtype int64"),
        (lambda m: m.encode(torch.zeros(2, 1, 9, 7)), TypeError, "`images` must be a numpy array, got Tensor"),
        (lambda m: m.encode(np.full((2, 1, 9, 7), 255.0)), ValueError, r"values in \[0, 1\], got \[255, 255\]"),
        (lambda m: m.encode(np.full((2, 1, 9, 7), np.nan)), ValueError, r"got \[nan, nan\]"),
        (lambda m: m.decode(floats(2, 4)), ValueError, r"`z` must have shape \(B, 3\), got \(2, 4\)"),
        (lambda m: m.decode(np.full((2, 3), np.inf)), ValueError, "`z` must be finite"),
        (lambda m: m.reconstruct(np.full((2, 1, 9, 7), -1.0)), ValueError, r"`images` must have values in \[0, 1\]"),
        (lambda m: m.sample(-1), ValueError, "`num_samples` must be >= 0"),
        (lambda m: m.sample(1.5), TypeError, "`num_samples` must be an int"),
    ],
)
def test_wrong_inputs(model, call, error, match):
    with pytest.raises(error, match=match):
        call(model)


def test_wrong_arguments(bundle, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"`directory` must hold encoder.onnx and decoder.onnx; no .*encoder.onnx"
    ):
        OnnxVAE(tmp_path)
    with pytest.raises(ValueError, match=r"`providers` must be a list of names among .*, got \['NoProvider'\]"):
        OnnxVAE(bundle[1], providers=["NoProvider"])
    with pytest.raises(ValueError, match="`providers` must be a list of names among .*, got 'CPUExecutionProvider'"):
        OnnxVAE(bundle[1], providers="CPUExecutionProvider")
    with pytest.raises(ValueError, match="`threads` must be >= 1, got 0"):
        OnnxVAE(bundle[1], threads=0)


def test_torn_files(copy):
    content = (copy / "decoder.onnx").read_bytes()
    for length in (0, 10, len(content) // 2):
        (copy / "decoder.onnx").write_bytes(content[:length])
        with pytest.raises(vl.ModelFileError, match=r"decoder\.onnx"):
            OnnxVAE(copy)


def test_foreign_files(copy):
    proto = onnx.load(copy / "decoder.onnx")
    before = {entry.key: entry.value for entry in proto.metadata_props}

    def save(**changes):
        onnx.helper.set_model_props(proto, before | changes)
        onnx.save(proto, copy / "decoder.onnx")

    save(**{"vaelib.schema": "99"})
    with pytest.raises(vl.ModelFileError, match="has schema '99', known is '1'"):
        OnnxVAE(copy)
    save(**{"vaelib.latent_shape": "{"})
    with pytest.raises(vl.ModelFileError, match="was not exported by vaelib"):
        OnnxVAE(copy)
    save(**{"vaelib.prior": "VampPrior"})
    with pytest.raises(ValueError, match="`sample` needs the prior StandardNormal, the model has VampPrior"):
        OnnxVAE(copy).sample(1)
    del proto.metadata_props[:]
    onnx.save(proto, copy / "decoder.onnx")
    with pytest.raises(vl.ModelFileError, match="was not exported by vaelib"):
        OnnxVAE(copy)


def test_files_that_do_not_belong_together(copy):
    shutil.copy(copy / "decoder.onnx", copy / "encoder.onnx")
    with pytest.raises(vl.ModelFileError, match=r"encoder\.onnx must be the encoder, but is the decoder"):
        OnnxVAE(copy).encode(floats(1, 1, 9, 7))
    torch.manual_seed(5)
    vl.export_onnx(vl.conv_vae((1, 9, 7), 3, hidden_channels=(8,), norm="group"), copy / "other")
    shutil.copy(copy / "other" / "encoder.onnx", copy / "encoder.onnx")
    with pytest.raises(vl.ModelFileError, match=r"encoder\.onnx belongs to another model than .*decoder\.onnx"):
        OnnxVAE(copy).encode(floats(1, 1, 9, 7))


def test_it_works_where_there_is_no_torch(bundle):
    code = f"""
import sys
for name in ("torch", "torchvision", "accelerate", "safetensors", "rich", "typer", "onnx", "onnxscript"):
    sys.modules[name] = None
import numpy as np
from vaelib.runtime import OnnxVAE
import vaelib
model = vaelib.runtime.OnnxVAE({str(bundle[1])!r})
mu, logvar = model.encode(np.zeros((2, 1, 9, 7), np.float32))
assert model.decode(mu).shape == model.reconstruct(np.zeros((2, 1, 9, 7), np.float32)).shape == (2, 1, 9, 7)
assert model.sample(3, seed=0).shape == (3, 1, 9, 7)
print("no torch:", sys.modules["torch"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "no torch: None\n"


def test_a_missing_onnxruntime_is_named():
    code = "import sys; sys.modules['onnxruntime'] = None; import vaelib; vaelib.runtime.OnnxVAE('.')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "vaelib.runtime needs an optional dependency: pip install 'vaelib[onnx]'." in result.stderr
