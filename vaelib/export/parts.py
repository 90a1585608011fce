"""The graphs of a model as torch modules: what each is given and what it computes."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from vaelib.conditions import Labels
from vaelib.export.graphs import MOST, Graph, free_sizes
from vaelib.export.thresholds import Thresholds
from vaelib.latents.base import Draw, first_tensor
from vaelib.priors import CodeTable, UniformCodes
from vaelib.vae import VAE, image_of
from vaelib.vae.verbs import Given

__all__ = ["bound", "decoded", "encoded", "graphs_of", "input_of"]

_MOST_VALUES = 2**25
"""Numbers that the encoder's layers may give for a proof's batch, 128 MiB: more images take time, and show nothing."""
_LEAST_BATCH = 2


class _Of(nn.Module):
    """A module that calls the model, with a condition bound if there is one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def view(self, condition: Tensor | None) -> Any:
        """The model's verbs; ``condition`` are labels, or the numbers that they would become."""
        if condition is None:
            return self.model
        part = self.model.condition
        return Given(self.model, part.numbers(condition) if isinstance(part, Labels) else condition)


class _Encoder(_Of):
    def forward(self, image: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        view = self.view(condition)
        return encoded(view, view._run(view.encoder, image))


class _Decoder(_Of):
    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return decoded(self.view(condition), z)


class _Whole(_Of):
    def forward(self, image: Tensor, noise: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        view = self.view(condition)
        draw = view.latent.draw(view._run(view.encoder, image), noise)
        recon_params = view.decode_hidden(draw.hidden)
        return image_of(view.likelihood, recon_params), *bound(view, image, draw, recon_params)


class _WholeWithoutNoise(_Whole):
    def forward(self, image: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(image, image.new_zeros(image.shape[0], 0), condition)


class _Prior(_Of):
    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        z: Tensor = self.view(condition).latent.from_noise(noise)
        return z


class _UniformPrior(_Of):
    def forward(self, noise: Tensor) -> Tensor:
        codes: Tensor = self.model.prior.from_noise(noise)
        return codes


class _TablePrior(_Of):
    """A function of noise that torch computes by sums in float64 and the graph by comparisons, with the same codes."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.thresholds = Thresholds(model.prior.logits)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.thresholds(noise) if torch.compiler.is_exporting() else self.model.prior.from_noise(noise)
        return self.model.latent.embed(codes), codes


class _Codes(_Of):
    def forward(self, codes: Tensor) -> Tensor:
        z: Tensor = self.model.latent.embed(codes)
        return z


class _Next(_Of):
    def forward(self, codes: Tensor, position: Tensor, condition: Tensor | None = None) -> Tensor:
        logits: Tensor = self.view(condition).prior.next_logits(codes, position)
        return logits


def encoded(view: Any, features: Any) -> tuple[Tensor, ...]:
    """The outputs of the encoder's graph, from what the encoder gives."""
    found = view.latent.encoded(features)
    if isinstance(found, tuple):
        return (view.latent.point(features).clone(), *found)
    if found.is_floating_point():
        return (found.clone(),)
    return view.latent.embed(found).clone(), found


def decoded(view: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of the decoder's graph."""
    recon_params = view.decode_hidden(view.latent.hidden(z))
    return image_of(view.likelihood, recon_params), recon_params.clone()


def bound(view: Any, image: Tensor, draw: Draw, recon_params: Tensor) -> tuple[Tensor, ...]:
    """What the graph of the whole gives beside the reconstruction."""
    if not view.latent.has_prior:
        return (draw.z.clone(),)
    return draw.z.clone(), -view.likelihood.log_prob(image, recon_params), draw.kl.sum(1), draw.kl


def graphs_of(model: VAE, *, dynamic_size: bool = False) -> dict[str, Graph]:
    """By part: encoder, decoder, the whole, and what the latent and its prior have of prior, codes and next.

    With ``dynamic_size``, ``model`` is changed by :func:`free_sizes`.
    """
    image, latent = tuple(model.image_shape), tuple(model.latent_shape)
    has_codes = hasattr(model.latent, "num_codes")
    condition, choices = _condition_of(model)
    others = _code_graphs(model) if has_codes else [_prior_of(model)] if model.latent.has_prior else []
    noise_size = model.latent.noise_size
    multiple, proof = free_sizes(model) if dynamic_size else (None, None)
    if multiple is None or proof is None:
        drawn, most = _drawn(model, image, noise_size)
    else:
        size = image[0], multiple * proof[0], multiple * proof[1]
        drawn, most = _drawn(model, size, noise_size // math.prod(latent[1:]) * math.prod(proof))
    is_gaussian = drawn is not None and drawn.mu is not None
    noise = {"noise": latent if is_gaussian else (noise_size,)} if noise_size else {}
    found = {"mu": "raw", "logvar": "raw"} if is_gaussian else {"codes": "codes"} if has_codes else {}
    bound = dict.fromkeys(("distortion", "kl", "kl_groups"), "nats") if model.latent.has_prior else {}
    whole = _Whole(model) if noise else _WholeWithoutNoise(model)
    networks = [
        Graph("encoder", _Encoder(model), {"image": image, **condition}, {"z": "raw", **found}),
        Graph("decoder", _Decoder(model), {"z": latent, **condition}, {"mean": "image", "recon_params": "raw"}),
        Graph("vae", whole, {"image": image, **noise, **condition}, {"reconstruction": "image", "z": "raw", **bound}),
    ]
    networks = [graph._replace(multiple=multiple, choices=choices, proof=proof, most=most) for graph in networks]
    return {graph.part: graph for graph in (*networks, *others)}


def input_of(condition: Any, checked: Tensor) -> Tensor:
    """The input of a graph for what ``condition.check`` gave: labels as they are, all else as numbers."""
    return checked if isinstance(condition, Labels) else condition.numbers(checked).float()


def _condition_of(model: VAE) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """The input that the condition is, and of how many classes; nothing of a model without one."""
    part = model.condition
    if part is None:
        return {}, {}
    if isinstance(part, Labels):
        return {"condition": ()}, {"condition": part.num_classes}
    return {"condition": (part.embedding_size,)}, {}


def _drawn(model: VAE, image: tuple[int, ...], noise_size: int) -> tuple[Draw | None, int]:
    """A draw, which shows what the latent is, and the largest batch for the proofs, by the numbers that layers give.

    The draw is None of a model that fails, which is reported when its graphs are run.
    """
    condition = None if model.condition is None else torch.zeros(2, model.condition.embedding_size)
    view: Any = model if condition is None else Given(model, condition)
    counts: list[int] = []

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        counts.append(output.numel() if isinstance(output, Tensor) else 0)

    layers = [module for module in model.encoder.modules() if not isinstance(module, torch.jit.ScriptModule)]
    handles = [module.register_forward_hook(count) for module in layers]
    draw: Draw | None = None
    try:
        with torch.no_grad():
            features = view._run(view.encoder, torch.zeros(2, *image))
            draw = view.latent.draw(features, torch.zeros(first_tensor(features).shape[0], noise_size))
    except Exception:  # a part of a user's own may raise anything
        pass
    finally:
        for handle in handles:
            handle.remove()
    return draw, max(_LEAST_BATCH, min(2 * _MOST_VALUES // max(sum(counts), 1), MOST))


def _condition_of_prior(model: VAE) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """As :func:`_condition_of`; nothing where the prior, or the latent that draws, takes no condition."""
    if model.condition is None:
        return {}, {}
    bound = Given(model, torch.zeros(1, model.condition.embedding_size))
    takes = bound.latent is not model.latent if model.prior is None else bound.prior is not model.prior
    return _condition_of(model) if takes else ({}, {})


def _prior_of(model: VAE) -> Graph:
    """From noise to latents of the size of the training; without a file if they are that noise, as of N(0, I)."""
    model = _without_networks(model)  # whose shape stays
    condition, choices = _condition_of_prior(model)
    noise = torch.zeros(2, model.latent.prior_noise_size)
    try:
        with torch.no_grad():
            is_noise = not condition and model.latent.from_noise(noise).data_ptr() == noise.data_ptr()
    except Exception:  # as above
        is_noise = False
    inputs = {"noise": tuple(noise.shape[1:]), **condition}
    return Graph("prior", _Prior(model), inputs, {"z": "raw"}, has_file=not is_noise, choices=choices)


def _without_networks(model: VAE) -> VAE:
    """A copy that draws and embeds; its encoder and decoder, which may be large, do nothing."""
    encoder, decoder = model.encoder, model.decoder
    model.encoder, model.decoder = nn.Identity(), nn.Identity()
    try:
        return copy.deepcopy(model)
    finally:
        model.encoder, model.decoder = encoder, decoder


def _code_graphs(model: VAE) -> list[Graph]:
    """From codes to z; and the prior over codes: at once where positions are independent, else a code at a time."""
    latent: Any = model.latent
    positions, choices = (latent.num_positions,), {"codes": latent.num_codes}
    codes = Graph("codes", _Codes(model), {"codes": positions}, {"z": "raw"}, choices=choices)
    if isinstance(model.prior, UniformCodes):
        uniform = Graph("prior", _UniformPrior(model), {"noise": positions}, {"codes": "codes"}, has_file=False)
        return [codes, uniform]
    if isinstance(model.prior, CodeTable):
        return [codes, Graph("prior", _TablePrior(model), {"noise": positions}, {"z": "raw", "codes": "codes"})]
    condition, of_condition = _condition_of_prior(model)
    inputs = {"codes": positions, "position": (), **condition}
    choices = {**choices, "position": positions[0], **of_condition}
    return [codes, Graph("next", _Next(model), inputs, {"logits": "raw"}, choices=choices)]
