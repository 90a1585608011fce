"""Opens mutations of a bundle: one line before each, one after it."""

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np

from vaelib.runtime import OnnxVAE, engine

engine._SECONDS = 0.0
directory, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
originals = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
whole = OnnxVAE(directory, threads=1)
images = np.random.default_rng(0).random((20, *whole.image_shape), dtype=np.float32)
has_condition, has_codes = whole.metadata["condition"] is not None, whole.metadata["codes"] is not None


def answers():
    model = OnnxVAE(directory, threads=1)
    model = model.given(labels=1) if has_condition else model
    codes = [model.encode_codes(images)] if has_codes else []
    z = model.embed(images)
    return z, *codes, model.decode(z), model.score(images), model.sample(2, seed=0)


def mutated(content, draw):
    kind = draw.choice(["flip", "cut", "insert", "zero", "swap", "repeat"])
    if kind == "cut":
        return content[: draw.randrange(len(content))]
    result = bytearray(content)
    start = draw.randrange(len(content))
    length = min(draw.choice([1, 2, 4, 16, 64]), len(content) - start)
    if kind == "flip":
        for _ in range(draw.choice([1, 1, 2, 8])):
            result[draw.randrange(len(result))] ^= 1 << draw.randrange(8)
    elif kind == "insert":
        result[start:start] = draw.randbytes(length)
    elif kind == "zero":
        result[start : start + length] = bytes(length)
    elif kind == "swap":
        result[start : start + length] = draw.choice([b"\xff" * length, draw.randbytes(length)])
    else:
        result[start:start] = result[start : start + length]
    return bytes(result)


def manifest_of(name, content):
    manifest = json.loads(originals["manifest.json"])
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(manifest).encode()


expected = answers()
for seed in range(first, last):
    draw = random.Random(seed)
    name = draw.choice([name for name in originals if name != "README.md"])
    content = mutated(originals[name], draw)
    matching = name != "manifest.json" and draw.random() < 0.7
    print(json.dumps({"seed": seed, "name": name, "matching": matching}), flush=True)
    (directory / name).write_bytes(content)
    if matching:
        (directory / "manifest.json").write_bytes(manifest_of(name, content))
    try:
        found = answers()
    except ValueError as error:
        outcome, message = "refused", str(error)
        assert message, "an error without a message"
    else:
        outcome = "loaded"
        assert [values.shape for values in found] == [values.shape for values in expected]
        assert matching or all(map(np.array_equal, found, expected)), "a mutation that nobody noticed"
    print(json.dumps(outcome), flush=True)
    for path in (name, "manifest.json"):
        (directory / path).write_bytes(originals[path])
