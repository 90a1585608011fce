"""Statistics of latents and activations over a data set: what a generator of latents and float16 ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vaelib._checks import DataError
from vaelib._images import ImageSet
from vaelib.evaluation.bound import Estimate
from vaelib.evaluation.inputs import batches_for, check_model, check_model_finite
from vaelib.latents import LatentScaling
from vaelib.vae import VAE, bound, eval_mode

__all__ = ["LatentStatistics", "activation_ranges", "latent_statistics", "watched"]

_NEARLY_A_POINT = 0.1
"""Noise of the posterior beside the spread of z, below which decoding a draw and decoding mu differ little."""


class LatentStatistics(NamedTuple):
    """Posterior draws of a model over a data set, by channel of the latent."""

    mean: Tensor
    """Of each channel over images and positions, float64 ``(C,)``; of a latent vector, of each latent."""
    deviation: Tensor
    """Standard deviation of the same, float64 ``(C,)``."""
    noise: Tensor | None
    """Of the deviation, what is drawn: the root mean square of z - mu in each channel, float64 ``(C,)``; None of a
    latent without a Gaussian posterior."""
    rate_bits: Estimate | None
    """KL(q(z|x) to p(z)) in bits per image: what z carries beyond the prior; None of a latent without a prior."""
    num_images: int
    num_values: int
    """Numbers in one z."""

    @property
    def scaling(self) -> LatentScaling:
        """``model.scaling = statistics.scaling`` gives the scaled z mean 0 and deviation 1 in each channel.

        Raises:
            ValueError: If a channel is constant.
        """
        constant = (self.deviation == 0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"A scaling needs channels that vary, but channel {constant[0]} of the latent is constant."
            )
        return LatentScaling(tuple(self.mean.tolist()), tuple((1 / self.deviation).tolist()))

    def in_words(self) -> str:
        """What the rate says, and whether the posterior is one in more than name."""
        if self.rate_bits is None:
            return "The latent has no prior, so it has no rate."
        rate = self.rate_bits.value
        said = f"KL: {rate:,.0f} bits per image, {rate / self.num_values:.2g} for each of {self.num_values:,} latents."
        if self.noise is None or not self.deviation.any():
            return said
        share = float(self.noise.square().sum().sqrt() / self.deviation.square().sum().sqrt())
        said += f" The posterior's noise is {100 * share:.{1 if share < 0.1 else 0}f}% of the deviation of z"
        if share > _NEARLY_A_POINT:
            return f"{said}."
        return (
            f"{said}: z is nearly a point, as after training with a KL weight of 1e-6, and draws of the prior are no"
            " latents of images. A generator of latents has to learn p(z)."
        )


def latent_statistics(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> LatentStatistics:
    """Mean and deviation of each channel of z ~ q(z|x), one draw per image, and the rate in bits.

    Batches are merged in float64 by their means and squared deviations, so the data may be a stream and a large mean
    costs no digits. A diffusion model that is trained on latents wants them with mean 0 and deviation 1 in each
    channel: ``model.scaling = latent_statistics(model, data).scaling``.

    Args:
        model: A VAE or an autoencoder.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches: those of the training.
        batch_size: Images per batch, unless ``data`` comes in batches.
        generator: Random generator for the draws, on any device.

    Returns:
        A :class:`LatentStatistics`, on the CPU.

    Raises:
        DataError: A ``ValueError``: if there is no image, or a channel has one value in all.
        ValueError: If a z or its KL is not finite.
        TypeError: If ``model`` is neither.

    Examples:
        >>> import vaelib as vl
        >>> vae = vl.conv_vae((1, 8, 8), latent_shape=(2, 4, 4), hidden_channels=(4,))
        >>> statistics = latent_statistics(vae, torch.rand(100, 1, 8, 8))
        >>> vae.scaling = statistics.scaling
        >>> statistics.mean.shape, vae.embed(torch.rand(5, 1, 8, 8), scaled=True).shape
        (torch.Size([2]), torch.Size([5, 2, 4, 4]))

    References:
        Merging of means and squared deviations: Chan, Golub & LeVeque (1983), equation 2.1,
        https://doi.org/10.1080/00031305.1983.10483115; one scale over all latents: Rombach et al. (2022), appendix G,
        https://arxiv.org/abs/2112.10752
    """
    check_model("model", model)
    count, mean, squares, noise = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    rates = []
    with eval_mode(model):
        for x, condition in batches_for(model, data, batch_size, generator):
            view = bound(model, condition)
            draw = view.draw(view.observe(x, generator=generator), generator=generator)
            kl = draw.kl.sum(1)
            check_model_finite("model", "the latent", draw.z, kl)
            rates.append(kl.cpu().double() / math.log(2))
            values = _by_channel(draw.z)
            if draw.mu is not None:
                noise = noise + (values - _by_channel(draw.mu)).square().sum(1)
            new, own = values.shape[1], values.mean(1)
            shift = own - mean
            mean = mean + shift * (new / (count + new))
            squares = squares + (values - own[:, None]).square().sum(1) + shift.square() * (count * new / (count + new))
            count += new
    if count < 2:
        raise DataError("`data` must hold at least two images for a latent of one value per channel, got one.")
    rate = torch.cat(rates)
    return LatentStatistics(
        mean=mean,
        deviation=(squares / (count - 1)).sqrt(),
        noise=(noise / count).sqrt() if noise.ndim else None,
        rate_bits=Estimate.of(rate) if model.latent.has_prior else None,
        num_images=len(rate),
        num_values=math.prod(model.latent_shape),
    )


def _by_channel(z: Tensor) -> Tensor:
    """``(C, N * positions)``, float64 on the CPU."""
    return z.cpu().double().movedim(1, 0).flatten(1)


def activation_ranges(
    model: VAE,
    data: Tensor | ImageSet | Iterable[Any],
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """The largest magnitude that each layer of encoder and decoder gives over a data set, with one draw of z each.

    Float16 ends at 65,504: beyond it an image is black or NaN, which is what happened to the autoencoder of
    Stable Diffusion XL. ``export_onnx(..., precision="fp16")`` wants 4 times as much room in every layer.

    Args:
        model: A VAE or an autoencoder.
        data: Images ``(N, C, H, W)`` in [0, 1], an ``ImageDataset``, or an iterable of batches.
        batch_size: Images per batch, unless ``data`` comes in batches.
        generator: Random generator for the draws, on any device.

    Returns:
        By the name of the layer in the model, such as ``decoder.head.0``, in the order of the model; modules that hold
        others are layers too, for they add what these give. Layers that were not called are skipped.

    Raises:
        DataError: A ``ValueError``: if there is no image.
        TypeError: If ``model`` is neither a VAE nor an autoencoder.

    Examples:
        >>> import vaelib as vl
        >>> ranges = activation_ranges(vl.conv_vae((1, 8, 8), 2, hidden_channels=(4,)), torch.rand(5, 1, 8, 8))
        >>> max(ranges.values()) < 100
        True

    References:
        The range of float16: Micikevicius et al. (2018), Mixed precision training, section 3,
        https://arxiv.org/abs/1710.03740
    """
    check_model("model", model)
    with eval_mode(model), watched(model) as found:
        for x, condition in batches_for(model, data, batch_size, generator):
            view = bound(model, condition)
            view.decode(view.draw(view.observe(x, generator=generator), generator=generator))
    return {name: float(value) for name, value in found.items() if value is not None}


@contextmanager
def watched(model: Any) -> Iterator[dict[str, Tensor | None]]:
    """The largest magnitude of what each layer has given so far; NaN once it was NaN."""
    layers = {
        f"{part}.{name}".rstrip("."): module
        for part in ("encoder", "decoder")
        for name, module in getattr(model, part).named_modules()
    }
    found: dict[str, Tensor | None] = dict.fromkeys(layers)

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for part in tree_leaves(output):
                if isinstance(part, Tensor) and part.is_floating_point() and part.numel():
                    largest = part.detach().abs().max().float()
                    before = found[name]
                    found[name] = largest if before is None else torch.maximum(before, largest)

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
