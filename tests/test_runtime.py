import os
import shutil
import subprocess
import sys
from pathlib import Path

import hand_made
import numpy as np
import pytest
import torch

from vaelib.runtime import OnnxVAE, machine
from vaelib.runtime.machine import Session


@pytest.fixture(scope="module")
def bundle(odd_bundle):
    return odd_bundle


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
        images = vae.likelihood.mean(vae.eval().decode(z))
    np.testing.assert_allclose(model.decode(z.numpy()), images.numpy(), atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(model.decode_params(z.numpy()), vae.decode(z).numpy(), atol=1e-5)
    assert np.array_equal(model.embed(x.numpy()), model.encode(x.numpy())[0])
    np.testing.assert_allclose(model.sample(5, seed=2), vae.sample(5, seed=2).numpy(), atol=1e-5)
    assert "OnnxVAE(" in repr(model)
    assert "image_shape=(1, 9, 7), latent_shape=(3,)" in repr(model)


def test_scores_are_the_elbo_in_nats(bundle, model):
    vae, _ = bundle
    x = torch.rand(6, 1, 9, 7)
    generator = np.random.default_rng(3)
    expected = torch.zeros(6)
    with torch.no_grad():
        mu, logvar = vae.eval().encode(x)
        for _ in range(2):
            z = mu + (0.5 * logvar).exp() * torch.from_numpy(generator.standard_normal((6, 3), dtype=np.float32))
            nats = vae.likelihood.log_prob(x, vae.decode(z)) - vae.prior.kl(mu, logvar, z).sum(1)
            expected += nats / 2
    found = model.score(x.numpy(), num_samples=2, seed=3)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert np.array_equal(found, model.score(x.numpy(), num_samples=2, seed=3))
    assert not np.array_equal(found, model.score(x.numpy(), num_samples=2, seed=4))
    assert model.score(np.zeros((0, 1, 9, 7), np.float32)).shape == (0,)


def test_interpolations_begin_and_end_where_they_should(model):
    a, b = (np.random.default_rng(seed).standard_normal((2, 3), dtype=np.float32) for seed in (0, 1))
    for spherical in (False, True):
        images = model.interpolate(a, b, 5, spherical=spherical)
        assert images.shape == (2, 5, 1, 9, 7)
        np.testing.assert_allclose(images[:, 0], model.decode(a), atol=1e-6)
        np.testing.assert_allclose(images[:, -1], model.decode(b), atol=1e-6)
    np.testing.assert_allclose(model.interpolate(a, b, 3)[:, 1], model.decode((a + b) / 2), atol=1e-6)
    right, up = np.float32([[1, 0, 0]]), np.float32([[0, 2, 0]])
    middle = np.float32([[0.5, 1, 0]]) * np.sqrt(2)  # half of each, at 45 degrees to both: sin(45) / sin(90) of both
    np.testing.assert_allclose(model.interpolate(right, up, 3, spherical=True)[:, 1], model.decode(middle), atol=1e-6)
    same = model.interpolate(a, a, 3, spherical=True)
    np.testing.assert_allclose(same[:, 1], model.decode(a), atol=1e-6)


def test_traversals_change_one_latent_at_a_time(model):
    z = np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32)
    images = model.traverse(z, [2, 0], [-1.0, 0.5, 3.0, 4.0])
    assert images.shape == (2, 2, 4, 1, 9, 7)
    changed = z.copy()
    changed[:, 0] = 3.0
    np.testing.assert_allclose(images[:, 1, 2], model.decode(changed), atol=1e-6)


def test_streams_are_lazy_and_answer_batch_by_batch(model):
    x = np.random.default_rng(0).random((7, 1, 9, 7), dtype=np.float32)
    asked = []

    def batches():
        for start in (0, 3, 4):
            asked.append(start)
            yield x[start : start + 3]

    stream = model.encode_stream(batches())
    assert asked == []
    mu, _ = next(stream)
    assert asked == [0]
    assert np.array_equal(mu, model.encode(x[:3])[0])
    assert len(list(stream)) == 2
    images = list(model.decode_stream([mu, mu[:1]]))
    assert [len(batch) for batch in images] == [3, 1]
    assert np.array_equal(images[0], model.decode(mu))


def test_an_autoencoder_has_codes(tmp_path):
    model = OnnxVAE(hand_made.autoencoder(tmp_path / "bundle"))
    x = np.random.default_rng(0).random((20, 1, 2, 2), dtype=np.float32)
    np.testing.assert_array_equal(model.encode(x), -x)
    np.testing.assert_array_equal(model.reconstruct(x), x)
    with pytest.raises(ValueError, match="The ELBO needs a VAE, the model is an AutoEncoder"):
        model.score(x)
    with pytest.raises(ValueError, match="has no prior that takes `noise`; the model's prior is none"):
        model.sample(1)
    with pytest.raises(ValueError, match="no prior that takes `noise`; the model's prior is none"):
        model.from_noise(floats(1, 2))


def test_other_heights_and_widths(tmp_path):
    """Those of the exporter are proved by ``tests/test_export_sizes.py``."""
    model = OnnxVAE(hand_made.free(tmp_path / "bundle"), threads=1)
    assert (model.spatial_multiple, model.image_shape, model.latent_shape) == (4, (3, 16, 12), (2, 4, 3))
    for (height, width), batch in (((16, 12), 3), ((8, 20), 40), ((32, 4), 1)):
        x = np.random.default_rng(0).random((batch, 3, height, width), dtype=np.float32)
        patches = x.reshape(batch, 3, height // 4, 4, width // 4, 4)
        mu = np.einsum("bchiwj,dcij->bdhw", patches, hand_made.FREE_WEIGHTS["patches"])[:, :2]
        bricks = np.einsum("bdhw,dcij->bchiwj", mu, hand_made.FREE_WEIGHTS["bricks"])
        np.testing.assert_allclose(model.encode(x)[0], mu, atol=1e-5)
        np.testing.assert_allclose(model.reconstruct(x), 1 / (1 + np.exp(-bricks.reshape(x.shape))), atol=1e-5)
        assert model.score(x).shape == (batch,)
        assert model.interpolate(mu, mu, 3).shape == (batch, 3, 3, height, width)
    assert model.sample(2, seed=0).shape == (2, 3, 16, 12)
    for call, match in (
        (lambda: model.encode(floats(1, 3, 16, 10)), "`images` must have a height and a width .* of 4, got 16 x 10"),
        (lambda: model.encode(floats(1, 1, 16, 12)), r"`images` must have shape \(B, 3, H, W\), got \(1, 1, 16, 12\)"),
        (lambda: model.decode(floats(1, 3, 4, 4)), r"`z` must have shape \(B, 2, h, w\), got \(1, 3, 4, 4\)"),
        (lambda: model.decode(floats(1, 2, 0, 4)), r"`z` must have a height and a width of at least 1, got \(1, 2, 0"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


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
    assert model.traverse(mu, [0, 1], [0.0, 1.0, 2.0]).shape == (0, 2, 3, 1, 9, 7)
    assert model.interpolate(mu, mu, 4).shape == (0, 4, 1, 9, 7)


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
        (lambda m: m.sample(1, seed=-1), ValueError, "`seed` must be >= 0"),
        (lambda m: m.decode_params(floats(2, 4)), ValueError, r"`z` must have shape \(B, 3\), got \(2, 4\)"),
        (lambda m: m.embed(floats(2, 3, 9, 7)), ValueError, r"`images` must have shape \(B, 1, 9, 7\)"),
        (lambda m: m.encode(np.full((40, 1, 9, 7), 2.0)), ValueError, r"values in \[0, 1\], got \[2, 2\]"),
        (lambda m: m.decode(np.full((40, 3), np.nan)), ValueError, "`z` must be finite"),
        (lambda m: m.decode(np.full((4000, 3), np.nan)), ValueError, "`z` must be finite"),
        (lambda m: m.score(floats(2, 1, 9, 7), num_samples=0), ValueError, "`num_samples` must be >= 1"),
        (
            lambda m: m.elbo_terms(floats(2, 1, 9, 7), floats(1, 3)),
            ValueError,
            r"`noise` must have shape \(2, 3\), got \(1, 3\)",
        ),
        (lambda m: m.elbo_terms(floats(1, 1, 9, 7), np.full((1, 3), np.inf)), ValueError, "`noise` must be finite"),
        (lambda m: m.interpolate(floats(2, 3), floats(2, 3), 1), ValueError, "`steps` must be >= 2, got 1"),
        (
            lambda m: m.interpolate(floats(2, 3), floats(1, 3), 3),
            ValueError,
            r"`a` and `b` must have the same shape, got \(2, 3\) and \(1, 3\)",
        ),
        (lambda m: m.traverse(floats(2, 3), [3], [0.0]), ValueError, "`dimensions` must be < 3, got 3"),
        (lambda m: m.traverse(floats(2, 3), [-1], [0.0]), ValueError, r"`dimensions\[0\]` must be >= 0"),
        (lambda m: m.traverse(floats(2, 3), [1], [[0.0]]), ValueError, r"`values` must have shape \(N\), got"),
        (lambda m: m.traverse(floats(2, 3), [1], [np.nan]), ValueError, "`z` must be finite"),
    ],
)
def test_wrong_inputs(model, call, error, match):
    with pytest.raises(error, match=match):
        call(model)


def test_numbers_at_the_edges_of_the_range_pass(model):
    for size in (1, 40):
        edges = np.full((size, 1, 9, 7), -0.0, np.float32)
        assert np.array_equal(model.encode(edges)[0], model.encode(np.abs(edges))[0])
    model.encode(np.ones((1, 1, 9, 7), np.float32))
    assert np.isfinite(model.decode(np.full((1, 3), -1e30))).all()
    for rounding in (np.float32(1.0000001), np.float32(-1e-7)):
        model.encode(np.full((1, 1, 9, 7), rounding))
        model.score(np.full((40, 1, 9, 7), rounding))
    for wrong in (1.001, -0.001):
        with pytest.raises(ValueError, match=r"`images` must have values in \[0, 1\], got"):
            model.encode(np.full((1, 1, 9, 7), np.float32(wrong)))


def test_wrong_arguments(bundle, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"`directory` must be a bundle of vaelib's; there is no .*manifest.json"
    ):
        OnnxVAE(tmp_path)
    for providers in (["NoProvider"], "CPUExecutionProvider", []):
        with pytest.raises(ValueError, match="`providers` must be a list of names among .*, got "):
            OnnxVAE(bundle[1], providers=providers)
    with pytest.raises(ValueError, match="`threads` must be >= 1, got 0"):
        OnnxVAE(bundle[1], threads=0)


def test_a_provider_that_does_not_load_is_an_error(bundle, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider", "CUDAExecutionProvider"]
    )
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(ValueError, match=r"`providers` must all load, but \['CUDAExecutionProvider'\] did not"),
    ):
        OnnxVAE(bundle[1], providers=["CUDAExecutionProvider"])


def test_other_providers_write_straight_into_the_results(bundle, monkeypatch):
    x = np.random.default_rng(0).random((70, 1, 9, 7), dtype=np.float32)
    expected = OnnxVAE(bundle[1], threads=1)
    model = OnnxVAE(bundle[1], threads=1)  # the CPU stands in for another
    model._graphs._machine.is_cpu = False
    filled = []
    monkeypatch.setattr(Session, "fill", lambda *arguments, of=Session.fill: filled.append(1) or of(*arguments))
    for size in (3, 70):
        filled.clear()
        assert np.array_equal(model.encode(x[:size])[0], expected.encode(x[:size])[0])
        assert filled


def test_providers_may_have_options(bundle):
    model = OnnxVAE(bundle[1], providers=[("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})])
    assert model._graphs._machine.is_cpu


def test_an_open_model_outlives_its_files(bundle, tmp_path):
    shutil.copytree(bundle[1], tmp_path / "bundle")
    model = OnnxVAE(tmp_path / "bundle", threads=2)
    z = np.zeros((40, *model.latent_shape), np.float32)
    shutil.rmtree(tmp_path / "bundle")
    assert model.decode(z[:5]).shape[0] == 5
    assert model.decode(z).shape[0] == 40


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


def test_libraries_of_cuda_are_loaded_before_a_provider_that_needs_them(monkeypatch, capfd):
    """They come as Python packages, and onnxruntime prints which are missing: on standard error, not on output."""
    loaded = []
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: loaded.append(1) or print("Failed to load libcublas"))
    machine.Machine(["CPUExecutionProvider"], 1)
    assert not loaded
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: names if loaded else names[1:])
    machine.Machine([("CUDAExecutionProvider", {"device_id": 0})], 1)
    assert loaded == [1]
    assert capfd.readouterr() == ("", "Failed to load libcublas\n")
