"""The ledger in words: one Markdown text that a terminal shows, notebook 07 renders and html.py
turns into HTML."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from protolib.metrics import SCORES
from protolib.study import compare, ledger, paper

SAY = (
    "Ours is the mean ± standard deviation (of a sample) over seeds; blank = not run; hours are of all seeds together. "
    "A conclusion of the paper is supported where the 95 % intervals of our difference lie above 0 both over seeds "
    "(paired t-test) and over slides (bootstrap, all patches of a slide together), contradicted where both lie below, "
    "else not decided. d is the mean difference in standard deviations of the differences. No p is corrected for the "
    "number of conclusions."
)
WIDTH = 120  # of a terminal
HEADLINE = {"%": "miou", "F1": "f1"}  # the metric that the paper concludes from
EMPTY = (
    "No results yet: `python -m protolib ablate table2 --dataset phantom` makes the first. What follows is the "
    "paper's alone, ours is blank."
)


class Finding(NamedTuple):
    """One conclusion of the paper and what the runs of one result file say of it; differences in
    the table's unit."""

    claim: paper.Claim
    rows: tuple[
        str, str
    ]  # that were compared: the claim's, or in Figure 4 those that stand in for them
    printed: float  # the difference of the paper's own numbers
    verdict: str  # see compare.verdict; "not run" where a row is missing
    ours: compare.Paired | None = None  # over the seeds that both rows have
    slides: tuple[float, float] | None = None  # 95 % interval over slides
    n_slides: int = 0


def findings(table: paper.Table, result: Mapping) -> list[Finding]:
    """The paper's conclusions from a table, judged by the runs of a result file under predicted
    image labels.

    result: one of what ledger.read returns. mIoU is compared over seeds and over slides, F1 over
    seeds. Notebook 07.
    """
    return [
        _finding(table, result, claim)
        for claim in paper.CLAIMS
        if (claim.table, claim.dataset) == (table.name, ledger.beside(table, result))
    ]


def _finding(table: paper.Table, result: Mapping, claim: paper.Claim) -> Finding:
    pair = _run_rows(table, result, claim)
    better, than = (
        {cell["seed"]: cell for cell in ledger.cells_of(result, table.name, row)} for row in pair
    )
    a, b = (
        paper.value(table.name, row, claim.dataset, claim.metric).mean
        for row in (claim.better, claim.than)
    )
    seeds = [seed for seed in better if seed in than]
    if not seeds:
        return Finding(
            claim, pair, a - b, "not run: no seed in common" if better and than else "not run"
        )
    first, scale = better[seeds[0]], ledger.scale(table)
    protocol = next(iter(first["scores"]))
    ours = compare.paired(
        *(
            [scale * of[seed]["scores"][protocol][claim.metric] for seed in seeds]
            for of in (better, than)
        )
    )
    if claim.metric != "miou" or not (first["slides"] and than[seeds[0]]["slides"]):
        return Finding(claim, pair, a - b, compare.verdict(ours), ours)
    matrices = (
        np.array([[slide[protocol] for slide in of[seed]["slides"].values()] for seed in seeds])
        for of in (better, than)
    )
    ignore = first["scores"][protocol]["protocol"].rsplit(" ", 1)[-1]
    low, high = (scale * end for end in compare.over_slides(*matrices, ignore))
    return Finding(
        claim,
        pair,
        a - b,
        compare.verdict(ours, (low, high)),
        ours,
        (low, high),
        len(first["slides"]),
    )


def _run_rows(table: paper.Table, result: Mapping, claim: paper.Claim) -> tuple[str, str]:
    """The two rows of a claim; where Figure 4's banks are larger than the data, the largest smaller
    ones that were run.

    Clustering is compared with chance at one size, for that is what the claim is about.
    """
    asked = claim.better, claim.than
    if table.name != "figure4" or all(ledger.cells_of(result, table.name, row) for row in asked):
        return asked
    run = {
        ledger.point(row)
        for row in result["tables"].get(table.name, {})
        if ledger.cells_of(result, table.name, row)
    }
    (first, top), (second, at) = map(ledger.point, asked)
    sizes = [
        n
        for kind, n in run
        if kind == first
        and n <= top
        and ((second, at) in run and n > at if first == second else (second, n) in run)
    ]
    if not sizes:
        return asked
    return (
        f"{first}, {max(sizes):g} images",
        f"{second}, {at if first == second else max(sizes):g} images",
    )


def text(results: Sequence[Mapping]) -> str:
    """The whole ledger as Markdown: tables, conclusions, re-runs by others, peers, window,
    self-contradictions.

    results: as ledger.read returns them; with none, the paper's numbers alone. Notebook 07.
    """
    return "\n".join(
        _wrapped(line) for part in sections(results).values() for line in [*part.splitlines(), ""]
    )


def sections(results: Sequence[Mapping]) -> dict[str, str]:
    """The parts of `text` by name, with long lines: "head", "table1" to "figure4", "others",
    "window", "itself"."""
    entries = ledger.rows(results)
    tables = {
        table.name: "\n\n".join(_section(table, results, entries))
        for table in paper.TABLES.values()
    }
    itself = [f"- {topic}. {sentence}" for topic, sentence in paper.contradictions()]
    return (
        {"head": f"# The paper's tables, ours beside them\n\n{SAY if results else EMPTY}"}
        | tables
        | {
            "others": _others(),
            "window": _window(results),
            "itself": "\n".join(["## Where the paper disagrees with itself", "", *itself]),
        }
    )


def title(table: paper.Table) -> str:
    """The heading of a table: "Table 2: Losses (stage 1)"."""
    return f"{table.name[:-1].capitalize()} {table.name[-1]}: {table.title} ({table.stage})"


def head(metric: str) -> str:
    """A metric as the head of a column, with its unit: "mIoU (%)", "F1", "F1 TUM"."""
    return (
        f"{SCORES[metric]} (%)"
        if metric in SCORES
        else metric.replace("f1", "F1").replace("_", " ")
    )


def _section(
    table: paper.Table, results: Sequence[Mapping], entries: Sequence[Mapping]
) -> Iterator[str]:
    """Paragraphs and tables: what was run, file by file, then the paper's data sets that nothing
    stands beside."""
    yield f"## {title(table)}"
    covered = set()
    for result in results:
        own = [
            e
            for e in entries
            if (e["table"], e["dataset"], e["preset"])
            == (table.name, ledger.name(result), result["preset"])
        ]
        if own:
            covered.add(ledger.beside(table, result))
            yield from _run(table, result, own)
    for dataset in dict.fromkeys(
        value.dataset for value in paper.VALUES if value.table == table.name
    ):
        if dataset not in covered:
            yield from _printed(table, dataset)


def _run(table: paper.Table, result: Mapping, own: Sequence[Mapping]) -> Iterator[str]:
    """Caption, table, warning and findings of one result file; own: its rows of the ledger."""
    name, dataset = ledger.name(result), ledger.beside(table, result)
    patches = ", ".join(f"{split} {count}" for split, count in result["patches"].items())
    protocols = dict.fromkeys(e["protocol"] for e in own)
    said = " / ".join(p for p in protocols if "oracle" not in p)
    oracle = "".join(f"; oracle mIoU: {p}" for p in protocols if "oracle" in p)
    data = (
        "the same data" if ledger.same(table, result) else "other data, so no difference is taken"
    )
    budget = f" ({result['size']} px, {result['epochs']} epochs)" if "size" in result else ""
    yield (
        f"{name} ({patches}), preset {result['preset']}{budget}. Protocol: {said}{oracle}. The paper: {table.source}, "
        f"{dataset}, {data}, protocol not stated. Run id: {result['label']}-{result['preset']}/CELL/seed N."
    )
    yield _ours(table, result, own)
    if few := dict.fromkeys(
        f"{e['row']} ({e['seeds']})" for e in own if e["seeds"] < compare.FEW_SEEDS
    ):
        yield f"WARNING: fewer than {compare.FEW_SEEDS} seeds on {name}, which tells little: {'; '.join(few)}."
    found = findings(table, result)
    lines = [f"- {_sentence(table, result, finding)}" for finding in found if finding.ours]
    if blank := [finding for finding in found if not finding.ours]:
        lines.append(
            f"- not run on {name}: " + "; ".join(_claim(table, finding) for finding in blank) + "."
        )
    if lines:
        yield "\n".join(lines)


def _ours(table: paper.Table, result: Mapping, own: Sequence[Mapping]) -> str:
    """The table of one result file; its name heads the first column, so that a copied table keeps
    it."""
    same, oracle = ledger.same(table, result), any("oracle" in e["protocol"] for e in own)
    name = ledger.name(result) + ("" if same else f" (paper: {ledger.beside(table, result)})")
    heads = [
        name,
        *(h for metric in table.metrics for h in (head(metric), "paper")),
        *["ours - paper"] * same,
        *["oracle mIoU (%)"] * oracle,
        "seeds",
        "hours",
        "cell, or why blank",
    ]
    lines = []
    for row in ledger.row_names(table, result):
        mine = [e for e in own if e["row"] == row]
        main = {e["metric"]: e for e in mine if "oracle" not in e["protocol"]}
        line = [row]
        for metric in table.metrics:
            printed = paper.value(table.name, row, ledger.beside(table, result), metric)
            line += [_mean(table, main.get(metric)), _value(table, printed)]
        if same:
            gap = main and main[HEADLINE[table.unit]]["difference"]
            line.append("" if gap in ({}, None) else _signed(table, gap))
        if oracle:
            found = [e for e in mine if "oracle" in e["protocol"] and e["metric"] == "miou"]
            line.append(_mean(table, found[0] if found else None))
        lines.append(line + _origin(table, result, row, mine))
    return _grid(heads, lines)


def _origin(table: paper.Table, result: Mapping, row: str, mine: Sequence[Mapping]) -> list[str]:
    """Seeds, hours and cell of a row, or why there is none."""
    if not mine:
        return ["", "", ledger.why_not(result, table.name, row)]
    lost = [e["note"] for e in mine if e["ours_mean"] is None]
    cell = "; ".join([result["tables"][table.name][row], *lost[:1]])
    return [str(mine[0]["seeds"]), f"{mine[0]['hours']:.2f}", cell]


def _claim(table: paper.Table, finding: Finding) -> str:
    claim, printed = finding.claim, _signed(table, finding.printed)
    asked = claim.better, claim.than
    other = "" if finding.rows == asked else f" with {claim.better} over {claim.than}"
    return f"{claim.text} ({finding.rows[0]} over {finding.rows[1]}; the paper {printed} on {claim.dataset}{other})"


def _sentence(table: paper.Table, result: Mapping, finding: Finding) -> str:
    """One finding with everything it rests on, and the data set's name, so that it can be copied
    alone."""
    ours, n = finding.ours, finding.n_slides
    points = (
        f"{SCORES[finding.claim.metric]} points"
        if table.unit == "%"
        else head(finding.claim.metric)
    )
    seeds = f"over {ours.n} seed{'s' * (ours.n > 1)}{' (WARNING: too few)' * (ours.n < compare.FEW_SEEDS)}"
    said = [
        f"Ours {_signed(table, ours.difference)} {points}",
        f"{seeds} {_interval(table, ours.low, ours.high)}, p = {ours.p:.2g}, d = {ours.d:.1f}"
        if not math.isnan(ours.p)
        else f"{seeds} no interval, for nothing varies",
    ]
    if finding.slides:
        only = f" (WARNING: only {compare.resamples(n)} different resamples, too narrow)" * (
            n < compare.FEW_SLIDES
        )
        said.append(f"over {n} slide{'s' * (n > 1)}{only} {_interval(table, *finding.slides)}")
    return (
        f"{finding.verdict} on {ledger.name(result)}: {_claim(table, finding)}. {'; '.join(said)}."
    )


def _printed(table: paper.Table, dataset: str) -> list[str]:
    """The paper's numbers on a data set that has not been run: one line for one metric, else a
    table."""
    values = [v for v in paper.VALUES if (v.table, v.dataset) == (table.name, dataset)]
    texts = [c.text for c in paper.CLAIMS if (c.table, c.dataset) == (table.name, dataset)]
    claims = (
        [f"Conclusions of the paper on {dataset}, not run: {'; '.join(texts)}."] if texts else []
    )
    if len(table.metrics) > 1:
        lines = [
            [row, *(_value(table, paper.value(table.name, row, dataset, m)) for m in table.metrics)]
            for row in dict.fromkeys(v.row for v in values)
        ]
        return [
            f"Not run on {dataset}. The paper, {table.source}:",
            _grid([dataset, *(f"paper, {head(m)}" for m in table.metrics)], lines),
            *claims,
        ]
    sweeps: dict[str, list[str]] = {}
    for v in values:
        sweep, at = ledger.point(v.row)
        sweeps.setdefault(sweep, []).append(f"{at:g}: {_value(table, v)}")
    return [
        f"Not run on {dataset}. The paper, {table.source}, {head(table.metrics[0])} at "
        f"{'; '.join(f'{sweep} ' + ', '.join(found) for sweep, found in sweeps.items())}.",
        *claims,
    ]


def _others() -> str:
    reruns = _grid(
        ["PBIP run again by", "stage", "data set", "mIoU (%)", "IoU of the classes (%)", "note"],
        [
            [
                r.by,
                r.stage,
                r.dataset,
                f"{r.miou:.2f}",
                ", ".join(f"{v:.2f}" for v in r.iou),
                r.note,
            ]
            for r in paper.RERUNS
        ],
    )
    datasets = list(dict.fromkeys(dataset for peer in paper.PEERS for dataset in peer.miou))
    peers = _grid(
        [
            "method",
            "year",
            "stages",
            *(f"mIoU (%), {dataset}" for dataset in datasets),
            "note",
            "backbone",
        ],
        [
            [
                p.method,
                str(p.year),
                str(p.stages),
                *(_peer(p, d) for d in datasets),
                p.note,
                p.backbone,
            ]
            for p in paper.PEERS
        ],
    )
    return (
        f"## What others report\n\n{reruns}\n\nPeers, as their authors report them, in brackets as others ran them "
        f"again; protocols differ, and oracle labels close absent classes.\n\n{peers}"
    )


def _peer(peer: paper.Peer, dataset: str) -> str:
    mean, again = peer.miou.get(dataset), peer.rerun.get(dataset)
    return (f"{mean:.2f}" if mean is not None else "") + (
        f" ({again:.2f})" if again is not None else ""
    )


def _window(results: Sequence[Mapping]) -> str:
    """Whether the full model's stage 1 lies where a faithful one should, on published data
    alone."""
    lines = []
    for dataset, (low, high) in paper.WINDOW.items():
        ours = []
        for result in results:
            cells = ledger.cells_of(result, "table2", ledger.RERUN["table2"][0])
            if result["official"] and result["dataset"] == dataset and cells:
                for protocol in cells[0]["scores"]:
                    mean = 100 * float(
                        np.mean([cell["scores"][protocol]["miou"] for cell in cells])
                    )
                    place = "inside" if low <= mean <= high else "below" if mean < low else "above"
                    ours.append(
                        f"{mean:.2f}, {place} (preset {result['preset']}, {protocol} image labels, "
                        f"{len(cells)} seed{'s' * (len(cells) > 1)})"
                    )
        lines.append(
            f"- {dataset}: {low} to {high}. {'Ours: ' + '; '.join(ours) if ours else 'Not run'}."
        )
    return "\n".join(["## Where a faithful stage 1 should lie, mIoU (%)", "", *lines])


def _grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded for the terminal; columns of numbers stand to the right."""
    columns = list(zip(heads, *lines))
    right = [
        i > 0 and all(cell[:1] in "+-.0123456789" for cell in column[1:])
        for i, column in enumerate(columns)
    ]
    widths = [max(map(len, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right))} |"

    rule = "|".join("-" * (w + 1) + ("-:"[r]) for w, r in zip(widths, right))
    return "\n".join([line(heads), f"|{rule}|", *map(line, lines)])


def _wrapped(line: str) -> str:
    """A paragraph or an item of a list in lines for a terminal; tables and headings as they are."""
    if line.startswith(("|", "#")):
        return line
    return textwrap.fill(
        line,
        WIDTH,
        subsequent_indent="  " * line.startswith("- "),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _mean(table: paper.Table, entry: Mapping | None) -> str:
    return _number(table, entry["ours_mean"], entry["ours_std"]) if entry else ""


def _value(table: paper.Table, value: paper.Value | None) -> str:
    if value is None:
        return ""
    if table.read_off:
        return f"{value.mean:g}" + (
            f" [{value.low:g}..{value.high:g}]" if value.low is not None else ""
        )
    return _number(table, value.mean, value.std) + (" (typo?)" if "typo" in value.note else "")


def _number(table: paper.Table, mean: float | None, std: float | None = None) -> str:
    digits = (2, 1) if table.unit == "%" else (3, 3)
    return (
        ""
        if mean is None
        else f"{mean:.{digits[0]}f}" + (f" ± {std:.{digits[1]}f}" if std is not None else "")
    )


def _signed(table: paper.Table, difference: float) -> str:
    return f"{difference:+.{2 if table.unit == '%' else 3}f}"


def _interval(table: paper.Table, low: float, high: float) -> str:
    return f"{_signed(table, low)} to {_signed(table, high)}"
