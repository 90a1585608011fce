"""Options that say how files are read, in a run and in the commands that follow it."""

import json

import numpy as np
import pytest
from PIL import Image

import vaelib as vl
from vaelib.cli import main
from vaelib.cli.common import reading_of_run, reading_options

SHORT = ("--epochs", "1", "--batch-size", "16", "--latent-dim", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 12-bit images of four bands, which come last, below a name of their own."""
    root = tmp_path_factory.mktemp("reading")
    images = np.random.default_rng(0).integers(0, 4096, (40, 8, 8, 4), np.uint16)
    np.savez(root / "bands.npz", train_scenes=images[:24], val_scenes=images[24:32], test_scenes=images[32:], other=[1])
    options = ("--value-range", "0,4095", "--channels-last", "--images-key", "scenes")
    assert (
        main(["train", "--data", str(root / "bands.npz"), *SHORT, *options, "--out", str(root / "run"), "--json"]) == 0
    )
    return root / "run"


def test_a_run_keeps_how_its_data_were_read(run, capsys):
    record = json.loads((run / "run.json").read_text())
    wanted = {"value_range": [0, 4095], "channels_last": True, "images_key": "scenes"}
    assert reading_options(record) == reading_of_run(record, record["data"]) == wanted
    assert reading_of_run(record, "others.npz") == {}
    assert record["validation"] == "val"
    model = vl.load(run)
    assert model.image_shape == (4, 8, 8)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 8


def test_other_data_have_their_own_options(run, tmp_path, capsys):
    np.save(tmp_path / "deep.npy", np.full((10, 4, 8, 8), 900, np.uint16))
    command = ["evaluate", str(run), "--data", str(tmp_path / "deep.npy"), "--split", "all", "--json"]
    assert main(command) != 0
    assert "`value_range` must be given for" in capsys.readouterr().err
    assert main([*command, "--value-range", "0,1023"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 10


def test_files_are_read_as_those_of_the_run(tmp_path, capsys):
    for i in range(30):
        deep = np.random.default_rng(i).integers(0, 4096, (8, 8)).astype(np.uint16)
        Image.fromarray(deep).save(tmp_path / f"{i}.png")
    run, out = tmp_path / "run", tmp_path / "out.png"
    assert main(["train", "--data", str(tmp_path), *SHORT, "--value-range", "0,4095", "--out", str(run), "--json"]) == 0
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
