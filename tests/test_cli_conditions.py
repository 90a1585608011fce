"""Labels and codes from the command line: train, resume, and what the other commands make of such a model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from writing import write_folder

import vaelib as vl
from vaelib.cli import main

SHORT = ("--epochs", "1", "--batch-size", "16", "--no-compile")
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 images of three classes, one of each grey value."""
    root = tmp_path_factory.mktemp("given")
    names = [f"{split}/{CLASSES[i % 3]}/{i}.png" for split in ("train", "test") for i in range(30)]
    return write_folder(root / "set", {name: 60 + 60 * (i % 3) for i, name in enumerate(names)})


@pytest.fixture(scope="module")
def run(folder):
    options = ("--image-size", "8", "--latent-dim", "2", "--condition", "labels")
    assert main(["train", "--data", str(folder), *SHORT, *options, "--out", str(folder.parent / "run"), "--json"]) == 0
    return folder.parent / "run"


def run_json(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def image_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_run_keeps_its_condition(run, capsys):
    record = json.loads((run / "run.json").read_text())
    assert record["condition"] == "labels"
    assert vl.load(run).condition.names == CLASSES
    assert main(["train", "--out", str(run), "--resume", "--epochs", "2"]) == 0
    assert len((run / "history.csv").read_text().splitlines()) == 3
    capsys.readouterr()
    assert main(["train", "--out", str(run), "--resume", "--condition", "factors"]) == 1
    assert "`condition` 'factors' needs the factors of all images" in capsys.readouterr().err
    assert main(["info", str(run)]) == 0
    assert "Labels" in capsys.readouterr().out


def test_samples_of_a_label_by_number_and_by_name(run, tmp_path):
    vae, files = vl.load(run), {}
    for name, given in (("number", ["1"]), ("name", ["dog"]), ("several", ["owl", "0"])):
        options = [word for value in given for word in ("--condition", value)]
        files[name] = tmp_path / f"{name}.png"
        assert main(["sample", str(run), "--num", "5", "--seed", "3", "--out", str(files[name]), *options]) == 0
    assert np.array_equal(image_of(files["number"]), image_of(files["name"]))
    rows = torch.tensor([2, 0, 2, 0, 2])
    images = vae.sample(5, condition=rows, generator=torch.Generator().manual_seed(3))
    vl.plots.save_grid(images, tmp_path / "expected.png", columns=2)
    assert np.array_equal(image_of(files["several"]), image_of(tmp_path / "expected.png"))


def test_samples_beyond_one_batch_keep_their_labels(run, tmp_path, monkeypatch):
    line = ["sample", str(run), "--num", "7", "--condition", "0", "--condition", "1", "--condition", "2", "--out"]
    assert main([*line, str(tmp_path / "one.png")]) == 0
    monkeypatch.setattr("vaelib.cli.images._BATCH", 4)
    assert main([*line, str(tmp_path / "two.png")]) == 0
    assert np.array_equal(image_of(tmp_path / "one.png"), image_of(tmp_path / "two.png"))


def test_reconstruct_and_encode_ones_own_images(run, folder, tmp_path, capsys):
    files = [str(folder / "test" / name) for name in ("cat/0.png", "dog/1.png")]
    given = ["--condition", "cat", "--condition", "1"]
    result = run_json(capsys, "reconstruct", run, *files, *given, "--out", tmp_path / "r.png")
    vae, images = vl.load(run), vl.data.read_images(files, image_size=8).float() / 255
    generator = torch.Generator().manual_seed(0)
    data = vl.data.ImageDataset(images, condition=torch.tensor([0, 1]))
    expected = vl.evaluation.elbo(vae, data, generator=generator)
    assert sum(row["kl"] for row in result["images"].values()) / 2 == pytest.approx(expected.kl.value, rel=1e-4)
    vl.plots.save_pairs(images, vae.reconstruct(images, condition=["cat", "dog"]), tmp_path / "expected.png")
    assert np.array_equal(image_of(tmp_path / "r.png"), image_of(tmp_path / "expected.png"))
    assert main(["encode", str(run), *files, *given, "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as arrays, torch.no_grad():
        mu, _ = vae.eval().encode(images, condition=torch.tensor([0, 1]))
        np.testing.assert_allclose(arrays["mu"], mu.numpy(), atol=1e-5)


def test_a_data_set_brings_its_labels(run, tmp_path, capsys):
    assert main(["encode", str(run), "--out", str(tmp_path / "e.npz")]) == 0
    test = vl.data.load(json.loads((run / "run.json").read_text())["data"], "test", image_size=8, condition="labels")
    expected, _ = vl.evaluation.encode(vl.load(run), test)
    with np.load(tmp_path / "e.npz") as arrays:
        np.testing.assert_allclose(arrays["mu"], expected.numpy(), atol=1e-5)
        assert arrays["class_names"].tolist() == list(CLASSES)


@pytest.mark.filterwarnings("ignore:.*is too small")
def test_evaluate_names_what_it_measures(run, capsys):
    result = run_json(capsys, "evaluate", run, "--samples", "20")
    assert result["quantity"] == "log p(x|c)" and "are of log p(x|c)" in result["note"]
    vae, test = vl.load(run), vl.data.load(run.parent / "set", "test", image_size=8, condition="labels")
    each = [vl.evaluation.log_likelihood(vae.given(c), test, num_samples=200, progress=False) for c in range(3)]
    marginal = torch.stack([found.per_image for found in each]).logsumexp(0).mean().item() - np.log(3)
    assert result["log_likelihood"]["value"] == pytest.approx(marginal, abs=1)
    given = vl.evaluation.log_likelihood(vae, test, num_samples=200, progress=False).log_likelihood.value
    assert result["log_likelihood_given_condition"]["value"] == pytest.approx(given, abs=1)
    assert main(["evaluate", str(run)]) == 0
    assert "and not of log p(x)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.filterwarnings("ignore:.*is too small")
def test_evaluate_says_what_the_numbers_of_codes_and_labels_are_not(folder, run, tmp_path, capsys):
    latent = vl.FiniteScalarQuantizer((2, 2, 2), (5, 3))
    vl.save(vl.conv_vae((1, 8, 8), latent=latent, hidden_channels=(4, 8)), tmp_path / "codes")
    line = ("evaluate", tmp_path / "codes", "--data", folder, "--samples", "9", "--compare", run)
    result = run_json(capsys, *line)
    assert result["note"].count("q(z|x) is deterministic: one draw an image") == 1
    assert result["compared"] == ["log p(x)", "log p(x|c)"]
    assert "The difference is that of log p(x) to log p(x|c) of the other model." in result["note"]
    assert "difference_of_log_likelihood_given_condition" in result
    result = run_json(capsys, "evaluate", run, "--samples", "9", "--compare", tmp_path / "codes")
    assert "q(z|x) of the other model is deterministic" in result["note"]


def test_int8_is_calibrated_with_the_labels_of_its_images(run, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("vaelib.export.export_onnx", lambda *_, **options: given.update(options) or {})
    monkeypatch.setattr("vaelib.export.lint.lint", lambda graphs: [])
    assert main(["export", str(run), "--precision", "int8", "--out", str(tmp_path), "--json"]) == 0
    train = vl.data.load(run.parent / "set", "train", image_size=8)
    images, labels = given["calibration"]
    assert torch.equal(images, train.batch(slice(None))) and torch.equal(labels, train.labels)
    line = ["export", str(run), "--precision", "fp16", "--out", str(tmp_path), "--json"]
    assert main(line) == 0 and given["calibration"] is None
    assert main([*line, "--data", str(run.parent / "set")]) == 0
    assert torch.equal(given["calibration"][0], images)


def test_a_vector_of_factors(tmp_path, capsys):
    line = (
        "train --data shapes --image-size 8 --latent-dim 2 --condition factors --batch-size 512 --epochs 1 --no-compile"
    )
    run_json(capsys, *line.split(), "--out", tmp_path / "run")
    assert vl.load(tmp_path / "run").condition.size == 5
    line = ["sample", str(tmp_path / "run"), "--num", "2", "--out", str(tmp_path / "s.png"), "--condition"]
    assert main([*line, "0,1,0.5,0.5,0.5"]) == 0
    for wrong, message in (("0,1", "`condition` must have shape (B, 5)"), ("a,b", "must be numbers such as 0.2,1")):
        assert main([*line, wrong]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("latent", "options", "kind"),
    [
        ("vq", ["--num-codes", "8"], vl.VectorQuantizer),
        ("rvq", ["--num-codes", "8"], vl.ResidualQuantizer),
        ("fsq", ["--levels", "3,4"], vl.FiniteScalarQuantizer),
        ("bsq", ["--num-codes", "16"], vl.BinarySphericalQuantizer),
    ],
)
def test_codes(folder, tmp_path, capsys, latent, options, kind):
    out = tmp_path / "run"
    given = ["--condition", "labels"] if latent == "vq" else []
    line = ["train", "--data", folder, *SHORT, "--image-size", "8", "--latent", latent, *options, *given]
    run_json(capsys, *line, "--out", out)
    vae = vl.load(out)
    assert type(vae.latent) is kind and vae.latent_shape[1:] == (2, 2)
    assert vae.latent.num_codes == {"fsq": 12, "bsq": 16}.get(latent, 8)
    if given:
        assert main(["train", "--out", str(out), "--resume", "--epochs", "2"]) == 0
    assert main(["encode", str(out), "--out", str(tmp_path / "e.npz"), "--plot"]) == 0
    with np.load(tmp_path / "e.npz") as arrays:
        codes = torch.from_numpy(arrays["codes"])
    test = vl.data.load(folder, "test", image_size=8, condition="labels")
    assert codes.dtype == torch.int64 and torch.equal(codes, vl.evaluation.encode(vl.load(out), test))
    line = ["sample", str(out), "--num", "4", "--out", str(tmp_path / "s.png")]
    assert main([*line, *(["--condition", "owl"] if given else [])]) == 0
    assert "The codes were drawn uniformly, as no prior was fitted" in capsys.readouterr().out
    result = run_json(capsys, "evaluate", out, "--samples", "9")
    assert 1 <= result["perplexity"] <= result["num_codes"] == vae.latent.num_codes
    assert "codes" in result["latents"] and result["num_samples"] == 1
