"""A model directory: ``config.json`` says what to build, ``model.safetensors`` holds the weights. No pickle.

The config is made by one convention: a known class keeps every constructor argument as an attribute of the
same name. Modules among them are described in turn, so a model is described from the outside in.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vaelib import corruptions, likelihoods, networks, posteriors, priors, vae
from vaelib._checks import ModelFileError
from vaelib._files import writable_directory, written_whole
from vaelib.networks.article import ArticleDecoder, ArticleEncoder

__all__ = ["describe", "load", "register", "save"]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT = "vaelib-model-1"

_KNOWN: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        vae.VAE,
        vae.AutoEncoder,
        networks.ConvEncoder,
        networks.ConvDecoder,
        ArticleEncoder,
        ArticleDecoder,
        likelihoods.Bernoulli,
        likelihoods.ContinuousBernoulli,
        likelihoods.Gaussian,
        likelihoods.Laplace,
        likelihoods.DiscretizedLogistic,
        priors.StandardNormal,
        priors.LearnedGaussian,
        priors.MixtureOfGaussians,
        priors.VampPrior,
        priors.FlowPrior,
        posteriors.FlowPosterior,
        corruptions.GaussianNoise,
        corruptions.SaltAndPepper,
        corruptions.Masking,
    )
}

M = TypeVar("M", bound=type[nn.Module])


def register(cls: M) -> M:
    """Class decorator: let :func:`save` and :func:`load` know an ``nn.Module`` of yours by its name.

    The class must keep each constructor argument as an attribute of the same name, and each must be a module, a
    number, a string, a boolean, None, or a sequence or string-keyed mapping of those.

    Raises:
        ValueError: If another class of that name is known already.

    Examples:
        >>> @register
        ... class MyEncoder(nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.width = width
        >>> describe(MyEncoder(width=3))
        {'class': 'MyEncoder', 'width': 3}
    """
    known = _KNOWN.get(cls.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"A class named {cls.__name__!r} is known already: {known.__module__}.{known.__qualname__}.")
    _KNOWN[cls.__name__] = cls
    return cls


def describe(module: nn.Module) -> dict[str, Any]:
    """The JSON description from which :func:`load` rebuilds ``module``, weights aside.

    Raises:
        TypeError: If a class is not known, or an argument of it was not kept or is not JSON.
    """
    name = type(module).__name__
    if _KNOWN.get(name) is not type(module):
        raise TypeError(f"Class {name!r} is not known to vaelib: decorate it with @vaelib.register to save it.")
    arguments = {}
    takes_none = type(module).__init__ is nn.Module.__init__
    for argument in () if takes_none else inspect.signature(type(module)).parameters:
        if not hasattr(module, argument):
            raise TypeError(f"{name} must keep its argument `{argument}` as an attribute to be saved.")
        arguments[argument] = _plain(f"{name}.{argument}", getattr(module, argument))
    return {"class": name, **arguments}


def _plain(where: str, value: Any) -> Any:
    if isinstance(value, nn.Module):
        return describe(value)
    if isinstance(value, list | tuple):
        return [_plain(where, entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _plain(where, entry) for key, entry in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"`{where}` must be a number, string, boolean, None or module to be saved, got {value!r}.")


def save(model: nn.Module, directory: str | Path) -> None:
    """Write ``config.json`` and ``model.safetensors``; each appears whole or not at all.

    Args:
        model: A model of known classes; see :func:`register` for your own.
        directory: Made if missing.

    Raises:
        TypeError: If the model holds a class that is not known.
        OSError: If the directory cannot be written.

    Examples:
        >>> import tempfile, vaelib as vl
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save(vl.conv_vae((1, 8, 8), 2), directory)
        ...     sorted(path.name for path in Path(directory).iterdir())
        ['config.json', 'model.safetensors']
    """
    config = {"format": FORMAT, "model": describe(model)}
    path = writable_directory("directory", directory)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with written_whole(path / WEIGHTS_NAME) as temporary:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:  # such as a full disk
            raise OSError(f"{path / WEIGHTS_NAME} could not be written: {error}.") from error
    with written_whole(path / CONFIG_NAME) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def load(directory: str | Path, *, device: torch.device | str = "cpu") -> Any:
    """Rebuild a model saved by :func:`save`, in eval mode, its weights bitwise the same.

    Args:
        directory: The model directory, or a run directory of ``Trainer``, whose ``best`` is then meant.
        device: Where the weights go.

    Returns:
        A :class:`VAE`, :class:`AutoEncoder`, or whatever class was saved.

    Raises:
        FileNotFoundError: If the directory holds no model.
        ModelFileError: A ``ValueError``: if a file is torn or foreign, a class unknown, or the weights do not fit.

    Examples:
        >>> import tempfile, vaelib as vl
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save(vl.conv_vae((1, 8, 8), 2), directory)
        ...     type(load(directory)).__name__
        'VAE'
    """
    path = Path(directory)
    if not (path / CONFIG_NAME).exists() and (path / "best" / CONFIG_NAME).exists():
        path = path / "best"
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"`directory` must hold {CONFIG_NAME} and {WEIGHTS_NAME}; there is no {path / name}."
            )
    model = _build(_read_config(path / CONFIG_NAME), path / CONFIG_NAME)
    if not isinstance(model, nn.Module):
        raise ModelFileError(f"{path / CONFIG_NAME} describes no model, but {model!r}.")
    try:
        tensors = load_file(path / WEIGHTS_NAME, device=str(device))
    except (SafetensorError, ValueError) as error:
        raise ModelFileError(f"{path / WEIGHTS_NAME} is torn or no safetensors file: {error}.") from error
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ModelFileError(f"{path / WEIGHTS_NAME} does not fit {CONFIG_NAME} beside it: {error}") from error
    return model.to(device).eval()


def _read_config(path: Path) -> Any:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ModelFileError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ModelFileError(f"{path} must have the format {FORMAT!r}, got {got!r}.")
    return content.get("model")


def _build(description: Any, path: Path) -> Any:
    """Modules from their descriptions; anything else is a plain argument."""
    if isinstance(description, list):
        return [_build(entry, path) for entry in description]
    if not isinstance(description, dict) or "class" not in description:
        return description
    name = description["class"]
    if not isinstance(name, str) or name not in _KNOWN:
        raise ModelFileError(
            f"{path} names the class {name!r}, which is not one of {', '.join(sorted(_KNOWN))}."
            " If it is yours, import the module that decorates it with @vaelib.register first."
        )
    arguments = {key: _build(value, path) for key, value in description.items() if key != "class"}
    try:
        return _KNOWN[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path} does not describe a {name}: {error}") from error
