"""What an exported model does with images, latents and codes; ``OnnxVAE`` adds how it is opened, and paths and nats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from vaelib.runtime.codes import Codes
from vaelib.runtime.contract import Contract
from vaelib.runtime.draws import codes_of_noise, noise_of_prior, z_of_noise
from vaelib.runtime.inputs import Array
from vaelib.runtime.opened import Graphs
from vaelib.runtime.scaling import scaling_if
from vaelib.runtime.tiles import decoded, encoded

__all__ = ["Passes", "Verbs"]


class Passes:
    """The methods between images, latents and codes.

    Where they have ``condition=`` it is that of ``OnnxVAE.given``; where they have ``scaled=``, latents are
    ``(z - shift) * scale`` by ``metadata["scaling"]``, which must be there.

    Where they have ``tile=``, encoder and decoder of a bundle with free sizes compute one tile after the other, none
    with a side of more than ``tile`` pixels, so only input and result grow with the image. Tiles overlap by the
    receptive radius in ``metadata["tiling"]``, and the result is that of the whole, up to 1e-6 of its range. A graph
    that looks at the whole image, through a normalisation over space or attention, is refused by the name of that
    layer; with ``blend=True`` its tiles overlap by a quarter and are blended linearly: ``metadata["tiling"]`` has the
    error that this made at export. Images whose size is no multiple of ``spatial_multiple`` are reflected at the bottom
    and on the right, and a warning reports it.
    """

    contract: Mapping[str, Contract]
    metadata: Mapping[str, Any]
    _graphs: Graphs

    def _given(self, condition: Any) -> Graphs:
        return self._graphs if condition is None else self._graphs.given(condition, "condition")

    def encode(
        self,
        images: NDArray[Any],
        *,
        condition: Any = None,
        scaled: bool = False,
        tile: int | None = None,
        blend: bool = False,
    ) -> tuple[Array, Array] | NDArray[Any]:
        """Images, floating-point ``(B, C, H, W)`` in [0, 1], to ``(mu, logvar)``, codes or z, as ``VAE.encode``.

        Raises:
            ValueError: If the shape is wrong, a value leaves [0, 1] or is NaN, or a code is not finite.
            TypeError: If ``images`` is no array of floating point.
        """
        outputs, scaling = self.contract["encoder"].outputs, scaling_if(scaled, self.metadata)
        names = ("mu", "logvar") if "mu" in outputs else ("codes",) if "codes" in outputs else ("z",)
        if scaling is not None and "codes" in outputs:
            raise ValueError("`scaled` must be False for codes, which have no scale: `embed` gives their z.")
        found = encoded(self._given(condition), images, names, (tile, blend))
        if len(found) == 2:
            return (found[0], found[1]) if scaling is None else scaling.posterior(found[0], found[1])
        return found[0] if scaling is None else scaling.of(found[0])

    def embed(
        self,
        images: NDArray[Any],
        *,
        condition: Any = None,
        scaled: bool = False,
        tile: int | None = None,
        blend: bool = False,
    ) -> Array:
        """Images to the z that :meth:`reconstruct` decodes, ``(B, *latent_shape)``: mu, or an AutoEncoder's code.

        Deterministic; mu through the flow if the posterior has one. Raises as :meth:`encode`.
        """
        scaling = scaling_if(scaled, self.metadata)
        z = encoded(self._given(condition), images, ("z",), (tile, blend))[0]
        return z if scaling is None else scaling.of(z)

    def encode_codes(self, images: NDArray[Any], *, condition: Any = None) -> Codes:
        """Images to the codes of a quantised latent, int64 ``(B, N)``. Raises as :meth:`encode`, and without codes."""
        graphs = self._given(condition)
        _ = graphs.num_codes  # raises where there are none
        return graphs.ask("encoder", "image", images, "images", ("codes",))[0]

    def decode_codes(self, codes: NDArray[Any], *, condition: Any = None) -> Array:
        """Codes, whole numbers ``(B, N)`` in [0, num_codes), to images, as :meth:`decode` of their z.

        Raises:
            ValueError: If the model has no codes, the shape is wrong, or a code is out of range.
            TypeError: If ``codes`` is no array of whole numbers.
        """
        return self.decode(self.embed_codes(codes), condition=condition)

    def embed_codes(self, codes: NDArray[Any]) -> Array:
        """Codes to their z, ``(B, *latent_shape)``. Raises as :meth:`decode_codes`."""
        _ = self._graphs.num_codes
        return self._graphs.ask("codes", "codes", codes, "codes", ("z",))[0]

    def decode(
        self,
        z: NDArray[Any],
        *,
        condition: Any = None,
        scaled: bool = False,
        tile: int | None = None,
        blend: bool = False,
    ) -> Array:
        """Latents ``(B, *latent_shape)``, finite floats, to images ``(B, C, H, W)``: p(x|z)'s mean, clamped to [0, 1].

        Raises:
            ValueError: If the shape is wrong, or a value is not finite, in ``z`` or in the images.
            TypeError: If ``z`` is no array of floating point.
        """
        return decoded(self._given(condition), self._unscaled(z, scaled), "mean", (tile, blend))

    def decode_params(
        self, z: NDArray[Any], *, scaled: bool = False, tile: int | None = None, blend: bool = False
    ) -> Array:
        """Latents to the raw parameters of p(x|z), ``(B, K, H, W)``, as ``VAE.decode``. Raises as :meth:`decode`."""
        return decoded(self._graphs, self._unscaled(z, scaled), "recon_params", (tile, blend))

    def _unscaled(self, z: NDArray[Any], scaled: bool) -> NDArray[Any]:
        scaling = scaling_if(scaled, self.metadata)
        return z if scaling is None else scaling.inverse(self._graphs.checked("decoder", "z", z, "z"))

    def encode_stream(self, batches: Iterable[NDArray[Any]]) -> Iterator[tuple[Array, Array] | NDArray[Any]]:
        """:meth:`encode` of one batch after the other, for more images than the memory holds."""
        return map(self.encode, batches)

    def decode_stream(self, batches: Iterable[NDArray[Any]]) -> Iterator[Array]:
        """:meth:`decode` of one batch after the other."""
        return map(self.decode, batches)

    def reconstruct(
        self, images: NDArray[Any], *, condition: Any = None, tile: int | None = None, blend: bool = False
    ) -> Array:
        """Images from images, ``(B, C, H, W)`` both, by :meth:`embed`: deterministic. Raises as :meth:`encode`.

        With ``tile`` an image may have any height and width: it is reflected up to whole cells, the result cropped.
        """
        graphs, tiles = self._given(condition), (tile, blend)
        z = encoded(graphs, images, ("z",), tiles, is_cropped=True)[0]
        return decoded(graphs, z, "mean", tiles)[:, :, : images.shape[2], : images.shape[3]]


class Verbs(Passes):
    """Draws of the prior, in addition to the methods between images, latents and codes."""

    def sample(self, num_samples: int, *, condition: Any = None, seed: int | None = None) -> Array:
        """Images from the prior, ``(num_samples, C, H, W)``; a seed gives the same again, as ``VAE.sample`` does.

        Raises:
            ValueError: If the bundle has no prior to draw from, an argument is negative, or :meth:`given` raises.
        """
        graphs = self._given(condition)
        z = z_of_noise(graphs, noise_of_prior(graphs, num_samples, seed))
        return self.decode(z, condition=condition)

    def codes_from_noise(self, noise: NDArray[Any]) -> Codes:
        """Draws of a prior over codes, ``(B, N)``. Raises as :meth:`from_noise`, and without codes."""
        _ = self._graphs.num_codes
        return codes_of_noise(self._graphs, noise)

    def from_noise(self, noise: NDArray[Any]) -> Array:
        """Draws of the prior, ``(B, *latent_shape)``, from standard normal noise of ``contract["prior"]``, ``(B, N)``.

        Of an autoregressive prior over N codes a code is drawn after the other. Raises as :meth:`decode`, and if there
        is no prior.
        """
        return z_of_noise(self._graphs, noise)
