"""Tables of measurements.

pytest benchmarks --benchmark-only --benchmark-json run.json
python benchmarks/report.py run.json     # benchmarks/results/cpu.md and its plots; gpu-matrix.md of a run with a GPU

bash benchmarks/gpu.sh OUT
python benchmarks/report.py OUT          # benchmarks/results/gpu.md; OUT/rehearsal.md of a rehearsal on a CPU
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import report_gpu
from report_tables import OPERATIONS, details, rates, table

RESULTS = Path(__file__).parent / "results"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="what --benchmark-json wrote, of which the first names machine and date; or"
        " the one folder that gpu.sh filled"
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if any(path.is_dir() for path in arguments.runs):
        if len(arguments.runs) > 1:
            parser.error("one folder of gpu.sh at a time")
        print(report_gpu.write(arguments.runs[0], arguments.out))
        return
    runs = [json.loads(path.read_text()) for path in arguments.runs]
    print(write_run(runs, arguments.out))


def write_run(runs, out):
    """Write the page of runs of pytest-benchmark, with its plots, and return its path."""
    run, *more = runs
    run["taken"] = "; ".join(dict.fromkeys(when(each) for each in runs))
    for other in more:
        run["benchmarks"] += other["benchmarks"]
        run["skipped"] |= other["skipped"]
    out.mkdir(parents=True, exist_ok=True)
    name = "gpu-matrix" if run["machine_info"]["gpu"] else "cpu"
    pages = [section(run, out, name) for section in (head, networks, others, training, growth, floors)]
    path = out / f"{name}.md"
    path.write_text("\n\n".join(page for page in pages if page) + "\n")
    return path


def pyplot():
    """matplotlib without a window; only plots need it."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    return plt


def entries(run, test):
    """The benchmarks of one test, as their extra information."""
    return [b["extra_info"] for b in run["benchmarks"] if b["name"].startswith(f"{test}[") or b["name"] == test]


def when(run):
    commit = run["commit_info"]
    return f"{run['datetime'][:16]} UTC, commit {commit['id'][:10]}{' with changes' * commit['dirty']}"


def head(run, out, name):
    machine = run["machine_info"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    rates = [e["products"] for e in entries(run, "test_inference")]
    products = ", ".join(
        f"{device} {np.median([rate[device] for rate in rates]) / 1e9:,.0f} GFLOP/s" for device in (rates or [{}])[0]
    )
    spread = [e["p90"] / e["p50"] for e in entries(run, "test_inference")]
    noisy = run["load_before"] > 0.5 or (spread and np.median(spread) > 1.5)
    lines = [
        f"# Benchmarks: {machine['gpu'] or machine['cpu']['brand_raw']}",
        f"{machine['cpu']['brand_raw']}, {machine['threads']} threads each way; Python {machine['python_version']},"
        f" {versions}. Ended {run['taken']}."
        f" Matrix products here: {products or 'not measured'}.",
        "Something else ran beside this run: read it with care." if noisy else "",
        f"Load before {run['load_before']:.2f}; p90 is typically {np.median(spread):.2f} times p50." if spread else "",
        "Written by `python benchmarks/report.py` from `pytest benchmarks --benchmark-only --benchmark-json run.json`;"
        " [how to read it](../../docs/benchmarks.md).",
    ]
    if machine["gpu"]:
        lines.append("On CUDA: TF32 off; convolution algorithms searched for (cudnn.benchmark, EXHAUSTIVE).")
    if run["skipped"]:
        reasons = defaultdict(list)
        for what, why in run["skipped"].items():
            reasons[why].append(what)
        lines.append("**Unmeasured here:** " + "; ".join(f"{', '.join(w)} ({why})" for why, w in reasons.items()) + ".")
    return "\n\n".join(line for line in lines if line)


def networks(run, out, name):
    found = entries(run, "test_inference")
    parts = []
    for network in dict.fromkeys(e["network"] for e in found):
        rows = [e for e in found if e["network"] == network]
        plot(rows, network, out / f"{name}-{network.replace(' ', '-')}.png")
        parts += [f"## {network}", "Images per second at the median call; in bold the fastest right one.", rates(rows)]
        parts += [f"![Throughput, latency, roofline]({name}-{network.replace(' ', '-')}.png)", details(rows)]
    return "\n\n".join(parts)


def plot(rows, network, path):
    """Throughput against batch, latency against throughput, fraction of the rate of products, for each operation."""
    from matplotlib.ticker import NullFormatter

    plt = pyplot()
    operations = [o for o in OPERATIONS if any(r["operation"] == o for r in rows)]
    figure, axes = plt.subplots(
        3, len(operations), figsize=(5 * len(operations), 11), squeeze=False, layout="constrained"
    )
    for column, operation in zip(axes.T, operations, strict=True):
        for backend in dict.fromkeys(r["backend"] for r in rows):
            points = [r for r in rows if (r["operation"], r["backend"]) == (operation, backend) and r["correct"]]
            batch, speed, latency, fraction = (
                [r[key] for r in points] for key in ("batch", "images_per_second", "p50", "of_products")
            )
            column[0].loglog(batch, speed, "o-", label=backend)
            column[1].loglog(speed, latency, "o-")
            column[2].semilogx(batch, fraction, "o-")
        column[0].set(title=f"{network}: {operation}", xlabel="batch", ylabel="images/s")
        column[1].set(xlabel="images/s", ylabel="p50 of a call, ms")
        column[1].xaxis.set_minor_formatter(NullFormatter())
        column[2].set(xlabel="batch", ylabel="of the rate of products", ylim=(0, None))
    axes[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=70)
    plt.close(figure)


def others(run, out, name):
    parts = []
    if rows := entries(run, "test_the_article_and_pythae"):
        columns = ["", "", "images/s", "p50 ms", "peak MiB", "of products", "off by"]
        lines = [
            [
                f"{r['operation']}, batch {r['batch']}",
                r["backend"],
                f"{r['images_per_second']:,.0f}",
                f"{r['p50']:.3g}",
                f"{r['peak_mib']:,.0f}",
                f"{r['of_products']:.0%}",
                f"{r['error']:.0e}",
            ]
            for r in in_order(rows)
        ]
        parts += ["### The article's network, the same weights", table(columns, lines)]
    if rows := entries(run, "test_autoencoder_kl") + entries(run, "test_tiled"):
        parts += [f"### First stages, the weights of diffusers' {DIFFUSERS}", first_stages(rows)]
    for found in entries(run, "test_first_answer"):
        lines = [[b, f"{f['seconds']:.2f}", f"{f['peak_mib']:.0f}"] for b, f in found["first_answer"].items()]
        parts += ["### A process from its start to its first image", table(["", "seconds", "peak MiB"], lines)]
    return "\n\n".join(["## Against others", *parts]) if parts else ""


DIFFUSERS = "AutoencoderKL (first stage) and AutoencoderTiny (without norms)"


def in_order(rows):
    return sorted(rows, key=lambda r: (OPERATIONS.index(r["operation"]), r["batch"]))


def first_stages(rows):
    """Median call and peak memory of a process for each backend, whole and in tiles; README has this table."""
    backends = [b for b in dict.fromkeys(r["backend"] for r in rows) if not b.endswith(" tiled")]
    lines = []
    for network in dict.fromkeys(r["network"] for r in rows):
        found = {(r["operation"], r["batch"], r["backend"]): r for r in in_order(rows) if r["network"] == network}
        for operation, batch in dict.fromkeys(key[:2] for key in found):
            for tiled in ("", " tiled"):
                cells = [time_and_memory(found.get((operation, batch, backend + tiled))) for backend in backends]
                if any(cells):
                    lines.append([f"{network}, {operation}{tiled}", batch, *cells])
    return table(["p50 ms, peak MiB", "batch", *backends], lines)


def time_and_memory(row):
    """What is off by more than rounding says by how much: of the largest value, as blended tiles are."""
    if row is None:
        return ""
    off = f", off by {row['error']:.0e}" if row["error"] > 1e-4 else ""
    return f"{row['p50']:,.0f}, {row['peak_mib']:,.0f}{off}"


def training(run, out, name):
    parts = []
    for found in entries(run, "test_training"):
        lines = [
            [
                loop,
                f"{r['images_per_second']:,}",
                r["vaelib_is_faster_by"],
                r["seconds_to_loss"],
                f"{r['of_gemm_rate']:.0%}",
            ]
            for loop, r in found["rows"].items()
        ]
        columns = ["", "images/s", "vaelib is faster by", "seconds to the same loss", "of products"]
        parts += ["## Training the article's network, batch 64", table(columns, lines)]
    return "\n\n".join(parts)


def growth(run, out, name):
    found = entries(run, "test_growth")
    if not found:
        return ""
    from matplotlib.ticker import NullFormatter

    plt = pyplot()
    kinds = list(dict.fromkeys(e["what"] for e in found))
    figure, axes = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 4), squeeze=False, layout="constrained")
    lines = []
    for e in found:
        axis = axes[0, kinds.index(e["what"])]
        axis.loglog(e["work"], e["seconds"], "o-", label=f"{e['operation']}: {e['exponents']['all']:.2f}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(title=e["what"], xlabel=e["what"], ylabel="seconds an image" if e["what"] == "pixels" else "seconds")
        axis.legend()
        seconds = ", ".join(f"{work:,}: {s:.3g}" for work, s in zip(e["work"], e["seconds"], strict=True))
        lines.append([e["what"], e["operation"], *(f"{x:.2f}" for x in e["exponents"].values()), seconds])
    figure.savefig(out / f"{name}-growth.png", dpi=70)
    plt.close(figure)
    columns = ["", "", "exponent", "of the upper half", "seconds"]
    return "\n\n".join(["## Growth", table(columns, lines), f"![Growth]({name}-growth.png)"])


def floors(run, out, name):
    found = entries(run, "test_floor")
    lines = [
        [
            *(e["floor"][key] for key in ("network", "operation", "batch")),
            f"{e['floor']['fast']} over {e['floor']['slow']}",
            f"{e['ratio']:.2f}",
            e["floor"]["ratio"],
        ]
        for e in found
    ]
    columns = ["network", "operation", "batch", "", "ratio", "floor"]
    return "\n\n".join(["## Floors", table(columns, lines)]) if lines else ""


if __name__ == "__main__":
    main()
