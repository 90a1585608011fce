"""Odd command lines: each ends with an exit code and one message that names the option, never with a traceback."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vaelib as vl
from vaelib.cli import main

TRAIN = "train --data a.npy --epochs 1 --batch-size 8 --latent-dim 2 --no-compile"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, what looks like a bundle, data, and broken things, by the names that the table uses."""
    root = tmp_path_factory.mktemp("lines")
    vl.save(vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,)), root / "m")
    exact = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), likelihood=vl.DiscretizedLogistic())
    vl.save(exact, root / "exact")
    density = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), likelihood=vl.Gaussian())
    vl.save(density, root / "density")
    labels = vl.Labels(3, names=("cat", "dog", "owl"))
    vl.save(vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,), condition=labels), root / "told")
    for name, content in RECORDS.items():
        shutil.copytree(root / "m", root / name)
        (root / name / "run.json").write_text(content)
    shutil.copytree(root / "m", root / "fifo")
    os.mkfifo(root / "fifo" / "run.json")
    vl.save(vl.conv_vae((2, 8, 8), 2, hidden_channels=(4,)), root / "two")
    vl.save(vl.AutoEncoder(vl.ConvEncoder((1, 8, 8), 2), vl.ConvDecoder(2, (1, 8, 8))), root / "ae")
    (root / "b").mkdir()
    (root / "b" / "manifest.json").write_text("{}")
    (root / "torn").mkdir()
    (root / "torn" / "config.json").write_text("{")
    (root / "torn" / "model.safetensors").write_bytes(b"none")
    np.save(root / "a.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8))
    np.save(root / "rgb.npy", np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8))
    np.save(root / "none.npy", np.zeros((0, 8, 8), np.uint8))
    (root / "text.txt").write_text("no image")
    (root / "empty").mkdir()
    (root / "file").write_text("")
    (root / "pics" / "deep").mkdir(parents=True)
    Image.new("L", (9, 12), 200).save(root / "pics" / "one.png")
    Image.new("RGB", (12, 9), (200, 0, 20)).save(root / "pics" / "deep" / "two.jpg")
    (root / "pics" / "broken.png").write_bytes(b"\x89PNG no more")
    (root / "pics" / "notes.txt").write_text("no image")
    return root


RECORDS = {
    "poisson": '{"data": "a.npy", "likelihood": "poisson"}',
    "epochs": '{"data": "a.npy", "epochs": "many"}',
    "flip": '{"data": "a.npy", "flip": "yes"}',
    "beta": '{"data": "a.npy", "beta": [1.0]}',
    "list": "[1, 2]",
    "text": "no json",
    "cut": '{"data": "sha',
    "nested": "[" * 10_000 + "]" * 10_000,
    "huge": '{"data": "' + "x" * 2**21 + '"}',
    "number": '{"data": 7}',
    "object": '{"data": {"a": 1}}',
    "binary": '{"data": "shapes", "binarize": [1]}',
    "often": '{"data": "shapes", "data": "mnist"}',
    "nul": '{"data": "a\\u0000b"}',
    "odd": '{"data": "a.npy", "binarize": "sometimes"}',
    "latin": '{"data": "' + "\udcff".encode("utf-8", "surrogateescape").decode("latin-1") + '"}',
}

# Option to values that it refuses before anything is loaded, with exit code 2.
VALUES = {
    "train --image-size": "100000 99999999999999999999 0 28,0 28,28,1 28x28 2.5 , '' nan ٢٨",
    "train --seed": "-1 99999999999999999999 1.5",
    "train --epochs": "0 1e3 many",
    "train --batch-size": "0 many",
    "train --latent-dim": "0",
    "train --learning-rate": "nan inf 0 -1",
    "train --value-range": "4095 0,x 1,0 nan,1 0,inf",
    "train --frames": "last",
    "train --beta": "nan inf -0.1 -1",
    "train --kl-warmup": "-1",
    "train --ema": "nan 2",
    "train --patience": "0",
    "train --clip-norm": "inf 0",
    "train --accumulate": "0",
    "train --checkpoint-every": "0",
    "train --keep-last": "0",
    "train --precision": "fp8",
    "train --lr-schedule": "linear",
    "train --preset": "conv2",
    "train --data": "''",
    "train --out": "''",
    "evaluate m --data": "''",
    "evaluate m --data a.npy --split": "half",
    "evaluate m --data a.npy --samples": "0 1000000000000",
    "evaluate m --data a.npy --against": "''",
    "evaluate m --data a.npy --compare": "''",
    "reconstruct m pics --out": "''",
    "sample m --num": "0 -3 1000000000 1e9",
    "sample m --seed": "-1",
    "sample m --out": "''",
    "encode m --data a.npy --out": "''",
    "export m --opset": "17 99",
    "export m --precision": "fp8",
    "export m --max-loss": "nan -1",
    "export m --out": "''",
    "explore b --port": "99999 -1",
    "explore b --num": "1 1000000000",
    "explore b --data": "''",
    "explore b --static": "''",
    "benchmark m --threads": "0 1000000",
    "demo --epochs": "0",
    "demo --out": "''",
    "demo --seed": "-1",
    "train --likelihood": "poisson",
    "train --latent": "lfq",
    "train --num-codes": "1 many",
    "train --levels": "x 3,,4 '' -1",
    "train --condition": "colours",
}

OF_MODELS = ("evaluate {}", "reconstruct {} pics", "sample {}", "encode {} pics", "export {}")
OF_ALL = (*OF_MODELS, "benchmark {}", "info {}")
NO_PLACE = {
    "reconstruct m pics --out": ". r.xyz /dev/null/x.png",
    "sample m --out": "s s.xyz s.npz .png /dev/null/x.png",
    "encode m --data a.npy --out": "e.npy empty /dev/null/e.npz",
    "train --data a.npy --out": "/dev/null/x file",
    "demo --out": "/dev/null/x",
}

# (command line, exit code, what the message says). Code 2: of one option.
LINES = [
    *(
        (f"{option}={value}", 2, f"'{option.split()[-1]}'")
        for option, values in VALUES.items()
        for value in values.split()
    ),
    *((line.format("nowhere"), 1, "`MODEL` must hold config.json") for line in OF_ALL),
    *((line.format("''"), 2, "MODEL") for line in OF_ALL),
    *((line.format("b"), 1, "is an exported bundle") for line in OF_MODELS),
    *(
        (
            f"{line} {path}",
            1,
            "`--out` must " + ("be a directory that can be" if "/" in path or path == "file" else "end in ."),
        )
        for line, paths in NO_PLACE.items()
        for path in paths.split()
    ),
    ("", 2, "Usage: vaelib"),
    ("fly", 2, "fly"),
    ("train --value-range 0", 2, "must be two numbers such as 0,4095, got '0'"),
    ("train --value-range 2,1", 2, "must be two finite numbers, the first below the second, got '2,1'"),
    ("--version", 2, "--version"),
    ("train --image-size=-28", 2, "'--image-size'"),
    ("train --image-size 4096", 1, "10000 images of 4096 x 4096 would take"),
    (f"{TRAIN} --latent-dim 99999999999", 1, "`latent_dim`"),
    (f"{TRAIN} --accumulate 1000", 1, "accumulate"),
    (f"{TRAIN} --binarize sometimes", 1, "`binarize`"),
    ("train --data nowhere", 1, "nowhere"),
    ("train --data text.txt", 1, "text.txt"),
    ("train --data empty", 1, "empty"),
    ("train --data none.npy", 1, "none.npy"),
    ("train --data /dev/null", 1, "/dev/null"),
    ("train --data /dev/zero", 1, "/dev/zero"),
    ("train --data m", 1, "m"),
    ("train --data s3://bucket/images", 1, "s3:/bucket/images"),
    (f"train --data {'x' * 5000}", 1, "xxx"),
    ("train --resume --out empty", 1, "`--resume` needs a run in --out"),
    *((f"train --resume --out {name}", 1, "run.json") for name in ("list", "text", "cut", "nested", "huge", "number")),
    ("train --resume --out poisson", 1, "`likelihood` in poisson/run.json"),
    ("train --resume --out epochs", 1, "`epochs` in epochs/run.json"),
    ("train --resume --out flip", 1, "`flip` in flip/run.json"),
    ("train --resume --out beta", 1, "`beta` in beta/run.json"),
    ("train --stream", 1, "shapes"),
    ("train --preset article --latent-dim 5", 1, "`--latent-dim` must not be given with `--preset article`"),
    ("train --preset article --width 8", 1, "`--width` must not be given with `--preset article`, which is fixed"),
    ("train --factor 4", 1, "`--factor` must not be given with `--preset conv`"),
    ("train --preset autoencoder_kl --latent-dim 4", 1, "`--latent-dim` must not be given with `--preset autoencoder_"),
    (
        "train --preset autoencoder_kl --image-size 18 --factor 4",
        1,
        "`--factor` must divide the height and width of the",
    ),
    (f"{TRAIN} --adversarial --image-size 8", 1, "`--adversarial` needs images of at least 11 x 11 pixels, got 8 x 8"),
    ("train --adversarial --patience 3", 1, "`--patience` must not be given with `--adversarial`: no bound says"),
    (f"{TRAIN} --tracker paper", 1, "got 'paper'"),
    (f"{TRAIN} --latent vq", 1, "`--latent-dim` is for `--latent gaussian`, got 2"),
    ("train --num-codes 8", 1, "`--num-codes` is for `--latent vq` or `--latent rvq` or `--latent bsq`, got 8"),
    ("train --latent vq --levels 3,4", 1, "`--levels` is for `--latent fsq`, got (3, 4)"),
    (
        "train --latent fsq --beta 2",
        1,
        "`--beta` is for `--latent gaussian`: the KL of uniform codes is constant, got 2",
    ),
    ("train --latent vq --kl-warmup 9", 1, "`--kl-warmup` is for `--latent gaussian`"),
    ("train --latent bsq --num-codes 12", 1, "`--num-codes` must be a power of 2 for `--latent bsq`"),
    ("train --levels 3;4", 2, "must be numbers such as 8,5,5,5, got '3;4'"),
    ("train --preset article --condition labels", 1, "`--condition` must not be given with `--preset article`"),
    (f"{TRAIN} --condition labels", 1, "`condition` 'labels' needs the labels of all images, and a.npy has none"),
    (f"{TRAIN} --condition factors", 1, "`condition` 'factors' needs the factors of all images, and a.npy has none"),
    ("train --value-range=-1,1 --data shapes", 1, "`value_range` must be None for 'shapes'"),
    ("train --data pics --stream --channels-last", 1, "are for arrays, which `--stream` does not read"),
    ("train --data pics --stream --images-key x", 1, "are for arrays, which `--stream` does not read"),
    ("train --nonsense", 2, "--nonsense"),
    ("train extra", 2, "extra"),
    ("evaluate", 2, "MODEL"),
    ("evaluate file", 1, "`MODEL` must hold config.json"),
    ("evaluate torn", 1, "config.json"),
    ("evaluate m", 1, "`--data` must be given"),
    ("evaluate m --data a.npy --against nowhere", 1, "nowhere"),
    (
        "evaluate m --data rgb.npy --split all",
        1,
        "`--data` must have images of as many channels as the model in m, 1, got 3",
    ),
    ("evaluate m --data a.npy --compare nowhere", 1, "`MODEL` must hold config.json"),
    ("evaluate m --data a.npy --compare density", 1, "`first` and `second` must both have a density for a likelihood"),
    ("evaluate m --data a.npy --disentanglement", 1, "`--disentanglement`"),
    ("evaluate ae --data a.npy", 1, "`model`"),
    *((f"evaluate {name}", 1, "run.json") for name in ("list", "text", "cut", "nested", "huge", "number", "object")),
    *((f"evaluate {name}", 1, "run.json") for name in ("binary", "often", "fifo")),
    ("evaluate nul", 1, "must be"),
    ("evaluate odd", 1, "`binarize`"),
    ("evaluate latin", 1, "must be"),
    ("evaluate told --data a.npy", 1, "`condition` 'labels' needs the labels of all images, and a.npy has none"),
    ("reconstruct m", 2, "FILES_OR_FOLDERS"),
    ("reconstruct told pics/one.png", 1, "`--condition` must be given: the model in told takes Labels"),
    ("reconstruct told pics/one.png --condition dog --condition 0", 1, "at most once for each of 1 images, got 2"),
    ("reconstruct m ''", 2, "FILES_OR_FOLDERS"),
    ("reconstruct m nowhere.png", 1, "there is no nowhere.png"),
    ("reconstruct m text.txt", 1, "text.txt"),
    ("reconstruct m empty", 1, "empty"),
    ("reconstruct two pics", 1, "Image files have 1 or 3 channels, the model in two has 2"),
    ("reconstruct m /dev/null", 1, "/dev/null"),
    ("sample", 2, "MODEL"),
    ("sample ae", 1, "Only a VAE has a prior"),
    ("sample told", 1, "`--condition` must be given: the model in told takes Labels(3, dropout=0.0) (cat, dog, owl)"),
    ("sample told --condition 3", 1, "`condition` must be in [0, 3), the number of a class, got 3"),
    ("sample told --condition -1", 1, "`condition` must be in [0, 3), the number of a class, got -1"),
    ("sample told --condition cow", 1, "`condition` must be one of 'cat', 'dog', 'owl', got 'cow'"),
    ("sample m --condition 1", 1, "`--condition` must not be given: the model in m takes none, got '1'"),
    ("sample m --num 60000000", 1, "`--num` must be at most 1048576 for images of 8 x 8"),
    ("encode m", 1, "`--data` must be given"),
    ("encode m pics --data a.npy", 1, "`--data` must not be given beside files"),
    ("encode m nowhere", 1, "there is no nowhere"),
    ("encode told --data a.npy --condition 1", 1, "`--condition` is for files of your own"),
    ("export m --out file", 1, "directory"),
    ("export m --precision int8", 1, "`--data` must be given"),
    ("explore", 2, "BUNDLE"),
    ("explore nowhere", 1, "`BUNDLE` must be a bundle"),
    ("explore m", 1, "is a trained model, export it first"),
    ("explore b", 1, "manifest.json"),
    ("explore b --onnxruntime-web here", 1, "`--onnxruntime-web` needs `--static`"),
    ("benchmark m --backend abacus", 1, "abacus"),
    ("info b", 1, "manifest.json"),
    ("info torn", 1, "config.json"),
]


def arguments_of(line):
    """Words between blanks; two quotes are an empty one."""
    return [word.replace("''", "") for word in line.split()]


@pytest.mark.parametrize(("line", "code", "message"), LINES, ids=[line[:60] or "nothing" for line, _, _ in LINES])
def test_an_odd_line_is_one_message(line, code, message, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(os.listdir(place))
    found = main(arguments_of(line))
    captured = capsys.readouterr()
    assert found == code, captured.err
    assert message in (captured.err if line else captured.out)
    assert not line or captured.out == ""
    assert "Traceback" not in captured.err
    if code == 1:
        assert [text[:8] for text in captured.err.splitlines()].count("vaelib: ") == 1
        assert len(captured.err) < 7_000
    assert line.startswith(TRAIN) or sorted(os.listdir(place)) == before, "an error leaves nothing behind"


def test_there_are_more_than_a_hundred():
    assert len({line for line, _, _ in LINES}) == len(LINES) > 100


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "PNG"),
        ("a.jpg", "JPEG"),
        ("a.JPEG", "JPEG"),
        ("a.webp", "WEBP"),
        ("a.tif", "TIFF"),
        ("a.tiff", "TIFF"),
    ],
)
def test_the_suffix_is_the_format(name, kind, place, tmp_path, capsys):
    assert main(["sample", str(place / "m"), "--num", "3", "--out", str(tmp_path / name)]) == 0
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (kind, (3 * 10 + 2, 12))


def test_samples_beyond_one_batch_are_those_of_one(place, tmp_path, monkeypatch, capsys):
    """Chunks bound the memory; whatever their size, the prior is drawn from in the same order."""
    files = [tmp_path / name for name in ("a.png", "b.png")]
    assert main(["sample", str(place / "m"), "--num", "9", "--out", str(files[0])]) == 0
    generator, vae = torch.Generator().manual_seed(0), vl.load(place / "m")
    vl.plots.save_grid(
        torch.cat([vae.sample(4, generator=generator) for _ in range(2)] + [vae.sample(1, generator=generator)]),
        files[1],
    )
    monkeypatch.setattr("vaelib.cli.images._BATCH", 4)
    assert main(["sample", str(place / "m"), "--num", "9", "--out", str(files[0])]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_reconstruct_takes_folders_and_reports_what_it_skips(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    line = ["reconstruct", "m", "pics", "text.txt", "--out", str(tmp_path / "r.jpg")]
    with pytest.warns(UserWarning, match=r"3 files were skipped in pics, text\.txt: 1 no images by their suffix"):
        assert main([*line, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["images"]) == ["pics/deep/two.jpg", "pics/one.png"]
    assert result["skipped"] == 3
    with Image.open(tmp_path / "r.jpg") as image:
        assert image.format == "JPEG"
    with pytest.warns(UserWarning, match=r"2 unreadable \(pics/broken\.png: .*, text\.txt: not an image"):
        assert main(line) == 0


def test_evaluate_against_another_set_and_beside_another_model(place, monkeypatch, capsys):
    """The note is also that of the other model's number."""
    monkeypatch.chdir(place)
    line = "evaluate exact --data a.npy --split all --against a.npy --compare m"
    assert main([*line.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["auroc_negative_elbo"]["standard_error"] > 0 and "relaxation" in found["note"]
    assert main([*line.split()[:-2], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["note"] == ""


def test_evaluate_refuses_before_it_measures(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr("vaelib.cli.evaluate.evaluation_of", lambda *_, **__: pytest.fail("measured already"))
    for option, message in (
        ("--disentanglement", "`--disentanglement` needs"),
        ("--compare density", "must both have"),
    ):
        assert main(f"evaluate m --data a.npy {option}".split()) == 1
        assert message in capsys.readouterr().err


def test_encode_takes_folders_and_writes_the_names_beside_the_codes(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    with pytest.warns(UserWarning, match=r"pics/notes\.txt.*pics/broken\.png"):
        assert main(["encode", "m", "pics", "pics/one.png", "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["names"].tolist() == ["pics/deep/two.jpg", "pics/one.png", "pics/one.png"]
        mu = arrays["mu"]
    np.testing.assert_array_equal(mu[1], mu[2])
    images = vl.data.read_images(["pics/deep/two.jpg", "pics/one.png"], image_size=(8, 8), channels=1)
    expected, _ = vl.evaluation.encode(vl.load("m"), images.float() / 255)
    np.testing.assert_allclose(mu[:2], expected.numpy(), atol=1e-6)


def test_encode_keeps_labels_and_class_names_of_a_set(place, tmp_path, monkeypatch, capsys):
    for name, count in (("cat", 3), ("dog", 2)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (8, 8), 100 + 50 * index).save(tmp_path / "set" / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    assert main(["encode", str(place / "m"), "--data", "set", "--split", "all", "--out", "e.npz"]) == 0
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["class_names"].tolist() == ["cat", "dog"]
        assert arrays["labels"].tolist() == [0, 0, 0, 1, 1]
        assert arrays["names"].tolist() == [f"set/{name}" for name in CATS_AND_DOGS]
    assert main(["encode", str(place / "m"), "--data", "set", "--split", "test", "--out", "e.npz"]) == 0
    with np.load(tmp_path / "e.npz") as arrays:
        (index,) = vl.data.sources.holdout(5, "test").tolist()
        assert arrays["names"].tolist() == [f"set/{CATS_AND_DOGS[index]}"]


CATS_AND_DOGS = ["cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png"]
BEFORE_TORCH = [line for line, code, _ in LINES if code == 2] + [
    "train --resume --out nowhere",
    "train --preset article --latent-dim 5",
    "train --num-codes 8",
    "train --latent bsq --num-codes 12",
    "encode m --condition 1",
    "evaluate nowhere",
    "evaluate b --data a.npy",
    "evaluate m --data a.npy --compare nowhere",
    "reconstruct m nowhere.png",
    "reconstruct m pics --out r.xyz",
    "sample nowhere",
    "sample m --out s.xyz",
    "sample m --out /dev/null/x.png",
    "encode m pics --out e.npy",
    "encode m pics --data a.npy",
    "export b",
    "explore m",
    "explore nowhere",
    "benchmark nowhere",
    "demo --out /dev/null/x",
    "info nowhere",
]


def test_arguments_are_checked_before_torch_is_imported(place):
    """All lines in one process, which at the end has loaded neither torch nor onnxruntime."""
    lines = [arguments_of(line) for line in BEFORE_TORCH]
    code = (
        "import sys; from vaelib.cli import main\n"
        f"codes = [main(line) for line in {lines!r}]\n"
        "loaded = [name for name in ('torch', 'onnxruntime', 'PIL', 'numpy') if name in sys.modules]\n"
        "sys.exit(f'{loaded} {codes}' if loaded or 0 in codes else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(vl.__file__))}
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
