"""A condition is one more input of the graphs, never a fixed one."""

import json

import numpy as np
import pytest
import torch
from exporting import run

import vaelib as vl
from vaelib.errors import ExportError
from vaelib.export import conversion, parts, precision
from vaelib.export.independence import check_independence
from vaelib.export.proof import compare
from vaelib.runtime import OnnxVAE

IMAGE = (1, 4, 4)
NAMES = ("cat", "dog", "owl")


def build(condition, latent_shape=(2,), **options):
    torch.manual_seed(0)
    vae = vl.conv_vae(
        IMAGE, latent_shape=latent_shape, hidden_channels=(4,), norm="none", condition=condition, **options
    )
    for parameter in vae.parameters():  # so that the condition is seen in every output
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return vae.eval()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    vae, directory = build(vl.Labels(3, names=NAMES)), tmp_path_factory.mktemp("labelled")
    return vae, directory, vl.export_onnx(vae, directory)


def test_each_image_has_its_own_label(labelled):
    vae, directory, _ = labelled
    x, labels, noise = torch.rand(7, *IMAGE), torch.tensor([2, 0, 1, 1, 0, 2, 0]), torch.randn(7, 2)
    view = vae.given(labels)
    with torch.no_grad():
        mu, logvar = view.encode(x)
        draw = view.draw(view.observe(x), noise=noise)
        images = view.decode_mean(draw)
    close = torch.testing.assert_close
    found = run(directory, "encoder", image=x, condition=labels)
    close(found["z"], mu)
    close(found["logvar"], logvar)
    assert (found["z"] - run(directory, "encoder", image=x, condition=labels.roll(1))["z"]).abs().amax() > 0.01
    close(run(directory, "decoder", z=draw.z, condition=labels)["mean"], images)
    found = run(directory, "vae", image=x, noise=noise, condition=labels)
    close(found["reconstruction"], images)
    close(found["distortion"], -vae.likelihood.log_prob(x, view.decode(draw)).detach())
    close(found["kl_groups"], draw.kl)


def test_the_runtime_gives_what_torch_gives(labelled):
    vae, directory, _ = labelled
    x, labels = torch.rand(40, *IMAGE), torch.arange(40) % 3
    opened = OnnxVAE(directory, threads=1).given(labels=labels.numpy())
    np.testing.assert_allclose(opened.reconstruct(x.numpy()), vae.reconstruct(x, condition=labels), atol=1e-6)
    owl = OnnxVAE(directory, threads=1).given(labels=2)
    np.testing.assert_allclose(owl.sample(5, seed=1), vae.sample(5, condition="owl", seed=1), atol=1e-6)


def test_the_manifest_and_the_card_say_what_the_condition_is(labelled):
    _, directory, _ = labelled
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["model"]["condition"] == {"kind": "labels", "num_classes": 3, "names": [*NAMES]}
    for part, inputs in {"encoder": ["image"], "decoder": ["z"], "vae": ["image", "noise"]}.items():
        assert list(manifest["graphs"][part]["inputs"]) == [*inputs, "condition"]
        assert manifest["graphs"][part]["inputs"]["condition"] == {"dtype": "int64", "shape": ["B"]}
    assert manifest["graphs"]["prior"] == {
        "file": None,
        "inputs": {"noise": {"dtype": "float32", "shape": ["B", 2]}},
        "outputs": {"z": {"dtype": "float32", "shape": ["B", 2]}},
    }
    card = (directory / "README.md").read_text()
    assert "| condition | one of 3 labels: 0 cat, 1 dog, 2 owl |" in card
    assert "model = model.given(labels=0)" in card
    assert (
        'new ort.Tensor("int64", new BigInt64Array(1), [1]);\nconst { mean } = await decoder.run({ z, condition });'
        in card
    )


def test_the_code_on_the_card_runs(labelled, monkeypatch):
    vae, directory, _ = labelled
    monkeypatch.chdir(directory)
    names = {"images": np.float32(np.random.default_rng(0).random((3, *IMAGE)))}
    for block in (directory / "README.md").read_text().split("```python\n")[1:]:
        exec(block.partition("```")[0], names)
    with torch.no_grad():
        expected = vae.given(0).decode_mean(torch.from_numpy(names["z"])).numpy()
    np.testing.assert_allclose(names["images"], expected, atol=1e-6)
    assert names["new"].shape == (16, *IMAGE)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: build(vl.Vector(3)), {"image": IMAGE, "noise": (2,), "condition": (3,)}),
        pytest.param(
            lambda: build(vl.Labels(3), (2, 2, 2)),
            {"image": IMAGE, "noise": (2, 2, 2), "condition": ()},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: build(vl.Labels(3), prior=vl.ConditionalGaussian((2,), 3)),
            {"image": IMAGE, "noise": (2,), "condition": ()},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: build(vl.Labels(3, dropout=0.2), latent=vl.PointLatent((2,))),
            {"image": IMAGE, "condition": ()},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["vector", "map", "prior", "point"],
)
def test_every_kind_of_condition_and_latent(make, inputs):
    graph = parts.graphs_of(make())["vae"]
    check_independence(graph)
    compare(conversion.to_bytes(graph, 18), graph)
    assert graph.inputs == inputs


class Comparing(torch.nn.Module):
    """A decoder that looks at the conditions of the other images."""

    image_shape, latent_shape, takes_condition = IMAGE, (2,), True

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(5, 16)

    def forward(self, z, embedding):
        return self.linear(torch.cat([z, embedding - embedding.mean(0)], 1)).unflatten(1, IMAGE)


def test_an_image_does_not_depend_on_the_conditions_of_others(tmp_path):
    vae = vl.VAE(build(vl.Labels(3)).encoder, Comparing(), condition=vl.Labels(3), latent_shape=(2,), image_shape=IMAGE)
    with pytest.raises(ExportError, match="same result in any batch, but this model's decoder does not: its `mean`"):
        vl.export_onnx(vae, tmp_path)


@pytest.mark.slow
def test_a_prior_with_a_condition_is_given_it(tmp_path):
    vae = build(vl.Labels(3), prior=vl.ConditionalGaussian((2,), 3))
    vl.export_onnx(vae, tmp_path)
    opened = OnnxVAE(tmp_path, threads=1)
    assert list(opened.contract["prior"].inputs) == ["noise", "condition"]
    np.testing.assert_allclose(
        opened.given(labels=1).sample(40, seed=2), vae.sample(40, condition=1, seed=2), atol=1e-6
    )
    card = (tmp_path / "README.md").read_text()
    code = card.split("```python\n")[2].partition("```")[0]
    exec(code.replace('InferenceSession("', f'InferenceSession("{tmp_path}/'), names := {})
    np.testing.assert_allclose(names["images"], vae.sample(16, condition=0, seed=0), atol=1e-6)
    script = card.split("```js\n")[1]
    assert script.index("const condition") < script.index("prior.onnx")
    assert "run({ noise, condition })" in script and "decoder.run({ z, condition })" in script


@pytest.mark.slow
def test_codes_and_their_prior_with_a_condition(tmp_path):
    prior = vl.AutoregressiveCodes(12, 4, 8, 1, 2, condition_size=3)
    vae = build(vl.Labels(3), (3, 2, 2), latent=vl.FiniteScalarQuantizer((3, 2, 2), (3, 2, 2), prior))
    vl.export_onnx(vae, tmp_path)
    opened = OnnxVAE(tmp_path, threads=1)
    assert list(opened.contract["next"].inputs) == ["codes", "position", "condition"]
    x = torch.rand(64, *IMAGE)
    for label in range(3):
        view, given = vae.given(label), opened.given(labels=label)
        with torch.no_grad():
            codes = view.encode(x)
        assert np.array_equal(given.encode_codes(x.numpy()), codes)
        np.testing.assert_allclose(given.sample(9, seed=2), view.sample(9, seed=2), atol=1e-6)


@pytest.mark.slow
def test_any_size_with_a_condition(tmp_path):
    vae = vl.conv_vae((1, 8, 12), latent_shape=(2, 4, 6), hidden_channels=(4,), norm="none", condition=vl.Labels(3))
    vl.export_onnx(vae, tmp_path, dynamic_size=True)
    images = np.random.default_rng(0).random((2, 1, 16, 4), np.float32)
    found = OnnxVAE(tmp_path, threads=1).given(labels=np.array([0, 2])).reconstruct(images)
    assert found.shape == (2, 1, 16, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_smaller_numbers_with_a_condition(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(
        precision, "images_per_second", lambda sessions, inputs: {name: 1.0 + (name == "small") for name in sessions}
    )
    vae = vl.conv_vae((1, 8, 8), 2, hidden_channels=(8, 8), norm="none", upsample="nearest", condition=vl.Labels(3))
    images = vl.data.shapes(128, image_size=8).batch(slice(None))
    vl.export_onnx(vae, tmp_path, precision=kind, calibration=(images, torch.arange(128) % 3))
    found = OnnxVAE(tmp_path, threads=1).given(labels=1).reconstruct(images[:40].numpy())
    np.testing.assert_allclose(found, vae.reconstruct(images[:40], condition=1), atol=0.02)


@pytest.mark.parametrize(
    ("calibration", "match"),
    [
        (
            torch.rand(64, *IMAGE),
            r"`calibration` must be \(images, condition\) for a model with a condition, got images",
        ),
        ((torch.rand(64, *IMAGE), [0, 1]), r"`calibration\[1\]` must have shape \(64\), got \(2,\)"),
        ((torch.rand(64, *IMAGE), [3] * 64), r"`condition` must be in \[0, 3\), the number of a class, got 3"),
    ],
)
def test_calibration_needs_the_condition(calibration, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        vl.export_onnx(build(vl.Labels(3)), tmp_path, precision="int8", calibration=calibration)
