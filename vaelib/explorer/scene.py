"""What the page knows before anybody touches it: the model, its card, and where the data lie in the latent space."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaelib._checks import check_shape
from vaelib.runtime import OnnxVAE
from vaelib.runtime.bundle import Bundle
from vaelib.runtime.contract import Contract, axes_of, item_shape

__all__ = ["DRAWS", "MAX_CODES", "Array", "Data", "Scene", "build_scene", "encoded", "has_code_prior", "terms"]

Array = NDArray[np.float32]

DRAWS = 16
"""Draws of z in each ELBO, the same ones for the data and for a visitor's image: ranks compare like with like."""
ACTIVE_VARIANCE = 0.01
"""A latent is dead if the variance of its mean over the data is not larger: Burda et al. (2016)."""
MAX_CODES = 2**24
"""Codes travel as float32."""
_STAND_INS = 512
_SHOWN_LATENTS = 64
_MAX_EMBEDDED = 2**20


class Data(NamedTuple):
    """Images to place on the map."""

    name: str
    images: Array
    """``(N, C, H, W)`` in [0, 1]."""
    labels: list[int] | None
    class_names: Sequence[str] = ()
    """By the number that is the label."""


class Scene(NamedTuple):
    """Words and numbers, as the page gets them."""

    facts: dict[str, Any]
    arrays: dict[str, Array]

    def files(self) -> dict[str, bytes]:
        """``scene.json``, and ``scene.bin`` with the arrays as little-endian float32, one after the other."""
        shapes = {name: list(array.shape) for name, array in self.arrays.items()}
        content = json.dumps(self.facts | {"arrays": shapes}, allow_nan=False).encode()
        return {
            "scene.json": content,
            "scene.bin": b"".join(array.astype("<f4").tobytes() for array in self.arrays.values()),
        }


def build_scene(bundle: str | Path, model: OnnxVAE, data: Data | None = None) -> Scene:
    """Encode the data, measure each image, and find the planes to look at the latent space from.

    Args:
        bundle: The directory that ``model`` was opened from.
        model: The model.
        data: Images, used up to 2^20 latent numbers in all. If None, 512 of the model's own samples
            stand in for them. Each is encoded with its own label where the model takes labels.

    Raises:
        ValueError: If the images or labels do not fit the model; if there are none, and the model cannot draw any; or
            if the model's condition is a vector, or it has more codes than the page can show.
        ModelFileError: A ``ValueError``: if the bundle's card is a link or not the file that its manifest describes.
        FileNotFoundError: If there is no card.
    """
    condition, codebook = (model.metadata.get(name) for name in ("condition", "codes"))
    _check_shown(condition, codebook)
    shown = data or _stand_in(model, condition)
    images = shown.images[: max(2, _MAX_EMBEDDED // math.prod(model.latent_shape))]
    if shown.labels is not None:
        check_shape("labels", (len(shown.labels),), (len(shown.images),))
    labels = None if shown.labels is None else shown.labels[: len(images)]
    if condition is not None and labels is not None:
        _check_classes(condition["names"], shown.class_names)
        model = model.given(labels=labels)
    arrays = encoded(model, images)
    if (noise := _noise_of(model)) is not None:
        distortion, kl = terms(model, images, noise).mean(1).T
        arrays |= {"noise": noise, "distortion": distortion, "kl": kl}
    latents, measure = _latents(model.contract, arrays["z"], arrays.get("logvar"))
    planes, arrays["origins"], arrays["bases"] = _planes(arrays["z"], [latent["index"] for latent in latents])
    named = ("kind", "image_shape", "latent_shape", "likelihood", "prior", "precision", "version")
    facts = {name: model.metadata[name] for name in named} | {
        "graphs": {part: graph.as_json() | {"names": dict(graph.names)} for part, graph in model.contract.items()},
        "name": Path(bundle).resolve().name,
        "card": Bundle(bundle).card(),
        "data": {"name": shown.name, "count": len(images), "given": data is not None},
        "labels": labels,
        "class_names": list(shown.class_names),
        "condition": condition,
        "codebook": codebook,
        "latents": latents[:_SHOWN_LATENTS],
        "measure": measure,
        "planes": planes,
    }
    return Scene(facts, arrays)


def _check_shown(condition: Mapping[str, Any] | None, codebook: Mapping[str, Any] | None) -> None:
    if condition is not None and condition["kind"] != "labels":
        raise ValueError(f"The explorer shows conditions that are labels, the model's is a {condition['kind']}.")
    if codebook is not None and codebook["num_codes"] > MAX_CODES:
        raise ValueError(f"The explorer shows at most {MAX_CODES} codes, the model has {codebook['num_codes']}.")


def _check_classes(names: Sequence[str] | None, given: Sequence[str]) -> None:
    if names and given and list(given) != list(names):
        raise ValueError(f"`data` must have the model's classes, {', '.join(names)}, got {', '.join(given)}.")


def encoded(model: OnnxVAE, images: Array) -> dict[str, Array]:
    """The deterministic z, the log variance of a Gaussian posterior around it, and codes, as far as there are any."""
    found = {"z": model.embed(images)}
    outputs = model.contract["encoder"].outputs
    if "logvar" in outputs:
        found["logvar"] = model.encode(images)[1]
    if "codes" in outputs:
        found["codes"] = model.encode_codes(images).astype(np.float32)
    return {name: values.reshape(len(images), -1) for name, values in found.items()}


def has_code_prior(contract: Mapping[str, Contract]) -> bool:
    """Whether draws of the prior are codes."""
    return "next" in contract or ("prior" in contract and "codes" in contract["prior"].outputs)


def terms(model: OnnxVAE, images: Array, noise: Array) -> Array:
    """Distortion and KL of each image by each draw, ``(B, K, 2)`` in nats, with K draws of ``noise``."""
    draws = [np.repeat(draw[None], len(images), axis=0) if draw.size else None for draw in noise]
    return np.stack([np.stack(model.elbo_terms(images, draw), axis=1) for draw in draws], axis=1)


def _noise_of(model: OnnxVAE) -> Array | None:
    """The draws of each bound, of the shape that the model's graph takes: one of no numbers where it takes none.

    None of a model without a bound.
    """
    graph = model.contract.get("vae")
    if graph is None or "kl" not in graph.outputs:
        return None
    if "noise" not in graph.inputs:
        return np.zeros((1, 0), np.float32)
    shape = item_shape(graph.inputs["noise"], axes_of(model.metadata)) or ()
    return np.random.default_rng(0).standard_normal((DRAWS, *shape), dtype=np.float32)


def _stand_in(model: OnnxVAE, condition: Mapping[str, Any] | None) -> Data:
    if not {"prior", "next"} & model.contract.keys():
        raise ValueError(f"`data` must be given: of the prior {model.metadata['prior']} the bundle has no sampler.")
    if condition is None:
        return Data("samples of the model", model.sample(_STAND_INS, seed=0), None)
    labels = [n % condition["num_classes"] for n in range(_STAND_INS)]
    images = model.sample(_STAND_INS, condition=labels, seed=0)
    return Data("samples of the model", images, labels, condition["names"] or ())


def _latents(contract: Mapping[str, Contract], z: Array, logvar: Array | None) -> tuple[list[dict[str, Any]], str]:
    """Each latent with how much it tells, the most telling first, and what that was measured by."""
    mean = z.astype(np.float64)
    spread = mean.var(0)
    if logvar is None:
        return _sorted_latents(spread, spread, mean), "variance"
    log_variance = logvar.astype(np.float64)
    if "prior" in contract and contract["prior"].file is None:  # noise is a draw of it: the standard normal
        carried = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).mean(0)
        measure = "KL to the prior, nats"
    else:  # a prior without a KL per latent: the Gaussian that is nearest to the posteriors of all data stands in
        carried = 0.5 * (np.log(spread + np.exp(log_variance).mean(0)) - log_variance.mean(0))
        measure = "KL to a Gaussian fitted to all posteriors, nats"
    return _sorted_latents(carried, spread, mean), measure


def _sorted_latents(carried: NDArray[Any], spread: NDArray[Any], mean: NDArray[Any]) -> list[dict[str, Any]]:
    return [
        {
            "index": int(i),
            "kl": float(carried[i]),
            "active": bool(spread[i] > ACTIVE_VARIANCE),
            "mean": float(mean[:, i].mean()),
        }
        for i in np.argsort(-carried, kind="stable")
    ]


def _planes(z: Array, order: list[int]) -> tuple[list[dict[str, Any]], Array, Array]:
    """Planes ``origin + u basis[0] + v basis[1]`` in latent space: their names, ``(P, D)`` and ``(P, 2, D)``."""
    size = z.shape[1]
    first, second = order[0], order[min(1, size - 1)]
    axes = np.zeros((2, size))
    axes[0, first] = 1.0
    if size > 1:
        axes[1, second] = 1.0
    centre = z.mean(0, dtype=np.float64)
    planes = [{"name": "latents", "axes": [f"z{first}", f"z{second}"], "explained": _explained(z - centre, axes)}]
    origins, bases = [centre * (axes.sum(0) == 0)], [axes]
    if size > 2:
        _, _, directions = np.linalg.svd(z - centre, full_matrices=False)
        components = directions[:2] * np.where(directions[:2].sum(1, keepdims=True) < 0, -1, 1)
        planes.insert(0, {"name": "pca", "axes": ["PC 1", "PC 2"], "explained": _explained(z - centre, components)})
        origins.insert(0, centre)
        bases.insert(0, components)
    return planes, np.stack(origins).astype(np.float32), np.stack(bases).astype(np.float32)


def _explained(centred: NDArray[Any], basis: NDArray[Any]) -> float:
    """The share of the variance that lies in the plane."""
    return float(((centred @ basis.T) ** 2).sum() / max((centred**2).sum(), np.finfo(np.float64).tiny))
