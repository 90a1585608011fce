"""``vaelib evaluate``: a model's numbers on a data set, each with its standard error."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaelib.cli.common import (
    check_model,
    kind_of_condition,
    load_data,
    load_model,
    print_json,
    print_table,
    reading_options,
)
from vaelib.cli.options import (
    ChannelsLast,
    Data,
    Download,
    Frames,
    ImagesKey,
    Json,
    Model,
    Seed,
    Split,
    ValueRange,
    a_name,
    a_path,
)

if TYPE_CHECKING:
    import torch

    from vaelib.data import ImageDataset


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
            min=1,
            max=10_000_000,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Also how well this other set is told from the data: AUROC of the ELBO and of its first part.",
            metavar="NAME_OR_PATH",
            parser=a_name,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="Also the difference to this other model, image by image: of log p(x) with --samples, else the ELBO.",
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
    other = None
    if compare is not None:
        from vaelib.evaluation.comparison import check_pair

        other = load_model(compare)
        check_pair(vae, other)
    kind = kind_of_condition(vae) or (other and kind_of_condition(other))
    reading = reading_options(context.params)
    images = load_data(model, vae, data, split, download=download, reading=reading, condition=kind)
    others = None if against is None else load_data(model, vae, against, "test", download=download)
    if disentanglement and images.factors is None:
        raise ValueError("`--disentanglement` needs a set whose factors are known, such as shapes.")
    result = evaluation_of(vae, images, seed, samples, progress=not json_output)
    if other is not None:
        found = _comparison(vae, other, images, seed, samples, progress=not json_output)
        result |= found | {"note": _joined(result["note"], found["note"])}
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
    if result.get("num_samples", 1) > 1:
        low, median, high = result["effective_quantiles"]
        typer.echo(
            f"Of {samples} draws an image, {median:.0f} are effective in the median, {low:.0f} or fewer for 5% of the"
            f" images, {high:.0f} or more for 5%. Of the standard error of {result['quantity']},"
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
    from vaelib.evaluation import elbo, reconstruction_quality

    bound = elbo(vae, images, generator=_seeded(seed))
    estimates = bound._asdict() | {"rate_bits": bound.rate_bits}
    counts: dict[str, Any] = {name: estimates.pop(name) for name in ("num_images", "note", "quantity")}
    of_latents, more = _latents(vae, images, seed)
    estimates |= of_latents
    if samples is not None:
        of_likelihood, of_draws = _likelihood(vae, images, samples, seed, progress=progress)
        estimates |= of_likelihood
        counts |= of_draws | {"note": _joined(of_draws["note"], counts["note"])}
    if vae.condition is not None:
        also = "elbo, reconstruction and kl are of log p(x|c), of images whose condition is known, and not of log p(x)."
        counts["note"] = f"{also} {counts['note']}".rstrip()
    if importlib.util.find_spec("torchmetrics") is not None and min(images.image_shape[1:]) >= 6:
        quality = reconstruction_quality(vae, images, generator=_seeded(seed))._asdict()
        estimates |= {name: quality[name] for name in ("psnr", "ssim", "ms_ssim") if quality[name] is not None}
    found = {name: estimate._asdict() for name, estimate in estimates.items()}
    return found | more | counts


def _latents(vae: Any, images: ImageDataset, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Estimates of the latents or codes, and what they say in words."""
    from vaelib.evaluation import code_usage, latents

    if hasattr(vae.latent, "num_codes"):
        usage = code_usage(vae, images, generator=_seeded(seed))
        numbers = {"perplexity": usage.perplexity, "dead_codes": usage.dead, "num_codes": usage.num_codes}
        return {}, {"latents": usage.in_words(), "active_units": None} | numbers
    if getattr(vae.latent, "posterior", None) is not None or len(images) < 2:
        words = "Of a single image, or a posterior that a flow bends, latents are not measured."
        return {}, {"latents": words, "active_units": None}
    report = latents(vae, images, generator=_seeded(seed))
    estimates = {"mutual_information": report.mutual_information, "marginal_kl": report.marginal_kl}
    return estimates, {"latents": report.in_words(), "active_units": report.active_units}


def _likelihood(
    vae: Any, images: ImageDataset, samples: int, seed: int, *, progress: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Log p(x) by name, of a model with a condition log p(x|c) and of one with labels both; and of the draws."""
    from vaelib.evaluation import log_likelihood, marginal_log_likelihood

    def by(measure: Any) -> Any:
        return measure(vae, images, num_samples=samples, generator=_seeded(seed), progress=progress)

    kind = kind_of_condition(vae)
    found, name = by(log_likelihood), "log_likelihood" if kind is None else "log_likelihood_given_condition"
    estimates = {name: found.log_likelihood, f"{name}_bits_per_dim": found.bits_per_dim}
    if kind == "labels":
        marginal = by(marginal_log_likelihood)
        estimates |= {"log_likelihood": marginal.log_likelihood, "log_likelihood_bits_per_dim": marginal.bits_per_dim}
    names = ("num_samples", "effective_samples", "monte_carlo_error", "bias", "note")
    draws = {name: getattr(found, name) for name in names}
    return estimates, draws | {"effective_quantiles": list(found.effective_quantiles)}


def _comparison(
    vae: Any, other: Any, images: ImageDataset, seed: int, samples: int | None, *, progress: bool
) -> dict[str, Any]:
    from vaelib.evaluation import compare

    found = compare(vae, other, images, num_samples=samples, generator=_seeded(seed), progress=progress)
    name = "elbo" if samples is None else "log_likelihood"
    note = found.note.replace(" of `first`", "").replace("`second`", "the other model")
    of_first, of_second = found.quantities
    if of_first != of_second:
        note = f"The difference is that of {of_first} to {of_second} of the other model. {note}".rstrip()
    suffix = "_given_condition" if samples is not None and "|c" in of_first + of_second else ""
    estimates = {f"difference_of_{name}{suffix}": found.difference._asdict(), f"other_{name}": found.second._asdict()}
    return estimates | {"compared": list(found.quantities), "note": note}


def _joined(note: str, more: str) -> str:
    """A note with those sentences of another that it does not have."""
    return " ".join(filter(None, [note, *(text for text in re.split(r"(?<=\.) ", more) if text not in note)]))


def _anomaly(vae: Any, images: ImageDataset, others: ImageDataset, seed: int) -> dict[str, Any]:
    from vaelib.evaluation import anomaly

    report = anomaly(vae, images, others, generator=_seeded(seed))
    return {f"auroc_{name}": getattr(report, name)._asdict() for name in ("negative_elbo", "reconstruction")}


def _disentanglement(vae: Any, images: ImageDataset, factors: torch.Tensor, seed: int) -> dict[str, Any]:
    from vaelib.evaluation import Estimate, disentanglement

    report = disentanglement(vae, images, factors, categorical=[0], generator=_seeded(seed))
    return {f"score_{name}": e._asdict() for name, e in report._asdict().items() if isinstance(e, Estimate)}
