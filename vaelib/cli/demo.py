"""``vaelib demo``: the whole way, from images to a verified ONNX model, on the built-in data."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from vaelib._checks import MissingExtraError
from vaelib._files import check_claimed, claim, writable_directory
from vaelib.cli.common import RECORD_NAME, Seed, a_path, print_table, write_record

__all__ = ["demo"]

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
