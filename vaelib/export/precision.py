"""Smaller numbers: float16 for GPUs, int8 for CPUs; the latter only where it is measured to be worth it."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vaelib._checks import ExportError, check_images, check_shape, check_unit_range
from vaelib.evaluation.statistics import watched
from vaelib.export.conversion import lowest_ir_version
from vaelib.export.differences import Limit, answers_of_torch, drawn_inputs
from vaelib.export.graphs import Graph
from vaelib.export.parts import input_of
from vaelib.export.proof import images_per_second, session
from vaelib.vae import VAE

__all__ = ["LIMITS", "Judgement", "check_calibration", "check_headroom", "halved", "quantized", "quantized_graph"]

LIMITS = {
    "fp16": {"image": Limit(5e-3, 1.0), "nats": Limit(1e-2, 1.0), "raw": Limit(1e-2, 1e-12)},
    "int8": {"image": Limit(1.0, 1.0), "nats": Limit(1.0, 1.0), "raw": Limit(1.0, 1e-12)},
}
"""By how much such graphs may differ from torch on random inputs; int8 is judged on images instead."""
_QUANTIZED = ("Conv", "Gemm", "MatMul")
_LAYERS = (*_QUANTIZED, "ConvTranspose")
_LEAST_IMAGES, _MOST_IMAGES = 64, 512
_BATCH = 64
_LARGEST_HALF, _HEADROOM = 65_504.0, 4.0
_FEW_IMAGES = 4

Arrays = dict[str, NDArray[np.float32]]


class Judgement(NamedTuple):
    """What int8 costs and gains on images that it was not calibrated on."""

    nats_lost: float
    """By how much the ELBO falls, in nats per image."""
    psnr: float
    """Of the decoder's images against those of float32, in decibels."""
    speedup: dict[str, float]
    """Of encoder and decoder at a batch of 64, over float32."""


class _Half(nn.Module):
    """A network in float16 between float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.takes_condition = network.half(), getattr(network, "takes_condition", False)

    def forward(self, *inputs: Tensor) -> Any:
        found = self.network(*(values.half() for values in inputs))
        return tree_map_only(Tensor, lambda part: part.float(), found)


def check_headroom(whole: Graph, calibration: Mapping[str, Tensor] | None) -> None:
    """Run the model in float32 and look at what each layer of both networks gives, with one draw of z an image.

    Args:
        whole: The graph of the whole model.
        calibration: Images from :func:`check_calibration`; random images if None.

    Raises:
        ExportError: A ``ValueError`` that names the layer: if one gives more than a quarter of what float16 can hold.
    """
    count = _FEW_IMAGES if calibration is None else len(calibration["image"])
    sized = whole.for_proof() if calibration is None else whole
    inputs = {**drawn_inputs(sized, count, torch.Generator().manual_seed(0)), **(calibration or {})}
    with watched(whole.module.model) as ranges:
        for start in range(0, len(inputs["image"]), _FEW_IMAGES):
            answers_of_torch(whole, {name: values[start : start + _FEW_IMAGES] for name, values in inputs.items()})
    found = {name: float(value) for name, value in reversed(ranges.items()) if value is not None}  # layers within first
    name = max(found, key=lambda layer: (math.isnan(found[layer]), found[layer]))
    if not found[name] <= _LARGEST_HALF / _HEADROOM:
        shown = "random images" if calibration is None else "images of `calibration`"
        raise ExportError(
            f"`precision` 'fp16' needs every layer's values to be at most {_LARGEST_HALF / _HEADROOM:,.0f}, a quarter"
            f" of float16's largest, but `{name}` gives {found[name]:,.0f} on {shown}: export float32, or train with a"
            " weight decay."
        )


def halved(graph: Graph) -> Graph:
    """The same with both networks in float16; likelihood and prior stay in float32, for nats are large sums."""
    module = copy.deepcopy(graph.module)
    model: Any = module.model
    model.encoder, model.decoder = _Half(model.encoder), _Half(model.decoder)
    return graph._replace(module=module)


def quantized(
    files: Mapping[str, bytes], graphs: Mapping[str, Graph], calibration: Mapping[str, Tensor], max_loss: float
) -> tuple[dict[str, bytes], Judgement]:
    """The graphs with convolutions and products in int8, if that is worth it.

    Half of the images calibrate, the others judge.

    Args:
        files: The float32 graphs by part.
        graphs: What the files were made from, and the prior that the decoder is calibrated on too.
        calibration: Images from :func:`check_calibration`; at most 1,024 are used.
        max_loss: Nats per image that may be lost.

    Raises:
        ExportError: A ``ValueError`` with both figures: if more is lost, or encoder or decoder is not faster.
    """
    half = min(len(calibration["image"]) // 2, _MOST_IMAGES)
    first, second = (
        {name: values[half * i : half * (i + 1)] for name, values in calibration.items()} for i in range(2)
    )
    inputs = _inputs(files, graphs, first)
    of_prior = {name: values for name, values in first.items() if name in graphs["prior"].inputs}
    noise = drawn_inputs(graphs["prior"], half, torch.Generator().manual_seed(0)) | of_prior
    prior_z = answers_of_torch(graphs["prior"], noise)["z"].numpy()
    of_decoder = {**inputs["decoder"], "z": prior_z}
    inputs["decoder"] = {n: np.concatenate([values, of_decoder[n]]) for n, values in inputs["decoder"].items()}
    result = {part: quantized_graph(content, inputs[part]) for part, content in files.items()}
    judgement = _judge(files, result, _inputs(files, graphs, second))
    slowest = min(judgement.speedup.values())
    if not (judgement.nats_lost <= max_loss and slowest > 1.0):
        speeds = ", ".join(f"{part} {ratio:.2f} x" for part, ratio in judgement.speedup.items())
        raise ExportError(
            f"`precision` 'int8' must lose at most {max_loss:g} nats per image and be faster than float32; it loses"
            f" {judgement.nats_lost:.3g} nats (PSNR {judgement.psnr:.1f} dB) and runs at: {speeds}."
        )
    return result, judgement


def check_calibration(model: VAE, calibration: Any, precision: str) -> dict[str, Tensor]:
    """The images and the condition of each, by the names of the graphs' inputs; or an error with what is needed."""
    images, condition = calibration if isinstance(calibration, tuple) else (calibration, None)
    if precision == "int8" and not model.latent.has_prior:
        raise TypeError(f"`precision` 'int8' is judged by the ELBO, which a VAE has, got {type(model).__name__}.")
    if images is not None and not isinstance(images, Tensor):
        raise TypeError(f"`calibration` must be a tensor, got {type(images).__name__}.")
    least = _LEAST_IMAGES if precision == "int8" else 1
    if images is None or len(images) < least:
        wanted = "one image" if least == 1 else f"{least} images"
        got = "none" if images is None else len(images)
        raise ValueError(f"`calibration` must hold at least {wanted} for {precision!r}, got {got}.")
    check_images("calibration", images, model.image_shape, floating=images.is_floating_point())
    check_unit_range("calibration", images)
    found = {"image": images.cpu().float()}
    if model.condition is not None:
        if condition is None:
            raise ValueError(
                "`calibration` must be (images, condition) for a model with a condition, got images alone."
            )
        checked = model.condition.check(condition)
        check_shape("calibration[1]", checked.shape[:1], found["image"].shape[:1])
        found["condition"] = input_of(model.condition, checked).cpu()
    return found


def _inputs(files: Mapping[str, bytes], graphs: Mapping[str, Graph], given: Mapping[str, Tensor]) -> dict[str, Arrays]:
    """What each graph is given: the whole fixed noise, the decoder the z of the same draw."""
    drawn = drawn_inputs(graphs["vae"], len(given["image"]), torch.Generator().manual_seed(0))
    whole = {name: values.numpy() for name, values in {**drawn, **given}.items()}
    (z,) = session(files["vae"]).run(["z"], whole)
    known = {**whole, "z": z}
    return {part: {name: known[name] for name in graphs[part].inputs} for part in files}


class _Batches(CalibrationDataReader):
    def __init__(self, inputs: Arrays) -> None:
        self.batches = _split(inputs)

    def get_next(self) -> Arrays | None:
        return next(self.batches, None)


def _split(inputs: Arrays) -> Iterator[Arrays]:
    for start in range(0, len(next(iter(inputs.values()))), _BATCH):
        yield {name: values[start : start + _BATCH] for name, values in inputs.items()}


def quantized_graph(content: bytes, calibration: Arrays) -> bytes:
    """Convolutions and products of one graph in int8, calibrated on these inputs, whether or not that is worth it."""
    model = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # or it warns
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "int8.onnx"
        quantize_static(
            model,
            path,
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=not _has_vnni(),
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_exclude=[*_last_layers(model.graph), *_sums(model.graph)],
        )
        quantized_model = onnx.load(path)
    quantized_model.producer_name, quantized_model.producer_version = "vaelib", ""
    quantized_model.ir_version = lowest_ir_version(quantized_model)
    return bytes(quantized_model.SerializeToString(deterministic=True))


def _has_vnni() -> bool:
    """Without these instructions products of two 8-bit numbers saturate, and weights get 7 bits."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return bool(flags & {"avx512_vnni", "avx_vnni", "asimddp"})


def _last_layers(graph: Any) -> list[str]:
    """Those that no other layer follows on some way to an output: 256 levels are too few for logits and posteriors."""
    producers = {output: node for node in graph.node for output in node.output}
    sums = _sums(graph)
    waiting, seen, last = [value.name for value in graph.output], set(), []
    while waiting:
        name = waiting.pop()
        node = producers.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        if node.op_type in _LAYERS and node.name not in sums:
            last.append(node.name)
        else:
            waiting += node.input
    return last


def _sums(graph: Any) -> set[str]:
    """Products with ones, which nats are summed by."""
    products = [node for node in graph.node if node.op_type == "MatMul"]
    factors = {node.input[1] for node in products}
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in factors}
    return {node.name for node in products if np.all(values.get(node.input[1], 0) == 1)}


def _judge(exact: Mapping[str, bytes], small: Mapping[str, bytes], inputs: Mapping[str, Arrays]) -> Judgement:
    both = {"exact": exact, "small": small}
    nats, images = {}, {}
    for name, files in both.items():
        distortion, kl = session(files["vae"]).run(["distortion", "kl"], inputs["vae"])
        nats[name] = float((distortion.astype(np.float64) + kl).mean())  # minus the ELBO per image
        images[name] = session(files["decoder"]).run(["mean"], inputs["decoder"])[0]
    error = float(np.square(images["exact"] - images["small"]).mean())
    threads = torch.get_num_threads()
    speedup = {}
    for part in ("encoder", "decoder"):
        sessions = {name: session(files[part], threads=threads) for name, files in both.items()}
        speeds = images_per_second(sessions, next(_split(inputs[part])))
        speedup[part] = speeds["small"] / speeds["exact"]
    return Judgement(nats["small"] - nats["exact"], -10 * float(np.log10(max(error, 1e-12))), speedup)
