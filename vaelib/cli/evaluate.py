"""``vaelib evaluate``: a model's numbers on a data set, each with its standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaelib.cli.common import Data, Download, Json, Model, Seed, Split, load_data, print_json, print_table

if TYPE_CHECKING:
    import torch

    from vaelib.data import ImageDataset

__all__ = ["evaluate", "evaluation_of"]


def evaluate(
    model: Model,
    data: Data = None,
    split: Split = "test",
    samples: Annotated[
        int | None,
        typer.Option(
            help="Also estimate log p(x), by so many draws from the posterior of each image; 1000 are usual.",
            show_default=False,
            min=1,
        ),
    ] = None,
    seed: Seed = 0,
    download: Download = False,
    json_output: Json = False,
) -> None:
    """Measure a model on a data set: ELBO and log p(x) in nats, bits per dimension, each with its standard error."""
    from vaelib import serialization

    vae = serialization.load(model)
    images = load_data(model, vae, data, split, download=download)
    result = evaluation_of(vae, images, seed, samples)
    if json_output:
        print_json(result)
        return
    units = {"bits_per_dim": "bits per dimension"}
    print_table(
        f"{model} on {result['num_images']} images",
        ["", "mean", "standard error", "unit"],
        [
            [
                name,
                f"{e['value']:.4g}" if name in units else f"{e['value']:.2f}",
                f"{e['standard_error']:.2g}",
                units.get(name, "nats per image"),
            ]
            for name, e in result.items()
            if isinstance(e, dict)
        ],
    )
    typer.echo(result["latents"])


def evaluation_of(vae: Any, images: ImageDataset, seed: int, samples: int | None = None) -> dict[str, Any]:
    """Estimate name to value and standard error, the latents in words, and the number of images."""
    import torch

    from vaelib.evaluation import elbo, latents, log_likelihood

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    estimates = elbo(vae, images, generator=seeded())._asdict()
    num_images = estimates.pop("num_images")
    report = latents(vae, images, generator=seeded())
    estimates |= {"mutual_information": report.mutual_information, "marginal_kl": report.marginal_kl}
    if samples is not None:
        tighter = log_likelihood(vae, images, num_samples=samples, generator=seeded())
        estimates |= {"log_likelihood": tighter.log_likelihood, "bits_per_dim": tighter.bits_per_dim}
    found = {name: estimate._asdict() for name, estimate in estimates.items()}
    return found | {"latents": report.in_words(), "active_units": report.active_units, "num_images": num_images}
