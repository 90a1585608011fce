"""Validation images: those of the data, else a part of the training images; never the test images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vaelib as vl
from vaelib.cli import main, train as train_command
from vaelib.errors import DataError

SHORT = ("--epochs", "1", "--batch-size", "16", "--latent-dim", "2")


def folder_of(directory, count=30):
    for index, image in enumerate(vl.data.shapes(count, image_size=8).images):
        place = directory / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{index:02d}.png")
    return directory


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_a_fixed_part_is_held_out_with_its_labels(kind, tmp_path):
    read = {"memory": vl.data.load, "stream": vl.data.stream}[kind]
    whole = read(folder_of(tmp_path), "all", flip=True)
    train, val = vl.data.hold_out(whole, 0.2)
    again = vl.data.hold_out(whole, 0.2)
    assert (len(train), len(val)) == (24, 6) and train.flip and not val.flip and whole.flip
    every = [torch.stack([part[index] for index in range(len(part))]) for part in (whole, train, val, *again)]
    every = [images + images.flip(-1) for images in every]  # the same whether an image was flipped or not
    assert torch.equal(every[1], every[3]) and torch.equal(every[2], every[4])
    rows = [{tuple(image.flatten().tolist()) for image in images} for images in every[:3]]
    assert rows[0] == rows[1] | rows[2] and not rows[1] & rows[2] and len(rows[0]) == 30
    label_of = dict(zip(map(str, every[0].flatten(1).tolist()), whole.labels.tolist(), strict=True))
    for part, images in ((train, every[1]), (val, every[2])):
        assert [label_of[str(image)] for image in images.flatten(1).tolist()] == part.labels.tolist()
        assert part.class_names == whole.class_names == ("a", "b")


def test_at_least_one_image_is_held_out_and_one_remains():
    two = vl.data.shapes(2, image_size=8)
    for fraction in (0.01, 0.99):
        assert [len(part) for part in vl.data.hold_out(two, fraction)] == [1, 1]


@pytest.mark.parametrize(
    ("images", "fraction", "error", "match"),
    [
        (vl.data.shapes(5, image_size=8), 0.0, ValueError, "`fraction` must be > 0 and <= 1, got 0.0"),
        (vl.data.shapes(5, image_size=8), 1, ValueError, "`fraction` must be > 0 and < 1, got 1"),
        (vl.data.shapes(5, image_size=8), "0.1", TypeError, "`fraction` must be a number, got '0.1'"),
        (vl.data.shapes(1, image_size=8), 0.1, DataError, "`images` must be at least 2, .* got 1"),
        (torch.rand(5, 1, 8, 8), 0.1, TypeError, "`images` must be an ImageDataset or an ImageStream, got Tensor"),
    ],
)
def test_what_cannot_be_held_out(images, fraction, error, match):
    with pytest.raises(error, match=match):
        vl.data.hold_out(images, fraction)


@pytest.fixture
def splits_read(monkeypatch):
    """The splits that `vaelib train` reads, in order."""
    read, original = [], train_command.images_of
    monkeypatch.setattr(
        train_command, "images_of", lambda options, split: (read.append(split), original(options, split))[1]
    )
    return read


def arrays(path, **splits):
    np.savez(path, **{name: vl.data.shapes(count, image_size=8).images.numpy() for name, count in splits.items()})
    return str(path)


@pytest.mark.parametrize(
    ("counts", "options", "read", "val", "words"),
    [
        ({"x_train": 40, "x_val": 7, "x_test": 9}, (), ["train", "val"], 7, "the split `val`"),
        ({"x_train": 40, "x_test": 9}, (), ["train"], 4, "a fixed random tenth of the training images"),
        ({"images": 40}, ("--flip",), ["train"], 4, "a fixed random tenth of the training images"),
    ],
)
def test_train_validates_on_val_or_holds_a_tenth_out(counts, options, read, val, words, splits_read, tmp_path, capsys):
    run = str(tmp_path / "run")
    data = arrays(tmp_path / "data.npz", **counts)
    assert main(["train", "--data", data, *SHORT, *options, "--out", run]) == 0
    said = capsys.readouterr()
    assert splits_read == read
    assert f"Validation on {val} images: {words}." in said.err
    assert "nats per validation image after 1 epochs" in said.out
    splits_read.clear()
    assert main(["train", "--out", run, "--resume", "--epochs", "2", "--lr-schedule", "cosine"]) == 0
    assert splits_read == read and f"Validation on {val} images" in capsys.readouterr().err


def test_a_stream_holds_a_tenth_out_too(splits_read, tmp_path, capsys):
    data = folder_of(tmp_path / "data", 40)  # of which the fixed test tenth is 4
    assert main(["train", "--data", str(data), "--stream", *SHORT, "--out", str(tmp_path / "run")]) == 0
    assert splits_read == ["train"] and "Validation on 4 images" in capsys.readouterr().err


def as_version_0_1(options):
    options["validation"] = "test"
    return tuple(train_command.images_of(options, split) for split in ("train", "test"))


def test_a_run_of_version_0_1_goes_on_with_the_test_split(splits_read, tmp_path, capsys, monkeypatch):
    run, data = tmp_path / "run", arrays(tmp_path / "data.npz", x_train=40, x_test=9)
    with monkeypatch.context() as older:
        older.setattr(train_command, "_train_and_val", as_version_0_1)
        assert main(["train", "--data", data, *SHORT, "--lr-schedule", "constant", "--out", str(run)]) == 0
    record = json.loads((run / "run.json").read_text())
    del record["validation"]
    (run / "run.json").write_text(json.dumps(record))
    splits_read.clear()
    assert main(["train", "--out", str(run), "--resume", "--epochs", "2"]) == 0
    assert splits_read == ["train", "test"]
    said = capsys.readouterr()
    assert "Validation on 9 images: the split `test`, since version 0.1 began the run so" in said.err
    assert "after 2 epochs" in said.out
