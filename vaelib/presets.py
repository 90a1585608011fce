"""Named architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vaelib._checks import check_bool, check_choice, check_int, check_int_tuple
from vaelib._parts import agreed_shape, check_modules
from vaelib.conditions import Condition
from vaelib.latents import Latent
from vaelib.likelihoods import Bernoulli, Laplace, Likelihood
from vaelib.networks import ConvDecoder, ConvEncoder, ResidualDecoder, ResidualEncoder
from vaelib.networks.article import ArticleDecoder, ArticleEncoder
from vaelib.priors import Prior
from vaelib.vae import VAE

__all__ = ["article_vae", "autoencoder_kl", "conv_vae"]

_FACTORS = (1, 2, 4, 8, 16, 32)


def conv_vae(
    image_shape: Sequence[int],
    latent_dim: int | None = None,
    *,
    latent_shape: Sequence[int] | None = None,
    hidden_channels: Sequence[int] = (16, 32, 48, 64),
    kernel_size: int = 3,
    stride: int = 2,
    norm: str = "batch",
    activation: str = "silu",
    dropout: float = 0.0,
    residual_blocks: int = 0,
    upsample: str = "transpose",
    likelihood: Likelihood | None = None,
    prior: Prior | None = None,
    latent: Latent | None = None,
    corruption: nn.Module | None = None,
    condition: Condition | None = None,
) -> VAE:
    """A :class:`VAE` of a :class:`ConvEncoder` and the :class:`ConvDecoder` that mirrors it.

    Args:
        image_shape: ``(C, H, W)``, any size.
        latent_dim: D of a latent vector; 32 if neither this, ``latent_shape`` nor ``latent`` is given.
        latent_shape: ``(C, h, w)`` of a latent map.
        hidden_channels: Channels per stage, from the image inwards; the decoder's are the same, reversed.
        kernel_size: Side of the kernels of the convolutions that halve and double.
        stride: Stride of these convolutions.
        norm: See :class:`ConvEncoder`.
        activation: See :class:`ConvEncoder`.
        dropout: Probability in [0, 1].
        residual_blocks: Per stage.
        upsample: See :class:`ConvDecoder`.
        likelihood: p(x|z); :class:`Bernoulli` if None.
        prior: p(z) of a Gaussian latent; :class:`StandardNormal` if None.
        latent: Posterior, prior and rate together, such as a :class:`VectorQuantizer`; Gaussian if None. The encoder
            gets the heads that it reads.
        corruption: Noise on the encoder's input, in training mode only.
        condition: Given in addition to the image, :class:`Labels` or :class:`Vector`; encoder and decoder are
            built with its channels.

    Returns:
        The untrained model.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> import torch
        >>> vae = conv_vae((3, 40, 64), latent_dim=16, upsample="nearest")
        >>> vae.reconstruct(torch.rand(2, 3, 40, 64)).shape
        torch.Size([2, 3, 40, 64])
        >>> import vaelib as vl
        >>> vae = conv_vae((1, 28, 28), hidden_channels=(16, 32), latent=vl.VectorQuantizer((8, 7, 7), num_codes=64))
        >>> vae.encode(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 49])
    """
    check_modules(likelihood=likelihood, prior=prior, latent=latent, corruption=corruption, condition=condition)
    if latent is not None:
        latent_shape = agreed_shape("latent_shape", latent_shape, latent=latent)
    elif latent_dim is None and latent_shape is None:
        latent_dim = 32
    likelihood = Bernoulli() if likelihood is None else likelihood
    more = 0 if condition is None else condition.embedding_size
    style: dict[str, Any] = {
        "kernel_size": kernel_size,
        "stride": stride,
        "norm": norm,
        "activation": activation,
        "dropout": dropout,
        "residual_blocks": residual_blocks,
    }
    encoder = ConvEncoder(
        _with_channels("image_shape", image_shape, more),
        latent_dim,
        latent_shape=latent_shape,
        hidden_channels=hidden_channels,
        num_heads=getattr(latent, "num_heads", 2),
        **style,
    )
    decoder = ConvDecoder(
        None,
        image_shape,
        latent_shape=_with_channels("latent_shape", encoder.latent_shape, more),
        hidden_channels=encoder.hidden_channels[::-1],
        upsample=upsample,
        param_channels=likelihood.param_channels(image_shape[0]),
        **style,
    )
    return VAE(
        encoder,
        decoder,
        likelihood=likelihood,
        prior=prior,
        latent=latent,
        corruption=corruption,
        condition=condition,
    )


def _with_channels(name: str, shape: Sequence[int], more: int) -> tuple[int, ...]:
    channels = check_int_tuple(name, shape)
    return (channels[0] + more, *channels[1:]) if channels else channels


def autoencoder_kl(
    image_shape: Sequence[int],
    factor: int = 8,
    channels: int | None = None,
    *,
    width: int = 128,
    residual_blocks: int = 2,
    norm: str = "pixel",
    groups: int = 32,
    attention: bool = False,
    quant_conv: bool = False,
    latent: Latent | None = None,
    likelihood: Likelihood | None = None,
) -> VAE:
    """The first stage of a latent diffusion or token model: a :class:`VAE` with a latent map of images / ``factor``.

    Made of :class:`ResidualEncoder` and :class:`ResidualDecoder`. With the default norm and without attention, each
    output depends on a bounded part of the input, so large images can be encoded and decoded in tiles, exactly. With
    ``norm="group", attention=True, quant_conv=True`` and a Gaussian latent it is the network of Stable Diffusion's
    AutoencoderKL, which :func:`vaelib.to_diffusers` writes; ``width=128`` is its size, 84 million parameters.

    Args:
        image_shape: ``(C, H, W)``; H and W are multiples of ``factor``.
        factor: How much smaller the latent map is: 1, 2, 4, 8, 16 or 32.
        channels: Channels of z; those of ``latent``, or 4, if None.
        width: Channels at the image's resolution; the following levels have 2, 4, 4, 4 and 4 times as many.
        residual_blocks: Residual blocks per level of the encoder; the decoder has one more.
        norm: ``"pixel"`` or ``"group"``; see :class:`ResidualEncoder`.
        groups: Groups of ``norm="group"``, of which ``width`` is a multiple.
        attention: Whether there is attention at the lowest resolution.
        quant_conv: Whether a 1x1 convolution lies before and after the latent.
        latent: Posterior, prior and rate together, such as a :class:`VectorQuantizer`; Gaussian if None.
        likelihood: p(x|z); ``Laplace("optimal")``, for which decoders give images, if None.

    Returns:
        The untrained model.

    Raises:
        ValueError: If an argument is out of its range, or ``latent`` has another shape.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> import torch, vaelib as vl
        >>> vae = autoencoder_kl((3, 64, 64), width=8)
        >>> vae.latent_shape
        (4, 8, 8)
        >>> latent = vl.FiniteScalarQuantizer((3, 16, 16), (8, 6, 5))
        >>> tokenizer = autoencoder_kl((3, 64, 64), factor=4, width=8, latent=latent)
        >>> tokenizer.encode(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 256])

    References:
        Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion Models.
        https://arxiv.org/abs/2112.10752
    """
    check_modules(latent=latent, likelihood=likelihood)
    check_choice("factor", factor, _FACTORS)
    check_bool("quant_conv", quant_conv)
    shape = check_int_tuple("image_shape", image_shape, length=3)
    if latent is not None:
        latent_shape = agreed_shape("latent_shape", None, latent=latent)
        if channels is None:
            channels = latent_shape[0]
    channels = 4 if channels is None else check_int("channels", channels)
    likelihood = Laplace("optimal") if likelihood is None else likelihood
    width = check_int("width", width)
    widths = [width * min(2**level, 4) for level in range(_FACTORS.index(factor) + 1)]
    inner_channels = channels if quant_conv else None
    encoder = ResidualEncoder(
        shape,
        channels,
        hidden_channels=widths,
        residual_blocks=residual_blocks,
        norm=norm,
        groups=groups,
        attention=attention,
        inner_channels=inner_channels,
        num_heads=getattr(latent, "num_heads", 2),
    )
    decoder = ResidualDecoder(
        shape,
        channels,
        hidden_channels=widths[::-1],
        residual_blocks=encoder.residual_blocks + 1,
        norm=norm,
        groups=groups,
        attention=attention,
        inner_channels=inner_channels,
        param_channels=likelihood.param_channels(shape[0]),
    )
    return VAE(encoder, decoder, likelihood=likelihood, latent=latent)


def article_vae() -> VAE:
    """The network of the 2021 tutorial for MNIST at 32x32, layer for layer: 165,409 parameters.

    It is here to be measured against, its flaw included: the activation and the dropout behind the two heads
    bend the posterior's parameters. Its sigmoid is the likelihood's, the same function.

    Examples:
        >>> sum(p.numel() for p in article_vae().parameters())
        165409
    """
    return VAE(ArticleEncoder(), ArticleDecoder(), likelihood=Bernoulli())
