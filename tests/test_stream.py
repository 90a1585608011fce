"""Images that stay on disk."""

import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from writing import write_folder, write_shard

import vaelib as vl
from vaelib.errors import DataError


@pytest.fixture
def folder(tmp_path):
    images = enumerate(vl.data.shapes(25, image_size=12).images)
    return write_folder(tmp_path / "images", {f"class{index % 3}/{index:03d}.png": image for index, image in images})


def write_tar(path, images):
    pairs = [((f"{index:04d}.png", image), (f"{index:04d}.cls", b"3")) for index, image in enumerate(images)]
    write_shard(path, [entry for pair in pairs for entry in pair])


@pytest.fixture
def shards(tmp_path):
    for number in range(2):
        write_tar(tmp_path / "shards" / f"train-{number}.tar", vl.data.shapes(15, image_size=12, seed=number).images)
    write_tar(tmp_path / "shards" / "test-0.tar", vl.data.shapes(9, image_size=12, seed=5).images)
    return tmp_path / "shards"


def all_of(source, **kwargs):
    return torch.cat(list(source.batches(7, **kwargs)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "test", "all"])
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_stream_is_what_load_reads(kind, split, workers, request):
    path = request.getfixturevalue(kind)
    loaded = vl.data.load(path, split, image_size=(8, 10))
    stream = vl.data.stream(path, split, image_size=(8, 10), workers=workers)
    assert len(stream) == len(loaded) and stream.image_shape == (1, 8, 10)
    assert torch.equal(all_of(stream), all_of(loaded))
    orders = [all_of(s, shuffle=True, generator=torch.Generator().manual_seed(3)) for s in (stream, loaded)]
    assert torch.equal(*orders)


def test_binarisation_flips_and_evaluation(shards):
    stream = vl.data.stream(shards, "test", binarize="dynamic", workers=0)
    values = all_of(stream)
    assert set(values.unique().tolist()) == {0.0, 1.0} and not torch.equal(values, all_of(stream))
    model = vl.conv_vae(stream.image_shape, 2, hidden_channels=(4,))
    assert vl.evaluation.elbo(model, stream).num_images == 9
    plain, flipped = (vl.data.stream(shards, "test", flip=flip, workers=0) for flip in (False, True))
    mirrored = [not torch.equal(a, b) for a, b in zip(all_of(plain), all_of(flipped), strict=True)]
    assert 0 < sum(mirrored) < 9


def test_one_image_of_a_stream_is_that_of_a_set_in_memory(shards):
    for options in ({}, {"binarize": "dynamic"}, {"flip": True}):
        images = []
        for open_set in (vl.data.load, vl.data.stream):
            torch.manual_seed(0)
            opened = open_set(shards, "test", **options)
            images.append(torch.stack([opened[index] for index in range(9)]))
        assert images[0].dtype == images[1].dtype == torch.float32 and torch.equal(*images)


def test_training_from_a_stream_is_training_from_memory(shards):
    runs = []
    for train in (vl.data.load(shards, image_size=8), vl.data.stream(shards, image_size=8)):
        torch.manual_seed(0)
        model = vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,))
        vl.Trainer(max_epochs=2, batch_size=8).fit(model, train, train, progress=False)
        runs.append(torch.cat([value.flatten().double() for value in model.state_dict().values()]))
    assert torch.equal(*runs)


def test_transforms_draw_by_seed_epoch_and_picture(shards):
    transform = v2.Compose([v2.RandomResizedCrop(8), v2.RandomVerticalFlip()])
    streams = [vl.data.stream(shards, image_size=8, transform=transform, workers=workers) for workers in (0, 2)]
    indices = [torch.arange(4), torch.arange(4, 9)]
    first, second = (torch.cat([x for x, _ in stream.fetch(indices, "cpu", seed=1)]) for stream in streams)
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.cat([x for x, _ in streams[0].fetch(indices, "cpu", seed=2)]))
    assert torch.equal(first[4:], next(streams[0].fetch([indices[1]], "cpu", seed=1)).x)


def test_a_part_of_a_stream(folder):
    images = vl.data.stream(folder, "all", workers=0)
    assert repr(images) == "ImageStream(25 images in 25 files, (1, 12, 12), 3 classes)"
    part = images.subset(torch.tensor([3, 20]))
    assert torch.equal(all_of(part), all_of(images)[[3, 20]])
    assert part.labels.tolist() == images.labels[[3, 20]].tolist() and part.class_names == images.class_names
    assert len(part.places) == 2 and len(part.files) == len(images.files) == 25
    for indices in (torch.tensor([3]), slice(3, 4)):
        assert images.subset(indices).labels.tolist() == images.labels[3:4].tolist()
    train, val = vl.data.hold_out(images.subset(slice(4)))
    assert (len(train), len(val)) == (3, 1)


def test_a_signal_to_the_process_group_leaves_the_workers_to_the_training(folder):
    images = vl.data.stream(folder, "all", workers=1)
    expected = list(images.replace(workers=0).batches(5))
    batches = images.batches(5)
    first = next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
    assert all(torch.equal(*pair) for pair in zip([first, *batches], expected, strict=True))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("transform", "match"),
    [
        (lambda image: image.float(), r"must return images .*values in \[0, 1\], got \[0, 2"),
        (lambda image: image[:, 0], r"must return images \(1, H, W\), .*got Tensor of shape \(1, 12\)"),
        (lambda image: image.numpy(), "got ndarray of shape"),
    ],
)
def test_what_a_transform_returns_is_an_image(folder, workers, transform, match):
    images = vl.data.stream(folder, "all", transform=transform, workers=workers)
    with pytest.raises(DataError, match=match):
        next(images.batches(4))


def stream_of(name, content):
    """Opens a stream of a file that is written first."""

    def call(folder):
        (folder.parent / name).write_bytes(content)
        return vl.data.stream(folder.parent / name, "all")

    return call


WRONG = [
    (lambda at: vl.data.stream(at, flip="no"), TypeError, "`flip` must be True or False"),
    (lambda at: vl.data.stream(at, transform=3), TypeError, "`transform` must be callable, got 3"),
    (lambda at: vl.data.stream(at, transform=v2.RandomInvert), TypeError, "callable.* Give an object: RandomInvert"),
    (lambda at: vl.data.stream(at, image_size=10**6), DataError, "One image as float32 would take .*; use a smaller"),
    (lambda at: vl.data.stream(5), TypeError, "`path` must be a str or a Path, got 5"),
    (lambda at: vl.data.stream(at / "nowhere"), FileNotFoundError, "`path` must be a folder of images, or of .tar"),
    (stream_of("a.npy", b""), ValueError, r"or one shard, got .*a.npy'. Arrays are read by `load`"),
    (lambda at: vl.data.stream(at, "val"), ValueError, "`split` must be 'train', 'test' or 'all' for"),
    (lambda at: vl.data.stream(at, binarize="static"), ValueError, "must be one of 'dynamic', None, got 'static'"),
    (lambda at: vl.data.stream(at, workers=-1), ValueError, "`workers` must be >= 0"),
    (stream_of("none.tar", bytes(10_240)), DataError, "There is no image in .*none.tar"),
    (stream_of("broken.tar", b"x" * 2000), DataError, "broken.tar is not a readable tar file"),
]


@pytest.mark.parametrize(("call", "error", "match"), WRONG)
def test_wrong_streams(folder, call, error, match):
    with pytest.raises(error, match=match):
        call(folder)


PEAK = """
import resource, sys, torch, vaelib as vl
torch.set_num_threads(1)
stream = vl.data.stream(sys.argv[1], "all", image_size=128, workers=2)
model = vl.conv_vae((3, 128, 128), 8, hidden_channels=(4, 4))
vl.Trainer(max_epochs=int(sys.argv[2]), batch_size=50).fit(model, stream, progress=False)
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
# Not getrusage's own peak, which would begin with that of the process that started this one.
own = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(stream), int(own) // 1024, children // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_memory_does_not_grow_with_the_shards(tmp_path):
    """Ten passes over one shard of 400 images, and one over ten: peak MiB of the training process and of its largest
    worker. Equal work, since what the allocator keeps depends on the steps; a tenth is its play between runs, while
    3,600 more images in memory would be 169 MiB more, decoded or not."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 128, 128, 3), dtype=np.uint8)
    shard = write_shard(tmp_path / "noise.tar", [(f"{index:03d}.png", image) for index, image in enumerate(noise)])
    peaks = {}
    for count in (1, 10):
        root = tmp_path / str(count)
        root.mkdir()
        for number in range(count):
            (root / f"train-{number:06d}.tar").symlink_to(shard)
        arguments = [sys.executable, "-c", PEAK, str(root), str(10 // count)]
        result = subprocess.run(
            arguments, capture_output=True, text=True, check=True, env=os.environ | {"MALLOC_ARENA_MAX": "1"}
        )
        images, *peaks[count] = map(int, result.stdout.split())
        assert images == 400 * count
    print("peak MiB of process and largest worker:", peaks)
    for one, ten in zip(peaks[1], peaks[10], strict=True):
        assert ten < 1.1 * one
