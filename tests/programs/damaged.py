"""What tests/test_data_mutations.py runs: damaged data files are opened."""

import collections
import io
import json
import random
import resource
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vaelib.data import ImageDataset, load

KINDS = ("npy", "npz", "pt", "tar", "png", "jpg")
FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP", "ppm": "PPM"}
FORMATS |= {"jp2": "JPEG2000", "avif": "AVIF"}
MORE_KINDS = (*KINDS, "gif", "webp", "tif", "bmp", "ppm", "jp2", "avif")
ALLOWED = (ValueError, TypeError, FileNotFoundError)  # DataError is a ValueError
LONGEST = 20  # seconds
MOST_MEMORY = 2 * 2**30
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)


def encoded(form, pixels=PIXELS[0]):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def original(kind):
    stream = io.BytesIO()
    if kind == "npy":
        np.save(stream, PIXELS)
    elif kind == "npz":
        np.savez_compressed(stream, images=PIXELS, labels=np.arange(6))
    elif kind == "pt":
        torch.save({"images": torch.from_numpy(PIXELS), "labels": torch.arange(6)}, stream)
    elif kind == "tar":
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for i, pixels in enumerate(PIXELS):
                for name, content in ((f"{i}.png", encoded("PNG", pixels)), (f"{i}.cls", b"%d" % i)):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    else:
        return encoded(FORMATS[kind])
    return stream.getvalue()


def mutated(content, draw):
    """One to four damages: flipped bits, extreme bytes, a cut, a hole, a copy, an insertion; half near the start."""
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        end = min(len(content), draw.choice((200, len(content)))) or 1
        at, length = draw.randrange(end), draw.choice((1, 4, 8, 100))
        damage = draw.randrange(7)
        if damage == 0 and content:
            content[at] ^= 1 << draw.randrange(8)
        elif damage == 1:
            content[at : at + length] = draw.choice((b"\xff", b"\0", b"\x7f", b"9")) * length
        elif damage == 2:
            del content[at:]
        elif damage == 3:
            del content[at : at + length]
        elif damage == 4:
            content[at:at] = content[at : at + length]
        elif damage == 5:
            content[at:at] = draw.randbytes(length)
        else:
            content[at : at + length] = draw.randbytes(length)
    return bytes(content)


def outcomes(kind, directory, count, seed):
    """How often each outcome was seen; raises what is not allowed."""
    draw, content, seen = random.Random(seed), original(kind), collections.Counter()
    folder = Path(directory) / "set"
    folder.mkdir()
    path = folder / f"a.{kind}"
    for number in range(count):
        path.write_bytes(mutated(content, draw))
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                is_image = kind in FORMATS
                result = load(
                    folder if is_image else path, "all", channels_last=None if is_image or kind == "tar" else True
                )
            assert isinstance(result, ImageDataset) and len(result)
            seen["image set"] += 1
        except ALLOWED as error:
            seen[type(error).__name__ if len(str(error)) > 20 else "no sentence"] += 1
        except BaseException as error:
            raise AssertionError(
                f"mutation {number} of {kind}, seed {seed}: {type(error).__name__}: {error}"
            ) from error
        assert time.perf_counter() - start < LONGEST, (kind, number)
    return seen


def measure(kind, directory):
    """500 of them, in memory that may grow by ``MOST_MEMORY``; what was seen, and the peak."""
    outcomes(kind, directory, 1, seed=0)  # imports what is imported late
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + MOST_MEMORY, virtual + MOST_MEMORY))
    (directory / "again").mkdir()
    seen = outcomes(kind, directory / "again", 500, seed=2)
    status = Path("/proc/self/status").read_text()  # rusage would count the peak of the process that started this one
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    (directory / "report.json").write_text(json.dumps({"seen": seen, "peak_bytes": peak}))
