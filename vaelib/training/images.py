"""What a run shows of itself: images each epoch, curves at the end, and a warning when latents die."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaelib import plots
from vaelib._checks import check_float, check_int
from vaelib.conditions import Labels
from vaelib.latents import Draw
from vaelib.training.history import curves
from vaelib.vae import VAE, bound, eval_mode

__all__ = ["CollapseWarning", "Pictures"]

_logger = logging.getLogger("vaelib.training")
_MOST_CLASSES = 16
_STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # of a traversal, in units of the prior's scale


class Pictures:
    """Reconstructions, samples and latent traversals as PNG after each epoch, and the curves at the end.

    Part of every run of a :class:`VAE` or :class:`AutoEncoder` with an ``output_dir``. Curves need matplotlib.

    Args:
        every: Epochs between images; the last epoch is always drawn.

    Raises:
        ValueError: If ``every`` is below 1.

    Examples:
        >>> import vaelib as vl
        >>> trainer = vl.Trainer(max_epochs=100, output_dir="runs/long", callbacks=[Pictures(every=10)])
    """

    def __init__(self, every: int = 1) -> None:
        self.every = check_int("every", every)

    def on_epoch(self, run: Any) -> None:
        """Draw the evaluated model."""
        record, model, out = run.history[-1], run.evaluated, run.output_dir
        if out is None or not isinstance(model, VAE):
            return
        if record.epoch % self.every and record.epoch != run.max_epochs:
            return
        with eval_mode(model):  # in training mode a condition may be dropped, which is a draw
            x, name = run.examples[:50], f"epoch_{record.epoch:03d}.png"
            condition = None if run.condition is None else run.condition[: len(x)]
            plots.save_pairs(x, bound(model, condition).reconstruct(x), _file(out, "reconstructions", name))
            if not model.latent.has_prior:
                return
            samples, captions = _samples(model, condition)
            plots.save_grid(samples, _file(out, "samples", name), captions=captions)
            film = traversals(bound(model, None if condition is None else condition[:1]), x[:1])
            if film is not None:
                plots.save_grid(film, _file(out, "traversals", name), columns=len(_STEPS))

    def on_end(self, run: Any) -> None:
        """Draw the curves."""
        if run.output_dir is not None and run.history and importlib.util.find_spec("matplotlib"):
            plots.save_curves(curves(run.history), run.output_dir / "curves.png")


class CollapseWarning:
    """Warns when latents carry nothing; part of every run of a :class:`VAE`.

    A latent is dead if its KL, averaged over images, is below ``threshold`` nats: its posterior is the prior, whatever
    the image. A warning goes to the logger ``vaelib.training`` when more than half of them are, and again when all are.

    Args:
        threshold: Nats, at least 0.

    Raises:
        ValueError: If ``threshold`` is out of its range.

    Examples:
        >>> import vaelib as vl
        >>> trainer = vl.Trainer(callbacks=[CollapseWarning(threshold=0.05)])

    References:
        Burda et al. (2016), Importance Weighted Autoencoders, section 5, on active units.
    """

    def __init__(self, threshold: float = 0.01) -> None:
        self.threshold = check_float("threshold", threshold, 0.0)
        self._warned = 0.5

    def on_epoch(self, run: Any) -> None:
        """Count the dead latents of the evaluated model."""
        model = run.evaluated
        if not isinstance(model, VAE) or not model.latent.has_prior or not run.accelerator.is_main_process:
            return
        with eval_mode(model):
            draw = at_the_mean(bound(model, run.condition), run.examples)
        if draw.codes is not None:  # whose rate is that of the prior, used or not
            return
        kl = draw.kl.mean(0)
        dead = int((kl < self.threshold).sum())
        if len(kl) > 1 and dead / len(kl) > self._warned:
            self._warned = max(dead / len(kl), 1 - 1 / len(kl))
            _logger.warning(
                "%s of %s latents carry less than %g nats after epoch %s. %s To try, one at a time: a KL that rises"
                " from 0, Elbo(beta=linear_warmup(...)) or cyclical(...); Elbo(free_bits=0.1); a smaller beta; a lower"
                " learning rate; a smaller `latent_dim` or a weaker decoder.",
                *(dead, len(kl), self.threshold, run.history[-1].epoch),
                "The posterior has collapsed: the decoder ignores z."
                if dead == len(kl)
                else "Either `latent_dim` is larger than these images need, or the posterior is collapsing.",
            )

    def state_dict(self) -> dict[str, Any]:
        """The share of dead latents that was reported."""
        return {"warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self._warned = state["warned"]


def traversals(model: Any, x: Tensor, rows: int = 10) -> Tensor | None:
    """Images of one image's latent, each of the ``rows`` latents of largest KL in turn moved from -3 to 3.

    None of codes, between which there is nothing.
    """
    with eval_mode(model):
        draw = at_the_mean(model, x)
        if draw.codes is not None:
            return None
        kl, flat = draw.kl[0], draw.z.flatten(1)
        rows = min(rows, flat.shape[1])
        chosen = kl.topk(rows).indices if len(kl) == flat.shape[1] else torch.arange(rows)
        moved = flat.repeat(len(chosen), len(_STEPS), 1)
        moved[torch.arange(len(chosen)), :, chosen] = torch.tensor(_STEPS, device=flat.device)
        return model.decode_mean(moved.view(-1, *model.latent_shape))


def at_the_mean(model: Any, x: Tensor) -> Draw:
    """The draw of noise 0, which is the posterior's mean."""
    features = model.observe(x)
    draw: Draw = model.draw(features, noise=x.new_zeros(len(x), model.latent.noise_size))
    return draw


def _samples(model: Any, condition: Tensor | None) -> tuple[Tensor, list[str]]:
    """64 images; of a model with a condition, a row for each of some conditions, which the captions name."""
    if condition is None:
        return model.sample(64, seed=0), []
    if isinstance(model.condition, Labels):
        condition = torch.arange(min(model.condition.num_classes, _MOST_CLASSES), device=condition.device)
    else:
        condition = condition[:8]
    captions = [_caption(model.condition, values) for values in condition.tolist()]
    return model.sample(8 * len(condition), condition=condition.repeat_interleave(8, 0), seed=0), captions


def _caption(part: Any, values: Any) -> str:
    """A class by name or number, or the numbers of a vector."""
    if isinstance(values, int):
        names = getattr(part, "names", None)
        return str(values) if names is None else str(names[values])
    return " ".join(f"{value:.2g}" for value in (values if isinstance(values, list) else [values]))


def _file(out: Path, folder: str, name: str) -> Path:
    (out / folder).mkdir(exist_ok=True)
    return out / folder / name
