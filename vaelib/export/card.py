"""The model card: what is known and was measured, and how to use the files without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from vaelib._timing import hardware
from vaelib.evaluation import unit_of
from vaelib.export.differences import Parity, at_most, drawn_inputs
from vaelib.export.graphs import Graph
from vaelib.export.precision import Judgement
from vaelib.export.proof import images_per_second, session
from vaelib.export.tiling import sentence
from vaelib.runtime.contract import axes_of

__all__ = ["Speed", "card", "measure"]

_CARD = """\
---
tags: [onnx, onnxruntime, variational-autoencoder]
---

# {kind} for images of {size}

Exported by vaelib {version} to ONNX, opset {opset}. The files need no torch and no vaelib; `manifest.json` has
their hashes.

{files}

Images are float32 in [0, 1], shape (B, {axes}), the batch of any length.{sizes}
Those that the graphs give are clamped to [0, 1]; `recon_params` and `distortion` are of values that are not.{tiles}

## Model

{model}

```json
{config}
```

## Quality

{quality}

## Agreement with torch

Largest differences {proved},
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
{python}  # (16, {image})
```

In a browser or Node, with onnxruntime-web or onnxruntime-node:

```js
import * as ort from "onnxruntime-web";

const decoder = await ort.InferenceSession.create("decoder.onnx");
{script}
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
_TIES = """
Of codes they are how many differ, and the share of all. Codes are those of torch but for near-ties, where rounding\
 decides between two: at most {:.0f} of those compared."""
_SPEED = "\n## Speed\n\n{}; medians.\n\n{}\n"
_NORMAL = "np.random.default_rng(0).standard_normal({shape}, dtype=np.float32)"
_ARRAYS = {
    "codes": "np.random.default_rng(0).integers({choices}, size={shape})  # those of images: encoder.onnx",
    "condition": "np.zeros({shape}, np.{dtype})",
}
_REMARKS = {
    "codes": " // those of images: encoder.onnx",
    "noise": " // to fill with standard normal numbers",
    "z": " // the centre of the latent space",
}


class Speed(NamedTuple):
    """Of one graph at one batch size."""

    part: str
    batch: int
    images_per_second: float


def measure(graphs: Mapping[str, Graph], files: Mapping[str, bytes]) -> list[Speed]:
    """Encoder and decoder at batches of 1 and 64, with as many threads as torch has."""
    rows = []
    for part in ("encoder", "decoder"):
        opened = {part: session(files[f"{part}.onnx"], threads=torch.get_num_threads())}
        for batch in (1, 64):
            drawn = drawn_inputs(graphs[part], batch, torch.Generator().manual_seed(0))
            inputs = {name: values.numpy() for name, values in drawn.items()}
            rows.append(Speed(part, batch, images_per_second(opened, inputs)[part]))
    return rows


def card(
    described: Mapping[str, Any],
    parity: Mapping[str, Mapping[str, Parity]],
    evaluation: Mapping[str, Any] | None,
    judgement: Judgement | None,
    speeds: Sequence[Speed],
    proved: str,
) -> str:
    """README.md of a bundle, by its manifest and by what was measured; ``proved`` says how it was compared."""
    model, graphs = described["model"], described["graphs"]
    multiple, image, config = model["spatial_multiple"], model["image_shape"], model["config"]
    python, script = _example(model, graphs)
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in (config or {}).items()]
    rows = [(s.part, str(s.batch), f"{s.images_per_second:,.0f}") for s in speeds]
    agreement = [
        (part, name, f"{at_most(p.max_abs):.0e}", f"{at_most(p.max_rel):.0e}")
        for part, outputs in parity.items()
        for name, p in outputs.items()
    ]
    return _CARD.format(
        kind=model["kind"],
        version=described["version"],
        opset=model["opset"],
        size=" x ".join(map(str, image)),
        axes=", ".join(map(str, graphs["encoder"]["inputs"]["image"]["shape"][1:])),
        image=", ".join(map(str, image)),
        image_size=math.prod(image),
        sizes=f" H and W may be any multiples of {multiple}, h and w are that much smaller." if multiple else "",
        tiles=sentence(model["tiling"]),
        files=_table(("file", "inputs", "outputs"), [_graph_row(graph) for graph in graphs.values() if graph["file"]]),
        model=_table(("", ""), _model_rows(model)),
        config="null" if config is None else "{\n" + ",\n".join(lines) + "\n}",
        proved=proved,
        quality=_quality(evaluation, model["precision"], judgement),
        parity=_table(("graph", "output", "absolute", "relative"), agreement),
        ties=_TIES.format(at_most(parity["encoder"]["codes"].near_ties)) if "codes" in parity["encoder"] else "",
        speed=_SPEED.format(hardware(), _table(("graph", "batch", "images per second"), rows)) if rows else "",
        runtime=_runtime(model, graphs),
        python=python,
        script=script,
        limits=_VAE_LIMITS if "distortion" in graphs["vae"]["outputs"] else _AUTOENCODER_LIMITS,
    )


def _graph_row(graph: Mapping[str, Any]) -> tuple[str, str, str]:
    inputs, outputs = (
        ", ".join(f"{name} ({', '.join(map(str, spec['shape']))})" for name, spec in graph[specs].items())
        for specs in ("inputs", "outputs")
    )
    return graph["file"], inputs, outputs


def _model_rows(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("precision", model["precision"]), ("latent", " x ".join(map(str, model["latent_shape"])))]
    if (condition := model["condition"]) is not None:
        names = ", ".join(f"{number} {name}" for number, name in enumerate(condition.get("names") or ()))
        vector = f"{condition.get('size')} numbers for each image"
        labels = f"one of {condition.get('num_classes')} labels{names and ': '}{names}"
        rows.append(("condition", vector if condition["kind"] == "vector" else labels))
    if (codes := model["codes"]) is not None:
        places = " x ".join(map(str, codes["shape"])) or "one position"
        layers = f", in {codes['depth']} layers that add up" if codes["depth"] > 1 else ""
        rows.append(("codes", f"one of {codes['num_codes']:,} at each of {places}{layers}"))
    if (scaling := model["scaling"]) is not None:
        shift, scale = (", ".join(f"{value:.6g}" for value in scaling[name]) for name in ("shift", "scale"))
        rows.append(("scaling", f"(z - shift) * scale by channel: shift {shift}; scale {scale}"))
    return [
        *rows,
        ("parameters", f"{model['parameters']:,}"),
        ("p(x given z)", model["likelihood"]),
        ("p(z)", model["prior"]),
        ("weights, sha256", f"`{model['weights_sha256']}`"),
    ]


def _example(model: Mapping[str, Any], graphs: Mapping[str, Any]) -> tuple[str, str]:
    """Code that makes z, by the graph of codes or of the prior if there is one, and decodes it: Python, JavaScript."""
    first = [part for part in ("codes", "prior") if part in graphs and graphs[part]["file"]][:1]
    axes, known = axes_of(model), {"z"} if first else set()
    python, script = [], []
    for part in (*first, "decoder"):
        inputs, (output, result) = graphs[part]["inputs"], ("mean", "images") if part == "decoder" else ("z", "z")
        for name in [name for name in inputs if name not in known]:
            known.add(name)
            dtype, shape = inputs[name]["dtype"], [axes.get(axis, axis) for axis in inputs[name]["shape"][1:]]
            choices = model["codes"] and model["codes"]["num_codes"]
            values = _ARRAYS.get(name, _NORMAL).format(shape=(16, *shape), dtype=dtype, choices=choices)
            python.append(f"{name} = {values}")
            array = f"new {'BigInt64' if dtype == 'int64' else 'Float32'}Array({math.prod(shape)})"
            script.append(f'const {name} = new ort.Tensor("{dtype}", {array}, {[1, *shape]});{_REMARKS.get(name, "")}')
        opened = f'onnxruntime.InferenceSession("{part}.onnx")', f'(await ort.InferenceSession.create("{part}.onnx"))'
        in_python, in_script = ("decoder", "decoder") if part == "decoder" else opened
        given = ", ".join(f'"{name}": {name}' for name in inputs)
        python.append(f'({result},) = {in_python}.run(["{output}"], {{{given}}})')
        script.append(f"const {{ {output} }} = await {in_script}.run({{ {', '.join(inputs)} }});")
    return "\n".join(python), "\n".join(script)


def _quality(evaluation: Mapping[str, Any] | None, precision: str, judgement: Judgement | None) -> str:
    parts = ["Not given at export."] if evaluation is None else []
    if evaluation is not None:
        rows = [
            (
                name,
                f"{entry['value']:.{2 if unit_of(name) == 'nats per image' else 4}f}",
                "-" if entry["standard_error"] is None else f"{entry['standard_error']:.2g}",
                unit_of(name),
            )
            for name, entry in evaluation.items()
            if isinstance(entry, Mapping)
        ]
        facts = [f"{n.replace('_', ' ')}: {entry}" for n, entry in evaluation.items() if not isinstance(entry, Mapping)]
        parts += [_table(("", "mean", "standard error", "unit"), rows), "; ".join(facts)]
        parts += [] if precision == "fp32" else ["These figures are the float32 model's."]
    if judgement is not None:
        parts.append(
            f"int8 costs {judgement.nats_lost:.3g} nats of ELBO per image; its images have a PSNR of"
            f" {judgement.psnr:.1f} dB against float32's. Both on other images than it was calibrated on."
        )
    return "\n\n".join(parts)


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
