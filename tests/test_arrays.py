"""Arrays and labels: ranges, axes, splits and classes of ``.npy``, ``.npz`` and ``.pt`` files."""

import os
import warnings
import zipfile

import numpy as np
import pytest
import torch

import vaelib as vl
from vaelib.data import ImageDataset, load
from vaelib.errors import DataError

IMAGES = torch.zeros(3, 1, 2, 2)


# --- labels


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (torch.tensor([2, 0, 1]), [2, 0, 1], ()),
        (torch.tensor([2.0, 0.0, 1.0], dtype=torch.bfloat16), [2, 0, 1], ()),
        (torch.tensor([True, False, True]), [1, 0, 1], ()),
        (torch.tensor([[2], [0], [1]], dtype=torch.uint8), [2, 0, 1], ()),
        (torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0]]), [2, 0, 1], ()),
        (np.array([2, 0, 1], np.uint64), [2, 0, 1], ()),
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        (np.array([["dog"], ["cat"], ["dog"]]), [1, 0, 1], ("cat", "dog")),
        (np.array([b"dog", b"cat", b"dog"]), [1, 0, 1], ("cat", "dog")),
        (np.array(["dog", "cat", "dog"], object), [1, 0, 1], ("cat", "dog")),
    ],
)
def test_labels_become_class_numbers(labels, numbers, names):
    dataset = ImageDataset(IMAGES, labels=labels)
    assert dataset.labels.dtype == torch.int64
    assert dataset.labels.tolist() == numbers
    assert dataset.class_names == names
    assert dataset.subset(slice(1)).class_names == dataset.replace(IMAGES).class_names == names


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"labels": torch.tensor([0.0, float("nan"), 1.0])}, ValueError, "must be whole numbers, got nan at 1"),
        ({"labels": torch.tensor([0.0, 1.0, 1.7])}, ValueError, "`labels` must be whole numbers, got 1.7 at 2"),
        ({"labels": torch.tensor([0.0, float("inf"), 1.0])}, ValueError, "must be whole numbers, got inf at 1"),
        ({"labels": [[0], [1, 2], [0]]}, ValueError, "`labels` must be one class an image: .*inhomogeneous"),
        ({"labels": torch.zeros(3, dtype=torch.complex64)}, TypeError, "`labels` must be real, got dtype"),
        ({"labels": np.ma.masked_equal([0, 1, 2], 1)}, ValueError, "a value for every image, got a masked array"),
        ({"labels": [None, 1, 2]}, TypeError, "must be class numbers or names, got dtype object"),
        ({"labels": torch.tensor([0, -1, 2])}, ValueError, "`labels` must be class numbers from 0, got -1"),
        ({"labels": np.array([0, 1, 2**64 - 1], np.uint64)}, ValueError, "numbers from 0, got 18446744073709551615"),
        ({"labels": torch.zeros(4)}, ValueError, r"`labels` must have shape \(3\), got \(4,\)"),
        ({"labels": torch.tensor(1)}, ValueError, r"`labels` must have shape \(3\), got \(\)"),
        ({"labels": ["cat"]}, ValueError, r"`labels` must have shape \(3\), got \(1,\)"),
        ({"labels": torch.eye(4)}, ValueError, r"`labels` must have shape \(3, K\), got \(4, 4\)"),
        ({"labels": torch.tensor([[1, 0], [1, 1], [0, 1]])}, ValueError, r"must be one-hot, .*got row 1: \[1 1\]"),
        ({"labels": torch.tensor([[1, 0], [0.5, 0.5], [0, 1]])}, ValueError, r"must be one-hot, .*row 1: \[0.5 0.5\]"),
        ({"labels": torch.tensor([0, 1, 2]), "class_names": ["a", "b"]}, ValueError, "must be below 2.*got 2"),
        ({"labels": ["a", "b", "c"], "class_names": ["a", "b"]}, ValueError, "among the class names a, b, got 'c'"),
        ({"factors": torch.zeros(3, 1), "factor_names": ["a"]}, TypeError, "`factors` must be a tensor of integers"),
        ({"factors": np.zeros((3, 1)), "factor_names": ["a"]}, TypeError, "tensor of integers, got ndarray"),
    ],
)  # fmt: skip
def test_wrong_labels(arguments, error, match):
    with pytest.raises(error, match=match):
        ImageDataset(IMAGES, **arguments)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (IMAGES.to_sparse(), "`images` must be a dense tensor .* that is sparse"),
        (IMAGES.to("meta"), "`images` must be a dense tensor .* on the meta device, without values"),
        (IMAGES.to(torch.float8_e5m2), "`images` must be a dense tensor .* of dtype torch.float8_e5m2"),
        (IMAGES.to(torch.complex64), "`images` must be a tensor, uint8 or floating point .* got torch.complex64"),
    ],
)
def test_unusual_images(images, match):
    with pytest.raises(TypeError, match=match):
        ImageDataset(images)


def test_8_bit_images_of_0_and_1_are_said():
    with pytest.warns(
        UserWarning, match="`images` holds 8-bit values of 0 and 1 alone.* multiply by 255 if 1 is white"
    ):
        ImageDataset(torch.eye(4, dtype=torch.uint8)[None, None])


def test_class_names_are_shown():
    assert "classes cat, dog" in repr(ImageDataset(IMAGES, labels=["dog", "cat", "dog"]))
    many = ImageDataset(torch.zeros(12, 1, 2, 2), labels=[f"{i:02d}" for i in range(12)])
    assert "08, 09, ..." in repr(many)


# --- arrays


def test_archives_with_labels_and_splits(tmp_path):
    np.savez(tmp_path / "a.npz", images=torch.rand(10, 4, 4).numpy(), labels=np.arange(10))
    train = load(tmp_path / "a.npz", "train")
    assert (len(train), len(train.labels)) == (9, 9)
    np.savez(
        tmp_path / "b.npz", x_train=np.zeros((6, 4, 4), bool), y_train=np.arange(6), x_test=np.ones((2, 4, 4), bool)
    )
    assert [len(load(tmp_path / "b.npz", split)) for split in ("train", "test")] == [6, 2]
    assert load(tmp_path / "b.npz", "test").images.unique().tolist() == [255]
    with pytest.warns(UserWarning, match=r"labels of .*b\.npz were skipped, since not every split has them"):
        both = load(tmp_path / "b.npz", "all")
    assert (len(both), both.labels) == (8, None)
    np.savez(tmp_path / "only.npz", x_train=np.zeros((6, 4, 4), bool))
    with pytest.raises(
        DataError, match=r"`split` must be one of those that .*only\.npz has \(train\) or 'all', got 'test'"
    ):
        load(tmp_path / "only.npz", "test")
    np.save(tmp_path / "big_endian.npy", np.zeros((4, 4, 4), ">f4"))
    assert len(load(tmp_path / "big_endian.npy", "all")) == 4
    torch.save({"images": torch.zeros(4, 3, 5, 5), "labels": torch.arange(4)}, tmp_path / "c.pt")
    assert load(tmp_path / "c.pt", "all", image_size=3).images.shape == (4, 3, 3, 3)
    torch.save(torch.zeros(4, 3, 5, 5), tmp_path / "d.pt")
    assert len(load(tmp_path / "d.pt", "test")) == 1


class Evil:
    def __reduce__(self):
        return (print, ("run",))


# --- ranges

RAMP = np.arange(4 * 64).reshape(4, 8, 8) % 64


def from_array(path, values, split="all", **options):
    np.save(path / "a.npy", values)
    return load(path / "a.npy", split, **options).images


@pytest.mark.parametrize(
    ("values", "value_range", "expected"),
    [
        (RAMP.astype(np.uint8), None, RAMP / 255),
        (RAMP.astype(np.uint8), (0, 63), RAMP / 63),
        ((RAMP % 2).astype(np.uint8), (0, 1), RAMP % 2),
        ((RAMP % 8).astype(np.uint8), (0, 255), RAMP % 8 / 255),
        ((RAMP % 2).astype(np.int64), (0, 1), RAMP % 2),
        ((RAMP % 8).astype(np.uint8), (0, 7), RAMP % 8 / 7),
        ((RAMP % 2).astype(bool), None, RAMP % 2),
        (RAMP.astype(np.uint16) * 1_040, None, RAMP * 1_040 / 65_535),
        (RAMP.astype(np.uint16) * 65, (0, 4095), RAMP / 63),
        (RAMP.astype(np.uint16) * 65, (0, 65_535), RAMP * 65 / 65_535),
        (RAMP.astype(">i4") * 1_000 - 1_000, (-1_000, 62_000), RAMP / 63),
        (RAMP * 4, (0, 255), RAMP * 4 / 255),
        (RAMP / 63, None, RAMP / 63),
        (RAMP / 63 * (1 + 1e-6), None, RAMP / 63),
        (RAMP.astype(np.float16) * 4, (0, 255), RAMP * 4 / 255),
        (RAMP / 31.5 - 1, (-1, 1), RAMP / 63),
        (RAMP.astype(np.longdouble) / 63, None, RAMP / 63),
        (RAMP * 0, None, RAMP * 0),
        (RAMP.astype(">u2") * 1_040, None, RAMP * 1_040 / 65_535),
    ],
)
def test_values_are_mapped_from_their_range(tmp_path, values, value_range, expected):
    images = ImageDataset(from_array(tmp_path, values, value_range=value_range)).batch(slice(None))
    np.testing.assert_allclose(images[:, 0], expected, atol=0.5 / 255 if values.dtype == np.uint8 else 1e-6)


@pytest.mark.parametrize(
    ("values", "white", "match"),
    [
        ((RAMP % 2).astype(np.uint8), 1, r"holds 0 and 1 alone: 1 is read as white. Give value_range=\(0, 1\)"),
        (RAMP % 2, 1, r"holds 0 and 1 alone: 1 is read as white"),
        (RAMP * 4, 255, r"255 is read as white, got int64 in \[0, 252\]. Give value_range=\(0, 255\)"),
    ],
)
def test_probable_ranges_are_said(tmp_path, values, white, match):
    with pytest.warns(UserWarning, match=match):
        images = from_array(tmp_path, values)
    assert images.dtype == torch.uint8
    np.testing.assert_allclose(images[:, 0], values * 255 // white)


@pytest.mark.parametrize(
    ("values", "options", "match"),
    [
        ((RAMP % 8).astype(np.uint8), {}, r"`value_range` must be given .*, got uint8 in \[0, 7\]: such as \(0, 7\)"),
        (RAMP.astype(np.uint16) * 65, {}, r"in \[0, 4095\]: such as \(0, 4095\) if .* white, \(0, 65535\) for 16 bits"),
        (RAMP * 1_100, {}, r"in \[0, 69300\]: such as \(0, 131071\) if 69300 is near white\."),
        (RAMP / 60, {}, r"values in \[0, 1\], got \[0, 1.05\]. Give the values of black and white as `value_range`\.$"),
        (RAMP, {}, r"got int64 in \[0, 63\]"),
        (RAMP.astype(np.int8), {}, r"got int8 in \[0, 63\]"),
        (RAMP * 60 - 1_000, {}, r"got int64 in \[-1000, 2780\]"),
        (RAMP * 4.0, {}, r"values in \[0, 1\], got \[0, 252\]. Give the values .* `value_range`, such as \(0, 255\)"),
        (RAMP / 31.5 - 1, {}, r"got \[-1, 1\]. Give the values of black and white .* such as \(-1, 1\)"),
        (RAMP / 63 / 255, {}, r"`value_range` must be given for .* \[0, 0.00392157\]: \(0, 1\) if they are dark"),
        (RAMP * np.nan, {}, r"got \[nan, nan\]. NaN and infinity are no values of an image"),
        (RAMP * 60 - 1_000, {"value_range": (0, 2_780)}, r"must hold all values .* in \[-1000, 2780\]"),
        (RAMP / 63, {"value_range": (0, 0.5)}, r"must hold all values of .*, got \(0, 0.5\) for values in \[0, 1\]"),
        (RAMP.astype(np.uint8), {"value_range": (0, 4095)}, r"must lie in \[0, 255\] for .* 8-bit values"),
    ],
)  # fmt: skip
def test_doubtful_ranges_are_asked_for(tmp_path, values, options, match):
    with pytest.raises(DataError, match=match):
        from_array(tmp_path, values, **options)


@pytest.mark.parametrize(
    ("name", "options", "error", "match"),
    [
        ("a.npy", {"value_range": 255}, TypeError, r"`value_range` must be a pair \(low, high\), got 255"),
        ("a.npy", {"value_range": "01"}, TypeError, "`value_range` must be a pair"),
        ("a.npy", {"value_range": (0, 1, 2)}, TypeError, "`value_range` must be a pair"),
        ("a.npy", {"value_range": (0, "1")}, TypeError, r"`value_range\[1\]` must be a number, got '1'"),
        ("a.npy", {"value_range": (0, float("inf"))}, ValueError, r"`value_range\[1\]` must be"),
        ("a.npy", {"value_range": (1, 0)}, ValueError, r"`value_range` must be \(low, high\) with low < high"),
        ("a.npy", {"channels_last": 1.5}, TypeError, "`channels_last` must be True, False or None, got 1.5"),
        ("a.npy", {"frames": "first"}, ValueError, "`frames` must be None for the arrays of .*a.npy, got 'first'"),
        ("a.npy", {"images_key": "x"}, DataError, "a.npy must hold 'x', got one array without a name"),
        ("a.npy", {"images_key": 3}, TypeError, "`images_key` must be a str or None, got 3"),
        ("a.npy", {"flip": "no"}, TypeError, "`flip` must be True or False, got 'no'"),
        ("", {}, ValueError, "`name_or_path` must be the path of a file or directory, got ''"),
        (None, {}, TypeError, "`name_or_path` must be a str or a Path, got None"),
        ("shapes", {"value_range": (0, 1)}, ValueError, "`value_range` must be None for 'shapes'"),
        ("mnist", {"channels_last": True}, ValueError, "`channels_last` must be None for 'mnist'"),
    ],
)
def test_wrong_arguments(tmp_path, name, options, error, match):
    np.save(tmp_path / "a.npy", RAMP.astype(np.uint8))
    with pytest.raises(error, match=match):
        load(tmp_path / name if name == "a.npy" else name, **options)


def test_a_range_is_decided_over_all_splits(tmp_path):
    """A dark split, or one of 0 and 1, is not brightened beside one that uses the range."""
    for dark, bright in (
        (np.uint8(2), np.uint8(255)),
        (np.float32(0.01), np.float32(1)),
        (np.uint16(9), np.uint16(6e4)),
    ):
        np.savez(tmp_path / "a.npz", x_train=GREY * 0 + bright, x_test=GREY * 0 + dark)
        batch = load(tmp_path / "a.npz", "test").batch(slice(None))
        assert batch.max() == pytest.approx(dark / {"f": 1, "u": 256**dark.itemsize - 1}[dark.dtype.kind])
        assert torch.equal(load(tmp_path / "a.npz", "all").batch(slice(10, None)), batch)


def test_splits_of_different_images(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=GREY + 200, x_test=np.full((2, 6, 6), 0.5, np.float32))
    images = load(tmp_path / "a.npz", "all").images
    assert (images.dtype, images[-1].max(), images[0].max()) == (torch.float32, 0.5, (GREY + 200)[0].max() / 255)
    np.savez(tmp_path / "a.npz", x_train=GREY, x_test=GREY[:, :4])
    with pytest.raises(DataError, match=r"a.npz: All splits must have images of one shape .*\(1, 6, 6\) and \(1, 4, 6"):
        load(tmp_path / "a.npz", "all")


# --- axes


@pytest.mark.parametrize(
    ("shape", "channels_last", "expected"),
    [
        ((20, 28, 28), None, (20, 1, 28, 28)),
        ((28, 28, 20), False, (28, 1, 28, 20)),
        ((28, 28, 3), False, (28, 1, 28, 3)),
        ((20, 1, 6, 5), None, (20, 1, 6, 5)),
        ((20, 3, 6, 5), None, (20, 3, 6, 5)),
        ((20, 4, 6, 5), None, (20, 4, 6, 5)),
        ((20, 6, 5, 3), None, (20, 3, 6, 5)),
        ((20, 4, 32, 32), None, (20, 4, 32, 32)),
        ((20, 13, 32, 32), None, (20, 13, 32, 32)),
        ((20, 32, 32, 3), None, (20, 3, 32, 32)),
        ((20, 28, 28, 1), None, (20, 1, 28, 28)),
        ((20, 32, 32, 32), True, (20, 32, 32, 32)),
        ((20, 32, 32, 4), False, (20, 32, 32, 4)),
        ((20, 32, 32, 4), True, (20, 4, 32, 32)),
        ((20, 1, 28, 1), False, (20, 1, 28, 1)),
        ((20, 1, 28, 1), True, (20, 1, 1, 28)),
        ((20, 1, 1, 1), None, (20, 1, 1, 1)),
    ],
)
def test_axes(tmp_path, shape, channels_last, expected):
    values = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape) % 251
    images = from_array(tmp_path, values.astype(np.uint8), channels_last=channels_last)
    assert images.shape == expected
    if len(shape) == 4:
        np.testing.assert_array_equal(
            images, np.moveaxis(values, 3, 1) if channels_last or expected != shape else values
        )


@pytest.mark.parametrize("bands", [2, 4, 5, 13])
def test_bands_that_come_last_are_said(tmp_path, bands):
    with pytest.warns(UserWarning, match=rf"read as 32x24 images of {bands} channels, .*Give channels_last=True"):
        assert from_array(tmp_path, np.zeros((5, 32, 24, bands), np.uint8)).shape == (5, bands, 32, 24)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((5, 2, 32, 3), r"`channels_last` must be given for .*: of its shape \(5, 2, 32, 3\), 2 or 3 may be"),
        ((5, 1, 28, 1), "`channels_last` must be given for"),
        ((5, 3, 3, 3), "`channels_last` must be given for"),
        ((5, 32, 32, 32), "`channels_last` must be given for"),
        ((32, 32, 3, 500), "`channels_last` must be given for"),
        ((480, 640, 3), r"looks like one image \(H, W, C\).* save it as \(1, 480, 640, 3\)"),
        ((28, 28, 100), r"looks like \(H, W, N\), the order of MATLAB; transpose it to \(100, 28, 28\)"),
        ((70, 784), r"must have shape \(N, H, W\), .* has \(70, 784\). Reshape rows to images first"),
        ((2, 3, 4, 4, 4), r"must have shape \(N, H, W\), .* has \(2, 3, 4, 4, 4\)"),
        ((), r"must have shape \(N, H, W\), .* has \(\)"),
        ((0, 4, 4), "must hold at least one pixel"),
    ],
)
def test_doubtful_axes_are_asked_for(tmp_path, shape, match):
    with pytest.raises(DataError, match=match):
        from_array(tmp_path, np.zeros(shape, np.uint8))


def test_three_axes(tmp_path):
    with pytest.warns(
        UserWarning, match=r"read as 3 grey images: give channels_last=False .* save .* as \(1, 3, 16, 20\)"
    ):
        assert from_array(tmp_path, np.zeros((3, 16, 20), np.uint8)).shape == (3, 1, 16, 20)
    with pytest.raises(DataError, match=r"`channels_last` needs 4 axes \(N, H, W, C\)"):
        from_array(tmp_path, np.zeros((4, 8, 9), np.uint8), channels_last=True)


# --- names of entries

GREY = np.arange(10 * 36, dtype=np.uint8).reshape(10, 6, 6)


def test_dsprites_as_published(tmp_path):
    """Its own names; the pickled entry is never touched, nor are the values of the factors."""
    classes = np.stack([np.zeros(12), np.arange(12) % 3, *np.ones((3, 12)), np.arange(12) // 3], 1).astype(np.int64)
    np.savez_compressed(
        tmp_path / "dsprites.npz",
        imgs=(np.arange(12 * 64).reshape(12, 8, 8) % 2).astype(np.uint8),
        latents_classes=classes,
        latents_values=np.array([Evil()]),
        metadata=np.array({"evil": Evil()}),
    )
    dataset = load(tmp_path / "dsprites.npz", "all", value_range=(0, 1))
    assert dataset.images.unique().tolist() == [0, 255]
    assert dataset.factor_names == ("shape", "position_y")
    assert dataset.factors.tolist() == classes[:, [1, 5]].tolist()
    assert dataset.labels.tolist() == classes[:, 1].tolist()


def test_medmnist_as_published(tmp_path):
    parts = {"train": 5, "val": 2, "test": 3}
    entries = {f"{split}_images": GREY[:count] for split, count in parts.items()}
    entries |= {f"{split}_labels": np.arange(count, dtype=np.uint8)[:, None] for split, count in parts.items()}
    np.savez_compressed(tmp_path / "pneumoniamnist.npz", **entries)
    assert vl.data.splits(tmp_path / "pneumoniamnist.npz") == ("train", "val", "test")
    for split, count in parts.items():
        dataset = load(tmp_path / "pneumoniamnist.npz", split)
        assert torch.equal(dataset.images[:, 0], torch.from_numpy(GREY[:count]))
        assert dataset.labels.tolist() == list(range(count))
    assert load(tmp_path / "pneumoniamnist.npz", "all").labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("names", "options", "splits"),
    [
        (["X_train", "X_Valid", "X_test"], {}, ("train", "val", "test")),
        (["training_imgs", "validation_imgs"], {}, ("train", "val")),
        (["train", "test"], {}, ("train", "test")),
        (["train_faces", "test_faces", "other"], {"images_key": "faces"}, ("train", "test")),
        (["train_faces", "test_faces", "other"], {"images_key": "test_faces"}, ()),
        (["faces", "other"], {"images_key": "faces"}, ()),
        (["anything"], {}, ()),
        (["image", "other"], {}, ()),
    ],
)
def test_names_of_entries(tmp_path, names, options, splits):
    np.savez(tmp_path / "a.npz", **{name: GREY[: 3 + i] for i, name in enumerate(names)})
    torch.save({name: torch.from_numpy(GREY[: 3 + i]) for i, name in enumerate(names)}, tmp_path / "a.pt")
    for path in (tmp_path / "a.npz", tmp_path / "a.pt"):
        found = [len(load(path, split, **options)) for split in splits or ["all"]]
        wanted = names.index(options.get("images_key", names[0])) if not splits else 0
        assert found == [3 + wanted + i for i in range(len(splits) or 1)]


@pytest.mark.parametrize(
    ("names", "options", "match"),
    [
        (["images", "x"], {}, "has several entries that may be the images; choose by `images_key` among images, x"),
        (["images", "x_train"], {}, "has several entries that may be the images"),
        (["x_val", "x_valid"], {}, "has several entries that may be the images"),
        (["faces", "other"], {}, "must hold one of images, .* got faces, other; name the images by `images_key`"),
        (["faces", "other"], {"images_key": "x"}, "must hold 'x', got faces, other; name the images by `images_key`"),
    ],
)
def test_doubtful_entries_are_asked_for(tmp_path, names, options, match):
    np.savez(tmp_path / "a.npz", **dict.fromkeys(names, GREY))
    with pytest.raises(DataError, match=match):
        load(tmp_path / "a.npz", "all", **options)


def test_labels_of_arrays(tmp_path):
    np.savez(
        tmp_path / "names.npz", x_train=GREY, y_train=np.array(["b"] * 10), x_test=GREY[:2], y_test=np.array(["c", "a"])
    )
    train, test = (load(tmp_path / "names.npz", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert (train.labels.tolist(), test.labels.tolist()) == ([1] * 10, [2, 0])
    np.savez(tmp_path / "one_hot.npz", images=GREY, labels=np.eye(10))
    assert load(tmp_path / "one_hot.npz", "all").labels.tolist() == list(range(10))
    for many in (np.ones((10, 14), np.uint8), np.linspace(0, 1, 140).reshape(10, 14)):
        np.savez(tmp_path / "many.npz", images=GREY, labels=many)
        with pytest.warns(UserWarning, match=r"labels of .* were skipped: shape \(10, 14\) is attributes of an image"):
            assert load(tmp_path / "many.npz", "all").labels is None
    np.savez(tmp_path / "half.npz", images=GREY, labels=np.arange(10).astype(np.float16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "half.npz", "all").labels.tolist() == list(range(10))
    for labels, match in ((np.full(10, np.nan), "whole numbers, got nan"), (np.zeros(9), r"shape \(10\), got \(9,\)")):
        np.savez(tmp_path / "wrong.npz", images=GREY, labels=labels)
        with pytest.raises(DataError, match=rf"wrong\.npz: `labels` must .*{match}"):
            load(tmp_path / "wrong.npz", "all")


# --- files from strangers


def test_large_npy_files_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("vaelib.data.entries.MAPPED_FROM", 0)
    np.save(tmp_path / "a.npy", GREY[:, None])
    images = load(tmp_path / "a.npy", "all").images
    with (tmp_path / "a.npy").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\xaa")
    assert images[-1, 0, -1, -1] == 0xAA  # of the file, not of a copy
    images[0] = 7
    assert np.load(tmp_path / "a.npy")[0].max() == 35


def test_entries_that_are_not_used_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", images=GREY, huge=np.arange(100.0))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    at = content.index(np.arange(50.0, 52.0).tobytes())
    content[at] ^= 1  # its checksum is now wrong
    (tmp_path / "a.npz").write_bytes(content)
    assert len(load(tmp_path / "a.npz", "all")) == 10
    with pytest.raises(DataError, match="Bad CRC-32 for file 'huge.npy'"):
        load(tmp_path / "a.npz", "all", images_key="huge")


def test_a_header_that_announces_more_than_follows(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    content = (tmp_path / "a.npy").read_bytes()
    for header, match in ((b"(99999999, 6, 6)", "announces 3599999964 bytes"), (b"(9, 6, 6)", "announces 324 bytes")):
        wrong = content[:128].replace(b"(10, 6, 6)", header).replace(b" " * (len(header) - 10), b"", 1)
        (tmp_path / "wrong.npy").write_bytes(wrong[:127].ljust(127) + b"\n" + content[128:])
        with pytest.raises(DataError, match=rf"wrong.npy is damaged: its header {match} for shape .* and 360 follow"):
            load(tmp_path / "wrong.npy")
    (tmp_path / "two.npy").write_bytes(content * 2)
    with pytest.raises(DataError, match="announces 360 bytes .* and 848 follow"):
        load(tmp_path / "two.npy")


def test_compressed_files_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("vaelib.data.guard.MAX_EXPANDED", 100_000)
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((200, 32, 32), np.uint8))
    with pytest.raises(DataError, match=r"bomb.npz \(images\) would expand from .* above the limit .* save it as .npy"):
        load(tmp_path / "bomb.npz")
    np.savez_compressed(
        tmp_path / "fair.npz", images=np.random.default_rng(0).integers(0, 256, (200, 32, 32), np.uint8)
    )
    assert len(load(tmp_path / "fair.npz", "all")) == 200
    torch.save(torch.zeros(1, 32, 32).expand(200, 32, 32), tmp_path / "bomb.pt")
    with pytest.raises(DataError, match="bomb.pt would expand from .* save a tensor with values of its own"):
        load(tmp_path / "bomb.pt")
    monkeypatch.setattr("vaelib.data.guard._free_memory", lambda: 1_000)
    for name in ("fair.npz", "bomb.pt"):
        with pytest.raises(DataError, match=rf"{name}.* would take .* of the .* of free memory; save"):
            load(tmp_path / name)


def test_bfloat16(tmp_path):
    torch.save(torch.full((4, 8, 8), 0.5, dtype=torch.bfloat16), tmp_path / "a.pt")
    assert load(tmp_path / "a.pt", "all").images.unique().tolist() == [0.5]


def test_views_of_one_tensor_are_each_mapped_once(tmp_path):
    both = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(4, 1, 1, 1)
    torch.save({"x_train": both, "x_test": both[:2]}, tmp_path / "a.pt")
    images = load(tmp_path / "a.pt", "all", value_range=(0, 63)).images
    np.testing.assert_allclose(images[0, 0].flatten(), np.arange(64) * 255 / 63, atol=0.5)
    assert (images == images[0]).all()


def test_warnings_name_the_callers_line(tmp_path):
    with pytest.warns(UserWarning, match="1 is read as white") as caught:
        from_array(tmp_path, (RAMP % 2).astype(np.uint8))
    assert [warning.filename for warning in caught] == [__file__]


def raw(content):
    return lambda path: path.write_bytes(content)


def array(values):
    return lambda path: np.save(path, values, allow_pickle=True)


def archive(**entries):
    return lambda path: np.savez(path, **entries)


def tensor(make):
    return lambda path: torch.save(make(), path)


def lzma(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as written, written.open("images.npy", "w") as file:
        np.save(file, GREY)


NOT_PLAIN = [
    ("torn.npz", raw(b"PK\x03\x04torn"), "is not a readable .npz file"),
    ("torn.npy", raw(b"\x93NUMPY"), "is not a readable .npy file"),
    ("torn.pt", raw(b"PK"), r"is not a readable .pt file: it is damaged, or holds other objects\.$"),
    ("new.npy", raw(b"\x93NUMPY\x03\x00" + bytes(200)), r"must be of version 1 or 2 of the .npy format, got \(3, 0\)"),
    ("lzma.npz", lzma, r"\(images\) is compressed as numpy never does"),
    ("evil.npy", array(np.array([Evil()])), "holds pickled Python objects, which are never read"),
    ("evil.npz", archive(images=GREY, labels=np.array([Evil()] * 10)), r"\(labels\) holds pickled Python objects"),
    ("evil.pt", tensor(Evil), "holds more than plain tensors"),
    ("text.npy", array(np.array(["a"])), "must hold numeric arrays"),
    ("range.npy", array(np.full((4, 4, 4), 7.0)), r"`images` must have values in \[0, 1\], got \[7, 7\]"),
    (
        "names.npz",
        archive(first=GREY, second=GREY),
        "one of images, image, imgs, x, data, arr_0, got first, second; name",
    ),
    ("factors.npz", archive(imgs=GREY, latents_classes=np.zeros(10)), r"whole numbers \(N, F\), got float64 \(10,\)"),
    ("meta.pt", tensor(lambda: torch.zeros(4, 8, 8, device="meta")), "one that is on the meta device, without values"),
    ("float8.pt", tensor(lambda: torch.zeros(4, 8, 8).to(torch.float8_e4m3fn)), "of dtype torch.float8_e4m3fn"),
    ("complex.pt", tensor(lambda: torch.zeros(4, 8, 8).cfloat()), "must hold numeric arrays, got complex64"),
    ("sparse.pt", tensor(lambda: torch.zeros(4, 8, 8).to_sparse()), "sparse"),
    ("nested.pt", tensor(lambda: torch.nested.nested_tensor([torch.zeros(8, 8)])), "nested"),
    ("int8.pt", tensor(lambda: torch.quantize_per_tensor(torch.zeros(4, 8, 8), 0.1, 0, torch.quint8)), "quantized"),
    ("list.pt", tensor(lambda: {"images": [1, 2]}), "must hold numeric arrays, got list"),
    ("str.pt", tensor(lambda: {"images": "images"}), "must hold numeric arrays, got str"),
    (
        "module.pt",
        tensor(lambda: torch.nn.Linear(1, 1)),
        r"plain tensors: an object of torch.nn.modules.linear.Linear\.$",
    ),
    *((f"pipe.{kind}", os.mkfifo, "is not a regular file, but a pipe") for kind in ("npy", "npz", "pt")),
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch is about to end some kinds
@pytest.mark.parametrize(("name", "write", "match"), NOT_PLAIN, ids=[name for name, _, _ in NOT_PLAIN])
def test_files_of_more_or_less_than_plain_arrays(tmp_path, capsys, name, write, match):
    write(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}.*{match}"):
        load(tmp_path / name, "all")
    assert "run" not in capsys.readouterr().out  # of a pickle
