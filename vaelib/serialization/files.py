"""A model directory: ``config.json`` says what to build, ``model.safetensors`` holds the weights. No pickle.

The config also keeps the SHA-256 of the weights and a checksum of itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaelib._checks import ModelFileError, check_device, check_module, check_path, check_type
from vaelib._files import Listed, committed, files_replaced, target_directory
from vaelib._weights import Budget, is_sealed, read_object, read_tensors, sealed, write_tensors
from vaelib.serialization.descriptions import build, describe

__all__ = ["load", "save"]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT = "vaelib-model-2"
_OLD_FORMAT = "vaelib-model-1"  # of version 0.1, without checksums
_MAX_CONFIG_BYTES = 2**20
_ATTEMPTS = 3
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def save(model: nn.Module, directory: str | Path) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    A model that is there already is replaced in one act: if the process is killed at any moment, :func:`load` gives
    the old model or the new one.

    Args:
        model: A model of known classes; see :func:`register` for your own.
        directory: Made if missing.

    Raises:
        TypeError: If the model holds a class that is not known.
        ValueError: If weights share memory, or the description of the model has more than 1 MiB.
        FileExistsError: An ``OSError``: if the directory holds a ``config.json`` that is not vaelib's or was changed
            since, or a ``model.safetensors`` without a ``config.json`` of vaelib's.
        OSError: If the directory cannot be written.

    Examples:
        >>> import tempfile, vaelib as vl
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save(vl.conv_vae((1, 8, 8), 2), directory)
        ...     sorted(path.name for path in Path(directory).iterdir())
        ['config.json', 'model.safetensors']
    """
    check_module("model", model)
    check_path(directory, "directory")
    description = describe(model)
    path = target_directory("directory", directory)
    with files_replaced(path, CONFIG_NAME, _listed) as staging:
        try:
            sha256 = write_tensors(staging / WEIGHTS_NAME, model.state_dict())
        except OSError as error:
            raise OSError(f"{path / WEIGHTS_NAME} could not be written: {error}.") from error
        content = {"format": FORMAT, "weights_sha256": sha256, "model": description}
        (staging / CONFIG_NAME).write_text(sealed(content))
        _read_config(staging / CONFIG_NAME)  # what is too large or deep to be read is not kept


def load(directory: str | Path, *, device: torch.device | str = "cpu") -> Any:
    """Rebuild a model saved by :func:`save`, in eval mode, its weights bitwise the same.

    Weights come back in the dtype that they were saved in: a model that was ``.half()`` or ``.double()`` is so again,
    and wants images of that dtype; ``load(...).float()`` wants float32. Nothing is built that is larger by far than
    the weights in the file.

    Args:
        directory: A model directory, or that of a run, whose ``best`` is meant; of one that is both, the model itself.
        device: Device of the weights.

    Returns:
        A :class:`VAE`, :class:`AutoEncoder`, or whatever class was saved.

    Raises:
        FileNotFoundError: If the directory holds no model.
        ModelFileError: A ``ValueError``: if a file is torn, changed or foreign, a class unknown, or the weights do not
            fit. Files of version 0.1 have no checksums; of theirs, only what does not fit is found.
        MissingExtraError: If a part of the model needs an optional dependency that is not installed.

    Examples:
        >>> import tempfile, vaelib as vl
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save(vl.conv_vae((1, 8, 8), 2), directory)
        ...     type(load(directory)).__name__
        'VAE'
    """
    check_path(directory, "directory")
    check_type("device", device, str | torch.device, "a torch.device or its name")
    check_device(device)
    path = Path(directory)
    best = path / "best"
    if _missing(path) and not _missing(best):
        path = best
    elif not _missing(best):
        words = f"{path} holds both a model of its own, which is loaded, and a run, whose model is {best}."
        warnings.warn(words, stacklevel=2)
    if missing := _missing(path):
        raise FileNotFoundError(f"`directory` must hold {CONFIG_NAME} and {WEIGHTS_NAME}; there is no {missing[0]}.")
    config, tensors = _read(path)
    where = path / CONFIG_NAME
    with Budget(tensors):
        model = build(config["model"], where)
    if not isinstance(model, nn.Module):
        raise ModelFileError(f"{where} describes no model, but {model!r:.200}.")
    _check_dtypes(model, tensors, path / WEIGHTS_NAME, mixed=config["format"] == FORMAT)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ModelFileError(f"{path / WEIGHTS_NAME} does not fit {CONFIG_NAME} beside it: {error!s:.2000}") from error
    return model.to(device).eval()


def _missing(directory: Path) -> list[Path]:
    return [directory / name for name in (CONFIG_NAME, WEIGHTS_NAME) if not _file(directory, name).exists()]


def _file(directory: Path, name: str) -> Path:
    return committed(directory, CONFIG_NAME, name)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights that belong together."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(ModelFileError, OSError):  # another process may replace the model between the two reads
            return _read_once(path)
    return _read_once(path)


def _read_once(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = _read_config(_file(path, CONFIG_NAME))
    return config, read_tensors(_file(path, WEIGHTS_NAME), config.get("weights_sha256"))


def _read_config(path: Path) -> dict[str, Any]:
    content = read_object(path, _MAX_CONFIG_BYTES)
    if content.get("format") not in (FORMAT, _OLD_FORMAT):
        raise ModelFileError(f"{path} must have the format {FORMAT!r}, got {content.get('format')!r:.80}.")
    if content["format"] == FORMAT and not (is_sealed(content) and isinstance(content.get("weights_sha256"), str)):
        raise ModelFileError(f"{path} was changed after it was saved: its checksum does not fit. Save the model again.")
    return {"model": None, **content}


def _listed(config: Path) -> Listed | None:
    """The two files. Weights may have any content, so that saving again mends a torn model."""
    try:
        _read_config(config)
    except (ModelFileError, OSError):
        return None
    return {CONFIG_NAME: None, WEIGHTS_NAME: None}


def _check_dtypes(model: nn.Module, tensors: Mapping[str, Tensor], where: Path, *, mixed: bool) -> None:
    """Weights must be of a kind that the model can have; a file without a checksum, of one floating dtype."""
    floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if not mixed and not (floating <= set(_DTYPES) and len(floating) <= 1):
        names = ", ".join(sorted(str(dtype) for dtype in floating))
        raise ModelFileError(
            f"{where} must have weights of one dtype among {', '.join(map(str, _DTYPES))}, got {names}."
        )
    for name, built in model.state_dict().items():
        got = tensors.get(name, built)
        if built.dtype != got.dtype and not (built.is_floating_point() and got.is_floating_point()):
            raise ModelFileError(f"{where} must hold `{name}` as {built.dtype}, got {got.dtype}.")
