"""Folders and tar shards of small images, for tests to read."""

import io
import tarfile

import numpy as np
from PIL import Image


def image_bytes(content=128, mode="L", size=(6, 4), kind="PNG"):
    """A file of an array, or of one value."""
    buffer = io.BytesIO()
    is_array = hasattr(content, "shape")
    image = Image.fromarray(np.asarray(content).squeeze()) if is_array else Image.new(mode, size, content)
    image.save(buffer, kind)
    return buffer.getvalue()


def as_bytes(content):
    return content if isinstance(content, bytes) else image_bytes(content)


def write_folder(root, entries):
    """Files by their path below ``root``; an array or number stands for the image of it."""
    for name, content in entries.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(as_bytes(content))
    return root


def write_shard(path, entries):
    """The same in a tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in entries:
            data = as_bytes(content)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path
