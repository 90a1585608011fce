"""``vaelib demo``: the whole way, from images to a verified ONNX model, on the built-in data."""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vaelib._checks import MissingExtraError
from vaelib._files import check_claimed, claim, writable_directory
from vaelib.cli.common import RECORD_NAME, Seed, a_path, print_table

__all__ = ["demo"]

BATCH = 64


def demo(
    out: Annotated[Path, typer.Option(help="Directory of everything that the demo writes.", parser=a_path)] = Path(
        "demo"
    ),
    epochs: Annotated[int, typer.Option(help="Passes over the 9,000 training images.", min=1)] = 8,
    seed: Seed = 0,
) -> None:
    """Train a small VAE on built-in pictures, measure it, export it to ONNX, prove and time the export."""
    started = time.perf_counter()
    for package, extra in (("onnxscript", "onnx"), ("onnxruntime", "onnx"), ("matplotlib", "plots")):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("The demo", extra)
    out = writable_directory("--out", out)

    import torch

    from vaelib import data, evaluation, plots, presets, serialization
    from vaelib.cli.common import write_record
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
    torch_times = _torch_times(model)  # before any onnxruntime session, whose idle threads would slow torch down
    parity = export_onnx(model, bundle)
    onnx_times = _onnx_times(bundle, test)
    worst = max(p.max_rel for outputs in parity.values() for p in outputs.values())

    rows = [
        ["ELBO, nats per test image", str(untrained.elbo), str(trained.elbo)],
        ["bits per dimension", f"{untrained.bits_per_dim.value:.4f}", f"{trained.bits_per_dim.value:.4f}"],
    ]
    print_table("The model", ["", "untrained", f"after {epochs} epochs"], rows)
    if trained.note:
        typer.echo(trained.note)
    rows = [
        [
            f"{name}, images/s at batch {BATCH}",
            f"{BATCH / torch_times[name]:,.0f}",
            f"{BATCH / onnx_times[name]:,.0f}",
        ]
        for name in ("encode", "decode")
    ]
    rows.append(["largest difference from torch, of an output's scale", "", f"{worst:.1e}"])
    print_table(f"The export, {torch.get_num_threads()} CPU threads", ["", "torch", "onnxruntime"], rows)
    typer.echo(
        f"Done in {time.perf_counter() - started:.0f} s. Everything is in {out}/ (reconstructions.png, samples.png,"
        f" curves.png, bundle/). Next: vaelib train --data YOUR_FOLDER_OF_PICTURES --image-size 64"
    )


def _median_time(call: Callable[[], Any]) -> float:
    """Seconds of one call: the median of 15 rounds of at least 20 ms."""
    timer = timeit.Timer(call)
    number = 1
    while timer.timeit(number) < 0.02:
        number *= 2
    return statistics.median(timer.repeat(repeat=15, number=number)) / number


def _torch_times(model: Any) -> dict[str, float]:
    import torch

    x, z = torch.rand(BATCH, *model.image_shape), torch.randn(BATCH, *model.latent_shape)
    with torch.inference_mode():
        return {
            "encode": _median_time(lambda: model.encode(x)),
            "decode": _median_time(lambda: model.likelihood.mean(model.decode(z))),
        }


def _onnx_times(bundle: Path, test: Any) -> dict[str, float]:
    import torch

    from vaelib.runtime import OnnxVAE

    exported = OnnxVAE(bundle, threads=torch.get_num_threads())
    x = test.batch(slice(0, BATCH)).numpy()
    z = exported.encode(x)[0]
    return {
        "encode": _median_time(lambda: exported.encode(x)),
        "decode": _median_time(lambda: exported.decode(z)),
    }
