"""Prints the tables of docs/results.md from results/*.json."""

import json
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROWS = {
    "mlp_vae": "MLP VAE",
    "iwae": "MLP, IWAE with 50 draws",
    "conv_vae": "ConvVAE, standard normal prior",
    "vamp_prior": "ConvVAE, VampPrior",
    "flow_prior": "ConvVAE, RealNVP prior trained jointly",
    "flow_prior_iwae": "the same, trained on by the bound of 4 draws",
}


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def read(row):
    return json.loads((RESULTS / f"{row}.json").read_text())


def there(row):
    return (RESULTS / f"{row}.json").exists()


def published(found):
    """Binarised dynamically, as these rows are, or else with the word."""
    return f"{found['published']:.2f}" + ("" if found["published_on"] == "dynamic" else f" ({found['published_on']})")


def nats():
    header = (
        "",
        "flags",
        "-log p(x)",
        "draws",
        "effective draws",
        "-ELBO",
        "published",
        "active",
        "epochs",
        "hours",
        "parameters",
    )
    return markdown(
        header,
        [
            (
                f"[{title}](../examples/reproduce/{row}.py)",
                f"`{r['flags']}`",
                f"**{r['nll']:.2f}** +- {r['standard_error']:.2f}",
                f"{r['num_samples']:,}",
                f"{r['effective_samples']:.0f}",
                f"{-r['elbo']:.2f}",
                published(r),
                r["active_units"],
                r["epochs"],
                f"{r['seconds_to_train'] / 3600:.1f}",
                f"{r['parameters']:,}",
            )
            for row, title in ROWS.items()
            if there(row)
            for r in [read(row)]
        ],
    )


def fid():
    samplers = ("its own prior", "gaussian", "mixture")
    cells = {
        model: [f"{found[s]['value']:.2f} +- {found[s]['standard_error']:.2f}" if s in found else "" for s in samplers]
        for model, found in read("rae")["fid"].items()
    }
    header = ("FID", "its own prior", "a Gaussian fitted afterwards", "a mixture of 10 fitted afterwards")
    return markdown(header, [(model, *line) for model, line in cells.items()])


def codes():
    """Rate, distortion and bound of each latent by each prior."""
    header = ("latent", "prior", "distortion", "rate", "-ELBO", "codes never used", "perplexity", "parameters")
    lines = []
    for latent, found in read("codes")["latents"].items():
        used = (found["dead"], f"{found['perplexity']:.0f}") if "dead" in found else ("", "")
        for prior, bound in found["priors"].items():
            nats = f"{bound['distortion']:.2f}", f"{bound['rate']:.2f}"
            total = f"**{-bound['elbo']:.2f}** +- {bound['standard_error']:.2f}"
            lines.append((latent, prior, *nats, total, *used, f"{found['parameters']:,}"))
    return markdown(header, lines)


def mig():
    scores = read("beta_tc")["mig"]
    lines = [
        (
            model,
            f"{found['mig']:.3f} +- {statistics.stdev(found['seeds']) / len(found['seeds']) ** 0.5:.3f}",
            *(f"{seed:.3f}" for seed in found["seeds"]),
        )
        for model, found in scores.items()
    ]
    return markdown(("MIG", "mean of seeds", "seed 0", "seed 1", "seed 2"), lines)


if __name__ == "__main__":
    tables = [nats(), *(table() for row, table in (("rae", fid), ("codes", codes)) if there(row)), mig()]
    print(*tables, sep="\n")
