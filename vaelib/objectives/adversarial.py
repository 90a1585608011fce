"""A bound, a perceptual term and a discriminator: how first stages of latent generators are trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vaelib._checks import (
    check_callable,
    check_choice,
    check_float,
    check_has_code,
    check_int,
    check_module,
    check_shape,
    check_type,
    shown,
)
from vaelib.objectives.adaptive import adaptive_weight
from vaelib.objectives.bound import may_have_penalty, one_draw, penalised
from vaelib.objectives.elbo import Elbo, default_objective
from vaelib.objectives.reconstruction import Reconstruction

__all__ = ["Adversarial", "AdversarialTerms"]


@may_have_penalty
class AdversarialTerms(NamedTuple):
    """The terms of :class:`Adversarial`."""

    loss: Tensor
    """A scalar: the loss of ``elbo``, and the batch means of ``perceptual`` and of ``weight * adversarial``. Its
    gradient also moves the discriminator, down the mean of ``discriminator``."""
    reconstruction: Tensor
    """-log p(x|z) per image in nats, shape ``(B,)``."""
    kl: Tensor
    """KL(q(z|x) to p(z)) per image in nats, shape ``(B,)``; 0 of an autoencoder."""
    perceptual: Tensor
    """What ``perceptual`` gives per image, shape ``(B,)``; 0 without one."""
    adversarial: Tensor
    """The generator's loss per image, the mean over patches, shape ``(B,)``: low where the discriminator is misled."""
    weight: Tensor
    """The weight of ``adversarial`` in the loss, the same for all images, shape ``(B,)``; 0 before ``start``."""
    discriminator: Tensor
    """The discriminator's loss per image, the mean over patches, shape ``(B,)``: 1 of hinge and 0.25 of
    least squares where real and reconstructed images look alike to it."""


def _hinge(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return -fake, 0.5 * (F.relu(1 - real) + F.relu(1 + fake))


def _least_squares(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * (fake - 1).square(), 0.5 * ((real - 1).square() + fake.square())


_Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_LOSSES: dict[str, _Loss] = {
    "hinge": _hinge,
    "least_squares": _least_squares,
}
"""By logits of real images and of reconstructions: the generator's loss, and the discriminator's."""


class Adversarial(nn.Module):
    """A bound, a perceptual term, and a discriminator that the reconstructions are to mislead.

    One backward pass gives each network exactly its own gradient: the model that of its loss with the discriminator
    held fixed, the discriminator that of its own loss on images and detached reconstructions. The discriminator is
    trained from step 0; its term enters the model's loss at ``start``, over ``ramp``. Before that the model's gradient
    is bitwise that of ``elbo`` and ``perceptual`` alone.

    Where a step is cut into pieces (``Trainer(accumulate=...)``), the adaptive weight is that of each piece, so the
    gradient is not that of the whole batch; with a number it is.

    A :class:`Trainer` moves, keeps and resumes the discriminator with the model, says how many steps the run has, and
    averages the model alone (:class:`EMA`). No number says which epoch of such a run is best, so ``best/`` is the last.
    A loop of your own gives the optimiser both networks and calls :meth:`set_total_steps` if ``start`` or ``ramp`` are
    fractions. The step runs eagerly: ``torch.compile`` knows no gradients within it.

    Args:
        discriminator: Images ``(B, C, H, W)`` to logits ``(B, ...)``, high for real ones, such as
            :class:`PatchDiscriminator`. None of its layers may mix images, as batch normalisation does.
        elbo: The bound, such as ``vl.Elbo(beta=1e-6)``; if None, ``Elbo()``, of an autoencoder ``Reconstruction()``.
        perceptual: ``(x, images) -> (B,)``, a fixed measure that is added to the loss of each image, beside a sum of
            nats: :func:`perceptual_distance`, ``lambda x, y: x[0].numel() * lpips(x, y, normalize=True)``, or None. A
            module is set to eval mode without gradients for its weights, moved to the images' device, and not saved.
        start: Start of the term in the model's loss: a fraction of the run, a float in [0, 1], or a step, an int.
        ramp: Length of its growth from 0 to the full weight: a fraction of the run or a number of steps.
        weight: Weight of the term: a number, or ``"adaptive"``: half the ratio of the norms of the gradients of
            reconstruction and perceptual term, and of the adversarial term, at the decoder's last layer (the last
            weight of its parameters), over the images of all processes.
        loss: ``"hinge"`` or ``"least_squares"``.
        optimizer: Settings of the discriminator's own beside ``betas=(0.5, 0.9)``, of optimisers that have betas:
            ``lr_scale``, by which the learning rate is multiplied, and arguments of the optimiser.

    Raises:
        ValueError: If an argument is out of its range, the discriminator has batch normalisation, or a
            fraction is given and the number of steps is not known.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> import vaelib as vl
        >>> objective = Adversarial(vl.PatchDiscriminator(1, width=8, num_layers=1), elbo=vl.Elbo(beta=0.1), start=0)
        >>> objective.set_total_steps(100)
        >>> objective(vl.conv_vae((1, 16, 16), 2), torch.rand(4, 1, 16, 16)).discriminator.shape
        torch.Size([4])

    References:
        Esser et al. (2021), Taming transformers, equations 6 and 7. https://arxiv.org/abs/2012.09841; hinge: Lim & Ye
        (2017), https://arxiv.org/abs/1705.02894; least squares: Mao et al. (2017), https://arxiv.org/abs/1611.04076
    """

    adaptive_weight: Tensor
    eager = True

    def __init__(
        self,
        discriminator: nn.Module,
        *,
        elbo: Elbo | Reconstruction | None = None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        start: float | int = 0.25,
        ramp: float | int = 0.05,
        weight: float | str = "adaptive",
        loss: str = "hinge",
        optimizer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_module("discriminator", discriminator)
        if any(isinstance(part, _BatchNorm) for part in discriminator.modules()):
            raise ValueError("`discriminator` must have no batch normalisation, which mixes images: take group norm.")
        if elbo is not None:
            check_type("elbo", elbo, Elbo | Reconstruction, "an Elbo, a Reconstruction or None")
        if getattr(elbo, "extra", None) is not None:
            raise ValueError("`elbo` must have no `extra`: give it as `perceptual`.")
        self.discriminator, self.elbo = discriminator, elbo
        self._measures = () if perceptual is None else (_fixed(perceptual),)  # in a tuple it is no part of the state
        self.start, self.ramp = _moment("start", start), _moment("ramp", ramp)
        if isinstance(weight, str):
            check_choice("weight", weight, ("adaptive",))
        self.weight = weight if isinstance(weight, str) else check_float("weight", weight, 0.0)
        check_choice("loss", loss, _LOSSES)
        self.loss = loss
        check_type("optimizer", optimizer, Mapping | None, "a mapping such as {'lr_scale': 0.5}, or None")
        self.optimizer = {"betas": (0.5, 0.9), **(optimizer or {})}
        if "params" in self.optimizer:
            raise ValueError("`optimizer` must not have `params`: they are the discriminator's.")
        self.register_buffer("adaptive_weight", torch.zeros(()))  # of the last step, which validation takes
        self._total_steps: int | None = None

    def set_total_steps(self, total_steps: int) -> None:
        """Say how many steps the run has, of which ``start`` and ``ramp`` may be fractions; ``Trainer`` does."""
        self._total_steps = check_int("total_steps", total_steps)
        start = self._step_of("start")
        if start >= total_steps:
            warnings.warn(
                f"The discriminator's term never enters: `start` is step {start} of {total_steps}.", stacklevel=2
            )

    def share(self, step: int) -> float:
        """Share of its weight that the discriminator's term has at ``step``: 0 before ``start``, 1 after ``ramp``."""
        return min(1.0, max(0.0, (step + 1 - self._step_of("start")) / max(1, self._step_of("ramp"))))

    def parameter_groups(self, model: Any) -> Sequence[dict[str, Any]]:
        """The discriminator's weights, with what the optimiser does otherwise for them."""
        return [{"params": self.discriminator.parameters(), **self.optimizer}]

    @property
    def beta(self) -> Any:
        """The schedule of ``elbo``, or None."""
        return getattr(self.elbo, "beta", None)

    @property
    def capacity(self) -> Any:
        """The schedule of ``elbo``, or None."""
        return getattr(self.elbo, "capacity", None)

    def forward(self, model: Any, x: Tensor, *, step: int = 0, generator: torch.Generator | None = None) -> Any:
        """:class:`AdversarialTerms` of one batch; ``step`` drives ``start``, ``ramp`` and the schedules of ``elbo``."""
        check_has_code("Adversarial", model)
        dtype = next((weight.dtype for weight in self.discriminator.parameters()), x.dtype)
        if dtype != x.dtype:
            raise TypeError(f"`discriminator` must be of the model's dtype, {x.dtype}, got {dtype}.")
        share = self.share(step)
        recon_params, draw = one_draw(model, x, generator)
        elbo: Any = self.elbo or default_objective(model)
        bound = elbo.of_draw(model, x, recon_params, draw, step=step)
        images = recon_params if model.likelihood is None else model.likelihood.mean(recon_params)
        perceptual = torch.zeros_like(bound.reconstruction)
        for measure in self._measures:
            perceptual = _measured(measure, x, images)
        loss = bound.loss + perceptual.mean() if self._measures else bound.loss

        of_model, of_discriminator, slope = _judged(
            self.discriminator, _LOSSES[self.loss], x, images, with_slope=share > 0
        )
        if slope is not None and self.weight == "adaptive":
            fixed = bound.reconstruction + perceptual
            self.adaptive_weight.copy_(adaptive_weight(model.decoder, recon_params, images, fixed, slope))
        full = x.new_tensor(self.weight) if isinstance(self.weight, float) else self.adaptive_weight.to(x)
        weight = share * full  # a tensor of its own: the buffer moves on
        if share > 0:
            loss = loss + weight * of_model.mean()
        if slope is not None:
            loss = loss + weight * _only_gradient((slope * images).sum() / len(x))
        loss = loss + _only_gradient(of_discriminator.mean())
        kl = getattr(bound, "kl", torch.zeros_like(perceptual))
        weights = weight.expand(len(x))
        terms = AdversarialTerms(loss, bound.reconstruction, kl, perceptual, of_model, weights, of_discriminator)
        return penalised(terms, draw.penalty)

    def _step_of(self, name: str) -> int:
        moment = getattr(self, name)
        if isinstance(moment, int):
            return moment
        if self._total_steps is None:
            raise ValueError(
                f"`{name}` is a fraction of the run, {moment:g}, and the number of steps is not known: call"
                " `set_total_steps` before the first, or give a step, an int."
            )
        return round(moment * self._total_steps)


def _moment(name: str, value: Any) -> float | int:
    """A step, an int; or a fraction of the run, a float."""
    if isinstance(value, Integral):
        return check_int(name, value, minimum=0)
    try:
        return check_float(name, value, 0.0, 1.0)
    except ValueError as error:
        message = f"`{name}` must be a fraction of the run in [0, 1], or an int, a step; got {shown(value)}."
        raise ValueError(message) from error


def _fixed(perceptual: Any) -> Any:
    check_callable("perceptual", perceptual, "callable, `(x, images) -> (B,)`")
    return perceptual.requires_grad_(False).eval() if isinstance(perceptual, nn.Module) else perceptual


def _measured(measure: Any, x: Tensor, images: Tensor) -> Tensor:
    if isinstance(measure, nn.Module):
        measure.to(x.device)
    values = measure(x, images)
    check_type("perceptual(...)", values, Tensor, "a tensor")
    check_shape("perceptual(...)", values.flatten().shape, x.shape[:1])
    return values.flatten().to(x.dtype)


def _judged(
    discriminator: Any, loss: _Loss, x: Tensor, images: Tensor, *, with_slope: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both networks' losses per image, and the slope of the model's in the pixels, without a graph.

    The reconstructions are judged once for both: as leaves, whose slope is the model's, and no gradient of the
    discriminator's loss goes beyond them.
    """
    leaves = images.detach().requires_grad_(with_slope and torch.is_grad_enabled())
    real, fake = (discriminator(each).to(x.dtype) for each in (x, leaves))
    check_shape("discriminator(images)", fake.shape, (len(x), *("..." for _ in fake.shape[1:])))
    of_model, of_discriminator = (each.reshape(len(x), -1) for each in loss(real, fake))
    slope = None
    if leaves.requires_grad:
        # Of a sum, as the mean over patches makes float16 underflow.
        (slope,) = torch.autograd.grad(of_model.sum(), leaves, retain_graph=True)
        slope = slope / of_model.shape[1]
    return of_model.mean(1).detach(), of_discriminator.mean(1), slope


def _only_gradient(value: Tensor) -> Tensor:
    """Zero, with the gradient of ``value``."""
    return value - value.detach()
