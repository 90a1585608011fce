"""Which images a folder, shards or arrays hold, and which splits: the same for sets in memory and streams."""

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import os
import re
import socket
import tarfile
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from writing import image_bytes, write_folder, write_shard

import vaelib as vl
from vaelib.data import load, splits
from vaelib.data.decode import UnreadableImage, decode
from vaelib.data.headers import read_headers
from vaelib.data.tar import members
from vaelib.errors import DataError

stream = functools.partial(vl.data.stream, workers=0)


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
PROBABLE_SPLITS = [
    ("train2017/1.png", "val2017/1.png"),
    ("images/train2017/1.png", "images/val2017/1.png"),
    ("seg_train/sea/1.png", "seg_test/sea/1.png"),
    ("trainA/1.png", "testB/1.png"),
    ("DIV2K_train_HR/1.png", "DIV2K_valid_HR/1.png"),
    ("TrainSet/1.png", "TESTSET/1.png", "Test-Set/1.png"),
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


@pytest.mark.parametrize("names", PROBABLE_SPLITS, ids=lambda names: names[0])
def test_names_that_are_hardly_classes_are_reported(tmp_path, names):
    write_folder(tmp_path, dict.fromkeys(names, 100))
    for open_set in (load, stream):
        assert len(opened(open_set, tmp_path, "are no splits of .*: only folders directly below it")) == len(names)


def test_one_class_with_the_name_of_a_split_is_a_class(tmp_path):
    write_folder(tmp_path, {"train_station/1.png": 101, "trainer/1.png": 102, "latest/1.png": 103})
    assert opened(load, tmp_path, None).class_names == ("latest", "train_station", "trainer")


def test_shards_whose_names_have_words_with_numbers(tmp_path):
    for name, value in (("train2017", 100), ("val2017", 200)):
        write_shard(tmp_path / f"{name}.tar", [("0.png", value)])
    assert splits(tmp_path) == ("train", "val")
    assert values(stream(tmp_path, "val")) == [200]


@pytest.mark.parametrize("open_set", [load, stream], ids=["load", "stream"])
def test_a_path_without_splits_has_no_val(tmp_path, open_set):
    write_folder(tmp_path, {f"{i}.png": 100 + i for i in range(10)})
    assert splits(tmp_path) == ()
    with pytest.raises(DataError, match="`split` must be 'train', 'test' or 'all' for .*, got 'val'. Put validation"):
        open_set(tmp_path, "val")
    assert len(open_set(tmp_path, "train")) == 9


def test_official_splits_of_named_sets():
    assert splits("mnist") == splits("shapes") == ("train", "test")
    assert splits("celeba") == splits("static_mnist") == ("train", "val", "test")
    with pytest.raises(ValueError, match=r"`split` must be one of those that 'mnist' has \(train, test\) or 'all'"):
        load("mnist", "val")
    with pytest.raises(FileNotFoundError, match="or an existing path, got 'nowhere'"):
        splits("nowhere")


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
    (root / "set" / "top").symlink_to(root)
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
        warning=r"has no labels, since 1 image \(a.tar/2.png\) of 2 have no .cls",
    ),
    "masks": Case(
        shard_of(("1.png", 101), ("1.mask.png", 0), ("2.mask.png", 0), ("2.png", 102), ("3.mask.png", 0)),
        [101, 102],
        warning=r"3 further fields of a sample \(a.tar/1.mask.png, a.tar/2.mask.png, a.tar/3.mask.png\)",
    ),
    "masks in a folder": Case(
        files_of({"1.png": 101, "1.mask.png": 0}), [101], warning=r"1 further field of a sample \(1.mask.png\)"
    ),
    "fields without a whole image": Case(
        shard_of(("1.image.png", 101), ("1.mask.png", 102), ("2.image.png", 103), ("2.mask.png", 104)),
        [101, 102, 103, 104],
        warning=r"4 images of .* share samples by name \(a.tar/1.image.png, a.tar/1.mask.png, .*: remove any masks",
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
        r"1 broken link \(4.png\); 2 linked folders listed already \(top, dogs/up\)",
    ),
    "special files": Case(
        special_files,
        [101],
        warning=r"3 pipes, sockets or devices \(3.png, 3.tar, 7.png\); 1 empty folder \(6.png\);"
        r" 1 empty \(2.png\); 2 unreadable \(4.png",
    ),
    "links in a shard": Case(
        links_in_a_shard, [101], warning=r"3 links or devices \(a.tar/link0.png, a.tar/link1.png, a.tar/link2.png\)"
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
        warning=r"1 image beside tar shards \(preview.png\)",
    ),
    "a folder of masks": Case(
        files_of({"images/1.png": 101, "Masks/1.png": 102}),
        [102, 101],
        [0, 1],
        "Masks images",
        r"The folder Masks of .* is read as a class: move it elsewhere if its images are masks",
    ),
    "a class of masks": Case(files_of({"mask/1.png": 101, "no_mask/1.png": 102}), [101, 102], [0, 1], "mask no_mask"),
    "packed shards beside others": Case(
        lambda root: write_folder(shard_of(("1.png", 101))(root).parent, {"b.tar.gz": WORDS, "c.tgz": WORDS}),
        [101],
        warning=r"2 packed shards, to be unpacked to plain .tar \(b.tar.gz, c.tgz\)",
    ),
    "shards among images": Case(
        lambda root: write_folder(write_shard(root / "set/old/a.tar", [("1.png", 50)]).parent.parent, {"1.png": 101}),
        [101],
        warning=r"1 tar shard among images \(old/a.tar\)",
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
    assert len(set(loaded.names)) == len(loaded) and all(Path(name).is_relative_to(tmp_path) for name in loaded.names)
    if len(loaded) > 2:
        found = []
        for split in ("train", "test"):
            parts = [opened(open_set, path, warning, split) for open_set in (load, stream)]
            assert values(parts[0]) == values(parts[1])
            assert labels is None or torch.equal(parts[0].labels, parts[1].labels)
            found += values(parts[0])
        assert sorted(found) == sorted(expected)


def test_a_stream_with_an_unreadable_image_trains_on_the_others(tmp_path):
    """Cut off, it is not in the list; damaged within, the next image takes its place. Both are reported."""
    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64), np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray((tmp_path / "5.png").read_bytes())
    damaged[2000:2100] = bytes(100)
    (tmp_path / "5.png").write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"1 file was skipped in .*: 1 unreadable \(2.png"):
        images = vl.data.stream(tmp_path, "all", workers=2)
    assert len(images) == 7
    model = vl.conv_vae((1, 64, 64), 2, hidden_channels=(2, 2, 2))
    with pytest.warns(UserWarning, match=r"cannot be read, and the next one takes its place: .*5.png: ") as caught:
        vl.Trainer(max_epochs=2, batch_size=4).fit(model, images, progress=False)
    assert len(caught) == 1
    seen = torch.cat(list(images.batches(3)))
    assert torch.equal((seen * 255).round().to(torch.uint8)[:, 0], torch.from_numpy(noise[[0, 1, 3, 4, 6, 6, 7]]))
    with pytest.warns(UserWarning, match=r"skipped in .*: 1 unreadable \((2|.*5).png: "):
        assert len(load(tmp_path, "all")) == 6


def test_a_stream_whose_disk_is_gone_ends(tmp_path):
    write_folder(tmp_path, {f"{i}.png": 100 for i in range(5)})
    images = stream(tmp_path, "all")
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"^100 images in a row cannot be read: .*0.png.*No such file"):
        images[0]
    with pytest.raises(DataError, match=r"^100 images in a row cannot be read: .*0.png.*No such file"):
        next(images.replace(workers=1).batches(2))


@pytest.mark.parametrize("open_set", [load, stream])
def test_channels_are_those_of_all_splits(tmp_path, open_set):
    colour = image_bytes((200, 100, 50), "RGB")
    write_folder(tmp_path / "one", {"train/1.png": colour, "test/1.png": 100, "test/2.png": 120})
    assert [open_set(tmp_path / "one", split).image_shape for split in ("train", "test", "all")] == [(3, 4, 6)] * 3
    write_folder(tmp_path / "two", {"0.png": 100} | {f"{i}.png": colour for i in range(1, 9)})
    assert {open_set(tmp_path / "two", split).image_shape for split in ("train", "test", "all")} == {(3, 4, 6)}


def test_images_must_have_one_size_in_streams_too(tmp_path):
    write_folder(tmp_path, {"a.png": 100, "b.png": image_bytes(size=(5, 4))})
    for open_set in (load, stream):
        with pytest.raises(DataError, match="one size, or give `image_size`: a.png is 4x6, b.png is 4x5"):
            open_set(tmp_path, "all")
        assert open_set(tmp_path, "all", image_size=4).image_shape == (1, 4, 4)


KINDS = [
    *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("TIFF", mode) for mode in ("1", "L", "RGB", "RGBA", "I;16")),
    *((kind, "RGB") for kind in ("WEBP", "AVIF", "JPEG2000", "BMP", "PPM", "GIF")),
]


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_headers_tell_what_the_decoder_gives(kind, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    image = (
        Image.fromarray(pixels).convert(mode) if mode != "I;16" else Image.fromarray(pixels[..., 0] * np.uint16(257))
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF") else {}))
    whole = buffer.getvalue()
    decoded = decode("it", io.BytesIO(whole))[0]
    assert read_headers("it", io.BytesIO(whole)) == [(*decoded.image.shape, decoded.bits)]
    for length in (len(whole) - 30, len(whole) // 2):
        with pytest.raises(UnreadableImage):
            read_headers("it", io.BytesIO(whole[:length]))


@pytest.mark.filterwarnings("ignore:.*skipped in")
@pytest.mark.parametrize("open_set", [load, stream])
@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({}, "There is no image in .*looked for .jpg.*inside .tar shards, and found no file"),
        (
            {"a.heic": WORDS, "b.HEIC": WORDS, "c.tar.gz": WORDS, "d": WORDS},
            r"found 2 .heic, 1 .tar.gz, 1 without suffix; skipped: 2 of a kind that is not read \(a.heic, b.HEIC\)",
        ),
        (
            {"train/1.png": 100, "cats/1.png": 100},
            "has the split 'train' by a name in it, and images outside of it, such",
        ),
        ({"train-0.tar": WORDS, "1.tar": WORDS}, "train-0.tar is not a readable tar file|1.tar is not a readable"),
        ({"val/1.png": 100, "valid/1.png": 100}, "one folder for each split, got val and valid"),
        ({"Train/1.png": 100, "train/1.png": 100}, "one folder for each split, got Train and train"),
        (
            {"a-test-of-train-0.tar": bytes(1024)},
            "name of a shard must say one split, got train and test in a-test-of-",
        ),
        ({"1.jpg": WORDS, "2.ppm": b"P6 x"}, r"No image in .* could be read: 2 unreadable \(1.jpg: .*2.ppm"),
        ({"train/1.png": 100, "test/1.png": WORDS}, "No image of the split 'test' of .* could be read: 1 unreadable"),
        ({"test/1.png": 1, "test/2.png": 2}, r"`value_range` must be given for .* no value above 2 of 255"),
    ],
)
def test_folders_that_are_refused(tmp_path, entries, match, open_set):
    write_folder(tmp_path, entries)
    with pytest.raises(DataError, match=match):
        open_set(tmp_path, "test")


def test_class_names_can_be_printed(tmp_path):
    write_folder(tmp_path, {"red\x1b[31m/1.png": 101, "caf\udce9/1.png": 102, "日本 語/1.png": 103})
    for open_set in (load, stream):
        assert open_set(tmp_path, "all").class_names == (r"caf\udce9", r"red\x1b[31m", "日本 語")


def test_what_lies_beside_two_splits_is_counted(tmp_path):
    write_folder(tmp_path, {"train/1.png": 101, "test/1.png": 102, "mask/1.png": 100, "cover.png": 100})
    for open_set in (load, stream):
        images = opened(open_set, tmp_path, r"2 outside train, test \(cover.png, mask/1.png\)", "all")
        assert values(images) == [101, 102]


def test_a_split_without_labels_takes_none_from_the_others(tmp_path):
    write_folder(tmp_path, {"train/dog/1.png": 101, "train/cat/2.png": 102, "val/dog/1.png": 103, "test/1.png": 104})
    for open_set in (load, stream):
        assert open_set(tmp_path, "train").labels.tolist() == [0, 1]
        assert open_set(tmp_path, "val").labels.tolist() == [1]
        assert open_set(tmp_path, "val").class_names == ("cat", "dog")
        assert open_set(tmp_path, "test").labels is None
        assert opened(open_set, tmp_path, r"1 image \(test/1.png\) of 4 have no class folder").labels is None


def test_splits_inside_a_shard_and_below_a_folder(tmp_path):
    path = write_shard(tmp_path / "a.tar", [("set/train/cat/1.png", 101), ("set/val/cat/1.png", 102)])
    assert splits(path) == ("train", "val")
    assert load(path, "val").names == (f"{path}/set/val/cat/1.png",)
    for open_set in (load, stream):
        assert values(open_set(path, "val")) == [102]
        assert open_set(path, "val").class_names == ("cat",)
    write_folder(tmp_path / "b", {"set/train/1.png": 101, "set/test/1.png": 102})
    with pytest.warns(
        UserWarning, match="set/test.* are no splits of .*: only folders directly below it that are called"
    ) as said:
        assert len(load(tmp_path / "b", "all")) == 2
    assert said[0].filename == __file__
    path = write_shard(tmp_path / "c" / "train-0.tar", [("train/cat/1.png", 101), ("train/dog/1.png", 102)])
    assert load(path.parent, "train").class_names == ("cat", "dog")


# --- damaged shards


def tar_bytes(tmp_path, kind=tarfile.GNU_FORMAT):
    with tarfile.open(tmp_path / "whole.tar", "w", format=kind) as archive:
        for number in range(4):
            data = image_bytes(100 + number)
            entry = tarfile.TarInfo(f"{'long' * 30}/{number}.png")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return (tmp_path / "whole.tar").read_bytes()


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_in_every_kind_of_tar(tmp_path, kind):
    tar_bytes(tmp_path, kind)
    with tarfile.open(tmp_path / "whole.tar") as archive:
        expected = [(entry.name, entry.offset_data, entry.size, "file") for entry in archive]
    assert list(members(tmp_path / "whole.tar")) == expected
    assert values(stream(tmp_path / "whole.tar", "all")) == values(load(tmp_path / "whole.tar", "all"))


def test_every_cut_and_every_flipped_header_bit_is_an_error_or_nothing_is_lost(tmp_path):
    """No mutation gives fewer images without an error: cuts at each block, and each byte of each header changed."""
    whole = tar_bytes(tmp_path)
    file = tmp_path / "a.tar"
    end = whole.rindex(b"IEND") // 512 * 512 + 512
    refused: list[str] = []
    mutations = [whole[:length] for length in range(512, end + 1, 512)]
    for start in range(0, end, 512):
        for byte in range(start + 3, start + 512, 29):
            mutations.append(whole[:byte] + bytes([whole[byte] ^ 16]) + whole[byte + 1 :])
    for content in [*mutations, whole + b"x", whole[:end] + b"garbage" * 100]:
        file.write_bytes(content)
        try:
            assert len(list(members(file))) == 4
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > len(mutations) / 3
    assert all(re.search(r"a.tar is not a readable tar file: at byte \d+, ", message) for message in refused)


@pytest.mark.parametrize("open_set", [load, stream])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda whole: whole[:2048],
            r"at byte 1024, member .* goes beyond the end|at byte 2048, the file ends there without",
        ),
        (lambda whole: whole[:-10_240].rstrip(b"\0"), "at byte"),
        (lambda whole: whole[:1530] + b"!" + whole[1531:], "at byte 1024, no header of a member: bad checksum"),
        (lambda whole: whole + b"tail", r"at byte \d+, the archive ends there, but the file goes on with other bytes"),
        (lambda whole: gzip.compress(whole), "must be a plain tar file, and is gzip data: unpack it"),
        (lambda whole: bz2.compress(whole), "must be a plain tar file, and is bzip2 data: unpack it"),
        (lambda whole: lzma.compress(whole), "must be a plain tar file, and is xz data: unpack it"),
        (lambda whole: header(b"S") + bytes(1024), "at byte 0, member 'x.png' is sparse; pack it again without"),
        (lambda whole: header(b"x", 6) + b"9 path".ljust(512, b"\0"), "at byte 0, a damaged pax header"),
        (lambda whole: header(b"L", 1 << 21) + bytes(1 << 22), "at byte 0, an extended header of 2097152 bytes"),
        (lambda whole: header(b"0", -512) + bytes(1024), "at byte 0, member 'x.png' has the size -512"),
        (lambda whole: header(b"0") + header(b"0") + bytes(1024), "must hold every name once, got x.png twice"),
        (
            lambda whole: header(b"0", name="1.cls", size=3) + b"1.7".ljust(512, b"\0") + bytes(1024),
            "must hold a class",
        ),
        (lambda whole: header(b"0", name="1.cls", size=0) + bytes(1024), "1.cls must hold a class: .*, got nothing"),
        (
            lambda whole: header(b"0", name="1.cls", size=1536) + b"x" * 1536 + bytes(1024),
            "1.cls must hold a class: .*, has 1536 bytes",
        ),
    ],
)
def test_damaged_and_foreign_shards_are_refused(tmp_path, change, match, open_set):
    (tmp_path / "a.tar").write_bytes(change(tar_bytes(tmp_path)))
    with pytest.raises(DataError, match=rf"a.tar.*{match}"):
        open_set(tmp_path / "a.tar", "all")


def header(kind, size=0, name="x.png"):
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


def test_frames_and_value_ranges_are_the_same_in_both(tmp_path):
    pages = [Image.new("L", (6, 4), 100 + page) for page in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    write_folder(tmp_path, {"b.png": 110})
    for open_set in (load, stream):
        with pytest.raises(DataError, match="`frames` must be 'first' or 'all' for .*a.tif, which holds 3 frames"):
            open_set(tmp_path, "all")
        assert values(open_set(tmp_path, "all", frames="first")) == [100, 110]
        assert values(open_set(tmp_path, "all", frames="all")) == [100, 101, 102, 110]
        assert values(open_set(tmp_path, "all", frames="first", value_range=(0, 200))) == [128, 140]
        with pytest.raises(ValueError, match="`frames` must be one of 'first', 'all', None, got 'last'"):
            open_set(tmp_path, "all", frames="last")
    assert len(vl.data.read_images([tmp_path / "a.tif"], frames="all")) == 3


@pytest.mark.parametrize("open_set", [load, stream], ids=["load", "stream"])
def test_bytes_after_an_image_are_not_read(tmp_path, open_set):
    folder = write_folder(tmp_path / "folder", {"1.png": 101})
    os.truncate(folder / "1.png", 2**30)
    shard = write_shard(tmp_path / "a.tar", [("1.png", image_bytes(101) + bytes(2**27))])
    for path in (folder, shard):
        tracemalloc.start()
        assert values(open_set(path, "all")) == [101]
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


def test_folders_that_cannot_be_listed_are_reported(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a/1.png": 100, "b/1.png": 101})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    assert len(opened(load, tmp_path, r"1 folder that cannot be listed \(b: Permission denied\)")) == 1
