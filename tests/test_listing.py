"""Which images a folder, shards or arrays hold, and which splits: the same for sets in memory and streams."""

import contextlib
import functools
import io
import os
import re
import socket
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import vaelib as vl
from vaelib.data import load, splits
from vaelib.data.split_names import canonical_split

stream = functools.partial(vl.data.stream, workers=0)


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
    ({"train": 100, "test": 200}, ("train", "test")),
    ({"train": 100, "val": 200}, ("train", "val")),
    ({"Train": 100, "Valid": 150, "TEST": 200}, ("train", "val", "test")),
    ({"training": 100, "validation": 150, "testing": 200}, ("train", "val", "test")),
    ({"train": 100}, ("train",)),
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
    for value, split in zip(names.values(), expected, strict=True):
        assert values(open_set(path, split)) == [value] * 2
    assert values(open_set(path, "all")) == sorted(2 * list(names.values()))
    for split in {"train", "val", "test"} - set(expected):
        listed = re.escape(f"({', '.join(expected)}) or 'all', got {split!r}")
        with pytest.raises(ValueError, match=f"`split` must be one of those that .* has {listed}"):
            open_set(path, split)


@pytest.mark.parametrize("open_set", [load, stream], ids=["load", "stream"])
def test_a_path_without_splits_has_no_val(tmp_path, open_set):
    write_folder(tmp_path, {f"{i}.png": 100 + i for i in range(10)})
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


# --- one listing under sets in memory and streams

CUT = image_bytes(130)[:40]
WORDS = b"no image"


def shard_of(*entries):
    return lambda root: write_shard(root / "a.tar", entries)


def files_of(entries):
    return lambda root: write_folder(root / "set", entries)


def linked_folders(root):
    write_folder(root / "far", {"cats/1.png": 101, "cats/2.png": 102})
    write_folder(root / "set", {"dogs/3.png": 103})
    (root / "set" / "cats").symlink_to(root / "far" / "cats")
    (root / "set" / "dogs" / "up").symlink_to(root / "set")
    (root / "set" / "4.png").symlink_to(root / "nowhere")
    return root / "set"


def special_files(root):
    write_folder(root / "set", {"1.png": 101, "2.png": b"", "4.png": CUT, "5.png": WORDS})
    os.mkfifo(root / "set" / "3.png")
    os.mkfifo(root / "set" / "3.tar")
    (root / "set" / "6.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(root / "set"):
        listening.bind("7.png")
    return root / "set"


def links_in_a_shard(root):
    write_shard(root / "a.tar", [("1.png", 101)])
    with tarfile.open(root / "a.tar", "a") as archive:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)):
            entry = tarfile.TarInfo(f"link{number}.png")
            entry.type, entry.linkname = kind, "1.png"
            archive.addfile(entry)
    return root / "a.tar"


def two_shards(root):
    for number in range(2):
        write_shard(root / "set" / f"{number}.tar", [("0.png", 100 + number), ("0.cls", b"%d" % number)])
    return root / "set"


CLASSES = {"cats/1.png": 101, "dogs/deep/2.png": 102}


class Case(NamedTuple):
    make: Callable[[Path], Path]
    values: list[int]
    labels: list[int] | None = None
    class_names: str = ""
    warning: str | None = None


def labelled(first, second):
    return shard_of(("1.png", 101), (f"1.{first[0]}", first[1]), ("2.png", 102), (f"2.{second[0]}", second[1]))


SOURCES = {
    "folder": Case(
        files_of({"b.png": 101, "a/c.png": 102, "B.PNG": 103}), [103, 102, 101], warning="2 images.*no class folder"
    ),
    "class folders": Case(files_of(CLASSES), [101, 102], [0, 1], "cats dogs"),
    "classes that are numbers": Case(
        files_of({f"{i}/0.png": 100 + i for i in range(11)}),
        [100, 101, 110, *range(102, 110)],
        [0, 1, 10, *range(2, 10)],
        " ".join(map(str, range(11))),
    ),
    "class folders in a shard": Case(shard_of(*CLASSES.items()), [101, 102], [0, 1], "cats dogs"),
    "a folder packed as a whole": Case(
        shard_of(*[(f"./photos/{name}", value) for name, value in CLASSES.items()]), [101, 102], [0, 1], "cats dogs"
    ),
    "numbers in cls": Case(labelled(("cls", b"7\n"), ("cls", b"3")), [101, 102], [7, 3]),
    "names in cls": Case(labelled(("cls", b"dog"), ("cls", b"cat")), [101, 102], [1, 0], "cat dog"),
    "names in json": Case(
        labelled(("json", b'{"label": "dog", "w": 1}'), ("json", b'{"label": "cat"}')), [101, 102], [1, 0], "cat dog"
    ),
    "numbers in json": Case(labelled(("json", b'{"label": 3}'), ("json", b"4.0")), [101, 102], [3, 4]),
    "other json": Case(labelled(("json", b'{"label": 0.5}'), ("json", b"[" * 9999)), [101, 102]),
    "names in txt": Case(labelled(("txt", b"dog"), ("txt", b"cat")), [101, 102], [1, 0], "cat dog"),
    "captions": Case(labelled(("txt", b"a red dog"), ("txt", b"a cat")), [101, 102]),
    "cls before json": Case(shard_of(("1.png", 101), ("1.json", b'{"label": "x"}'), ("1.cls", b"4")), [101], [4]),
    "a label is missing": Case(
        shard_of(("1.png", 101), ("1.cls", b"1"), ("2.png", 102)),
        [101, 102],
        warning=r"has no labels, since 1 images \(a.tar/2.png\) of 2 have no .cls",
    ),
    "masks": Case(
        shard_of(("1.png", 101), ("1.mask.png", 0), ("2.mask.png", 0), ("2.png", 102), ("3.mask.png", 0)),
        [101, 102],
        warning=r"3 further fields of samples \(a.tar/1.mask.png, a.tar/2.mask.png, a.tar/3.mask.png\)",
    ),
    "masks in a folder": Case(
        files_of({"1.png": 101, "1.mask.png": 0}), [101], warning=r"1 further fields of samples \(1.mask.png\)"
    ),
    "two suffixes": Case(
        shard_of(("1.png", 0), ("1.jpg", 101), ("2.jpg", 102), ("2.png", 0)),
        [101, 102],
        warning=r"2 second images of a sample \(a.tar/1.png, a.tar/2.png\)",
    ),
    "two suffixes in a folder": Case(files_of({"1.png": 101, "1.jpg": 102}), [102, 101]),
    "dotted keys": Case(
        shard_of(
            ("shot.1.png", 101), ("shot.2.png", 102), ("shot.cls", b"5"), ("shot.3.png", 103), ("shot.3.cls", b"6")
        ),
        [101, 102, 103],
        [5, 5, 6],
    ),
    "dotted words": Case(shard_of(("a.left.png", 101), ("a.right.png", 102)), [101, 102]),
    "hidden": Case(
        shard_of(
            ("1.png", 101), ("._1.png", WORDS), ("__MACOSX/2.png", WORDS), (".DS_Store", WORDS), ("Thumbs.db", WORDS)
        ),
        [101],
        warning=r"2 files were skipped.*2 hidden \(a.tar/._1.png, a.tar/__MACOSX/2.png\)",
    ),
    "hidden in a folder": Case(
        files_of({"1.png": 101, "._1.png": WORDS, "@eaDir/1.png/M.jpg": 50, ".DS_Store": WORDS, ".git/x": WORDS}),
        [101],
        warning=r"2 hidden \(._1.png, @eaDir/1.png/M.jpg\)",
    ),
    "unreadable": Case(
        files_of({f"{i}.png": WORDS for i in range(7)} | {"9.png": 101}),
        [101],
        warning=r"7 files were skipped in .*: 7 unreadable \(0.png: not an image.*, 4.png: [^,]*, [^,]* and 2 more\)",
    ),
    "empty and cut off in a shard": Case(
        shard_of(("1.png", 101), ("2.png", b""), ("3.png", CUT)),
        [101],
        warning=r"1 empty \(a.tar/2.png\); 1 unreadable \(a.tar/3.png: ",
    ),
    "linked folders": Case(
        linked_folders,
        [101, 102, 103],
        [0, 0, 1],
        "cats dogs",
        r"1 broken links \(4.png\); 1 linked folders that are listed already \(dogs/up\)",
    ),
    "special files": Case(
        special_files,
        [101],
        warning=r"3 pipes, sockets or devices \(3.png, 3.tar, 7.png\); 1 empty folders \(6.png\);"
        r" 1 empty \(2.png\); 2 unreadable \(4.png",
    ),
    "links in a shard": Case(
        links_in_a_shard,
        [101],
        warning=r"3 links or devices \(a.tar/link0.png, a.tar/link1.png, a.tar/link2.png\)",
    ),
    "names in two shards": Case(two_shards, [100, 101], [0, 1]),
    "kinds that are not read": Case(
        files_of({"1.png": 101, "2.heic": WORDS, "3.txt": WORDS}),
        [101],
        warning=r"1 of a kind that is not read \(2.heic\)",
    ),
    "images beside shards": Case(
        lambda root: write_folder(shard_of(("1.png", 101))(root).parent, {"preview.png": 50}),
        [101],
        warning=r"1 images beside tar shards \(preview.png\)",
    ),
    "shards among images": Case(
        lambda root: write_folder(write_shard(root / "set/old/a.tar", [("1.png", 50)]).parent.parent, {"1.png": 101}),
        [101],
        warning=r"1 tar shards among images \(old/a.tar\)",
    ),
}


def opened(open_set, path, warning, split="all"):
    """A set, and that it warns as it should: of exactly what is skipped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = open_set(path, split)
    said = [str(entry.message) for entry in caught]
    assert len(said) == (warning is not None), said
    if warning is not None:
        assert re.search(warning, said[0]), said[0]
    return images


@pytest.mark.parametrize("source", SOURCES)
def test_load_and_stream_are_one_reader(tmp_path, source):
    make, expected, labels, class_names, warning = SOURCES[source]
    path = make(tmp_path)
    loaded, streamed = (opened(open_set, path, warning) for open_set in (load, stream))
    assert values(loaded) == expected
    assert torch.equal(*(torch.cat(list(images.batches(5))) for images in (loaded, streamed)))
    for images in (loaded, streamed):
        assert images.class_names == tuple(class_names.split())
        assert (None if images.labels is None else images.labels.tolist()) == labels
    assert loaded.image_shape == streamed.image_shape == (1, 4, 6)
    if len(loaded) > 2:
        for split in ("train", "test"):
            parts = [opened(open_set, path, warning, split) for open_set in (load, stream)]
            assert values(parts[0]) == values(parts[1])
            assert labels is None or torch.equal(parts[0].labels, parts[1].labels)
