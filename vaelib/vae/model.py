"""The model: encoder, latent and decoder put together. No loss is computed here."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import check_generator, check_type, moved
from vaelib._parts import agreed_shape, check_heads, check_modules, check_param_channels
from vaelib.conditions import Condition
from vaelib.latents import GaussianLatent, Latent, LatentScaling, PointLatent
from vaelib.likelihoods import Bernoulli, Likelihood
from vaelib.priors import Prior
from vaelib.vae.verbs import Given, Passes

__all__ = ["VAE", "AutoEncoder"]


class VAE(Passes, nn.Module):
    """A variational autoencoder from any encoder, latent and decoder.

    Encoder and decoder need no base class: the encoder maps images ``(B, C, H, W)`` to what the latent reads, for the
    default :class:`GaussianLatent` ``(mu, logvar)``; the decoder maps ``z`` to ``recon_params``. If neither carries
    ``image_shape`` or ``latent_shape``, give them here.

    Args:
        encoder: Network of q(z|x). If yours returns unbounded log variances, pass them through
            :func:`vaelib.functional.soft_bound` as :class:`ConvEncoder` does.
        decoder: Network of p(x|z).
        likelihood: What ``recon_params`` mean; :class:`Bernoulli` if None.
        prior: p(z) of a Gaussian latent; :class:`StandardNormal` if None.
        latent: Posterior, prior and rate together; ``GaussianLatent(latent_shape, prior)`` if None.
        corruption: Noise on the encoder's input, in training mode only; see :mod:`vaelib.corruptions`.
        condition: Given to the model in addition to the image, :class:`Labels` or :class:`Vector`; see :meth:`given`.
        scaling: Shift and scale of z, which act where ``scaled=True`` is asked for; ``model.scaling = ...`` later.
        image_shape: ``(C, H, W)``; the parts' own if None.
        latent_shape: ``(D,)`` or ``(C, h, w)``; the parts' own if None.

    Raises:
        ValueError: If the parts disagree about the image or the latent, nobody knows its shape, or both ``prior`` and
            ``latent`` are given.

    Examples:
        >>> import vaelib as vl
        >>> vae = VAE(vl.ConvEncoder((1, 28, 28), 32), vl.ConvDecoder(32, (1, 28, 28)))
        >>> out = vae(torch.rand(2, 1, 28, 28))
        >>> out.recon_params.shape, out.mu.shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2, 32]))
        >>> vae.sample(4, seed=0).shape
        torch.Size([4, 1, 28, 28])

    References:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes. https://arxiv.org/abs/1312.6114
    """

    short_forms = ("prior",)
    """Arguments that ``latent`` holds, for :func:`vaelib.save`."""

    @moved(posterior="latent=vl.GaussianLatent(latent_shape, posterior=...)")
    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        latent: Latent | None = None,
        corruption: nn.Module | None = None,
        condition: Condition | None = None,
        scaling: LatentScaling | None = None,
        image_shape: Sequence[int] | None = None,
        latent_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_modules(encoder=encoder, decoder=decoder, likelihood=likelihood, prior=prior, corruption=corruption)
        check_modules(latent=latent, condition=condition)
        if prior is not None and latent is not None:
            raise ValueError(
                "`prior` must be None where `latent` is given, which has its own: write"
                f" {type(latent).__name__}(..., prior=...)."
            )
        parts = {"encoder": encoder, "decoder": decoder, "prior": prior, "latent": latent}
        self.image_shape = agreed_shape(
            "image_shape", image_shape, joined=("encoder", "prior"), condition=condition, **parts
        )
        self.latent_shape = agreed_shape(
            "latent_shape", latent_shape, joined=("decoder",), condition=condition, **parts
        )
        self.encoder, self.decoder = encoder, decoder
        self.likelihood: Any = Bernoulli() if likelihood is None else likelihood
        self.latent: Any = GaussianLatent(self.latent_shape, prior) if latent is None else latent
        self.corruption, self.condition, self.scaling = corruption, condition, scaling
        _check_condition_of(self.prior, condition)
        check_heads(encoder, self.latent)
        if hasattr(self.prior, "attach"):
            self.prior.attach(self)
        check_param_channels(decoder, self.likelihood, self.image_shape)
        self.register_load_state_dict_pre_hook(_of_version_0_1)

    def given(self, condition: Any, *, generator: torch.Generator | None = None) -> Given:
        """The model with ``condition`` bound: the same verbs, which objectives and evaluation use as they use a model.

        The condition as numbers, ``(B, E)``, joins the image before the encoder as E constant planes, and z before the
        decoder: behind a vector, as planes behind a map. A network with an attribute ``takes_condition`` that is True
        is called as ``network(input, embedding)`` instead; a prior or a latent with a method ``given(embedding)`` is
        used as what that returns.

        Args:
            condition: Labels or vectors, as the model's :class:`Labels` or :class:`Vector` takes them, one for all
                images or one for each; None for the null embedding of a condition with ``dropout``.
            generator: Random generator for the dropout, which acts in training mode: one decision per row of the
                condition, for encoder and decoder; one for all images where one condition serves them, so give each
                image its own there.

        Raises:
            ValueError: If the model has no condition, or this is none of its values.
            TypeError: If the condition is of the wrong kind.

        Examples:
            >>> import vaelib as vl
            >>> vae = vl.conv_vae((1, 8, 8), 2, condition=vl.Labels(10))
            >>> vae.given(7).sample(4).shape
            torch.Size([4, 1, 8, 8])
            >>> vl.Elbo()(vae.given([3, 1]), torch.rand(2, 1, 8, 8)).kl.shape
            torch.Size([2])
        """
        if self.condition is None:
            raise ValueError(
                "`condition` must be None for a model without one: build it with condition=vl.Labels(num_classes) or"
                " vl.Vector(size)."
            )
        check_generator(generator)
        embedding = self.condition.embed(condition).to(next(self.parameters(), torch.empty(0)))
        dropped = self.condition.dropped(embedding, generator) if self.training else None
        return Given(self, embedding, dropped, is_null=condition is None)

    def _undropped(self) -> VAE:
        return self

    def _run(self, network: nn.Module, value: Tensor) -> Any:
        if self.condition is not None:
            raise ValueError(
                f"`condition` must be given for a model with {type(self.condition).__name__}: write"
                " model.given(condition), or condition=... where you call encode, embed, reconstruct or sample."
            )
        return network(value)

    def __setattr__(self, name: str, value: Any) -> None:
        """``model.prior = ...`` gives the latent another; torch would register a module here that nothing would use."""
        if name in ("prior", "posterior"):
            if name == "prior":
                _check_condition_of(value, self.condition)
            setattr(self.latent, name, value)
        else:
            if name == "scaling":
                _check_scaling(value, self.latent_shape)
            super().__setattr__(name, value)


class AutoEncoder(VAE):
    """A :class:`VAE` whose latent is a point: one code per image, no prior, nothing to sample.

    Args:
        encoder: Maps images to codes; of an encoder that returns ``(mu, logvar)``, ``mu`` is the code.
        decoder: Maps codes to ``recon_params``.
        likelihood: What ``recon_params`` mean; images themselves, trained by squared error, if None.
        corruption: Noise on the encoder's input, in training mode only: a denoising autoencoder.
        condition: Given to the model in addition to the image, :class:`Labels` or :class:`Vector`.
        scaling: Shift and scale of z, as of a :class:`VAE`.
        image_shape: ``(C, H, W)``; the parts' own if None.
        latent_shape: ``(D,)`` or ``(C, h, w)``; the parts' own if None.

    Raises:
        ValueError: If the parts disagree about the image or the latent, or nobody knows its shape.

    Examples:
        >>> import vaelib as vl
        >>> model = AutoEncoder(vl.ConvEncoder((1, 28, 28), 2), vl.ConvDecoder(2, (1, 28, 28)))
        >>> model.encode(torch.rand(5, 1, 28, 28)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        likelihood: Likelihood | None = None,
        corruption: nn.Module | None = None,
        condition: Condition | None = None,
        scaling: LatentScaling | None = None,
        image_shape: Sequence[int] | None = None,
        latent_shape: Sequence[int] | None = None,
    ) -> None:
        check_modules(encoder=encoder, decoder=decoder, condition=condition)
        parts = {"encoder": encoder, "decoder": decoder}
        shape = agreed_shape("latent_shape", latent_shape, joined=("decoder",), condition=condition, **parts)
        super().__init__(
            encoder,
            decoder,
            likelihood=likelihood,
            latent=PointLatent(shape),
            corruption=corruption,
            condition=condition,
            scaling=scaling,
            image_shape=image_shape,
        )
        if likelihood is None:
            del self.likelihood
            self.likelihood = None


def _check_condition_of(prior: Any, condition: Condition | None) -> None:
    """Raise unless a prior that takes a condition is built for this one; warn if it is built for none."""
    size, wanted = getattr(prior, "condition_size", None), 0 if condition is None else condition.embedding_size
    if size is None or size == wanted:
        return
    if size:
        raise ValueError(
            f"`prior.condition_size` must be {wanted}, the size of the model's condition, got {size}: write"
            f" {type(prior).__name__}(..., condition_size={wanted}), or another prior for a model without a condition."
        )
    warnings.warn(
        f"The prior does not know the condition, so samples may not follow it: write {type(prior).__name__}(...,"
        f" condition_size={wanted}).",
        UserWarning,
        stacklevel=3,
    )


def _check_scaling(scaling: object, latent_shape: Sequence[int]) -> None:
    """Raise unless it is None, or for as many channels as the latent has."""
    check_type("scaling", scaling, LatentScaling | None, "a LatentScaling or None")
    channels = getattr(scaling, "num_channels", None)
    if channels not in (None, latent_shape[0]):
        raise ValueError(
            f"`scaling` must have one number, or one for each channel of the latent, {latent_shape[0]}, got {channels}."
        )


def _of_version_0_1(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The keys of weights from version 0.1, where prior and posterior lay beside encoder and decoder."""
    for name in [name for name in state if name.startswith((f"{prefix}prior.", f"{prefix}posterior."))]:
        state[f"{prefix}latent.{name.removeprefix(prefix)}"] = state.pop(name)
