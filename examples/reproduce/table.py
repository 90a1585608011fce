"""Prints the table of docs/results.md from results/*.json."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROWS = {
    "mlp_vae": "MLP VAE",
    "iwae": "MLP, IWAE with 50 draws",
    "conv_vae": "ConvVAE, standard normal prior",
    "vamp_prior": "ConvVAE, VampPrior",
    "flow_prior": "ConvVAE, RealNVP prior trained jointly",
}


def table():
    lines = [
        "| | -log p(x) | of images | -ELBO of these | published | active | epochs | hours to train | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, title in ROWS.items():
        path = RESULTS / f"{row}.json"
        if path.exists():
            r = json.loads(path.read_text())
            cells = (
                f"[{title}](../examples/reproduce/{row}.py)",
                f"**{r['nll']:.2f}** +- {r['standard_error']:.2f}",
                f"{r['num_images']:,}",
                f"{-r['elbo']:.2f}",
                f"{r['published']:.2f}",
                r["active_units"],
                r["epochs"],
                f"{r['seconds_to_train'] / 3600:.1f}",
                f"{r['parameters']:,}",
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
