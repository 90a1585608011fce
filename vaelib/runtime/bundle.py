"""A bundle on disk: its manifest, its card, and its graphs as bytes that are verified by the manifest and the rules."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from vaelib._checks import ModelFileError, check_path
from vaelib.runtime.contract import Contract, checked_contract
from vaelib.runtime.metadata import checked_metadata, described, from_json
from vaelib.runtime.protobuf import MODEL, ProtobufError, parse
from vaelib.runtime.rules import GraphError, check_graph, is_batch_invariant

__all__ = ["MAX_FILE_BYTES", "SCHEMA", "Bundle", "Part"]

SCHEMA = "3"
_SCHEMA_0_1 = "2"
MAX_FILE_BYTES = 2**31
"""Of one file; ONNX itself cannot hold more without external data."""
CARD_NAME = "README.md"
_PENDING = ".vaelib-pending-manifest.json"
"""Holds the newer files of an export that was killed after it was done."""
_MAX_MANIFEST_BYTES = 2**20
_MAX_CARD_BYTES = 2**20


class Part(NamedTuple):
    """One graph that was found to be what the manifest and the rules want."""

    content: bytes
    batch_invariant: bool
    """Whether an image's bits cannot depend on the batch that it is computed in."""


class Bundle:
    """The directory, with the manifest that was in it when it was opened; files that change later no longer fit it.

    Args:
        directory: Holds ``manifest.json`` and the files that it lists.

    Attributes:
        metadata: What is known about the model.
        graphs: What each graph takes and gives.

    Raises:
        FileNotFoundError: If there is no manifest.
        ModelFileError: If the manifest is torn, of another schema, or describes no bundle.
    """

    def __init__(self, directory: str | Path) -> None:
        check_path(directory, "directory")
        self.directory = Path(directory)
        path = self._existing("manifest.json")
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ModelFileError(f"{path} must have at most {_MAX_MANIFEST_BYTES} bytes, got {path.stat().st_size}.")
        manifest = from_json(path.read_bytes(), str(path))
        schema = manifest.get("schema") if isinstance(manifest, dict) else None
        if schema not in (SCHEMA, _SCHEMA_0_1):
            known = f"{SCHEMA!r} and {_SCHEMA_0_1!r}"
            raise ModelFileError(f"{path} has schema {schema!r:.40}, known are {known}: export the model again.")
        if not isinstance(manifest.get("files"), dict):
            raise ModelFileError(f"{path} must have `files`.")
        self._files = manifest["files"]
        if schema == _SCHEMA_0_1:
            self.metadata, self.graphs = self._of_version_0_1()
            return
        if not isinstance(manifest.get("model"), dict):
            raise ModelFileError(f"{path} must have a `model`.")
        model = {"schema": schema, "version": manifest.get("version"), **manifest["model"]}
        self.metadata = checked_metadata(model, str(path))
        self.graphs = checked_contract(manifest.get("graphs"), self.metadata, str(path))

    def read(self, part: str) -> Part:
        """The bytes of ``part``, looked at from all sides but run by nobody yet.

        Raises:
            FileNotFoundError: If the file is missing.
            ModelFileError: If it is not the file of the manifest, or not a graph that vaelib exports.
        """
        contract = self.graphs[part]
        path = self._existing(f"{part}.onnx")
        content = self._verified(path)
        try:
            model = parse(content, MODEL)
            check_graph(model, contract)
        except (ProtobufError, GraphError) as error:
            raise ModelFileError(f"{path} cannot be run by vaelib: {error}.") from error
        props = _props(model)
        if props.get("vaelib.part") != part:
            raise ModelFileError(f"{path} must be the {part} of a model, but is the {props.get('vaelib.part')!r:.40}.")
        if props.get("vaelib.weights_sha256") != self.metadata["weights_sha256"]:
            raise ModelFileError(f"{path} belongs to another model than the one that the bundle describes.")
        return Part(content, is_batch_invariant(model))

    def _of_version_0_1(self) -> tuple[dict[str, Any], dict[str, Contract]]:
        path = self._existing("decoder.onnx")
        try:
            model = parse(self._verified(path), MODEL)
        except ProtobufError as error:
            raise ModelFileError(f"{path} cannot be run by vaelib: {error}.") from error
        shapes = {value["name"]: value["type"].get("tensor_type", {}) for value in model["graph"].get("output", [])}
        axes = shapes.get("recon_params", {}).get("shape", {}).get("dim", [])
        return described(_props(model), axes[1]["dim_value"] if len(axes) > 1 else 0, str(path))

    def card(self) -> str:
        """The model card, ``README.md``; the ends of its lines may be others, as git makes them on Windows."""
        path = self._existing(CARD_NAME)
        if path.is_symlink():
            raise ModelFileError(f"{path} must be a file of the bundle's own, got a link to {path.resolve()}.")
        if path.stat().st_size > _MAX_CARD_BYTES:
            raise ModelFileError(f"{path} must have at most {_MAX_CARD_BYTES} bytes, got {path.stat().st_size}.")
        try:
            return self._verified(path, is_text=True).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{path} is no text in UTF-8: {error}.") from error

    def _existing(self, name: str) -> Path:
        pending = self.directory / _PENDING / name
        path = pending if pending.is_file() else self.directory / name
        if not path.is_file():
            raise FileNotFoundError(f"`directory` must be a bundle of vaelib's; there is no {path}.")
        return path

    def _verified(self, path: Path, *, is_text: bool = False) -> bytes:
        entry = self._files.get(path.name)
        if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
            raise ModelFileError(f"{self.directory / 'manifest.json'} does not say what {path.name} is.")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelFileError(f"{path} must have at most {MAX_FILE_BYTES} bytes, got {size}.")
        content = path.read_bytes() if is_text or size == entry["bytes"] else b""
        if is_text:
            content = content.replace(b"\r\n", b"\n")
        if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry.get("sha256"):
            raise ModelFileError(
                f"{path} is not the file that manifest.json describes: torn, changed or half replaced."
            )
        return content


def _props(model: dict[str, Any]) -> dict[str, str]:
    return {entry["key"]: entry["value"] for entry in model["metadata_props"]}
