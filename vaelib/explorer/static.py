"""The page as a directory for any web host: the visitor's browser runs the model, by onnxruntime-web."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from vaelib._files import Listed, check_replaceable, files_replaced, listed_in, target_directory
from vaelib.explorer.scene import Scene
from vaelib.explorer.server import POLICY, largest_batch, page_files
from vaelib.runtime import OnnxVAE
from vaelib.runtime.bundle import Bundle

__all__ = ["CDN", "write_static"]

MANIFEST_NAME = "vaelib-page.json"
_KIND = "vaelib explorer page"
VERSION = "1.30.0"
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
INTEGRITY = {
    "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
"""Of the files in the npm package of that version; a browser takes no others from the CDN."""


def write_static(
    bundle: str | Path,
    model: OnnxVAE,
    scene: Scene,
    directory: str | Path,
    *,
    onnxruntime_web: str | Path | None = None,
) -> None:
    """Write the page, the graphs and, if it is given, onnxruntime-web, with a manifest that lists these files.

    In a directory with such a manifest, the files that it lists are replaced or removed; others stay.

    Args:
        bundle: The directory that ``model`` was opened from.
        model: The model.
        scene: From :func:`build_scene`.
        directory: New, empty, or with a page that this function wrote. A link to a directory is followed.
        onnxruntime_web: Directory where ``npm install onnxruntime-web`` was run. If None, the visitor's browser fetches
            version 1.30.0 from a CDN, and takes it only if its hash is right.

    Raises:
        FileNotFoundError: If there is no onnxruntime-web at that place.
        FileExistsError: If the directory holds files and no such manifest (a page of version 0.1 has none), or in the
            place of a file of the page one that the manifest does not list or that was changed since.
    """
    target = target_directory("directory", directory)
    _check_place(target)
    source = Bundle(bundle)
    named = {part: graph["file"] for part, graph in scene.facts["graphs"].items() if graph["file"] is not None}
    files = page_files() | {file: source.read(part).content for part, file in named.items()}
    integrity, place = INTEGRITY, CDN
    if onnxruntime_web is not None:
        installed = _installed(Path(onnxruntime_web))
        integrity, place = {name: _hash(content) for name, content in installed.items()}, "./"
        files |= installed
    runtime = {"place": place, "integrity": integrity}
    facts = scene.facts | {"largest_batch": largest_batch(model), "runtime": runtime}
    files |= Scene(facts, scene.arrays).files()
    files["index.html"] = _with_policy(files["index.html"], place)
    listed = {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
    manifest = json.dumps({"kind": _KIND, "files": listed}, indent=2, sort_keys=True) + "\n"
    with files_replaced(target, MANIFEST_NAME, _listed) as staging:
        for name, content in {**files, MANIFEST_NAME: manifest.encode()}.items():
            (staging / name).write_bytes(content)


def _check_place(directory: Path) -> None:
    listed = _listed(directory / MANIFEST_NAME)
    found = sorted(path.name for path in directory.iterdir()) if listed is None and directory.exists() else []
    if found:
        shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise FileExistsError(
            f"`directory` must be new, empty, or hold an explorer's page with its {MANIFEST_NAME}; {directory} holds"
            f" {shown}."
        )
    check_replaceable(directory, (*page_files(), MANIFEST_NAME), listed)


def _listed(manifest: Path) -> Listed | None:
    return listed_in(manifest, lambda content: content.get("kind") == _KIND)


def _installed(place: Path) -> dict[str, bytes]:
    """The two files of onnxruntime-web that the page needs."""
    package = next(
        (folder for folder in (place / "node_modules/onnxruntime-web", place) if (folder / "package.json").is_file()),
        place,
    )
    manifest = package / "package.json"
    if not manifest.is_file() or json.loads(manifest.read_text()).get("name") != "onnxruntime-web":
        raise FileNotFoundError(
            f"`onnxruntime_web` must be where `npm install onnxruntime-web` was run, but there is none in {place}."
        )
    return {name: (package / "dist" / name).read_bytes() for name in INTEGRITY}


def _hash(content: bytes) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def _with_policy(page: bytes, place: str) -> bytes:
    """The policy of the served page, with WebAssembly, and modules from blobs whose hash was checked when fetched."""
    host = "" if place == "./" else f" {place}"
    policy = POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:")
    policy = policy.replace("connect-src 'self'", f"connect-src 'self'{host}")
    return page.replace(
        b"<head>", f'<head>\n    <meta http-equiv="Content-Security-Policy" content="{policy}" />'.encode(), 1
    )
