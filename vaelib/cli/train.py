"""``vaelib train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vaelib._files import writable_directory
from vaelib.cli.common import Download, Json, Seed, print_json, write_record

__all__ = ["train"]

Likelihood = Literal["bernoulli", "continuous_bernoulli", "gaussian", "laplace", "discretized_logistic"]


def train(
    data: Annotated[
        str,
        typer.Option(
            help="shapes, mnist, fashion_mnist, kmnist, cifar10, svhn, celeba (below the folder that the environment"
            " variable VAELIB_DATA names); or a path: a folder of pictures, a .npy, .npz or .pt file, .tar shards."
        ),
    ] = "shapes",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(help="Images per step.", min=1)] = 64,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run; runs/NAME if not given.", show_default=False)
    ] = None,
    preset: Annotated[
        Literal["conv", "article"],
        typer.Option(
            help="conv: vaelib's own network. article: the 2021 tutorial's for 32x32, with its recipe"
            " (Adam, constant learning rate 1e-3)."
        ),
    ] = "conv",
    image_size: Annotated[
        int | None,
        typer.Option(help="Resize to this height and width; the data's own size if not given.", show_default=False),
    ] = None,
    latent_dim: Annotated[
        int | None,
        typer.Option(help="Size of the latent vector (preset conv); 32 if not given.", min=1, show_default=False),
    ] = None,
    likelihood: Annotated[
        Likelihood | None,
        typer.Option(help="p(x|z) (preset conv); bernoulli if not given.", show_default=False),
    ] = None,
    beta: Annotated[float, typer.Option(help="Weight of the KL; 1 is the ELBO.", min=0)] = 1.0,
    kl_warmup: Annotated[int, typer.Option(help="Steps over which beta rises from 0; 0 for none.", min=0)] = 0,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; the preset's if not given.", show_default=False)
    ] = None,
    binarize: Annotated[
        str | None,
        typer.Option(
            help="static or dynamic: black and white pixels drawn once, or anew each time.",
            show_default=False,
        ),
    ] = None,
    download: Download = False,
    json_output: Json = False,
) -> None:
    """Train a VAE on images, and keep its best and last weights, its history and pictures.

    Validation, and so the choice of the best weights, is on the test split, as in the tutorial.
    """
    if preset == "article":
        if likelihood is not None or latent_dim is not None:
            raise ValueError("`--likelihood` and `--latent-dim` are fixed by `--preset article`; give neither.")
        image_size = 32 if image_size is None else image_size
    out = out or Path("runs") / Path(data).stem
    if (out / "history.csv").exists():
        raise FileExistsError(f"`--out` must not hold a run already, got {out}; give another, or remove it.")

    import torch

    from vaelib.data import BUILT_IN, load
    from vaelib.objectives import Elbo
    from vaelib.plots import save_grid
    from vaelib.schedules import linear_warmup
    from vaelib.training import Trainer

    train_images, test_images = (
        load(data, split, image_size=image_size, binarize=binarize, download=download) for split in ("train", "test")
    )
    torch.manual_seed(seed)
    model = _make_model(preset, likelihood or "bernoulli", latent_dim, train_images.image_shape)
    recipe: dict[str, Any] = (
        {"learning_rate": 1e-3, "lr_schedule": "constant", "optimizer": torch.optim.Adam} if preset == "article" else {}
    )
    if learning_rate is not None:
        recipe["learning_rate"] = learning_rate
    objective = Elbo(beta=linear_warmup(kl_warmup, beta) if kl_warmup else beta)
    writable_directory("--out", out)
    trainer = Trainer(objective, max_epochs=epochs, batch_size=batch_size, seed=seed, output_dir=out, **recipe)
    record = {
        "data": data if data in BUILT_IN else os.path.abspath(data),
        "image_size": train_images.image_shape[1:],
        "binarize": binarize,
        "preset": preset,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "beta": beta,
        "kl_warmup": kl_warmup,
        "learning_rate": trainer.learning_rate,
    }
    write_record(out, record)
    history = trainer.fit(model, train_images, test_images, progress=not json_output)
    save_grid(model.sample(64, generator=torch.Generator(_device(model)).manual_seed(seed)), out / "samples.png")
    final = history[-1]
    if json_output:
        print_json({"out": str(out), "epochs": epochs, "train": final.train._asdict(), "val": final.val._asdict()})
    else:
        typer.echo(
            f"{final.val.reconstruction + final.val.kl:.2f} nats per test image after {epochs} epochs."
            f" The run is in {out}. Next: vaelib evaluate {out}"
        )


def _make_model(preset: str, likelihood: str, latent_dim: int | None, image_shape: tuple[int, int, int]) -> Any:
    from vaelib import likelihoods, presets

    if preset == "article":
        return presets.article_vae()
    families: dict[str, Any] = {
        "bernoulli": likelihoods.Bernoulli,
        "continuous_bernoulli": likelihoods.ContinuousBernoulli,
        "gaussian": likelihoods.Gaussian,
        "laplace": likelihoods.Laplace,
        "discretized_logistic": likelihoods.DiscretizedLogistic,
    }
    return presets.conv_vae(image_shape, latent_dim, likelihood=families[likelihood]())


def _device(model: Any) -> Any:
    return next(model.parameters()).device
