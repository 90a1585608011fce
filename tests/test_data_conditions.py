"""The condition of images: it stays with its image, and data without one, or with a wrong one, are errors."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset
from writing import image_bytes, write_folder, write_shard

import vaelib as vl
from vaelib._images import Batch, as_batch, as_batches, check_condition, opened
from vaelib.data import ImageDataset, hold_out, load, stream
from vaelib.data.dataset import binarized, concatenated, resized
from vaelib.errors import DataError

CPU = torch.device("cpu")
COUNT = 24
GREY = np.arange(10, 10 + COUNT, dtype=np.uint8) * 7
"""The value of every pixel of an image tells its number, and so its class."""
CLASS = np.arange(COUNT) % 3
TEN = vl.Labels(10)


def folder(root):
    return write_folder(root / "set", {f"{'abc'[c]}/{g:03d}.png": int(g) for g, c in zip(GREY, CLASS, strict=True)})


def shards(root):
    for number in range(2):
        entries = [
            entry
            for index in range(number, COUNT, 2)
            for entry in ((f"{index:02d}.png", int(GREY[index])), (f"{index:02d}.cls", b"%d" % CLASS[index]))
        ]
        write_shard(root / "shards" / f"{number}.tar", entries)
    return root / "shards"


def archive(root):
    np.savez(root / "a.npz", images=np.broadcast_to(GREY[:, None, None], (COUNT, 4, 6)), labels=CLASS)
    return root / "a.npz"


def in_splits(root):
    images = np.broadcast_to(GREY[:, None, None], (COUNT, 4, 6))
    np.savez(root / "s.npz", x_train=images[:16], y_train=CLASS[:16], x_test=images[16:], y_test=CLASS[16:])
    return root / "s.npz"


def is_paired(x, condition):
    """Whether each image has the class that its pixels tell."""
    number = (x.amax((1, 2, 3)) * 255 / 7).round().long() - 10
    return condition.dtype == torch.int64 and torch.equal(condition.cpu(), torch.from_numpy(CLASS)[number.cpu()])


def batches_of(images, **options):
    return list(as_batches("data", images, 5, CPU, condition=TEN, **options))


@pytest.mark.parametrize("make", [folder, shards, archive, in_splits])
@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_a_condition_stays_with_its_image(tmp_path, make, split):
    """Through splits, subsets, flips, sizes, hold-out, order, loaders with workers, memory and disk."""
    path, sets = make(tmp_path), []
    sets.append(load(path, split, condition="labels", image_size=(3, 3), flip=True))
    if make in (folder, shards):
        sets += [
            stream(path, split, condition="labels", flip=True, workers=w) for w in ((0, 1) if split == "all" else (0,))
        ]
    for images in sets:
        images = images.subset(torch.randperm(len(images)))
        train, val = hold_out(images, 0.3) if len(images) > 2 else (images, images)
        for part in (images, train, val, images.subset(slice(1, 2)), images.to("cpu")):
            found = batches_of(part) + list(part.batches(4, shuffle=True)) + list(DataLoader(part, 3, shuffle=True))
            assert all(isinstance(batch, Batch) and is_paired(*batch) for batch in found)
            assert sum(len(batch.x) for batch in found) == 3 * len(part)
            assert is_paired(part[0].x[None], part[0].condition[None])
            assert part.num_classes == 3
        assert torch.equal(images.condition, images.labels)


def test_sets_made_from_others_keep_it():
    images = torch.from_numpy(GREY).view(COUNT, 1, 1, 1).repeat(1, 1, 4, 4)
    data = ImageDataset(images, labels=torch.from_numpy(CLASS), condition="labels")
    halves = [data.subset(slice(0, 9)), data.subset(slice(9, None))]
    for other in (
        resized(data, (2, 2)),
        binarized(data, None),
        concatenated(halves),
        data.replace(images.float() / 255),
    ):
        assert all(is_paired(*batch) for batch in batches_of(other))
    assert concatenated([*halves, ImageDataset(images)]).condition is None
    assert torch.equal(binarized(data, "static").condition, data.condition)
    assert "with a condition" in repr(data) and "condition" not in repr(ImageDataset(images))


def test_one_tensor_of_ones_own():
    angles = torch.rand(7, 2, dtype=torch.float64)
    data = ImageDataset(torch.rand(7, 1, 4, 4), condition=angles)
    assert data[3].condition.dtype == torch.float32
    x, condition = next(iter(DataLoader(data, 7)))
    assert torch.equal(x, data.images) and torch.equal(condition, angles.float())
    assert ImageDataset(
        torch.rand(2, 1, 4, 4), condition=torch.tensor([1, 0], dtype=torch.uint8)
    ).condition.tolist() == [1, 0]


def test_factors_have_one_scale_in_every_split(tmp_path):
    train, test = (load("shapes", split, image_size=8, condition="factors") for split in ("train", "test"))
    for data in (train, test, train.subset(slice(0, 3))):
        assert torch.equal(data.condition, data.factors / torch.tensor([2, 5, 39, 31, 31]))
    assert load("shapes", "test", image_size=8, condition="labels").num_classes == 3
    factors = np.stack([np.arange(COUNT) % 2, np.ones(COUNT), np.arange(COUNT)], 1).astype(np.int64)
    images = np.broadcast_to(GREY[:, None, None], (COUNT, 4, 6))
    parts = {"train": slice(0, 19), "test": slice(19, 24)}
    entries = {f"{name}_images": images[part] for name, part in parts.items()}
    entries |= {f"{name}_latents_classes": factors[part] for name, part in parts.items()}
    np.savez(tmp_path / "f.npz", **entries)
    for name, part in parts.items():
        data = load(tmp_path / "f.npz", name, condition="factors")
        assert data.factor_names == ("factor_0", "factor_2") and data.factor_sizes == (2, COUNT)
        torch.testing.assert_close(data.condition, torch.from_numpy(factors[part][:, [0, 2]] / [1, COUNT - 1]).float())


def test_the_stand_in_of_a_damaged_image_brings_its_own_label(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    write_folder(tmp_path, {f"{'abc'[i]}/{i}.png": image for i, image in enumerate(images)})
    damaged = bytearray(image_bytes(images[1]))
    damaged[2000:2100] = bytes(100)
    (tmp_path / "b" / "1.png").write_bytes(damaged)
    for workers in (0, 1):
        data = stream(tmp_path, "all", condition="labels", workers=workers)
        with pytest.warns(UserWarning, match="the next one takes its place"):
            labels = [data[i].condition.item() for i in range(3)]
        assert labels == next(data.batches(3)).condition.tolist() == [0, 2, 2]


X = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([3, 1, 4, 1, 5, 9, 2])
NAMED = vl.Labels(3, names=("cat", "dog", "owl"))


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y.int()],
        (X, Y, "more"),
        {"image": X, "label": Y},
        {"pixel_values": X.numpy(), "labels": Y.numpy(), "index": 1},
        {"x": X, "condition": Y.tolist()},
        Batch(X, Y),
    ],
)
def test_loaders_give_pairs_or_dicts(batch):
    found = as_batch("train", batch, TEN)
    assert torch.equal(found.x, X) and torch.equal(found.condition, Y) and found.condition.dtype == torch.int64
    assert as_batch("train", batch).condition is None
    (whole,) = as_batches("train", [batch], 3, CPU, condition=TEN)
    assert torch.equal(whole.condition, Y)


def test_names_are_taken_for_numbers():
    assert as_batch("train", (X[:3], ["owl", "cat", "dog"]), NAMED).condition.tolist() == [2, 0, 1]
    assert as_batch("train", (X, torch.rand(7, 2)), vl.Vector(2)).condition.shape == (7, 2)


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(X, Y),
        Batch(X, Y),
        Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(7)),
        Subset(ImageDataset(torch.cat([X, X]), labels=torch.cat([Y, Y]), condition="labels"), range(7, 14)),
        DataLoader(ImageDataset(X, labels=Y, condition="labels"), 3),
        DataLoader(TensorDataset(X, Y), 3),
    ],
    ids=lambda data: type(data).__name__,
)
def test_every_holder_gives_the_condition(data):
    found = list(as_batches("data", data, 3, CPU, condition=TEN))
    assert torch.equal(torch.cat([x for x, _ in found]), X) and torch.equal(torch.cat([y for _, y in found]), Y)
    assert torch.equal(torch.cat([x for x, _ in as_batches("data", data, 3, CPU)]), X)


LOADED = ImageDataset(X, labels=Y, names=[f"{i}.png" for i in range(7)], condition="labels")
CATS = ImageDataset(X[:3], labels=["cat", "dog", "ant"], condition="labels")
FEW = vl.Labels(5)
MISSING = (
    r"`data` must have a condition for a model that takes one, got .*: open images by vl.data.load\(..., condition="
)
WRONG = [
    (lambda at: opened("data", X, TEN), ValueError, MISSING),
    (lambda at: opened("data", X.numpy(), TEN), ValueError, MISSING),
    (lambda at: opened("data", TensorDataset(X), TEN), ValueError, MISSING),
    (lambda at: opened("data", ImageDataset(X, labels=Y), TEN), ValueError, MISSING),
    (lambda at: as_batch("data", X, TEN), ValueError, MISSING),
    (lambda at: as_batch("data", (X,), TEN), ValueError, MISSING),
    (lambda at: as_batch("data", (X, None), TEN), ValueError, MISSING),
    (lambda at: as_batch("data", {"image": X}, TEN), ValueError, "got the keys image: open"),
    (lambda at: as_batch("data", {"image": X, "label": Y, "labels": Y}, TEN), ValueError, "got the keys image, label,"),
    (lambda at: as_batch("data", (X, Y[:3]), TEN), ValueError, "one condition per image, got 3 for 7 images"),
    (lambda at: as_batch("data", (X, 3), TEN), ValueError, "one condition per image, got 1 for 7 images"),
    (lambda at: as_batch("data", (X, Y), FEW), ValueError, r"`data`, image 4: `condition` must be in \[0, 5\).* got 5"),
    (lambda at: opened("data", LOADED, FEW), ValueError, r"`data`, image 4 \(4.png\): `condition` must be in \[0, 5\)"),
    (lambda at: opened("data", TensorDataset(X, Y), FEW), ValueError, "`data`, image 4: `condition` must be in"),
    (lambda at: as_batch("data", (X, Y.float()), TEN), TypeError, "`data`, image 0: `condition` must be labels"),
    (lambda at: opened("data", CATS, NAMED), ValueError, "classes of the model, cat, dog, owl, got ant, cat, dog"),
    (lambda at: check_condition("train", LOADED, None), ValueError, "`train` must have no condition for a model"),
    (lambda at: ImageDataset(X, condition="labels"), DataError, "labels of all images, and this set has none"),
    (lambda at: ImageDataset(X, condition="factors"), DataError, "factors of all images, and this set has"),
    (lambda at: ImageDataset(X, condition="colour"), ValueError, "one of 'labels', 'factors', None, got 'colour'"),
    (lambda at: ImageDataset(X, condition=Y[:3]), ValueError, r"`condition` must have shape \(7\), got \(3,\)"),
    (lambda at: ImageDataset(X, condition=X[:, 0, 0, 0]), ValueError, r"`condition` must have shape \(7, size\), got"),
    (lambda at: ImageDataset(X, condition=X[:, 0, 0] / 0), ValueError, "`condition` must be finite"),
    (lambda at: load("shapes", condition="names"), ValueError, "must be one of 'labels', 'factors', None, got 'names'"),
    (lambda at: load(at / "part", condition="labels"), DataError, r"1 image \(loose.png\) of 2 have no class"),
    (lambda at: load(at / "none", condition="labels"), DataError, "labels of all images, and .*none has none"),
    (lambda at: load(at / "none", condition="factors"), DataError, "factors of all images, and .*none has none"),
    (lambda at: stream(at / "part", condition="labels"), DataError, r"1 image \(loose.png\) of 2 have no class"),
    (lambda at: stream(at / "none", condition="labels"), DataError, "labels of all images, and .*none has none"),
    (lambda at: stream(at / "none", condition="factors"), ValueError, "one of 'labels', None, got 'factors'"),
    (lambda at: load(at / "a.npy", condition="labels"), DataError, "labels of all images, and .*a.npy has none"),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("conditions")
    write_folder(root / "part", {"cat/1.png": 100, "loose.png": 110})
    write_folder(root / "none", {"1.png": 100, "2.png": 110})
    np.save(root / "a.npy", np.full((4, 4, 4), 200, np.uint8))
    return root


@pytest.mark.parametrize(("call", "error", "match"), WRONG)
def test_wrong_conditions(place, call, error, match):
    with pytest.raises(error, match=match):
        call(place)
