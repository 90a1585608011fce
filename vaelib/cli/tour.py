"""``vaelib demo`` and ``vaelib explore``: the whole way on the built-in data, and a page to play with a model."""

from __future__ import annotations

import importlib.util
import shutil
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaelib._checks import MissingExtraError
from vaelib._files import check_claimed, claim, writable_directory
from vaelib.cli.common import RECORD_NAME, check_bundle, check_channels, print_table, reading_options, write_record
from vaelib.cli.options import ChannelsLast, Frames, ImagesKey, Seed, Split, ValueRange, a_name, a_path

if TYPE_CHECKING:
    from vaelib.explorer import Data

BATCH = 64


def demo(
    out: Annotated[Path, typer.Option(help="Directory of everything that the demo writes.", parser=a_path)] = Path(
        "demo"
    ),
    epochs: Annotated[int, typer.Option(help="Passes over the 9,000 training images.", min=1)] = 8,
    seed: Seed = 0,
) -> None:
    """Train a small VAE on built-in images, measure it, export it to ONNX, prove and time the export."""
    started = time.perf_counter()
    for package, extra in (("onnxscript", "onnx"), ("onnxruntime", "onnx"), ("matplotlib", "plots")):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("The demo", extra)
    out = writable_directory("--out", out)

    import torch

    from vaelib import data, evaluation, plots, presets, serialization
    from vaelib.benchmark.matrix import measure
    from vaelib.export import export_onnx
    from vaelib.training import Trainer
    from vaelib.training.history import curves
    from vaelib.training.recipe import OUTPUTS

    names = (RECORD_NAME, "reconstructions.png", "samples.png", *OUTPUTS)
    check_claimed("--out", out, names)
    claim(out, names)
    train, test = (data.load("shapes", split, image_size=32) for split in ("train", "test"))
    train, val = data.hold_out(train)
    torch.manual_seed(seed)
    model = presets.conv_vae(train.image_shape, latent_dim=10)
    untrained = evaluation.elbo(model, test, generator=torch.Generator().manual_seed(seed))
    write_record(out, {"data": "shapes", "image_size": [32, 32], "binarize": None, "epochs": epochs, "seed": seed})
    shutil.rmtree(out / "checkpoints", ignore_errors=True)  # of an earlier demo
    history = Trainer(max_epochs=epochs, seed=seed, output_dir=out).fit(model, train, val)
    model = serialization.load(out)
    trained = evaluation.elbo(model, test, generator=torch.Generator().manual_seed(seed))

    originals = test.batch(slice(0, 20))
    plots.save_pairs(originals, model.reconstruct(originals), out / "reconstructions.png")
    plots.save_grid(model.sample(64, generator=torch.Generator().manual_seed(seed)), out / "samples.png")
    plots.save_curves(curves(history), out / "curves.png")

    bundle = out / "bundle"
    parity = export_onnx(model, bundle)
    timed = measure(model, backends=("torch", "OnnxVAE"), operations=("encode", "decode"), batches=(BATCH,))
    worst = max(p.max_rel for outputs in parity.values() for p in outputs.values())

    rows = [
        ["ELBO, nats per test image", str(untrained.elbo), str(trained.elbo)],
        ["bits per dimension", f"{untrained.bits_per_dim.value:.4f}", f"{trained.bits_per_dim.value:.4f}"],
    ]
    print_table("The model", ["", "untrained", f"after {epochs} epochs"], rows)
    if trained.note:
        typer.echo(trained.note)
    rates = {(row.operation, row.backend): f"{row.images_per_second:,.0f}" for row in timed.rows}
    rows = [
        [f"{name}, images/s at batch {BATCH}", *(rates.get((name, way), "failed") for way in ("torch", "OnnxVAE"))]
        for name in ("encode", "decode")
    ]
    rows.append(["largest difference from torch, of an output's scale", "", f"{worst:.1e}"])
    print_table(f"The export, {timed.threads} CPU threads", ["", "torch", "onnxruntime"], rows)
    typer.echo(
        f"Done in {time.perf_counter() - started:.0f} s. Everything is in {out}/ (reconstructions.png, samples.png,"
        f" curves.png, bundle/). Next: vaelib train --data YOUR_FOLDER_OF_IMAGES --image-size 64"
    )


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
