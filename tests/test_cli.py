import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.main import get_command

import vaelib as vl
from vaelib.cli import app, main
from vaelib.cli.common import reading_of_run, reading_options
from vaelib.cli.making import make_trainer

SHORT = ("--epochs", "2", "--batch-size", "16", "--latent-dim", "4", "--seed", "3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of `vaelib train` on an array of its own."""
    root = tmp_path_factory.mktemp("cli")
    data = vl.data.shapes(88, image_size=12)  # 72 to train on, 8 to validate on, 8 to test on
    np.savez(root / "data.npz", images=data.images.numpy(), labels=data.labels.numpy())
    arguments = ["train", "--data", str(root / "data.npz"), *SHORT]
    assert main([*arguments, "--out", str(root / "run"), "--json"]) == 0
    return root / "run"


def run_json(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_train_leaves_a_whole_run(run):
    assert sorted(os.listdir(run)) == [
        ".vaelib-lock",
        ".vaelib-outputs.json",
        "best",
        "checkpoints",
        "curves.png",
        "history.csv",
        "last",
        "reconstructions",
        "run.json",
        "samples",
        "traversals",
    ]
    record = json.loads((run / "run.json").read_text())
    assert record["seed"] == 3
    assert record["image_size"] == [12, 12]
    assert os.path.isabs(record["data"])
    assert vl.load(run).latent_shape == (4,)


def test_train_is_reproducible_and_says_what_comes_next(run, tmp_path, capsys):
    record = json.loads((run / "run.json").read_text())
    arguments = ["train", "--data", record["data"], *SHORT]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"Next: vaelib evaluate {tmp_path}" in printed
    assert "Bernoulli on grey values: these nats are a relaxation" in printed
    for name, tensor in vl.load(run / "last").state_dict().items():
        assert torch.equal(tensor, vl.load(tmp_path / "last").state_dict()[name])


@pytest.mark.parametrize(
    ("options", "check"),
    [
        (["--likelihood", "gaussian"], lambda m: isinstance(m.likelihood, vl.Gaussian)),
        (["--likelihood", "continuous_bernoulli"], lambda m: isinstance(m.likelihood, vl.ContinuousBernoulli)),
        (["--likelihood", "laplace"], lambda m: isinstance(m.likelihood, vl.Laplace)),
        (["--likelihood", "discretized_logistic"], lambda m: isinstance(m.likelihood, vl.DiscretizedLogistic)),
        (["--binarize", "dynamic", "--beta", "4", "--kl-warmup", "3"], lambda m: m.image_shape == (1, 12, 12)),
        (["--preset", "article"], lambda m: m.image_shape == (1, 32, 32)),
        (["--image-size", "10", "--learning-rate", "1e-3"], lambda m: m.image_shape == (1, 10, 10)),
        (["--image-size", "10,14"], lambda m: m.image_shape == (1, 10, 14)),
        (
            ["--lr-schedule", "one_cycle", "--flip", "--ema", "0.9", "--patience", "3", "--clip-norm", "5"],
            lambda m: m.image_shape == (1, 12, 12),
        ),
        (
            ["--accumulate", "2", "--precision", "bf16", "--no-compile", "--checkpoint-every", "1", "--keep-last", "1"],
            lambda m: next(m.parameters()).dtype == torch.float32,
        ),
    ],
)
def test_options_of_train(run, tmp_path, capsys, options, check):
    data = json.loads((run / "run.json").read_text())["data"]
    result = run_json(capsys, "train", "--data", data, "--epochs", "1", "--out", tmp_path / "run", *options)
    assert check(vl.load(tmp_path / "run"))
    assert set(result["val"]) == {"loss", "reconstruction", "kl"}


@pytest.mark.parametrize(
    ("options", "latent"),
    [([], vl.GaussianLatent), (["--latent", "fsq", "--levels", "3,3"], vl.FiniteScalarQuantizer)],
)
def test_train_a_first_stage_with_a_discriminator(run, tmp_path, capsys, options, latent):
    data = json.loads((run / "run.json").read_text())["data"]
    small = ["--preset", "autoencoder_kl", "--factor", "4", "--width", "2", "--adversarial", *options]
    result = run_json(capsys, "train", "--data", data, "--epochs", "1", "--out", tmp_path / "run", *small)
    model = vl.load(tmp_path / "run")
    assert isinstance(model.latent, latent) and model.latent_shape[1:] == (3, 3)
    assert {"perceptual", "adversarial", "weight", "discriminator"} < set(result["val"])


def test_the_help_of_train_says_the_rates_of_the_presets(capsys):
    """`--learning-rate` and what makes the trainer are in two modules."""
    options = {"adversarial": False, "beta": 1.0, "kl_warmup": 0, "checkpoint_every": None, "keep_last": 2}
    trained = {"batch_size": 8, "epochs": 1, "accumulate": 1, "sync_batch_norm": False, "seed": 0, "out": None}
    none = ("learning_rate", "lr_schedule", "ema", "patience", "tracker", "clip_norm", "precision", "compile")
    rates = [
        make_trainer({**options, **trained, **dict.fromkeys(none), "preset": preset}, (3, 16, 16)).learning_rate
        for preset in ("conv", "autoencoder_kl", "article")
    ]
    assert rates == [5e-3, 3e-4, 1e-3]
    (said,) = (o.help for o in get_command(app).commands["train"].params if o.name == "learning_rate")
    assert said == "Peak learning rate; if not given, 5e-3, for preset autoencoder_kl 3e-4, for article 1e-3."


def test_evaluate(run, capsys):
    result = run_json(capsys, "evaluate", run)
    assert result["num_images"] == 8
    assert result["elbo"]["value"] == pytest.approx(-(result["reconstruction"]["value"] + result["kl"]["value"]))
    assert result["kl"]["value"] > 0
    assert "latents are used" in result["latents"] or "Collapsed" in result["latents"]
    assert result == run_json(capsys, "evaluate", run)
    tighter = run_json(capsys, "evaluate", run, "--samples", "100")
    assert tighter["log_likelihood"]["value"] > result["elbo"]["value"]
    assert tighter["bits_per_dim"] == result["bits_per_dim"]
    assert result["rate_bits"]["value"] == pytest.approx(result["kl"]["value"] / math.log(2))
    assert tighter["log_likelihood_bits_per_dim"]["value"] < result["bits_per_dim"]["value"]
    assert tighter["num_samples"] > tighter["effective_samples"] >= 1
    low, median, high = tighter["effective_quantiles"]
    assert 1 <= low <= median == tighter["effective_samples"] <= high <= 100
    assert 0 < tighter["monte_carlo_error"] < tighter["log_likelihood"]["standard_error"]
    assert tighter["bias"] < 0
    assert "relaxation" in result["note"]  # grey images under a Bernoulli
    assert run_json(capsys, "evaluate", run, "--data", "shapes")["num_images"] == 2000
    paired = run_json(capsys, "evaluate", run, "--compare", run / "last")
    assert paired["difference_of_elbo"]["value"] == pytest.approx(0, abs=5)  # other draws of the same model
    assert paired["difference_of_elbo"]["standard_error"] < result["elbo"]["standard_error"]
    assert main(["evaluate", str(run), "--samples", "100"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "nats per image" in printed
    assert "of the standard error of log p(x)" in printed.lower()
    assert "a relaxation, the cross-entropy, and no log p(x)" in printed


def test_reconstruct_takes_ones_own_images(run, tmp_path, capsys):
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "a.jpg")
    Image.new("L", (5, 9), 90).save(tmp_path / "b.png")
    result = run_json(capsys, "reconstruct", run, tmp_path / "a.jpg", tmp_path / "b.png", "--out", tmp_path / "out.png")
    assert set(result["images"]) == {str(tmp_path / "a.jpg"), str(tmp_path / "b.png")}
    assert all(row["kl"] > 0 for row in result["images"].values())
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (2 * 14 + 2, 2 * 14 + 2)
    assert "a relaxation" in result["note"]
    assert main(["reconstruct", str(run), str(tmp_path / "b.png"), "--out", str(tmp_path / "c.png")]) == 0
    printed = capsys.readouterr().out
    assert "nats per image" in printed
    assert "Bernoulli on grey values: these nats are a relaxation" in printed
    odd = tmp_path / "[red]\x1b[1m\udce9.png"
    (tmp_path / "b.png").rename(odd)
    assert main(["reconstruct", str(run), str(odd), "--out", str(tmp_path / "c.png")]) == 0
    assert r"[red]\x1b[1m\udce9.png" in capsys.readouterr().out
    Image.new("L", (12, 12), 255).save(tmp_path / "white.png")
    assert run_json(capsys, "reconstruct", run, tmp_path / "white.png", "--out", tmp_path / "d.png")["note"] == ""


def test_sample_follows_its_seed(run, tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for file, seed in zip(files, ("1", "1", "2"), strict=True):
        assert main(["sample", str(run), "--num", "4", "--seed", seed, "--out", str(file)]) == 0
    first, same, other = (file.read_bytes() for file in files)
    assert first == same != other


def test_encode_writes_the_embedding(run, tmp_path, capsys):
    assert main(["encode", str(run), "--split", "all", "--out", str(tmp_path / "e.npz"), "--plot"]) == 0
    with np.load(tmp_path / "e.npz") as arrays:
        shapes = {name: arrays[name].shape for name in arrays}
        assert shapes == {"mu": (88, 4), "logvar": (88, 4), "labels": (88,)}
        with torch.no_grad():
            expected = vl.load(run).encode(
                vl.data.load(json.loads((run / "run.json").read_text())["data"], "all").batch(slice(None))
            )
        np.testing.assert_allclose(arrays["mu"], expected[0].numpy(), rtol=1e-4, atol=1e-5)
    assert (tmp_path / "e.png").exists()
    assert "88 images written" in capsys.readouterr().out
    assert main(["encode", str(run), "--data", "shapes", "--out", str(tmp_path / "s.npz")]) == 0
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["factors"].shape == (2000, 5)


def test_autoencoders_are_welcome(tmp_path, capsys):
    vl.save(vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8))), tmp_path / "ae")
    assert main(["encode", str(tmp_path / "ae"), "--data", "shapes", "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["z"].shape == (2000, 2)
    Image.new("L", (5, 9), 90).save(tmp_path / "b.png")
    capsys.readouterr()
    result = run_json(capsys, "reconstruct", tmp_path / "ae", tmp_path / "b.png", "--out", tmp_path / "c.png")
    assert "reconstruction" in result["images"][str(tmp_path / "b.png")]
    assert main(["info", str(tmp_path / "ae")]) == 0


def test_export_and_info(run, tiny_bundle, tmp_path, capsys, monkeypatch):
    """What `export` passes on and prints; that it writes what it should is of test_export_cli.py."""
    from vaelib.export import Parity

    given = {}

    def export_onnx(model, directory, **options):
        given.update(options, model=model)
        shutil.copytree(tiny_bundle, directory)
        return {part: {"z": Parity(1e-7, 2e-7)} for part in ("encoder", "decoder", "vae")}

    monkeypatch.setattr("vaelib.export.export_onnx", export_onnx)
    result = run_json(capsys, "export", run, "--out", tmp_path / "bundle", "--opset", "20")
    assert result["encoder"]["z"] == Parity(1e-7, 2e-7)._asdict() and "lint" in result
    assert given["opset"] == 20 and given["model"].image_shape == (1, 12, 12)
    bundle = run_json(capsys, "info", tmp_path / "bundle")
    assert bundle["likelihood"] == "Bernoulli"
    assert list(bundle["graphs"]["vae"]["inputs"]) == ["image", "noise"]
    model = run_json(capsys, "info", run)
    assert model["encoder"] == "ConvEncoder"
    assert model["parameters"] == sum(p.numel() for p in vl.load(run).parameters())
    assert run_json(capsys, "info")["torch"].startswith(torch.__version__.split("+")[0])
    assert main(["info"]) == 0


@pytest.mark.slow
def test_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vaelib.data.named.NUM_SHAPES", {"train": 1000, "test": 200})
    assert main(["demo", "--out", str(tmp_path / "demo"), "--epochs", "1"]) == 0
    output = capsys.readouterr().out
    for word in ("untrained", "bits per dimension", "onnxruntime", "largest difference"):
        assert word in output
    last = output.strip().splitlines()[-1]
    assert f"Everything is in {tmp_path / 'demo'}/" in last
    assert "Next: vaelib train" in last
    files = set(os.listdir(tmp_path / "demo"))
    assert {"reconstructions.png", "samples.png", "curves.png", "bundle", "best", "history.csv"} <= files


def test_resume_keeps_the_options_of_the_run(run, tmp_path, capsys):
    """Three epochs at once, and two, begun by --resume with --data, that are prolonged by one; a constant schedule."""
    data = json.loads((run / "run.json").read_text())["data"]
    options = ["--data", data, *SHORT, "--lr-schedule", "constant", "--binarize", "dynamic", "--ema", "0.8"]
    assert main(["train", *options, "--out", str(tmp_path / "a"), "--resume"]) == 0
    assert "holds no run: it starts" in capsys.readouterr().err
    assert main(["train", "--out", str(tmp_path / "a"), "--resume", "--epochs", "3"]) == 0
    assert "it starts" not in capsys.readouterr().err
    assert main(["train", *options, "--epochs", "3", "--out", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    first, second = (vl.load(tmp_path / name / "last").state_dict() for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in "ab"]
    assert records[0] == records[1]
    assert main(["train", "--out", str(tmp_path / "a"), "--resume", "--batch-size", "17"]) == 1
    assert "`batch_size` must be 16 as in" in capsys.readouterr().err
    assert json.loads((tmp_path / "a" / "run.json").read_text()) == records[0]


def test_training_from_a_stream(run, tmp_path, capsys):
    for index, image in enumerate(vl.data.shapes(30, image_size=12).images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{index:02d}.png")
    assert run_json(capsys, "train", "--data", tmp_path, "--stream", *SHORT, "--out", tmp_path / "run")["epochs"] == 2


def test_a_run_is_not_overwritten(run, tmp_path, capsys):
    assert main(["train", "--out", str(run)]) == 1
    assert f"`--out` must not hold a run already, got {run}" in capsys.readouterr().err
    (tmp_path / "history.csv").write_text("mine")
    assert main(["train", "--out", str(tmp_path)]) == 1
    assert "did not write where vaelib's go" in " ".join(capsys.readouterr().err.split())


def test_the_record_tells_a_built_in_set_from_a_folder_of_that_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    run_json(capsys, "train", "--data", "shapes", "--image-size", "8", "--epochs", "1", "--batch-size", "512")
    assert json.loads((tmp_path / "runs/shapes/run.json").read_text())["data"] == "shapes"
    assert run_json(capsys, "evaluate", "runs/shapes")["num_images"] == 2_000
    assert run_json(capsys, "evaluate", "runs/shapes/last")["num_images"] == 2_000


def test_json_stays_json_without_a_standard_error(run, tmp_path, capsys):
    np.save(tmp_path / "two.npy", np.zeros((2, 12, 12), np.uint8))
    result = run_json(capsys, "evaluate", run, "--data", tmp_path / "two.npy")
    assert result["elbo"]["standard_error"] is None


def test_the_demo_says_at_once_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 1
    assert "The demo needs an optional dependency" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_help_says_what_each_command_is_for(capsys):
    commands = ["train", "evaluate", "reconstruct", "sample", "encode", "export", "demo", "info"]
    whole = subprocess.run([sys.executable, "-m", "vaelib", "--help"], capture_output=True, text=True, check=True)
    assert all(command in whole.stdout for command in commands)
    for command in commands:
        assert main([command, "--help"]) == 0
        printed = capsys.readouterr()
        assert len(printed.out) > 300 and printed.err == ""


# --- how files are read, in a run and in the commands that follow it

BRIEF = ("--epochs", "1", "--batch-size", "16", "--latent-dim", "2")


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """A run on 12-bit images of four bands, which come last, below a name of their own."""
    root = tmp_path_factory.mktemp("reading")
    images = np.random.default_rng(0).integers(0, 4096, (40, 8, 8, 4), np.uint16)
    np.savez(root / "bands.npz", train_scenes=images[:24], val_scenes=images[24:32], test_scenes=images[32:], other=[1])
    options = ("--value-range", "0,4095", "--channels-last", "--images-key", "scenes")
    assert (
        main(["train", "--data", str(root / "bands.npz"), *BRIEF, *options, "--out", str(root / "run"), "--json"]) == 0
    )
    return root / "run"


def test_a_run_keeps_how_its_data_were_read(bands, capsys):
    record = json.loads((bands / "run.json").read_text())
    wanted = {"value_range": [0, 4095], "channels_last": True, "images_key": "scenes"}
    assert reading_options(record) == reading_of_run(record, record["data"]) == wanted
    assert reading_of_run(record, "others.npz") == {}
    assert record["validation"] == "val"
    model = vl.load(bands)
    assert model.image_shape == (4, 8, 8)
    assert run_json(capsys, "evaluate", bands)["num_images"] == 8


def test_other_data_have_their_own_options(bands, tmp_path, capsys):
    np.save(tmp_path / "deep.npy", np.full((10, 4, 8, 8), 900, np.uint16))
    command = ["evaluate", str(bands), "--data", str(tmp_path / "deep.npy"), "--split", "all", "--json"]
    assert main(command) != 0
    assert "`value_range` must be given for" in capsys.readouterr().err
    assert main([*command, "--value-range", "0,1023"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 10


def test_files_are_read_as_those_of_the_run(tmp_path, capsys):
    for i in range(30):
        deep = np.random.default_rng(i).integers(0, 4096, (8, 8)).astype(np.uint16)
        Image.fromarray(deep).save(tmp_path / f"{i}.png")
    run, out = tmp_path / "run", tmp_path / "out.png"
    assert main(["train", "--data", str(tmp_path), *BRIEF, "--value-range", "0,4095", "--out", str(run), "--json"]) == 0
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "white.png")
    command = ["reconstruct", str(run), str(tmp_path / "white.png"), "--out", str(out)]
    assert main(command) == 0
    assert np.asarray(Image.open(out).convert("L")).max() == 255
    capsys.readouterr()
    assert main([*command, "--value-range", "0,900"]) != 0
    assert "`value_range` must hold all values of" in capsys.readouterr().err
    Image.new("L", (8, 8), 99).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (8, 8), 200)])
    codes = ["encode", str(run), str(tmp_path / "a.gif"), "--value-range", "0,255", "--out", str(tmp_path / "a.npz")]
    assert main(codes) != 0
    assert "`frames` must be" in capsys.readouterr().err
    assert main([*codes, "--frames", "all"]) == 0
    assert [name[-3:] for name in np.load(tmp_path / "a.npz")["names"]] == ["[0]", "[1]"]
    assert main([*codes, "--images-key", "x"]) != 0
    assert "are for arrays" in capsys.readouterr().err
