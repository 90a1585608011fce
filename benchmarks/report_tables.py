"""Tables that both reports have."""

OPERATIONS = ("encode", "decode", "reconstruct")


def table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def rates(rows):
    batches = sorted({row["batch"] for row in rows})
    lines = []
    for operation in OPERATIONS:
        speeds = {(r["backend"], r["batch"]): r for r in rows if r["operation"] == operation}
        best = {
            batch: max(
                (r["images_per_second"] for r in speeds.values() if r["batch"] == batch and r["correct"]), default=0
            )
            for batch in batches
        }
        for backend in dict.fromkeys(backend for backend, _ in speeds):
            cells = [rate(speeds.get((backend, batch)), best[batch]) for batch in batches]
            lines.append([operation, backend, *cells])
    return table(["", "", *(f"batch {batch}" for batch in batches)], lines)


def rate(row, best):
    if row is None:
        return ""
    if not row["correct"]:
        return "wrong"
    text = f"{row['images_per_second']:,.0f}"
    return f"**{text}**" if row["images_per_second"] == best else text


def details(rows):
    on_gpu = any(row.get("device_mib") is not None for row in rows)
    columns = ["", "batch", "p50 ms", "p90 ms", "p99 ms", "first call s", "peak MiB", "of products", "error"]
    columns += ["peak GPU MiB", "x eager torch"] if on_gpu else []
    lines = [
        [
            f"{row['operation']}, {row['backend']}",
            row["batch"],
            *(f"{row[name]:.3g}" for name in ("p50", "p90", "p99", "first_call")),
            f"{row['peak_mib']:,.0f}",
            "" if row["of_products"] is None else f"{row['of_products']:.0%}",
            f"{row['error']:.0e}" + ("" if row["correct"] else " **wrong**"),
            *([device_mib(row), times(row.get("times_torch"))] if on_gpu else []),
        ]
        for row in rows
    ]
    return f"<details><summary>Latency, memory, accuracy</summary>\n\n{table(columns, lines)}\n\n</details>"


def device_mib(row):
    return "" if row["device_mib"] is None else f"{row['device_mib']:,.0f}"


def times(value):
    return "" if value is None else f"{value:.2f}"
