"""What `gpu.sh` wrote as one page: `results/gpu.md`, or `rehearsal.md` beside its files if a CPU rehearsed."""

import json
from collections import Counter, defaultdict

from report_tables import details, rates, table, times

FILES = ("steps", "tests", "training", "inference", "row")


def write(folder, out):
    """Write the page of a folder, and return its path."""
    found = {name: content for name in FILES if (content := read(folder / f"{name}.json")) is not None}
    measured = {name: content for name, content in found.items() if "environment" in content}
    if not measured:
        raise SystemExit(f"{folder} has no results of gpu.sh: none of {', '.join(f'{name}.json' for name in FILES)}")
    rehearsed = any(content["environment"].get("kind") != "cuda" for content in measured.values())
    sections = [head(found, rehearsed), steps(found), tests(found), training(found), inference(found), row(found)]
    sections.append(skipped(found))
    path = folder / "rehearsal.md" if rehearsed else out / "gpu.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(section for section in sections if section) + "\n")
    return path


def read(path):
    """A result file; of one that cannot be read, that as what was skipped; None if there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        return {"rows": [], "skipped": {path.name: f"it cannot be read: {error}"}}


def head(found, rehearsed):
    environments = {name: content["environment"] for name, content in found.items() if "environment" in content}
    first = next(iter(environments.values()))
    versions = ", ".join(f"{package} {version}" for package, version in first.get("versions", {}).items())
    lines = [
        f"# {'Rehearsal on a CPU' if rehearsed else 'Benchmarks'}: {first['device']}",
        "**No number here is a GPU's.** It shows that every step runs." if rehearsed else "",
        f"Driver {first.get('driver') or 'unknown'}, CUDA {first.get('cuda') or 'none'}, {first['cores']} CPU cores;"
        f" Python {first['python']}, {versions}.",
        "; ".join(dict.fromkeys(when(environment) for environment in environments.values())) + ".",
        "Written by `python benchmarks/report.py OUT` from what `bash benchmarks/gpu.sh OUT` measured.",
    ]
    commands = [f"- {name}: `{e['command']}`" for name, e in environments.items() if "command" in e]
    return "\n\n".join(line for line in [*lines, "\n".join(commands)] if line)


def when(environment):
    return f"{environment['date']}, commit {environment.get('commit') or 'unknown'}"


def steps(found):
    """Which steps ended how; a file that is missing is a step that did not begin."""
    if "steps" not in found:
        return ""
    ended = {entry["step"]: entry for entry in found["steps"]["rows"]}
    names = [name for name in FILES if name != "steps"]
    lines = []
    for name in names:
        entry = ended.get(name)
        if entry is None:
            lines.append([name, "not noted" if name in found else "did not begin", "", ""])
        else:
            lines.append([name, entry["outcome"], entry["seconds"], one_line(entry["reason"])])
    return "\n\n".join(["## Steps", table(["step", "", "seconds", ""], lines)])


def tests(found):
    if "tests" not in found:
        return ""
    rows, collected = found["tests"]["rows"], found["tests"].get("collected")
    counts = Counter(entry["outcome"] for entry in rows)
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "none has ended"
    lines = [f"`pytest -m gpu`: {said}."]
    ended = len({entry["test"] for entry in rows})
    if collected is not None and ended < collected:
        lines.append(f"**Truncated: {ended} of {collected} tests have ended.**")
    bad = [entry for entry in rows if entry["outcome"] in ("failed", "error")]
    lines += ["\n".join(f"- {e['outcome']}: `{e['test']}`: {last_line(e['message'])}" for e in bad)] if bad else []
    reasons = Counter(one_line(entry["message"]) for entry in rows if entry["outcome"] == "skipped")
    if reasons:
        lines.append("Skipped: " + "; ".join(f"{count} ({reason})" for reason, count in reasons.items()) + ".")
    return "\n\n".join(["## Tests", *lines])


def training(found):
    if "training" not in found:
        return ""
    environment = found["training"].get("environment", {})
    parts = ["## Training", training_notes(environment)]
    groups = defaultdict(list)
    for entry in found["training"]["rows"]:
        groups[entry["network"], entry["batch"]].append(entry)
    columns = [
        "",
        "images/s",
        "s for 60,000",
        "x tutorial",
        "compile s",
        "peak GPU MiB",
        "of products",
        "loss",
        "rounds",
    ]
    for (network, batch), rows in groups.items():
        parts += [f"### {network}, batch {batch}", table(columns, [training_line(entry) for entry in rows])]
    return "\n\n".join(parts)


def training_notes(environment):
    return (
        f"Images: {environment.get('data', 'unknown')}. All loops begin with the same weights, on which their"
        f" losses are within {environment.get('loss_tolerance', 0.0):.0e} of each other. Medians over rounds in which"
        " each loop has its turn; compilation is that of all loops of a table side by side. TF32:"
        f" {environment.get('tf32', 'unknown')}. {products(environment)}"
    )


def training_line(entry):
    if "failed" in entry:
        return [entry["loop"], f"failed: {one_line(entry['failed'])}", *[""] * 7]
    return [
        entry["loop"],
        f"{entry['images_per_second']:,.0f}",
        f"{entry['epoch_seconds']:.3g}",
        times(entry["times_tutorial"]),
        f"{entry['compile_seconds']:.1f}",
        "" if entry["peak_device_mib"] is None else f"{entry['peak_device_mib']:,.0f}",
        "" if entry["of_products"] is None else f"{entry['of_products']:.1%}",
        f"{entry['loss_before']:.1f} to {entry['loss_after']:.1f}",
        entry["rounds"],
    ]


def inference(found):
    if "inference" not in found:
        return ""
    environment = found["inference"].get("environment", {})
    parts = [
        "## Inference",
        f"TF32 is off. Error: {environment.get('error', 'unknown')}. {products(environment)}"
        " Images per second at the median call; in bold the fastest right one of an operation and batch.",
    ]
    rows = found["inference"]["rows"]
    failed = [entry for entry in rows if "failed" in entry]
    measured = [entry for entry in rows if "failed" not in entry]
    for network in dict.fromkeys(entry["network"] for entry in measured):
        parts.append(f"### {network}")
        for title, on_device in (("From numpy to numpy", False), ("On the device", True)):
            of_place = [
                entry
                for entry in measured
                if entry["network"] == network and entry["backend"].endswith("on device") == on_device
            ]
            if of_place:
                parts += [f"{title}:", rates(of_place), details(of_place)]
    if failed:
        lines = [f"- {named(entry)}: {one_line(entry['failed'])}" for entry in failed]
        parts += ["### Failed", "\n".join(lines)]
    return "\n\n".join(parts)


def named(entry):
    return f"{entry['network']}, {entry['operation']}, batch {entry['batch']}, {entry['backend']}"


def products(environment):
    rates_here = environment.get("products", {})
    said = ", ".join(f"{name} {rate / 1e12:,.1f} TFLOP/s" for name, rate in rates_here.items())
    return f"Matrix products here: {said or 'not measured'}."


def row(found):
    """Rows of results, as they are: names and values."""
    parts = []
    for entry in found.get("row", {"rows": []})["rows"]:
        lines = [[name.replace("_", " "), shown(value)] for name, value in entry.items() if name != "row"]
        parts += [f"### {entry.get('row', 'row')}", table(["", ""], lines)]
    return "\n\n".join(["## Results row", *parts]) if parts else ""


def shown(value):
    if isinstance(value, dict) and set(value) == {"value", "standard_error"}:
        error = value["standard_error"]
        return shown(value["value"]) if error is None else f"{shown(value['value'])} ± {error:.2g}"
    return f"{value:,.6g}" if isinstance(value, float) else one_line(str(value))


def skipped(found):
    lines = []
    for name in ("training", "inference", "row", "steps"):
        reasons = defaultdict(list)
        for what, why in found.get(name, {}).get("skipped", {}).items():
            reasons[one_line(why)].append(what)
        lines += [f"- {name}: {why}: {'; '.join(what)}" for why, what in reasons.items()]
    missing = [f"{name}.json" for name in FILES if name not in found]
    lines += [f"- not there: {', '.join(missing)}"] if missing else []
    return "\n\n".join(["## Unmeasured here", "\n".join(lines)]) if lines else ""


def one_line(text):
    """A text in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")[:300]


def last_line(message):
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return one_line((errors or lines or ["no message"])[0 if errors else -1])
