"""A model in JSON, and back, weights aside.

By one convention: a known class keeps every constructor argument as an attribute of the same name. Modules among them
are described in turn, so a model is described from the outside in.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from vaelib import conditions, corruptions, latents, likelihoods, networks, priors, vae
from vaelib._checks import MissingExtraError, ModelFileError, check_module, check_type
from vaelib.networks import article

__all__ = ["build", "describe", "of_today", "register"]

_ROOMS = (conditions, corruptions, latents, likelihoods, networks, article, priors, vae)
_BASES = {conditions.Condition, priors.CodePrior, priors.Prior}  # of classes of one's own

_PUBLIC = (getattr(room, name) for room in _ROOMS for name in room.__all__)
_KNOWN: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in _PUBLIC if isinstance(cls, type) and issubclass(cls, nn.Module) and cls not in _BASES
}

_ADDED: dict[str, dict[str, Any]] = {
    "AutoEncoder": {"condition": None, "scaling": None},
    "ConvEncoder": {"num_heads": 2},
    "VAE": {"condition": None, "scaling": None},
}
"""Arguments that models saved before do not have, and what they then were."""

M = TypeVar("M", bound=type[nn.Module])


def register(cls: M) -> M:
    """Class decorator: let :func:`save` and :func:`load` know an ``nn.Module`` of yours by its name.

    The class must keep each constructor argument as an attribute of the same name, and each must be a module, a
    number, a string, a boolean, None, or a sequence or string-keyed mapping of those. An argument that you add later
    needs a default, which models saved before then get.

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
    check_type("cls", cls, type, "a class")
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
    check_module("module", module)
    name = type(module).__name__
    if _KNOWN.get(name) is not type(module):
        raise TypeError(f"Class {name!r} is not known to vaelib: decorate it with @vaelib.register to save it.")
    arguments = {}
    takes_none = type(module).__init__ is nn.Module.__init__
    for argument in () if takes_none else inspect.signature(type(module)).parameters:
        if not hasattr(module, argument):
            raise TypeError(f"{name} must keep its argument `{argument}` as an attribute to be saved.")
        held = argument in getattr(module, "short_forms", ())  # by another argument
        arguments[argument] = None if held else _plain(f"{name}.{argument}", getattr(module, argument))
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


def build(description: Any, path: Path) -> Any:
    """Modules from their descriptions; anything else is a plain argument."""
    if isinstance(description, list):
        return [build(entry, path) for entry in description]
    if not isinstance(description, dict) or "class" not in description:
        return description
    name = description["class"]
    if not isinstance(name, str) or name not in _KNOWN:
        raise ModelFileError(
            f"{path} names the class {name!r:.80}, which is not one of {', '.join(sorted(_KNOWN))}."
            " If it is yours, import the module that decorates it with @vaelib.register first."
        )
    arguments = {key: build(value, path) for key, value in of_today(description).items() if key != "class"}
    cls = _KNOWN[name]
    # Every description of a class of vaelib's has had all arguments; other people's classes have their defaults.
    is_ours = cls.__module__.startswith("vaelib.") and cls.__init__ is not nn.Module.__init__
    wanted = inspect.signature(cls).parameters if is_ours else ()
    missing = [argument for argument in wanted if argument not in arguments]
    if missing:
        raise ModelFileError(
            f"{path} does not describe a {name}: its {', '.join(f'`{m}`' for m in missing)} is missing."
        )
    try:
        return cls(**arguments)
    except MissingExtraError:
        raise
    except Exception as error:  # whatever a constructor makes of arguments from a file
        raise ModelFileError(f"{path} does not describe a {name}: {error!s:.500}") from error


def of_today(description: Any) -> Any:
    """The description of a model as it would be written now, with the arguments that have come since.

    In version 0.1, prior and posterior were a VAE's own.
    """
    if not isinstance(description, dict):
        return description
    within = {name: of_today(value) for name, value in description.items()}
    description = _ADDED.get(str(within.get("class")), {}) | within
    is_vae = description.get("class") == "VAE"
    if not is_vae or "latent" in description or not description.keys() >= {"prior", "latent_shape"}:
        return description
    held = {"posterior": None} | {
        name: description[name] for name in ("latent_shape", "prior", "posterior") if name in description
    }
    kept = {name: value for name, value in description.items() if name != "posterior"}
    return kept | {"prior": None, "latent": {"class": "GaussianLatent", **held}}
