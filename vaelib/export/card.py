"""The model card: what is known and was measured, and how to use the files without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vaelib.evaluation import unit_of
from vaelib.export.hardware import hardware
from vaelib.export.parity import Parity, at_most
from vaelib.export.precision import Judgement
from vaelib.export.speed import Speed

__all__ = ["card"]

_NATS = "nats per image"
_SIZES = " H and W may be any multiples of {}, h and w are that much smaller."
_CARD = """\
---
tags: [onnx, onnxruntime, variational-autoencoder]
---

# {kind} for images of {size}

Exported by vaelib {version} to ONNX, opset {opset}. The files need no torch and no vaelib; `manifest.json` has
their hashes.

{files}

Images are float32 in [0, 1], shape (B, {axes}), the batch of any length.{sizes}
Those that the graphs give are clamped to [0, 1]; `recon_params` and `distortion` are of values that are not.

## Model

{model}

```json
{config}
```

## Quality

{quality}

## Agreement with torch

Largest differences over batches of 1 to 16, by onnxruntime with its optimisations off and on{reference},
rounded up to a power of ten. The second is relative to the output's largest value; of images and nats, to 1 at
least.{ties}

{parity}
{speed}
## Use

With vaelib's runtime (numpy and onnxruntime; torch is not imported):

```python
{runtime}
```

With onnxruntime alone:

```python
import numpy as np
import onnxruntime

decoder = onnxruntime.InferenceSession("decoder.onnx")
{numpy_z}
(images,) = decoder.run(["mean"], {{"z": z{numpy_condition}}})  # (16, {image})
```

In a browser or Node, with onnxruntime-web or onnxruntime-node:

```js
import * as ort from "onnxruntime-web";

const decoder = await ort.InferenceSession.create("decoder.onnx");
{js_z}
{js_condition}const {{ mean }} = await decoder.run({{ z{js_input} }});
// mean.data: {image_size} values in the order ({axes})
```

## Intended use and limits

{limits}
"""

_VAE_LIMITS = """\
For images like those it was trained on: to compress and compare them, to reconstruct, to interpolate, to draw new
ones, and to rank how unusual one is by `distortion + kl` (minus the ELBO, in nats: higher is more unusual). Images of
another kind are reconstructed as if they were of its own, and can even have a lower score; a score is no verdict.
Drawn images are means of p(x|z), clamped to [0, 1], and look smoother than data."""
_AUTOENCODER_LIMITS = """\
For images like those it was trained on: to compress, compare and reconstruct them. It has no prior: random codes need
not give images, and it has no bound to rank images by."""


def card(
    described: Mapping[str, Any],
    parity: Mapping[str, Mapping[str, Parity]],
    evaluation: Mapping[str, Any] | None,
    judgement: Judgement | None,
    speeds: Sequence[Speed],
) -> str:
    """README.md of a bundle, by its manifest and by what was measured."""
    model, graphs = described["model"], described["graphs"]
    return _CARD.format(
        kind=model["kind"],
        version=described["version"],
        opset=model["opset"],
        size=" x ".join(map(str, model["image_shape"])),
        axes=", ".join(map(str, graphs["encoder"]["inputs"]["image"]["shape"][1:])),
        image=", ".join(map(str, model["image_shape"])),
        image_size=math.prod(model["image_shape"]),
        sizes="" if model["spatial_multiple"] is None else _SIZES.format(model["spatial_multiple"]),
        files=_table(("file", "inputs", "outputs"), [_graph_row(graph) for graph in graphs.values() if graph["file"]]),
        model=_table(("", ""), _model_rows(model)),
        config=_config(model["config"]),
        reference="" if model["precision"] == "int8" else " and by `onnx.reference`",
        quality=_quality(evaluation, model["precision"]) + _cost(judgement),
        parity=_table(
            ("graph", "output", "absolute", "relative"),
            [
                (part, name, f"{at_most(p.max_abs):.0e}", f"{at_most(p.max_rel):.0e}")
                for part, outputs in parity.items()
                for name, p in outputs.items()
            ],
        ),
        ties=_ties(parity),
        speed=_speed(speeds),
        runtime=_runtime(model, graphs),
        **_with_condition(model["condition"]) | _of_z(model, graphs),
        limits=_VAE_LIMITS if "distortion" in graphs["vae"]["outputs"] else _AUTOENCODER_LIMITS,
    )


def _graph_row(graph: Mapping[str, Any]) -> tuple[str, str, str]:
    def of(specs: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} ({', '.join(map(str, spec['shape']))})" for name, spec in specs.items())

    return graph["file"], of(graph["inputs"]), of(graph["outputs"])


def _model_rows(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    kinds = (("condition", _condition), ("codes", _codes), ("scaling", _scaling))
    told = [(name, words(model[name])) for name, words in kinds if model[name] is not None]
    return [
        ("precision", model["precision"]),
        ("latent", " x ".join(map(str, model["latent_shape"]))),
        *told,
        ("parameters", f"{model['parameters']:,}"),
        ("p(x given z)", model["likelihood"]),
        ("p(z)", model["prior"]),
        ("weights, sha256", f"`{model['weights_sha256']}`"),
    ]


def _condition(condition: Mapping[str, Any]) -> str:
    if condition["kind"] == "vector":
        return f"{condition['size']} numbers for each image"
    names = condition["names"]
    listed = ": " + ", ".join(f"{number} {name}" for number, name in enumerate(names)) if names else ""
    return f"one of {condition['num_classes']} labels{listed}"


def _codes(codes: Mapping[str, Any]) -> str:
    places = " x ".join(map(str, codes["shape"])) or "one position"
    layers = f", in {codes['depth']} layers that add up" if codes["depth"] > 1 else ""
    return f"one of {codes['num_codes']:,} at each of {places}{layers}"


def _scaling(scaling: Mapping[str, Any]) -> str:
    shift, scale = (", ".join(f"{value:.6g}" for value in scaling[name]) for name in ("shift", "scale"))
    return f"(z - shift) * scale by channel: shift {shift}; scale {scale}"


def _with_condition(condition: Mapping[str, Any] | None) -> dict[str, str]:
    """What the examples say of the condition."""
    if condition is None:
        return {"numpy_condition": "", "js_condition": "", "js_input": ""}
    if condition["kind"] == "labels":
        array, tensor = "np.zeros(16, np.int64)", '"int64", new BigInt64Array(1), [1]'
    else:
        size = condition["size"]
        array = f"np.zeros((16, {size}), np.float32)"
        tensor = f'"float32", new Float32Array({size}), [1, {size}]'
    return {
        "numpy_condition": f', "condition": {array}',
        "js_condition": f"const condition = new ort.Tensor({tensor});\n",
        "js_input": ", condition",
    }


def _of_z(model: Mapping[str, Any], graphs: Mapping[str, Any]) -> dict[str, str]:
    """How the examples make z: by the prior's graph, of random codes, or of a standard normal prior."""
    given = _with_condition(model["condition"])
    if model["codes"] is not None:
        (positions,), num_codes = graphs["codes"]["inputs"]["codes"]["shape"][1:], model["codes"]["num_codes"]
        return {
            "numpy_z": f"codes = np.random.default_rng(0).integers({num_codes}, size=(16, {positions}))"
            "  # those of images: encoder.onnx\n"
            '(z,) = onnxruntime.InferenceSession("codes.onnx").run(["z"], {"codes": codes})',
            "js_z": f'const codes = new ort.Tensor("int64", new BigInt64Array({positions}), [1, {positions}]);'
            " // those of images: encoder.onnx\n"
            'const { z } = await (await ort.InferenceSession.create("codes.onnx")).run({ codes });',
        }
    prior = graphs.get("prior")
    if prior is not None and prior["file"]:
        noise = prior["inputs"]["noise"]["shape"][1:]
        shape, is_given = ", ".join(map(str, noise)), "condition" in prior["inputs"]
        numpy_condition, js_input = (given["numpy_condition"], given["js_input"]) if is_given else ("", "")
        first, second = (given["js_condition"], "") if is_given else ("", given["js_condition"])
        return {
            "numpy_z": f"noise = np.random.default_rng(0).standard_normal((16, {shape}), dtype=np.float32)\n"
            f'(z,) = onnxruntime.InferenceSession("prior.onnx").run(["z"], {{"noise": noise{numpy_condition}}})',
            "js_condition": second,
            "js_z": f'{first}const noise = new ort.Tensor("float32", new Float32Array({math.prod(noise)}), [1,'
            f" {shape}]); // to fill with standard normal numbers\n"
            f'const {{ z }} = await (await ort.InferenceSession.create("prior.onnx")).run({{ noise{js_input} }});',
        }
    latent = ", ".join(map(str, model["latent_shape"]))
    return {
        "numpy_z": f"z = np.random.default_rng(0).standard_normal((16, {latent}), dtype=np.float32)",
        "js_z": f'const z = new ort.Tensor("float32", new Float32Array({math.prod(model["latent_shape"])}), [1,'
        f" {latent}]); // the centre of the latent space",
    }


def _ties(parity: Mapping[str, Mapping[str, Parity]]) -> str:
    if "codes" not in parity["encoder"]:
        return ""
    return (
        "\nOf codes they are how many differ, and the share of all. Codes are those of torch but for near-ties, where"
        f" rounding decides between two: at most {at_most(parity['encoder']['codes'].near_ties):.0f} of those compared."
    )


def _config(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return "null"
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in config.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _quality(evaluation: Mapping[str, Any] | None, precision: str) -> str:
    if evaluation is None:
        return "Not given at export."
    rows = [
        (
            name,
            f"{entry['value']:.{2 if unit_of(name) == _NATS else 4}f}",
            "-" if entry["standard_error"] is None else f"{entry['standard_error']:.2g}",
            unit_of(name),
        )
        for name, entry in evaluation.items()
        if isinstance(entry, Mapping)
    ]
    facts = [f"{n.replace('_', ' ')}: {entry}" for n, entry in evaluation.items() if not isinstance(entry, Mapping)]
    whose = [] if precision == "fp32" else ["These figures are the float32 model's."]
    return "\n\n".join([_table(("", "mean", "standard error", "unit"), rows), "; ".join(facts), *whose])


def _cost(judgement: Judgement | None) -> str:
    if judgement is None:
        return ""
    return (
        f"\n\nint8 costs {judgement.nats_lost:.3g} nats of ELBO per image; its"
        f" images have a PSNR of {judgement.psnr:.1f} dB against float32's. Both on other"
        " images than it was calibrated on."
    )


def _speed(speeds: Sequence[Speed]) -> str:
    if not speeds:
        return ""
    rows = [(s.part, str(s.batch), f"{s.images_per_second:,.0f}") for s in speeds]
    return f"\n## Speed\n\n{hardware()}; medians.\n\n{_table(('graph', 'batch', 'images per second'), rows)}\n"


def _runtime(model: Mapping[str, Any], graphs: Mapping[str, Any]) -> str:
    lines = ["from vaelib.runtime import OnnxVAE", "", 'model = OnnxVAE(".")']
    if model["condition"] is not None:
        condition = model["condition"]
        given = "labels=0" if condition["kind"] == "labels" else f"condition={[0.0] * condition['size']}"
        lines += [f"model = model.given({given})  # of all images, or one for each"]
    if "mu" in graphs["encoder"]["outputs"]:
        lines += ["mu, logvar = model.encode(images)"]
    lines += ["z = model.embed(images)", "images = model.decode(z)"]
    if model["scaling"] is not None:
        lines += ["scaled = model.embed(images, scaled=True)", "images = model.decode(scaled, scaled=True)"]
    if model["codes"] is not None:
        lines += ["codes = model.encode_codes(images)", "images = model.decode_codes(codes)"]
    has_prior = "prior" in graphs or "next" in graphs
    return "\n".join(lines + (["new = model.sample(16, seed=0)"] if has_prior else []))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
