"""Small bundles written by hand, in milliseconds instead of seconds, and the weights that they compute with."""

import hashlib
import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

WEIGHTS = np.random.default_rng(0)
MU, LOGVAR, PIXELS = (WEIGHTS.standard_normal(shape, dtype=np.float32) for shape in ((7, 2), (7, 2), (5, 4)))
CODEBOOK = np.float32([[0.0], [0.2], [0.4], [0.7], [1.0]])
TABLE, STEPS = (WEIGHTS.standard_normal(shape, dtype=np.float32) for shape in ((4, 5), (4, 5)))
NAMES = ["cat", "dog", "owl"]

ONE_HOT = "at = Unsqueeze (condition, one)\nis = Equal (at, classes)\nlabel = Cast <to = 1> (is)"
CLASSES = {"one": np.int64([1]), "classes": np.int64([0, 1, 2])}
IMAGE, ROW = {"flat_shape": np.int64([-1, 4])}, {"image_shape": np.int64([-1, 1, 2, 2])}
ENCODE = f"""
    flat = Reshape (image, flat_shape)
    {ONE_HOT}
    joined = Concat <axis = 1> (flat, label)
    mu = MatMul (joined, mu_weight)
    logvar = MatMul (joined, logvar_weight)
"""
DECODE = f"""
    {ONE_HOT}
    joined = Concat <axis = 1> (z, label)
    pixels = MatMul (joined, pixel_weight)
    recon_params = Reshape (pixels, image_shape)
    mean = Sigmoid (recon_params)
"""
CONDITIONAL = {
    "encoder": (
        "float[B,1,2,2] image, int64[B] condition",
        "float[B,2] z, float[B,2] mu, float[B,2] logvar",
        ENCODE + "z = Identity (mu)",
        {**CLASSES, **IMAGE, "mu_weight": MU, "logvar_weight": LOGVAR},
    ),
    "decoder": (
        "float[B,2] z, int64[B] condition",
        "float[B,1,2,2] mean, float[B,1,2,2] recon_params",
        DECODE,
        {**CLASSES, **ROW, "pixel_weight": PIXELS},
    ),
    "vae": (
        "float[B,1,2,2] image, float[B,2] noise, int64[B] condition",
        "float[B,1,2,2] reconstruction, float[B,2] z, float[B] distortion, float[B] kl",
        """
        z = Identity (noise)
        reconstruction = Identity (image)
        kl_column = MatMul (noise, ones)
        kl = Reshape (kl_column, all)
        distortion = Cast <to = 1> (condition)
        """,
        {"ones": np.ones((2, 1), np.float32), "all": np.int64([-1])},
    ),
}


def decoder_by(operator):
    """A decoder whose images are ``operator`` of z."""
    outputs = "float[B,1,2,2] mean, float[B,1,2,2] recon_params"
    return "float[B,1,2,2] z", outputs, f"recon_params = {operator} (z)\nmean = {operator} (z)", {}


QUANTISED = {
    "encoder": (
        "float[B,1,2,2] image",
        "float[B,1,2,2] z, int64[B,4] codes",
        """
        column = Reshape (image, column_shape)
        away = Sub (column, values)
        distance = Abs (away)
        codes = ArgMin <axis = 2, keepdims = 0> (distance)
        found = Gather (codebook, codes)
        z = Reshape (found, image_shape)
        """,
        {"column_shape": np.int64([-1, 4, 1]), "values": CODEBOOK[:, 0], "codebook": CODEBOOK, **ROW},
    ),
    "codes": (
        "int64[B,4] codes",
        "float[B,1,2,2] z",
        "found = Gather (codebook, codes)\nz = Reshape (found, image_shape)",
        {"codebook": CODEBOOK, **ROW},
    ),
    "decoder": decoder_by("Identity"),
    "next": (
        "int64[B,4] codes, int64[B] position",
        "float[B,5] logits",
        """
        at = Unsqueeze (position, one)
        is_before = Less (places, at)
        mask = Cast <to = 1> (is_before)
        numbers = Cast <to = 1> (codes)
        before = Mul (numbers, mask)
        shift = MatMul (before, steps)
        base = Gather (table, position)
        logits = Add (base, shift)
        """,
        {"one": np.int64([1]), "places": np.int64([0, 1, 2, 3]), "steps": STEPS, "table": TABLE},
    ),
    "vae": (
        "float[B,1,2,2] image",
        "float[B,1,2,2] reconstruction, float[B,1,2,2] z, float[B] distortion, float[B] kl",
        """
        z = Identity (image)
        reconstruction = Identity (image)
        flat = Reshape (image, flat_shape)
        column = MatMul (flat, ones)
        kl = Reshape (column, all)
        distortion = Identity (kl)
        """,
        {**IMAGE, "ones": np.ones((4, 1), np.float32), "all": np.int64([-1])},
    ),
}
BATCH_DEPENDENT_WEIGHTS = {
    name: WEIGHTS.standard_normal(shape, dtype=np.float32) / 8
    for name, shape in {
        "a": (63, 33),
        "mu_weight": (33, 3),
        "logvar_weight": (33, 3),
        "b": (3, 33),
        "c": (33, 63),
    }.items()
}
BATCH_DEPENDENT_SHAPES = {
    "flat_shape": np.int64([-1, 63]),
    "image_shape": np.int64([-1, 1, 9, 7]),
    "all": np.int64([-1]),
}
ENCODE_UNSTEADILY = """
    flat = Reshape (image, flat_shape)
    hidden = MatMul (flat, a)
    active = Elu (hidden)
    mu = MatMul (active, mu_weight)
    logvar = MatMul (active, logvar_weight)
"""
DECODE_UNSTEADILY = """
    spread = MatMul (z, b)
    bent = Elu (spread)
    pixels = MatMul (bent, c)
    recon_params = Reshape (pixels, image_shape)
"""
BATCH_DEPENDENT = {
    "encoder": (
        "float[B,1,9,7] image",
        "float[B,3] z, float[B,3] mu, float[B,3] logvar",
        ENCODE_UNSTEADILY + "z = Identity (mu)",
    ),
    "decoder": (
        "float[B,3] z",
        "float[B,1,9,7] mean, float[B,1,9,7] recon_params",
        DECODE_UNSTEADILY + "mean = Sigmoid (recon_params)",
    ),
    "vae": (
        "float[B,1,9,7] image, float[B,3] noise",
        "float[B,1,9,7] reconstruction, float[B,3] z, float[B] distortion, float[B] kl",
        f"""
        {ENCODE_UNSTEADILY}
        sigma = Exp (logvar)
        away = Mul (sigma, noise)
        z = Add (mu, away)
        {DECODE_UNSTEADILY}
        reconstruction = Sigmoid (recon_params)
        bits = Softplus (pixels)
        distortion = ReduceSum <keepdims = 0> (bits, axis)
        kl = ReduceSum <keepdims = 0> (z, axis)
        """,
    ),
}
FREE_WEIGHTS = {
    "patches": WEIGHTS.standard_normal((4, 3, 4, 4), dtype=np.float32) / 8,
    "bricks": WEIGHTS.standard_normal((2, 3, 4, 4), dtype=np.float32) / 8,
}
FREE = {
    "encoder": (
        "float[B,3,H,W] image",
        "float[B,2,h,w] z, float[B,2,h,w] mu, float[B,2,h,w] logvar",
        """
        both = Conv <kernel_shape = [4, 4], strides = [4, 4]> (image, patches)
        mu, logvar = Split <axis = 1, num_outputs = 2> (both)
        z = Identity (mu)
        """,
        FREE_WEIGHTS,
    ),
    "decoder": (
        "float[B,2,h,w] z",
        "float[B,3,H,W] mean, float[B,3,H,W] recon_params",
        """
        recon_params = ConvTranspose <kernel_shape = [4, 4], strides = [4, 4]> (z, bricks)
        mean = Sigmoid (recon_params)
        """,
        FREE_WEIGHTS,
    ),
    "vae": (
        "float[B,3,H,W] image, float[B,2,h,w] noise",
        "float[B] distortion, float[B] kl",
        """
        distortion = ReduceSum <keepdims = 0> (image, axes)
        kl = ReduceSum <keepdims = 0> (noise, axes)
        """,
        {"axes": np.int64([1, 2, 3])},
    ),
}
AUTOENCODER = {
    "encoder": ("float[B,1,2,2] image", "float[B,1,2,2] z", "z = Neg (image)", {}),
    "decoder": decoder_by("Neg"),
}


def without_a_graph(size, *latent_shape):
    """The entry of a standard normal prior, in the manifest."""
    return {
        "file": None,
        "inputs": {"noise": {"dtype": "float32", "shape": ["B", size]}},
        "outputs": {"z": {"dtype": "float32", "shape": ["B", *latent_shape]}},
    }


UNIFORM = {
    "file": None,
    "inputs": {"noise": {"dtype": "float32", "shape": ["B", 4]}},
    "outputs": {"codes": {"dtype": "int64", "shape": ["B", 4]}},
}
LABELS = {"kind": "labels", "num_classes": 3, "names": NAMES}
VECTOR = {"kind": "vector", "size": 3}
MODEL = {
    "kind": "VAE",
    "image_shape": [1, 2, 2],
    "image_range": [0.0, 1.0],
    "likelihood": "Bernoulli",
    "prior": "StandardNormal",
    "parameters": 1,
    "weights_sha256": "0" * 64,
    "opset": 18,
    "precision": "fp32",
    "config": None,
    "spatial_multiple": None,
    "validation": {},
}


def as_bytes(part, inputs, outputs, body, constants):
    text = f'<ir_version: 8, opset_import: ["" : 18]> {part} ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    helper.set_model_props(proto, {"vaelib.part": part, "vaelib.weights_sha256": "0" * 64})
    return proto.SerializeToString()


def specs(text):
    """``float[B,2] z`` as it stands in a manifest."""
    found = {}
    for kind, name in (word.split() for word in text.split(", ")):
        dtype, _, axes = kind.rstrip("]").partition("[")
        shape = [int(axis) if axis.isdecimal() else axis for axis in axes.split(",")]
        found[name] = {"dtype": {"float": "float32"}.get(dtype, dtype), "shape": shape}
    return found


def write(directory, graphs, model, more=()):
    """A bundle of these graphs; ``more`` are entries of graphs without a file."""
    directory.mkdir()
    contents = {f"{part}.onnx": as_bytes(part, *graph) for part, graph in graphs.items()}
    contents["README.md"] = b"# Written by hand\n"
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    files = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}
    entries = {
        part: {"file": f"{part}.onnx", "inputs": specs(inputs), "outputs": specs(outputs)}
        for part, (inputs, outputs, *_) in graphs.items()
    }
    manifest = {"schema": "3", "version": "0", "model": MODEL | model, "graphs": entries | dict(more), "files": files}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def conditional(directory, names=NAMES):
    return write(
        directory,
        CONDITIONAL,
        {"latent_shape": [2], "condition": LABELS | {"names": names}},
        {"prior": without_a_graph(2, 2)},
    )


def of_a_vector(directory):
    """The same networks; the vector is added in the place of the labels' one-hot."""
    graphs = {}
    for part, (inputs, outputs, body, constants) in CONDITIONAL.items():
        body = body.replace(ONE_HOT, "label = Identity (condition)").replace("(condition)\n        ", "(kl)\n        ")
        graphs[part] = inputs.replace("int64[B] condition", "float[B,3] condition"), outputs, body, constants
    return write(directory, graphs, {"latent_shape": [2], "condition": VECTOR}, {"prior": without_a_graph(2, 2)})


def quantised(directory, *, is_uniform=False):
    graphs = {part: graph for part, graph in QUANTISED.items() if not (is_uniform and part == "next")}
    model = {"latent_shape": [1, 2, 2], "codes": {"num_codes": 5, "depth": 1, "shape": [2, 2]}, "prior": "Codes"}
    return write(directory, graphs, model, {"prior": UNIFORM} if is_uniform else {})


def autoencoder(directory):
    return write(directory, AUTOENCODER, {"latent_shape": [1, 2, 2], "kind": "AutoEncoder", "prior": "none"})


def batch_dependent(directory):
    """With operators that compute an image by the batch around it: graphs that are run image by image."""
    constants = BATCH_DEPENDENT_WEIGHTS | BATCH_DEPENDENT_SHAPES | {"axis": np.int64([1])}
    graphs = {part: (*graph, constants) for part, graph in BATCH_DEPENDENT.items()}
    return write(directory, graphs, {"image_shape": [1, 9, 7], "latent_shape": [3]}, {"prior": without_a_graph(3, 3)})


def free(directory):
    """Of images whose height and width are multiples of 4, trained at 16 x 12."""
    model = {"image_shape": [3, 16, 12], "latent_shape": [2, 4, 3], "spatial_multiple": 4}
    return write(directory, FREE, model, {"prior": without_a_graph(24, 2, 4, 3)})
