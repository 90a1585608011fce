"""``vaelib evaluate``: a model's numbers on a data set, each with its standard error."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaelib.cli.common import (
    Data,
    Download,
    Json,
    Model,
    Seed,
    Split,
    a_name,
    a_path,
    check_model,
    load_data,
    load_model,
    print_json,
    print_table,
)
from vaelib.cli.reading import ChannelsLast, Frames, ImagesKey, ValueRange, reading_options

if TYPE_CHECKING:
    import torch

    from vaelib.data import ImageDataset

__all__ = ["evaluate", "evaluation_of"]


def evaluate(
    context: typer.Context,
    model: Model,
    data: Data = None,
    split: Split = "test",
    value_range: ValueRange = None,
    channels_last: ChannelsLast = None,
    frames: Frames = None,
    images_key: ImagesKey = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Also estimate log p(x), by so many draws from the posterior of each image; 1000 are usual.",
            show_default=False,
            min=1,
            max=10_000_000,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Also how well this other set is told from the data: AUROC of the ELBO and of its first part.",
            show_default=False,
            metavar="NAME_OR_PATH",
            parser=a_name,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="Also the difference to this other model, image by image: of log p(x) with --samples, else the ELBO.",
            show_default=False,
            metavar="MODEL",
            parser=a_path,
        ),
    ] = None,
    disentanglement: Annotated[
        bool, typer.Option(help="Also MIG, SAP, DCI and others, for a set whose factors are known: shapes.")
    ] = False,
    seed: Seed = 0,
    download: Download = False,
    json_output: Json = False,
) -> None:
    """Measure a model on a data set: nats, latents, reconstructions and more, each with its standard error."""
    if compare is not None:
        check_model(compare)
    vae = load_model(model)
    reading = reading_options(context.params)
    images = load_data(model, vae, data, split, download=download, reading=reading)
    others = None if against is None else load_data(model, vae, against, "test", download=download)
    other = None if compare is None else _other(compare, vae)
    if disentanglement and images.factors is None:
        raise ValueError("`--disentanglement` needs a set whose factors are known, such as shapes.")
    result = evaluation_of(vae, images, seed, samples, progress=not json_output)
    if other is not None:
        result |= _comparison(vae, other, images, seed, samples, progress=not json_output)
    if others is not None:
        result |= _anomaly(vae, images, others, seed)
    if disentanglement and images.factors is not None:
        result |= _disentanglement(vae, images, images.factors, seed)
    if json_output:
        print_json(result)
        return
    print_table(
        f"{model} on {result['num_images']} images",
        ["", "mean", "standard error", "unit"],
        [_row(name, e) for name, e in result.items() if isinstance(e, dict)],
    )
    typer.echo(result["latents"])
    if samples is not None:
        low, median, high = result["effective_quantiles"]
        typer.echo(
            f"Of {samples} draws an image, {median:.0f} are effective in the median, {low:.0f} or fewer for 5% of the"
            f" images, {high:.0f} or more for 5%. Of the standard error of log p(x),"
            f" {result['monte_carlo_error']:.2g} is due to these draws; its bias is about {result['bias']:.2g}."
        )
    if result["note"]:
        typer.echo(result["note"])


def _row(name: str, estimate: dict[str, float]) -> list[str]:
    from vaelib.evaluation import unit_of

    unit = unit_of(name)
    value = f"{estimate['value']:.2f}" if unit == "nats per image" else f"{estimate['value']:.4g}"
    return [name, value, f"{estimate['standard_error']:.2g}", unit]


def _seeded(seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed)


def evaluation_of(
    vae: Any, images: ImageDataset, seed: int, samples: int | None = None, *, progress: bool = False
) -> dict[str, Any]:
    """Estimate name to value and standard error, the latents in words, what the nats are not, and all counts."""
    from vaelib.evaluation import elbo, latents, log_likelihood, reconstruction_quality

    estimates = elbo(vae, images, generator=_seeded(seed))._asdict()
    num_images = estimates.pop("num_images")
    counts: dict[str, Any] = {"num_images": num_images, "note": estimates.pop("note")}
    words, active_units = "Of a single image, or a posterior that a flow bends, latents are not measured.", None
    if getattr(vae.latent, "posterior", None) is None and num_images > 1:
        report = latents(vae, images, generator=_seeded(seed))
        estimates |= {"mutual_information": report.mutual_information, "marginal_kl": report.marginal_kl}
        words, active_units = report.in_words(), report.active_units
    if samples is not None:
        tighter = log_likelihood(vae, images, num_samples=samples, generator=_seeded(seed), progress=progress)
        estimates |= {"log_likelihood": tighter.log_likelihood, "log_likelihood_bits_per_dim": tighter.bits_per_dim}
        counts |= {"num_samples": samples, "effective_samples": tighter.effective_samples}
        counts |= {"effective_quantiles": list(tighter.effective_quantiles)}
        counts |= {"monte_carlo_error": tighter.monte_carlo_error, "bias": tighter.bias}
    if importlib.util.find_spec("torchmetrics") is not None and min(images.image_shape[1:]) >= 6:
        quality = reconstruction_quality(vae, images, generator=_seeded(seed))._asdict()
        estimates |= {name: quality[name] for name in ("psnr", "ssim", "ms_ssim") if quality[name] is not None}
    found = {name: estimate._asdict() for name, estimate in estimates.items()}
    return found | {"latents": words, "active_units": active_units} | counts


def _other(directory: Path, vae: Any) -> Any:
    """The model of a directory if it can be compared."""
    from vaelib.evaluation.comparison import check_pair

    other = load_model(directory)
    check_pair(vae, other)
    return other


def _comparison(
    vae: Any, other: Any, images: ImageDataset, seed: int, samples: int | None, *, progress: bool
) -> dict[str, Any]:
    from vaelib.evaluation import compare

    found = compare(vae, other, images, num_samples=samples, generator=_seeded(seed), progress=progress)
    name = "elbo" if samples is None else "log_likelihood"
    estimates = {f"difference_of_{name}": found.difference._asdict(), f"other_{name}": found.second._asdict()}
    return estimates | {"note": found.note}


def _anomaly(vae: Any, images: ImageDataset, others: ImageDataset, seed: int) -> dict[str, Any]:
    from vaelib.evaluation import anomaly

    report = anomaly(vae, images, others, generator=_seeded(seed))
    return {f"auroc_{name}": getattr(report, name)._asdict() for name in ("negative_elbo", "reconstruction")}


def _disentanglement(vae: Any, images: ImageDataset, factors: torch.Tensor, seed: int) -> dict[str, Any]:
    from vaelib.evaluation import Estimate, disentanglement

    report = disentanglement(vae, images, factors, categorical=[0], generator=_seeded(seed))
    return {f"score_{name}": e._asdict() for name, e in report._asdict().items() if isinstance(e, Estimate)}
