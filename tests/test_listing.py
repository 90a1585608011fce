"""Which images a folder, shards or arrays hold, and which splits: the same for sets in memory and streams."""

import io
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import vaelib as vl
from vaelib.data import load, splits, stream
from vaelib.data.listing import canonical_split


def image_bytes(color=128, mode="L", size=(6, 4), kind="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, kind)
    return buffer.getvalue()


def write_folder(root, entries):
    """Files by their path below ``root``; a number stands for a grey image of that value."""
    for name, content in entries.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image_bytes(content) if isinstance(content, int) else content)
    return root


def write_shard(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in entries:
            data = image_bytes(content) if isinstance(content, int) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def values(images):
    """The grey value of each image of a set in memory or a stream."""
    return [round(value.item() * 255) for value in torch.cat(list(images.batches(100)))[:, 0, 0, 0]]


# --- splits

SPLIT_NAMES = [
    ({"train": 1, "test": 2}, ("train", "test")),
    ({"train": 1, "val": 2}, ("train", "val")),
    ({"Train": 1, "Valid": 2, "TEST": 3}, ("train", "val", "test")),
    ({"training": 1, "validation": 2, "testing": 3}, ("train", "val", "test")),
    ({"train": 1}, ("train",)),
]


def folder_of(root, names):
    return write_folder(root, {f"{name}/{i}.png": value for name, value in names.items() for i in range(2)})


def shards_by_name(root, names):
    for name, value in names.items():
        write_shard(root / f"{name}-000.tar", [("0.png", value), ("1.png", value)])
    return root


def shards_by_folder(root, names):
    for name, value in names.items():
        write_shard(root / name / "000.tar", [("0.png", value), ("1.png", value)])
    return root


def arrays_of(root, names):
    np.savez(root / "a.npz", **{f"x_{name}": np.full((2, 4, 6), value, np.uint8) for name, value in names.items()})
    return root / "a.npz"


@pytest.mark.parametrize("open_set", [load, stream], ids=["load", "stream"])
@pytest.mark.parametrize("make", [folder_of, shards_by_name, shards_by_folder, arrays_of])
@pytest.mark.parametrize(("names", "expected"), SPLIT_NAMES, ids=lambda value: "-".join(value))
def test_splits_by_name_in_any_case(tmp_path, make, names, expected, open_set):
    path = make(tmp_path, names)
    assert splits(path) == expected
    if make is arrays_of and open_set is stream:
        return
    for number, split in enumerate(expected, start=1):
        assert values(open_set(path, split)) == [number] * 2
    assert sorted(values(open_set(path, "all"))) == sorted(2 * list(names.values()))
    for split in {"train", "val", "test"} - set(expected):
        listed = re.escape(f"({', '.join(expected)}) or 'all', got {split!r}")
        with pytest.raises(ValueError, match=f"`split` must be one of those that .* has {listed}"):
            open_set(path, split)


@pytest.mark.parametrize("open_set", [load, stream], ids=["load", "stream"])
def test_a_path_without_splits_has_no_val(tmp_path, open_set):
    write_folder(tmp_path, {f"{i}.png": i for i in range(10)})
    assert splits(tmp_path) == ()
    with pytest.raises(
        vl.DataError, match="`split` must be 'train', 'test' or 'all' for .*, got 'val'. Put validation"
    ):
        open_set(tmp_path, "val")
    assert len(open_set(tmp_path, "train")) == 9


def test_official_splits_of_named_sets():
    assert splits("mnist") == splits("shapes") == ("train", "test")
    assert splits("celeba") == splits("static_mnist") == ("train", "val", "test")
    with pytest.raises(ValueError, match=r"`split` must be one of those that 'mnist' has \(train, test\) or 'all'"):
        load("mnist", "val")
    with pytest.raises(FileNotFoundError, match="or an existing path, got 'nowhere'"):
        splits("nowhere")


def test_names_of_splits():
    assert [canonical_split(name) for name in ("Train", "VALID", "validation", "test", "invalid", "trains")] == [
        "train",
        "val",
        "val",
        "test",
        None,
        None,
    ]
