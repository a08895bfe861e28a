"""python -m benchmarks TOPIC|all|table: measure, keep the numbers in cpu.json or cuda.json, and
write the table of README.md from them."""

import argparse
import json
import math
import time
from pathlib import Path

import matplotlib
import torch

from benchmarks.measure import machine
from benchmarks.topics import TOPICS
from protolib.files import read_json, write_json, write_text
from protolib.presets import preset
from protolib.training import set_up

HERE = Path(__file__).parent
BEGIN, END = "<!-- made by python -m benchmarks -->\n", "<!-- end -->\n"


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    asked.add_argument("topic", choices=[*TOPICS, "all", "table"])
    asked.add_argument("--threads", type=int, default=1, help="of torch; a GPU's rest")
    args = asked.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    set_up(device, preset("quick"))  # as every run begins
    file = HERE / f"{device}.json"
    known = read_json(file) if file.is_file() else {}
    wanted = {"all": list(TOPICS), "table": []}.get(args.topic, [args.topic])
    for name in wanted:
        began = time.perf_counter()
        rows = TOPICS[name](device)
        took = round(time.perf_counter() - began)
        known[name] = {"machine": machine(device), "seconds": took, "comparisons": rows}
        write_json(file, rounded(known))
    if "growth" in known:
        draw(known["growth"]["comparisons"], HERE / "growth.png")
    write_table({kind: HERE / f"{kind}.json" for kind in ("cpu", "cuda")})


def rounded(value):
    """Numbers to four digits: more would be noise."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


def write_table(found: dict[str, Path]) -> None:
    """Put the numbers of these files between the two marks of README.md."""
    readme = HERE / "README.md"
    text = readme.read_text("utf-8")
    lines = []
    for kind, file in found.items():
        known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        lines += [f"### On a {kind.upper() if kind == 'cpu' else 'GPU'}", ""]
        lines += table(known) if known else ["not run", ""]
    before, _, rest = text.partition(BEGIN)
    write_text(readme, before + BEGIN + "\n" + "\n".join(lines) + END + rest.partition(END)[2])


def table(known: dict) -> list[str]:
    """The lines of a table of all topics, one line a variant, and where they ran."""
    lines = [
        "| command | work | variant | ms | lowest to highest | times as quick as the first "
        "| spread | peak (MB) | GFLOP |",
        "|---|---|---|---:|---|---:|---|---:|---:|",
    ]
    for name in TOPICS:
        command = f"`python -m benchmarks {name}`"
        if name not in known:
            lines.append(f"| {command} | not run | | | | | | | |")
            continue
        if name == "growth":
            lines.append(f"| {command} | the picture below | | | | | | | |")
            continue
        for one in known[name]["comparisons"]:
            for variant, of in one["variants"].items():
                ratio = one["ratios"].get(variant)
                cells = [
                    command,
                    one["what"],
                    variant,
                    number(1e3 * of["seconds"]["median"]),
                    spread(of["seconds"], 1e3),
                    number(ratio["median"]) if ratio else "",
                    spread(ratio, 1) if ratio else "",
                    "" if of["peak_mb"] is None else f"{of['peak_mb']:.0f}",
                    "" if of["gflop"] is None else number(of["gflop"]),
                ]
                lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for where in dict.fromkeys(json.dumps(topic["machine"]) for topic in known.values()):
        own = json.loads(where)
        names = [name for name, topic in known.items() if topic["machine"] == own]
        took = sum(known[name]["seconds"] for name in names)
        told = ", ".join(f"{key} {value}" for key, value in own.items())
        lines.append(f"{', '.join(names)}: {told}; {took} s in all.")
    return [*lines, ""]


def number(value: float) -> str:
    """Three digits, no exponent."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{digits}f}"


def spread(of: dict, scale: float) -> str:
    return f"{number(scale * of['lowest'])} to {number(scale * of['highest'])}"


def draw(rows: list[dict], path: Path) -> None:
    """Cost per image over the number of images, one line a kind of work."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
    sizes = [row["images"] for row in rows]
    for name in rows[0]["variants"]:
        cost = [1e6 * row["variants"][name]["seconds"]["median"] / row["images"] for row in rows]
        ax.plot(sizes, cost, "o-", label=name)
    ax.set(xscale="log", yscale="log", xlabel="images", ylabel="CPU time an image (µs)")
    ticks = [1, 3, 10, 30, 100]
    ax.set_xticks(sizes, map("{:,}".format, sizes))
    ax.set_yticks(ticks, ticks)
    ax.minorticks_off()
    ax.legend()
    fig.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
