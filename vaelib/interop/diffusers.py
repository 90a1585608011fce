"""Autoencoders of the library diffusers, from its directories and to them, without importing it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaelib._checks import ModelFileError, check_int_tuple, check_no_view, check_path, check_type
from vaelib._files import Listed, files_replaced, target_directory
from vaelib._weights import Budget, read_object, read_tensors, write_tensors
from vaelib.interop.configs import CONFIG_NAME, DEFAULTS, factor_of, model_of, read_config, size_of
from vaelib.interop.writing import config_of, names_of, with_todays_names
from vaelib.vae import VAE

__all__ = ["from_diffusers", "to_diffusers"]

_STEM = "diffusion_pytorch_model"
WEIGHTS_NAME = f"{_STEM}.safetensors"
_SEAL = "_vaelib_weights_sha256"
"""Key of the configs that vaelib writes; diffusers ignores keys with an underscore."""
_SETTINGS = ("sample_size", "force_upcast", "lookup_from_codebook", "latent_magnitude", "latent_shift")
"""Keys that say how diffusers runs a model, and nothing of what its encoder and decoder compute."""


def from_diffusers(directory: str | Path, *, image_size: int | Sequence[int] | None = None) -> VAE:
    """An autoencoder of diffusers as a :class:`VAE` that trains, is measured and exports as any other.

    Reads ``config.json`` and the safetensors file of a local directory, such as the ``vae`` of a pipeline; nothing is
    downloaded, no pickle is opened, and diffusers need not be installed. Images are in [0, 1], as everywhere in vaelib;
    the networks themselves go to [-1, 1] and back. On the same machine, ``encode``, ``embed`` and ``decode`` give
    bitwise what diffusers' ``encode`` and ``decode`` give.

    ===================  =======================================================================================
    ``AutoencoderKL``    :class:`ResidualEncoder`, :class:`ResidualDecoder`, :class:`GaussianLatent` with N(0, I)
    ``VQModel``          the same networks with a :class:`VectorQuantizer` that gradients train, without restarts
    ``AutoencoderTiny``  ``networks.TinyEncoder``, ``networks.TinyDecoder``, :class:`PointLatent`
    ===================  =======================================================================================

    The likelihood is ``Laplace(0.5)``, an absolute deviation of 1 in [-1, 1]: -log p(x|z) is then the reconstruction
    loss that latent diffusion was trained with, the sum of ``|x - y|`` in [-1, 1], in nats. Give
    ``model.likelihood = vl.Laplace("optimal")`` for a calibrated bound. ``model.scaling`` is the config's scaling and
    shift. Such a model is no good generator by itself: z ~ N(0, I), or uniform codes, are not what its encoder gives,
    so ``sample`` shows textures; a diffusion model or a fitted prior (``vl.fit_prior``) takes that place.

    Args:
        directory: A directory with ``config.json`` and ``diffusion_pytorch_model.safetensors``, its shards or, without
            it, one variant, such as ``diffusion_pytorch_model.fp16.safetensors`` or its shards.
        image_size: Side, or height and width, of the images that the model is to take, multiples of its factor; the
            config's ``sample_size`` if None, and 512 where it has none.

    Returns:
        The model in eval mode, on the CPU, in float32.

    Raises:
        FileNotFoundError: If the directory holds no config or no safetensors file.
        ModelFileError: A ``ValueError``: if the config has another class, an unknown key or a value that vaelib has
            not, or the weights do not fit; it names the key.
        ValueError: If ``image_size`` is no multiple of the factor.

    Examples:
        >>> import tempfile, vaelib as vl
        >>> vae = vl.autoencoder_kl((3, 16, 16), width=8, norm="group", groups=4)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     vl.to_diffusers(vae, f"{directory}/vae")
        ...     again = vl.from_diffusers(f"{directory}/vae")
        >>> x = torch.rand(2, 3, 16, 16)
        >>> torch.equal(again.reconstruct(x), vae.reconstruct(x))
        True
    """
    check_path(directory, "directory")
    path = Path(directory)
    if not (path / CONFIG_NAME).exists():
        hint = " Give its folder `vae`." if (path / "vae" / CONFIG_NAME).exists() else ""
        raise FileNotFoundError(f"`directory` must hold {CONFIG_NAME}; there is none in {path}.{hint}")
    config = read_config(path)
    tensors = _tensors_in(path)
    name, where = config["_class_name"], path / CONFIG_NAME
    try:
        factor, size = factor_of(config), size_of(config)
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{where} does not describe {name}: {error}") from error
    if image_size is None and any(side % factor for side in size):
        raise ModelFileError(
            f"{where}: `sample_size` must be a multiple of {factor}, by which the latent map is smaller, got {size}:"
            " give `image_size`."
        )
    if image_size is not None:
        sides = [image_size] * 2 if isinstance(image_size, int) else image_size
        size = check_int_tuple("image_size", sides, length=2)  # type: ignore[assignment]
    if any(side % factor for side in size):
        raise ValueError(f"`image_size` must be multiples of {factor}, by which the latent map is smaller, got {size}.")
    try:
        with Budget(tensors):
            model = model_of(config, size)
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{where} does not describe {name}: {error}") from error
    _fill(model, tensors, path)
    return model.eval()


def to_diffusers(model: VAE, directory: str | Path, *, like: str | Path | None = None) -> None:
    """Write a model as ``AutoencoderKL``, ``VQModel`` or ``AutoencoderTiny.from_pretrained(directory)`` opens it.

    For models from :func:`from_diffusers`, trained on or not, and for :func:`autoencoder_kl` with ``norm="group"`` and
    a Gaussian latent, or a :class:`VectorQuantizer` with ``quant_conv=True``. Encoder and decoder of the model that
    diffusers opens give bitwise the same on the same machine. ``model.scaling`` becomes ``scaling_factor`` and
    ``shift_factor``, or means and deviations per channel; without one, ``scaling_factor`` is 1. Likelihood and prior
    have no place there.

    Args:
        model: The model, of any device and dtype, in any mode.
        directory: Made if missing; what this function wrote there before is replaced.
        like: A diffusers directory of the same class, such as the one that the model came from, whose settings are
            kept: ``sample_size``, ``force_upcast``, ``lookup_from_codebook``, ``latent_magnitude``, ``latent_shift``.
            If None, ``sample_size`` is that of the model's images, and the others are diffusers' defaults.

    Raises:
        TypeError: If diffusers has no such model.
        ValueError: If it has no such layers or scaling, a layer was changed after it was built, or ``like`` is of
            another class.
        FileExistsError: If the directory holds a config or weights that this function did not write, such as shards.
        OSError: If the directory cannot be written.

    Examples:
        >>> import tempfile, vaelib as vl
        >>> vae = vl.autoencoder_kl((3, 16, 16), width=8, norm="group", groups=4)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     vl.to_diffusers(vae, f"{directory}/vae")
        ...     sorted(path.name for path in Path(directory, "vae").iterdir())
        ['config.json', 'diffusion_pytorch_model.safetensors']
    """
    check_no_view("model", model)
    check_type("model", model, VAE, "a VAE")
    check_path(directory, "directory")
    config = config_of(model)
    if like is not None:
        check_path(like, "like")
        theirs = read_config(Path(like))
        if theirs["_class_name"] != config["_class_name"]:
            raise ValueError(f"`like` must hold a model of class {config['_class_name']}, got {theirs['_class_name']}.")
        config |= {key: theirs[key] for key in _SETTINGS if key in theirs}
    state = model.state_dict()
    tensors = {theirs: state[ours] for ours, theirs in names_of(model).items()}
    _check_layers(model, config)
    path = target_directory("directory", directory)
    _check_no_other_weights(path)
    with files_replaced(path, CONFIG_NAME, _listed) as staging:
        digest = write_tensors(staging / WEIGHTS_NAME, tensors)
        content = {"_class_name": config["_class_name"], _SEAL: digest, **config}
        (staging / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n")


def _listed(config: Path) -> Listed | None:
    """Both files of a directory that :func:`to_diffusers` wrote; diffusers keeps the seal, and adds its version."""
    try:
        content = read_object(config, 2**20)
    except (ModelFileError, OSError):
        return None
    if "_diffusers_version" in content or not isinstance(content.get(_SEAL), str):
        return None
    return {CONFIG_NAME: None, WEIGHTS_NAME: content[_SEAL]}


def _check_no_other_weights(directory: Path) -> None:
    """Raise ``FileExistsError`` for shards, their index and variants: diffusers would open them in our file's place."""
    others = sorted({path.name for path in directory.glob(f"{_STEM}*")} - {WEIGHTS_NAME})
    if others:
        raise FileExistsError(
            f"`directory` must hold no other weights, which diffusers would open; {directory} holds"
            f" {', '.join(others):.300}. Move them away, or give another directory."
        )


def _check_layers(model: VAE, config: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the weights are those of the network that the config describes."""
    with torch.device("meta"):
        described = model_of({**DEFAULTS[config["_class_name"]], **config}, model.image_shape[1:])
    wanted, found = ({name: each.state_dict()[name].shape for name in names_of(each)} for each in (described, model))
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    built, given = (_layers(each) for each in (described, model))
    if wrong := wrong or [name for name in {**built, **given} if built.get(name) != given.get(name)]:
        raise ValueError(f"`model` must have the layers of its networks as they were built, got another {wrong[0]!r}.")


def _layers(model: Any) -> dict[str, Any]:
    """By name, what a layer computes beside its weights: class, arguments, hooks and a forward of its own."""
    return {
        name: (
            type(layer),
            layer.extra_repr(),
            len(layer._forward_hooks),
            len(layer._forward_pre_hooks),
            "forward" in vars(layer),
        )
        for name, layer in model.named_modules()
        if name.startswith(("encoder", "decoder"))
    }


def _tensors_in(directory: Path) -> dict[str, Tensor]:
    """The weights in float32 by the names that diffusers writes now.

    As diffusers does, of shards what their index says, else the one file; and a variant where it is the only one.
    """
    index = _index_in(directory)
    if index is not None:
        place = _places(index)
        tensors: dict[str, Tensor] = {}
        for file in sorted(set(place.values())):
            held = read_tensors(directory / file, None)
            tensors |= {name: tensor for name, tensor in held.items() if place.get(name) == file}
    else:
        tensors = read_tensors(_only_file(directory), None)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ModelFileError(f"The weights in {directory} must be floating point, got {tensor.dtype} in {name!r}.")
    return {name: tensor.float() for name, tensor in with_todays_names(tensors).items()}


def _index_in(directory: Path) -> Path | None:
    """The index of the shards, or of those of a variant if there is nothing else; None if there are none."""
    index = directory / f"{WEIGHTS_NAME}.index.json"
    if index.exists():
        return index
    variants, files = directory.glob(f"{WEIGHTS_NAME}.index.*.json"), {file.name for file in _files_in(directory)}
    return next((variant for variant in variants if files == {*_places(variant).values()}), None)


def _files_in(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{_STEM}*.safetensors"))


def _places(index: Path) -> dict[str, str]:
    """The file that holds each weight."""
    place = read_object(index, 2**24).get("weight_map")
    if not isinstance(place, dict) or not all(
        isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors") for file in place.values()
    ):
        raise ModelFileError(f"{index} must have a `weight_map` of names to safetensors files beside it.")
    return place


def _only_file(directory: Path) -> Path:
    if (directory / WEIGHTS_NAME).exists():
        return directory / WEIGHTS_NAME
    files = _files_in(directory)
    if not files:
        found = ", ".join(sorted(path.name for path in directory.iterdir()))
        raise FileNotFoundError(
            f"`directory` must hold {WEIGHTS_NAME}, got {found:.300}. Weights in a pickle are not opened: write them"
            " with diffusers' save_pretrained(..., safe_serialization=True)."
        )
    if len(files) > 1:
        found = ", ".join(file.name for file in files)
        raise ModelFileError(
            f"{directory} must hold {WEIGHTS_NAME}, shards with their index or one variant, got {found:.300}."
        )
    return files[0]


def _fill(model: Any, tensors: dict[str, Tensor], directory: Path) -> None:
    """Give the model its weights, all and no others.

    Raises:
        ModelFileError: If one is missing, unknown or of another shape.
    """
    state = model.state_dict()
    names = names_of(model)
    for kind, wrong in (("lack", names.values() - tensors.keys()), ("also have", tensors.keys() - names.values())):
        if wrong:
            raise ModelFileError(f"The weights in {directory} do not fit {CONFIG_NAME}: they {kind} {min(wrong)!r}.")
    for ours, theirs in names.items():
        if tensors[theirs].shape != state[ours].shape:
            raise ModelFileError(
                f"The weights in {directory} do not fit {CONFIG_NAME}: {theirs!r} must have the shape"
                f" {tuple(state[ours].shape)}, got {tuple(tensors[theirs].shape)}."
            )
        state[ours] = tensors[theirs]
    if "latent.codebooks.0.counts" in state:
        state["latent.codebooks.0.counts"] = torch.ones_like(state["latent.codebooks.0.counts"])  # it has been started
    model.load_state_dict(state, assign=True)
