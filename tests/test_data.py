import numpy as np
import pytest
import torch
from PIL import Image

import vaelib as vl
from vaelib.data import ImageDataset, load, read_images, shapes
from vaelib.data.dataset import binarized, concatenated, resized
from vaelib.data.named import FACTOR_SIZES, render
from vaelib.errors import DataError, MissingExtraError


def image_file(path, size=(12, 10), mode="RGB", color=128):
    Image.new(mode, size, color).save(path)


# --- the container


def test_dataset_converts_and_cuts():
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 2, 2)
    dataset = ImageDataset(images, labels=torch.arange(10))
    assert len(dataset) == 10
    assert dataset.image_shape == (1, 2, 2)
    assert dataset[3].dtype == torch.float32
    torch.testing.assert_close(dataset[3], torch.full((1, 2, 2), 3 / 255))
    seen = torch.cat(list(dataset.batches(4, shuffle=True, generator=torch.Generator().manual_seed(0))))
    assert sorted((seen[:, 0, 0, 0] * 255).round().int().tolist()) == list(range(10))
    assert "ImageDataset(10 images, (1, 2, 2), torch.uint8, labels)" in repr(dataset)
    loader = torch.utils.data.DataLoader(dataset, batch_size=5)
    assert next(iter(loader)).shape == (5, 1, 2, 2)


def test_a_set_binarises_and_flips_in_a_loader_too():
    """By torch's global generator, whose seed is a worker's own; each image with probability 1/2."""
    images = torch.zeros(64, 1, 4, 4, dtype=torch.uint8)
    images[..., :2] = 255
    loader = torch.utils.data.DataLoader(ImageDataset(images, flip=True), batch_size=64)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(next(iter(loader)))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    plain = ImageDataset(images)[0]
    mirrored = [torch.equal(image, plain.flip(-1)) for image in runs[0]]
    assert all(flipped or torch.equal(image, plain) for image, flipped in zip(runs[0], mirrored, strict=True))
    assert 16 < sum(mirrored) < 48
    drawn = ImageDataset(torch.full((1, 1, 8, 8), 0.5), dynamic=True)
    assert drawn[0].unique().tolist() == [0.0, 1.0] and not torch.equal(drawn[0], drawn[0])


def test_sets_that_need_no_new_pixels_share_memory(tmp_path):
    """Of one part, one cut out, or one with other flags; checks of all values are made once."""
    dataset = ImageDataset(torch.rand(10, 1, 4, 4), labels=torch.arange(10))
    for same in (
        concatenated([dataset]),
        resized(dataset, (4, 4)),
        binarized(dataset, None),
        binarized(dataset, "dynamic"),
        dataset.to("cpu"),
        dataset.subset(slice(0, 5)),
    ):
        assert same.images.data_ptr() == dataset.images.data_ptr()


@pytest.mark.parametrize("options", [{}, {"image_size": 8, "binarize": "static"}, {"binarize": "dynamic"}])
def test_loading_builds_one_set(tmp_path, monkeypatch, options):
    np.savez(tmp_path / "a.npz", images=np.full((20, 6, 6), 200, np.uint8), labels=np.arange(20))
    for number in range(20):
        (tmp_path / f"{number % 2}").mkdir(exist_ok=True)
        image_file(tmp_path / f"{number % 2}" / f"{number}.png")
    built, build = [], ImageDataset.__init__
    monkeypatch.setattr(ImageDataset, "__init__", lambda self, *a, **k: built.append(self) or build(self, *a, **k))
    for path in (tmp_path / "a.npz", tmp_path):
        dataset = load(path, "train", flip=True, **options)
        assert (len(built), len(dataset), len(dataset.labels), dataset.flip) == (1, 18, 18, True)
        built.clear()


@pytest.mark.parametrize(("count", "size"), [(65, 64), (64, 64), (1, 64), (1000, 64), (7, 1)])
def test_batches_are_even(count, size):
    lengths = [len(batch) for batch in ImageDataset(torch.zeros(count, 1, 2, 2)).batches(size)]
    assert sum(lengths) == count
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(lengths) == -(-count // size)


def test_dynamic_binarisation_is_anew_each_time_and_static_is_not():
    grey = torch.full((50, 1, 8, 8), 64, dtype=torch.uint8)
    dynamic = ImageDataset(grey, dynamic=True)
    first, second = dynamic.batch(slice(None)), dynamic.batch(slice(None))
    assert not torch.equal(first, second)
    for drawn in (first, second):
        assert set(drawn.unique().tolist()) == {0.0, 1.0}
        assert drawn.mean().item() == pytest.approx(64 / 255, abs=0.03)
    one, other = (dynamic.batch(slice(None), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other)


def test_static_binarisation_is_one_fixed_draw_for_the_whole_set(tmp_path):
    """An image has the same pixels in its split and in "all"; the splits share no noise; probabilities are right."""
    random = np.random.default_rng(0)
    images = random.integers(96, 160, (300, 12, 12), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    whole, train, test = (load(tmp_path / "a.npy", s, binarize="static").images for s in ("all", "train", "test"))
    of_test = load(tmp_path / "a.npy", "test").images
    places = [int((torch.from_numpy(images)[:, None] == image).flatten(1).all(1).nonzero()) for image in of_test]
    assert torch.equal(whole[places], test)
    rest = [place for place in range(300) if place not in places]
    assert torch.equal(whole[rest], train)
    assert set(whole.unique().tolist()) == {0, 255}
    white = whole.double().mean(0) / 255
    expected = torch.from_numpy(images).double().mean(0) / 255
    assert ((white - expected).abs() < 5 * 0.5 / 300**0.5).all()
    # One generator for each split, seeded alike, gave the first images of both the same uniform numbers.
    agree = (train[:30] == test[:30]).double().mean().item()
    assert agree == pytest.approx(0.5, abs=5 * 0.5 / (30 * 144) ** 0.5)
    as_floats = vl.data.ImageDataset(torch.from_numpy(images)[:, None] / 255)
    assert torch.equal(binarized(as_floats, "static").images, whole)
    assert not torch.equal(load(tmp_path / "a.npy", "all", binarize="static", seed=1).images, whole)
    ends = vl.data.ImageDataset(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).repeat(1, 1, 50, 50))
    assert torch.equal(binarized(ends, "static").images, ends.images)


# --- shapes


def test_shapes_are_seeded_and_come_with_factors():
    first, second = shapes(20, image_size=24, seed=3), shapes(20, image_size=24, seed=3)
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, shapes(20, image_size=24, seed=4).images)
    assert first.factors.shape == (20, 5)
    assert first.factor_names == ("shape", "scale", "orientation", "position_x", "position_y")
    assert torch.equal(first.labels, first.factors[:, 0])
    train, test = load("shapes", "train", image_size=8), load("shapes", "test", image_size=8)
    assert (len(train), len(test), len(load("shapes", "all", image_size=8))) == (10_000, 2_000, 12_000)
    assert (train.factors.amax(0) == torch.tensor(FACTOR_SIZES) - 1).all()


def extent(image):
    rows, columns = torch.where(image[0] > 0)
    return rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()


def test_each_factor_does_what_its_name_says():
    base = torch.tensor([[0, 3, 0, 10, 10]])

    def drawn(**changes):
        names = ("shape", "scale", "orientation", "x", "y")
        factors = base.clone()
        for name, value in changes.items():
            factors[0, names.index(name)] = value
        return render(factors, 64)[0]

    top, bottom, left, right = extent(drawn())
    moved = extent(drawn(x=30))
    assert moved[:2] == (top, bottom)
    assert moved[2] > left
    moved = extent(drawn(y=30))
    assert moved[2:] == (left, right)
    assert moved[0] > top
    areas = [drawn(scale=scale).sum().item() for scale in range(6)]
    assert areas == sorted(areas)
    assert areas[5] / areas[0] == pytest.approx(4.0, rel=0.05)
    assert torch.equal(drawn(orientation=10), drawn(orientation=0))  # a square after a quarter turn
    assert not torch.equal(drawn(shape=2, orientation=20), drawn(shape=2, orientation=0))
    assert len({drawn(shape=kind).sum().item() for kind in range(3)}) == 3


def test_shapes_stay_inside_and_their_area_does_not_depend_on_the_resolution():
    ends = torch.tensor([0, 31])
    corners = torch.cartesian_prod(torch.arange(3), torch.tensor([5]), torch.arange(0, 40, 3), ends, ends)
    for size in ((64, 64), (32, 80), (50, 33)):
        images = render(corners, size).float()
        border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=-1)
        assert border.max() == 0
    small, large = (render(corners, size).float().mean((1, 2, 3)) for size in (32, 128))
    torch.testing.assert_close(small, large, rtol=0.03, atol=0.1)


def test_edges_are_anti_aliased():
    values = shapes(50, image_size=64).images
    assert ((values > 0) & (values < 255)).any(dim=(1, 2, 3)).float().mean() > 0.9


# --- folders


def test_folder_of_pictures_of_any_size_and_mode(tmp_path):
    image_file(tmp_path / "0.png", (12, 10), "RGB", (255, 0, 0))
    image_file(tmp_path / "1.png", (7, 30), "L", 255)
    image_file(tmp_path / "2.png", (5, 5), "RGBA", (0, 255, 0, 255))
    image_file(tmp_path / "3.png", (9, 9), "1", 1)
    dataset = load(tmp_path, "all", image_size=8)
    assert dataset.images.shape == (4, 3, 8, 8)
    assert dataset.images[1].min() == 255
    assert dataset.images[0, :, 4, 4].tolist() == [255, 0, 0]
    assert dataset.labels is None


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_images([tmp_path / "turned.jpg"]).shape == (1, 3, 6, 4)


def test_pictures_are_cropped_not_squeezed(tmp_path):
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert read_images([tmp_path / "wide.png"], image_size=(5, 5)).min() > 100


# --- named sets


def test_a_missing_scipy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'svhn' needs.*pip install 'vaelib\[data\]'"):
        load("svhn")


def test_named_sets_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("VAELIB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="'mnist'.*VAELIB_DATA.*is not set"):
        load("mnist")
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    for name in ("mnist", "fashion_mnist", "kmnist", "cifar10", "svhn", "celeba"):
        with pytest.raises(
            FileNotFoundError, match=rf"'{name}' \(test\) was not found below VAELIB_DATA=.*download=True"
        ):
            load(name, "test")


def test_idx_files_of_ones_own(tmp_path, monkeypatch):
    """The reading of named sets without their files: tiny ones in MNIST's own format."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 12), ("t10k", 4)):
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + bytes(count * 28 * 28))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + bytes(count))
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    assert load("mnist", "train", image_size=32).images.shape == (12, 1, 32, 32)
    assert len(load("mnist", "all").labels) == 16
    static = load("mnist", "test", binarize="static")
    assert static.images.dtype == torch.uint8
    assert load("mnist", "test", binarize="dynamic").dynamic


def test_real_mnist(mnist_root):
    test = load("mnist", "test", image_size=32, binarize="static")
    assert test.images.shape == (10_000, 1, 32, 32)
    assert set(test.images.unique().tolist()) == {0, 255}
    assert torch.equal(test.images, load("mnist", "test", image_size=32, binarize="static").images)
    grey = load("mnist", "test")
    assert grey.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert grey.batch(slice(None)).mean().item() == pytest.approx(0.1325, abs=1e-4)


def test_the_protocols_of_papers_on_likelihoods(mnist_root):
    whole = load("mnist", "train")
    for name, how in (("dynamic_mnist", True), ("static_mnist", False)):
        sets = {split: load(name, split) for split in ("train", "val", "test")}
        assert [len(images) for images in sets.values()] == [50_000, 10_000, 10_000]
        assert all(images.dynamic == how for images in sets.values())
        assert set(sets["val"].batch(slice(50)).unique().tolist()) == {0.0, 1.0}
    val = load("dynamic_mnist", "val", condition="labels")
    assert torch.equal(val.images, whole.images[50_000:]) and torch.equal(val.condition, whole.labels[50_000:])
    assert val.num_classes == 10
    parts = torch.cat([images.images for images in sets.values()])  # of static_mnist, the last
    assert torch.equal(load("static_mnist", "all").images, parts)


# --- wrong arguments


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("wrong")
    for name, size in (("one/a", (4, 4)), ("sizes/a", (4, 4)), ("sizes/b", (4, 5)), ("right", (12, 10))):
        (root / name).parent.mkdir(exist_ok=True)
        image_file(root / f"{name}.png", size)
    (root / "empty").mkdir()
    (root / "text.png").write_text("text")
    (root / "a.txt").touch()
    return root


ZEROS = torch.zeros(2, 1, 4, 4)
WRONG = [
    (lambda at: ImageDataset(ZEROS[:0]), DataError, "at least one pixel, got shape"),
    (lambda at: ImageDataset(ZEROS).subset(slice(0)), DataError, "at least one pixel, got shape"),
    (lambda at: ImageDataset(ZEROS[0, 0]), ValueError, r"`images` must have shape \(N, C, H, W\), got \(4, 4\)"),
    (lambda at: ImageDataset(ZEROS.long()), TypeError, "uint8 or floating point.*got torch.int64"),
    (lambda at: ImageDataset(ZEROS.numpy()), TypeError, "must be a tensor.*got ndarray"),
    (lambda at: ImageDataset(ZEROS + 2), ValueError, r"`images` must have values in \[0, 1\]"),
    (lambda at: ImageDataset(ZEROS * float("nan")), ValueError, "nan"),
    (lambda at: ImageDataset(ZEROS, labels=torch.zeros(3)), ValueError, "`labels` must have shape"),
    (lambda at: ImageDataset(ZEROS, factors=torch.zeros(2, 1)), ValueError, "`factors` must have"),
    (lambda at: next(ImageDataset(ZEROS).batches(0)), ValueError, "`batch_size` must be >= 1"),
    (lambda at: render(torch.tensor([[3, 0, 0, 0, 0]])), ValueError, "`factors` must be >= 0 and below"),
    (lambda at: render(torch.zeros(1, 4).long()), ValueError, r"`factors` must have shape \(N, 5\)"),
    (lambda at: shapes(0), ValueError, "`num_images` must be >= 1"),
    (lambda at: load("shapes", seed=-1), ValueError, "`seed` must be >= 0"),
    (lambda at: load("shapes", "valid"), ValueError, "must be one of 'train', 'val', 'test', 'all', got 'valid'"),
    (lambda at: load("shapes", "val"), ValueError, r"that 'shapes' has \(train, test\) or 'all', got 'val'"),
    (lambda at: load("shapes", "test", image_size=8, binarize="often"), ValueError, "one of 'static', 'dynamic', None"),
    (lambda at: load("shapes", image_size=0), ValueError, r"`image_size\[0\]` must be >= 1, got 0"),
    (lambda at: load("dynamic_mnist", binarize="static"), ValueError, "None for 'dynamic_mnist', which is binarised"),
    (lambda at: load(at / "empty"), DataError, "no image in .*: looked for .jpg, .*, also inside .tar shards, and"),
    (lambda at: load(at / "one", "train"), DataError, "needs at least 2 images, got 1"),
    (lambda at: load("nowhere"), FileNotFoundError, "one of shapes, mnist.*or an existing path, got 'nowhere'"),
    (lambda at: load(at / "a.txt"), ValueError, r"a folder, or a file ending in \.npy, \.npz, \.pt or \.tar"),
    (lambda at: read_images([at / "missing.png"]), FileNotFoundError, "There is no image at .*missing"),
    (lambda at: read_images([at / "text.png"]), DataError, r"text\.png is not a readable image"),
    (lambda at: read_images(sorted((at / "sizes").iterdir())), DataError, "size, .*a.png is 4x4, .*b.png is 5x4"),
    (lambda at: read_images([]), ValueError, "`paths` must name at least one image"),
    (lambda at: read_images([at / "right.png"], channels=2), ValueError, "must be one of None, 1, 3, got 2"),
    (lambda at: vl.data.read_pictures, AttributeError, "no attribute 'read_pictures': write vl.data.read_images"),
    (lambda at: vl.data.read_sounds, AttributeError, "'vaelib.data' has no attribute 'read_sounds'$"),
    (lambda at: read_images("one.png"), TypeError, "`paths` must be a sequence of paths, got 'one.png'"),
    (lambda at: read_images([at / "right.png"], image_size="8,8"), TypeError, "`image_size"),
    (lambda at: read_images([at / "right.png"], image_size=0), ValueError, "`image_size"),
    (lambda at: read_images([at / "right.png"], image_size=(8,)), ValueError, "`image_size"),
]


@pytest.mark.parametrize(("call", "error", "match"), WRONG)
def test_wrong_arguments(files, call, error, match):
    with pytest.raises(error, match=match):
        call(files)


@pytest.mark.parametrize("size", [8, np.int64(8), (np.int64(8), 8)])
def test_image_sizes(files, size):
    assert read_images([files / "right.png"], image_size=size).shape == (1, 3, 8, 8)
