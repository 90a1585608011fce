"""``vaelib explore``: a page on which one plays with an exported model."""

from __future__ import annotations

import importlib.util
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaelib._checks import MissingExtraError
from vaelib.cli.common import Split, a_name, a_path, check_bundle, check_channels
from vaelib.cli.reading import ChannelsLast, Frames, ImagesKey, ValueRange, reading_options

if TYPE_CHECKING:
    from vaelib.explorer import Data

__all__ = ["explore"]


def explore(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="What `vaelib export` wrote.", parser=a_path, metavar="BUNDLE")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Images for the map: a name or path, as of `vaelib train`. If not given: samples of the model.",
            parser=a_name,
            metavar="NAME_OR_PATH",
        ),
    ] = None,
    split: Split = "test",
    value_range: ValueRange = None,
    channels_last: ChannelsLast = None,
    frames: Frames = None,
    images_key: ImagesKey = None,
    num: Annotated[int, typer.Option(help="How many of the images, drawn at random.", min=2, max=1_000_000)] = 2000,
    port: Annotated[int, typer.Option(help="On this machine; 0 takes a free one.", min=0, max=65535)] = 8321,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    static: Annotated[
        Path | None,
        typer.Option(
            help="Serve nothing; write the page here, for any web host. New, empty, or with such a page.", parser=a_path
        ),
    ] = None,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(
            help="With --static: where `npm install onnxruntime-web` was run. If not given: from a CDN.", parser=a_path
        ),
    ] = None,
) -> None:
    """Play with an exported model in the browser; nothing leaves this machine."""
    if onnxruntime_web is not None and static is None:
        raise ValueError(f"`--onnxruntime-web` needs `--static`, got {onnxruntime_web} alone.")
    check_bundle(bundle)
    for package, extra in (("starlette", "explore"), ("uvicorn", "explore"), ("onnxruntime", "onnx")):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("The explorer", extra)
    from vaelib.explorer import build_scene, serve, write_static
    from vaelib.runtime import OnnxVAE

    model = OnnxVAE(bundle)
    images = None if data is None else _images_for(model, bundle, data, split, num, reading_options(context.params))
    scene = build_scene(bundle, model, images)
    if static is not None:
        write_static(bundle, model, scene, static, onnxruntime_web=onnxruntime_web)
        typer.echo(f"Written to {static}. Try it: python -m http.server -d {static}")
        return

    def ready(address: str) -> None:
        typer.echo(f"{address} shows {bundle}; Ctrl-C ends it.")
        if not no_browser:
            webbrowser.open(address)

    model.tune()
    serve(model, scene, port=port, ready=ready)


def _images_for(model: Any, bundle: Path, data: str, split: str, num: int, reading: dict[str, Any]) -> Data:
    """A random choice, loaded with torch; the page itself does without."""
    import torch

    from vaelib.data import load
    from vaelib.explorer import Data

    images = load(data, split, image_size=model.image_shape[1:], **reading)
    check_channels(images, model, bundle, data)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:num]
    labels = None if images.labels is None else images.labels[chosen].tolist()
    return Data(f"{Path(data).name}, {split}", images.batch(chosen).numpy(), labels, images.class_names)
